//! Kimi Delta Attention (Kimi Team 2025, "Kimi Linear"), the mixer of Kimi Linear and of Ling 3: the gated delta rule whose state
//! decays by another factor in each channel of its keys.

use super::gated_delta_rule::unit_on;
use super::tasks::{Task, tasks};
use crate::Isa;
use crate::dispatch::kernel;
use crate::elementwise::{load, store};
use crate::gemm::View;
use crate::lanes::{F, LANES};
use crate::memory::Spare;
use rayon::prelude::*;

/// The shape of a batch of windows for [`kda`].
#[derive(Debug, Clone, Copy)]
pub struct KdaShape {
    /// Positions of a window.
    pub positions: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of each query and key.
    pub dk: usize,
    /// Numbers of each value.
    pub dv: usize,
}

/// What [`kda`] reads of each position.
#[derive(Debug, Clone, Copy)]
pub struct KdaInputs<'a> {
    /// `[windows · positions, heads · dk]`, not yet normalized.
    pub q: View<'a>,
    /// The same.
    pub k: View<'a>,
    /// `[windows · positions, heads · dv]`.
    pub v: View<'a>,
    /// The decays' logarithms, not above zero: `[windows · positions, heads · dk]`.
    pub g: View<'a>,
    /// How much of the old value is replaced by the new one, from 0 to 1: `[windows · positions, heads]`.
    pub beta: &'a [f32],
}

/// The rule for every head, on all threads. With queries `q/√(Σq² + eps)/√dk` and keys `k/√(Σk² + eps)`, the state `S`, `[dk, dv]`, and
/// the output `o` of each position are
///
/// ```text
/// S = diag(exp(g))·S
/// S = S + k ⊗ β(v − Sᵀk)
/// o = Sᵀq
/// ```
///
/// `out`: `[windows · positions, heads · dv]`. Every window begins with a state of zeros; or, given `state`, `[heads, dk, dv]`, the only
/// window goes on from it and leaves its last one there.
///
/// Position by position: in chunks, products of decays would have to be divided by others, which are too small for single precision.
///
/// # Panics
/// If the shapes do not fit.
pub fn kda(inputs: &KdaInputs<'_>, shape: KdaShape, eps: f32, state: Option<&mut [f32]>, out: &mut [f32]) {
    scan(Isa::best(), inputs, shape, eps, state, out);
}

/// The same with a given instruction set.
pub(super) fn scan(
    isa: Isa,
    inputs: &KdaInputs<'_>,
    shape: KdaShape,
    eps: f32,
    state: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let KdaShape { positions, heads, dk, dv } = shape;
    if out.is_empty() {
        return;
    }
    let windows = out.len() / (positions * heads * dv);
    let n = windows * positions;
    assert_eq!(out.len(), n * heads * dv, "outputs");
    for (x, width) in [(inputs.q, heads * dk), (inputs.k, heads * dk), (inputs.g, heads * dk), (inputs.v, heads * dv)] {
        assert_eq!((x.rows, x.columns), (n, width), "queries, keys, decays, values");
    }
    assert_eq!(inputs.beta.len(), n * heads, "strengths");
    if let Some(state) = &state {
        assert_eq!((windows, state.len()), (1, heads * dk * dv), "the state of one window");
    }
    let spare = Spare::new();
    tasks(out, (positions, heads, dv), state, heads, |head| head).into_par_iter().for_each(|task| {
        spare.with(|| Room::new(shape, eps), |room| room.scan(isa, inputs, task));
    });
}

/// What one thread needs for a head.
struct Room {
    shape: KdaShape,
    eps: f32,
    /// `[dk, dv]`.
    state: Vec<f32>,
    /// `[dk]` each: a query and a key of length one, and what is left of each channel.
    query: Vec<f32>,
    key: Vec<f32>,
    left: Vec<f32>,
}

impl Room {
    fn new(shape: KdaShape, eps: f32) -> Room {
        let KdaShape { dk, dv, .. } = shape;
        let zeros = |n: usize| vec![0.0; n];
        Room { shape, eps, state: zeros(dk * dv), query: zeros(dk), key: zeros(dk), left: zeros(dk) }
    }

    /// All positions of a window, one after the other.
    fn scan(&mut self, isa: Isa, inputs: &KdaInputs<'_>, task: Task<'_>) {
        let KdaShape { positions, heads, dk, dv } = self.shape;
        for mut head in task.heads {
            match &head.state {
                Some(state) => self.state.copy_from_slice(state),
                None => self.state.fill(0.0),
            }
            let (keys, values) = (head.index * dk..(head.index + 1) * dk, head.index * dv..(head.index + 1) * dv);
            for position in 0..positions {
                let row = task.window * positions + position;
                unit_on(isa, &inputs.k.row(row)[keys.clone()], self.eps, 1.0, &mut self.key);
                unit_on(isa, &inputs.q.row(row)[keys.clone()], self.eps, 1.0 / (dk as f32).sqrt(), &mut self.query);
                for (left, g) in self.left.iter_mut().zip(&inputs.g.row(row)[keys.clone()]) {
                    *left = g.exp();
                }
                let value = &inputs.v.row(row)[values.clone()];
                let beta = inputs.beta[row * heads + head.index];
                let out = head.out.row(position, 0..dv);
                step_on(isa, &self.query, &self.key, &self.left, value, beta, &mut self.state, out);
            }
            if let Some(state) = head.state {
                state.copy_from_slice(&self.state);
            }
        }
    }
}

/// Columns (in lanes) of the state that [`step_on`] takes at once.
const SIDE: usize = 4;

kernel! {
    /// One position of one head. `state`: `[dk, dv]`; `q`, `k`, `left`: `[dk]`; `v`, `out`: `[dv]`.
    pub fn _ / step_on(q: &[f32], k: &[f32], left: &[f32], v: &[f32], beta: f32, state: &mut [f32], out: &mut [f32]) {
        let dv = v.len();
        for first in (0..dv).step_by(SIDE * LANES) {
            let columns = first..(first + SIDE * LANES).min(dv);
            let mut read = [F::ZERO; SIDE];
            for (row, (k, left)) in state.chunks_exact(dv).zip(k.iter().zip(left)) {
                let factor = F::splat(k * left);
                for (read, part) in read.iter_mut().zip(row[columns.clone()].chunks(LANES)) {
                    *read = load(part, 0.0).mul_add(factor, *read);
                }
            }
            let mut written = [F::ZERO; SIDE];
            for (written, (v, read)) in written.iter_mut().zip(v[columns.clone()].chunks(LANES).zip(read)) {
                *written = (load(v, 0.0) - read) * F::splat(beta);
            }
            let mut sums = [F::ZERO; SIDE];
            for (row, ((q, k), left)) in state.chunks_exact_mut(dv).zip(q.iter().zip(k).zip(left)) {
                let (q, k, left) = (F::splat(*q), F::splat(*k), F::splat(*left));
                let parts = row[columns.clone()].chunks_mut(LANES);
                for ((sum, written), part) in sums.iter_mut().zip(written).zip(parts) {
                    let s = load(part, 0.0).mul_add(left, written * k);
                    store(s, part);
                    *sum = s.mul_add(q, *sum);
                }
            }
            for (sum, part) in sums.into_iter().zip(out[columns].chunks_mut(LANES)) {
                store(sum, part);
            }
        }
    }
}
