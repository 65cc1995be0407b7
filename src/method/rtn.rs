//! Rounding to nearest, with scales searched per block. Needs no calibration.

use super::{Method, Options, QuantizedMatrix, Site, Solution, Solved};
use crate::error::Result;
use crate::grid::{Codes, Effort, F, Grid, LANES, Steps};
use llmq_kernels::lanes;
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

    fn quantize(&self, site: &Site, _: &Options) -> Result<Solution> {
        let plain = Plain::new(site.columns, None);
        let round = |layer: &super::Layer| Solved { rounded: plain.round(layer.w, layer.grid), method: self.name() };
        Ok(Solution { scales: None, layers: site.layers.iter().map(round).collect(), notes: Vec::new() })
    }
}

/// Plain rounding of rows of a given length. The last resort of calibrated methods, too.
pub struct Plain {
    columns: usize,
    /// What the square of an error counts in each column: `[columns]`, in every lane.
    importance: Vec<F>,
    effort: Effort,
    recognize: bool,
}

impl Plain {
    /// `importance`: the mean square of each column's input, where it is known: `[columns]`.
    ///
    /// Without it the search is as short as the reward is small: there is nothing to weigh.
    pub fn new(columns: usize, importance: Option<&[f32]>) -> Plain {
        let mean = importance.map_or(0.0, |h| h.iter().sum::<f32>() / columns as f32);
        let weights = match importance {
            // An input that was never seen counts next to nothing, but not nothing: its weight should stay near its value.
            Some(h) if mean > 0.0 => h.iter().map(|h| F::splat((h / mean).max(1e-6))).collect(),
            _ => vec![F::splat(1.0); columns],
        };
        let effort = if importance.is_some() { Effort::Full } else { Effort::Quick };
        Plain { columns, importance: weights, effort, recognize: false }
    }

    /// Looks for rows that are on the grid already, which costs some time.
    pub fn recognizing(self, recognize: bool) -> Plain {
        Plain { recognize, ..self }
    }
}

impl Plain {
    /// The blocks of a weight matrix, row by row. `w`: `[rows, columns]`, all finite.
    pub fn quantize(&self, w: &[f32], grid: &dyn Grid) -> Vec<u8> {
        let (columns, width, bytes) = (self.columns, grid.width(), grid.bytes());
        let row_bytes = columns / width * bytes;
        let mut out = vec![0; w.len() / columns * row_bytes];
        out.par_chunks_mut(LANES * row_bytes).zip(w.par_chunks(LANES * columns)).for_each(|(out, w)| {
            let mut codes = vec![[0; LANES]; width];
            let mut blocks = vec![0; LANES * bytes];
            for b in 0..columns / width {
                let steps = self.block(w, b, grid, &mut codes);
                grid.store(&steps, &codes, &mut blocks);
                scatter(&blocks, bytes, b, row_bytes, out);
            }
        });
        out
    }

    /// The same before it becomes bytes.
    pub fn round(&self, w: &[f32], grid: &dyn Grid) -> QuantizedMatrix {
        let (columns, width) = (self.columns, grid.width());
        let mut out = QuantizedMatrix::new(w.len() / columns, columns, grid);
        out.parts(LANES).zip(w.par_chunks(LANES * columns)).for_each(|(part, w)| {
            for (b, (steps, codes)) in part.steps.iter_mut().zip(part.codes.chunks_mut(width)).enumerate() {
                *steps = self.block(w, b, grid, codes);
            }
        });
        out
    }

    /// Rounds block `b` of up to sixteen rows. `w`: `[rows, columns]`; `codes`: `[width]`.
    fn block(&self, w: &[f32], b: usize, grid: &dyn Grid, codes: &mut [Codes]) -> Steps {
        let (columns, width) = (self.columns, grid.width());
        let first = b * width;
        let mut block = vec![F::ZERO; width];
        lanes::gather(w, columns, first, &mut block);
        let importance = &self.importance[first..first + width];
        let mut steps = grid.fit(&block, importance, self.effort);
        if self.recognize {
            for (l, row) in w.chunks(columns).enumerate() {
                if let Some(found) = grid.recognize(&row[first..first + width]) {
                    steps.set_lane(l, &found);
                }
            }
        }
        grid.round(&block, importance, &steps, codes);
        steps
    }
}

/// Copies the blocks of sixteen lanes to block column `b` of as many rows as `out` holds.
pub fn scatter(blocks: &[u8], bytes: usize, b: usize, row_bytes: usize, out: &mut [u8]) {
    for (row, block) in out.chunks_mut(row_bytes).zip(blocks.chunks(bytes)) {
        row[b * bytes..(b + 1) * bytes].copy_from_slice(block);
    }
}
