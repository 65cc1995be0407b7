//! F16: IEEE half precision; refuses what lies beyond ±65504.

use super::{Encoding, Format, Spec};
use half::f16;
use llmq_kernels::convert;

/// F16 numbers, one per block.
pub struct F16;

impl Format for F16 {
    fn spec(&self) -> Spec {
        Spec { name: "F16", id: 1, width: 1, bytes: 2 }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = f16::from_le_bytes([block[0], block[1]]).to_f32();
    }
    fn decode_blocks(&self, blocks: &[u8], out: &mut [f32]) {
        convert::f16_to_f32(blocks, out);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&f16::from_f32(x).to_le_bytes()))
    }
}
