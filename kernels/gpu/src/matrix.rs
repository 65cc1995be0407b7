//! Weights on the device, and what linear layers make with them.

use crate::error::Result;
use crate::gpu::{Gpu, Held, Last, at_once};
use crate::kernels::Kernel;
use std::ops::Range;

/// Rows of a dispatch of [`Kernel::Convert`]: 256 vec4 each.
const GROUP: usize = 256;

/// A matrix on the device, in bands of rows that a kernel sees at once.
pub struct Matrix {
    rows: usize,
    columns: usize,
    each: usize,
    bands: Vec<Held>, // [each, stride]
}

/// Numbers in a row on the device: whole vec4.
pub(crate) fn stride(columns: usize) -> usize {
    columns.next_multiple_of(4)
}

impl Matrix {
    /// `[rows, columns]`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Bytes that a matrix of such a shape takes, or a sum.
    pub fn bytes(rows: usize, columns: usize) -> u64 {
        4 * rows as u64 * stride(columns) as u64
    }
}

/// The upper halves of numbers whose lower ones are zeros: those of bfloat16. None if there are others.
fn halves(numbers: &[f32]) -> Option<Vec<u16>> {
    if numbers.iter().any(|x| x.to_bits() & 0xffff != 0) {
        return None;
    }
    Some(numbers.iter().map(|x| (x.to_bits() >> 16) as u16).collect())
}

impl Gpu {
    /// Brings a matrix to the device. What is of bfloat16 goes there as such. `numbers`: `[rows, columns]`.
    ///
    /// # Errors
    /// There is no room, or the device fails.
    ///
    /// # Panics
    /// If the shape does not fit.
    pub fn matrix(&self, numbers: &[f32], rows: usize, columns: usize) -> Result<Matrix> {
        assert_eq!(numbers.len(), rows * columns, "the shape of a matrix");
        let stride = stride(columns);
        let each = self.rows_of(stride)?;
        self.work(|scratch| {
            let mut bands = Vec::new();
            for numbers in numbers.chunks((each * columns).max(1)) {
                let quads = numbers.len() / columns * stride / 4;
                let band = self.buffer(16 * quads as u64)?;
                match halves(numbers).filter(|_| columns == stride) {
                    Some(halves) => {
                        let (left, .., last) = scratch.parts();
                        let pairs = self.room(left, 8 * quads as u64)?;
                        self.write_bytes(pairs, bytemuck::cast_slice(&halves));
                        let groups = quads.div_ceil(GROUP);
                        let wide = groups.min(self.groups());
                        let groups = (wide, groups.div_ceil(wide));
                        self.dispatch(last, self.pipelines.convert(), &[pairs, &band], &[0, quads as u32], groups)?;
                    }
                    None => self.write(&band, numbers, columns, stride),
                }
                bands.push(band);
            }
            Ok(Matrix { rows, columns, each, bands })
        })
    }

    /// `Y = X·Wᵀ`, or `Y += X·Wᵀ`: a linear layer without bias. `x`: `[n, columns]`; `y`: `[n, rows]`.
    ///
    /// # Errors
    /// There is no room, or the device fails. What is in `y` then means nothing.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn linear(&self, x: &[f32], w: &Matrix, add: bool, y: &mut [f32]) -> Result<()> {
        let (m, k) = w.shape();
        if y.is_empty() {
            return Ok(());
        }
        let n = y.len() / m;
        assert_eq!((x.len(), y.len()), (n * k, n * m), "shapes of a linear layer");
        let stride = stride(k);
        let each = self.rows_of(stride.max(m))?.min(n);
        self.work(|scratch| {
            for (x, y) in x.chunks((each * k).max(1)).zip(y.chunks_mut(each * m)) {
                let n = y.len() / m;
                let (left, _, out, staging, last) = scratch.parts();
                let a = self.room(left, 4 * (n * stride) as u64)?;
                let c = self.room(out, 4 * (n * m) as u64)?;
                self.write(a, x, k, stride);
                if add {
                    self.write(c, y, m, m);
                }
                self.multiply(last, a, w, c, n, add)?;
                self.read(staging, c, &[(0, 4 * (n * m) as u64)], |found| y.copy_from_slice(found))?;
            }
            Ok(())
        })
    }

    /// `C = A·Wᵀ`, or `C += A·Wᵀ`. `a`: `[n, stride]`; `c`: `[n, rows]`.
    fn multiply(&self, last: &mut Last, a: &Held, w: &Matrix, c: &Held, n: usize, add: bool) -> Result<()> {
        let quads = (stride(w.columns) / 4) as u32;
        for (band, rows) in w.bands.iter().zip(bands(w.rows, w.each)) {
            let (pipeline, tile) = self.pipelines.get(Kernel::Gemm, n, rows.len());
            let most = at_once(n, w.columns, tile).min(self.groups() * tile);
            for first in (0..rows.len()).step_by(most) {
                let columns = most.min(rows.len() - first);
                let (here, c_first) = (first as u32, (rows.start + first) as u32);
                let params = [n as u32, columns as u32, quads, here, c_first, w.rows as u32, u32::from(add)];
                let groups = (columns.div_ceil(tile), n.div_ceil(tile));
                self.dispatch(last, pipeline, &[a, band, c], &params, groups)?;
            }
        }
        Ok(())
    }

    /// Multiplies `n` rows of whatever is there with a matrix, some times over, for benchmarks: no number leaves the device.
    ///
    /// # Errors
    /// There is no room, or the device fails.
    #[doc(hidden)]
    pub fn spin(&self, n: usize, w: &Matrix, times: usize) -> Result<()> {
        self.work(|scratch| {
            let (left, _, out, staging, last) = scratch.parts();
            let a = self.room(left, 4 * (n * stride(w.columns)) as u64)?;
            let c = self.room(out, 4 * (n * w.rows) as u64)?;
            (0..times).try_for_each(|_| self.multiply(last, a, w, c, n, false))?;
            // Waits for all of it.
            self.read(staging, c, &[(0, 4)], |_| ())
        })
    }
}

/// Rows in bands of `each`.
pub(crate) fn bands(rows: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(each).map(move |first| first..(first + each).min(rows))
}
