//! The hinge between methods and formats: a method asks a grid to fit a block and to round a value, a format implements
//! it, and neither imports the other.
//!
//! Everything is done for sixteen rows at a time, one per lane. A block's bytes are the state: [`Grid::fit`] writes
//! what the file will store, rounded as the file stores it, and [`Grid::step`] reads it back, so a method can only ever
//! round onto the values that llama.cpp will decode.

pub use llmq_kernels::column::Codes;
pub use llmq_kernels::{F, LANES, Levels};

/// A block format seen as a grid: `value = scale·q + offset`, with one scale and offset per group of columns.
pub trait Grid: Sync {
    /// Columns of a block.
    fn width(&self) -> usize;

    /// Bytes of a block.
    fn bytes(&self) -> usize;

    /// Columns that share a scale and an offset; divides [`Grid::width`].
    fn group(&self) -> usize {
        self.width()
    }

    /// The codes that exist.
    fn levels(&self) -> Levels;

    /// Chooses scales and offsets that keep `Σ h·(w − ŵ)²` small and writes them into the blocks.
    ///
    /// `w`, `h`: `[width]`, all finite, `h ≥ 0`; `blocks`: `[LANES, bytes]`, zero before.
    fn fit(&self, w: &[F], h: &[F], blocks: &mut [u8]);

    /// Scale and offset of one group, `[lanes]` each, as the blocks hold them.
    fn step(&self, blocks: &[u8], group: usize) -> (F, F);

    /// Writes the codes, `[width]`, into the fitted blocks.
    fn store(&self, codes: &[Codes], blocks: &mut [u8]);
}
