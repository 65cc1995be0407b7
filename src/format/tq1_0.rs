//! TQ1_0: 256 columns, a half-precision scale, three levels, five to a byte. `d·(q − 1)`.

use super::bits::{half_at, put_halves};
use super::{Encoding, Format, Spec, regrid, superblock};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};

/// Packed ternary blocks, 1.6875 bits per weight.
pub struct Tq1_0;

const WIDTH: usize = 256;
const BYTES: usize = 54; // five to a byte: [u8; 32], [u8; 16], four to a byte: [u8; 4], d: f16
const D: usize = 52;
const _: () = assert!(32 * 5 + 16 * 5 + 4 * 4 == WIDTH && D == 32 + 16 + 4 && BYTES == D + 2);

/// The byte that holds column `i`, and which of its digits.
fn place(i: usize) -> (usize, u32) {
    let (byte, digit) = match i {
        0..160 => (i % 32, i / 32),
        160..240 => (32 + i % 16, i / 16 - 10),
        _ => (48 + i % 4, i / 4 - 60),
    };
    (byte, digit as u32)
}

/// The code of column `i`. A byte is a fraction of 256 in base three: a multiplication brings the digit to the front of
/// it, one more pushes it out.
fn trit(block: &[u8], i: usize) -> u8 {
    let (byte, digit) = place(i);
    let fraction = block[byte].wrapping_mul(3u8.pow(digit));
    ((u16::from(fraction) * 3) >> 8) as u8
}

impl Format for Tq1_0 {
    fn spec(&self) -> Spec {
        Spec { name: "TQ1_0", id: 34, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, D);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * (f32::from(trit(block, i)) - 1.0);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Tq1_0)
    }
}

impl Grid for Tq1_0 {
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
        put_halves(blocks, D, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            let mut numbers = [0u16; D];
            for (i, codes) in codes.iter().enumerate() {
                let (byte, digit) = place(i);
                // The first digit is the highest of five, also where the last ones are not used.
                numbers[byte] += (codes[l] + 1) as u16 * 3u16.pow(4 - digit);
            }
            for (byte, number) in block[..D].iter_mut().zip(numbers) {
                *byte = (number * 256).div_ceil(243) as u8;
            }
        }
    }
}
