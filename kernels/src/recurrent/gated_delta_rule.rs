//! The gated delta rule (Yang, Kautz, Hatamizadeh 2024, "Gated Delta Networks"), the mixer of Qwen3-Next and Qwen3.5.

use super::CHUNK;
use super::chunk::{Decays, State, multiply_on, scale_rows_on};
use super::tasks::{Task, at_once, tasks};
use crate::dispatch::kernel;
use crate::elementwise::{load, store, sum};
use crate::gemm::{Old, Precision, View, product_on, with_micro};
use crate::lanes::{F, LANES, whole};
use crate::memory::Spare;
use crate::micro::{Element, Micro};
use crate::pack::Out;
use rayon::prelude::*;

/// Which key head a value head uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOrder {
    /// Value head `j` uses key head `j % key_heads`: GGUF's order of Qwen3.5.
    Tiled,
    /// Value head `j` uses key head `j / (value_heads / key_heads)`: that of transformers, and of Qwen3-Next in GGUF.
    Grouped,
}

/// The shape of a batch of windows for [`gated_delta_rule`].
#[derive(Debug, Clone, Copy)]
pub struct DeltaShape {
    /// Positions of a window.
    pub positions: usize,
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple of [`key_heads`](Self::key_heads).
    pub value_heads: usize,
    /// Numbers of each query and key.
    pub dk: usize,
    /// Numbers of each value.
    pub dv: usize,
    /// Which key head a value head uses.
    pub order: HeadOrder,
}

/// What [`gated_delta_rule`] reads of each position.
#[derive(Debug, Clone, Copy)]
pub struct DeltaInputs<'a> {
    /// `[windows · positions, key_heads · dk]`, not yet normalized.
    pub q: View<'a>,
    /// The same.
    pub k: View<'a>,
    /// `[windows · positions, value_heads · dv]`.
    pub v: View<'a>,
    /// The decay's logarithm, not above zero: `[windows · positions, value_heads]`.
    pub g: &'a [f32],
    /// How much of the old value is replaced by the new one, from 0 to 1: `[windows · positions, value_heads]`.
    pub beta: &'a [f32],
}

/// The gated delta rule for every value head, on all threads. With queries `q/√(Σq² + eps)/√dk` and keys `k/√(Σk² + eps)`, the state `S`,
/// `[dk, dv]`, and the output `o` of each position are
///
/// ```text
/// S = exp(g)·S
/// S = S + k ⊗ β(v − Sᵀk)
/// o = Sᵀq
/// ```
///
/// `out`: `[windows · positions, value_heads · dv]`. Every window begins with a state of zeros; or, given `state`,
/// `[value_heads, dk, dv]`, the only window goes on from it and leaves its last one there.
///
/// Chunks are computed by the UT transform: what a position writes depends on what those before it in the chunk have written, which is
/// a triangular system (section 3.3 of the paper). Products are of [`Precision::Split`].
///
/// # Panics
/// If the shapes do not fit.
pub fn gated_delta_rule(
    inputs: &DeltaInputs<'_>,
    shape: DeltaShape,
    eps: f32,
    state: Option<&mut [f32]>,
    out: &mut [f32],
) {
    with_micro!(Precision::Split, micro => scan(micro, inputs, shape, eps, state, out));
}

/// The same with given tiles.
pub(super) fn scan<E: Element>(
    micro: Micro<E>,
    inputs: &DeltaInputs<'_>,
    shape: DeltaShape,
    eps: f32,
    state: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let DeltaShape { positions, key_heads, value_heads, dk, dv, order } = shape;
    if out.is_empty() {
        return;
    }
    assert!(value_heads.is_multiple_of(key_heads), "value heads per key head");
    let windows = out.len() / (positions * value_heads * dv);
    let n = windows * positions;
    assert_eq!(out.len(), n * value_heads * dv, "outputs");
    for (x, width) in [(inputs.q, key_heads * dk), (inputs.k, key_heads * dk), (inputs.v, value_heads * dv)] {
        assert_eq!((x.rows, x.columns), (n, width), "queries, keys, values");
    }
    assert_eq!((inputs.g.len(), inputs.beta.len()), (n * value_heads, n * value_heads), "decays and strengths");
    if let Some(state) = &state {
        assert_eq!((windows, state.len()), (1, value_heads * dk * dv), "the state of one window");
    }
    let key_of = |head: usize| match order {
        HeadOrder::Tiled => head % key_heads,
        HeadOrder::Grouped => head / (value_heads / key_heads),
    };
    let spare = Spare::new();
    let most = at_once(dv).min(value_heads / key_heads);
    let tasks = tasks(out, (positions, value_heads, dv), state, key_heads, key_of);
    tasks
        .into_par_iter()
        .for_each(|task| spare.with(|| Room::new(shape, eps, most), |room| room.scan(micro, inputs, task)));
}

/// What one thread needs for some value heads of one key head.
struct Room {
    shape: DeltaShape,
    eps: f32,
    state: State,
    decays: Decays,
    /// `[2 · n, dk]`: the keys of a chunk, then its queries, all of length one.
    both: Vec<f32>,
    /// `[2 · n, CHUNK]`: their products with the keys.
    scores: Vec<f32>,
    /// `[2 · n, heads, dv]`: what they read from the state.
    reads: Vec<f32>,
    /// `[CHUNK, CHUNK]`: scores with their decays.
    weights: Vec<f32>,
    /// `[n, heads, dv]`: what each position writes, and what is left of it behind the chunk.
    written: Vec<f32>,
    carried: Vec<f32>,
    /// `[heads]`: what is left of the state behind the chunk.
    left: Vec<f32>,
}

impl Room {
    /// For up to `heads` value heads.
    fn new(shape: DeltaShape, eps: f32, heads: usize) -> Room {
        let wide = heads * shape.dv;
        let zeros = |n: usize| vec![0.0; n];
        Room {
            shape,
            eps,
            state: State::room(shape.dk, shape.dv, heads),
            decays: Decays::new(),
            both: zeros(2 * CHUNK * shape.dk),
            scores: zeros(2 * CHUNK * CHUNK),
            reads: zeros(2 * CHUNK * wide),
            weights: zeros(CHUNK * CHUNK),
            written: zeros(CHUNK * wide),
            carried: zeros(CHUNK * wide),
            left: zeros(heads),
        }
    }

    /// All chunks of a window, one after the other.
    fn scan<E: Element>(&mut self, micro: Micro<E>, inputs: &DeltaInputs<'_>, mut task: Task<'_>) {
        let DeltaShape { positions, dv, .. } = self.shape;
        self.state.begin(&task.heads, (dv, 1));
        let unseen = task.heads[0].state.is_none();
        for first in (0..positions).step_by(CHUNK) {
            let last = unseen && first + CHUNK >= positions;
            self.chunk(micro, inputs, &mut task, first, CHUNK.min(positions - first), last);
        }
        self.state.end(&mut task.heads, (dv, 1));
    }

    /// The `n` positions from `first` on. `last`: nobody looks at the state behind them.
    fn chunk<E: Element>(
        &mut self,
        micro: Micro<E>,
        inputs: &DeltaInputs<'_>,
        task: &mut Task<'_>,
        first: usize,
        n: usize,
        last: bool,
    ) {
        let DeltaShape { positions, value_heads, dk, dv, .. } = self.shape;
        let (isa, wide) = (micro.isa, task.heads.len() * dv);
        let row = task.window * positions + first;
        let columns = task.key * dk..(task.key + 1) * dk;
        let (k, q) = (inputs.k.part(row..row + n, columns.clone()), inputs.q.part(row..row + n, columns));
        let (keys, queries) = self.both.split_at_mut(n * dk);
        for i in 0..n {
            unit_on(isa, k.row(i), self.eps, 1.0, &mut keys[i * dk..][..dk]);
            unit_on(isa, q.row(i), self.eps, 1.0 / (dk as f32).sqrt(), &mut queries[i * dk..][..dk]);
        }
        let (keys, both) = (View::new(&self.both, n, dk, dk), View::new(&self.both, 2 * n, dk, dk));
        product_on(micro, Out::new(&mut self.scores, 2 * n, n, CHUNK), Old::Replaced, 1.0, both, keys.t());
        self.state.read(micro, both, &mut self.reads);
        let (key_scores, query_scores) = self.scores.split_at(n * CHUNK);
        let (key_reads, query_reads) = self.reads.split_at_mut(n * wide);
        for (h, head) in task.heads.iter_mut().enumerate() {
            let at = |i: usize| (row + i) * value_heads + head.index;
            self.decays.set(isa, (0..n).map(|i| f64::from(inputs.g[at(i)])));
            self.left[h] = self.decays.start[n - 1];
            let mut beta = [0.0; CHUNK];
            (0..n).for_each(|i| beta[i] = inputs.beta[at(i)]);
            let weights = &mut self.weights[..n * CHUNK];
            multiply_on(isa, &self.decays.between[..n * CHUNK], key_scores, weights);
            let values = inputs.v.part(row..row + n, head.index * dv..(head.index + 1) * dv);
            let (written, carried) = (&mut self.written[h * dv..], &mut self.carried[h * dv..]);
            let end = self.decays.to_end(n);
            solve_on(
                isa,
                values,
                &key_reads[h * dv..],
                wide,
                &self.decays.start,
                weights,
                &beta,
                end,
                written,
                carried,
            );
            scale_rows_on(isa, query_reads, wide, h * dv, dv, &self.decays.start[..n]);
            multiply_on(isa, &self.decays.between[..n * CHUNK], query_scores, weights);
            let weights = View::new(weights, n, n, CHUNK);
            let written = View::new(&self.written[h * dv..], n, dv, wide);
            product_on(micro, Out::new(&mut query_reads[h * dv..], n, dv, wide), Old::Kept, 1.0, weights, written);
            for (i, from) in query_reads.chunks(wide).take(n).enumerate() {
                head.out.row(first + i, 0..dv).copy_from_slice(&from[h * dv..][..dv]);
            }
        }
        if !last {
            self.state.decay(isa, &self.left[..task.heads.len()]);
            self.state.add(micro, keys, &self.carried);
        }
    }
}

kernel! {
    /// `y = scale·x / √(Σx² + eps)`.
    pub fn _ / unit_on(x: &[f32], eps: f32, scale: f32, y: &mut [f32]) {
        let mut squares = F::ZERO;
        for part in x.chunks(LANES) {
            let v = load(part, 0.0);
            squares = v.mul_add(v, squares);
        }
        let factor = scale / (sum(squares) + eps).sqrt();
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}

/// Rows and columns (in lanes) of the sums that [`solve`] keeps in registers.
const ROWS: usize = 4;
const SIDE: usize = 2;

kernel! {
    /// What the positions of a chunk write: `u_i = β_i(v_i − start_i·r_i − Σ_{j<i} a_ij·u_j)`, row by row, and what is left of it behind
    /// the chunk, `end_i·u_i`.
    ///
    /// `v`: `[n, dv]`; `r`, `u`, `carried`: the same with rows `stride` apart; `a`: `[n, CHUNK]`, of which what lies below the diagonal
    /// is looked at; `start`, `beta`: `[CHUNK]`; `end`: `[n]`.
    pub fn _ / solve_on(
        v: View<'_>,
        r: &[f32],
        stride: usize,
        start: &[f32; CHUNK],
        a: &[f32],
        beta: &[f32; CHUNK],
        end: &[f32],
        u: &mut [f32],
        carried: &mut [f32],
    ) {
        let (n, dv) = (end.len(), v.columns);
        let mut solved = [[F::ZERO; SIDE]; CHUNK];
        for first in (0..dv).step_by(SIDE * LANES) {
            let columns = (SIDE * LANES).min(dv - first);
            for i in 0..n {
                let (v, r) = (&v.row(i)[first..][..columns], &r[i * stride + first..][..columns]);
                for (to, (v, r)) in solved[i].iter_mut().zip(v.chunks(LANES).zip(r.chunks(LANES))) {
                    *to = load(r, 0.0).mul_add(F::splat(-start[i]), load(v, 0.0));
                }
            }
            for top in (0..n).step_by(ROWS) {
                let mut sums: [[F; SIDE]; ROWS] = [solved[top], solved[top + 1], solved[top + 2], solved[top + 3]];
                let line = |i: usize| &a[((top + i).min(n - 1)) * CHUNK..][..CHUNK];
                let a = [line(0), line(1), line(2), line(3)];
                for j in 0..top {
                    whole();
                    for i in 0..ROWS {
                        for s in 0..SIDE {
                            sums[i][s] = solved[j][s].mul_add(F::splat(-a[i][j]), sums[i][s]);
                        }
                    }
                }
                for i in 0..ROWS {
                    for j in 0..i {
                        for s in 0..SIDE {
                            sums[i][s] = sums[j][s].mul_add(F::splat(-a[i][top + j]), sums[i][s]);
                        }
                    }
                    for s in 0..SIDE {
                        sums[i][s] = sums[i][s] * F::splat(beta[top + i]);
                    }
                    solved[top + i] = sums[i];
                }
            }
            for i in 0..n {
                let at = i * stride + first..i * stride + first + columns;
                let both = u[at.clone()].chunks_mut(LANES).zip(carried[at].chunks_mut(LANES));
                for (from, (u, carried)) in solved[i].iter().zip(both) {
                    store(*from, u);
                    store(*from * F::splat(end[i]), carried);
                }
            }
        }
    }
}
