//! How a tensor of the model is made from those of a checkpoint.

use super::TensorSpec;
use super::part::{BlockTensor, Part};
use crate::error::Result;
use crate::source::checkpoint::Checkpoint;
use std::ops::Range;
use std::sync::Arc;

/// What happens to the checkpoint's numbers before they are the model's.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorMapping {
    /// Which of them.
    pub pick: Pick,
    /// What becomes of each.
    pub change: Change,
    /// Their shape in the checkpoint, where they have another one there: as many rows, or several for each of these.
    pub stored: Option<Vec<usize>>,
    /// By what rows are multiplied.
    pub factors: Option<RowFactors>,
}

/// Factors of rows: for so many rows each, one after the other. Behind the last there is none.
pub type RowFactors = Arc<[(usize, f32)]>;

/// What becomes of each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// One is added: Gemma's norms store what their gain is above one.
    PlusOne,
    /// `−exp(x)`: recurrent layers store the logarithm of a decay.
    NegExp,
    /// `exp(x)`: the same where GGUF has no sign.
    Exp,
}

/// Which of a checkpoint's numbers a tensor has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// All of them, in their order.
    AsIs,
    /// `[columns, rows]` in the checkpoint, as GPT-2's layers are.
    Transposed,
    /// `[heads, 3, head_dim]` along the rows of the checkpoint, `[3, heads, head_dim]` here, as in GPT-NeoX.
    ByHeads {
        /// Heads of each of q, k and v.
        heads: usize,
        /// Rows of each.
        head_dim: usize,
    },
    /// Of `[matrices, columns, of]` in the checkpoint, every `step`-th of the `of` numbers from `first` on is a row.
    Columns {
        /// The first row's place.
        first: usize,
        /// From one row to the next.
        step: usize,
        /// Places.
        of: usize,
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
    /// Of `[matrices, of, columns]` in the checkpoint, the rows from `first` on of each matrix.
    StackRows {
        /// The first row.
        first: usize,
        /// Rows of a matrix in the checkpoint.
        of: usize,
    },
    /// The rows from `first` on, of `of`.
    RowsFrom {
        /// The first row.
        first: usize,
        /// Rows in the checkpoint.
        of: usize,
    },
    /// Row `i` is the checkpoint's row `rows[i]`, of `of`; the numbers of a vector count as rows.
    Rows {
        /// Places.
        rows: Arc<[usize]>,
        /// Rows in the checkpoint.
        of: usize,
    },
    /// Numbers that the checkpoint does not have, in single precision: each has these bits.
    Filled(u32),
    /// Column `j` is the checkpoint's column `places[j]`.
    ColumnOrder(Arc<[usize]>),
}

/// How a checkpoint has its experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// As the family usually has them.
    #[default]
    Usual,
    /// `gate_up_proj`, `[experts, 2 · width, hidden]`, and `down_proj`, `[experts, hidden, width]`.
    Fused,
    /// The same with the last two dimensions turned over.
    FusedTransposed,
}

impl ExpertLayout {
    /// The name and the mapping of a stack of experts in a fused layout. `source`: its usual name.
    pub fn fused(self, source: &str, tensor: &BlockTensor) -> Option<(String, TensorMapping)> {
        let folder = source.split_once(".{}").filter(|_| self != ExpertLayout::Usual)?.0;
        let [_, rows, _] = tensor.shape[..] else { return None };
        let turned = self == ExpertLayout::FusedTransposed;
        let of_two = |first: usize| match turned {
            true => Pick::Columns { first, step: 1, of: 2 * rows },
            false => Pick::StackRows { first, of: 2 * rows },
        };
        let (name, pick) = match tensor.part {
            Part::EXPERT_GATES => ("gate_up_proj", of_two(0)),
            Part::EXPERT_UPS => ("gate_up_proj", of_two(rows)),
            Part::EXPERT_DOWNS if turned => ("down_proj", Pick::Columns { first: 0, step: 1, of: rows }),
            Part::EXPERT_DOWNS => ("down_proj", Pick::AsIs),
            _ => return None,
        };
        Some((format!("{folder}.{name}"), pick.into()))
    }
}

impl From<Pick> for TensorMapping {
    fn from(pick: Pick) -> TensorMapping {
        TensorMapping { pick, ..TensorMapping::AS_IS }
    }
}

impl TensorMapping {
    /// The same number everywhere.
    pub fn filled(x: f32) -> TensorMapping {
        Pick::Filled(x.to_bits()).into()
    }
}

impl From<Change> for TensorMapping {
    fn from(change: Change) -> TensorMapping {
        TensorMapping { change, ..TensorMapping::AS_IS }
    }
}

impl Change {
    fn apply(self, numbers: &mut [f32]) {
        match self {
            Change::None => {}
            Change::PlusOne => numbers.iter_mut().for_each(|x| *x += 1.0),
            Change::NegExp => numbers.iter_mut().for_each(|x| *x = -x.exp()),
            Change::Exp => numbers.iter_mut().for_each(|x| *x = x.exp()),
        }
    }
}

impl TensorMapping {
    /// The checkpoint's own numbers.
    pub const AS_IS: TensorMapping =
        TensorMapping { pick: Pick::AsIs, change: Change::None, stored: None, factors: None };

    /// One tensor for each expert or head.
    pub const STACKED: TensorMapping = TensorMapping { pick: Pick::Stacked, ..TensorMapping::AS_IS };
}

impl TensorSpec {
    /// Checks that a checkpoint has what it is made from, in the right shape and a type that can be read.
    ///
    /// # Errors
    /// It has not.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        match self.mapping.pick {
            Pick::Stacked => (0..self.shape[0]).try_for_each(|i| checkpoint.check(&self.of(i), &self.shape[1..])),
            Pick::Filled(_) => Ok(()),
            _ => checkpoint.check(&self.source, &self.stored()),
        }
    }

    /// A name that stands for its type in the checkpoint.
    pub fn first_source(&self) -> String {
        if self.mapping.pick == Pick::Stacked { self.of(0) } else { self.source.clone() }
    }

    /// The names of the tensors that it is made from.
    pub fn sources(&self) -> Vec<String> {
        match self.mapping.pick {
            Pick::Stacked => (0..self.shape[0]).map(|i| self.of(i)).collect(),
            Pick::Filled(_) => Vec::new(),
            _ => vec![self.source.clone()],
        }
    }

    /// Tells the system that it will be read soon.
    pub fn expect(&self, checkpoint: &Checkpoint) {
        match self.mapping.pick {
            Pick::Stacked => (0..self.shape[0]).for_each(|i| checkpoint.expect(&self.of(i))),
            _ => checkpoint.expect(&self.source),
        }
    }

    /// Whether a part of its rows can be read without the others.
    pub fn has_rows_of_their_own(&self) -> bool {
        !matches!(self.mapping.pick, Pick::Transposed | Pick::Every { .. })
    }

    /// Rows from a checkpoint: steps along all dimensions but the last. The whole of a vector counts as one row.
    ///
    /// # Errors
    /// A tensor is missing, or holds NaN or infinity.
    pub fn read_rows(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut numbers = self.picked(checkpoint, rows.clone())?;
        self.mapping.change.apply(&mut numbers);
        let mut first = 0;
        for &(count, factor) in self.mapping.factors.iter().flat_map(|factors| factors.iter()) {
            let own = first.max(rows.start)..(first + count).min(rows.end);
            for row in own.map(|row| row - rows.start) {
                numbers[row * self.columns()..][..self.columns()].iter_mut().for_each(|x| *x *= factor);
            }
            first += count;
        }
        Ok(numbers)
    }

    fn picked(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>> {
        let (columns, stored) = (self.columns(), self.stored());
        match &self.mapping.pick {
            Pick::AsIs => {
                if self.shape.len() > 2 {
                    // Whole matrices, of which some rows are kept.
                    let each = self.rows() / self.shape[0];
                    let (first, last) = (rows.start / each, rows.end.div_ceil(each));
                    let mut numbers = checkpoint.read_rows(&self.source, &self.shape, first..last)?;
                    numbers.truncate((rows.end - first * each) * columns);
                    numbers.drain(..(rows.start - first * each) * columns);
                    Ok(numbers)
                } else {
                    // Rows of the checkpoint for each of these; a vector is one piece.
                    let each = stored[0] / self.shape[0].max(1);
                    let rows = if self.shape.len() < 2 { 0..stored[0] } else { rows.start * each..rows.end * each };
                    checkpoint.read_rows(&self.source, &stored, rows)
                }
            }
            Pick::Transposed => {
                let stored = checkpoint.read(&self.source, &self.stored())?;
                let n = self.rows();
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                for row in rows {
                    numbers.extend((0..columns).map(|column| stored[column * n + row]));
                }
                Ok(numbers)
            }
            &Pick::Columns { first, step, of: n } => {
                let each = self.shape[1];
                self.by_matrix(rows, each, |i, rows| {
                    let matrix = checkpoint.read_rows(&self.source, &stored, i..i + 1)?; // [columns, n]
                    let row = |row: usize| (0..columns).map(move |column| column * n + first + row * step);
                    Ok(rows.flat_map(row).map(|at| matrix[at]).collect())
                })
            }
            &Pick::Every { first, step } => {
                let stored = checkpoint.read(&self.source, &self.stored())?;
                let all: Vec<f32> = stored.into_iter().skip(first).step_by(step).collect();
                Ok(all[rows.start * columns..rows.end * columns].to_vec())
            }
            &Pick::Keys { value } => {
                // [heads, latent, still] from [heads · (still + value), latent]
                let latent = self.shape[1];
                self.by_matrix(rows, latent, |head, rows| {
                    let from = head * (columns + value);
                    let keys = checkpoint.read_rows(&self.source, &stored, from..from + columns)?;
                    let row = |row: usize| (0..columns).map(move |column| column * latent + row);
                    Ok(rows.flat_map(row).map(|at| keys[at]).collect())
                })
            }
            &Pick::Values { still } => {
                let value = self.shape[1];
                self.by_matrix(rows, value, |head, rows| {
                    let from = head * (still + value) + still;
                    checkpoint.read_rows(&self.source, &stored, from + rows.start..from + rows.end)
                })
            }
            &Pick::ByHeads { heads, head_dim } => {
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
            &Pick::StackRows { first, of } => self.by_matrix(rows, self.shape[1], |i, rows| {
                let matrix = checkpoint.read_rows(&self.source, &stored, i..i + 1)?; // [of, columns]
                debug_assert_eq!(matrix.len(), of * columns);
                Ok(matrix[(first + rows.start) * columns..(first + rows.end) * columns].to_vec())
            }),
            &Pick::RowsFrom { first, .. } => {
                checkpoint.read_rows(&self.source, &stored, first + rows.start..first + rows.end)
            }
            Pick::Rows { rows: places, .. } => {
                // A vector is a column of numbers.
                let (rows, columns) = if self.shape.len() < 2 { (0..self.shape[0], 1) } else { (rows, columns) };
                let mut numbers = Vec::with_capacity(rows.len() * columns);
                let mut row = rows.start;
                while row < rows.end {
                    // What lies side by side in both.
                    let run = (row + 1..rows.end).take_while(|&r| places[r] == places[row] + r - row).count() + 1;
                    numbers.extend(checkpoint.read_rows(&self.source, &stored, places[row]..places[row] + run)?);
                    row += run;
                }
                Ok(numbers)
            }
            Pick::ColumnOrder(places) => {
                let read = checkpoint.read_rows(&self.source, &stored, rows)?;
                Ok(read.chunks(columns).flat_map(|row| places.iter().map(|&place| row[place])).collect())
            }
            &Pick::Filled(bits) => Ok(vec![f32::from_bits(bits); rows.len() * columns]),
            Pick::Stacked if self.shape.len() < 3 => {
                self.by_matrix(rows, 1, |i, _| checkpoint.read(&self.of(i), &self.shape[1..]))
            }
            Pick::Stacked => {
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
        if let Some(stored) = &self.mapping.stored {
            return stored.clone();
        }
        match &self.mapping.pick {
            Pick::AsIs | Pick::ByHeads { .. } | Pick::ColumnOrder(_) | Pick::Stacked | Pick::Filled(_) => shape.clone(),
            Pick::StackRows { of, .. } => vec![shape[0], *of, shape[2]],
            Pick::Rows { of, .. } | Pick::RowsFrom { of, .. } => [&[*of], &shape[1..]].concat(),
            Pick::Columns { of, .. } => vec![shape[0], shape[2], *of],
            Pick::Every { step, .. } => vec![shape[0], step * shape[1]],
            Pick::Keys { value } => vec![shape[0] * (shape[2] + value), shape[1]],
            Pick::Values { still } => vec![shape[0] * (still + shape[1]), shape[2]],
            Pick::Transposed => shape.iter().rev().copied().collect(),
        }
    }

    fn of(&self, i: usize) -> String {
        self.source.replace("{}", &i.to_string())
    }
}
