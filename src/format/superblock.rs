//! Fitting what a block stores: a line in half precision, or super-scales with integer scales under them.
//!
//! A super-block stores one or two numbers in half precision (`d`, `dmin`) and, for each of its groups, small integers
//! that multiply them. The fit goes from the inside out: the best scale of each group; the super-scale that the largest of
//! them asks for; the nearest integers; then, in turns, each group's integers against their neighbours, and the super-scales
//! by least squares with everything else held. No step is kept unless it lowers `Σ h·(w − ŵ)²`.

use crate::grid::{Effort, F, GROUPS, Grid, Levels, Steps};
use llmq_kernels::search::{asymmetric, error, moments, symmetric};

/// Rounds of (integers against their neighbours, super-scales by least squares).
fn rounds(effort: Effort) -> usize {
    match effort {
        Effort::Quick => 1,
        Effort::Full => 2,
    }
}

/// A scale in half precision.
pub fn fit_plain(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    Steps::plain(symmetric(w, h, grid.levels(), effort).to_f16())
}

/// A scale and a minimum in half precision, the minimum the best one for the rounded scale.
pub fn fit_line(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    let levels = grid.levels();
    let (d, m) = asymmetric(w, h, levels.highest(), effort, false);
    let d = d.to_f16();
    let sums = moments(w, h, d, m, levels);
    let best = (sums.w - d * sums.q).div_or_zero(sums.h);
    Steps::line(d, F::ZERO.less(sums.h, best, m).to_f16())
}

/// A scale in half precision and the code that stands for zero, a whole number.
///
/// From the best line, the two zero points nearest to its own; and the middle one, with which there is nothing to lose against a
/// grid without zero points. Each gets the scale that fits its codes best.
pub fn fit_zero(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    let (levels, (lowest, highest)) = (grid.levels(), grid.freedom().mins);
    let middle = F::splat((levels.highest() + 1.0) / 2.0);
    let (d, m) = asymmetric(w, h, levels.highest(), effort, false);
    let nearest = (-m).div_or_zero(d).round().clamp(lowest, highest);
    let above = nearest * d + m;
    let other = (nearest + F::ZERO.less(above, F::splat(-1.0), F::splat(1.0))).clamp(lowest, highest);
    let even = symmetric(w, h, Levels::Uniform { lo: -8, hi: 7 }, effort).to_f16();
    let mut best = (even, middle, error(w, h, even, -(even * middle), levels));
    for zero in [nearest, other] {
        let mut d = d;
        for _ in 0..=rounds(effort) {
            let sums = moments(w, h, d, -(d * zero), levels);
            // Σh·w·(q − zero) / Σh·(q − zero)²
            let top = sums.wq - zero * sums.w;
            let bottom = (zero * zero).mul_add(sums.h, sums.qq) - (zero + zero) * sums.q;
            d = top.div_or_zero(bottom);
            let half = d.to_f16();
            let e = error(w, h, half, -(half * zero), levels);
            best = (e.less(best.2, half, best.0), e.less(best.2, zero, best.1), best.2.min(e));
        }
    }
    Steps { mins: [best.1; GROUPS], ..Steps::line(best.0, F::ZERO - best.0) }
}

/// A number for each group that there is.
fn each(groups: usize, of: impl Fn(usize) -> F) -> [F; GROUPS] {
    std::array::from_fn(|g| if g < groups { of(g) } else { F::ZERO })
}

/// Fits a super-block without minima.
pub fn fit_symmetric(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    let (levels, width, groups) = (grid.levels(), grid.group(), grid.groups());
    let (lo, hi) = grid.freedom().scales;
    let group = |g: usize| (&w[g * width..(g + 1) * width], &h[g * width..(g + 1) * width]);
    let mut ideal = [F::ZERO; GROUPS];
    let mut largest = F::ZERO;
    for (g, ideal) in ideal[..groups].iter_mut().enumerate() {
        let (w, h) = group(g);
        *ideal = symmetric(w, h, levels, effort);
        largest = largest.abs().less(ideal.abs(), *ideal, largest);
    }
    let of = |g: usize, d: F, scale: F| {
        let (w, h) = group(g);
        error(w, h, d * scale, F::ZERO, levels)
    };
    // The largest scale has the sign that makes it the lowest integer: there is one more below zero than above.
    let mut d = (largest * F::splat(1.0 / lo)).to_f16();
    let inverse = d.recip();
    let mut scales = ideal.map(|s| (s * inverse).round().clamp(lo, hi));
    let mut errors = each(groups, |g| of(g, d, scales[g]));
    for _ in 0..rounds(effort) {
        for g in 0..groups {
            for step in [-1.0, 1.0] {
                let scale = (scales[g] + F::splat(step)).clamp(lo, hi);
                let e = of(g, d, scale);
                scales[g] = e.less(errors[g], scale, scales[g]);
                errors[g] = errors[g].min(e);
            }
        }
        let (mut top, mut bottom) = (F::ZERO, F::ZERO);
        for (g, &scale) in scales[..groups].iter().enumerate() {
            let (w, h) = group(g);
            let sums = moments(w, h, d * scale, F::ZERO, levels);
            top = scale.mul_add(sums.wq, top);
            bottom = (scale * scale).mul_add(sums.qq, bottom);
        }
        let refitted = top.div_or_zero(bottom).to_f16();
        let new = each(groups, |g| of(g, refitted, scales[g]));
        let (before, after) = (total(&errors), total(&new));
        d = after.less(before, refitted, d);
        for (old, new) in errors.iter_mut().zip(new) {
            *old = after.less(before, new, *old);
        }
    }
    Steps { scales, ..Steps::plain(d) }
}

/// Fits a super-block with minima.
pub fn fit_affine(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    let (levels, width, groups) = (grid.levels(), grid.group(), grid.groups());
    let (_, most) = grid.freedom().scales;
    let group = |g: usize| (&w[g * width..(g + 1) * width], &h[g * width..(g + 1) * width]);
    let (mut scales, mut mins) = ([F::ZERO; GROUPS], [F::ZERO; GROUPS]);
    let (mut top, mut bottom) = (F::ZERO, F::ZERO);
    for g in 0..groups {
        let (w, h) = group(g);
        let (s, m) = asymmetric(w, h, levels.highest(), effort, true);
        (scales[g], mins[g]) = (s, -m);
        (top, bottom) = (top.max(s), bottom.max(-m));
    }
    let of = |g: usize, d: F, dmin: F, scale: F, min: F| {
        let (w, h) = group(g);
        error(w, h, d * scale, -(dmin * min), levels)
    };
    let (mut d, mut dmin) = ((top * F::splat(1.0 / most)).to_f16(), (bottom * F::splat(1.0 / most)).to_f16());
    let (d_inverse, dmin_inverse) = (d.recip(), dmin.recip());
    scales = scales.map(|s| (s * d_inverse).round().clamp(0.0, most));
    mins = mins.map(|m| (m * dmin_inverse).round().clamp(0.0, most));
    let mut errors = each(groups, |g| of(g, d, dmin, scales[g], mins[g]));
    for _ in 0..rounds(effort) {
        for g in 0..groups {
            let (scale, min) = (scales[g], mins[g]);
            for (ds, dm) in [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1)] {
                let s = (scale + F::splat(ds as f32)).clamp(0.0, most);
                let m = (min + F::splat(dm as f32)).clamp(0.0, most);
                let e = of(g, d, dmin, s, m);
                scales[g] = e.less(errors[g], s, scales[g]);
                mins[g] = e.less(errors[g], m, mins[g]);
                errors[g] = errors[g].min(e);
            }
        }
        // Least squares for w ≈ d·(scale·q) − dmin·min.
        let (mut qq, mut qm, mut mm, mut wq, mut wm) = (F::ZERO, F::ZERO, F::ZERO, F::ZERO, F::ZERO);
        for g in 0..groups {
            let (w, h) = group(g);
            let (s, m) = (scales[g], mins[g]);
            let sums = moments(w, h, d * s, -(dmin * m), levels);
            qq = (s * s).mul_add(sums.qq, qq);
            qm = (s * m).mul_add(sums.q, qm);
            mm = (m * m).mul_add(sums.h, mm);
            wq = s.mul_add(sums.wq, wq);
            wm = m.mul_add(sums.w, wm);
        }
        let determinant = qq * mm - qm * qm;
        let best = |numerator: F, alone: F| {
            let both = numerator.div_or_zero(determinant);
            F::ZERO.less(determinant, both, alone).max(F::ZERO).to_f16()
        };
        let d_new = best(wq * mm - wm * qm, wq.div_or_zero(qq));
        let dmin_new = best(wq * qm - wm * qq, F::ZERO);
        let new = each(groups, |g| of(g, d_new, dmin_new, scales[g], mins[g]));
        let (before, after) = (total(&errors), total(&new));
        d = after.less(before, d_new, d);
        dmin = after.less(before, dmin_new, dmin);
        for (old, new) in errors.iter_mut().zip(new) {
            *old = after.less(before, new, *old);
        }
    }
    Steps { d, dmin, scales, mins }
}

fn total(errors: &[F]) -> F {
    errors.iter().fold(F::ZERO, |a, &b| a + b)
}
