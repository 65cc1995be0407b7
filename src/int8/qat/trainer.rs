//! The steps of training.

use super::Options;
use super::adam::Adam;
use super::cases::{Case, Loss};
use super::parameters::Parameters;
use super::program::{Precision, Program};
use crate::error::{Error, Result};
use crate::interrupt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Samples of a step.
const BATCH: usize = 16;

/// How often the samples held out are asked, and the fewest steps in between: each time costs about as much as a few steps.
const LOOKS: usize = 20;
const BETWEEN: usize = 5;

/// What is trained and what with.
#[derive(Debug)]
pub struct Trainer {
    /// The graph.
    pub program: Program,
    /// What is trained.
    pub parameters: Parameters,
    /// How far from the float model outputs are.
    pub loss: Loss,
    /// Samples to learn from.
    pub training: Vec<Case>,
    /// Samples to judge by.
    pub held_out: Vec<Case>,
}

impl Trainer {
    /// Makes all steps, and keeps the parameters with the least error on the samples held out. Gives the number of steps
    /// after which that was; 0 if none was better.
    ///
    /// # Errors
    /// It diverges.
    pub fn train(&mut self, options: Options, random: &mut ChaCha8Rng, told: super::Told) -> Result<usize> {
        let every = options.steps.div_ceil(LOOKS).max(BETWEEN);
        let mut best = (self.error()?, 0, self.parameters.clone());
        let (mut adam, mut last, mut order) = (Adam::default(), best.0, Vec::new());
        for step in 0..options.steps {
            interrupt::check()?;
            let mut gradients = self.gradients(&self.batch(&mut order, random))?;
            let part = step as f64 / options.steps as f64;
            let rate = options.rate * 0.5 * (1.0 + (std::f64::consts::PI * part).cos());
            adam.steps(&mut gradients, |at| rate * self.parameters.all[at].unit);
            self.parameters.take_off(&gradients);
            let done = step + 1;
            if done % every == 0 || done == options.steps {
                last = self.error()?;
                if last < best.0 {
                    best = (last, done, self.parameters.clone());
                }
            }
            told(done, options.steps, last);
        }
        self.parameters = best.2;
        Ok(best.1)
    }

    /// The samples of the next step: all come once, in random order, before one comes again.
    fn batch(&self, order: &mut Vec<usize>, random: &mut ChaCha8Rng) -> Vec<usize> {
        let size = BATCH.min(self.training.len());
        if order.len() < size {
            let mut all: Vec<usize> = (0..self.training.len()).collect();
            all.shuffle(random);
            order.extend(all);
        }
        order.drain(..size).collect()
    }

    /// The sum of the gradients of some samples: always in the order of the samples, however many threads compute them.
    fn gradients(&self, batch: &[usize]) -> Result<Vec<Vec<f32>>> {
        let leaves = self.parameters.leaves(true)?;
        let mut sums = vec![Vec::new(); self.parameters.all.len()];
        for together in batch.chunks(rayon::current_num_threads().max(1)) {
            let found = together.par_iter().map(|&at| {
                let case = &self.training[at];
                let outputs = self.program.run(&case.given, &leaves, Precision::Integers)?;
                let loss = self.loss.tensor(&outputs, &case.targets)?;
                finite(f64::from(loss.to_scalar::<f32>()?))?;
                Ok(loss.backward()?)
            });
            for gradients in found.collect::<Result<Vec<_>>>()? {
                leaves.collect(&gradients, &mut sums)?;
            }
        }
        Ok(sums)
    }

    /// The mean error on the samples held out.
    fn error(&self) -> Result<f64> {
        let leaves = self.parameters.leaves(false)?;
        let errors = self.held_out.par_iter().map(|case| {
            let outputs = self.program.run(&case.given, &leaves, Precision::Integers)?;
            self.loss.number(&outputs, &case.targets)
        });
        let errors = errors.collect::<Result<Vec<f64>>>()?;
        finite(errors.iter().sum::<f64>() / errors.len().max(1) as f64)
    }
}

fn finite(error: f64) -> Result<f64> {
    match error.is_finite() {
        true => Ok(error),
        false => Err(Error::new("training diverged: the error is no longer a finite number")
            .hint("try a smaller --learning-rate")),
    }
}
