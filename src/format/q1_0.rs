//! Q1_0: 128 columns, a half-precision scale, signs. `±d`.

use super::bits::{half_at, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// One-bit blocks, 1.125 bits per weight.
pub struct Q1_0;

const WIDTH: usize = 128;
const BYTES: usize = 18; // d: f16, q: [u1; 128]
const _: () = assert!(BYTES == 2 + WIDTH / 8);

impl Format for Q1_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q1_0", id: 41, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q1_0)
    }
}

impl Grid for Q1_0 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Signs
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
            for (byte, codes) in block[2..].iter_mut().zip(codes.chunks(8)) {
                *byte = (0..8).fold(0, |bits, k| bits | u8::from(codes[k][l] > 0) << k);
            }
        }
    }
}
