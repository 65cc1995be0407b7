//! The hinge between methods and formats: a method asks a grid to fit a block and to round a value, a format implements
//! it, and neither imports the other.
//!
//! Everything is done for sixteen rows at a time, one per lane. A block's bytes are the state: [`Grid::fit`] writes
//! what the file will store, rounded as the file stores it, and [`Grid::step`] reads it back, so a method can only ever
//! round onto the values that llama.cpp will decode.

pub use llmq_kernels::column::Codes;
pub use llmq_kernels::search::Effort;
pub use llmq_kernels::{F, LANES, Levels};

/// The size of a grid's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Columns of a block.
    pub width: usize,
    /// Columns that share a scale and an offset; divides `width`.
    pub group: usize,
    /// Bytes of a block.
    pub bytes: usize,
}

/// A block format seen as a grid: `value = scale·q + offset`, with one scale and offset per group of columns.
pub trait Grid: Sync {
    /// The size of its blocks.
    fn shape(&self) -> Shape;

    /// The codes that exist.
    fn levels(&self) -> Levels;

    /// Chooses scales and offsets that keep `Σ h·(w − ŵ)²` small and writes them into the blocks.
    ///
    /// `w`, `h`: `[width]`, all finite, `h ≥ 0`; `blocks`: `[LANES, bytes]`, zero before.
    fn fit(&self, w: &[F], h: &[F], effort: Effort, blocks: &mut [u8]);

    /// Writes the scales of a row whose numbers are on the grid already, so that its codes stand for exactly these; says
    /// whether it is such a row.
    ///
    /// `x`: `[width]`; `block`: `[bytes]`, untouched if the answer is no.
    fn recognize(&self, x: &[f32], block: &mut [u8]) -> bool;

    /// Scale and offset of one group, `[lanes]` each, as the blocks hold them.
    fn step(&self, blocks: &[u8], group: usize) -> (F, F);

    /// Writes the codes, `[width]`, into the fitted blocks.
    fn store(&self, codes: &[Codes], blocks: &mut [u8]);
}

impl dyn Grid + '_ {
    /// Columns of a block.
    pub fn width(&self) -> usize {
        self.shape().width
    }

    /// Columns that share a scale and an offset.
    pub fn group(&self) -> usize {
        self.shape().group
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.shape().bytes
    }
}
