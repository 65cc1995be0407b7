//! IQ3_S: 256 columns in groups of 32, four at a time from a codebook, with all their signs. `d·(1 + 2s)·(±C[q])`.

use super::bits::half_at;
use super::codebook::IQ3_S;
use super::signs::put;
use super::{Encoding, Format, Spec};

/// Super-blocks of nine-bit places in a codebook, 3.4375 bits per weight.
pub struct Iq3S;

const WIDTH: usize = 256;
const BYTES: usize = 110; // d: f16, places' low bits: [u8; 64], ninth bits: [u1; 64], signs: [u1; 256], scales: [u4; 8]
const HIGH: usize = 66;
const SIGNS: usize = 74;
const SCALES: usize = 106;
const _: () = assert!(HIGH == 2 + WIDTH / 4 && SIGNS == HIGH + WIDTH / 32);
const _: () = assert!(SCALES == SIGNS + WIDTH / 8 && BYTES == SCALES + WIDTH / 64);

impl Format for Iq3S {
    fn spec(&self) -> Spec {
        Spec { name: "IQ3_S", id: 21, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, out) in out.chunks_mut(4).enumerate() {
            let high = block[HIGH + e / 8] >> (e % 8) & 1;
            let place = usize::from(block[2 + e]) | usize::from(high) << 8;
            let scale = block[SCALES + e / 16] >> (e / 8 % 2 * 4) & 15;
            let d = d * (1.0 + 2.0 * f32::from(scale));
            put(d, &IQ3_S[place], block[SIGNS + e / 2] >> (e % 2 * 4), out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
