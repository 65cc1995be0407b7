//! IQ2_XXS: 256 columns in groups of 32, eight at a time from a codebook, signs of even parity. `d·(½ + s)/4·(±C[q])`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ2_XXS;
use super::signs::{put, put_signs, signs_and_scale};
use super::vector::{self, odd_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Super-blocks of eight-bit places in a codebook, 2.0625 bits per weight.
pub struct Iq2Xxs;

const WIDTH: usize = 256;
const BYTES: usize = 66; // d: f16, per group: places: [u8; 4], signs: [u7; 4], scale: u4
const GROUP: usize = 32;
const _: () = assert!(BYTES == 2 + WIDTH / GROUP * 8);

/// Scales are odd multiples of it.
const UNIT: f32 = 0.125;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ2_XXS, Signs::Even));

impl Format for Iq2Xxs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_XXS", id: 16, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (group, out) in block[2..].chunks(8).zip(out.chunks_mut(GROUP)) {
            let (signs, scale) = signs_and_scale(&group[4..]);
            let d = d * scale * 0.25;
            for (l, out) in out.chunks_mut(8).enumerate() {
                put(d, &IQ2_XXS[usize::from(group[l])], signs[l], out);
            }
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq2Xxs)
    }
}

impl Grid for Iq2Xxs {
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
            block[2..].fill(0);
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                let group = &mut block[2 + e / 4 * 8..][..8];
                group[e % 4] = found.place as u8;
                put_signs(&mut group[4..], e % 4, found.signs);
            }
            for (g, group) in block[2..].chunks_mut(8).enumerate() {
                group[7] |= vector::odd_place(UNIT, &steps.scales[g], l) << 4;
            }
        }
    }
}
