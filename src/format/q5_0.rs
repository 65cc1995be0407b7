//! Q5_0: 32 columns, a half-precision scale, five-bit codes. `(q − 16)·d`.

use super::bits::{five_bits, half_at, put_fifth_bits, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Symmetric five-bit blocks, 5.5 bits per weight.
pub struct Q5_0;

const WIDTH: usize = 32;
const BYTES: usize = 22; // d: f16, fifth bits: u32, q: [u4; 32]
const _: () = assert!(BYTES == 2 + WIDTH / 8 + WIDTH / 2);

impl Format for Q5_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q5_0", id: 6, width: WIDTH, bytes: BYTES }
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
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -16, hi: 15 }
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
        put_fifth_bits(codes, 16, blocks, 2);
        put_nibbles(codes, 16, 16, blocks, 6);
    }
}
