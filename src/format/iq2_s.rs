//! IQ2_S: 256 columns in groups of 16, eight at a time from a codebook, with all their signs. `d·(½ + s)/4·(±C[q])`.

use super::bits::half_at;
use super::codebook::IQ2_S;
use super::signs::put;
use super::{Encoding, Format, Spec};

/// Super-blocks of ten-bit places in a codebook, 2.5625 bits per weight.
pub struct Iq2S;

const WIDTH: usize = 256;
const BYTES: usize = 82; // d: f16, places' low bits: [u8; 32], signs: [u1; 256], upper bits: [u2; 32], scales: [u4; 16]
const SIGNS: usize = 34;
const HIGH: usize = 66;
const SCALES: usize = 74;
const _: () = assert!(SIGNS == 2 + WIDTH / 8 && HIGH == SIGNS + WIDTH / 8);
const _: () = assert!(SCALES == HIGH + WIDTH / 32 && BYTES == SCALES + WIDTH / 32);

impl Format for Iq2S {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_S", id: 22, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, out) in out.chunks_mut(8).enumerate() {
            let high = block[HIGH + e / 4] >> (e % 4 * 2) & 3;
            let place = usize::from(block[2 + e]) | usize::from(high) << 8;
            let scale = block[SCALES + e / 4] >> (e / 2 % 2 * 4) & 15;
            let d = d * (0.5 + f32::from(scale)) * 0.25;
            put(d, &IQ2_S[place], block[SIGNS + e], out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
