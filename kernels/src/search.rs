//! Searches for the scale of one block in each of sixteen rows.
//!
//! The objective is `Σ h·(w − ŵ)²` over a block's columns, with `ŵ` what the block will decode to. Each candidate scale
//! gives codes by rounding; the codes give the best scale in closed form; the best pair is then refined by alternating
//! the two. This is the search of llama.cpp's imatrix quantization (`make_qx_quants`, `make_qkx3_quants`) with more
//! candidates, both signs, and the alternation.

use crate::dispatch::kernel;
use crate::lanes::F;
use crate::levels::{Levels, Nearest, for_levels};

/// How many candidates a search tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A few, as is fit for weights of which nothing else is known.
    Quick,
    /// Many, for weights that are weighed.
    Full,
}

impl Effort {
    /// Rounds of (round to codes, best scale for these codes) after the search.
    fn refinements(self) -> usize {
        match self {
            Effort::Quick => 1,
            Effort::Full => 3,
        }
    }
}

// Functions, not closures: a closure that is not inlined would be compiled for the baseline instruction set.

/// `Σhwq` and `Σhq²` for the codes at a given inverse scale.
#[inline(always)]
fn sums(w: &[F], h: &[F], inverse: F, levels: impl Nearest) -> (F, F) {
    let (mut wq, mut qq) = (F::ZERO, F::ZERO);
    for (&x, &h) in w.iter().zip(h) {
        let q = levels.level(x * inverse);
        let hq = h * q;
        wq = x.mul_add(hq, wq);
        qq = q.mul_add(hq, qq);
    }
    (wq, qq)
}

/// The entry of largest magnitude, with its sign.
#[inline(always)]
fn extreme(w: &[F]) -> F {
    let mut extreme = F::ZERO;
    for &x in w {
        extreme = extreme.abs().less(x.abs(), x, extreme);
    }
    extreme
}

/// Lane by lane, the better of a scale with its gain and the one that fits the codes at `inverse` best.
///
/// With d = Σhwq/Σhq² the error is Σhw² − (Σhwq)²/Σhq²: the larger the quotient the better.
#[inline(always)]
fn improve(w: &[F], h: &[F], inverse: F, levels: impl Nearest, best: &mut F, gain: &mut F) {
    let (wq, qq) = sums(w, h, inverse, levels);
    let d = wq.div_or_zero(qq);
    let g = d * wq;
    *best = gain.less(g, d, *best);
    *gain = gain.max(g);
}

#[inline(always)]
fn symmetric_in(w: &[F], h: &[F], levels: impl Nearest, reach: f32, effort: Effort) -> F {
    let unit = extreme(w).recip();
    let (mut best, mut gain, mut at) = (F::ZERO, F::ZERO, F::ZERO);
    // A tenth of a level apart at four bits; as many of them for finer levels, which are closer already, but for uneven ones, whose outer
    // levels are far apart. With a level or two, most entries are best clipped: those of a block of 256 normal numbers at two fifths
    // of the largest.
    let finer = if levels.is_even() { (reach / 8.0).min(1.0).max(reach / 80.0) } else { reach / 8.0 };
    let apart = if reach < 2.0 { 0.06 } else { 0.1 * finer };
    let (steps, by) = match effort {
        Effort::Quick if reach < 2.0 => (0..=36, 1),
        Effort::Quick if levels.is_even() && (32.0..100.0).contains(&reach) => (-3..=6, 1),
        Effort::Quick => (0..=0, 1),
        Effort::Full if levels.is_even() && reach > 100.0 => (-2..=8, 1),
        Effort::Full if reach < 2.0 => (-9..=36, 1),
        // Then the neighbours of the best: as good as all of them.
        Effort::Full => (-9..=36, 3),
    };
    for step in steps.step_by(by) {
        for sign in [-1.0, 1.0] {
            let inverse = unit * F::splat(sign * (reach + apart * step as f32));
            let before = gain;
            improve(w, h, inverse, levels, &mut best, &mut gain);
            at = before.less(gain, inverse, at);
        }
    }
    if by > 1 {
        for step in [-apart, apart] {
            improve(w, h, at + unit * F::splat(step), levels, &mut best, &mut gain);
        }
    }
    for _ in 0..effort.refinements() {
        improve(w, h, best.recip(), levels, &mut best, &mut gain);
    }
    best
}

kernel! {
    /// The scale `d`, of either sign, that makes `d·q` fit best, `q` among `levels`: `[lanes]`.
    ///
    /// `w`, `h`: `[columns]`. Candidates put the entry of largest magnitude at `t` and at `−t`: values of `t` a little below
    /// the magnitude of the lowest level, and up to half as much again, where the extreme entries are clipped in favour of
    /// the weighty ones.
    pub fn symmetric / symmetric_on(w: &[F], h: &[F], levels: Levels, effort: Effort) -> F {
        let reach = -levels.lowest();
        for_levels!(levels, kind => symmetric_in(w, h, kind, reach, effort))
    }
}

/// A scale, a minimum, and by how much they lower the error of the best constant.
#[derive(Clone, Copy)]
struct Line {
    scale: F,
    minimum: F,
    gain: F,
}

impl Line {
    /// Lane by lane, the one with the larger gain.
    #[inline(always)]
    fn better(self, other: Line) -> Line {
        Line {
            scale: self.gain.less(other.gain, other.scale, self.scale),
            minimum: self.gain.less(other.gain, other.minimum, self.minimum),
            gain: self.gain.max(other.gain),
        }
    }
}

/// The weighted least-squares line through `(q, w)`, for the codes at a given inverse scale and minimum. `least`: what is added to every
/// weight; `mean`: the weighted mean of `w`; `sum_h`: the sum of the weights. With `below`, its minimum is at most zero.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn line(w: &[F], h: &[F], least: F, mean: F, sum_h: F, inverse: F, minimum: F, hi: f32, below: bool) -> Line {
    let (mut sq, mut qq, mut wq) = (F::ZERO, F::ZERO, F::ZERO);
    for (&x, &h) in w.iter().zip(h) {
        let q = ((x - minimum) * inverse).round().clamp(0.0, hi);
        let hq = (h + least) * q;
        sq = sq + hq;
        qq = hq.mul_add(q, qq);
        wq = hq.mul_add(x - mean, wq);
    }
    let centre = sq.div_or_zero(sum_h);
    let d = wq.div_or_zero((qq - centre * sq).max(F::ZERO));
    let free = Line { scale: d, minimum: mean - d * centre, gain: d * wq };
    if !below {
        return free;
    }
    // Where the best line starts above zero, the best one through zero; its gain is counted from the same constant.
    let wq = mean.mul_add(sq, wq);
    let d = wq.div_or_zero(qq);
    let through = Line { scale: d, minimum: F::ZERO, gain: d * wq - mean * mean * sum_h };
    Line {
        scale: F::ZERO.less(free.minimum, through.scale, free.scale),
        minimum: free.minimum.min(F::ZERO),
        gain: F::ZERO.less(free.minimum, through.gain, free.gain),
    }
}

kernel! {
    /// The scale `d ≥ 0` and minimum `m` that make `d·q + m`, `q ∈ 0 ..= hi`, fit best: `[lanes]` each. With `below`, among
    /// minima of at most zero.
    ///
    /// `w`, `h`: `[columns]`. Candidates stretch and shrink the range from the smallest to the largest entry; of weights that are
    /// weighed both ends, each by itself, with the extreme entries clipped in favour of the weighty ones, and then once more on either
    /// side of the best.
    pub fn asymmetric / asymmetric_on(w: &[F], h: &[F], hi: f32, effort: Effort, below: bool) -> (F, F) {
        let (mut low, mut high) = (w[0], w[0]);
        let (mut sum_h, mut sum_w) = (F::ZERO, F::ZERO);
        for (&x, &h) in w.iter().zip(h) {
            low = low.min(x);
            high = high.max(x);
            sum_h = sum_h + h;
            sum_w = h.mul_add(x, sum_w);
        }
        // Entries that are worth clipping are not worth nothing: they tell where the levels end. With that a few per cent of the gain are
        // lost, and no entry is far outside.
        let mut least = F::ZERO;
        if effort == Effort::Full {
            least = sum_h * F::splat(0.03 / w.len() as f32);
            (sum_h, sum_w) = (F::ZERO, F::ZERO);
            for (&x, &h) in w.iter().zip(h) {
                sum_h = sum_h + (h + least);
                sum_w = (h + least).mul_add(x, sum_w);
            }
        }
        if below {
            low = low.min(F::ZERO);
        }
        let mean = sum_w.div_or_zero(sum_h);
        let (span, range) = (high - low, (high - low).recip());
        let constant = if below { mean.min(F::ZERO) } else { mean };
        let gain = F::ZERO - (mean - constant) * (mean - constant) * sum_h;
        let mut best = Line { scale: F::ZERO, minimum: constant, gain };
        if effort == Effort::Full {
            // Parts of the range that are cut off below and above: so many steps of 0.6 levels, and never all of it.
            let step = (0.6 / hi).min(0.2);
            let mut cuts = (F::ZERO, F::ZERO);
            for (a, b) in (-1..3).flat_map(|a| (-1..3).map(move |b| (a, b))) {
                let (a, b) = (a as f32 * step, b as f32 * step);
                let inverse = range * F::splat(hi / (1.0 - a - b));
                let line = line(w, h, least, mean, sum_h, inverse, span.mul_add(F::splat(a), low), hi, below);
                cuts.0 = best.gain.less(line.gain, F::splat(a), cuts.0);
                cuts.1 = best.gain.less(line.gain, F::splat(b), cuts.1);
                best = best.better(line);
            }
            for (a, b) in [(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)] {
                let (a, b) = (cuts.0 + F::splat(a * step), cuts.1 + F::splat(b * step));
                let inverse = range * F::splat(hi) * (F::splat(1.0) - a - b).recip();
                best = best.better(line(w, h, least, mean, sum_h, inverse, span.mul_add(a, low), hi, below));
            }
        } else {
            // Where both super-scales are still to be fitted, the search is a small part of the work.
            let steps = if below { 4 } else { 1 };
            // As many candidates however fine the levels are, and never a range of no levels.
            let apart = 0.1 * (hi / 15.0).min(1.0);
            for step in -steps..=steps {
                let inverse = range * F::splat(hi + apart * step as f32);
                best = best.better(line(w, h, least, mean, sum_h, inverse, low, hi, below));
            }
        }
        for _ in 0..effort.refinements() {
            best = best.better(line(w, h, least, mean, sum_h, best.scale.recip(), best.minimum, hi, below));
        }
        (best.scale, best.minimum)
    }
}

#[inline(always)]
fn error_in(w: &[F], h: &[F], scale: F, offset: F, levels: impl Nearest) -> F {
    let (mut total, inverse) = (F::ZERO, scale.recip());
    for (&x, &h) in w.iter().zip(h) {
        let e = x - levels.level((x - offset) * inverse).mul_add(scale, offset);
        total = (h * e).mul_add(e, total);
    }
    total
}

kernel! {
    /// The error `Σ h·(w − ŵ)²` of rounding to the grid `scale·q + offset`: `[lanes]`.
    pub fn error / error_on(w: &[F], h: &[F], scale: F, offset: F, levels: Levels) -> F {
        for_levels!(levels, kind => error_in(w, h, scale, offset, kind))
    }
}

/// What a least-squares fit of two super-scales needs to know of a group; see [`moments`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// `Σh`.
    pub h: F,
    /// `Σhq`.
    pub q: F,
    /// `Σhq²`.
    pub qq: F,
    /// `Σhw`.
    pub w: F,
    /// `Σhwq`.
    pub wq: F,
}

#[inline(always)]
fn moments_in(w: &[F], h: &[F], scale: F, offset: F, levels: impl Nearest) -> Moments {
    let inverse = scale.recip();
    let mut m = Moments { h: F::ZERO, q: F::ZERO, qq: F::ZERO, w: F::ZERO, wq: F::ZERO };
    for (&x, &h) in w.iter().zip(h) {
        let q = levels.level((x - offset) * inverse);
        let hq = h * q;
        m.h = m.h + h;
        m.q = m.q + hq;
        m.qq = hq.mul_add(q, m.qq);
        m.w = h.mul_add(x, m.w);
        m.wq = hq.mul_add(x, m.wq);
    }
    m
}

kernel! {
    /// The sums over a group at the levels that its grid gives, for refitting the grid with these levels held.
    pub fn moments / moments_on(w: &[F], h: &[F], scale: F, offset: F, levels: Levels) -> Moments {
        for_levels!(levels, kind => moments_in(w, h, scale, offset, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, LANES};

    fn numbers(n: usize, seed: u64) -> Vec<F> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                F(std::array::from_fn(|_| {
                    s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let u = (s >> 40) as f32 / (1 << 24) as f32;
                    (u - 0.5) * (1.0 + 3.0 * u * u)
                }))
            })
            .collect()
    }

    fn error_of(w: &[F], h: &[F], lane: usize, d: f32, m: f32, levels: Levels) -> f64 {
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        w.iter()
            .zip(h)
            .map(|(w, h)| {
                let q = ((w.0[lane] - m) * inverse).round_ties_even().clamp(levels.lowest(), levels.highest());
                f64::from(h.0[lane]) * f64::from(w.0[lane] - (d * q + m)).powi(2)
            })
            .sum()
    }

    const Q4: Levels = Levels::Uniform { lo: -8, hi: 7 };
    const U4: Levels = Levels::Uniform { lo: 0, hi: 15 };

    static UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

    #[test]
    fn a_minimum_below_zero_is_kept_there_and_costs_little_where_it_is_natural() {
        let (w, h) = (numbers(32, 8), vec![F::splat(1.0); 32]);
        let (free, below) =
            (asymmetric(&w, &h, 15.0, Effort::Full, false), asymmetric(&w, &h, 15.0, Effort::Full, true));
        for lane in 0..LANES {
            let of = |(d, m): (F, F)| error_of(&w, &h, lane, d.0[lane], m.0[lane], U4);
            assert!(below.1.0[lane] <= 0.0 && of(below) <= 1.3 * of(free), "lane {lane}");
        }
        // All above zero: the best line through zero.
        let above: Vec<F> = w.iter().map(|w| w.abs() + F::splat(1.0)).collect();
        let (d, m) = asymmetric(&above, &h, 15.0, Effort::Full, true);
        for lane in 0..LANES {
            let largest = above.iter().fold(0.0f32, |a, w| a.max(w.0[lane]));
            let plain = error_of(&above, &h, lane, largest / 15.0, 0.0, U4);
            assert!(m.0[lane] <= 0.0 && error_of(&above, &h, lane, d.0[lane], m.0[lane], U4) <= plain);
        }
    }

    #[test]
    fn no_scale_of_a_fine_sweep_is_much_better() {
        let (w, h) = (numbers(32, 1), numbers(32, 2).iter().map(|h| h.map(|x| x.abs() + 0.05)).collect::<Vec<_>>());
        let d = symmetric(&w, &h, Q4, Effort::Full);
        for lane in 0..LANES {
            let found = error_of(&w, &h, lane, d.0[lane], 0.0, Q4);
            let sweep = (1..4000)
                .flat_map(|i| [1e-4 * i as f32, -1e-4 * i as f32])
                .map(|d| error_of(&w, &h, lane, d, 0.0, Q4))
                .fold(f64::INFINITY, f64::min);
            assert!(found <= sweep * 1.06, "lane {lane}: {found} against {sweep}");
        }
    }

    #[test]
    fn no_scale_and_minimum_of_a_fine_sweep_are_much_better() {
        for (levels, width) in [(3, 16), (15, 32)] {
            let hi = levels as f32;
            let (mut found, mut swept) = (0.0, 0.0);
            for seed in 0..4 {
                let w = numbers(width, 10 + seed);
                let h: Vec<F> = numbers(width, 20 + seed).iter().map(|h| h.map(|x| (2.0 * x).exp())).collect();
                let (d, m) = asymmetric(&w, &h, hi, Effort::Full, false);
                for lane in 0..LANES {
                    let (low, high) =
                        w.iter().fold((f32::MAX, f32::MIN), |(a, b), w| (a.min(w.0[lane]), b.max(w.0[lane])));
                    let error = |d, m| error_of(&w, &h, lane, d, m, Levels::Uniform { lo: 0, hi: levels });
                    // Of the range, up to a half at either end.
                    let cuts = (-4..50).flat_map(|a| (-4..50 - a).map(move |b| (a as f32 * 0.01, b as f32 * 0.01)));
                    let span = high - low;
                    let of = |(a, b): (f32, f32)| error((1.0 - a - b) * span / hi, low + a * span);
                    found += error(d.0[lane], m.0[lane]);
                    swept += cuts.map(of).fold(f64::INFINITY, f64::min);
                }
            }
            assert!(found <= swept * 1.04, "0 to {levels}: {found} against {swept}");
        }
    }

    #[test]
    fn searching_beats_minimum_and_maximum() {
        let (w, h) = (numbers(32, 3), numbers(32, 4).iter().map(|h| h.map(|x| x * x + 0.01)).collect::<Vec<_>>());
        let (d, m) = asymmetric(&w, &h, 15.0, Effort::Full, false);
        for lane in 0..LANES {
            let (low, high) = w.iter().fold((f32::MAX, f32::MIN), |(a, b), w| (a.min(w.0[lane]), b.max(w.0[lane])));
            let plain = error_of(&w, &h, lane, (high - low) / 15.0, low, U4);
            let found = error_of(&w, &h, lane, d.0[lane], m.0[lane], U4);
            assert!(found < plain, "lane {lane}: {found} against {plain}");
        }
    }

    #[test]
    fn values_on_a_grid_are_found_exactly() {
        let w: Vec<F> = (0..32).map(|i| F::splat(0.25 * ((i * 5 % 16) as f32 - 8.0))).collect();
        let h = vec![F::splat(1.0); 32];
        assert_eq!(symmetric(&w, &h, Q4, Effort::Full), F::splat(0.25));
        let shifted: Vec<F> = w.iter().map(|w| *w + F::splat(5.0)).collect();
        // As exactly as blocks store it.
        let (d, m) = asymmetric(&shifted, &h, 15.0, Effort::Full, false);
        assert_eq!((d.to_f16(), m.to_f16()), (F::splat(0.25), F::splat(3.0)));
    }

    #[test]
    fn constant_zero_and_unweighted_blocks_give_finite_scales() {
        for (value, weight) in [(0.0, 1.0), (3.0, 1.0), (-3.0, 1.0), (3.0, 0.0), (1e-30, 1.0), (1e30, 1.0)] {
            let (w, h) = (vec![F::splat(value); 32], vec![F::splat(weight); 32]);
            let d = symmetric(&w, &h, Q4, Effort::Full);
            let (s, m) = asymmetric(&w, &h, 15.0, Effort::Full, false);
            for x in [d, s, m] {
                assert!(x.0.iter().all(|x| x.is_finite()), "{value} {weight}: {x:?}");
            }
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit() {
        for n in [1, 16, 31, 32] {
            let (w, h) = (numbers(n, 5), numbers(n, 6).iter().map(|h| h.abs()).collect::<Vec<_>>());
            let run = |isa| {
                let symmetric = symmetric_on(isa, &w, &h, Q4, Effort::Full);
                let uneven = symmetric_on(isa, &w, &h, Levels::Table(&UNEVEN), Effort::Full);
                let (free, below) = (
                    asymmetric_on(isa, &w, &h, 15.0, Effort::Full, false),
                    asymmetric_on(isa, &w, &h, 3.0, Effort::Full, true),
                );
                let error = error_on(isa, &w, &h, symmetric, F::ZERO, Q4);
                (symmetric, uneven, free, below, error, moments_on(isa, &w, &h, free.0, free.1, U4))
            };
            for isa in Isa::available() {
                assert_eq!(run(isa), run(Isa::Baseline), "{isa:?} with {n}");
            }
        }
    }
}
