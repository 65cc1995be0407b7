//! Q6_K: 256 columns in groups of 16, six-bit codes, eight-bit scales. `d·sc·(q − 32)`.

use super::bits::{half_at, put_crumbs, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Symmetric six-bit super-blocks, 6.5625 bits per weight.
pub struct Q6K;

const WIDTH: usize = 256;
const BYTES: usize = 210; // low nibbles: [u4; 256], high crumbs: [u2; 256], scales: [i8; 16], d: f16
const GROUP: usize = 16;
const SCALES: usize = 192;
const D: usize = 208;
const _: () = assert!(D == SCALES + WIDTH / GROUP && SCALES == WIDTH / 2 + WIDTH / 4 && BYTES == D + 2);

impl Format for Q6K {
    fn spec(&self) -> Spec {
        Spec { name: "Q6_K", id: 14, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, D);
        for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let scale = d * f32::from(block[SCALES + group] as i8);
            // Of each half of 128 columns, columns 64 apart share a byte of low bits, and columns 32 apart one of high bits.
            let (half, column) = (group / 8, group % 8 * GROUP);
            let low = &block[half * 64 + column % 64..][..GROUP];
            let high = &block[128 + half * 32 + column % 32..][..GROUP];
            let (of_low, of_high) = (column / 64 * 4, column / 32 * 2);
            for (x, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
                *x = scale * (f32::from(low >> of_low & 15 | (high >> of_high & 3) << 4) - 32.0);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q6K)
    }
}

impl Grid for Q6K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -32, hi: 31 }
    }
    fn freedom(&self) -> Freedom {
        Freedom { scales: (-128.0, 127.0), ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_symmetric(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::super_symmetric(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_nibbles(codes, 32, 64, blocks, 0);
        put_crumbs(codes, 32, 4, blocks, 128);
        put_halves(blocks, D, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (byte, scale) in block[SCALES..D].iter_mut().zip(steps.scales) {
                *byte = scale.0[l] as i8 as u8;
            }
        }
    }
}
