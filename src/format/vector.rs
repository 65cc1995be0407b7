//! Fitting super-blocks whose columns take their codes from a codebook, several at a time.
//!
//! Like [`superblock`](super::superblock), from the inside out: the best scale of each group, over many candidates; the
//! super-scale for which the sub-scales that exist are nearest to these; then each group's sub-scale against its neighbours,
//! and the super-scale by least squares with everything else held, unless that raises `Σ h·(w − ŵ)²`. The entries are the
//! best ones each time, for which no list of neighbours in the codebook is needed.

use crate::grid::{Codebook, Codes, Effort, F, Freedom, GROUPS, Grid, RowSteps, Steps};
use half::f16;
use llmq_kernels::codebook::{self, Found};

/// What sub-scales may be: odd multiples of `unit`, `many` of them.
pub const fn odd_scales(unit: f32, many: usize) -> Freedom {
    Freedom { scales: (unit, (2 * many - 1) as f32 * unit), apart: 2.0 * unit, ..Freedom::PLAIN }
}

/// The part of a group's scale by which all its values are shifted; where there is one, it goes up or down.
const SHIFT: f32 = 0.125;

/// A group with its best scale, shift and `Σ h·p²`.
#[derive(Clone, Copy)]
struct Group {
    scale: F,
    shift: F,
    gain: F,
    weight: F,
}

/// Scales by which the largest number of a group is brought to the largest code, times these.
fn candidates(top: f32, effort: Effort) -> impl Iterator<Item = f32> {
    let (from, to) = match top {
        // With one level and zero, most numbers are below half of the largest.
        ..10.0 => (0.75, 2.75),
        _ => (0.6, 1.35),
    };
    let steps = if effort == Effort::Full { 15 } else { 7 };
    (0..=steps).map(move |k| from + (to - from) * k as f32 / steps as f32)
}

/// Fits a super-block.
///
/// # Panics
/// If the grid has no codebook.
pub fn fit(grid: &dyn Grid, w: &[F], h: &[F], effort: Effort) -> Steps {
    let book = grid.codebook().expect("a grid with a codebook");
    let (free, width, groups) = (grid.freedom(), grid.group(), grid.groups());
    let shifts: &[f32] = if free.one_super { &[SHIFT, -SHIFT] } else { &[0.0] };
    let part = |g: usize| (&w[g * width..(g + 1) * width], &h[g * width..(g + 1) * width]);
    let best: Vec<Group> =
        (0..groups).map(|g| best_scale(book, part(g), grid.levels().highest(), shifts, effort)).collect();
    let mut d = super_scale(&best, &free);
    let inverse = d.recip();
    let (mut scales, mut signs, mut errors) = ([F::ZERO; GROUPS], [F::ZERO; GROUPS], [F::ZERO; GROUPS]);
    let (mut top, mut bottom) = (F::ZERO, F::ZERO);
    for (g, group) in best.iter().enumerate() {
        let (w, h) = part(g);
        let near = free.round_scale(group.scale * inverse);
        let steps: &[f32] = if effort == Effort::Full { &[0.0, -1.0, 1.0] } else { &[0.0] };
        let (mut wp, mut pp) = (F::ZERO, F::ZERO);
        errors[g] = F::splat(f32::INFINITY);
        (scales[g], signs[g]) = (near, group.shift);
        for &step in steps {
            let scale = (near + F::splat(step * free.apart)).clamp(free.scales.0, free.scales.1);
            let found = codebook::fit(w, h, d * scale, group.shift, book);
            scales[g] = found.error.less(errors[g], scale, scales[g]);
            wp = found.error.less(errors[g], found.wp, wp);
            pp = found.error.less(errors[g], found.pp, pp);
            errors[g] = found.error.min(errors[g]);
        }
        top = scales[g].mul_add(wp, top);
        bottom = (scales[g] * scales[g]).mul_add(pp, bottom);
    }
    let refitted = top.div_or_zero(bottom).to_f16();
    let (mut before, mut after) = (F::ZERO, F::ZERO);
    for g in 0..groups {
        let (w, h) = part(g);
        before = before + errors[g];
        after = after + codebook::fit(w, h, refitted * scales[g], signs[g], book).error;
    }
    d = after.less(before, refitted, d);
    if free.one_super {
        let mins = std::array::from_fn(|g| F::ZERO - signs[g] * scales[g]);
        return Steps { d, dmin: d, scales, mins };
    }
    Steps { scales, ..Steps::plain(d) }
}

/// The best scale of a group by itself, and the best shift. `top`: the largest code.
fn best_scale(book: &Codebook, (w, h): (&[F], &[F]), top: f32, shifts: &[f32], effort: Effort) -> Group {
    let mut largest = F::ZERO;
    for w in w {
        largest = largest.max(w.abs());
    }
    let mut best = Group { scale: F::ZERO, shift: F::splat(shifts[0]), gain: F::ZERO, weight: F::ZERO };
    let improve = |scale: F, shift: F, best: &mut Group| {
        let found = codebook::fit(w, h, scale, shift, book);
        // With the best scale for these codes the error is Σhw² − (Σhwp)²/Σhp².
        let scale = found.wp.div_or_zero(found.pp);
        let gain = scale * found.wp;
        best.scale = best.gain.less(gain, scale, best.scale);
        best.shift = best.gain.less(gain, shift, best.shift);
        best.weight = best.gain.less(gain, found.pp, best.weight);
        best.gain = best.gain.max(gain);
    };
    for &shift in shifts {
        for candidate in candidates(top, effort) {
            improve(largest * F::splat(1.0 / (top * candidate)), F::splat(shift), &mut best);
        }
    }
    for _ in 0..if effort == Effort::Full { 2 } else { 1 } {
        improve(best.scale, best.shift, &mut best);
    }
    best
}

/// The super-scale that costs the groups least when their scales become multiples of it.
fn super_scale(groups: &[Group], free: &Freedom) -> F {
    let largest = groups.iter().fold(F::ZERO, |largest, group| largest.max(group.scale.abs()));
    let (mut best, mut least) = (F::ZERO, F::splat(f32::INFINITY));
    for step in 0..20 {
        // The largest scale becomes the largest multiple, a little more than it, or as little as three fifths of it.
        let d = (largest * F::splat(1.0 / (free.scales.1 * (1.05 - 0.024 * step as f32)))).to_f16();
        let inverse = d.recip();
        let mut cost = F::ZERO;
        for group in groups {
            let off = group.scale - d * free.round_scale(group.scale * inverse);
            cost = (off * off).mul_add(group.weight, cost);
        }
        best = cost.less(least, d, best);
        least = cost.min(least);
    }
    best
}

/// Recognizes a super-block that a codebook's codes stand for exactly.
pub fn recognize(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let book = grid.codebook()?;
    let (free, width) = (grid.freedom(), grid.group());
    let shifts: &[f32] = if free.one_super { &[SHIFT, -SHIFT] } else { &[0.0] };
    let many = ((free.scales.1 - free.scales.0) / free.apart) as usize;
    let scales: Vec<f32> = (0..=many).map(|k| free.scales.0 + k as f32 * free.apart).collect();
    let first = x.iter().map(|x| x.abs()).find(|x| *x != 0.0)?;
    let magnitudes = book.magnitudes().into_iter().flat_map(|m| shifts.iter().map(move |s| (m + s).abs()));
    let magnitudes: Vec<f32> = magnitudes.filter(|m| *m > 0.0).collect();
    let halves = scales.iter().flat_map(|s| magnitudes.iter().map(move |m| (s * m, first / (s * m))));
    // The product is exact in single precision, so the quotient is, too.
    let mut halves: Vec<f32> =
        halves.filter(|(p, d)| f16::from_f32(*d).to_f32() == *d && d * p == first).map(|(_, d)| d).collect();
    halves.sort_by(f32::total_cmp);
    halves.dedup();
    let mut codes = vec![0; width];
    halves.into_iter().rev().find_map(|d| {
        let mut steps = RowSteps::plain(d);
        if free.one_super {
            steps.dmin = d;
        }
        for (g, x) in x.chunks(width).enumerate() {
            let ways = scales.iter().flat_map(|scale| shifts.iter().map(move |shift| (*scale, *shift)));
            let mut ways = ways.filter(|(scale, shift)| {
                let step = d * scale;
                let each = x.iter().zip(&mut codes).all(|(x, code)| {
                    let level = x / step - shift;
                    *code = level as i8;
                    f32::from(*code) == level && (level + shift) * step == *x
                });
                each && codes.chunks(book.run()).all(|codes| book.holds(codes))
            });
            let (scale, shift) = ways.next()?;
            steps.scales[g] = scale;
            if free.one_super {
                steps.mins[g] = -shift * scale;
            }
        }
        Some(steps)
    })
}

/// Which of the odd multiples of `unit` a sub-scale is, in lane `l`.
pub fn odd_place(unit: f32, scale: &F, l: usize) -> u8 {
    (0.5 * (scale.0[l] / unit - 1.0)) as u8
}

/// What the file stores of each entry of a block in lane `l`.
///
/// # Panics
/// If codes are none of the codebook: no method makes such.
pub fn entries(book: &'static Codebook, codes: &[Codes], l: usize) -> impl Iterator<Item = Found> {
    codes.chunks(book.width()).map(move |codes| {
        book.find(codes.iter().map(|codes| codes[l])).unwrap_or_else(|| {
            let codes: Vec<i8> = codes.iter().map(|codes| codes[l]).collect();
            panic!("{codes:?} are no entry of the codebook")
        })
    })
}

/// Writes the places of all sub-scales of lane `l`, two in a byte.
pub fn put_scales(bytes: &mut [u8], unit: f32, steps: &Steps, l: usize) {
    for (byte, scales) in bytes.iter_mut().zip(steps.scales.chunks(2)) {
        *byte = odd_place(unit, &scales[0], l) | odd_place(unit, &scales[1], l) << 4;
    }
}
