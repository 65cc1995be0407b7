//! TQ2_0: 256 columns, a half-precision scale, three levels in two bits. `d·(q − 1)`.

use super::bits::{crumb, half_at};
use super::{Encoding, Format, Spec};

/// Two-bit ternary blocks, 2.0625 bits per weight.
pub struct Tq2_0;

const WIDTH: usize = 256;
const BYTES: usize = 66; // q: [u2; 256], d: f16
const _: () = assert!(BYTES == WIDTH / 4 + 2);

impl Format for Tq2_0 {
    fn spec(&self) -> Spec {
        Spec { name: "TQ2_0", id: 35, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 64);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * (f32::from(crumb(block, i)) - 1.0);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::ReadOnly
    }
}
