//! Q5_0: 32 columns, a half-precision scale, five-bit codes. `(q − 16)·d`.

use super::bits::{five_bits, half_at, halves_at, put_fifth_bits, put_halves, put_nibbles};
use super::{Encoding, Format};
use crate::grid::{Codes, F, Grid, Levels};
use llmq_kernels::search;

/// Symmetric five-bit blocks, 5.5 bits per weight.
pub struct Q5_0;

const WIDTH: usize = 32;
const BYTES: usize = 22; // d: f16, fifth bits: u32, q: [u4; 32]
const _: () = assert!(BYTES == 2 + WIDTH / 8 + WIDTH / 2);

impl Format for Q5_0 {
    fn name(&self) -> &'static str {
        "Q5_0"
    }
    fn id(&self) -> u32 {
        6
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
            *x = (f32::from(five_bits(block, 2, 6, i)) - 16.0) * d;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q5_0)
    }
}

impl Grid for Q5_0 {
    fn width(&self) -> usize {
        WIDTH
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -16, hi: 15 }
    }
    fn fit(&self, w: &[F], h: &[F], blocks: &mut [u8]) {
        put_halves(blocks, 0, search::symmetric(w, h, self.levels(), 9).to_f16());
    }
    fn step(&self, blocks: &[u8], _: usize) -> (F, F) {
        (halves_at(blocks, 0), F::ZERO)
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        put_fifth_bits(codes, 16, blocks, 2);
        put_nibbles(codes, 16, blocks, 6);
    }
}
