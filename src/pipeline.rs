//! The main job: plan a file, then fill it block by block.
//!
//! The plan is made from headers alone: every tensor is checked and gets its type, so the GGUF header can be written first
//! and everything behind it streamed. Then, block by block: load, collect the Hessian of a site, quantize the layers that
//! read it, let the quantized layers feed the next site, append the block to the file, drop it. Only the residual stream
//! of the calibration windows lives from block to block.

mod calibrated;
pub mod choice;
pub mod forecast;
mod head;
pub mod importance;
pub mod plan;
pub mod report;
pub mod rotated;
pub mod sensitivity;
mod solve;
pub mod subject;
pub mod weights;

use crate::error::{Context, Error, Result};
use crate::format::{self, Encoding};
use crate::grid::Grid;
use crate::method::{self, Method, Rows, plain, relative, weight_error};
use crate::model::{RowOrder, TensorSpec};
use crate::source::imatrix::Imatrix;
use crate::writer::shards::{Files, Writer};
use crate::{calib, interrupt};
use calibrated::{EmbeddedRows, Stream};
use llmq_kernels::elementwise::first_beyond;
use plan::{Plan, Planned};
use report::{Clock, Observer, Summary, TensorReport, Work};

/// Where calibration text comes from, and how much of it is used.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The documents, in order.
    pub documents: Vec<String>,
    /// What they are called.
    pub names: Vec<String>,
    /// How many windows.
    pub samples: usize,
    /// Tokens per window.
    pub positions: usize,
    /// Decides which windows.
    pub seed: u64,
}

/// How weights are rounded.
pub struct Rounding<'a> {
    /// The method.
    pub method: &'static dyn Method,
    /// What it may be told.
    pub options: method::Options,
    /// Compare with the original model while calibrating, and let layers mend what those before them have lost.
    pub asymmetric: bool,
    /// What it is calibrated on; none for methods that need nothing.
    pub calibration: Option<&'a Calibration>,
    /// How large the inputs of weights are that the method does not calibrate itself.
    pub imatrix: Option<&'a Imatrix>,
    /// Keep the statistics of a calibrated run for [`Summary::imatrix`].
    pub keep_statistics: bool,
}

/// Numbers in a piece of a matrix, for each thread: what no Hessian belongs to is quantized and written in pieces that stay
/// in the processor's caches.
const PIECE: usize = 1 << 17;

/// Quantizes a planned model into files.
///
/// # Errors
/// Anything from the checkpoint to the disk; then nothing is left behind.
pub fn run(plan: &Plan, rounding: &Rounding, files: Files, observer: &dyn Observer) -> Result<Summary> {
    let mut run = Run {
        plan,
        rounding,
        observer,
        clock: Clock::default(),
        writer: files.create()?,
        tensors: Vec::new(),
        notes: Vec::new(),
        tokens: 0,
        statistics: Imatrix::default(),
    };
    run.all()?;
    let Run { clock, writer, tensors, notes, tokens, statistics, .. } = run;
    let bytes = writer.finish()?;
    let imatrix = rounding.keep_statistics.then_some(statistics);
    Ok(Summary { bytes, elements: plan.elements(), clock, tensors, notes, tokens, imatrix })
}

/// Files in the making.
struct Run<'a> {
    plan: &'a Plan,
    rounding: &'a Rounding<'a>,
    observer: &'a dyn Observer,
    clock: Clock,
    writer: Writer,
    tensors: Vec<TensorReport>,
    notes: Vec<String>,
    tokens: usize,
    statistics: Imatrix,
}

/// A tensor that is ready to be written.
struct Finished {
    bytes: Vec<u8>,
    report: TensorReport,
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        let plan = self.plan;
        let calibration = self.rounding.calibration.filter(|_| self.rounding.method.calibrated() && plan.has_grids());
        let windows = match calibration {
            Some(c) => self.windows(c)?,
            None => Vec::new(),
        };
        self.tokens = windows.iter().map(Vec::len).sum();
        self.observer.begin(self.work());
        plan.notes.iter().for_each(|note| self.note(note.clone()));
        let mut wanted: Vec<u32> = windows.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut rows = EmbeddedRows::default();
        for (i, tensor) in plan.head().iter().enumerate() {
            // The first is the embedding.
            let rows_of_output = match calibration.filter(|_| self.calibrates_output(tensor)) {
                Some(c) => {
                    let hessian = self.foresee(&windows, c)?;
                    self.output_rows(tensor, hessian)
                }
                None => None,
            };
            let kept = self.stream(tensor, if i == 0 { &wanted } else { &[] }, rows_of_output.as_ref())?;
            if i == 0 {
                rows = kept;
                for extra in &plan.extra {
                    self.writer.write(&extra.gguf, &extra.bytes())?;
                }
            }
        }
        let mut stream = match calibration {
            Some(c) => {
                let (hold, compare) = (self.rounding.method.chooses(), self.rounding.asymmetric);
                Some(Stream::new(plan, &windows, c.positions, &wanted, &rows, hold || compare, compare)?)
            }
            None => None,
        };
        drop(rows);
        if let Some(c) = calibration.filter(|_| self.rounding.keep_statistics) {
            self.statistics.datasets.clone_from(&c.names);
            (self.statistics.chunks, self.statistics.chunk_size) = (windows.len() as u32, c.positions as u32);
        }
        for (i, tensors) in plan.blocks().enumerate() {
            match &mut stream {
                Some(stream) => self.calibrated_block(i, tensors, stream)?,
                None => tensors.iter().try_for_each(|tensor| self.whole_or_stream(tensor))?,
            }
        }
        for tensor in plan.tail() {
            match stream.as_ref().filter(|_| self.calibrates_output(tensor)) {
                Some(stream) => {
                    let hessian = self.behind(stream)?;
                    let rows = self.output_rows(tensor, hessian);
                    self.stream(tensor, &[], rows.as_ref())?;
                }
                None => self.whole_or_stream(tensor)?,
            }
        }
        Ok(())
    }

    fn windows(&mut self, c: &Calibration) -> Result<Vec<Vec<u32>>> {
        let started = self.clock.start();
        let windows = self.plan.with_tokenizer(|tokenizer| {
            let tokens = tokenizer.encode_documents(&c.documents)?;
            calib::windows::sample(&tokens, tokenizer.bos(), c.samples, c.positions, c.seed)
        })?;
        self.clock.other += started.elapsed();
        Ok(windows)
    }

    /// The work ahead, in multiplications per calibration token and in numbers to be written.
    fn work(&self) -> Work {
        let tokens = self.tokens as u64;
        let weights: u64 = self.plan.tensors.iter().map(|t| t.spec.elements() as u64).sum();
        let layers = self.plan.tensors.iter().filter(|t| t.spec.site().is_some());
        let layers: u64 = layers.map(|t| t.spec.elements() as u64).sum();
        Work { total: weights * report::PER_WEIGHT + layers * tokens }
    }

    /// A tensor that no Hessian belongs to, from the source to the file.
    fn whole_or_stream(&mut self, tensor: &Planned) -> Result<()> {
        if tensor.spec.order == RowOrder::AsIs && self.plan.source.has_rows_of_their_own(&tensor.spec) {
            self.stream(tensor, &[], None).map(|_| ())
        } else {
            let finished = self.whole(tensor)?;
            self.write(tensor, finished)
        }
    }

    /// Reads, rounds and reports a tensor that no Hessian belongs to, in one piece.
    fn whole(&mut self, tensor: &Planned) -> Result<Finished> {
        interrupt::check()?;
        let rows = 0..tensor.spec.rows();
        let importance = self.importance(&tensor.spec, 0);
        let (numbers, bytes, values) = self.piece(tensor, rows, importance.as_deref(), None)?;
        let error = tensor
            .is_rounded()
            .then(|| weight_error((0.0, 0.0), &numbers, &values, tensor.spec.columns(), importance.as_deref()));
        self.observer.advance(numbers.len() as u64 * report::PER_WEIGHT);
        Ok(Finished { bytes, report: tensor.report(error.map(relative)) })
    }

    /// The same in pieces, each written at once; by `calibrated`, where something is known of what reads them. Returns the rows
    /// that `wanted` (sorted) names.
    fn stream(&mut self, tensor: &Planned, wanted: &[u32], calibrated: Option<&Rows>) -> Result<EmbeddedRows> {
        let (columns, rows) = (tensor.spec.columns(), tensor.spec.rows());
        // A stack of matrices has an importance for each of them.
        let matrices = if tensor.spec.shape.len() > 2 { tensor.spec.shape[0] } else { 1 };
        let per_matrix = rows / matrices.max(1);
        let piece = PIECE * rayon::current_num_threads() / columns.max(1);
        // Whole parts of what is computed together, so that nothing depends on the number of threads.
        let step = piece.next_multiple_of(method::PART).max(method::PART);
        let mut kept = EmbeddedRows::default();
        let mut sums = (0.0, 0.0);
        for matrix in 0..matrices {
            let importance = self.importance(&tensor.spec, matrix);
            for first in (matrix * per_matrix..(matrix + 1) * per_matrix).step_by(step) {
                interrupt::check()?;
                let last = (first + step).min((matrix + 1) * per_matrix);
                let (numbers, bytes, values) = self.piece(tensor, first..last, importance.as_deref(), calibrated)?;
                sums = weight_error(sums, &numbers, &values, columns, importance.as_deref());
                let from = wanted.partition_point(|&t| (t as usize) < first);
                for &token in wanted[from..].iter().take_while(|&&t| (t as usize) < last) {
                    let at = (token as usize - first) * columns;
                    kept.original.extend_from_slice(&numbers[at..at + columns]);
                    kept.quantized.extend_from_slice(&values[at..at + columns]);
                }
                let started = self.clock.start();
                self.writer.append(&tensor.spec.gguf, &bytes)?;
                self.clock.writing += started.elapsed();
                self.observer.advance(numbers.len() as u64 * report::PER_WEIGHT);
            }
        }
        if tensor.spec.elements() == 0 {
            self.writer.write(&tensor.spec.gguf, &[])?;
        }
        self.report(tensor.report(tensor.is_rounded().then(|| relative(sums))));
        Ok(kept)
    }

    /// Rows of a tensor that no Hessian belongs to: their numbers, their bytes in the file, and what these decode to.
    fn piece(
        &mut self,
        tensor: &Planned,
        rows: std::ops::Range<usize>,
        importance: Option<&[f32]>,
        calibrated: Option<&Rows>,
    ) -> Result<(Vec<f32>, Vec<u8>, Vec<f32>)> {
        let started = self.clock.start();
        if tensor.copied {
            let bytes = self.plan.source.gguf_rows(&tensor.spec, rows).unwrap_or_default().to_vec();
            let values = tensor.kind.decode_all(&bytes);
            self.clock.reading += started.elapsed();
            return Ok((values.clone(), bytes, values));
        }
        let numbers = self.plan.source.rows(&tensor.spec, rows)?;
        self.clock.reading += started.elapsed();
        let plain = plain(tensor.spec.columns(), importance, self.plan.may_be_on_a_grid(tensor));
        let quantize = |grid: &dyn Grid| match calibrated {
            Some(rows) => rows.round(&numbers, grid).store(grid),
            None => plain.quantize(&numbers, grid),
        };
        let (bytes, values) = self.encode(tensor, &numbers, quantize)?;
        Ok((numbers, bytes, values))
    }

    /// The mean square of each input of a matrix, where an importance matrix has it.
    fn importance(&self, spec: &TensorSpec, matrix: usize) -> Option<Vec<f32>> {
        let entry = self.rounding.imatrix?.entries.get(&spec.gguf)?;
        entry.means(if entry.counts.len() == 1 { 0 } else { matrix })
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let started = self.clock.start();
        let numbers = self.plan.source.read(spec)?;
        self.clock.reading += started.elapsed();
        Ok(numbers)
    }

    /// A tensor's bytes, rows in the source's order, and the numbers that they decode to.
    fn encode(
        &mut self,
        tensor: &Planned,
        numbers: &[f32],
        quantize: impl FnOnce(&dyn Grid) -> Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<f32>)> {
        let started = self.clock.start();
        let bytes = match tensor.kind.encoding() {
            Encoding::Grid(grid) => {
                check_range(tensor, numbers)?;
                quantize(grid)
            }
            _ => convert(tensor, numbers)?,
        };
        let values = tensor.kind.decode_all(&bytes);
        self.clock.method += started.elapsed();
        Ok((bytes, values))
    }

    /// Appends a finished tensor, its rows in the order of the file.
    fn write(&mut self, tensor: &Planned, finished: Finished) -> Result<()> {
        let started = self.clock.start();
        // A bias is one row of numbers, but its numbers move like the rows of its weight.
        let rows = tensor.spec.shape[0];
        match tensor.spec.order.sources(rows) {
            None => self.writer.write(&tensor.spec.gguf, &finished.bytes)?,
            Some(sources) => {
                let row = finished.bytes.len() / rows;
                let mut ordered = Vec::with_capacity(finished.bytes.len());
                for source in sources {
                    ordered.extend_from_slice(&finished.bytes[source * row..(source + 1) * row]);
                }
                self.writer.write(&tensor.spec.gguf, &ordered)?;
            }
        }
        self.clock.writing += started.elapsed();
        self.report(finished.report);
        Ok(())
    }

    fn report(&mut self, report: TensorReport) {
        self.observer.tensor(&report);
        self.tensors.push(report);
    }

    fn note(&mut self, note: String) {
        self.observer.note(&note);
        self.notes.push(note);
    }
}

/// The bytes of a tensor that is not rounded to codes.
fn convert(tensor: &Planned, numbers: &[f32]) -> Result<Vec<u8>> {
    let (name, kind) = (&tensor.spec.source, tensor.kind.name());
    match tensor.kind.encoding() {
        Encoding::Each(_) => format::convert(tensor.kind, numbers).context(|| format!("tensor '{name}' as {kind}")),
        _ => Err(Error::new(format!("tensor '{name}': numbers are not converted to {kind} one by one"))),
    }
}

/// The scales of block formats are in half precision, which ends at 65504.
fn check_range(tensor: &Planned, numbers: &[f32]) -> Result<()> {
    match first_beyond(numbers, 65504.0) {
        None => Ok(()),
        Some(at) => {
            let (name, kind) = (&tensor.spec.source, tensor.kind.name());
            let x = numbers[at];
            Err(Error::new(format!("tensor '{name}': element {at} is {x}, beyond what the scales of {kind} can hold"))
                .hint("give this tensor a type without scales, for example --tensor-type 'NAME=BF16'"))
        }
    }
}
