//! Refinement of a static quantization, from the calibration inputs alone: no labels, no training.
//!
//! ```text
//! split (which samples teach, which judge) -> balance (fold: where that is exact) -> rounding (columns) -> bias -> judge
//! ```
//!
//! Each step is kept only if the outputs come measurably nearer to the float model's on samples that no step has learned
//! from. Memory does not depend on the number of samples: see [`rounding`] and [`bias`] for what they hold.

pub mod balance;
pub mod bias;
mod columns;
mod fold;
pub mod judge;
mod layers;
pub mod rounding;
pub mod split;

use super::engine::Engine;
use super::onnx::proto::ModelProto;
use super::qdq::{CalibratedGraph, Quantized};
use super::ranges::Range;
use crate::error::Result;
use judge::{Verdict, judge};
pub use split::LEAST;
use split::Split;
use std::collections::HashMap;

/// What a step is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// See [`balance`].
    Balance,
    /// See [`rounding`].
    Rounding,
    /// See [`bias`].
    Bias,
}

impl Name {
    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Name::Balance => "balance",
            Name::Rounding => "rounding",
            Name::Bias => "bias",
        }
    }
}

/// A step, and what it brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Which.
    pub name: Name,
    /// What it changed: activations for [`Name::Balance`], else layers.
    pub changed: usize,
    /// What it could have changed.
    pub all: usize,
    /// The signal-to-noise ratio in dB on the samples that judge, without it.
    pub before: f64,
    /// The same with it; none if it changed nothing.
    pub after: Option<f64>,
    /// Whether it was kept.
    pub kept: bool,
}

/// What refinement did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Samples that taught; none if there were too few for anything.
    pub teach: usize,
    /// Samples that judged.
    pub judge: usize,
    /// In the order in which they were taken.
    pub steps: Vec<Step>,
}

/// A refined model.
#[derive(Debug)]
pub struct Refined {
    /// The quantized model.
    pub quantized: Quantized,
    /// Its ranges.
    pub ranges: HashMap<String, Range>,
    /// What was done.
    pub report: Report,
}

/// How far it is: a step, runs of the graph, and of how many.
pub type Told<'a> = &'a mut dyn FnMut(Name, usize, usize);

/// Quantizes with the ranges that are given, and refines that as far as it helps. With fewer than [`LEAST`] samples nothing is
/// changed.
///
/// # Errors
/// A sample cannot be read, a graph cannot be run on it, or a tensor is damaged.
pub fn refine(given: CalibratedGraph, told: Told) -> Result<Refined> {
    let CalibratedGraph { float, samples, ranges, integers, excluded, .. } = given;
    let quantized = float.quantized(ranges, integers, excluded)?;
    let mut report = Report { teach: 0, judge: 0, steps: Vec::new() };
    let Some(split) = Split::of(samples.len()) else {
        return Ok(Refined { quantized, ranges: ranges.clone(), report });
    };
    (report.teach, report.judge) = (split.teach.len(), split.judge.len());
    let teacher = Engine::new(float.model())?;
    let verdict = judge(&teacher, &quantized.model, samples, &split.judge)?;
    let now = Now { model: float.model().clone(), quantized, ranges: ranges.clone(), verdict };
    let mut run = Run { given, split, teacher, report, now };
    run.balance(told)?;
    run.round(told)?;
    run.correct(told)?;
    Ok(Refined { quantized: run.now.quantized, ranges: run.now.ranges, report: run.report })
}

/// What the steps so far have led to.
struct Now {
    /// The float model.
    model: ModelProto,
    quantized: Quantized,
    ranges: HashMap<String, Range>,
    verdict: Verdict,
}

struct Run<'a> {
    given: CalibratedGraph<'a>,
    split: Split,
    teacher: Engine,
    report: Report,
    now: Now,
}

impl Run<'_> {
    /// Judges a model, notes how it did, and says whether it is to be kept.
    fn keep(&mut self, name: Name, (changed, all): (usize, usize), model: &ModelProto) -> Result<bool> {
        let before = self.now.verdict.sqnr();
        let mut step = Step { name, changed, all, before, after: None, kept: false };
        if changed > 0 {
            let verdict = judge(&self.teacher, model, self.given.samples, &self.split.judge)?;
            step.after = Some(verdict.sqnr());
            step.kept = verdict.better_than(&self.now.verdict);
            if step.kept {
                self.now.verdict = verdict;
            }
        }
        self.report.steps.push(step);
        Ok(step.kept)
    }

    fn balance(&mut self, told: Told) -> Result<()> {
        let CalibratedGraph { float, samples, integers, excluded, calibrators, .. } = self.given;
        let plan = &self.now.quantized.plan;
        let show = &mut |done, total| told(Name::Balance, done, total);
        let (model, done) = balance::balance(&self.now.model, plan, integers.levels, samples, &self.split.teach, show)?;
        if done.changed == 0 {
            return self.keep(Name::Balance, (0, done.sites), &model).map(drop);
        }
        let total = samples.len();
        let show = &mut |done| told(Name::Balance, done, total);
        let seen = float.calibrate(&Engine::with_intermediates(&model)?, samples, calibrators, show)?;
        let quantized = float.quantized_from(model.clone(), &seen.ranges, integers, excluded)?;
        if self.keep(Name::Balance, (done.changed, done.sites), &quantized.model)? {
            self.now.model = model;
            self.now.quantized = quantized;
            self.now.ranges = seen.ranges;
        }
        Ok(())
    }

    fn round(&mut self, told: Told) -> Result<()> {
        let CalibratedGraph { samples, integers, .. } = self.given;
        let show = &mut |done, total| told(Name::Rounding, done, total);
        let Now { model, quantized, .. } = &self.now;
        let (model, done) = rounding::round(model, quantized, integers.levels, samples, &self.split.teach, show)?;
        if self.keep(Name::Rounding, (done.changed, done.layers), &model)? {
            self.now.quantized.model = model;
        }
        Ok(())
    }

    fn correct(&mut self, told: Told) -> Result<()> {
        let show = &mut |done, total| told(Name::Bias, done, total);
        let Now { model, quantized, .. } = &self.now;
        let (model, done) = bias::correct(model, quantized, self.given.samples, &self.split.teach, show)?;
        if self.keep(Name::Bias, (done.corrected, done.layers), &model)? {
            self.now.quantized.model = model;
        }
        Ok(())
    }
}
