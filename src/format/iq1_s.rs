//! IQ1_S: 256 columns in groups of 32, eight at a time from a ternary codebook, shifted. `d·(1 + 2s)·(C[q] ± ⅛)`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ1;
use super::vector::{self, odd_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Ternary super-blocks of eleven-bit places in a codebook, 1.5625 bits per weight.
pub struct Iq1S;

const WIDTH: usize = 256;
const BYTES: usize = 50; // d: f16, places' low bits: [u8; 32], per group: upper bits: [u3; 4], scale: u3, shift: u1
const GROUP: usize = 32;
const HIGH: usize = 34;
const _: () = assert!(HIGH == 2 + WIDTH / 8 && BYTES == HIGH + WIDTH / GROUP * 2);

/// Writes `d·(level ± ⅛)` for an entry of the codebook.
pub fn put_shifted(d: f32, levels: &[i8; 8], down: bool, out: &mut [f32]) {
    let shift = if down { -0.125 } else { 0.125 };
    for (x, &level) in out.iter_mut().zip(levels) {
        *x = d * (f32::from(level) + shift);
    }
}

/// Scales are odd multiples of it.
const UNIT: f32 = 1.0;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ1, Signs::None));

impl Format for Iq1S {
    fn spec(&self) -> Spec {
        Spec { name: "IQ1_S", id: 19, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (g, out) in out.chunks_mut(GROUP).enumerate() {
            let bits = u16::from_le_bytes([block[HIGH + 2 * g], block[HIGH + 2 * g + 1]]);
            let d = d * f32::from(1 + 2 * (bits >> 12 & 7));
            for (l, out) in out.chunks_mut(8).enumerate() {
                let place = u16::from(block[2 + 4 * g + l]) | (bits >> (3 * l) & 7) << 8;
                put_shifted(d, &IQ1[usize::from(place)], bits >> 15 == 1, out);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq1S)
    }
}

impl Grid for Iq1S {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -1, hi: 1 }
    }
    fn freedom(&self) -> Freedom {
        Freedom { one_super: true, ..odd_scales(UNIT, 8) }
    }
    fn codebook(&self) -> Option<&'static Codebook> {
        Some(&BOOK)
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        vector::fit(self, w, h, effort)
    }
    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        vector::recognize(self, x)
    }
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        put_halves(blocks, 0, steps.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            block[HIGH..].fill(0);
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                block[2 + e] = found.place as u8;
                let high = (found.place >> 8) << (3 * (e % 4));
                let at = HIGH + e / 4 * 2;
                block[at] |= high as u8;
                block[at + 1] |= (high >> 8) as u8;
            }
            for (g, word) in block[HIGH..].chunks_mut(2).enumerate() {
                // A minimum above zero is a shift down.
                let down = u8::from(steps.mins[g].0[l] > 0.0);
                word[1] |= vector::odd_place(UNIT, &steps.scales[g], l) << 4 | down << 7;
            }
        }
    }
}
