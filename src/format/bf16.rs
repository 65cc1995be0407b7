//! BF16: the upper half of single precision, rounded to nearest even.

use super::{Encoding, Format};
use half::bf16;

/// BF16 numbers, one per block.
pub struct BF16;

impl Format for BF16 {
    fn name(&self) -> &'static str {
        "BF16"
    }
    fn id(&self) -> u32 {
        30
    }
    fn width(&self) -> usize {
        1
    }
    fn bytes(&self) -> usize {
        2
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()))
    }
}
