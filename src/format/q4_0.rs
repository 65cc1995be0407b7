//! Q4_0: 32 columns, a half-precision scale, four-bit codes. `(q − 8)·d`.

use super::bits::{half_at, halves_at, nibble, put_halves, put_nibbles};
use super::{Encoding, Format};
use crate::grid::{Codes, F, Grid, Levels};
use llmq_kernels::search;

/// Symmetric four-bit blocks, 4.5 bits per weight.
pub struct Q4_0;

const WIDTH: usize = 32;
const BYTES: usize = 18; // d: f16, q: [u4; 32]
const _: () = assert!(BYTES == 2 + WIDTH / 2);

impl Format for Q4_0 {
    fn name(&self) -> &'static str {
        "Q4_0"
    }
    fn id(&self) -> u32 {
        2
    }
    fn width(&self) -> usize {
        WIDTH
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = (f32::from(nibble(&block[2..], i)) - 8.0) * d;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q4_0)
    }
}

impl Grid for Q4_0 {
    fn width(&self) -> usize {
        WIDTH
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -8, hi: 7 }
    }
    fn fit(&self, w: &[F], h: &[F], blocks: &mut [u8]) {
        put_halves(blocks, 0, search::symmetric(w, h, self.levels(), 9).to_f16());
    }
    fn step(&self, blocks: &[u8], _: usize) -> (F, F) {
        (halves_at(blocks, 0), F::ZERO)
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        put_nibbles(codes, 8, blocks, 2);
    }
}
