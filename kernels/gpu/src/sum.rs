//! Sums of outer products that stay on the device until they are asked for.

use crate::error::Result;
use crate::gpu::{Gpu, Held, Last, at_once};
use crate::kernels::Kernel;
use crate::matrix::{bands, stride};
use std::sync::Arc;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 20;

/// Which numbers of a sum are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// Those on and below the diagonal, of `XᵀX`.
    Lower,
}

/// `C = Σ AᵀB`, `[rows, columns]`, in bands of rows that a kernel sees at once.
pub struct Sum {
    gpu: Arc<Gpu>,
    rows: usize,
    columns: usize,
    part: Part,
    each: usize,
    bands: Vec<Held>, // [each, stride]
}

impl Sum {
    /// Zeros. Of [`Part::Lower`] a square.
    ///
    /// # Errors
    /// There is no room, or the device fails.
    ///
    /// # Panics
    /// If half of what is no square is wanted.
    pub fn new(gpu: &Arc<Gpu>, rows: usize, columns: usize, part: Part) -> Result<Sum> {
        assert!(part == Part::Whole || rows == columns, "half of {rows} x {columns}");
        let wide = stride(columns);
        let each = gpu.rows_of(wide)?;
        let all = bands(rows, each).map(|rows| gpu.buffer(4 * (rows.len() * wide) as u64));
        let bands = all.collect::<Result<Vec<Held>>>()?;
        Ok(Sum { gpu: gpu.clone(), rows, columns, part, each, bands })
    }

    /// Adds `AᵀB`, or `AᵀA` where there is no `b`. `a`: `[tokens, rows]`; `b`: `[tokens, columns]`.
    ///
    /// # Errors
    /// There is no room for the operands, or the device fails. What is in the sum then means nothing.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn add(&mut self, a: &[f32], b: Option<&[f32]>) -> Result<()> {
        let (gpu, m, n) = (&self.gpu, self.rows, self.columns);
        let tokens = a.len() / m.max(1);
        assert_eq!((a.len(), b.unwrap_or(a).len()), (tokens * m, tokens * n), "shapes of a sum of outer products");
        if tokens == 0 || n == 0 {
            return Ok(());
        }
        let (a_wide, b_wide) = (stride(m), stride(n));
        let each = gpu.rows_of(a_wide.max(b_wide))?;
        gpu.work(|scratch| {
            let mut rest = b.map(|b| b.chunks(each * n));
            for a in a.chunks(each * m) {
                let tokens = a.len() / m;
                let (left, right, _, _, last) = scratch.parts();
                let own = gpu.room(left, 4 * (tokens * a_wide) as u64)?;
                gpu.write(own, a, m, a_wide);
                let other = match rest.as_mut().and_then(Iterator::next) {
                    Some(b) => {
                        let other = gpu.room(right, 4 * (tokens * b_wide) as u64)?;
                        gpu.write(other, b, n, b_wide);
                        other
                    }
                    None => own,
                };
                self.accumulate(last, own, other, tokens)?;
            }
            Ok(())
        })
    }

    /// Adds `AᵀB`. `a`: `[tokens, stride of rows]`; `b`: `[tokens, stride of columns]`.
    fn accumulate(&self, last: &mut Last, a: &Held, b: &Held, tokens: usize) -> Result<()> {
        let (gpu, n) = (&self.gpu, self.columns);
        let quads = [self.rows, n].map(|wide| (stride(wide) / 4) as u32);
        for (band, rows) in self.bands.iter().zip(bands(self.rows, self.each)) {
            let (pipeline, tile) = gpu.pipelines.get(Kernel::Outer, rows.len(), n);
            let most = at_once(n, tokens, tile).min(gpu.groups() * tile);
            for first in (0..rows.len()).step_by(most) {
                let lower = u32::from(self.part == Part::Lower);
                let (start, top) = (rows.start as u32, (first / tile) as u32);
                let params = [tokens as u32, quads[0], quads[1], rows.len() as u32, start, top, lower];
                let groups = (n.div_ceil(tile), most.min(rows.len() - first).div_ceil(tile));
                gpu.dispatch(last, pipeline, &[a, b, band], &params, groups)?;
            }
        }
        Ok(())
    }

    /// Adds the outer products of so many rows of whatever is there, some times over, for benchmarks: no number reaches the device.
    ///
    /// # Errors
    /// There is no room, or the device fails.
    #[doc(hidden)]
    pub fn spin(&mut self, tokens: usize, times: usize) -> Result<()> {
        let gpu = &self.gpu;
        gpu.work(|scratch| {
            let (left, right, _, staging, last) = scratch.parts();
            let a = gpu.room(left, 4 * (tokens * stride(self.rows)) as u64)?;
            let b = gpu.room(right, 4 * (tokens * stride(self.columns)) as u64)?;
            (0..times).try_for_each(|_| self.accumulate(last, a, b, tokens))?;
            // Waits for all of it.
            gpu.read(staging, a, &[(0, 4)], |_| ())
        })
    }

    /// Shows each row in turn: `show(row, its numbers)`. Of [`Part::Lower`] what is above the diagonal means nothing.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self, mut show: impl FnMut(usize, &[f32])) -> Result<()> {
        let (gpu, wide) = (&self.gpu, stride(self.columns));
        gpu.work(|scratch| {
            let (.., staging, _) = scratch.parts();
            for (band, rows) in self.bands.iter().zip(bands(self.rows, self.each)) {
                let at_once = (PIECE / (4 * wide as u64)).max(1) as usize;
                for piece in bands(rows.len(), at_once) {
                    let range = (4 * (piece.start * wide) as u64, 4 * (piece.len() * wide) as u64);
                    gpu.read(staging, band, &[range], |found| {
                        for (i, row) in found.chunks(wide).enumerate() {
                            show(rows.start + piece.start + i, &row[..self.columns]);
                        }
                    })?;
                }
            }
            Ok(())
        })
    }

    /// The numbers on its diagonal so far.
    ///
    /// # Errors
    /// The device fails.
    pub fn diagonal(&self) -> Result<Vec<f32>> {
        let (gpu, wide) = (&self.gpu, stride(self.columns));
        gpu.work(|scratch| {
            let (.., staging, _) = scratch.parts();
            let mut all = Vec::new();
            for (band, rows) in self.bands.iter().zip(bands(self.rows, self.each)) {
                let place = |i: usize| (4 * (i * wide + rows.start + i) as u64, 4);
                let ranges: Vec<(u64, u64)> =
                    (0..rows.len().min(self.columns.saturating_sub(rows.start))).map(place).collect();
                if !ranges.is_empty() {
                    gpu.read(staging, band, &ranges, |found| all.extend_from_slice(found))?;
                }
            }
            Ok(all)
        })
    }
}
