//! Q3_K: 256 columns in groups of 16, three-bit codes, six-bit scales. `d·(sc − 32)·(q − 4)`.

use super::bits::{crumb, half_at, put_bits, put_crumbs, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Symmetric three-bit super-blocks, 3.4375 bits per weight.
pub struct Q3K;

const WIDTH: usize = 256;
const BYTES: usize = 110; // third bits: [u1; 256], q: [u2; 256], scales: [u6; 16], d: f16
const GROUP: usize = 16;
const SCALES: usize = 96;
const D: usize = 108;
const _: () = assert!(SCALES == WIDTH / 8 + WIDTH / 4 && D == SCALES + 12 && BYTES == D + 2);

/// The scale of group `g`: its low nibble is in one of eight bytes, its upper two bits in one of four more.
fn scale(block: &[u8], g: usize) -> i8 {
    let low = block[SCALES + g % 8] >> (g / 8 * 4) & 15;
    let high = block[SCALES + 8 + g % 4] >> (g / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// Writes all scales, over whatever was there.
fn put_scales(block: &mut [u8], scale: impl Fn(usize) -> i8) {
    block[SCALES..D].fill(0);
    for g in 0..WIDTH / GROUP {
        let s = (scale(g) + 32) as u8;
        block[SCALES + g % 8] |= (s & 15) << (g / 8 * 4);
        block[SCALES + 8 + g % 4] |= (s >> 4) << (g / 4 * 2);
    }
}

impl Format for Q3K {
    fn spec(&self) -> Spec {
        Spec { name: "Q3_K", id: 11, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, D);
        for (i, x) in out.iter_mut().enumerate() {
            let high = block[i % 32] >> (i / 32) & 1;
            let q = f32::from(crumb(&block[32..], i) | high << 2) - 4.0;
            *x = d * f32::from(scale(block, i / GROUP)) * q;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q3K)
    }
}

impl Grid for Q3K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -4, hi: 3 }
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
        put_bits(codes, 4, 2, blocks, 0);
        put_crumbs(codes, 4, 0, blocks, 32);
        put_halves(blocks, D, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            put_scales(block, |g| steps.scales[g].0[l] as i8);
        }
    }
}
