//! What training learns from: for each sample, what the trained part of the graph reads and what the float model answers.

use super::LEAST_SAMPLES;
use super::operand::Operand;
use super::program::Program;
use crate::error::{Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::engine::{Engine, Value};
use crate::int8::samples::{Sample, Samples};
use crate::interrupt;
use candle_core::Tensor;

/// The most memory that samples may take; further ones are left out.
const MOST: usize = 2 << 30;

/// One sample.
#[derive(Debug)]
pub struct Case {
    /// The values of [`Program::boundary`].
    pub given: Vec<Operand>,
    /// What the float model gives for each of [`Program::outputs`].
    pub targets: Vec<Tensor>,
}

/// Both float models: the original, and the one whose embeddings are quantized, which training starts from.
#[derive(Debug)]
pub struct Engines {
    /// The original.
    pub teacher: Engine,
    /// That which is trained; it gives intermediate values.
    pub student: Engine,
}

impl Engines {
    /// Runs both on a sample.
    ///
    /// # Errors
    /// A graph cannot be run on it.
    pub fn case(&self, program: &Program, sample: &Sample) -> Result<Case> {
        let inputs = calibration_inputs::inputs(&self.teacher, sample)?;
        let computed = program.boundary.iter().filter(|name| inputs.iter().all(|(input, _)| input != name));
        let computed: Vec<&str> = computed.map(String::as_str).collect();
        let mut found =
            if computed.is_empty() { Vec::new() } else { self.student.run_for(&inputs, &computed)? }.into_iter();
        let given = program.boundary.iter().map(|name| {
            let input = inputs.iter().find(|(input, _)| input == name).map(|(_, value)| value.clone());
            let value = input.or_else(|| found.next());
            Operand::of(value.ok_or_else(|| Error::new(format!("value '{name}' was not computed")))?)
        });
        let given = given.collect::<Result<_>>()?;
        let targets = floats(program, self.teacher.run(&inputs)?)?;
        Ok(Case { given, targets })
    }

    /// What the student gives for a sample, in floats.
    ///
    /// # Errors
    /// The graph cannot be run on it.
    pub fn student_outputs(&self, program: &Program, sample: &Sample) -> Result<Vec<Tensor>> {
        floats(program, self.student.run(&calibration_inputs::inputs(&self.student, sample)?)?)
    }

    /// Runs all samples, or as many as fit the memory.
    ///
    /// # Errors
    /// A sample cannot be read, a graph cannot be run on it, or too few fit.
    pub fn cases(&self, program: &Program, samples: &Samples) -> Result<Vec<Case>> {
        let (mut cases, mut bytes) = (Vec::new(), 0);
        for sample in samples.iter() {
            interrupt::check()?;
            let case = self.case(program, &sample?)?;
            bytes += case.given.iter().map(Operand::bytes).sum::<usize>();
            bytes += case.targets.iter().map(|target| 4 * target.elem_count()).sum::<usize>();
            if bytes > MOST {
                break;
            }
            cases.push(case);
        }
        match cases.len() {
            fit if fit < LEAST_SAMPLES => Err(Error::new(format!(
                "only {fit} samples fit the {} GiB that training may take, and it needs {LEAST_SAMPLES}",
                MOST >> 30
            ))
            .hint("train with smaller inputs, or leave out --qat")),
            _ => Ok(cases),
        }
    }
}

/// A program's outputs among all of a graph.
///
/// # Errors
/// One has no floats.
pub fn floats(program: &Program, outputs: Vec<Value>) -> Result<Vec<Tensor>> {
    let mut outputs: Vec<Option<Value>> = outputs.into_iter().map(Some).collect();
    let output = |(at, name): &(usize, String)| match outputs[*at].take() {
        Some(Value::F32(x)) => super::operand::float(x),
        _ => Err(Error::new(format!("output '{name}' has integers, not floats"))),
    };
    program.outputs.iter().map(output).collect()
}

/// How far outputs are from the float model's: the squared difference as a part of the output's variance, in the mean over
/// outputs.
#[derive(Debug)]
pub struct Loss {
    /// Of each output, one over its variance over all samples and numbers.
    weights: Vec<f64>,
}

impl Loss {
    /// With the variances of these targets.
    ///
    /// # Errors
    /// The tensor library refused.
    pub fn of(cases: &[Case]) -> Result<Loss> {
        let outputs = cases.first().map_or(0, |case| case.targets.len());
        let mut sums = vec![[0f64; 3]; outputs];
        for case in cases {
            for ([n, x, xx], target) in sums.iter_mut().zip(&case.targets) {
                for y in target.flatten_all()?.to_vec1::<f32>()? {
                    (*n, *x, *xx) = (*n + 1.0, *x + f64::from(y), *xx + f64::from(y).powi(2));
                }
            }
        }
        let variance = |[n, x, xx]: [f64; 3]| xx / f64::max(n, 1.0) - (x / f64::max(n, 1.0)).powi(2);
        // An output that never changes says little; a tiny number instead of zero keeps the quotient finite.
        let weight = |sums| 1.0 / (variance(sums).max(1e-20) * outputs as f64);
        Ok(Loss { weights: sums.into_iter().map(weight).collect() })
    }

    /// That of one sample, through which a gradient flows.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn tensor(&self, outputs: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for ((output, target), &weight) in outputs.iter().zip(targets).zip(&self.weights) {
            let part = (output.sub(target)?.sqr()?.mean_all()? * weight)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::new("there is no output to learn from"))
    }

    /// That of one sample as a number.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn number(&self, outputs: &[Tensor], targets: &[Tensor]) -> Result<f64> {
        Ok(f64::from(self.tensor(outputs, targets)?.to_scalar::<f32>()?))
    }
}
