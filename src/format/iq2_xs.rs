//! IQ2_XS: 256 columns in groups of 16, eight at a time from a codebook, signs of even parity. `d·(½ + s)/4·(±C[q])`.

use super::bits::{half_at, put_halves};
use super::codebook::IQ2_XS;
use super::signs::{even, put};
use super::vector::{self, odd_scales, put_scales};
use super::{Encoding, Format, Spec};
use crate::grid::{Codebook, Codes, Effort, F, Freedom, Grid, Levels, RowSteps, Shape, Steps};
use llmq_kernels::codebook::Signs;
use std::sync::LazyLock;

/// Super-blocks of nine-bit places in a codebook, 2.3125 bits per weight.
pub struct Iq2Xs;

const WIDTH: usize = 256;
const BYTES: usize = 74; // d: f16, places and signs: [(u9, u7); 32], scales: [u4; 16]
const SCALES: usize = 66;
const GROUP: usize = 16;
const _: () = assert!(SCALES == 2 + WIDTH / 8 * 2 && BYTES == SCALES + WIDTH / 32);

/// Scales are odd multiples of it.
const UNIT: f32 = 0.125;

static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&IQ2_XS, Signs::Even));

impl Format for Iq2Xs {
    fn spec(&self) -> Spec {
        Spec { name: "IQ2_XS", id: 17, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (e, (pair, out)) in block[2..SCALES].chunks(2).zip(out.chunks_mut(8)).enumerate() {
            let pair = u16::from_le_bytes([pair[0], pair[1]]);
            let scale = block[SCALES + e / 4] >> (e / 2 % 2 * 4) & 15;
            let d = d * (0.5 + f32::from(scale)) * 0.25;
            put(d, &IQ2_XS[usize::from(pair & 511)], even(u32::from(pair >> 9)), out);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Iq2Xs)
    }
}

impl Grid for Iq2Xs {
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
            for (e, found) in vector::entries(&BOOK, codes, l).enumerate() {
                let pair = found.place | u16::from(found.signs & 127) << 9;
                block[2 + 2 * e..][..2].copy_from_slice(&pair.to_le_bytes());
            }
            put_scales(&mut block[SCALES..], UNIT, steps, l);
        }
    }
}
