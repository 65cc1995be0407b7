//! Q5_K: 256 columns in groups of 32, five-bit codes, six-bit scales and minima. `d·sc·q − dmin·m`.

use super::bits::{half_at, put_bits, put_nibbles};
use super::scale_packing::{put_head, scale_and_min};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Asymmetric five-bit super-blocks, 5.5 bits per weight.
pub struct Q5K;

const WIDTH: usize = 256;
const BYTES: usize = 176; // d: f16, dmin: f16, scales and minima: [u6; 16], fifth bits: [u1; 256], q: [u4; 256]
const GROUP: usize = 32;
const _: () = assert!(BYTES == 4 + 12 + WIDTH / 8 + WIDTH / 2);

impl Format for Q5K {
    fn spec(&self) -> Spec {
        Spec { name: "Q5_K", id: 13, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        for (i, x) in out.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(&block[4..], i / GROUP);
            let byte = block[48 + i / 64 * 32 + i % 32];
            let low = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
            let q = low | (block[16 + i % 32] >> (i / 32) & 1) << 4;
            *x = d * f32::from(scale) * f32::from(q) - dmin * f32::from(min);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q5K)
    }
}

impl Grid for Q5K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 31 }
    }
    fn freedom(&self) -> Freedom {
        Freedom { scales: (0.0, 63.0), mins: (0.0, 63.0), ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_affine(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::super_affine(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_head(steps, blocks);
        put_bits(codes, 0, 4, blocks, 16);
        put_nibbles(codes, 0, 32, blocks, 48);
    }
}
