//! The scan of Mamba-2 (Dao and Gu 2024, "Transformers are SSMs"), the mixer of Nemotron-H, Granite 4 and Falcon-H1.

use super::CHUNK;
use super::chunk::{Decays, State, multiply_on};
use super::tasks::{Task, at_once, tasks};
use crate::dispatch::kernel;
use crate::gemm::{Old, Precision, View, product_on, with_micro};
use crate::memory::Spare;
use crate::micro::{Element, Micro};
use crate::pack::Out;
use rayon::prelude::*;

/// The shape of a batch of windows for [`mamba2_scan`].
#[derive(Debug, Clone, Copy)]
pub struct Mamba2Shape {
    /// Positions of a window.
    pub positions: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of each head.
    pub head_dim: usize,
    /// Groups of heads that share `b` and `c`: head `h` is of group `h / (heads / groups)`.
    pub groups: usize,
    /// Numbers of `b` and `c` in each group, and of the state for each number of a head.
    pub state: usize,
}

/// What [`mamba2_scan`] reads of each position and head.
#[derive(Debug, Clone, Copy)]
pub struct Mamba2Inputs<'a> {
    /// `[windows · positions, heads · head_dim]`.
    pub x: View<'a>,
    /// Behind its bias and softplus: `[windows · positions, heads]`.
    pub dt: &'a [f32],
    /// Below zero, GGUF's `ssm_a`: `[heads]`.
    pub a: &'a [f32],
    /// `[windows · positions, groups · state]`.
    pub b: View<'a>,
    /// The same.
    pub c: View<'a>,
    /// GGUF's `ssm_d`: `[heads]`.
    pub d: &'a [f32],
}

/// The scan of Mamba-2 for every head, on all threads. The state `S`, `[head_dim, state]`, and the output `y` of each position are
///
/// ```text
/// S = exp(dt·a)·S + dt·x ⊗ b
/// y = S·c + d·x
/// ```
///
/// `out`: `[windows · positions, heads · head_dim]`. Every window begins with a state of zeros; or, given `state`,
/// `[heads, head_dim, state]`, the only window goes on from it and leaves its last one there.
///
/// Chunks are computed as in section 6 of the paper. Products are of [`Precision::Split`].
///
/// # Panics
/// If the shapes do not fit.
pub fn mamba2_scan(inputs: &Mamba2Inputs<'_>, shape: Mamba2Shape, state: Option<&mut [f32]>, out: &mut [f32]) {
    with_micro!(Precision::Split, micro => scan(micro, inputs, shape, state, out));
}

/// The same with given tiles.
pub(super) fn scan<E: Element>(
    micro: Micro<E>,
    inputs: &Mamba2Inputs<'_>,
    shape: Mamba2Shape,
    state: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let Mamba2Shape { positions, heads, head_dim, groups, state: keys } = shape;
    if out.is_empty() {
        return;
    }
    assert!(heads.is_multiple_of(groups), "heads per group");
    let windows = out.len() / (positions * heads * head_dim);
    let n = windows * positions;
    assert_eq!(out.len(), n * heads * head_dim, "outputs");
    for (x, width) in [(inputs.x, heads * head_dim), (inputs.b, groups * keys), (inputs.c, groups * keys)] {
        assert_eq!((x.rows, x.columns), (n, width), "x, b, c");
    }
    assert_eq!((inputs.dt.len(), inputs.a.len(), inputs.d.len()), (n * heads, heads, heads), "dt, a, d");
    if let Some(state) = &state {
        assert_eq!((windows, state.len()), (1, heads * head_dim * keys), "the state of one window");
    }
    let spare = Spare::new();
    let most = at_once(head_dim).min(heads / groups);
    let tasks = tasks(out, (positions, heads, head_dim), state, groups, |head| head / (heads / groups));
    tasks.into_par_iter().for_each(|task| spare.with(|| Room::new(shape, most), |room| room.scan(micro, inputs, task)));
}

/// What one thread needs for some heads of one group.
struct Room {
    shape: Mamba2Shape,
    /// Transposed: `[state, heads · head_dim]`.
    state: State,
    decays: Decays,
    /// `[n, CHUNK]`: the products of each `c` with each `b` of a chunk.
    scores: Vec<f32>,
    /// `[n, heads, head_dim]`: what each `c` reads from the state, and then the output.
    reads: Vec<f32>,
    /// `[CHUNK, CHUNK]`: scores with their decays.
    weights: Vec<f32>,
    /// `[n, heads, head_dim]`: what each position writes, and what is left of it behind the chunk.
    written: Vec<f32>,
    carried: Vec<f32>,
    /// `[heads]`: what is left of the state behind the chunk.
    left: Vec<f32>,
}

impl Room {
    /// For up to `heads` heads.
    fn new(shape: Mamba2Shape, heads: usize) -> Room {
        let wide = heads * shape.head_dim;
        let zeros = |n: usize| vec![0.0; n];
        Room {
            shape,
            state: State::room(shape.state, shape.head_dim, heads),
            decays: Decays::new(),
            scores: zeros(CHUNK * CHUNK),
            reads: zeros(CHUNK * wide),
            weights: zeros(CHUNK * CHUNK),
            written: zeros(CHUNK * wide),
            carried: zeros(CHUNK * wide),
            left: zeros(heads),
        }
    }

    /// All chunks of a window, one after the other.
    fn scan<E: Element>(&mut self, micro: Micro<E>, inputs: &Mamba2Inputs<'_>, mut task: Task<'_>) {
        let Mamba2Shape { positions, state: keys, .. } = self.shape;
        self.state.begin(&task.heads, (1, keys));
        let unseen = task.heads[0].state.is_none();
        for first in (0..positions).step_by(CHUNK) {
            let last = unseen && first + CHUNK >= positions;
            self.chunk(micro, inputs, &mut task, first, CHUNK.min(positions - first), last);
        }
        self.state.end(&mut task.heads, (1, keys));
    }

    /// The `n` positions from `first` on. `last`: nobody looks at the state behind them.
    fn chunk<E: Element>(
        &mut self,
        micro: Micro<E>,
        inputs: &Mamba2Inputs<'_>,
        task: &mut Task<'_>,
        first: usize,
        n: usize,
        last: bool,
    ) {
        let Mamba2Shape { positions, heads, head_dim, state: keys, .. } = self.shape;
        let (isa, wide) = (micro.isa, task.heads.len() * head_dim);
        let row = task.window * positions + first;
        let columns = task.key * keys..(task.key + 1) * keys;
        let (b, c) = (inputs.b.part(row..row + n, columns.clone()), inputs.c.part(row..row + n, columns));
        product_on(micro, Out::new(&mut self.scores, n, n, CHUNK), Old::Replaced, 1.0, c, b.t());
        self.state.read(micro, c, &mut self.reads);
        for (h, head) in task.heads.iter_mut().enumerate() {
            let mut dt = [0.0; CHUNK];
            (0..n).for_each(|i| dt[i] = inputs.dt[(row + i) * heads + head.index]);
            let a = f64::from(inputs.a[head.index]);
            self.decays.set(isa, dt[..n].iter().map(|dt| f64::from(*dt) * a));
            self.left[h] = self.decays.start[n - 1];
            let at = h * head_dim;
            let end = self.decays.to_end(n);
            for i in 0..n {
                let x = &inputs.x.row(row + i)[head.index * head_dim..][..head_dim];
                let columns = i * wide + at..i * wide + at + head_dim;
                let (written, carried) = (&mut self.written[columns.clone()], &mut self.carried[columns.clone()]);
                let reads = &mut self.reads[columns];
                discretize_on(isa, x, dt[i], end[i], written, carried);
                skip_on(isa, x, inputs.d[head.index], self.decays.start[i], reads);
            }
            let weights = &mut self.weights[..n * CHUNK];
            multiply_on(isa, &self.decays.between[..n * CHUNK], &self.scores[..n * CHUNK], weights);
            let weights = View::new(weights, n, n, CHUNK);
            let written = View::new(&self.written[at..], n, head_dim, wide);
            product_on(micro, Out::new(&mut self.reads[at..], n, head_dim, wide), Old::Kept, 1.0, weights, written);
            for (i, from) in self.reads.chunks(wide).take(n).enumerate() {
                head.out.row(first + i, 0..head_dim).copy_from_slice(&from[at..][..head_dim]);
            }
        }
        if !last {
            self.state.decay(isa, &self.left[..task.heads.len()]);
            self.state.add(micro, b, &self.carried);
        }
    }
}

kernel! {
    /// What a position writes, `dt·x`, and what is left of it behind the chunk.
    pub fn _ / discretize_on(x: &[f32], dt: f32, end: f32, written: &mut [f32], carried: &mut [f32]) {
        for ((written, carried), x) in written.iter_mut().zip(carried).zip(x) {
            *written = dt * x;
            *carried = end * *written;
        }
    }
}

kernel! {
    /// `y = start·y + d·x`.
    pub fn _ / skip_on(x: &[f32], d: f32, start: f32, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = start * *y + d * x;
        }
    }
}
