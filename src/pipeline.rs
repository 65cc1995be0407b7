//! The main job: plan a file, then fill it block by block.
//!
//! The plan is made from headers alone: every tensor is checked and gets its type, so the GGUF header can be written first
//! and everything behind it streamed. Then, block by block: load, collect the Hessian of a site, quantize the layers that
//! read it, let the quantized layers feed the next site, append the block to the file, drop it. Only the residual stream
//! of the calibration windows lives from block to block.

mod block_step;
pub mod choice;
mod experts;
pub mod folder;
pub mod forecast;
mod head;
pub mod importance;
pub mod journal;
mod kept;
pub mod loaded_model;
mod on_the_fly;
mod output_side;
mod packed;
pub mod plan;
pub mod report;
pub mod rotated;
mod scratch;
pub mod sensitivity;
pub mod settings;
mod solve;
pub mod stream;
mod tensor_step;
pub mod weights;

use crate::calib::corpus::Corpus;
use crate::compute::{Compute, Products};
use crate::error::{Error, Result};
use crate::format::Encoding;
use crate::method::{self, Method, plain};
use crate::model::{Part, TensorRole, TensorSpec};
use crate::source::imatrix::Imatrix;
use crate::writer;
use crate::writer::shards::{Files, Writer};
use folder::Folder;
use journal::{Journal, State};
use output_side::OutputSide;
use plan::Plan;
use report::{Clock, Observer, Summary, TensorReport, Work};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use stream::{EmbeddedRows, PRECISION, RunNeeds, Stream};

/// Where calibration text comes from, and how much of it is used.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The documents, and how windows are cut out of them.
    pub corpus: Corpus,
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
    /// Where linear layers and statistics are computed.
    pub compute: Arc<dyn Compute>,
    /// Inner activations up to this many bytes are kept in memory from the statistics to the output of a half, usually [`KEEP`]; more of
    /// them are kept in a file. The result is the same.
    pub keep: usize,
}

/// See [`Rounding::keep`].
pub const KEEP: usize = 512 << 20;

impl Rounding<'_> {
    /// Whether a plan's layers are calibrated: then the run walks the calibration text through the model.
    pub fn is_calibrated(&self, plan: &Plan) -> bool {
        self.calibration.is_some() && self.method.calibrated() && plan.has_grids()
    }
}

/// Numbers in a piece of a matrix, for each thread: what no Hessian belongs to is quantized and written in pieces that stay
/// in the processor's caches.
const PIECE: usize = 1 << 17;

/// What a run makes.
pub struct Outputs<'a> {
    /// The GGUF, or the draft that the folders are made from.
    pub files: Files,
    /// Whether it is to appear.
    pub gguf: bool,
    /// Folders with the same codes.
    pub folders: &'a [Folder],
}

/// Quantizes a planned model into files and folders. `journal`: the folder in which a calibrated run keeps what it has finished,
/// and any run the draft that folders are made from; others need none.
///
/// # Errors
/// Anything from the checkpoint to the disk. Then nothing is left behind; but where the same run may succeed another time,
/// what it has finished stays in the journal's folder, and the error says so.
pub fn run(
    plan: &Plan,
    rounding: &Rounding,
    outputs: Outputs,
    mut journal: Option<Journal>,
    observer: &dyn Observer,
) -> Result<Summary> {
    // On one of the pool's threads, which the others then need not wake for each product.
    let all = rayon::scope(|_| attempt(plan, rounding, outputs, journal.as_mut(), observer));
    match all {
        Ok(summary) => {
            journal.into_iter().for_each(Journal::finish);
            Ok(summary)
        }
        Err(error) => Err(match journal {
            Some(journal) => journal.give_up(error),
            None => error,
        }),
    }
}

fn attempt(
    plan: &Plan,
    rounding: &Rounding,
    outputs: Outputs,
    mut journal: Option<&mut Journal>,
    observer: &dyn Observer,
) -> Result<Summary> {
    let Outputs { files, gguf, folders } = outputs;
    let mut clock = Clock::default();
    let started = clock.start();
    let calibration = rounding.calibration.filter(|_| rounding.is_calibrated(plan));
    let windows = calibration.map(|c| windows(plan, c)).transpose()?.unwrap_or_default();
    clock.other += started.elapsed();
    let state = match &mut journal {
        Some(journal) => journal.begin(settings::of(plan, rounding, &windows, &files, folders)?)?,
        None => None,
    };
    let draft_name = files.paths().next().and_then(Path::file_name).unwrap_or_default().to_owned();
    let writer = match (&journal, &state) {
        (Some(journal), Some(state)) => files.go_on(journal.folder(), &state.files).map_err(|error| {
            let folder = journal.folder().display();
            Error::new("cannot resume").because(error).hint(format!("start over: rm -r {folder}"))
        })?,
        (journal, _) => files.create(journal.as_ref().map(|journal| journal.folder()))?,
    };
    let tokens = windows.iter().map(Vec::len).sum();
    let (tensors, notes, statistics) = (Vec::new(), Vec::new(), Imatrix::default());
    let vanished = HashMap::new();
    let mut run = Run {
        plan,
        rounding,
        observer,
        clock,
        writer,
        journal,
        tensors,
        vanished,
        notes,
        tokens,
        statistics,
        outputs: None,
    };
    run.all(calibration, &windows, state)?;
    report::vanished(&run.tensors).into_iter().for_each(|note| run.note(note));
    let Run { mut clock, mut writer, tensors, notes, tokens, statistics, journal, .. } = run;
    let started = clock.start();
    let mut bytes = 0;
    // Folders appear before the draft that they are made from goes to its own place.
    if let (false, Some(journal), true) = (folders.is_empty(), journal, writer.is_in_drafts()) {
        writer.sync()?;
        let draft = folder::open_draft(&journal.folder().join(draft_name))?;
        for folder in folders {
            bytes += folder.write(plan, &draft)?;
        }
    }
    if gguf {
        bytes += writer.finish()?;
    }
    clock.writing += started.elapsed();
    let imatrix = rounding.keep_statistics.then_some(statistics);
    Ok(Summary { bytes, elements: plan.elements(), clock, tensors, notes, tokens, imatrix })
}

fn windows(plan: &Plan, c: &Calibration) -> Result<Vec<Vec<u32>>> {
    plan.with_tokenizer(|tokenizer| c.corpus.windows(tokenizer, c.samples, c.positions, c.seed))
}

/// Files in the making.
struct Run<'a> {
    plan: &'a Plan,
    rounding: &'a Rounding<'a>,
    observer: &'a dyn Observer,
    clock: Clock,
    writer: Writer,
    journal: Option<&'a mut Journal>,
    tensors: Vec<TensorReport>,
    /// How many numbers became zeros, of tensors that are not reported yet.
    vanished: HashMap<String, usize>,
    notes: Vec<String>,
    tokens: usize,
    statistics: Imatrix,
    /// The output-side Hessians of layers, where errors of rows are carried on to others.
    outputs: Option<OutputSide>,
}

/// A tensor that is ready to be written.
struct Finished {
    bytes: Vec<u8>,
    report: TensorReport,
}

impl Run<'_> {
    /// Everything up to the last tensor, from the beginning or from where `state` says that an earlier run has come to.
    fn all(&mut self, calibration: Option<&Calibration>, windows: &[Vec<u32>], state: Option<State>) -> Result<()> {
        let plan = self.plan;
        let finished = state.as_ref().map_or(0, |state| state.tensors.len());
        self.observer.begin(self.work(finished));
        if let Some(c) = calibration.filter(|_| self.rounding.keep_statistics) {
            self.statistics.datasets = c.corpus.names();
            (self.statistics.chunks, self.statistics.chunk_size) = (windows.len() as u32, c.positions as u32);
        }
        if let Some(state) = &state {
            self.restore(state)?;
        } else {
            plan.notes.iter().for_each(|note| self.note(note.clone()));
        }
        let first = state.as_ref().map_or(0, |state| state.blocks);
        if let Some(c) = calibration.filter(|_| self.rounding.options.outputs) {
            self.outputs = Some(self.output_side(windows, c, state.is_some())?);
        }
        let mut stream = match &state {
            Some(state) if state.complete => return Ok(()),
            Some(state) => {
                let in_file = |spec: &TensorSpec, rows| self.rows_in_file(spec, rows);
                let stream = Stream::reopen(plan, windows, self.wants(), &state.stream, &in_file, self.folders()?)?;
                Some(stream.on(&self.rounding.compute))
            }
            None => self.head(calibration, windows)?,
        };
        for (i, tensors) in plan.blocks().enumerate().skip(first) {
            plan.blocks().skip(i + 1).take(1).flatten().for_each(|tensor| plan.source.expect(&tensor.spec));
            match &mut stream {
                Some(stream) => {
                    self.phase(Some(i), "reading");
                    self.calibrated_block(i, tensors, stream)?;
                    self.record(i + 1, stream)?;
                }
                None => {
                    self.phase(Some(i), "rounding to nearest");
                    tensors.iter().try_for_each(|tensor| self.whole_or_stream(tensor))?;
                }
            }
        }
        for tensor in plan.tail() {
            self.phase(None, tensor.spec.gguf.trim_end_matches(".weight"));
            match stream.as_ref().filter(|_| self.calibrates_output(tensor)) {
                Some(stream) => {
                    let hessian = self.behind(stream)?;
                    let rows = self.output_rows(tensor, hessian);
                    self.stream(tensor, &[], rows.as_ref())?;
                }
                None => self.whole_or_stream(tensor)?,
            }
        }
        match &stream {
            Some(stream) => {
                self.clock.multiplications += stream.frame().multiplications();
                self.record(plan.blocks().len(), stream)
            }
            None => Ok(()),
        }
    }

    /// Says what begins.
    fn phase(&self, block: Option<usize>, what: &str) {
        self.observer.phase(block, self.plan.blocks().len(), what);
    }

    /// Everything before the first block; and the stream in front of it, for a calibrated run.
    fn head(&mut self, calibration: Option<&Calibration>, windows: &[Vec<u32>]) -> Result<Option<Stream>> {
        let plan = self.plan;
        let mut wanted: Vec<u32> = windows.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut rows = EmbeddedRows::default();
        for (i, tensor) in plan.head().iter().enumerate() {
            // The first is the embedding.
            let rows_of_output = match calibration.filter(|_| self.calibrates_output(tensor)) {
                Some(c) => {
                    let hessian = self.foresee(windows, c)?;
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
        if calibration.is_none() {
            return Ok(None);
        }
        let in_file = |spec: &TensorSpec, rows| self.rows_in_file(spec, rows);
        let stream = Stream::new(plan, windows, self.wants(), &wanted, &rows, &in_file, self.folders()?)?;
        let stream = stream.on(&self.rounding.compute);
        self.record(0, &stream)?;
        Ok(Some(stream))
    }

    /// Rows of a tensor as the source has them, but of the embedding for each block as the file does.
    fn rows_in_file(&self, spec: &TensorSpec, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let numbers = self.plan.source.rows(spec, rows)?;
        let rounded = self.plan.head().iter().find(|tensor| {
            let embedding = tensor.spec.role == TensorRole::PerLayer(Part::PER_LAYER_TOKEN_EMBD);
            embedding && tensor.spec.gguf == spec.gguf && tensor.is_rounded()
        });
        let Some((tensor, Encoding::Grid(grid))) = rounded.map(|tensor| (tensor, tensor.kind.encoding())) else {
            return Ok(numbers);
        };
        let importance = self.importance(spec, 0);
        let plain = plain(spec.columns(), importance.as_deref(), self.plan.may_be_on_a_grid(tensor));
        Ok(tensor.kind.decode_all(&plain.quantize(&numbers, grid)))
    }

    /// How the products of layers and statistics are computed.
    fn products(&self) -> Products {
        Products { precision: PRECISION, on: self.rounding.compute.clone() }
    }

    /// Which of the windows the method looks at in which way.
    fn wants(&self) -> RunNeeds {
        let compare = self.rounding.asymmetric;
        RunNeeds { hold: self.rounding.method.chooses() || compare, compare }
    }

    /// The folders of the stream and of the run.
    fn folders(&self) -> Result<(&Path, &Path)> {
        let journal =
            self.journal.as_ref().ok_or_else(|| Error::new("a calibrated run without a folder to work in"))?;
        Ok((journal.scratch(), journal.folder()))
    }

    /// Makes everything so far durable and says so in the journal.
    fn record(&mut self, blocks: usize, stream: &Stream) -> Result<()> {
        let started = self.clock.start();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let files = self.writer.sync()?;
        if self.rounding.keep_statistics {
            writer::imatrix::write(&journal.statistics(), &self.statistics)?;
        }
        journal.record(&State {
            blocks,
            complete: self.tensors.len() == self.plan.tensors.len(),
            files,
            tensors: self.tensors.iter().map(|t| (t.error, t.method.map(str::to_owned), t.vanished)).collect(),
            notes: self.notes.clone(),
            stream: stream.save()?,
        })?;
        self.clock.writing += started.elapsed();
        Ok(())
    }

    /// Takes over what an earlier run has written.
    fn restore(&mut self, state: &State) -> Result<()> {
        for (tensor, (error, method, vanished)) in self.plan.tensors.iter().zip(&state.tensors) {
            let method = method.as_deref().map(method::by_name).transpose()?.map(Method::name);
            self.tensors.push(TensorReport { method, vanished: *vanished, ..tensor.report(*error) });
        }
        state.notes.clone_into(&mut self.notes);
        if let Some(journal) = self.journal.as_ref().filter(|_| self.rounding.keep_statistics) {
            self.statistics = Imatrix::read(&journal.statistics())?;
        }
        self.observer.resumed(state.blocks, self.plan.blocks().len());
        Ok(())
    }

    /// The work ahead of so many finished tensors, in multiplications per calibration token and in numbers to be written.
    fn work(&self, finished: usize) -> Work {
        let tokens = self.tokens as u64;
        let left = &self.plan.tensors[finished.min(self.plan.tensors.len())..];
        let weights: u64 = left.iter().map(|t| t.spec.elements() as u64).sum();
        let layers = self.plan.work(left);
        let gradients = if self.rounding.options.outputs { self.work_of_gradients() } else { 0 };
        Work { total: weights * report::PER_WEIGHT + layers * tokens + gradients }
    }

    fn report(&mut self, mut report: TensorReport) {
        report.vanished = self.vanished.remove(&report.name).unwrap_or_default();
        self.observer.tensor(&report);
        self.tensors.push(report);
    }

    fn note(&mut self, note: String) {
        self.observer.note(&note);
        self.notes.push(note);
    }
}
