//! IQ3_S: 256 columns in groups of 32, four at a time from a codebook, with all their signs. `d·(1 + 2s)·(±C[q])`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ3_S;
use super::signs::put;
use super::vector::{self, odd_scales, put_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Super-blocks of nine-bit places in a codebook, 3.4375 bits per weight.
pub struct Iq3S;

const WIDTH: usize = 256;
const BYTES: usize = 110; // d: f16, places' low bits: [u8; 64], ninth bits: [u1; 64], signs: [u1; 256], scales: [u4; 8]
const HIGH: usize = 66;
const SIGNS: usize = 74;
const SCALES: usize = 106;
const GROUP: usize = 32;
const _: () = assert!(HIGH == 2 + WIDTH / 4 && SIGNS == HIGH + WIDTH / 32);
const _: () = assert!(SCALES == SIGNS + WIDTH / 8 && BYTES == SCALES + WIDTH / 64);

/// Scales are odd multiples of it.
const UNIT: f32 = 1.0;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ3_S, Signs::Each));

impl Format for Iq3S {
    fn spec(&self) -> Spec {
        Spec { name: "IQ3_S", id: 21, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, out) in out.chunks_mut(4).enumerate() {
            let high = block[HIGH + e / 8] >> (e % 8) & 1;
            let place = usize::from(block[2 + e]) | usize::from(high) << 8;
            let scale = block[SCALES + e / 16] >> (e / 8 % 2 * 4) & 15;
            let d = d * (1.0 + 2.0 * f32::from(scale));
            put(d, &IQ3_S[place], block[SIGNS + e / 2] >> (e % 2 * 4), out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq3S)
    }
}

impl Grid for Iq3S {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -15, hi: 15 }
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
                block[HIGH + e / 8] |= ((found.place >> 8) as u8) << (e % 8);
                block[SIGNS + e / 2] |= found.signs << (e % 2 * 4);
            }
            put_scales(&mut block[SCALES..], UNIT, steps, l);
        }
    }
}
