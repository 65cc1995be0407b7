//! Q2_K: 256 columns in groups of 16, two-bit codes, four-bit scales and minima. `d·sc·q − dmin·m`.

use super::bits::{crumb, half_at, put_crumbs, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Asymmetric two-bit super-blocks, 2.625 bits per weight.
pub struct Q2K;

const WIDTH: usize = 256;
const BYTES: usize = 84; // scales and minima: [(u4, u4); 16], q: [u2; 256], d: f16, dmin: f16
const GROUP: usize = 16;
const _: () = assert!(BYTES == WIDTH / GROUP + WIDTH / 4 + 4);

impl Format for Q2K {
    fn spec(&self) -> Spec {
        Spec { name: "Q2_K", id: 10, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        for (i, x) in out.iter_mut().enumerate() {
            let pair = block[i / GROUP];
            *x = d * f32::from(pair & 15) * f32::from(crumb(&block[16..], i)) - dmin * f32::from(pair >> 4);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q2K)
    }
}

impl Grid for Q2K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 3 }
    }
    fn freedom(&self) -> Freedom {
        Freedom { scales: (0.0, 15.0), mins: (0.0, 15.0), ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        superblock::fit_affine(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        regrid::super_affine(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_halves(blocks, 80, steps.d);
        put_halves(blocks, 82, steps.dmin);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (g, byte) in block[..16].iter_mut().enumerate() {
                *byte = steps.scales[g].0[l] as u8 | (steps.mins[g].0[l] as u8) << 4;
            }
        }
        put_crumbs(codes, 0, 0, blocks, 16);
    }
}
