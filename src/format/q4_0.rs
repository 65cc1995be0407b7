//! Q4_0: 32 columns, a half-precision scale, four-bit codes. `(q − 8)·d`.

use super::bits::{each_nibble, half_at, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Symmetric four-bit blocks, 4.5 bits per weight.
pub struct Q4_0;

const WIDTH: usize = 32;
const BYTES: usize = 18; // d: f16, q: [u4; 32]
const _: () = assert!(BYTES == 2 + WIDTH / 2);

impl Format for Q4_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q4_0", id: 2, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        each_nibble(&block[2..18], out, |q| (f32::from(q) - 8.0) * d);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q4_0)
    }
}

impl Grid for Q4_0 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -8, hi: 7 }
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
        put_nibbles(codes, 8, 16, blocks, 2);
    }
}
