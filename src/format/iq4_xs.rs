//! IQ4_XS: 256 columns in groups of 32, places in the table of IQ4_NL, six-bit scales. `d·(sc − 32)·T[q]`.

use super::bits::{each_nibble, half_at, put_halves, put_nibbles};
use super::iq4_nl::TABLE;
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Non-linear four-bit super-blocks, 4.25 bits per weight.
pub struct Iq4Xs;

const WIDTH: usize = 256;
const BYTES: usize = 136; // d: f16, scales' upper bits: [u2; 8], lower ones: [u4; 8], places: [u4; 256]
const GROUP: usize = 32;
const _: () = assert!(BYTES == 2 + 2 + 4 + WIDTH / 2);

/// The scale of group `g`.
fn scale(block: &[u8], g: usize) -> i8 {
    let high = block[2 + g / 4] >> (g % 4 * 2) & 3;
    let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
    (low | high << 4) as i8 - 32
}

/// Writes all scales, over whatever was there.
fn put_scales(block: &mut [u8], scale: impl Fn(usize) -> i8) {
    block[2..8].fill(0);
    for g in 0..WIDTH / GROUP {
        let s = (scale(g) + 32) as u8;
        block[2 + g / 4] |= (s >> 4) << (g % 4 * 2);
        block[4 + g / 2] |= (s & 15) << (g % 2 * 4);
    }
}

impl Format for Iq4Xs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ4_XS", id: 23, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (g, out) in out.chunks_mut(GROUP).enumerate() {
            let d = d * f32::from(scale(block, g));
            each_nibble(&block[8 + 16 * g..][..16], out, |q| d * f32::from(TABLE[usize::from(q)]));
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq4Xs)
    }
}

impl Grid for Iq4Xs {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Table(&TABLE)
    }
    fn freedom(&self) -> Freedom {
        Freedom { scales: (-32.0, 31.0), ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_symmetric(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::super_symmetric(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_halves(blocks, 0, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            put_scales(block, |g| steps.scales[g].0[l] as i8);
        }
        put_nibbles(codes, 0, 16, blocks, 8);
    }
}
