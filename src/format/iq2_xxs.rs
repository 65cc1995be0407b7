//! IQ2_XXS: 256 columns in groups of 32, eight at a time from a codebook, signs of even parity. `d·(½ + s)/4·(±C[q])`.

use super::bits::half_at;
use super::codebook::IQ2_XXS;
use super::signs::{put, signs_and_scale};
use super::{Encoding, Format, Spec};

/// Super-blocks of eight-bit places in a codebook, 2.0625 bits per weight.
pub struct Iq2Xxs;

const WIDTH: usize = 256;
const BYTES: usize = 66; // d: f16, per group: places: [u8; 4], signs: [u7; 4], scale: u4
const GROUP: usize = 32;
const _: () = assert!(BYTES == 2 + WIDTH / GROUP * 8);

impl Format for Iq2Xxs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_XXS", id: 16, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (group, out) in block[2..].chunks(8).zip(out.chunks_mut(GROUP)) {
            let (signs, scale) = signs_and_scale(&group[4..]);
            let d = d * scale * 0.25;
            for (l, out) in out.chunks_mut(8).enumerate() {
                put(d, &IQ2_XXS[usize::from(group[l])], signs[l], out);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
