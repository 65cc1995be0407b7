//! Coordinate descent on what GPTQ has left: each code, or run of codes, then each scale, moves to where the layer's output error is
//! smallest with everything else held.
//!
//! The objective is that of GPTQ, `tr((W−Q) H (W−Q)ᵀ)` (Frantar et al. 2022, equation 1); the sweeps over codes are those of
//! QuIP's and CDQuant's coordinate descent. Scales move along the direction in which the block's values depend on them, by
//! the best step rounded to what the file can hold: integer sub-scales, then the super-scale in half precision. No move is
//! made unless it lowers the objective.

use super::gptq::Room;
use super::quantized_matrix::Part;
use crate::grid::{Codes, F, Freedom, Grid, LANES, Steps};
use llmq_kernels::gemm::{Old, Precision, View, product};
use llmq_kernels::{codebook, descent, levels};

/// Columns that are moved before the rest of the gradient follows.
const TILE: usize = 128;

/// What is moved, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Sweeps over all columns.
    pub sweeps: usize,
    /// Whether scales move, too.
    pub scales: bool,
    /// Of the products with what moves.
    pub precision: Precision,
}

/// Lowers the objective of some rows. `room`: half the negative gradient of what they are rounded to; `scales`: by what each column is
/// multiplied before it is rounded, `[n]`; `h`: `[n, n]`, its diagonal above zero.
pub fn polish(
    room: &mut Room,
    scales: &[f32],
    part: &mut Part<'_>,
    h: &[f32],
    n: usize,
    grid: &dyn Grid,
    effort: Effort,
) {
    let Room { q, g, moves, .. } = room;
    let padded = g.len() / n;
    q.resize(n * padded, 0.0);
    values(part, scales, n, grid, q);
    let width = TILE.next_multiple_of(grid.width()).min(n);
    moves.resize(width * padded, 0.0);
    let mut tile = Tile::new(width, grid);
    for sweep in 1..=effort.sweeps {
        let mut moved = false;
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            let corner = &h[first * n + first..];
            tile.resize(last - first);
            for lane in (0..padded).step_by(LANES) {
                tile.load(g, q, first, padded, lane);
                let codes = &mut part.codes[lane / LANES * n..][first..last];
                let steps = &mut part.steps[lane / LANES * (n / grid.width())..];
                let steps = &mut steps[first / grid.width()..last / grid.width()];
                let s = &scales[first..last];
                tile.codes(codes, steps, s, corner, n);
                if effort.scales {
                    tile.scales(codes, steps, s, corner, n);
                }
                moved |= tile.save(q, moves, first, padded, lane);
            }
            // G −= H_:,tile · moves, after which the last sweep asks only for the columns that it has still to come to.
            let from = if sweep < effort.sweeps { 0 } else { last };
            if from < n {
                let moves = View::new(moves, last - first, padded, padded);
                let columns = View::new(&h[from * n + first..], n - from, last - first, n);
                product(effort.precision, &mut g[from * padded..], padded, Old::Kept, -1.0, columns, moves);
            }
        }
        if !moved {
            break;
        }
    }
}

/// The numbers that codes and scales stand for, transposed: `[n, padded]`.
fn values(part: &Part<'_>, scales: &[f32], n: usize, grid: &dyn Grid, out: &mut [f32]) {
    let (width, group) = (grid.width(), grid.group());
    let padded = part.codes.len() / n * LANES;
    let mut numbers = vec![F::ZERO; group];
    for (r, codes) in part.codes.chunks(n).enumerate() {
        for (first, codes) in (0..n).step_by(group).zip(codes.chunks(group)) {
            let (scale, offset) = part.steps[r * (n / width) + first / width].step(first % width / group);
            levels::values(grid.levels(), codes, scale, offset, &mut numbers);
            for (j, number) in (first..n).zip(&numbers[..codes.len()]) {
                let q = *number * F::splat(1.0 / scales[j]);
                out[j * padded + r * LANES..][..LANES].copy_from_slice(&q.0);
            }
        }
    }
}

/// Sixteen rows of some columns.
struct Tile<'a> {
    grid: &'a dyn Grid,
    g: Vec<F>,
    q: Vec<F>,
    moved: Vec<F>,
    /// A direction: one entry per column of a block.
    u: Vec<F>,
    /// Scale and offset of each group.
    lines: Vec<(F, F)>,
}

impl Tile<'_> {
    fn new(columns: usize, grid: &dyn Grid) -> Tile<'_> {
        let zeros = || vec![F::ZERO; columns];
        let (u, lines) = (vec![F::ZERO; grid.width()], Vec::new());
        Tile { grid, g: zeros(), q: zeros(), moved: zeros(), u, lines }
    }

    fn resize(&mut self, columns: usize) {
        [&mut self.g, &mut self.q, &mut self.moved].into_iter().for_each(|x| x.resize(columns, F::ZERO));
    }

    fn load(&mut self, g: &[f32], q: &[f32], first: usize, padded: usize, lane: usize) {
        for j in 0..self.g.len() {
            let at = (first + j) * padded + lane;
            self.g[j].0.copy_from_slice(&g[at..at + LANES]);
            self.q[j].0.copy_from_slice(&q[at..at + LANES]);
            self.moved[j] = F::ZERO;
        }
    }

    /// Says whether anything has moved.
    fn save(&self, q: &mut [f32], moves: &mut [f32], first: usize, padded: usize, lane: usize) -> bool {
        for (j, (new, moved)) in self.q.iter().zip(&self.moved).enumerate() {
            q[(first + j) * padded + lane..][..LANES].copy_from_slice(&new.0);
            moves[j * padded + lane..][..LANES].copy_from_slice(&moved.0);
        }
        self.moved.iter().any(|moved| *moved != F::ZERO)
    }

    fn codes(&mut self, codes: &mut [Codes], steps: &[Steps], scales: &[f32], h: &[f32], stride: usize) {
        let group = self.grid.group();
        self.lines.clear();
        self.lines.extend(steps.iter().flat_map(|s| (0..self.grid.width() / group).map(|g| s.step(g))));
        let (g, q, moved) = (&mut self.g, &mut self.q, &mut self.moved);
        match self.grid.codebook() {
            None => descent::codes(g, q, moved, h, stride, &self.lines, group, scales, self.grid.levels(), codes),
            Some(book) => codebook::sweep(g, q, moved, h, stride, &self.lines, group, scales, book, codes),
        }
    }

    fn scales(&mut self, codes: &[Codes], steps: &mut [Steps], scales: &[f32], h: &[f32], stride: usize) {
        let (width, group, levels) = (self.grid.width(), self.grid.group(), self.grid.levels());
        let free = self.grid.freedom();
        let level = |codes: &Codes| F(codes.map(|code| levels.level(code)));
        for (b, s) in steps.iter_mut().enumerate() {
            let (first, codes) = (b * width, &codes[b * width..(b + 1) * width]);
            let t = |j: usize| F::splat(1.0 / scales[first + j]);
            for g in 0..width / group {
                let at = g * group;
                if free.scales.0 < free.scales.1 {
                    // A minimum that is a part of its scale moves with it.
                    let shift = if free.one_super { s.mins[g].div_or_zero(s.scales[g]) } else { F::ZERO };
                    for (i, u) in self.u[..group].iter_mut().enumerate() {
                        *u = s.d * (level(&codes[at + i]) - shift) * t(at + i);
                    }
                    s.scales[g] = self.step(first + at, group, s.scales[g], |x| free.round_scale(x), h, stride);
                    if free.one_super {
                        s.mins[g] = shift * s.scales[g];
                    }
                }
                if free.mins.0 < free.mins.1 {
                    self.u[..group].iter_mut().enumerate().for_each(|(i, u)| *u = -s.dmin * t(at + i));
                    let limit = |x: F| x.round().clamp(free.mins.0, free.mins.1);
                    s.mins[g] = self.step(first + at, group, s.mins[g], limit, h, stride);
                }
            }
            for (i, (u, codes)) in self.u.iter_mut().zip(codes).enumerate() {
                *u = s.scales[i / group] * level(codes);
                if free.one_super {
                    *u = *u - s.mins[i / group];
                }
                *u = *u * t(i);
            }
            s.d = self.step(first, width, s.d, |x| free.round_super(x), h, stride);
            if free.one_super {
                s.dmin = s.d;
            } else if has_minima(&free) {
                for (i, u) in self.u.iter_mut().enumerate() {
                    *u = -s.mins[i / group] * t(i);
                }
                s.dmin = self.step(first, width, s.dmin, |x| free.round_super(x), h, stride);
            }
        }
    }

    /// Moves one scale, `now`, whose columns `first ..` depend on it through `u`, to the best number that `limit` allows.
    fn step(&mut self, first: usize, n: usize, now: F, limit: impl Fn(F) -> F, h: &[f32], stride: usize) -> F {
        let u = &self.u[..n];
        let (slope, curvature) = descent::along(u, &self.g[first..first + n], &h[first * stride + first..], stride);
        let new = limit(now + slope.div_or_zero(curvature));
        let delta = new - now;
        // −2δ·(uᵀg) + δ²·(uᵀHu) < 0
        let change = delta * (delta * curvature - (slope + slope));
        let delta = change.less(F::ZERO, delta, F::ZERO);
        descent::shift(&mut self.g, &mut self.q, &mut self.moved, h, stride, first, u, delta);
        change.less(F::ZERO, new, now)
    }
}

fn has_minima(free: &Freedom) -> bool {
    free.mins.1 > 0.0
}
