//! Q1_0: 128 columns, a half-precision scale, signs. `±d`.

use super::bits::half_at;
use super::{Encoding, Format, Spec};

/// One-bit blocks, 1.125 bits per weight.
pub struct Q1_0;

const WIDTH: usize = 128;
const BYTES: usize = 18; // d: f16, q: [u1; 128]
const _: () = assert!(BYTES == 2 + WIDTH / 8);

impl Format for Q1_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q1_0", id: 41, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
