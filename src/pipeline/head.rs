//! The output matrix, calibrated on what it reads: the last hidden states.
//!
//! An untied one comes last in the file and sees the stream of the quantized model. A tied one is the embedding, too, and comes
//! first; it is calibrated on the original model, which some windows go through for that. Its rows are read in both places, and
//! as an input each number of a row counts alike: the identity is added to the Hessian.

use super::plan::{Plan, Planned};
use super::stream::{PRECISION, Stream};
use super::{Calibration, Run};
use crate::calib::hessian::Hessian;
use crate::error::{Context, Result};
use crate::format::Encoding;
use crate::interrupt;
use crate::method::Rows;
use crate::model::TensorRole;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::states::States;
use crate::pipeline::loaded_model::{embed, pairing};
use candle_core::Device;

/// Windows that go through the original model for a tied output matrix: one in so many.
pub(super) const SHARE: usize = 8;

/// What an error counts in the embedding against one of the same size in the output matrix, in units of the mean square of
/// the last hidden states.
const EMBEDDED: f32 = 1.0;

/// Bits from which on there is nothing to gain.
const ENOUGH: f64 = 8.0;

/// What [`Run::calibrates_output`] says, for a plan.
pub(super) fn calibrates_output(plan: &Plan, tensor: &Planned) -> bool {
    let tied = plan.model().is_ok_and(|model| model.tied);
    let role = if tied { TensorRole::Embedding } else { TensorRole::Output };
    tensor.spec.role == role && tensor.is_rounded() && tensor.kind.bits() < ENOUGH
}

impl Run<'_> {
    /// Whether the codes of an output matrix, or of an embedding that is one, are worth calibrating.
    pub(super) fn calibrates_output(&self, tensor: &Planned) -> bool {
        calibrates_output(self.plan, tensor)
    }

    /// How to round the rows of an output matrix. `hessian`: of the last hidden states, `[hidden, hidden]`.
    pub(super) fn output_rows(&mut self, tensor: &Planned, mut hessian: Vec<f32>) -> Option<Rows> {
        let started = self.clock.start();
        let n = tensor.spec.columns();
        if tensor.spec.role == TensorRole::Embedding {
            let mean = (0..n).map(|j| hessian[j * n + j]).sum::<f32>() / n as f32;
            (0..n).for_each(|j| hessian[j * n + j] += EMBEDDED * mean);
        }
        let Encoding::Grid(grid) = tensor.kind.encoding() else { return None };
        let (rows, note) = self.rounding.method.rows(hessian, n, grid, &self.rounding.options);
        if let Some(note) = note {
            self.note(format!("{}: {note}", tensor.spec.gguf));
        }
        self.clock.method += started.elapsed();
        Some(rows)
    }

    /// The Hessian of the last hidden states of the original model, over some windows.
    pub(super) fn foresee(&mut self, windows: &[Vec<u32>], c: &Calibration) -> Result<Vec<f32>> {
        let (plan, model, device) = (self.plan, self.plan.model()?, Device::Cpu);
        let frame = Frame::new(model, pairing(&plan.source, model), c.positions, &device)?;
        let frame = frame.with_precision(PRECISION).on(&self.rounding.compute);
        let windows = &windows[..windows.len().div_ceil(SHARE)];
        let mut batches = embed(&plan.source, model, windows, &device)?;
        for i in 0..model.blocks.len() {
            let block = self.original(&frame, i)?;
            let started = self.clock.start();
            for h in &mut batches {
                interrupt::check()?;
                *h = block.forward(h)?;
            }
            self.clock.forward += started.elapsed();
        }
        self.clock.multiplications += frame.multiplications();
        self.final_hessian(batches.into_iter().map(Ok))
    }

    /// The Hessian of the last hidden states behind a stream.
    pub(super) fn behind(&mut self, stream: &Stream) -> Result<Vec<f32>> {
        self.final_hessian((0..stream.batches().len()).map(|i| Ok(stream.get(i)?.states)))
    }

    fn final_hessian(&mut self, all: impl Iterator<Item = Result<States>>) -> Result<Vec<f32>> {
        let model = self.plan.model()?;
        let norm = LastNorm::new(model, |spec| self.read(spec))?;
        let mut hessian = Hessian::new(self.products(), model.hidden);
        let started = self.clock.start();
        for states in all {
            interrupt::check()?;
            hessian.add(&norm.apply(&states?)?).context(|| "behind the last norm".into())?;
        }
        self.clock.hessian += started.elapsed();
        hessian.finish()
    }
}
