//! Q2_K: 256 columns in groups of 16, two-bit codes, four-bit scales and minima. `d·sc·q − dmin·m`.

use super::bits::{crumb, half_at, halves_at, put_crumbs, put_half, put_halves};
use super::lattice::super_affine;
use super::superblock::fit_affine;
use super::{Encoding, Format, Spec};
use crate::grid::{Codes, Effort, F, Grid, Levels, Shape};

/// Asymmetric two-bit super-blocks, 2.625 bits per weight.
pub struct Q2K;

const WIDTH: usize = 256;
const BYTES: usize = 84; // scales and minima: [(u4, u4); 16], q: [u2; 256], d: f16, dmin: f16
const GROUP: usize = 16;
const _: () = assert!(BYTES == WIDTH / GROUP + WIDTH / 4 + 4);

/// Writes scale and minimum of every group.
fn put_pairs(block: &mut [u8], pair: impl Fn(usize) -> (u8, u8)) {
    for (g, byte) in block[..16].iter_mut().enumerate() {
        let (scale, min) = pair(g);
        *byte = scale | min << 4;
    }
}

impl Format for Q2K {
    fn spec(&self) -> Spec {
        Spec { name: "Q2_K", id: 10, width: WIDTH, bytes: BYTES }
    }
    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        for (i, x) in out.iter_mut().enumerate() {
            let pair = block[i / GROUP];
            *x = d * f32::from(pair & 15) * f32::from(crumb(&block[16..], i)) - dmin * f32::from(pair >> 4);
        }
    }
    fn encoding(&self) -> Encoding {
        Encoding::Grid(&Q2K)
    }
}

impl Grid for Q2K {
    fn shape(&self) -> Shape {
        Shape { width: WIDTH, group: GROUP, bytes: BYTES }
    }
    fn levels(&self) -> Levels {
        Levels::Uniform { lo: 0, hi: 3 }
    }
    fn fit(&self, w: &[F], h: &[F], effort: Effort, blocks: &mut [u8]) {
        let fit = fit_affine::<{ WIDTH / GROUP }>(w, h, self.levels(), effort, 15.0);
        put_halves(blocks, 80, fit.d);
        put_halves(blocks, 82, fit.dmin);
        for (l, block) in blocks.chunks_mut(BYTES).enumerate() {
            put_pairs(block, |g| (fit.scales[g].0[l] as u8, fit.mins[g].0[l] as u8));
        }
    }
    fn recognize(&self, x: &[f32], block: &mut [u8]) -> bool {
        let Some(found) = super_affine::<{ WIDTH / GROUP }>(x, 3, 15) else { return false };
        put_half(block, 80, found.d);
        put_half(block, 82, found.dmin);
        put_pairs(block, |g| (found.scales[g] as u8, found.mins[g] as u8));
        true
    }
    fn step(&self, blocks: &[u8], g: usize) -> (F, F) {
        let scale = F(std::array::from_fn(|l| f32::from(blocks[l * BYTES + g] & 15)));
        let min = F(std::array::from_fn(|l| f32::from(blocks[l * BYTES + g] >> 4)));
        (halves_at(blocks, 80) * scale, -(halves_at(blocks, 82) * min))
    }
    fn store(&self, codes: &[Codes], blocks: &mut [u8]) {
        put_crumbs(codes, 0, blocks, 16);
    }
}
