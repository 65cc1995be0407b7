//! Costs in a metric that is not diagonal: `cᵀAc − 2bᵀc` of the codes `c` of a run, with an `A` that all rows share.
//!
//! Signs held, an entry's cost is a sum over both halves, plus what one half's levels add to each column of the other: four
//! products for each entry, from tables of the halves. Signs then move one by one, or in pairs where their number is even.

use super::separable::{level, nearest, put};
use super::{Codebook, HALVES, RUN, Room, Signs};
use crate::column::Codes;
use crate::descent::{follow, is_zero};
use crate::dispatch::kernel;
use crate::lanes::{F, LANES, whole};

/// `A` of a run, in units of the scale.
type Metric = [[f32; RUN]; RUN];

/// Rounds of (best entry for these signs, best change of signs).
const ROUNDS: usize = 3;

/// Adds columns `from .. to` of an entry to `cost`, one combination of levels for each place, and to `ahead` what they add to a
/// level of each later column up to `end`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn grow(
    a: &Metric,
    signs: &[F; RUN],
    levels: &[f32],
    from: usize,
    to: usize,
    end: usize,
    cost: &mut [F; HALVES],
    ahead: &mut [[F; HALVES]; RUN],
) {
    let mut n = 1;
    for i in from..to {
        let (own, later) = ahead.split_at_mut(i + 1);
        for (d, &m) in levels.iter().enumerate().rev() {
            let square = F::splat(a[i][i] * m * m);
            for k in 0..n {
                cost[d * n + k] = F::splat(m).mul_add(own[i][k], cost[k] + square);
                whole();
            }
            for (j, ahead) in later[..end - i - 1].iter_mut().enumerate() {
                let j = i + 1 + j;
                let step = signs[i] * signs[j] * F::splat(2.0 * a[i][j] * m);
                for k in 0..n {
                    ahead[d * n + k] = ahead[k] + step;
                    whole();
                }
            }
        }
        n *= levels.len();
    }
}

/// The place of the best entry for given signs, and its cost. `b`: `[run]`.
#[inline(always)]
fn entry<const W: usize>(b: &[F; RUN], a: &Metric, signs: &[F; RUN], book: &Codebook, room: &mut Room) -> (F, F) {
    let half = W / 2;
    let Room { low, high, ahead, .. } = room;
    low[0] = F::ZERO;
    high[0] = F::ZERO;
    (half..W).for_each(|j| ahead[j][0] = F::ZERO);
    grow(a, signs, &book.levels, half, W, W, high, ahead);
    (0..W).for_each(|j| ahead[j][0] = b[j] * signs[j] * F::splat(-2.0));
    grow(a, signs, &book.levels, 0, half, W, low, ahead);
    let (mut least, mut best) = (F::splat(f32::INFINITY), F::ZERO);
    for &([first, second], place) in &book.sorted {
        let (first, second) = (first as usize % HALVES, second as usize % HALVES);
        let digits = &book.digits[second];
        let mut cost = low[first] + high[second];
        for j in 0..half {
            cost = ahead[half + j][first].mul_add(F::splat(digits[j]), cost);
        }
        best = cost.less(least, F::splat(f32::from(place)), best);
        least = cost.min(least);
        whole();
    }
    (best, least)
}

/// Changes the sign, or the pair of signs, by which the cost falls most.
#[inline(always)]
fn flip(b: &[F; RUN], a: &Metric, book: &Codebook, codes: &mut [Codes]) -> bool {
    let (run, even) = (book.run, book.signs == Signs::Even);
    let (mut c, mut change) = ([F::ZERO; RUN], [F::ZERO; RUN]);
    for (c, codes) in c.iter_mut().zip(&*codes) {
        *c = level(codes);
    }
    for i in 0..run {
        let mut g = b[i];
        for k in 0..run {
            g = c[k].mul_add(F::splat(-a[i][k]), g);
        }
        // −2c off in one column: (2c)²·A_ii + 2·g·2c
        change[i] = F::splat(4.0) * c[i] * c[i].mul_add(F::splat(a[i][i]), g);
    }
    let (mut least, mut which) = (F::ZERO, F::splat(-1.0));
    for i in 0..run {
        if even {
            for j in 0..i {
                let both = (c[i] * c[j]).mul_add(F::splat(8.0 * a[i][j]), change[i] + change[j]);
                which = both.less(least, F::splat((i * RUN + j) as f32), which);
                least = both.min(least);
            }
        } else {
            which = change[i].less(least, F::splat((i * RUN + i) as f32), which);
            least = change[i].min(least);
        }
    }
    let mut any = false;
    for l in 0..LANES {
        if which.0[l] >= 0.0 {
            let (i, j) = (which.0[l] as usize / RUN, which.0[l] as usize % RUN);
            codes[i][l] = -codes[i][l];
            if j != i {
                codes[j][l] = -codes[j][l];
            }
            any = true;
        }
    }
    any
}

/// Lowers the cost of the codes of one run as far as entries and signs by themselves can. `codes`: `[run]`, which the file can hold.
#[inline(always)]
fn refine_in<const W: usize>(b: &[F; RUN], a: &Metric, book: &Codebook, codes: &mut [Codes], room: &mut Room) {
    let ones = [F::splat(1.0); RUN];
    match book.signs {
        Signs::None => {
            let (place, cost) = entry::<W>(b, a, &ones, book, room);
            keep(&place, &F::ZERO, &cost, &ones, book, codes);
        }
        Signs::Shifted => {
            let (mut place, mut shift, mut least) = (F::ZERO, F::ZERO, F::splat(f32::INFINITY));
            for s in [1.0, -1.0] {
                // The shift moves every column: what is left is A·(c − s) − (b − s·A1), up to what both shifts share.
                let (mut own, mut constant) = ([F::ZERO; RUN], F::ZERO);
                for i in 0..W {
                    let sum: f32 = a[i][..W].iter().sum();
                    own[i] = b[i] - F::splat(s * sum);
                    constant = b[i].mul_add(F::splat(-2.0 * s), constant);
                }
                let (new, cost) = entry::<W>(&own, a, &ones, book, room);
                let cost = cost + constant;
                place = cost.less(least, new, place);
                shift = cost.less(least, F::splat(s), shift);
                least = cost.min(least);
            }
            keep(&place, &shift, &least, &ones, book, codes);
        }
        Signs::Each | Signs::Even => {
            for _ in 0..ROUNDS {
                for at in (0..book.run).step_by(W) {
                    // The other entries of the run held.
                    let (mut own, mut part, mut signs) = (ones, [[0.0; RUN]; RUN], ones);
                    for i in 0..W {
                        own[i] = b[at + i];
                        for k in 0..book.run {
                            if !(at..at + W).contains(&k) {
                                own[i] = level(&codes[k]).mul_add(F::splat(-a[at + i][k]), own[i]);
                            }
                        }
                        part[i][..W].copy_from_slice(&a[at + i][at..at + W]);
                        signs[i] = level(&codes[at + i]).less(F::ZERO, F::splat(-1.0), signs[i]);
                    }
                    let (place, cost) = entry::<W>(&own, &part, &signs, book, room);
                    keep(&place, &F::ZERO, &cost, &signs, book, &mut codes[at..at + W]);
                }
                if !flip(b, a, book, codes) {
                    break;
                }
            }
        }
    }
}

/// Replaces codes by an entry with given signs, where its cost is a number.
#[inline(always)]
fn keep(place: &F, shift: &F, cost: &F, signs: &[F; RUN], book: &Codebook, codes: &mut [Codes]) {
    let mut new = [[0; LANES]; RUN];
    put(place, shift, book, &mut new);
    for ((codes, new), sign) in codes.iter_mut().zip(&new).zip(signs) {
        for l in 0..LANES {
            if cost.0[l] < f32::INFINITY {
                codes[l] = if sign.0[l] < 0.0 { -new[l] } else { new[l] };
            }
        }
    }
}

/// The same for a run of any length that a codebook has.
#[inline(always)]
fn refine_run(b: &[F; RUN], a: &Metric, book: &Codebook, codes: &mut [Codes], room: &mut Room) {
    match book.width {
        4 => refine_in::<4>(b, a, book, codes, room),
        _ => refine_in::<8>(b, a, book, codes, room),
    }
}

/// `a` divided by the scales of its rows and columns. `a`: rows `stride` apart.
#[inline(always)]
fn scaled(a: &[f32], stride: usize, scales: &[f32]) -> Metric {
    let mut out = [[0.0; RUN]; RUN];
    for (i, row) in out.iter_mut().enumerate().take(scales.len()) {
        for (j, out) in row.iter_mut().enumerate().take(scales.len()) {
            *out = a[i * stride + j] / (scales[i] * scales[j]);
        }
    }
    out
}

/// `Ac + g`. `c`, `g`: `[run]`.
#[inline(always)]
fn product(a: &Metric, c: &[F; RUN], g: &[F; RUN], run: usize) -> [F; RUN] {
    let mut out = *g;
    for i in 0..run {
        for k in 0..run {
            out[i] = c[k].mul_add(F::splat(a[i][k]), out[i]);
        }
    }
    out
}

kernel! {
    /// Lowers `cᵀAc − 2bᵀc`, starting with `codes`, which the file can hold.
    ///
    /// `a`: `[run, run]`, symmetric; `b`, `codes`: `[run]`.
    pub fn refine / refine_on(a: &[f32], b: &[F], book: &Codebook, codes: &mut [Codes]) {
        let mut room = Room::default();
        let mut own = [F::ZERO; RUN];
        own[..b.len()].copy_from_slice(b);
        let a = scaled(a, book.run, &[1.0; RUN][..book.run]);
        refine_run(&own, &a, book, codes, &mut room);
    }
}

kernel! {
    /// [`column::feedback`](crate::column::feedback) for a codebook: each run of columns is rounded to an entry that is near in
    /// the metric of what its error costs once the columns behind have made up for it (BlockLDLQ of Tseng et al. 2024, "QuIP#",
    /// section 4.2, with the entry chosen in that metric), then its errors are fed back column by column.
    ///
    /// `metrics`: `(U_BBᵀU_BB)⁻¹` of each run `B`: `[columns / run, run, run]`.
    pub fn feedback / feedback_on(
        w: &mut [F],
        first: usize,
        u: &[f32],
        stride: usize,
        lines: &[(F, F)],
        groups: &[u8],
        scales: &[f32],
        metrics: &[f32],
        book: &Codebook,
        codes: &mut [Codes],
        e: &mut [F],
    ) {
        let (run, mut room) = (book.run, Room::default());
        let (mut x, mut h) = ([F::ZERO; RUN], [F::ZERO; RUN]);
        for at in (0..codes.len()).step_by(run) {
            let (scale, offset) = lines[groups[at] as usize];
            let inverse = scale.recip();
            let a = scaled(&metrics[at * run..(at + run) * run], run, &scales[at..at + run]);
            for i in 0..run {
                x[i] = (w[first + at + i] * F::splat(scales[at + i]) - offset) * inverse;
                h[i] = F::splat(a[i][i]);
            }
            let codes = &mut codes[at..at + run];
            nearest(&x[..run], &h[..run], book, codes, &mut room);
            let b = product(&a, &x, &[F::ZERO; RUN], run);
            refine_run(&b, &a, book, codes, &mut room);
            for i in 0..run {
                let j = first + at + i;
                let row = &u[j * stride + j..j * stride + w.len()]; // U_jj, U_j,j+1, …
                let q = level(&codes[i]).mul_add(scale, offset) * F::splat(1.0 / scales[at + i]);
                let error = (w[j] - q) * F::splat(1.0 / row[0]);
                e[at + i] = error;
                follow(&mut w[j + 1..], error, &row[1..]);
            }
        }
    }
}

kernel! {
    /// [`descent::codes`](crate::descent::codes) for a codebook: each run of columns moves to a better entry with all others held.
    pub fn sweep / sweep_on(
        g: &mut [F],
        q: &mut [F],
        moved: &mut [F],
        h: &[f32],
        stride: usize,
        steps: &[(F, F)],
        group: usize,
        scales: &[f32],
        book: &Codebook,
        codes: &mut [Codes],
    ) {
        let (n, run, mut room) = (g.len(), book.run, Room::default());
        let (mut c, mut own) = ([F::ZERO; RUN], [F::ZERO; RUN]);
        for at in (0..n).step_by(run) {
            let (scale, offset) = steps[at / group];
            let inverse = scale.recip();
            let a = scaled(&h[at * stride + at..], stride, &scales[at..at + run]);
            let codes = &mut codes[at..at + run];
            for i in 0..run {
                c[i] = level(&codes[i]);
                own[i] = g[at + i] * F::splat(1.0 / scales[at + i]) * inverse;
            }
            let b = product(&a, &c, &own, run);
            refine_run(&b, &a, book, codes, &mut room);
            for i in 0..run {
                let j = at + i;
                let new = level(&codes[i]).mul_add(scale, offset) * F::splat(1.0 / scales[j]);
                let delta = new - q[j];
                if is_zero(delta) {
                    continue;
                }
                q[j] = new;
                moved[j] = moved[j] + delta;
                follow(g, delta, &h[j * stride..j * stride + n]);
            }
        }
    }
}
