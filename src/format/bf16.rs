//! BF16: the upper half of single precision, rounded to nearest even.

use super::{Encoding, Format, Spec};
use half::bf16;
use llmq_kernels::convert;

/// BF16 numbers, one per block.
pub struct BF16;

impl Format for BF16 {
    fn spec(&self) -> Spec {
        Spec { name: "BF16", id: 30, width: 1, bytes: 2 }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }
    fn decode_blocks(&self, blocks: &[u8], out: &mut [f32]) {
        convert::bf16_to_f32(blocks, out);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()))
    }
}
