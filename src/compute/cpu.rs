//! Products on the CPU, by llmq's own kernels.

use super::{Compute, Numbers, OuterSum, Part, Weights};
use crate::error::Result;
use llmq_kernels::gemm::{self, Precision};
use llmq_kernels::memory::triangle;
use llmq_kernels::{fused, syrk};

/// The CPU.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

impl Compute for Cpu {
    fn identity(&self) -> String {
        "cpu".into()
    }

    fn linear(&self, precision: Precision, x: &[f32], w: &Weights<'_>, y: &mut [f32]) -> Result<()> {
        match w.numbers {
            Numbers::Held(numbers) => gemm::linear(precision, x, numbers, w.columns, y),
            Numbers::OnTheFly(decode) => fused::linear(precision, x, w.columns, w.rows, decode, y)?,
        }
        Ok(())
    }

    fn sum(&self, precision: Precision, rows: usize, columns: usize, part: Part) -> Result<Box<dyn OuterSum>> {
        let sum = if part == Part::Triangle { triangle(columns) } else { vec![0.0; rows * columns] };
        Ok(Box::new(Sum { precision, columns, sum }))
    }
}

struct Sum {
    precision: Precision,
    columns: usize,
    sum: Vec<f32>, // [rows, columns]
}

impl OuterSum for Sum {
    fn add(&mut self, a: &[f32], b: Option<&[f32]>) -> Result<()> {
        let n = self.columns;
        match b {
            Some(b) => syrk::outer(self.precision, a, self.sum.len() / n, b, n, &mut self.sum),
            None => syrk::syrk(self.precision, a, n, &mut self.sum),
        }
        Ok(())
    }

    fn diagonal(&self) -> Result<Vec<f32>> {
        Ok(self.sum.iter().step_by(self.columns + 1).copied().collect())
    }

    fn is_finite(&self) -> Option<bool> {
        Some(self.sum.iter().step_by(self.columns + 1).all(|x| x.is_finite()))
    }

    fn finish(self: Box<Self>) -> Result<Vec<f32>> {
        Ok(self.sum)
    }
}
