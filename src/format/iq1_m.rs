//! IQ1_M: 256 columns in groups of 16, eight at a time from the codebook of IQ1_S, each shifted by itself.
//! `d·(1 + 2s)·(C[q] ± ⅛)`.

use super::codebook::IQ1;
use super::iq1_s::put_shifted;
use super::vector::{self, odd_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use half::f16;
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Ternary super-blocks of eleven-bit places in a codebook, 1.75 bits per weight.
pub struct Iq1M;

const WIDTH: usize = 256;
const BYTES: usize = 56; // places' low bits: [u8; 32], (upper bits, shift): [(u3, u1); 32], [scales: [u3; 4], d: u4; 4]
const GROUP: usize = 16;
const HIGH: usize = 32;
const SCALES: usize = 48;
const _: () = assert!(HIGH == WIDTH / 8 && SCALES == HIGH + WIDTH / 16 && BYTES == SCALES + WIDTH / GROUP / 4 * 2);

/// Scales are odd multiples of it.
const UNIT: f32 = 0.125;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ1, Signs::Shifted));

impl Format for Iq1M {
    fn spec(&self) -> Spec {
        Spec { name: "IQ1_M", id: 29, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let words: [u16; 4] =
            std::array::from_fn(|k| u16::from_le_bytes([block[SCALES + 2 * k], block[SCALES + 2 * k + 1]]));
        // The half-precision scale lies in the top nibbles, its lowest one first.
        let d = words.iter().rev().fold(0, |bits, word| bits << 4 | word >> 12);
        let d = f16::from_bits(d).to_f32();
        for (e, out) in out.chunks_mut(8).enumerate() {
            let g = e / 2;
            let d = d * f32::from(1 + 2 * (words[g / 4] >> (3 * (g % 4)) & 7));
            let bits = block[HIGH + e / 2] >> (e % 2 * 4);
            let place = usize::from(block[e]) | usize::from(bits & 7) << 8;
            put_shifted(d, &IQ1[place], bits & 8 != 0, out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq1M)
    }
}

impl Grid for Iq1M {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -9, hi: 9 }
    }
    fn freedom(&self) -> Freedom {
        odd_scales(UNIT, 8)
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
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            block[HIGH..].fill(0);
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                block[e] = found.place as u8;
                let high = (found.place >> 8) as u8 | u8::from(found.down) << 3;
                block[HIGH + e / 2] |= high << (e % 2 * 4);
            }
            let d = f16::from_f32(steps.d.0[l]).to_bits();
            for (k, word) in block[SCALES..].chunks_mut(2).enumerate() {
                let scale = |i: usize| u16::from(vector::odd_place(UNIT, &steps.scales[4 * k + i], l)) << (3 * i);
                let scales = (0..4).fold(d >> (4 * k) << 12, |word, i| word | scale(i));
                word.copy_from_slice(&scales.to_le_bytes());
            }
        }
    }
}
