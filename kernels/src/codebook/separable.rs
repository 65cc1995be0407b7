//! Costs that add up over columns.

use super::{Codebook, HALVES, RUN, Room, Signs};
use crate::column::Codes;
use crate::dispatch::kernel;
use crate::lanes::{F, LANES, whole};

/// The sums over all columns of half an entry, for each combination of its levels.
///
/// `out[k]` starts as one number and is combined with what each column adds: the squared error, or, with `FLIPS`, the least
/// that a wrong sign costs anywhere.
#[inline(always)]
fn combine<const FLIPS: bool>(x: &[F], h: &[F], levels: &[f32], out: &mut [F; HALVES]) {
    let mut n = 1;
    out[0] = F::splat(if FLIPS { f32::INFINITY } else { 0.0 });
    for (&x, &h) in x.iter().zip(h) {
        // The lowest level last: it overwrites what the others are made of.
        for (d, &level) in levels.iter().enumerate().rev() {
            let e = x - F::splat(level);
            let cost = if FLIPS { F::splat(4.0 * level) * h * x } else { h * e * e };
            for k in 0..n {
                out[d * n + k] = if FLIPS { cost.min(out[k]) } else { out[k] + cost };
                whole();
            }
        }
        n *= levels.len();
    }
}

/// One where an odd number of columns is below zero, zero elsewhere.
#[inline(always)]
fn odd(x: &[F]) -> F {
    let mut sign = F::splat(1.0);
    for &x in x {
        sign = x.less(F::ZERO, F::ZERO - sign, sign);
    }
    sign.less(F::ZERO, F::splat(1.0), F::ZERO)
}

/// Places of entries and their costs.
#[derive(Clone, Copy)]
struct Best {
    place: F,
    cost: F,
    /// The best with one sign wrong, and its cost.
    flipped: F,
    flipped_cost: F,
}

/// The best entries. `x`: `[width]`, magnitudes, or levels with their signs.
#[inline(always)]
fn best<const EVEN: bool>(x: &[F], h: &[F], book: &Codebook, room: &mut Room) -> Best {
    let half = x.len() / 2;
    let infinite = F::splat(f32::INFINITY);
    let Room { low, high, flip_low, flip_high, .. } = room;
    combine::<false>(&x[..half], &h[..half], &book.levels, low);
    combine::<false>(&x[half..], &h[half..], &book.levels, high);
    if EVEN {
        combine::<true>(&x[..half], &h[..half], &book.levels, flip_low);
        combine::<true>(&x[half..], &h[half..], &book.levels, flip_high);
    }
    let mut best = Best { place: F::ZERO, cost: infinite, flipped: F::ZERO, flipped_cost: infinite };
    for (n, &[a, b]) in book.halves.iter().enumerate() {
        let (a, b) = (a as usize % HALVES, b as usize % HALVES);
        let (cost, n) = (low[a] + high[b], F::splat(n as f32));
        best.place = cost.less(best.cost, n, best.place);
        best.cost = cost.min(best.cost);
        if EVEN {
            let cost = cost + flip_low[a].min(flip_high[b]);
            best.flipped = cost.less(best.flipped_cost, n, best.flipped);
            best.flipped_cost = cost.min(best.flipped_cost);
        }
        whole();
    }
    best
}

/// The nearest entries to one run. `x`, `h`: `[run]`, `x` in units of the scale.
#[inline(always)]
pub(super) fn nearest(x: &[F], h: &[F], book: &Codebook, codes: &mut [Codes], room: &mut Room) {
    let mut own = [F::ZERO; RUN];
    match book.signs {
        Signs::None => {
            let found = best::<false>(x, h, book, room);
            put(&found.place, &F::ZERO, book, codes);
        }
        Signs::Shifted => {
            let (mut place, mut shift, mut least) = (F::ZERO, F::splat(1.0), F::splat(f32::INFINITY));
            for s in [1.0, -1.0] {
                for (own, &x) in own.iter_mut().zip(x) {
                    *own = x - F::splat(s);
                }
                let found = best::<false>(&own[..x.len()], h, book, room);
                place = found.cost.less(least, found.place, place);
                shift = found.cost.less(least, F::splat(s), shift);
                least = found.cost.min(least);
            }
            put(&place, &shift, book, codes);
        }
        Signs::Each => {
            for (own, x) in own.iter_mut().zip(x) {
                *own = x.abs();
            }
            let found = best::<false>(&own[..x.len()], h, book, room);
            put(&found.place, &F::ZERO, book, codes);
            sign(x, codes);
        }
        Signs::Even => {
            for (own, x) in own.iter_mut().zip(x) {
                *own = x.abs();
            }
            let width = book.width;
            let mut parts = [best::<true>(&own[..width], &h[..width], book, room); 2];
            if width < RUN {
                parts[1] = best::<true>(&own[width..], &h[width..], book, room);
            }
            // Where one sign has to be wrong: the part, from one up, where that costs least.
            let costs = parts.map(|part| part.flipped_cost - part.cost);
            let which = costs[1].less(costs[0], F::splat(2.0), F::splat(1.0));
            let wrong = F::ZERO.less(odd(x), which, F::ZERO);
            for (p, part) in parts.iter().enumerate().take(RUN / width) {
                let is = F::splat(0.5) - (wrong - F::splat(p as f32 + 1.0)).abs();
                let place = F::ZERO.less(is, part.flipped, part.place);
                put(&place, &F::ZERO, book, &mut codes[p * width..(p + 1) * width]);
            }
            for l in 0..LANES {
                let (part, mut least) = (wrong.0[l] as usize, (0, f32::INFINITY));
                if part > 0 {
                    least.0 = (part - 1) * width;
                    for j in (part - 1) * width..part * width {
                        let cost = h[j].0[l] * own[j].0[l] * f32::from(codes[j][l]);
                        if cost < least.1 {
                            least = (j, cost);
                        }
                    }
                    codes[least.0][l] = -codes[least.0][l];
                }
            }
            sign(x, codes);
        }
    }
}

/// Turns codes whose numbers are below zero.
#[inline(always)]
fn sign(x: &[F], codes: &mut [Codes]) {
    for (x, codes) in x.iter().zip(codes) {
        for l in 0..LANES {
            codes[l] = if x.0[l] < 0.0 { -codes[l] } else { codes[l] };
        }
    }
}

/// The levels of an entry for each lane, shifted.
#[inline(always)]
pub(super) fn put(place: &F, shift: &F, book: &Codebook, codes: &mut [Codes]) {
    for l in 0..LANES {
        let entry = &book.entries[place.0[l] as usize];
        let shift = shift.0[l] as i8;
        for (codes, &level) in codes.iter_mut().zip(entry) {
            codes[l] = level + shift;
        }
    }
}

/// Codes as numbers.
#[inline(always)]
pub(super) fn level(codes: &Codes) -> F {
    let mut out = F::ZERO;
    for l in 0..LANES {
        out.0[l] = f32::from(codes[l]);
    }
    out
}

#[inline(always)]
fn round_in(w: &[F], h: &[F], scale: F, shift: F, book: &Codebook, codes: &mut [Codes], room: &mut Room) {
    let inverse = scale.recip();
    let mut x = [F::ZERO; RUN];
    for ((w, h), codes) in w.chunks(book.run).zip(h.chunks(book.run)).zip(codes.chunks_mut(book.run)) {
        for (x, &w) in x.iter_mut().zip(w) {
            *x = w * inverse - shift;
        }
        nearest(&x[..w.len()], h, book, codes, room);
    }
}

kernel! {
    /// Rounds each run of `w` to the entry for which `Σ h·(w − scale·(q + shift))²` is smallest.
    ///
    /// `w`, `h`, `codes`: `[columns]`, a multiple of the run; `h ≥ 0`.
    pub fn round / round_on(w: &[F], h: &[F], scale: F, shift: F, book: &Codebook, codes: &mut [Codes]) {
        round_in(w, h, scale, shift, book, codes, &mut Room::default());
    }
}

/// How well a group is held; see [`fit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// `Σ h·(w − scale·p)²`, with `p = q + shift` what is multiplied by the scale.
    pub error: F,
    /// `Σ h·w·p`.
    pub wp: F,
    /// `Σ h·p²`.
    pub pp: F,
}

kernel! {
    /// How well a scale suits a group of columns with the entries that are best for it: see [`round`].
    pub fn fit / fit_on(w: &[F], h: &[F], scale: F, shift: F, book: &Codebook) -> Fit {
        let (mut codes, mut room) = ([[0; LANES]; 32], Room::default());
        let mut sums = Fit { error: F::ZERO, wp: F::ZERO, pp: F::ZERO };
        for (w, h) in w.chunks(codes.len()).zip(h.chunks(codes.len())) {
            let codes = &mut codes[..w.len()];
            round_in(w, h, scale, shift, book, codes, &mut room);
            for ((codes, &w), &h) in codes.iter().zip(w).zip(h) {
                let p = level(codes) + shift;
                let e = w - scale * p;
                let hp = h * p;
                sums.error = (h * e).mul_add(e, sums.error);
                sums.wp = hp.mul_add(w, sums.wp);
                sums.pp = hp.mul_add(p, sums.pp);
                whole();
            }
        }
        sums
    }
}
