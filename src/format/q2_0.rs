//! Q2_0: 64 columns, a half-precision scale, four levels in two bits, side by side. `d·(q − 1)`.

use super::bits::half_at;
use super::{Encoding, Format, Spec};

/// Two-bit blocks, 2.25 bits per weight.
pub struct Q2_0;

const WIDTH: usize = 64;
const BYTES: usize = 18; // d: f16, q: [u2; 64]
const _: () = assert!(BYTES == 2 + WIDTH / 4);

impl Format for Q2_0 {
    fn spec(&self) -> Spec {
        Spec { name: "Q2_0", id: 42, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * (f32::from(block[2 + i / 4] >> (i % 4 * 2) & 3) - 1.0);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
