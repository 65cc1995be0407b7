//! MXFP4: 32 columns, a power of two, four-bit floating-point numbers (OCP Microscaling Formats 1.0).

use super::bits::{each_nibble, put_nibbles};
use super::{Encoding, Format, Spec};
use crate::grid::{Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps, Supers};
use llmq_kernels::search;

/// Microscaling four-bit blocks, 4.25 bits per weight.
pub struct MXFP4;

const WIDTH: usize = 32;
const BYTES: usize = 17; // exponent: u8, sign and magnitude: [u4; 32]
const _: () = assert!(BYTES == 1 + WIDTH / 2);

/// Twice the numbers that sign, two bits of exponent and one of mantissa make, in rising order; zero is there twice.
static TABLE: [i8; 16] = [-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12];

/// The place of a number's bits in the table; bit 3 is the sign.
fn place(bits: u8) -> u8 {
    if bits < 8 { bits + 8 } else { 15 - bits }
}

/// The bits of the number at a place.
fn bits(place: u8) -> u8 {
    if place < 8 { 15 - place } else { place - 8 }
}

/// `2^(e − 128)`: half the scale, because the table is doubled.
fn scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// The `e` of a [`scale`].
fn exponent(scale: f32) -> u8 {
    match scale.to_bits() >> 22 {
        subnormal @ 0..=1 => subnormal as u8,
        normal => (normal / 2 + 1) as u8,
    }
}

impl Format for MXFP4 {
    fn spec(&self) -> Spec {
        Spec { name: "MXFP4", id: 39, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = scale(block[0]);
        each_nibble(&block[1..17], out, |q| d * f32::from(TABLE[usize::from(place(q))]));
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&MXFP4)
    }
}

impl Grid for MXFP4 {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: WIDTH, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Table(&TABLE)
    }
    fn freedom(&self) -> Freedom {
        Freedom { supers: Supers::PowerOfTwo, ..Freedom::PLAIN }
    }
    fn fit(&self, w: &[F], h: &[F], _: Effort) -> Steps {
        let mut largest = F::ZERO;
        for w in w {
            largest = largest.max(w.abs());
        }
        // The exponent that brings the largest entry between 8 and 16, the one below and the one above.
        let natural = |x: f32| (x.to_bits() >> 23) as i32 - 2;
        let (mut best, mut least) = (F::splat(scale(0)), F::splat(f32::INFINITY));
        for step in [0, 1, -1] {
            let d = largest.map(|x| scale((natural(x) + step).clamp(0, 254) as u8));
            let error = search::error(w, h, d, F::ZERO, self.levels());
            best = error.less(least, d, best);
            least = error.less(least, error, least);
        }
        Steps::plain(best)
    }
    fn recognize(&self, _: &[f32]) -> Option<RowSteps> {
        // A power of two that brings the largest number into place is tried by every fit, and loses nothing.
        None
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        for (block, d) in blocks.chunks_mut(BYTES).zip(steps.d.0) {
            block[0] = exponent(d);
        }
        let numbers: Vec<Codes> = codes.iter().map(|codes| codes.map(|p| bits(p as u8) as i8)).collect();
        put_nibbles(&numbers, 0, 16, blocks, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two_and_their_exponents_come_back() {
        for e in 0..=254 {
            let d = scale(e);
            assert_eq!(MXFP4.freedom().round_super(F::splat(d)), F::splat(d), "{e}");
            assert_eq!(exponent(d), e);
        }
    }
}
