//! A matrix on a grid, before it becomes bytes: what a method has chosen and may still improve.

use super::rtn::scatter;
use crate::grid::{Codes, F, Freedom, Grid, LANES, Steps};
use llmq_kernels::levels::values;
use rayon::prelude::*;

/// Codes and scales of a matrix `[rows, columns]`, sixteen rows side by side.
pub struct QuantizedMatrix {
    rows: usize,
    columns: usize,
    width: usize,
    codes: Vec<Codes>, // [⌈rows / 16⌉, columns]
    steps: Vec<Steps>, // [⌈rows / 16⌉, columns / width]
}

/// Some rows of a [`QuantizedMatrix`]: a multiple of sixteen, or the last ones.
pub struct Part<'a> {
    /// `[⌈rows / 16⌉, columns]`.
    pub codes: &'a mut [Codes],
    /// `[⌈rows / 16⌉, columns / width]`.
    pub steps: &'a mut [Steps],
}

impl QuantizedMatrix {
    /// All codes and scales zero.
    pub fn new(rows: usize, columns: usize, grid: &dyn Grid) -> QuantizedMatrix {
        let (lanes, width) = (rows.div_ceil(LANES), grid.width());
        let (codes, steps) = (vec![[0; LANES]; lanes * columns], vec![Steps::plain(F::ZERO); lanes * columns / width]);
        QuantizedMatrix { rows, columns, width, codes, steps }
    }

    /// Parts of `rows` rows, a multiple of sixteen.
    pub fn parts(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = Part<'_>> {
        let codes = rows / LANES * self.columns;
        let parts = self.codes.par_chunks_mut(codes).zip(self.steps.par_chunks_mut(codes / self.width));
        parts.map(|(codes, steps)| Part { codes, steps })
    }

    /// The numbers that the file will hold: `[rows, columns]`.
    pub fn values(&self, grid: &dyn Grid) -> Vec<f32> {
        let (n, width, group, levels) = (self.columns, self.width, grid.group(), grid.levels());
        let mut out = vec![0.0; self.rows * n];
        let lanes = self.codes.par_chunks(n).zip(self.steps.par_chunks(n / width));
        out.par_chunks_mut(LANES * n).zip(lanes).for_each(|(out, (codes, steps))| {
            let mut numbers = vec![F::ZERO; group];
            for (first, codes) in (0..n).step_by(group).zip(codes.chunks(group)) {
                let (scale, offset) = steps[first / width].step(first % width / group);
                values(levels, codes, scale, offset, &mut numbers);
                for (l, row) in out.chunks_mut(n).enumerate() {
                    row[first..].iter_mut().zip(&numbers[..codes.len()]).for_each(|(to, from)| *to = from.0[l]);
                }
            }
        });
        out
    }

    /// Replaces some rows by those of a matrix of as many columns on the same grid, in their order.
    pub fn set_rows(&mut self, places: &[usize], other: &QuantizedMatrix) {
        let (n, blocks) = (self.columns, self.columns / self.width);
        for (from, &to) in places.iter().enumerate() {
            let (own, other_lane) = (to / LANES, from / LANES);
            let codes = self.codes[own * n..][..n].iter_mut().zip(&other.codes[other_lane * n..][..n]);
            codes.for_each(|(own, other)| own[to % LANES] = other[from % LANES]);
            let steps =
                self.steps[own * blocks..][..blocks].iter_mut().zip(&other.steps[other_lane * blocks..][..blocks]);
            steps.for_each(|(own, other)| own.set_lane(to % LANES, &other.lane(from % LANES)));
        }
    }

    /// Multiplies each row by a factor, as exactly as the file can hold the super-scales: the codes stay what they are, because
    /// every method rounds a row the same way whatever its size.
    pub fn scale_rows(&mut self, factors: &[f32], freedom: &Freedom) {
        let per_lanes = self.columns / self.width;
        for (r, steps) in self.steps.chunks_mut(per_lanes).enumerate() {
            let factor = lanes_of(factors, r);
            for step in steps {
                step.d = freedom.round_super(step.d * factor);
                step.dmin = freedom.round_super(step.dmin * factor);
            }
        }
    }

    /// Whether [`scale_rows`](Self::scale_rows) by these factors, all above zero, loses no more than half precision usually
    /// does: small super-scales have fewer bits, and large ones have an end.
    pub fn can_scale_rows(&self, factors: &[f32], freedom: &Freedom) -> bool {
        const ALLOWED: f64 = 1.0 / 512.0;
        let per_lanes = self.columns / self.width;
        let holds = |of: fn(&Steps) -> F| {
            let (mut off, mut whole) = (0.0, 0.0);
            for (r, steps) in self.steps.chunks(per_lanes).enumerate() {
                let factor = lanes_of(factors, r);
                for old in steps.iter().map(of) {
                    let new = freedom.round_super(old * factor);
                    for ((old, new), factor) in old.0.into_iter().zip(new.0).zip(factor.0) {
                        off += (f64::from(new) / f64::from(factor) - f64::from(old)).powi(2);
                        whole += f64::from(old).powi(2);
                    }
                }
            }
            off <= ALLOWED * ALLOWED * whole
        };
        holds(|step| step.d) && holds(|step| step.dmin)
    }

    /// The blocks of the file, row by row.
    pub fn store(&self, grid: &dyn Grid) -> Vec<u8> {
        let (n, width, bytes) = (self.columns, self.width, grid.bytes());
        let row = n / width * bytes;
        let mut out = vec![0; self.rows * row];
        let lanes = self.codes.par_chunks(n).zip(self.steps.par_chunks(n / width));
        out.par_chunks_mut(LANES * row).zip(lanes).for_each(|(out, (codes, steps))| {
            let mut blocks = vec![0; LANES * bytes];
            for (b, (codes, steps)) in codes.chunks(width).zip(steps).enumerate() {
                grid.store(steps, codes, &mut blocks);
                scatter(&blocks, bytes, b, row, out);
            }
        });
        out
    }
}

/// The factors of sixteen rows; one for rows that are not there.
fn lanes_of(factors: &[f32], r: usize) -> F {
    F(std::array::from_fn(|l| factors.get(r * LANES + l).copied().unwrap_or(1.0)))
}
