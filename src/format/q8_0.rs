//! Q8_0: 32 columns, a half-precision scale, eight-bit codes. `q·d`.

use super::bits::{half_at, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Symmetric eight-bit blocks, 8.5 bits per weight.
pub struct Q8_0;

const WIDTH: usize = 32;
const BYTES: usize = 34; // d: f16, q: [i8; 32]
const _: () = assert!(BYTES == 2 + WIDTH);

impl Format for Q8_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q8_0", id: 8, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = f32::from(block[2 + i] as i8) * d;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q8_0)
    }
}

impl Grid for Q8_0 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        // ggml never writes −128, and some of its products take the absolute value of a code.
        Levels::Uniform { lo: -127, hi: 127 }
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
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (byte, code) in block[2..].iter_mut().zip(codes) {
                *byte = code[l] as u8;
            }
        }
    }
}
