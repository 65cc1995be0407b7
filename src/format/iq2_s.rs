//! IQ2_S: 256 columns in groups of 16, eight at a time from a codebook, with all their signs. `d·(½ + s)/4·(±C[q])`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ2_S;
use super::signs::put;
use super::vector::{self, odd_scales, put_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Super-blocks of ten-bit places in a codebook, 2.5625 bits per weight.
pub struct Iq2S;

const WIDTH: usize = 256;
const BYTES: usize = 82; // d: f16, places' low bits: [u8; 32], signs: [u1; 256], upper bits: [u2; 32], scales: [u4; 16]
const SIGNS: usize = 34;
const HIGH: usize = 66;
const SCALES: usize = 74;
const GROUP: usize = 16;
const _: () = assert!(SIGNS == 2 + WIDTH / 8 && HIGH == SIGNS + WIDTH / 8);
const _: () = assert!(SCALES == HIGH + WIDTH / 32 && BYTES == SCALES + WIDTH / 32);

/// Scales are odd multiples of it.
const UNIT: f32 = 0.125;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ2_S, Signs::Each));

impl Format for Iq2S {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_S", id: 22, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, out) in out.chunks_mut(8).enumerate() {
            let high = block[HIGH + e / 4] >> (e % 4 * 2) & 3;
            let place = usize::from(block[2 + e]) | usize::from(high) << 8;
            let scale = block[SCALES + e / 4] >> (e / 2 % 2 * 4) & 15;
            let d = d * (0.5 + f32::from(scale)) * 0.25;
            put(d, &IQ2_S[place], block[SIGNS + e], out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq2S)
    }
}

impl Grid for Iq2S {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -43, hi: 43 }
    }
    fn freedom(&self) -> Freedom {
        odd_scales(UNIT, 16)
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
            block[HIGH..SCALES].fill(0);
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                block[2 + e] = found.place as u8;
                block[HIGH + e / 4] |= ((found.place >> 8) as u8) << (e % 4 * 2);
                block[SIGNS + e] = found.signs;
            }
            put_scales(&mut block[SCALES..], UNIT, steps, l);
        }
    }
}
