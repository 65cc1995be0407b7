//! Searches for the scale of one block in each of sixteen rows.
//!
//! The objective is `Σ h·(w − ŵ)²` over a block's columns, with `ŵ` what the block will decode to. Each candidate scale
//! gives codes by rounding; the codes give the best scale in closed form; the best pair is then refined by alternating
//! the two. This is the search of llama.cpp's imatrix quantization (`make_qx_quants`, `make_qkx3_quants`) with more
//! candidates, both signs, and the alternation.

use crate::dispatch::kernel;
use crate::lanes::F;

/// Rounds of (round to codes, best scale for these codes) after the search.
const REFINEMENTS: usize = 3;

/// The integers of a grid whose values are `scale · q + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// The smallest code.
    pub lo: i8,
    /// The largest code.
    pub hi: i8,
}

// Functions, not closures: a closure that is not inlined would be compiled for the baseline instruction set.

/// `Σhwq` and `Σhq²` for the codes at a given inverse scale.
#[inline(always)]
fn sums(w: &[F], h: &[F], inverse: F, lo: f32, hi: f32) -> (F, F) {
    let (mut wq, mut qq) = (F::ZERO, F::ZERO);
    for (&x, &h) in w.iter().zip(h) {
        let q = (x * inverse).round().clamp(lo, hi);
        let hq = h * q;
        wq = x.mul_add(hq, wq);
        qq = q.mul_add(hq, qq);
    }
    (wq, qq)
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

/// The weighted least-squares line through `(q, w)`, for the codes at a given inverse scale and minimum. `mean`: the
/// weighted mean of `w`; `sum_h`: the sum of the weights.
#[inline(always)]
fn line(w: &[F], h: &[F], mean: F, sum_h: F, inverse: F, minimum: F, hi: f32) -> Line {
    let (mut sq, mut qq, mut wq) = (F::ZERO, F::ZERO, F::ZERO);
    for (&x, &h) in w.iter().zip(h) {
        let q = ((x - minimum) * inverse).round().clamp(0.0, hi);
        let hq = h * q;
        sq = sq + hq;
        qq = hq.mul_add(q, qq);
        wq = hq.mul_add(x - mean, wq);
    }
    let centre = sq.div_or_zero(sum_h);
    let d = wq.div_or_zero((qq - centre * sq).max(F::ZERO));
    Line { scale: d, minimum: mean - d * centre, gain: d * wq }
}

kernel! {
    /// The scale `d` that makes `d·q`, `q ∈ lo ..= hi`, fit best: `[lanes]`, rounded to half precision.
    ///
    /// `w`, `h`: `[columns]`. Candidates put the entry of largest magnitude at `t` and at `−t` for values of `t` that are
    /// `0.1` apart: `steps` of them below `−lo`, and `4·steps` above, where the extreme entries are clipped in favour of
    /// the weighty ones.
    pub fn symmetric / symmetric_on(w: &[F], h: &[F], levels: Levels, steps: i32) -> F {
        let (lo, hi) = (f32::from(levels.lo), f32::from(levels.hi));
        let mut extreme = F::ZERO;
        for &x in w {
            extreme = extreme.abs().less(x.abs(), x, extreme);
        }
        let unit = extreme.recip();
        // With d = Σhwq/Σhq² the error is Σhw² − (Σhwq)²/Σhq²: the larger the quotient the better.
        let (mut best, mut gain) = (F::ZERO, F::ZERO);
        for step in -steps..=4 * steps {
            for sign in [-1.0, 1.0] {
                let t = sign * (-lo + 0.1 * step as f32);
                let (wq, qq) = sums(w, h, unit * F::splat(t), lo, hi);
                let d = wq.div_or_zero(qq);
                let g = d * wq;
                best = gain.less(g, d, best);
                gain = gain.max(g);
            }
        }
        for _ in 0..REFINEMENTS {
            let (wq, qq) = sums(w, h, best.recip(), lo, hi);
            let d = wq.div_or_zero(qq);
            let g = d * wq;
            best = gain.less(g, d, best);
            gain = gain.max(g);
        }
        best.to_f16()
    }
}

kernel! {
    /// The scale `d` and minimum `m` that make `d·q + m`, `q ∈ 0 ..= hi`, fit best: `[lanes]` each, rounded to half
    /// precision.
    ///
    /// `w`, `h`: `[columns]`. Candidates stretch and shrink the range from the smallest to the largest entry, `steps` to
    /// either side.
    pub fn asymmetric / asymmetric_on(w: &[F], h: &[F], levels: Levels, steps: i32) -> (F, F) {
        let hi = f32::from(levels.hi);
        let (mut low, mut high) = (w[0], w[0]);
        let (mut sum_h, mut sum_w) = (F::ZERO, F::ZERO);
        for (&x, &h) in w.iter().zip(h) {
            low = low.min(x);
            high = high.max(x);
            sum_h = sum_h + h;
            sum_w = h.mul_add(x, sum_w);
        }
        let mean = sum_w.div_or_zero(sum_h);
        let range = (high - low).recip();
        let mut best = Line { scale: F::ZERO, minimum: mean, gain: F::ZERO };
        for step in -steps..=steps {
            best = best.better(line(w, h, mean, sum_h, range * F::splat(hi + 0.1 * step as f32), low, hi));
        }
        for _ in 0..REFINEMENTS {
            best = best.better(line(w, h, mean, sum_h, best.scale.recip(), best.minimum, hi));
        }
        let scale = best.scale.to_f16();
        // The minimum that goes with the rounded scale and the codes it will meet.
        let mut rest = F::ZERO;
        let inverse = scale.recip();
        for (&x, &h) in w.iter().zip(h) {
            let q = ((x - best.minimum) * inverse).round().clamp(0.0, hi);
            rest = h.mul_add(x - scale * q, rest);
        }
        let minimum = F::ZERO.less(sum_h, rest.div_or_zero(sum_h), best.minimum);
        (scale, minimum.to_f16())
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

    fn error(w: &[F], h: &[F], lane: usize, d: f32, m: f32, levels: Levels) -> f64 {
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        w.iter()
            .zip(h)
            .map(|(w, h)| {
                let q = ((w.0[lane] - m) * inverse).round_ties_even().clamp(levels.lo.into(), levels.hi.into());
                f64::from(h.0[lane]) * f64::from(w.0[lane] - (d * q + m)).powi(2)
            })
            .sum()
    }

    const Q4: Levels = Levels { lo: -8, hi: 7 };
    const U4: Levels = Levels { lo: 0, hi: 15 };

    #[test]
    fn no_scale_of_a_fine_sweep_is_much_better() {
        let (w, h) = (numbers(32, 1), numbers(32, 2).iter().map(|h| h.map(|x| x.abs() + 0.05)).collect::<Vec<_>>());
        let d = symmetric(&w, &h, Q4, 9);
        for lane in 0..LANES {
            let found = error(&w, &h, lane, d.0[lane], 0.0, Q4);
            let sweep = (1..4000)
                .flat_map(|i| [1e-4 * i as f32, -1e-4 * i as f32])
                .map(|d| error(&w, &h, lane, d, 0.0, Q4))
                .fold(f64::INFINITY, f64::min);
            assert!(found <= sweep * 1.06, "lane {lane}: {found} against {sweep}");
        }
    }

    #[test]
    fn searching_beats_minimum_and_maximum() {
        let (w, h) = (numbers(32, 3), numbers(32, 4).iter().map(|h| h.map(|x| x * x + 0.01)).collect::<Vec<_>>());
        let (d, m) = asymmetric(&w, &h, U4, 12);
        for lane in 0..LANES {
            let (low, high) = w.iter().fold((f32::MAX, f32::MIN), |(a, b), w| (a.min(w.0[lane]), b.max(w.0[lane])));
            let plain = error(&w, &h, lane, (high - low) / 15.0, low, U4);
            let found = error(&w, &h, lane, d.0[lane], m.0[lane], U4);
            assert!(found < plain, "lane {lane}: {found} against {plain}");
        }
    }

    #[test]
    fn values_on_a_grid_are_found_exactly() {
        let w: Vec<F> = (0..32).map(|i| F::splat(0.25 * ((i * 5 % 16) as f32 - 8.0))).collect();
        let h = vec![F::splat(1.0); 32];
        assert_eq!(symmetric(&w, &h, Q4, 9), F::splat(0.25));
        let shifted: Vec<F> = w.iter().map(|w| *w + F::splat(5.0)).collect();
        assert_eq!(asymmetric(&shifted, &h, U4, 9), (F::splat(0.25), F::splat(3.0)));
    }

    #[test]
    fn constant_zero_and_unweighted_blocks_give_finite_scales() {
        for (value, weight) in [(0.0, 1.0), (3.0, 1.0), (-3.0, 1.0), (3.0, 0.0), (1e-30, 1.0), (1e30, 1.0)] {
            let (w, h) = (vec![F::splat(value); 32], vec![F::splat(weight); 32]);
            let d = symmetric(&w, &h, Q4, 9);
            let (s, m) = asymmetric(&w, &h, U4, 9);
            for x in [d, s, m] {
                assert!(x.0.iter().all(|x| x.is_finite()), "{value} {weight}: {x:?}");
            }
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit() {
        for n in [1, 16, 31, 32] {
            let (w, h) = (numbers(n, 5), numbers(n, 6).iter().map(|h| h.abs()).collect::<Vec<_>>());
            for isa in Isa::available() {
                assert_eq!(symmetric_on(isa, &w, &h, Q4, 9), symmetric_on(Isa::Baseline, &w, &h, Q4, 9));
                assert_eq!(asymmetric_on(isa, &w, &h, U4, 9), asymmetric_on(Isa::Baseline, &w, &h, U4, 9));
            }
        }
    }
}
