//! Q6_K: 256 columns in groups of 16, six-bit codes, eight-bit scales. `d·sc·(q − 32)`.

use super::bits::{half_at, halves_at, put_half, put_halves};
use super::lattice::{self, super_symmetric};
use super::superblock::fit_symmetric;
use super::{Encoding, Format, Spec};
use crate::grid::{Codes, Effort, F, Grid, LANES, Levels, Shape};

/// Symmetric six-bit super-blocks, 6.5625 bits per weight.
pub struct Q6K;

const WIDTH: usize = 256;
const BYTES: usize = 210; // low nibbles: [u4; 256], high crumbs: [u2; 256], scales: [i8; 16], d: f16
const GROUP: usize = 16;
const SCALES: usize = 192;
const D: usize = 208;
const _: () = assert!(D == SCALES + WIDTH / GROUP && SCALES == WIDTH / 2 + WIDTH / 4 && BYTES == D + 2);

impl Format for Q6K {
    fn spec(&self) -> Spec {
        Spec { name: "Q6_K", id: 14, width: WIDTH, bytes: BYTES }
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
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: -32, hi: 31 }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort, blocks: &mut [u8]) {
        let fit = fit_symmetric::<{ WIDTH / GROUP }>(w, h, self.levels(), effort, -128.0, 127.0);
        put_halves(blocks, D, fit.d);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            for (g, scale) in fit.scales.iter().enumerate() {
                block[SCALES + g] = scale.0[l] as i8 as u8;
            }
        }
    }
    fn recognize(&self, x: &[f32], block: &mut [u8]) -> bool {
        let codes = lattice::Codes::Between(-32, 31);
        let Some(found) = super_symmetric::<{ WIDTH / GROUP }>(x, codes, -128, 127) else { return false };
        put_half(block, D, found.d);
        block[SCALES..D].iter_mut().zip(found.scales).for_each(|(byte, scale)| *byte = scale as i8 as u8);
        true
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
