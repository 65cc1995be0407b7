//! Calibration inputs: `.npz` and `.npy` files, alone or in a folder, whose arrays carry the names of the graph's inputs.
//!
//! The first axis of each array counts samples, but for inputs that have none: single numbers, and tables beside a batch, are given
//! once for all samples, or with an axis more. Samples are read one at a time, in the order of the files' names, so that memory does
//! not depend on how many there are; every header is checked before the first is read.

use super::npy::Header;
use super::npz::{self, Entry};
use crate::error::{Error, Result};
use crate::interrupt;
use input_spec::{Lead, batches, column, made_whole, same_sizes};
use llmq_kernels::elementwise::first_non_finite;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

pub use input_spec::InputSpec;

mod input_spec;

/// The names under which a file may hold the class of each sample.
const LABELS: [&str; 2] = ["labels", "label"];

/// The numbers of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// For inputs of floating-point numbers.
    Float(Vec<f32>),
    /// For inputs of integers and truth values.
    Integer(Vec<i32>),
}

/// One input of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The axes, the batch first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Values,
}

/// What one run of the graph takes.
#[derive(Debug, Clone)]
pub struct Sample {
    /// In the order in which inputs were asked for.
    pub inputs: Vec<Array>,
    /// The true class of each row, where the file has labels.
    pub labels: Vec<i64>,
    /// The file and the row in it, for messages.
    pub place: String,
}

/// An array of a file.
#[derive(Debug, Clone)]
struct Column {
    /// None for a `.npy`, which is all there is.
    entry: Option<Entry>,
    lead: Lead,
    header: Header,
    /// What one row of it has, the axis that counts them excluded.
    row: Vec<usize>,
}

/// A file whose header has been checked.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    rows: usize,
    columns: Vec<Column>,
    labels: Option<Column>,
}

/// All samples of some files.
#[derive(Debug, Clone)]
pub struct Samples {
    wanted: Vec<InputSpec>,
    /// Rows of a run.
    batch: usize,
    /// For each input whether its first axis counts these.
    counts: Vec<bool>,
    parts: Vec<Part>,
    /// Arrays that no input asked for, by name.
    pub unused: Vec<String>,
}

impl Samples {
    /// Reads the headers of `paths`, each a file or a folder.
    ///
    /// # Errors
    /// No file, a damaged one, or one whose arrays are not what the graph wants.
    pub fn open(paths: &[PathBuf], wanted: Vec<InputSpec>) -> Result<Samples> {
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() { files.extend(folder(path)?) } else { files.push(path.clone()) }
        }
        if files.is_empty() {
            return Err(Error::usage("no calibration inputs were given"));
        }
        let (batch, counts) = batches(&wanted);
        let mut samples = Samples { wanted, batch, counts, parts: Vec::new(), unused: Vec::new() };
        for path in files {
            let part = samples.part(&path)?;
            samples.parts.push(part);
        }
        let labelled = samples.parts.iter().filter(|p| p.labels.is_some()).count();
        if labelled != 0 && labelled != samples.parts.len() {
            let without = samples.parts.iter().find(|p| p.labels.is_none()).map(|p| p.path.display().to_string());
            return Err(Error::new(format!("{} has no labels, but other files have", without.unwrap_or_default())));
        }
        if samples.is_empty() {
            let rows = samples.parts.iter().map(|p| p.rows).fold(0, usize::saturating_add);
            return Err(Error::new(format!("{rows} samples were found; the graph takes {batch} at a time")));
        }
        Ok(samples)
    }

    /// How many runs of the graph they make.
    pub fn len(&self) -> usize {
        // Headers can claim more than there are, and more than can be counted.
        self.parts.iter().map(|part| part.rows / self.batch).fold(0, usize::saturating_add)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows at the ends of files that make no whole run of a graph whose batch is fixed.
    pub fn left_over(&self) -> usize {
        self.parts.iter().map(|part| part.rows % self.batch).sum()
    }

    /// How many rows each file has.
    pub fn rows(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.rows).collect()
    }

    /// Rows of one run.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// For each input whether all samples get the same.
    pub fn whole(&self) -> Vec<bool> {
        let whole = |at: usize| self.parts.iter().all(|part| part.columns[at].lead == Lead::Whole);
        (0..self.wanted.len()).map(whole).collect()
    }

    /// For each input whether its first axis counts the samples.
    pub fn counted(&self) -> Vec<bool> {
        let counted = |at: usize| self.parts.iter().all(|part| part.columns[at].lead == Lead::Rows);
        (0..self.wanted.len()).map(counted).collect()
    }

    /// Whether the true classes are known.
    pub fn labelled(&self) -> bool {
        self.parts.iter().all(|part| part.labels.is_some())
    }

    /// Reads them, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample>> {
        self.parts.iter().flat_map(|part| Rows { samples: self, part, readers: None, next: 0 })
    }

    /// Reads those of some numbers, which are in order, one at a time.
    ///
    /// # Errors
    /// One cannot be read, or `of` failed.
    pub fn each(&self, chosen: &[usize], of: &mut dyn FnMut(Sample) -> Result<()>) -> Result<()> {
        let end = chosen.last().map_or(0, |last| last + 1);
        for (at, sample) in self.iter().enumerate().take(end) {
            interrupt::check()?;
            let sample = sample?;
            if chosen.binary_search(&at).is_ok() {
                of(sample)?;
            }
        }
        Ok(())
    }

    /// Checks one file.
    fn part(&mut self, path: &Path) -> Result<Part> {
        let fail = |what: String| Error::new(format!("{}: {what}", path.display()));
        let is_npy = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"));
        let (mut columns, mut labels) = (Vec::new(), None);
        if is_npy {
            let [only] = &self.wanted[..] else {
                return Err(fail(format!("it holds one array, but the graph has {} inputs", self.wanted.len()))
                    .hint("save all in one file with np.savez, under the names of the inputs"));
            };
            let file = File::open(path).map_err(|cause| fail("cannot be opened".into()).because(cause))?;
            let header = Header::read(&mut BufReader::new(file)).map_err(fail)?;
            columns.push(column(only, self.counts[0], None, header).map_err(fail)?);
        } else {
            let entries = npz::entries(path).map_err(|what| {
                fail(what).hint("calibration inputs are .npz or .npy files, made with np.savez or np.save")
            })?;
            let header = |entry: &Entry| {
                npz::open(path, entry)
                    .and_then(|mut from| Header::read(&mut from))
                    .map_err(|what| fail(format!("'{}' {what}", entry.name)))
            };
            for (wanted, &counts) in self.wanted.iter().zip(&self.counts) {
                let Some(entry) = entries.iter().find(|e| e.name == wanted.name) else {
                    return Err(self.missing(path, wanted, &entries));
                };
                columns.push(column(wanted, counts, Some(entry.clone()), header(entry)?).map_err(fail)?);
            }
            for entry in entries.iter().filter(|e| self.wanted.iter().all(|w| w.name != e.name)) {
                if LABELS.contains(&entry.name.as_str()) && labels.is_none() {
                    labels = Some(label_column(entry.clone(), header(entry)?).map_err(fail)?);
                } else if !self.unused.contains(&entry.name) {
                    self.unused.push(entry.name.clone());
                }
            }
        }
        let reference = columns.iter().position(|(_, rows)| rows.is_some());
        // Arrays of which all are for every sample make one.
        let rows = reference.map_or(self.batch, |at| columns[at].1.unwrap_or(1));
        for ((column, other), wanted) in columns.iter_mut().zip(&self.wanted) {
            let (Some(first), Some(found)) = (reference.map(|at| &self.wanted[at]), *other) else { continue };
            if found != rows {
                if made_whole(column, wanted, first) {
                    *other = None;
                    continue;
                }
                let (first, this) = (&first.name, &wanted.name);
                let shape = &column.header.shape;
                return Err(fail(format!("'{first}' has {rows} samples, but '{this}' {shape:?} has {found}")));
            }
        }
        if self.batch > 1 && columns.iter().any(|(column, _)| column.lead == Lead::Stacked) {
            let batch = self.batch;
            return Err(fail(format!(
                "the graph takes {batch} samples at a time, and an input without their axis has one"
            )));
        }
        // Without any number, nothing says how many samples there really are.
        if rows > 0 && !columns.is_empty() && columns.iter().all(|(column, _)| column.row.contains(&0)) {
            return Err(fail(format!("its arrays hold no numbers for the {rows} samples that they claim")));
        }
        same_sizes(columns.iter().map(|(column, _)| column).zip(&self.wanted)).map_err(fail)?;
        if let Some((column, other)) = labels.as_ref().filter(|(_, other)| *other != rows) {
            let shape = &column.header.shape;
            return Err(fail(format!("there are {rows} samples, but {other} labels {shape:?}")));
        }
        let columns = columns.into_iter().map(|(column, _)| column).collect();
        Ok(Part { path: path.to_owned(), rows, columns, labels: labels.map(|(column, _)| column) })
    }

    fn missing(&self, path: &Path, wanted: &InputSpec, entries: &[Entry]) -> Error {
        let has: Vec<String> = entries.iter().map(|e| format!("'{}'", e.name)).collect();
        let wants: Vec<String> = self.wanted.iter().map(InputSpec::describe).collect();
        Error::new(format!(
            "{}: there is no array '{}': it holds {}, but the graph's inputs are {}",
            path.display(),
            wanted.name,
            if has.is_empty() { "none".into() } else { has.join(", ") },
            wants.join(", ")
        ))
        .hint(format!("save it under the input's name: np.savez(path, **{{{:?}: x}})", wanted.name))
    }
}

fn label_column(entry: Entry, header: Header) -> Result<(Column, usize), String> {
    let (name, shape) = (&entry.name, &header.shape);
    if header.kind.is_float() {
        return Err(format!("'{name}' holds {}, but classes are integers", header.kind.name()));
    }
    match shape[..] {
        [rows] | [rows, 1] => Ok((Column { entry: Some(entry), lead: Lead::Rows, row: Vec::new(), header }, rows)),
        _ => Err(format!("'{name}' has the shape {shape:?}, but each sample needs one class")),
    }
}

/// The files of a folder, by name.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |cause| Error::new(format!("the folder {} cannot be read", path.display())).because(cause);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        let known = |e: &std::ffi::OsStr| e.eq_ignore_ascii_case("npz") || e.eq_ignore_ascii_case("npy");
        if file.extension().is_some_and(known) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::new(format!("there are no .npz or .npy files in {}", path.display()))
            .hint("save inputs with np.savez, under the names of the graph's inputs"));
    }
    Ok(files)
}

/// The samples of one file.
struct Rows<'a> {
    samples: &'a Samples,
    part: &'a Part,
    /// One for each column, the labels last; opened with the first sample.
    readers: Option<Vec<Box<dyn Read>>>,
    next: usize,
}

impl Iterator for Rows<'_> {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Result<Sample>> {
        if self.next + self.samples.batch > self.part.rows {
            return None;
        }
        let sample = self.read();
        self.next = if sample.is_ok() { self.next + self.samples.batch } else { self.part.rows };
        Some(sample)
    }
}

impl Rows<'_> {
    fn read(&mut self) -> Result<Sample> {
        let (part, batch, next) = (self.part, self.samples.batch, self.next);
        let place = if part.rows == 1 {
            part.path.display().to_string()
        } else {
            format!("{}, sample {next}", part.path.display())
        };
        let fail = |name: &str, what: String| Error::new(format!("{place}: '{name}' {what}"));
        let mut readers = match self.readers.take() {
            Some(readers) => readers,
            None => part.open()?,
        };
        let mut inputs = Vec::with_capacity(part.columns.len());
        for ((column, wanted), from) in part.columns.iter().zip(&self.samples.wanted).zip(&mut readers) {
            let rows: &[usize] = if column.lead == Lead::Rows { &[batch] } else { &[] };
            let shape = [rows, &column.row[..]].concat();
            if column.lead == Lead::Whole && next > 0 {
                *from = part.stream(column)?;
            }
            let count = shape.iter().fold(1usize, |all, &n| all.saturating_mul(n));
            let read = column.header.values(from, count, wanted.float);
            let values = read.map_err(|what| fail(&wanted.name, what))?;
            if let Values::Float(x) = &values
                && let Some(at) = first_non_finite(x)
            {
                let mut index = index_of(at, &shape);
                match column.lead {
                    Lead::Rows => index[0] += next,
                    Lead::Stacked => index.insert(0, next),
                    Lead::Whole => {}
                }
                return Err(fail(&wanted.name, format!("holds {} at {index:?}", x[at]))
                    .hint("inputs have to be finite: look at how they were preprocessed"));
            }
            inputs.push(Array { shape, values });
        }
        let mut labels = Vec::new();
        if let (Some(column), Some(from)) = (&part.labels, readers.last_mut()) {
            let name = column.entry.as_ref().map_or("labels", |e| &e.name);
            if let Values::Integer(x) = column.header.values(from, batch, false).map_err(|what| fail(name, what))? {
                labels.extend(x.into_iter().map(i64::from));
            }
        }
        self.readers = Some(readers);
        Ok(Sample { inputs, labels, place })
    }
}

impl Part {
    /// One stream for each column, at its first number.
    fn open(&self) -> Result<Vec<Box<dyn Read>>> {
        self.columns.iter().chain(&self.labels).map(|column| self.stream(column)).collect()
    }

    fn stream(&self, column: &Column) -> Result<Box<dyn Read>> {
        let open = || {
            let mut from: Box<dyn Read> = match &column.entry {
                Some(entry) => npz::open(&self.path, entry)?,
                None => {
                    let file = File::open(&self.path).map_err(|cause| format!("cannot be opened: {cause}"))?;
                    Box::new(BufReader::new(file))
                }
            };
            let header = Header::read(&mut from)?;
            if header != column.header { Err("has changed meanwhile".to_owned()) } else { Ok(from) }
        };
        open().map_err(|what| Error::new(format!("{}: it {what}", self.path.display())))
    }
}

/// The index along each axis of the number at a place.
fn index_of(mut at: usize, axes: &[usize]) -> Vec<usize> {
    let mut index = vec![0; axes.len()];
    for (i, &n) in index.iter_mut().zip(axes).rev() {
        *i = at % n;
        at /= n;
    }
    index
}

#[cfg(test)]
mod tests;
