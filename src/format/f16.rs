//! F16: IEEE half precision; refuses what lies beyond ±65504.

use super::{Encoding, Format};
use half::f16;

/// F16 numbers, one per block.
pub struct F16;

impl Format for F16 {
    fn name(&self) -> &'static str {
        "F16"
    }
    fn id(&self) -> u32 {
        1
    }
    fn width(&self) -> usize {
        1
    }
    fn bytes(&self) -> usize {
        2
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = f16::from_le_bytes([block[0], block[1]]).to_f32();
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&f16::from_f32(x).to_le_bytes()))
    }
}
