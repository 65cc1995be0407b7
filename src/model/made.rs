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
    /// Of `[matrices, columns, n]` in the checkpoint, every `step`-th of the `n` numbers from `first` on is a row.
    Columns {
        /// The first row's place.
        first: usize,
        /// From one row to the next.
        step: usize,
    },
    /// Every `step`-th number from `first` on of `[matrices, n]`.
    Every {
        /// The first one's place.
        first: usize,
        /// From one to the next.
        step: usize,
    },
    /// The keys' part of a matrix whose rows are, for each head, so many of the key and `value` of the value; transposed.
    Keys {
        /// Rows of a head's value.
        value: usize,
    },
    /// The values' part of the same, behind `still` rows of the key.
    Values {
        /// Rows of a head's key.
        still: usize,
    },
    /// One tensor for each expert, `{}` in the name being its number; `[experts, rows, columns]` here. Or one vector for each head.
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
            Made::Transposed | Made::Columns { .. } | Made::Every { .. } | Made::Keys { .. } | Made::Values { .. } => {
                checkpoint.check(&self.source, &self.stored())
            }
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
        !matches!(self.made, Made::Transposed | Made::Every { .. })
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
                let stored = checkpoint.read(&self.source, &self.stored())?;
                let n = self.rows();
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                for row in rows {
                    numbers.extend((0..columns).map(|column| stored[column * n + row]));
                }
                Ok(numbers)
            }
            Made::Columns { first, step } => {
                let (stored, each) = (self.stored(), self.shape[1]);
                self.by_matrix(rows, each, |i, rows| {
                    let matrix = checkpoint.read_rows(&self.source, &stored, i..i + 1)?; // [columns, n]
                    let n = stored[2];
                    let row = |row: usize| (0..columns).map(move |column| column * n + first + row * step);
                    Ok(rows.flat_map(row).map(|at| matrix[at]).collect())
                })
            }
            Made::Every { first, step } => {
                let stored = checkpoint.read(&self.source, &self.stored())?;
                let all: Vec<f32> = stored.into_iter().skip(first).step_by(step).collect();
                Ok(all[rows.start * columns..rows.end * columns].to_vec())
            }
            Made::Keys { value } => {
                // [heads, latent, still] from [heads · (still + value), latent]
                let (stored, latent) = (self.stored(), self.shape[1]);
                self.by_matrix(rows, latent, |head, rows| {
                    let from = head * (columns + value);
                    let keys = checkpoint.read_rows(&self.source, &stored, from..from + columns)?;
                    let row = |row: usize| (0..columns).map(move |column| column * latent + row);
                    Ok(rows.flat_map(row).map(|at| keys[at]).collect())
                })
            }
            Made::Values { still } => {
                let (stored, value) = (self.stored(), self.shape[1]);
                self.by_matrix(rows, value, |head, rows| {
                    let from = head * (still + value) + still;
                    checkpoint.read_rows(&self.source, &stored, from + rows.start..from + rows.end)
                })
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
            Made::Stacked if self.shape.len() < 3 => {
                self.by_matrix(rows, 1, |i, _| checkpoint.read(&self.of(i), &self.shape[1..]))
            }
            Made::Stacked => {
                let read = |i: usize, rows| checkpoint.read_rows(&self.of(i), &self.shape[1..], rows);
                self.by_matrix(rows, self.shape[1], read)
            }
        }
    }

    /// Rows of a stack of matrices of `each` rows; `read` gives some of one.
    fn by_matrix(
        &self,
        rows: Range<usize>,
        each: usize,
        read: impl Fn(usize, Range<usize>) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let mut numbers = Vec::with_capacity(rows.len() * self.columns());
        let mut row = rows.start;
        while row < rows.end {
            let (i, from) = (row / each, row % each);
            let run = (each - from).min(rows.end - row);
            numbers.extend(read(i, from..from + run)?);
            row += run;
        }
        Ok(numbers)
    }

    /// The shape of what it is made from.
    fn stored(&self) -> Vec<usize> {
        let shape = &self.shape;
        match self.made {
            Made::Columns { step, .. } => vec![shape[0], shape[2], step * shape[1]],
            Made::Every { step, .. } => vec![shape[0], step * shape[1]],
            Made::Keys { value } => vec![shape[0] * (shape[2] + value), shape[1]],
            Made::Values { still } => vec![shape[0] * (still + shape[1]), shape[2]],
            _ => shape.iter().rev().copied().collect(),
        }
    }

    fn of(&self, i: usize) -> String {
        self.source.replace("{}", &i.to_string())
    }
}
