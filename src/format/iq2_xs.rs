//! IQ2_XS: 256 columns in groups of 16, eight at a time from a codebook, signs of even parity. `d·(½ + s)/4·(±C[q])`.

use super::bits::half_at;
use super::codebook::IQ2_XS;
use super::signs::{even, put};
use super::{Encoding, Format, Spec};

/// Super-blocks of nine-bit places in a codebook, 2.3125 bits per weight.
pub struct Iq2Xs;

const WIDTH: usize = 256;
const BYTES: usize = 74; // d: f16, places and signs: [(u9, u7); 32], scales: [u4; 16]
const SCALES: usize = 66;
const _: () = assert!(SCALES == 2 + WIDTH / 8 * 2 && BYTES == SCALES + WIDTH / 32);

impl Format for Iq2Xs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_XS", id: 17, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, (pair, out)) in block[2..SCALES].chunks(2).zip(out.chunks_mut(8)).enumerate() {
            let pair = u16::from_le_bytes([pair[0], pair[1]]);
            let scale = block[SCALES + e / 4] >> (e / 2 % 2 * 4) & 15;
            let d = d * (0.5 + f32::from(scale)) * 0.25;
            put(d, &IQ2_XS[usize::from(pair & 511)], even(u32::from(pair >> 9)), out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
