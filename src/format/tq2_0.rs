//! TQ2_0: 256 columns, a half-precision scale, three levels in two bits. `d·(q − 1)`.

use super::bits::{crumb, half_at, put_crumbs, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Two-bit ternary blocks, 2.0625 bits per weight.
pub struct Tq2_0;

const WIDTH: usize = 256;
const BYTES: usize = 66; // q: [u2; 256], d: f16
const _: () = assert!(BYTES == WIDTH / 4 + 2);

impl Format for Tq2_0 {
    fn spec(&self) -> Spec {
        Spec { name: "TQ2_0", id: 35, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 64);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * (f32::from(crumb(block, i)) - 1.0);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Tq2_0)
    }
}

impl Grid for Tq2_0 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -1, hi: 1 }
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
        put_halves(blocks, 64, steps.d);
        put_crumbs(codes, 1, 0, blocks, 0);
    }
}
