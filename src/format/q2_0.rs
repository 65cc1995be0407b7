//! Q2_0: 64 columns, a half-precision scale, four levels in two bits, side by side. `d·(q − 1)`.

use super::bits::{half_at, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Two-bit blocks, 2.25 bits per weight.
pub struct Q2_0;

const WIDTH: usize = 64;
const BYTES: usize = 18; // d: f16, q: [u2; 64]
const _: () = assert!(BYTES == 2 + WIDTH / 4);

impl Format for Q2_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q2_0", id: 42, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * (f32::from(block[2 + i / 4] >> (i % 4 * 2) & 3) - 1.0);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q2_0)
    }
}

impl Grid for Q2_0 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -1, hi: 2 }
    }
    fn freedom(&self) -> Freedom {
        Freedom::PLAIN
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_plain(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::plain(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_halves(blocks, 0, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (byte, codes) in block[2..].iter_mut().zip(codes.chunks(4)) {
                *byte = (0..4).fold(0, |bits, k| bits | ((codes[k][l] + 1) as u8) << (2 * k));
            }
        }
    }
}
