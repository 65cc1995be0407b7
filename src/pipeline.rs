//! The main job: plan a file, then fill it block by block.
//!
//! The plan is made from headers alone: every tensor is checked and gets its type, so the GGUF header can be written first
//! and everything behind it streamed. Then, block by block: load, collect the Hessian of a site, quantize the layers that
//! read it, let the quantized layers feed the next site, append the block to the file, drop it. Only the residual stream
//! of the calibration windows lives from block to block.

mod calibrated;
pub mod plan;
pub mod report;

use crate::error::{Context, Error, Result};
use crate::format::{self, Encoding};
use crate::method::{self, Method, relative_error};
use crate::model::{Role, TensorSpec};
use crate::writer::gguf::GgufWriter;
use crate::{calib, interrupt};
use calibrated::Stream;
use plan::{Plan, Planned};
use report::{Clock, Observer, Summary, TensorReport, Work};
use std::path::Path;

/// Where calibration text comes from, and how much of it is used.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The documents, in order.
    pub documents: Vec<String>,
    /// How many windows.
    pub samples: usize,
    /// Tokens per window.
    pub positions: usize,
    /// Decides which windows.
    pub seed: u64,
}

/// Numbers in a piece of an embedding: it is quantized and written in pieces, so that it need never be there whole.
const PIECE: usize = 1 << 24;

/// Quantizes a planned file.
///
/// # Errors
/// Anything from the checkpoint to the disk; then nothing is left behind at `output`.
pub fn run(
    plan: &Plan,
    method: &'static dyn Method,
    options: &method::Options,
    calibration: Option<&Calibration>,
    output: &Path,
    observer: &dyn Observer,
) -> Result<Summary> {
    let mut run = Run {
        plan,
        method,
        options,
        observer,
        clock: Clock::default(),
        writer: GgufWriter::create(output, &plan.metadata, plan.headers())?,
        tensors: Vec::new(),
        notes: Vec::new(),
        tokens: 0,
    };
    run.all(calibration)?;
    let Run { clock, writer, tensors, notes, tokens, .. } = run;
    let bytes = writer.finish()?;
    Ok(Summary { bytes, elements: plan.elements(), clock, tensors, notes, tokens })
}

/// A file in the making.
struct Run<'a> {
    plan: &'a Plan,
    method: &'static dyn Method,
    options: &'a method::Options,
    observer: &'a dyn Observer,
    clock: Clock,
    writer: GgufWriter,
    tensors: Vec<TensorReport>,
    notes: Vec<String>,
    tokens: usize,
}

/// A tensor that is ready to be written.
struct Finished {
    bytes: Vec<u8>,
    report: TensorReport,
}

impl Run<'_> {
    fn all(&mut self, calibration: Option<&Calibration>) -> Result<()> {
        let plan = self.plan;
        let calibration = calibration.filter(|_| self.method.calibrated() && plan.has_grids());
        let windows = match calibration {
            Some(c) => self.windows(c)?,
            None => Vec::new(),
        };
        self.tokens = windows.iter().map(Vec::len).sum();
        self.observer.begin(self.work());
        let mut wanted: Vec<u32> = windows.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let rows = self.large(plan.embedding(), &wanted)?;
        for extra in &plan.extra {
            self.writer.write(&extra.gguf, &extra.bytes())?;
        }
        let mut stream = match calibration {
            Some(c) => Some(Stream::new(&plan.model, &windows, c.positions, &wanted, &rows)?),
            None => None,
        };
        drop(rows);
        for i in 0..plan.model.blocks {
            let tensors = plan.block(i);
            match &mut stream {
                Some(stream) => self.calibrated_block(i, tensors, stream)?,
                None => {
                    for tensor in tensors {
                        let finished = self.plain(tensor)?;
                        self.write(tensor, finished)?;
                    }
                }
            }
        }
        for tensor in plan.tail() {
            if tensor.spec.role == Role::Output {
                self.large(tensor, &[])?;
            } else {
                let finished = self.plain(tensor)?;
                self.write(tensor, finished)?;
            }
        }
        Ok(())
    }

    fn windows(&mut self, c: &Calibration) -> Result<Vec<Vec<u32>>> {
        let started = self.clock.start();
        let tokens = self.plan.tokenizer.encode_documents(&c.documents)?;
        self.clock.other += started.elapsed();
        calib::windows::sample(&tokens, self.plan.tokenizer.bos(), c.samples, c.positions, c.seed)
    }

    /// The work ahead, in multiplications per calibration token and in numbers to be written.
    fn work(&self) -> Work {
        let tokens = self.tokens as u64;
        let weights: u64 = self.plan.tensors.iter().map(|t| t.spec.elements() as u64).sum();
        let layers = self.plan.tensors.iter().filter(|t| t.spec.site().is_some());
        let layers: u64 = layers.map(|t| t.spec.elements() as u64).sum();
        Work { total: weights * report::PER_WEIGHT + layers * tokens }
    }

    /// Reads, rounds and reports a tensor that no Hessian belongs to.
    fn plain(&mut self, tensor: &Planned) -> Result<Finished> {
        interrupt::check()?;
        let numbers = self.read(&tensor.spec)?;
        let (bytes, values) = self.encode(tensor, &numbers, None)?;
        let error = tensor.kind.is_quantized().then(|| self.error(&tensor.spec, &numbers, &values, None));
        self.observer.advance(numbers.len() as u64 * report::PER_WEIGHT);
        Ok(Finished { bytes, report: tensor.report(error) })
    }

    /// A large matrix, in pieces. Returns the decoded rows that `wanted` (sorted) names, one after the other.
    fn large(&mut self, tensor: &Planned, wanted: &[u32]) -> Result<Vec<f32>> {
        let columns = tensor.spec.shape[1];
        let rows = tensor.spec.shape[0];
        let step = (PIECE / columns).max(1);
        let mut kept = Vec::with_capacity(wanted.len() * columns);
        let (mut error, mut whole) = (0.0, 0.0);
        for first in (0..rows).step_by(step) {
            interrupt::check()?;
            let last = (first + step).min(rows);
            let started = self.clock.start();
            let numbers = self.plan.source.read_rows(&tensor.spec.source, &tensor.spec.shape, first..last)?;
            self.clock.reading += started.elapsed();
            let (bytes, values) = self.encode(tensor, &numbers, None)?;
            for (w, q) in numbers.iter().zip(&values) {
                error += f64::from(w - q).powi(2);
                whole += f64::from(*w).powi(2);
            }
            let from = wanted.partition_point(|&t| (t as usize) < first);
            for &token in wanted[from..].iter().take_while(|&&t| (t as usize) < last) {
                let at = (token as usize - first) * columns;
                kept.extend_from_slice(&values[at..at + columns]);
            }
            let started = self.clock.start();
            self.writer.append(&tensor.spec.gguf, &bytes)?;
            self.clock.writing += started.elapsed();
            self.observer.advance(numbers.len() as u64 * report::PER_WEIGHT);
        }
        let error = tensor.kind.is_quantized().then_some(if whole > 0.0 { error / whole } else { 0.0 });
        self.report(tensor.report(error));
        Ok(kept)
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let started = self.clock.start();
        let numbers = self.plan.source.read(&spec.source, &spec.shape)?;
        self.clock.reading += started.elapsed();
        Ok(numbers)
    }

    /// A tensor's bytes, rows in the checkpoint's order, and the numbers that they decode to.
    fn encode(
        &mut self,
        tensor: &Planned,
        numbers: &[f32],
        prepared: Option<&dyn method::Prepared>,
    ) -> Result<(Vec<u8>, Vec<f32>)> {
        let started = self.clock.start();
        let bytes = match tensor.kind.encoding() {
            Encoding::Each(_) => format::convert(tensor.kind, numbers)
                .context(|| format!("tensor '{}' as {}", tensor.spec.source, tensor.kind.name()))?,
            Encoding::Grid(grid) => {
                check_range(tensor, numbers)?;
                match prepared {
                    Some(prepared) => prepared.quantize(numbers, grid),
                    None => {
                        let columns = tensor.spec.shape[1];
                        method::by_name("rtn")?.prepare(&[], columns, self.options)?.quantize(numbers, grid)
                    }
                }
            }
        };
        let values = tensor.kind.decode_all(&bytes);
        self.clock.method += started.elapsed();
        Ok((bytes, values))
    }

    fn error(&mut self, spec: &TensorSpec, w: &[f32], q: &[f32], hessian: Option<&[f32]>) -> f64 {
        let started = self.clock.start();
        let error = relative_error(w, q, spec.shape[1], hessian);
        self.clock.method += started.elapsed();
        error
    }

    /// Appends a finished tensor, its rows in the order of the file.
    fn write(&mut self, tensor: &Planned, finished: Finished) -> Result<()> {
        let started = self.clock.start();
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

/// The scales of block formats are in half precision, which ends at 65504.
fn check_range(tensor: &Planned, numbers: &[f32]) -> Result<()> {
    match numbers.iter().position(|x| x.abs() > 65504.0) {
        None => Ok(()),
        Some(at) => {
            let (name, kind) = (&tensor.spec.source, tensor.kind.name());
            let x = numbers[at];
            Err(Error::new(format!("tensor '{name}': element {at} is {x}, beyond what the scales of {kind} can hold"))
                .hint("give this tensor a type without scales, for example --tensor-type 'NAME=BF16'"))
        }
    }
}
