//! F32: single precision.

use super::{Encoding, Format, Spec};
use llmq_kernels::convert;

/// F32 numbers, one per block.
pub struct F32;

impl Format for F32 {
    fn spec(&self) -> Spec {
        Spec { name: "F32", id: 0, width: 1, bytes: 4 }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }
    fn decode_blocks(&self, blocks: &[u8], out: &mut [f32]) {
        convert::f32_to_f32(blocks, out);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&x.to_le_bytes()))
    }
}
