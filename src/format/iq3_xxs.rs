//! IQ3_XXS: 256 columns in groups of 32, four at a time from a codebook, signs of even parity. `d·(½ + s)/2·(±C[q])`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ3_XXS;
use super::signs::{put, put_signs, signs_and_scale};
use super::vector::{self, odd_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Super-blocks of eight-bit places in a codebook, 3.0625 bits per weight.
pub struct Iq3Xxs;

const WIDTH: usize = 256;
const BYTES: usize = 98; // d: f16, places: [u8; 64], per group: signs: [u7; 4], scale: u4
const GROUP: usize = 32;
const SIGNS: usize = 66;
const _: () = assert!(SIGNS == 2 + WIDTH / 4 && BYTES == SIGNS + WIDTH / GROUP * 4);

/// Scales are odd multiples of it.
const UNIT: f32 = 0.25;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ3_XXS, Signs::Even));

impl Format for Iq3Xxs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ3_XXS", id: 18, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (g, out) in out.chunks_mut(GROUP).enumerate() {
            let (signs, scale) = signs_and_scale(&block[SIGNS + 4 * g..]);
            let d = d * scale * 0.5;
            for (e, out) in out.chunks_mut(4).enumerate() {
                let place = block[2 + 8 * g + e];
                put(d, &IQ3_XXS[usize::from(place)], signs[e / 2] >> (e % 2 * 4), out);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq3Xxs)
    }
}

impl Grid for Iq3Xxs {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -62, hi: 62 }
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
            block[SIGNS..].fill(0);
            let mut first = 0;
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                block[2 + e] = found.place as u8;
                // Two entries share eight signs.
                match e % 2 {
                    0 => first = found.signs,
                    _ => put_signs(&mut block[SIGNS + e / 8 * 4..][..4], e / 2 % 4, first | found.signs << 4),
                }
            }
            for (g, word) in block[SIGNS..].chunks_mut(4).enumerate() {
                word[3] |= vector::odd_place(UNIT, &steps.scales[g], l) << 4;
            }
        }
    }
}
