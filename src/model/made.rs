//! How a tensor of the model is made from those of a checkpoint.

use super::TensorSpec;
use crate::error::Result;
use crate::source::checkpoint::Checkpoint;
use std::ops::Range;

/// What happens to the checkpoint's numbers before they are the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Nothing.
    AsIs,
    /// One is added: Gemma's norms store what their gain is above one.
    PlusOne,
    /// `[columns, rows]` in the checkpoint, as GPT-2's layers are.
    Transposed,
    /// `[heads, 3, head_dim]` along the rows of the checkpoint, `[3, heads, head_dim]` here, as in GPT-NeoX.
    ByHeads {
        /// Heads of each of q, k and v.
        heads: usize,
        /// Rows of each.
        head_dim: usize,
    },
    /// One tensor for each expert, `{}` in the name being its number; `[experts, rows, columns]` here.
    Stacked,
}

impl TensorSpec {
    /// Checks that a checkpoint has what it is made from, in the right shape and a type that can be read.
    ///
    /// # Errors
    /// It has not.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        match self.made {
            Made::AsIs | Made::PlusOne | Made::ByHeads { .. } => checkpoint.check(&self.source, &self.shape),
            Made::Transposed => checkpoint.check(&self.source, &self.transposed()),
            Made::Stacked => (0..self.shape[0]).try_for_each(|i| checkpoint.check(&self.of(i), &self.shape[1..])),
        }
    }

    /// A name that stands for its type in the checkpoint.
    pub fn first_source(&self) -> String {
        if self.made == Made::Stacked { self.of(0) } else { self.source.clone() }
    }

    /// Tells the system that it will be read soon.
    pub fn expect(&self, checkpoint: &Checkpoint) {
        match self.made {
            Made::Stacked => (0..self.shape[0]).for_each(|i| checkpoint.expect(&self.of(i))),
            _ => checkpoint.expect(&self.source),
        }
    }

    /// Whether a part of its rows can be read without the others.
    pub fn has_rows_of_their_own(&self) -> bool {
        self.made != Made::Transposed
    }

    /// Rows from a checkpoint: steps along all dimensions but the last. The whole of a vector counts as one row.
    ///
    /// # Errors
    /// A tensor is missing, or holds NaN or infinity.
    pub fn read_rows(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>> {
        let columns = self.columns();
        match self.made {
            Made::AsIs | Made::PlusOne => {
                let mut numbers = if self.shape.len() > 2 {
                    // Whole matrices, of which some rows are kept.
                    let each = self.rows() / self.shape[0];
                    let (first, last) = (rows.start / each, rows.end.div_ceil(each));
                    let mut numbers = checkpoint.read_rows(&self.source, &self.shape, first..last)?;
                    numbers.truncate((rows.end - first * each) * columns);
                    numbers.drain(..(rows.start - first * each) * columns);
                    numbers
                } else {
                    let rows = if self.shape.len() < 2 { 0..self.shape[0] } else { rows };
                    checkpoint.read_rows(&self.source, &self.shape, rows)?
                };
                if self.made == Made::PlusOne {
                    numbers.iter_mut().for_each(|x| *x += 1.0);
                }
                Ok(numbers)
            }
            Made::Transposed => {
                let stored = checkpoint.read(&self.source, &self.transposed())?;
                let n = self.rows();
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                for row in rows {
                    numbers.extend((0..columns).map(|column| stored[column * n + row]));
                }
                Ok(numbers)
            }
            Made::ByHeads { heads, head_dim } => {
                // A bias is a column of numbers.
                let (rows, columns) = if self.shape.len() < 2 { (0..self.shape[0], 1) } else { (rows, columns) };
                let place = |row: usize| {
                    let (which, head, within) = (row / (heads * head_dim), row / head_dim % heads, row % head_dim);
                    (head * 3 + which) * head_dim + within
                };
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                let mut row = rows.start;
                while row < rows.end {
                    // What lies side by side in both.
                    let run = (head_dim - row % head_dim).min(rows.end - row);
                    let from = place(row);
                    numbers.extend(checkpoint.read_rows(&self.source, &self.shape, from..from + run)?);
                    row += run;
                }
                Ok(numbers)
            }
            Made::Stacked => {
                let each = self.shape[1];
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                let mut row = rows.start;
                while row < rows.end {
                    let (i, from) = (row / each, row % each);
                    let run = (each - from).min(rows.end - row);
                    numbers.extend(checkpoint.read_rows(&self.of(i), &self.shape[1..], from..from + run)?);
                    row += run;
                }
                Ok(numbers)
            }
        }
    }

    fn transposed(&self) -> Vec<usize> {
        self.shape.iter().rev().copied().collect()
    }

    fn of(&self, i: usize) -> String {
        self.source.replace("{}", &i.to_string())
    }
}
