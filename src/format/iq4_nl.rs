//! IQ4_NL: 32 columns, a half-precision scale, four-bit places in a table of uneven levels. `d·T[q]`.

use super::bits::{each_nibble, half_at, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Non-linear four-bit blocks, 4.5 bits per weight.
pub struct Iq4Nl;

const WIDTH: usize = 32;
const BYTES: usize = 18; // d: f16, places: [u4; 32]
const _: () = assert!(BYTES == 2 + WIDTH / 2);

/// The levels, denser around zero, as llama.cpp has them.
pub static TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Format for Iq4Nl {
    fn spec(&self) -> Spec {
        Spec { name: "IQ4_NL", id: 20, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        each_nibble(&block[2..18], out, |q| d * f32::from(TABLE[usize::from(q)]));
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq4Nl)
    }
}

impl Grid for Iq4Nl {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Table(&TABLE)
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
        put_nibbles(codes, 0, 16, blocks, 2);
    }
}
