//! Q5_1: 32 columns, a half-precision scale and minimum, five-bit codes. `q·d + m`.

use super::bits::{five_bits, half_at, put_fifth_bits, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Asymmetric five-bit blocks, 6 bits per weight.
pub struct Q5_1;

const WIDTH: usize = 32;
const BYTES: usize = 24; // d: f16, m: f16, fifth bits: u32, q: [u4; 32]
const _: () = assert!(BYTES == 4 + WIDTH / 8 + WIDTH / 2);

impl Format for Q5_1 {
    fn spec(&self) -> Spec {
        Spec { name: "Q5_1", id: 7, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        for (i, x) in out.iter_mut().enumerate() {
            *x = f32::from(five_bits(block, 4, 8, i)) * d + m;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q5_1)
    }
}

impl Grid for Q5_1 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 31 }
    }
    fn freedom(&self) -> Freedom {
        Freedom { mins: (1.0, 1.0), ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_line(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::line(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_halves(blocks, 0, steps.d);
        put_halves(blocks, 2, -steps.dmin);
        put_fifth_bits(codes, 0, blocks, 4);
        put_nibbles(codes, 0, 16, blocks, 8);
    }
}
