//! Quantization-aware training: some steps in which the weights learn to live with the rounding (Jacob et al. 2018,
//! "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). The float
//! model is the teacher (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"), the calibration inputs are what
//! it teaches with: no labels are needed.
//!
//! ```text
//! program (the part of the graph to go through) -> ops -> fake (activations in 8 bits)
//! cases (inputs and the float model's answers)
//! parameters (what is trained, rounded as the file will have it) -> adam -> trainer
//! ```
//!
//! What comes out is a float model with other weights and ranges, which is then quantized as any other: the file has the same
//! nodes as without training.

mod adam;
mod cases;
mod fake;
mod operand;
mod ops;
mod parameters;
mod program;
mod trainer;

use super::calibration_inputs;
use super::dynamic;
use super::engine::Engine;
use super::onnx::Graph;
use super::onnx::proto::ModelProto;
use super::qdq::plan::Plan;
use super::qdq::rewrite::Integers;
use super::qdq::{CalibratedGraph, Float, Quantized};
use super::ranges::Range;
use super::samples::Samples;
use crate::error::{Context, Error, Result};
use cases::{Case, Engines, Loss};
use parameters::Parameters;
use program::{Precision, Program};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use trainer::Trainer;

/// One in so many samples is held out, to judge by.
const HELD_OUT: usize = 5;

/// The fewest samples to train with.
pub const LEAST_SAMPLES: usize = 10;

/// By how much of an output's squares the interpreter may differ from the engine.
const SAME: f64 = 1e-5;

/// How to train.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many steps to make.
    pub steps: usize,
    /// What a step changes, as a part of the root mean square of a tensor's numbers; ends of ranges move ten times as fast.
    /// It falls to zero as a cosine.
    pub rate: f64,
    /// Of the choice of the samples held out, and of the order of the others.
    pub seed: u64,
}

impl Options {
    /// Unless one asks for others.
    pub const STEPS: usize = 300;
    /// Unless one asks for another.
    pub const RATE: f64 = 1e-3;
}

/// What training brought.
#[derive(Debug, Clone)]
pub struct Report {
    /// Samples to learn from.
    pub samples: usize,
    /// Samples to judge by.
    pub held_out: usize,
    /// Samples that did not fit the memory.
    pub left_out: usize,
    /// How many numbers were trained.
    pub parameters: usize,
    /// How many steps were made.
    pub steps: usize,
    /// After how many steps the weights were best and kept; 0 if they are those from before.
    pub kept: usize,
    /// The error of the quantized model on the samples held out, as a part of the variance of its outputs, without training.
    pub before: f64,
    /// The same with what was kept.
    pub after: f64,
}

/// A model that was trained.
#[derive(Debug)]
pub struct Trained {
    /// The quantized model.
    pub quantized: Quantized,
    /// Its ranges.
    pub ranges: HashMap<String, Range>,
    /// What it brought.
    pub report: Report,
}

/// How training stands: steps made, of how many, and the error on the samples held out.
pub type Told<'a> = &'a mut dyn FnMut(usize, usize, f64);

/// Trains a model that would be quantized with these ranges; never to be worse on the samples held out than it would be
/// without.
///
/// # Errors
/// Training cannot go through the graph, there are too few samples, or it diverges.
pub fn train(given: CalibratedGraph, options: Options, told: Told) -> Result<Trained> {
    let CalibratedGraph { float, samples, ranges, integers, excluded, .. } = given;
    if samples.len() < LEAST_SAMPLES {
        return Err(Error::new(format!(
            "--qat needs {LEAST_SAMPLES} calibration samples, and there are {}",
            samples.len()
        ))
        .hint("100 and more are better: training sees nothing else"));
    }
    let (student, graph, plan, program) = student(float, integers, excluded)?;
    let parameters = Parameters::of(&graph, &plan, &program, ranges, integers)?;
    let engines = Engines { teacher: Engine::new(float.model())?, student: Engine::with_intermediates(&student)? };
    agree(&engines, &program, &parameters, samples)?;
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut cases = engines.cases(&program, samples)?;
    let used = cases.len();
    let loss = Loss::of(&cases)?;
    let judges = held_out(used, &mut random);
    let held_out: Vec<Case> = judges.iter().rev().map(|&at| cases.remove(at)).collect();
    let mut trainer = Trainer { program, parameters, loss, training: cases, held_out };
    let kept = trainer.train(options, &mut random, told)?;

    let judge = |quantized: &Quantized| judge(&trainer, &engines.teacher, &quantized.model, samples, &judges);
    let before = float.quantized(ranges, integers, excluded)?;
    let mut report = Report {
        samples: trainer.training.len(),
        held_out: judges.len(),
        left_out: samples.len() - used,
        parameters: trainer.parameters.count(),
        steps: options.steps,
        kept,
        before: judge(&before)?,
        after: f64::INFINITY,
    };
    let mut model = float.model().clone();
    trainer.parameters.store(&mut model)?;
    let mut learned = ranges.clone();
    learned.extend(trainer.parameters.ranges());
    let after = float.quantized_from(model, &learned, integers, excluded)?;
    report.after = judge(&after)?;
    // Training has chosen by its own results; the file's are what counts.
    if kept == 0 || report.after.is_nan() || report.after >= report.before {
        (report.after, report.kept) = (report.before, 0);
        return Ok(Trained { quantized: before, ranges: ranges.clone(), report });
    }
    Ok(Trained { quantized: after, ranges: learned, report })
}

/// Refuses a graph that training cannot go through, before anything is calibrated.
///
/// # Errors
/// It cannot.
pub fn check(float: &Float, integers: Integers, excluded: &dyn Fn(&str) -> bool) -> Result<()> {
    student(float, integers, excluded).map(drop)
}

/// The model that is trained, and what to run. What is quantized is trained with quantized embeddings, which the engine computes.
fn student(
    float: &Float,
    integers: Integers,
    excluded: &dyn Fn(&str) -> bool,
) -> Result<(ModelProto, Graph, Plan, Program)> {
    let mut student = float.model().clone();
    dynamic::quantize_rest(&mut student, integers.levels, excluded)?;
    let graph = Graph::take(&mut student.clone())?;
    let plan = Plan::of(&graph, &|node| excluded(node.label()));
    let program = Program::of(&graph, &plan)?;
    Ok((student, graph, plan, program))
}

/// The samples to judge by, in order.
fn held_out(samples: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(random);
    order.truncate(samples.div_ceil(HELD_OUT));
    order.sort_unstable();
    order
}

/// Refuses to train on the ground of results that are not the engine's.
fn agree(engines: &Engines, program: &Program, parameters: &Parameters, samples: &Samples) -> Result<()> {
    let Some(sample) = samples.iter().next() else { return Ok(()) };
    let sample = sample?;
    let case = engines.case(program, &sample)?;
    let own = program.run(&case.given, &parameters.float_leaves()?, Precision::Float)?;
    for ((own, other), (_, name)) in own.iter().zip(engines.student_outputs(program, &sample)?).zip(&program.outputs) {
        let sum = |x: candle_core::Tensor| -> Result<f64> { Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?)) };
        let (off, size) = (sum(own.sub(&other)?)?, sum(other)?);
        if off.is_nan() || off > SAME * size {
            return Err(Error::new(format!(
                "training computes output '{name}' otherwise than the engine: the difference has {off:.3e} of {size:.3e}"
            ))
            .hint("leave out --qat for this graph"));
        }
    }
    Ok(())
}

/// The mean error of a finished model on the samples held out, by the engine.
fn judge(trainer: &Trainer, teacher: &Engine, model: &ModelProto, samples: &Samples, judges: &[usize]) -> Result<f64> {
    let engine = Engine::new(model)?;
    let mut sum = 0.0;
    samples.each(judges, &mut |sample| {
        let inputs = calibration_inputs::inputs(teacher, &sample)?;
        let [wanted, found] = [teacher.run(&inputs)?, engine.run(&inputs)?].map(|x| cases::floats(&trainer.program, x));
        sum += trainer.loss.number(&found?, &wanted?).context(|| sample.place.clone())?;
        Ok(())
    })?;
    Ok(sum / judges.len().max(1) as f64)
}

#[cfg(test)]
mod tests;
