//! Q6_K: 256 columns in groups of 16, six-bit codes, eight-bit scales. `d·sc·(q − 32)`.

use super::bits::{half_at, halves_at, put_halves};
use super::superblock::fit_symmetric;
use super::{Encoding, Format};
use crate::grid::{Codes, F, Grid, LANES, Levels};

/// Symmetric six-bit super-blocks, 6.5625 bits per weight.
pub struct Q6K;

const WIDTH: usize = 256;
const BYTES: usize = 210; // low nibbles: [u4; 256], high crumbs: [u2; 256], scales: [i8; 16], d: f16
const GROUP: usize = 16;
const SCALES: usize = 192;
const D: usize = 208;
const _: () = assert!(D == SCALES + WIDTH / GROUP && SCALES == WIDTH / 2 + WIDTH / 4 && BYTES == D + 2);

impl Format for Q6K {
    fn name(&self) -> &'static str {
        "Q6_K"
    }
    fn id(&self) -> u32 {
        14
    }
    fn width(&self) -> usize {
        WIDTH
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let d = half_at(block, D);
        for (i, x) in out.iter_mut().enumerate() {
            let (half, l) = (i / 128, i % 128);
            let byte = block[half * 64 + l % 64];
            let low = if l < 64 { byte & 15 } else { byte >> 4 };
            let high = block[128 + half * 32 + l % 32] >> (l / 32 * 2) & 3;
            let q = f32::from(low | high << 4) - 32.0;
            *x = d * f32::from(block[SCALES + i / GROUP] as i8) * q;
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q6K)
    }
}

impl Grid for Q6K {
    fn width(&self) -> usize {
        WIDTH
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    fn group(&self) -> usize {
        GROUP
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -32, hi: 31 }
    }
    fn fit(&self, w: &[F], h: &[F], blocks: &mut [u8]) {
        let fit = fit_symmetric::<{ WIDTH / GROUP }>(w, h, self.levels(), -128.0, 127.0);
        put_halves(blocks, D, fit.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (g, scale) in fit.scales.iter().enumerate() {
                block[SCALES + g] = scale.0[l] as i8 as u8;
            }
        }
    }
    fn step(&self, blocks: &[u8], g: usize) -> (F, F) {
        let scale = F(std::array::from_fn(|l| f32::from(blocks[l * BYTES + SCALES + g] as i8)));
        (halves_at(blocks, D) * scale, F::ZERO)
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        for l in 0..LANES {
            let block = &mut blocks[l * BYTES..(l + 1) * BYTES];
            let q = |i: usize| (codes[i][l] + 32) as u8;
            for (at, byte) in block[..128].iter_mut().enumerate() {
                let i = at / 64 * 128 + at % 64;
                *byte = q(i) & 15 | (q(i + 64) & 15) << 4;
            }
            for (at, byte) in block[128..SCALES].iter_mut().enumerate() {
                let i = at / 32 * 128 + at % 32;
                *byte = (0..4).fold(0, |bits, k| bits | (q(i + 32 * k) >> 4) << (2 * k));
            }
        }
    }
}
