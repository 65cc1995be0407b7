//! Q5_K: 256 columns in groups of 32, five-bit codes, six-bit scales and minima. `d·sc·q − dmin·m`.

use super::bits::{half_at, halves_at, put_half, put_halves};
use super::lattice::super_affine;
use super::sixes::{put_sixes, sixes};
use super::superblock::fit_affine;
use super::{Encoding, Format, Spec};
use crate::grid::{Codes, Effort, F, Grid, LANES, Levels, Shape};

/// Asymmetric five-bit super-blocks, 5.5 bits per weight.
pub struct Q5K;

const WIDTH: usize = 256;
const BYTES: usize = 176; // d: f16, dmin: f16, scales and minima: [u6; 16], fifth bits: [u1; 256], q: [u4; 256]
const GROUP: usize = 32;
const _: () = assert!(BYTES == 4 + 12 + WIDTH / 8 + WIDTH / 2);

impl Format for Q5K {
    fn spec(&self) -> Spec {
        Spec { name: "Q5_K", id: 13, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        for (i, x) in out.iter_mut().enumerate() {
            let (scale, min) = sixes(&block[4..], i / GROUP);
            let byte = block[48 + i / 64 * 32 + i % 32];
            let low = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
            let q = low | (block[16 + i % 32] >> (i / 32) & 1) << 4;
            *x = d * f32::from(scale) * f32::from(q) - dmin * f32::from(min);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q5K)
    }
}

impl Grid for Q5K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 31 }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort, blocks: &mut [u8]) {
        let fit = fit_affine::<{ WIDTH / GROUP }>(w, h, self.levels(), effort, 63.0);
        put_halves(blocks, 0, fit.d);
        put_halves(blocks, 2, fit.dmin);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            put_sixes(&mut block[4..], |g| (fit.scales[g].0[l] as u8, fit.mins[g].0[l] as u8));
        }
    }
    fn recognize(&self, x: &[f32], block: &mut [u8]) -> bool {
        let Some(found) = super_affine::<{ WIDTH / GROUP }>(x, 31, 63) else { return false };
        put_half(block, 0, found.d);
        put_half(block, 2, found.dmin);
        put_sixes(&mut block[4..], |g| (found.scales[g] as u8, found.mins[g] as u8));
        true
    }
    fn step(&self, blocks: &[u8], g: usize) -> (F, F) {
        let pair = |l: usize| sixes(&blocks[l * BYTES + 4..], g);
        let scale = F(std::array::from_fn(|l| f32::from(pair(l).0)));
        let min = F(std::array::from_fn(|l| f32::from(pair(l).1)));
        (halves_at(blocks, 0) * scale, -(halves_at(blocks, 2) * min))
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        for l in 0..LANES {
            let block = &mut blocks[l * BYTES..(l + 1) * BYTES];
            for (at, byte) in block[16..48].iter_mut().enumerate() {
                *byte = (0..8).fold(0, |bits, g| bits | (codes[32 * g + at][l] as u8 >> 4) << g);
            }
            for (at, byte) in block[48..].iter_mut().enumerate() {
                let i = at / 32 * 64 + at % 32;
                *byte = codes[i][l] as u8 & 15 | (codes[i + 32][l] as u8 & 15) << 4;
            }
        }
    }
}
