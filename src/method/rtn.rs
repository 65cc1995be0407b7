//! Rounding to nearest, with scales searched per block. Needs no calibration.

use super::{Method, Options, Prepared};
use crate::error::Result;
use crate::grid::{F, Grid, LANES};
use llmq_kernels::{column, lanes};
use rayon::prelude::*;

/// Round to nearest.
pub struct Rtn;

impl Method for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn calibrated(&self) -> bool {
        false
    }

    fn prepare(&self, _: &[f32], columns: usize, _: &Options) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(Plain { columns }))
    }
}

/// Plain rounding of rows of a given length. The last resort of calibrated methods, too.
pub struct Plain {
    pub columns: usize,
}

impl Prepared for Plain {
    fn quantize(&self, w: &[f32], grid: &dyn Grid) -> Vec<u8> {
        let (columns, width, bytes) = (self.columns, grid.width(), grid.bytes());
        let row_bytes = columns / width * bytes;
        let mut out = vec![0; w.len() / columns * row_bytes];
        let even = vec![F::splat(1.0); width];
        out.par_chunks_mut(LANES * row_bytes).zip(w.par_chunks(LANES * columns)).for_each(|(out, w)| {
            let mut block = vec![F::ZERO; width];
            let mut codes = vec![[0; LANES]; width];
            let mut blocks = vec![0; LANES * bytes];
            for (b, first) in (0..columns).step_by(width).enumerate() {
                lanes::gather(w, columns, first, &mut block);
                blocks.fill(0);
                grid.fit(&block, &even, &mut blocks);
                for (g, (w, codes)) in block.chunks(grid.group()).zip(codes.chunks_mut(grid.group())).enumerate() {
                    let (scale, offset) = grid.step(&blocks, g);
                    column::round(w, scale, offset, grid.levels(), codes);
                }
                grid.store(&codes, &mut blocks);
                scatter(&blocks, bytes, b, row_bytes, out);
            }
        });
        out
    }
}

/// Copies the blocks of sixteen lanes to block column `b` of as many rows as `out` holds.
pub fn scatter(blocks: &[u8], bytes: usize, b: usize, row_bytes: usize, out: &mut [u8]) {
    for (row, block) in out.chunks_mut(row_bytes).zip(blocks.chunks(bytes)) {
        row[b * bytes..(b + 1) * bytes].copy_from_slice(block);
    }
}
