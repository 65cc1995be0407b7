//! MXFP4: 32 columns, a power of two, four-bit floating-point numbers (OCP Microscaling Formats 1.0).

use super::bits::{each_nibble, put_nibbles};
use super::{Encoding, Format, Spec};
use crate::grid::{Codes, Effort, F, Grid, LANES, Levels, Shape};
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
    fn fit(&self, w: &[F], h: &[F], _: Effort, blocks: &mut [u8]) {
        let mut largest = F::ZERO;
        for w in w {
            largest = largest.max(w.abs());
        }
        // The exponent that brings the largest entry between 8 and 16, the one below and the one above.
        let natural = |x: f32| (x.to_bits() >> 23) as i32 - 2;
        let (mut best, mut least) = ([0u8; LANES], F::splat(f32::INFINITY));
        for step in [0, 1, -1] {
            let exponents = largest.0.map(|x| (natural(x) + step).clamp(0, 254) as u8);
            let error = search::error(w, h, F(exponents.map(scale)), F::ZERO, self.levels());
            for l in 0..LANES {
                if error.0[l] < least.0[l] {
                    (best[l], least.0[l]) = (exponents[l], error.0[l]);
                }
            }
        }
        for (block, exponent) in blocks.chunks_mut(BYTES).zip(best) {
            block[0] = exponent;
        }
    }
    fn recognize(&self, _: &[f32], _: &mut [u8]) -> bool {
        // A power of two that brings the largest number into place is tried by every fit, and loses nothing.
        false
    }
    fn step(&self, blocks: &[u8], _: usize) -> (F, F) {
        (F(std::array::from_fn(|l| scale(blocks[l * BYTES]))), F::ZERO)
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        let numbers: Vec<Codes> = codes.iter().map(|codes| codes.map(|p| bits(p as u8) as i8)).collect();
        put_nibbles(&numbers, 0, blocks, 1);
    }
}
