//! Tensors that no Hessian belongs to, and how every tensor gets into the file: read, rounded or converted, checked, written, reported.

use super::plan::Planned;
use super::report;
use super::stream::EmbeddedRows;
use super::{Finished, PIECE, Run};
use crate::error::{Context, Error, Result};
use crate::format::{self, Encoding};
use crate::grid::Grid;
use crate::interrupt;
use crate::method::{self, Rows, plain, relative, weight_error};
use crate::model::{RowOrder, TensorSpec};
use llmq_kernels::elementwise::first_beyond;

impl Run<'_> {
    /// A tensor that no Hessian belongs to, from the source to the file.
    pub(super) fn whole_or_stream(&mut self, tensor: &Planned) -> Result<()> {
        if tensor.spec.order == RowOrder::AsIs && self.plan.source.has_rows_of_their_own(&tensor.spec) {
            self.stream(tensor, &[], None).map(|_| ())
        } else {
            let finished = self.whole(tensor)?;
            self.write(tensor, finished)
        }
    }

    /// Reads, rounds and reports a tensor that no Hessian belongs to, in one piece.
    pub(super) fn whole(&mut self, tensor: &Planned) -> Result<Finished> {
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
    pub(super) fn stream(
        &mut self,
        tensor: &Planned,
        wanted: &[u32],
        calibrated: Option<&Rows>,
    ) -> Result<EmbeddedRows> {
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
    pub(super) fn piece(
        &mut self,
        tensor: &Planned,
        rows: std::ops::Range<usize>,
        importance: Option<&[f32]>,
        calibrated: Option<&Rows>,
    ) -> Result<(Vec<f32>, Vec<u8>, Vec<f32>)> {
        let started = self.clock.start();
        if tensor.copied {
            let bytes = self.plan.source.kept_rows(&tensor.spec, tensor.kind, rows)?;
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
    pub(super) fn importance(&self, spec: &TensorSpec, matrix: usize) -> Option<Vec<f32>> {
        let entry = self.rounding.imatrix?.entries.get(&spec.gguf)?;
        entry.means(if entry.counts.len() == 1 { 0 } else { matrix })
    }

    pub(super) fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let started = self.clock.start();
        let numbers = self.plan.source.read(spec)?;
        self.clock.reading += started.elapsed();
        Ok(numbers)
    }

    /// A tensor's bytes, rows in the source's order, and the numbers that they decode to.
    pub(super) fn encode(
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
        self.count_vanished(tensor, numbers, &values);
        self.clock.method += started.elapsed();
        Ok((bytes, values))
    }

    /// Appends a finished tensor, its rows in the order of the file.
    pub(super) fn write(&mut self, tensor: &Planned, finished: Finished) -> Result<()> {
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

    /// Counts what became zero in a part of a tensor.
    pub(super) fn count_vanished(&mut self, tensor: &Planned, numbers: &[f32], values: &[f32]) {
        *self.vanished.entry(tensor.spec.gguf.clone()).or_default() += format::vanished(tensor.kind, numbers, values);
    }
}

/// The bytes of a tensor that is not rounded to codes.
pub(super) fn convert(tensor: &Planned, numbers: &[f32]) -> Result<Vec<u8>> {
    let (name, kind) = (&tensor.spec.source, tensor.kind.name());
    match tensor.kind.encoding() {
        Encoding::Each(_) => format::convert(tensor.kind, numbers).context(|| format!("tensor '{name}' as {kind}")),
        _ => Err(Error::new(format!("tensor '{name}': numbers are not converted to {kind} one by one"))),
    }
}

/// Scales end somewhere, and with them what a block can hold.
pub(super) fn check_range(tensor: &Planned, numbers: &[f32]) -> Result<()> {
    let Encoding::Grid(grid) = tensor.kind.encoding() else { return Ok(()) };
    let most = grid.largest();
    match first_beyond(numbers, most) {
        None => Ok(()),
        Some(at) => {
            let (name, kind, x) = (&tensor.spec.source, tensor.kind.name(), numbers[at]);
            Err(Error::new(format!(
                "tensor '{name}': element {at} is {x}, but {kind} is only sure to hold numbers up to {most}"
            ))
            .hint("give this tensor a type without scales, for example --tensor-type 'NAME=BF16'"))
        }
    }
}
