//! Q4_1: 32 columns, a half-precision scale and minimum, four-bit codes. `q·d + m`.

use super::bits::{each_nibble, half_at, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Asymmetric four-bit blocks, 5 bits per weight.
pub struct Q4_1;

const WIDTH: usize = 32;
const BYTES: usize = 20; // d: f16, m: f16, q: [u4; 32]
const _: () = assert!(BYTES == 4 + WIDTH / 2);

impl Format for Q4_1 {
    fn spec(&self) -> Spec {
        Spec { name: "Q4_1", id: 3, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        each_nibble(&block[4..20], out, |q| f32::from(q) * d + m);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q4_1)
    }
}

impl Grid for Q4_1 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 15 }
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
        put_nibbles(codes, 0, 16, blocks, 4);
    }
}
