//! Blocks that lie on their grid already: weights that were decoded from some GGUF get exactly their old values again.
//!
//! A search finds the scales that fit best, and for codes that leave levels unused, or super-blocks whose scales share a
//! factor, these need not be the ones the values were made with. So what is a lattice is recognized first, number by number:
//! the step of each group from its differences, then a half-precision super-scale that all steps are multiples of. Whatever
//! is found is checked by decoding: it stands for every value to the last bit, or it is not used. Ordinary weights fail at
//! the first or second number.

use crate::grid::{GROUPS, Grid, Levels, RowSteps};
use half::f16;

/// How far a quotient of decoded values may be from an integer `k`, for `k` up to one: they were rounded to 24 bits twice.
const SLACK: f64 = 4e-7;

/// Steps of `most` levels or fewer of which all numbers are multiples, as `f64`; zero where all numbers are. The largest.
fn step(x: &[f32], noise: f64, most: u32) -> Option<f64> {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return Some(0.0);
    }
    (1..=most).map(|t| f64::from(largest) / f64::from(t)).find(|&step| {
        let slack = noise / step;
        x.iter().all(|&x| {
            let k = f64::from(x) / step;
            (k - k.round()).abs() <= slack + SLACK * k.abs()
        })
    })
}

/// `x` as a number in half precision, where it is one.
fn as_half(x: f64) -> Option<f32> {
    let half = f16::from_f64(x).to_f32();
    ((f64::from(half) - x).abs() <= 2.0 * SLACK * x.abs() && half != 0.0).then_some(half)
}

/// `x` as an integer, where it is one up to `slack`.
fn as_integer(x: f64, slack: f64) -> Option<i64> {
    let n = x.round();
    ((x - n).abs() <= slack + SLACK * n.abs()).then_some(n as i64)
}

/// Recognizes a block that has one scale, in half precision.
pub fn plain(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let d = match grid.levels() {
        Levels::Uniform { lo, hi } => symmetric(x, lo.into(), hi.into()),
        Levels::Table(entries) => table(x, entries),
        Levels::Signs => as_half(f64::from(x[0].abs())).filter(|d| x.iter().all(|x| x.abs() == *d)),
    };
    d.map(RowSteps::plain)
}

/// Recognizes a block that has one scale and one minimum, in half precision.
pub fn line(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let (d, m) = affine(x, grid.levels().highest() as i64)?;
    Some(RowSteps::line(d, m))
}

/// Recognizes a block that has one scale, in half precision, and one zero point.
pub fn with_zero(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let (top, (lowest, highest)) = (grid.levels().highest(), grid.freedom().mins);
    // The largest step, for which the codes are nearest to each other.
    let d = symmetric(x, -(top as i64), top as i64)?;
    let steps = |x: &f32| if d == 0.0 { 0.0 } else { (x / d).round_ties_even() };
    let (least, most) = x.iter().map(steps).fold((0.0f32, 0.0f32), |(a, b), q| (a.min(q), b.max(q)));
    let zero = lowest.max(-least);
    (zero <= highest && most + zero <= top).then(|| RowSteps::whole(d, zero))
}

/// The scale in half precision of a block of integers between `lo` and `hi`.
fn symmetric(x: &[f32], lo: i64, hi: i64) -> Option<f32> {
    let step = step(x, 0.0, lo.unsigned_abs() as u32)?;
    if step == 0.0 {
        return Some(0.0);
    }
    (1..=-lo).find_map(|factor| {
        let d = as_half(step / factor as f64)?;
        [d, -d].into_iter().find(|&d| {
            x.iter().all(|&x| {
                let q = (x / d).round_ties_even();
                (lo as f32..=hi as f32).contains(&q) && q * d == x
            })
        })
    })
}

/// The scale and minimum in half precision of a block of integers from zero to `hi`.
fn affine(x: &[f32], hi: i64) -> Option<(f32, f32)> {
    let (least, differences, noise) = differences(x);
    let step = step(&differences, noise, hi as u32)?;
    if step == 0.0 {
        return as_half(f64::from(least)).or((least == 0.0).then_some(0.0)).map(|m| (0.0, m));
    }
    for factor in 1..=hi {
        let Some(d) = half_near(step / factor as f64, noise) else { continue };
        for first in 0..=hi {
            let Some(m) = half_near(f64::from(least) - first as f64 * f64::from(d), noise) else { continue };
            let exact = |&x: &f32| {
                let q = ((x - m) / d).round_ties_even();
                (0.0..=hi as f32).contains(&q) && q * d + m == x
            };
            if x.iter().all(exact) {
                return Some((d, m));
            }
        }
    }
    None
}

/// As [`as_half`] for a number that is only known up to `noise`; zero counts.
fn half_near(x: f64, noise: f64) -> Option<f32> {
    let half = f16::from_f64(x).to_f32();
    ((f64::from(half) - x).abs() <= 2.0 * noise + 2.0 * SLACK * x.abs()).then_some(half)
}

/// The least number, what the others are above it, and how far these differences may be off.
fn differences(x: &[f32]) -> (f32, Vec<f32>, f64) {
    let (least, most) = x.iter().fold((x[0], x[0]), |(a, b), &x| (a.min(x), b.max(x)));
    let noise = f64::from(least.abs().max(most.abs())) * 2.4e-7;
    // In double precision a difference is exact; single precision rounds it once more, within the noise.
    (least, x.iter().map(|x| x - least).collect(), noise)
}

/// The scale in half precision of a block of entries of `table`.
fn table(x: &[f32], table: &[i8; 16]) -> Option<f32> {
    table_steps(x, table).into_iter().find_map(|step| {
        if step == 0.0 {
            return Some(0.0);
        }
        let d = as_half(step)?;
        x.iter().all(|&x| table.iter().any(|&t| d * f32::from(t) == x)).then_some(d)
    })
}

/// Steps that make all numbers entries of the table.
fn table_steps(x: &[f32], table: &[i8; 16]) -> Vec<f64> {
    let extreme = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    if extreme == 0.0 {
        return vec![0.0];
    }
    let fits = |step: &f64| {
        x.iter().all(|&x| {
            let t = as_integer(f64::from(x) / step, 0.0);
            t.is_some_and(|t| table.iter().any(|&entry| i64::from(entry) == t))
        })
    };
    table.iter().filter(|&&t| t != 0).map(|&t| f64::from(extreme) / f64::from(t)).filter(fits).collect()
}

/// The integers that [`crate::grid::Freedom`] names.
fn integers((lowest, highest): (f32, f32)) -> (i64, i64) {
    (lowest as i64, highest as i64)
}

/// Recognizes a super-block without minima.
pub fn super_symmetric(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let (levels, width, groups) = (grid.levels(), grid.group(), grid.groups());
    let (lo, hi) = integers(grid.freedom().scales);
    // What each group's scale may be a multiple of.
    let mut steps: Vec<Vec<f64>> = Vec::with_capacity(groups);
    for x in x.chunks(width) {
        steps.push(match levels {
            Levels::Uniform { lo, .. } => vec![step(x, 0.0, lo.unsigned_abs().into())?],
            Levels::Table(table) => table_steps(x, table),
            Levels::Signs => Vec::new(),
        });
        if steps.last().is_some_and(Vec::is_empty) {
            return None;
        }
    }
    let multiples = match levels {
        Levels::Uniform { lo, .. } => -i64::from(lo),
        Levels::Table(_) | Levels::Signs => 1,
    };
    let Some(first) = steps.iter().position(|s| s[0] != 0.0) else {
        return Some(RowSteps { scales: [0.0; GROUPS], ..RowSteps::plain(0.0) });
    };
    let exact = |x: &[f32], d: f32, scale: i64| {
        let step = d * scale as f32;
        x.iter().all(|&x| match levels {
            Levels::Uniform { lo, hi } => {
                let q = (x / step).round_ties_even();
                (f32::from(lo)..=f32::from(hi)).contains(&q) && step * q == x
            }
            Levels::Table(table) => table.iter().any(|&t| step * f32::from(t) == x),
            Levels::Signs => step.abs() == x.abs(),
        })
    };
    let scale_of = |g: usize, d: f32| -> Option<i64> {
        let x = &x[g * width..(g + 1) * width];
        steps[g].iter().find_map(|&s| {
            if s == 0.0 {
                return Some(0);
            }
            let n = as_integer(s / f64::from(d), 0.0)?;
            let divisors = (1..=multiples).filter(|m| n % m == 0).map(|m| n / m);
            divisors.flat_map(|n| [n, -n]).find(|&n| n != 0 && (lo..=hi).contains(&n) && exact(x, d, n))
        })
    };
    let most = hi.max(-lo) * multiples;
    for &s in &steps[first] {
        for d in (1..=most).filter_map(|n| as_half(s / n as f64)) {
            for d in [d, -d] {
                let mut scales = [0.0; GROUPS];
                let found = (0..groups).all(|g| {
                    scale_of(g, d).is_some_and(|n| {
                        scales[g] = n as f32;
                        true
                    })
                });
                if found {
                    return Some(RowSteps { scales, ..RowSteps::plain(d) });
                }
            }
        }
    }
    None
}

/// How many super-minima are tried: blocks of constants leave more ways open than are worth it.
const TRIES: usize = 1 << 17;

/// Recognizes a super-block with minima.
pub fn super_affine(grid: &dyn Grid, x: &[f32]) -> Option<RowSteps> {
    let top = grid.levels().highest() as i64;
    let (_, most) = integers(grid.freedom().scales);
    let mut groups = Vec::with_capacity(grid.groups());
    for x in x.chunks(grid.group()) {
        let (least, differences, noise) = differences(x);
        let step = step(&differences, noise, top as u32)?;
        groups.push(Group { x, least: f64::from(least), step, noise });
    }
    // The group whose step is known best.
    let sharpest =
        groups.iter().filter(|g| g.step > 0.0).min_by(|a, b| (a.noise / a.step).total_cmp(&(b.noise / b.step)));
    let multiples = |x: f64, noise: f64| -> Vec<f32> {
        (1..=most * top).filter_map(|n| half_near(x / n as f64, noise / n as f64)).collect()
    };
    let scales = match (sharpest, groups.iter().find(|g| g.least > 0.0)) {
        (Some(g), _) => multiples(g.step, g.noise),
        // Every group is constant: where one is above zero, it is a scale times a code, or that less a minimum, for which
        // there are so many ways that one with a scale just above is found soon.
        (None, Some(g)) => {
            let least = f16::from_f64(g.least / (most * top) as f64).to_bits();
            let above = (0..256).map(|k| f16::from_bits(least.saturating_add(k)).to_f32());
            multiples(g.least, g.noise).into_iter().chain(above).collect()
        }
        (None, None) => vec![0.0],
    };
    let mut tries = TRIES;
    for d in scales {
        let options: Option<Vec<_>> = groups.iter().map(|g| g.options(d, top, most)).collect();
        if let Some(found) = options.and_then(|options| with_scale(&groups, &options, d, top, most, &mut tries)) {
            return Some(found);
        }
    }
    None
}

/// Looks for the super-minimum that goes with `d` and the `options` that it leaves to each group.
fn with_scale(
    groups: &[Group],
    options: &[Vec<(i64, f64)>],
    d: f32,
    top: i64,
    most: i64,
    tries: &mut usize,
) -> Option<RowSteps> {
    let mut all_with = |dmin: f32| {
        *tries = tries.checked_sub(1)?;
        let mut found = RowSteps { d, dmin, scales: [0.0; GROUPS], mins: [0.0; GROUPS] };
        for (g, options) in options.iter().enumerate() {
            let min_of = |base: f64| if dmin > 0.0 { (base / f64::from(dmin)).round() } else { 0.0 };
            let &(scale, base) = options.iter().find(|&&(scale, base)| {
                let min = min_of(base);
                min <= most as f64 && groups[g].is(d, dmin, scale, min as i64, top)
            })?;
            (found.scales[g], found.mins[g]) = (scale as f32, min_of(base) as f32);
        }
        Some(found)
    };
    if let Some(found) = all_with(0.0) {
        return Some(found);
    }
    // A group that reaches below zero has a minimum for certain; the lower it reaches, the better that is known.
    let mut pivots: Vec<usize> = (0..groups.len()).collect();
    pivots.sort_by(|&i, &j| groups[i].least.total_cmp(&groups[j].least));
    for g in pivots {
        let noise = groups[g].noise;
        for &(_, base) in &options[g] {
            let dmins = (1..=most).filter_map(|m| half_near(base / m as f64, noise / m as f64));
            if let Some(found) = dmins.filter(|&dmin| dmin > 0.0).find_map(&mut all_with) {
                return Some(found);
            }
        }
        if groups[g].least < 0.0 {
            break;
        }
    }
    None
}

/// A group of an affine super-block.
struct Group<'a> {
    x: &'a [f32],
    least: f64,
    step: f64,
    noise: f64,
}

impl Group<'_> {
    /// Scales that its step is a multiple of, each with what `dmin · min` would then have to be; none if there are no such.
    fn options(&self, d: f32, top: i64, most: i64) -> Option<Vec<(i64, f64)>> {
        if self.step == 0.0 && self.least <= 0.0 {
            // All numbers are alike: without a scale, they are the minimum itself.
            return Some(vec![(0, -self.least)]);
        }
        if self.step == 0.0 {
            // Alike and above zero: any scale and code that reach them.
            let pairs = (1..=most).flat_map(|scale| (1..=top).map(move |code| (scale, code)));
            let bases = pairs.map(|(scale, code)| (scale, f64::from(d) * (scale * code) as f64 - self.least));
            let mut options: Vec<_> = bases
                .filter(|(_, base)| *base >= -2.0 * self.noise)
                .map(|(scale, base)| (scale, base.max(0.0)))
                .collect();
            options.sort_by(|a, b| a.1.total_cmp(&b.1));
            return (!options.is_empty()).then_some(options);
        }
        let n = as_integer(self.step / f64::from(d), 3.0 * self.noise / f64::from(d))?;
        let mut options = Vec::new();
        for factor in (1..=top).filter(|factor| n % factor == 0) {
            let scale = n / factor;
            if !(1..=most).contains(&scale) {
                continue;
            }
            // The least number may have any code.
            for code in 0..=top {
                let base = f64::from(d) * (scale * code) as f64 - self.least;
                if base >= -2.0 * self.noise {
                    options.push((scale, base.max(0.0)));
                }
            }
        }
        (!options.is_empty()).then_some(options)
    }

    /// Whether these integers stand for it exactly.
    fn is(&self, d: f32, dmin: f32, scale: i64, min: i64, top: i64) -> bool {
        let (step, offset) = (d * scale as f32, dmin * min as f32);
        self.x.iter().all(|&x| {
            let q = if step > 0.0 { ((x + offset) / step).round_ties_even() } else { 0.0 };
            (0.0..=top as f32).contains(&q) && step * q - offset == x
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::iq4_nl::TABLE;
    use super::super::{iq4_xs::Iq4Xs, q3_k::Q3K, q4_k::Q4K, q6_k::Q6K};
    use super::*;

    /// Whole numbers that look random.
    fn codes(n: usize, seed: u64, top: i64) -> Vec<i64> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 33) as i64
        };
        (0..n).map(|_| next() % (top + 1)).collect()
    }

    #[test]
    fn scales_are_found_however_few_levels_are_used() {
        let d = f16::from_f32(0.0371).to_f32();
        for unit in 1..=8 {
            let x: Vec<f32> =
                codes(32, unit, 15 / unit as i64).iter().map(|&q| (q * unit as i64 - 8) as f32 * d).collect();
            let found = symmetric(&x, -8, 7).unwrap();
            assert!(
                x.iter().all(|x| (x / found).round() * found == *x && (-8.0..=7.0).contains(&(x / found).round())),
                "{unit}"
            );
        }
        assert_eq!(symmetric(&[0.0; 32], -8, 7), Some(0.0));
        let x: Vec<f32> = codes(32, 3, 15).iter().map(|&q| -d * f32::from(TABLE[q as usize])).collect();
        assert_eq!(table(&x, &TABLE).map(|found| found.abs()), Some(d));
    }

    #[test]
    fn lines_and_super_blocks_are_found() {
        let (d, m) = (f16::from_f32(0.00123).to_f32(), f16::from_f32(-0.777).to_f32());
        let x: Vec<f32> = codes(32, 5, 15).iter().map(|&q| q as f32 * d + m).collect();
        let (scale, minimum) = affine(&x, 15).unwrap();
        assert!(x.iter().all(|&x| ((x - minimum) / scale).round() * scale + minimum == x));
        for seed in 0..200 {
            let (scales, mins) = (codes(8, seed, 63), codes(8, seed + 1000, 63));
            let (d, dmin) = (f16::from_f32(2e-4 + 1e-6 * seed as f32).to_f32(), f16::from_f32(1.3e-3).to_f32());
            let q = codes(256, seed + 7, 15);
            let x: Vec<f32> =
                (0..256).map(|i| d * scales[i / 32] as f32 * q[i] as f32 - dmin * mins[i / 32] as f32).collect();
            assert!(super_affine(&Q4K, &x).is_some(), "{seed}");
            let q = codes(256, seed + 9, 7);
            let scales = codes(16, seed, 63);
            let x: Vec<f32> = (0..256).map(|i| d * (scales[i / 16] - 32) as f32 * (q[i] - 4) as f32).collect();
            assert!(super_symmetric(&Q3K, &x).is_some(), "{seed}");
            let q = codes(256, seed + 11, 15);
            let x: Vec<f32> =
                (0..256).map(|i| d * (scales[i / 32] - 32) as f32 * f32::from(TABLE[q[i] as usize])).collect();
            assert!(super_symmetric(&Iq4Xs, &x).is_some(), "{seed}");
        }
    }

    #[test]
    fn ordinary_numbers_are_no_lattice() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.71).sin()).collect();
        assert_eq!(symmetric(&x[..32], -8, 7), None);
        assert_eq!(affine(&x[..32], 31), None);
        assert_eq!(table(&x[..32], &TABLE), None);
        assert_eq!(super_affine(&Q4K, &x), None);
        assert_eq!(super_symmetric(&Q6K, &x), None);
    }
}
