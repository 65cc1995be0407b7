//! What all chunked scans have in common: decays within a chunk, and a state that chunks read and move on.

use super::CHUNK;
use super::tasks::Head;
use crate::Isa;
use crate::dispatch::kernel;
use crate::elementwise::exp;
use crate::gemm::{Old, View, product_on};
use crate::lanes::{F, LANES};
use crate::micro::{Element, Micro};
use crate::pack::Out;

/// What is left after the decays from one position of a chunk to another. All exponents are differences of sums of logarithms, so that
/// none is positive and nothing overflows, and the sums are in `f64`, so that a strong decay takes nothing from those behind it.
pub struct Decays {
    sums: [f64; CHUNK],
    /// `[CHUNK]`: from before the chunk to behind each position.
    pub start: [f32; CHUNK],
    /// `[CHUNK, CHUNK]`: from behind the column's position to behind the row's; zero above the diagonal.
    pub between: Vec<f32>,
}

impl Decays {
    /// None yet.
    pub fn new() -> Decays {
        Decays { sums: [0.0; CHUNK], start: [0.0; CHUNK], between: vec![0.0; CHUNK * CHUNK] }
    }

    /// Those of up to [`CHUNK`] positions, whose logarithms follow one another.
    pub fn set(&mut self, isa: Isa, logarithms: impl Iterator<Item = f64>) {
        // Nothing is left after it, and its differences are none of infinities.
        const ALL: f64 = -1e4;
        let (mut sum, mut n) = (0.0, 0);
        for (to, g) in self.sums.iter_mut().zip(logarithms) {
            sum += if g < ALL { ALL } else { g };
            *to = sum;
            n += 1;
        }
        decays_on(isa, &self.sums, n, &mut self.start, &mut self.between);
    }

    /// From behind each of the first `n` positions to behind the last of them.
    pub fn to_end(&self, n: usize) -> &[f32] {
        &self.between[(n - 1) * CHUNK..][..n]
    }
}

kernel! {
    /// The exponentials of `n` sums, and of their differences; see [`Decays`].
    pub fn _ / decays_on(sums: &[f64; CHUNK], n: usize, start: &mut [f32; CHUNK], between: &mut [f32]) {
        for first in (0..n).step_by(LANES) {
            let mut x = F::ZERO;
            for l in 0..LANES {
                x.0[l] = sums[first + l] as f32;
            }
            start[first..first + LANES].copy_from_slice(&exp(x).0);
        }
        for (i, row) in between.chunks_exact_mut(CHUNK).take(n).enumerate() {
            for (first, part) in (0..).step_by(LANES).zip(row.chunks_exact_mut(LANES)) {
                let mut x = F::ZERO;
                if first <= i {
                    for l in 0..LANES {
                        x.0[l] = if first + l <= i { (sums[i] - sums[first + l]) as f32 } else { f32::NEG_INFINITY };
                    }
                    x = exp(x);
                }
                part.copy_from_slice(&x.0);
            }
        }
    }
}

kernel! {
    /// `y = a·b`, number by number. All of one length, a multiple of [`LANES`].
    pub fn _ / multiply_on(a: &[f32], b: &[f32], y: &mut [f32]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a * b;
        }
    }
}

kernel! {
    /// Multiplies some columns, from `first` on, of each row by a number of its own. `x`: `[factors.len(), stride]`.
    pub fn _ / scale_rows_on(x: &mut [f32], stride: usize, first: usize, columns: usize, factors: &[f32]) {
        for (x, factor) in x.chunks_mut(stride).zip(factors) {
            for x in &mut x[first..first + columns] {
                *x *= factor;
            }
        }
    }
}

kernel! {
    /// Multiplies pieces of `width` numbers by factors, which begin again behind the last. `x`: `[n, factors.len(), width]`.
    pub fn _ / scale_pieces_on(x: &mut [f32], width: usize, factors: &[f32]) {
        for (x, factor) in x.chunks_exact_mut(width).zip(factors.iter().cycle()) {
            for x in x {
                *x *= factor;
            }
        }
    }
}

/// The states of some heads side by side.
pub struct State {
    /// `[keys, wide]`.
    numbers: Vec<f32>,
    keys: usize,
    /// Columns of each head.
    width: usize,
    /// Columns of all heads.
    wide: usize,
    /// Whether anything is in it. If not, it stands for zeros.
    live: bool,
}

impl State {
    /// Room for those of up to `heads` heads.
    pub fn room(keys: usize, width: usize, heads: usize) -> State {
        State { numbers: vec![0.0; keys * width * heads], keys, width, wide: width * heads, live: false }
    }

    /// Zeros, or what the heads go on from. `steps`: from a key to the next one in a head's own state, and from a column to the next.
    pub fn begin(&mut self, heads: &[Head<'_>], steps: (usize, usize)) {
        self.wide = self.width * heads.len();
        self.live = false;
        for (h, head) in heads.iter().enumerate() {
            let Some(from) = &head.state else { continue };
            self.live = true;
            for (key, row) in self.numbers.chunks_exact_mut(self.wide).take(self.keys).enumerate() {
                let from = from[key * steps.0..].iter().step_by(steps.1);
                row[h * self.width..][..self.width].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// The way back.
    pub fn end(&self, heads: &mut [Head<'_>], steps: (usize, usize)) {
        for (h, head) in heads.iter_mut().enumerate() {
            let Some(to) = &mut head.state else { continue };
            for (key, row) in self.numbers.chunks_exact(self.wide).take(self.keys).enumerate() {
                let to = to[key * steps.0..].iter_mut().step_by(steps.1);
                to.zip(&row[h * self.width..][..self.width]).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// What each of some rows reads. `rows`: `[n, keys]`; `out`: `[n, wide]`.
    pub fn read<E: Element>(&self, micro: Micro<E>, rows: View<'_>, out: &mut [f32]) {
        let n = rows.rows;
        let out = &mut out[..n * self.wide];
        if !self.live {
            return out.fill(0.0);
        }
        let numbers = View::new(&self.numbers, self.keys, self.wide, self.wide);
        product_on(micro, Out::new(out, n, self.wide, self.wide), Old::Replaced, 1.0, rows, numbers);
    }

    /// Lets each head's part of it decay.
    pub fn decay(&mut self, isa: Isa, factors: &[f32]) {
        if self.live {
            scale_pieces_on(isa, &mut self.numbers[..self.keys * self.wide], self.width, factors);
        }
    }

    /// Adds what a chunk leaves behind, the products of its keys with its values. `keys`: `[n, keys]`; `values`: `[n, wide]`.
    pub fn add<E: Element>(&mut self, micro: Micro<E>, keys: View<'_>, values: &[f32]) {
        let old = if self.live { Old::Kept } else { Old::Replaced };
        let values = View::new(values, keys.rows, self.wide, self.wide);
        let out = Out::new(&mut self.numbers, self.keys, self.wide, self.wide);
        product_on(micro, out, old, 1.0, keys.t(), values);
        self.live = true;
    }
}
