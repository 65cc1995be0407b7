//! IQ3_XXS: 256 columns in groups of 32, four at a time from a codebook, signs of even parity. `d·(½ + s)/2·(±C[q])`.

use super::bits::half_at;
use super::codebook::IQ3_XXS;
use super::signs::{put, signs_and_scale};
use super::{Encoding, Format, Spec};

/// Super-blocks of eight-bit places in a codebook, 3.0625 bits per weight.
pub struct Iq3Xxs;

const WIDTH: usize = 256;
const BYTES: usize = 98; // d: f16, places: [u8; 64], per group: signs: [u7; 4], scale: u4
const GROUP: usize = 32;
const SIGNS: usize = 66;
const _: () = assert!(SIGNS == 2 + WIDTH / 4 && BYTES == SIGNS + WIDTH / GROUP * 4);

impl Format for Iq3Xxs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ3_XXS", id: 18, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (g, out) in out.chunks_mut(GROUP).enumerate() {
            let (signs, scale) = signs_and_scale(&block[SIGNS + 4 * g..]);
            let d = d * scale * 0.5;
            for (e, out) in out.chunks_mut(4).enumerate() {
                let place = block[2 + 8 * g + e];
                put(d, &IQ3_XXS[usize::from(place)], signs[e / 2] >> (e % 2 * 4), out);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
