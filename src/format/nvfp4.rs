//! NVFP4: 64 columns in groups of 16, eight-bit floating-point scales, four-bit floating-point numbers.

use super::{Encoding, Format, Spec};

/// NVIDIA's four-bit blocks, 4.5 bits per weight.
pub struct NVFP4;

const WIDTH: usize = 64;
const BYTES: usize = 36; // scales: [u8; 4], sign and magnitude: [u4; 64]
const GROUP: usize = 16;
const _: () = assert!(BYTES == WIDTH / GROUP + WIDTH / 2);

/// Twice the magnitudes that two bits of exponent and one of mantissa make.
static MAGNITUDES: [i8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

/// Twice the number of four bits, the sign in front. There is no negative zero: ggml's table holds integers.
fn doubled(bits: u8) -> f32 {
    let magnitude = MAGNITUDES[usize::from(bits & 7)];
    f32::from(if bits & 8 == 0 { magnitude } else { -magnitude })
}

/// Half the scale, because the numbers are doubled: four bits of exponent, three of mantissa; the uppermost is ignored.
fn scale(bits: u8) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 15, f32::from(bits & 7));
    match (bits, exponent) {
        // Not a number, which ggml reads as zero, though only without the uppermost bit.
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 119) << 23),
    }
}

impl Format for NVFP4 {
    fn spec(&self) -> Spec {
        Spec { name: "NVFP4", id: 40, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        for (g, out) in out.chunks_mut(GROUP).enumerate() {
            let d = scale(block[g]);
            let bytes = &block[4 + 8 * g..];
            for (i, x) in out.iter_mut().enumerate() {
                *x = d * doubled(bytes[i % 8] >> (i / 8 * 4) & 15);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
