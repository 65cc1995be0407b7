//! Where large products are computed. That is chosen once, where a run begins; everything else hands its numbers over and does not ask.

pub mod choice;
mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;

pub use cpu::Cpu;

use crate::error::Result;
use candle_core::TensorId;
use llmq_kernels::gemm::Precision;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What computes large products. The same numbers give the same results every time, at any number of threads.
pub trait Compute: Debug + Send + Sync {
    /// What decides about the last bits of its results: runs that go on refuse another one.
    fn identity(&self) -> String;

    /// `Y = X·Wᵀ`, a linear layer without bias. `x`: `[n, columns]`; `y`: `[n, rows]`, all of it is overwritten.
    ///
    /// # Errors
    /// Weights that cannot be decoded, or the device fails.
    fn linear(&self, precision: Precision, x: &[f32], w: &Weights<'_>, y: &mut [f32]) -> Result<()>;

    /// An empty sum of outer products, `[rows, columns]`.
    ///
    /// # Errors
    /// The device has no room.
    fn sum(&self, precision: Precision, rows: usize, columns: usize, part: Part) -> Result<Box<dyn OuterSum>>;
}

/// `Σ AᵀB` in the making.
pub trait OuterSum: Send {
    /// Adds `AᵀB`, or `AᵀA` where there is no `b`. `a`: `[tokens, rows]`; `b`: `[tokens, columns]`.
    ///
    /// # Errors
    /// The device fails.
    fn add(&mut self, a: &[f32], b: Option<&[f32]>) -> Result<()>;

    /// What is on its diagonal so far.
    ///
    /// # Errors
    /// The device fails.
    fn diagonal(&self) -> Result<Vec<f32>>;

    /// Whether all that is on its diagonal is finite; none where a device would have to be asked.
    fn is_finite(&self) -> Option<bool> {
        None
    }

    /// `[rows, columns]`. But of [`Part::Whole`] what is above the diagonal means nothing.
    ///
    /// # Errors
    /// The device fails.
    fn finish(self: Box<Self>) -> Result<Vec<f32>>;
}

/// What is wanted of a sum of outer products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Of `XᵀX` what is on the diagonal and below, with room for the rest.
    Lower,
    /// The same, and the rest takes no memory.
    Triangle,
}

/// A matrix that activations are multiplied with.
pub struct Weights<'w> {
    /// What it is known by.
    pub key: Key,
    /// How many rows, one for each output.
    pub rows: usize,
    /// How many columns, one for each input.
    pub columns: usize,
    /// Its numbers.
    pub numbers: Numbers<'w>,
}

/// Numbers of a matrix, `[rows, columns]`.
pub enum Numbers<'w> {
    /// In memory.
    Held(&'w [f32]),
    /// Decoded a few rows at a time.
    OnTheFly(&'w Decode<'w>),
}

/// Decodes rows into numbers, `[rows, columns]`, all of which are overwritten.
pub type Decode<'w> = dyn Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync + 'w;

/// What a matrix is known by, so that a device need not be given it twice. As long as the program runs, no two that differ have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A tensor, whose numbers never change.
    Tensor(TensorId),
    /// Rows from the second number on of what the first one stands for.
    Rows(u64, usize),
}

impl Key {
    /// That of something new.
    pub fn new_rows() -> Key {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Key::Rows(NEXT.fetch_add(1, Ordering::Relaxed), 0)
    }

    /// That of its rows from here on.
    #[must_use]
    pub fn from_row(self, row: usize) -> Key {
        match self {
            Key::Rows(of, first) => Key::Rows(of, first + row),
            tensor => tensor,
        }
    }
}

/// How products are computed: where, and how exactly.
#[derive(Debug, Clone)]
pub struct Products {
    /// They need not be more exact than this.
    pub precision: Precision,
    /// Where.
    pub on: Arc<dyn Compute>,
}

impl Products {
    /// The sum of outer products in a place that is empty before the first of them.
    ///
    /// # Errors
    /// The device has no room.
    pub fn sum<'p>(
        &self,
        place: &'p mut Option<Box<dyn OuterSum>>,
        rows: usize,
        columns: usize,
        part: Part,
    ) -> Result<&'p mut Box<dyn OuterSum>> {
        Ok(match place {
            Some(sum) => sum,
            empty => empty.insert(self.on.sum(self.precision, rows, columns, part)?),
        })
    }
}

/// On the CPU.
impl From<Precision> for Products {
    fn from(precision: Precision) -> Products {
        Products { precision, on: Arc::new(Cpu) }
    }
}

impl From<&Products> for Products {
    fn from(products: &Products) -> Products {
        products.clone()
    }
}
