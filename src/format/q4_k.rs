//! Q4_K: 256 columns in groups of 32, four-bit codes, six-bit scales and minima. `d·sc·q − dmin·m`.

use super::bits::{half_at, put_nibbles};
use super::scale_packing::{put_head, scale_and_min};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Asymmetric four-bit super-blocks, 4.5 bits per weight.
pub struct Q4K;

const WIDTH: usize = 256;
const BYTES: usize = 144; // d: f16, dmin: f16, scales and minima: [u6; 16], q: [u4; 256]
const GROUP: usize = 32;
const _: () = assert!(BYTES == 4 + 12 + WIDTH / 2);

impl Format for Q4K {
    fn spec(&self) -> Spec {
        Spec { name: "Q4_K", id: 12, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let (scale, min) = scale_and_min(&block[4..], group);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            // Two groups share their bytes.
            let (bytes, shift) = (&block[16 + group / 2 * GROUP..][..GROUP], group % 2 * 4);
            for (x, byte) in out.iter_mut().zip(bytes) {
                *x = scale * f32::from(byte >> shift & 15) - min;
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q4K)
    }
}

impl Grid for Q4K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 15 }
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
        put_nibbles(codes, 0, 32, blocks, 16);
    }
}
