//! F32: single precision.

use super::{Encoding, Format};

/// F32 numbers, one per block.
pub struct F32;

impl Format for F32 {
    fn name(&self) -> &'static str {
        "F32"
    }
    fn id(&self) -> u32 {
        0
    }
    fn width(&self) -> usize {
        1
    }
    fn bytes(&self) -> usize {
        4
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }
    fn encoding(&self) -> Encoding {
        Encoding::Each(|x, out| out.copy_from_slice(&x.to_le_bytes()))
    }
}
