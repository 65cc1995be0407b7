//! Coordinate descent on `f(q) = (w − q) H (w − q)ᵀ` for sixteen rows at a time.
//!
//! Throughout, `g = H (w − q)ᵀ` is half the negative gradient: moving `q` by `δ` along `u` changes `f` by
//! `−2δ·(uᵀg) + δ²·(uᵀHu)`, and `g` by `−δ·Hu`.

use crate::column::Codes;
use crate::dispatch::kernel;
use crate::lanes::{F, LANES, whole};
use crate::levels::{Levels, Nearest, for_levels};

/// `g −= δ·H_j` for one column `j` of the tile; or what error feedback does to the columns behind one, `w −= e·U_j`.
#[inline(always)]
pub(crate) fn follow(g: &mut [F], delta: F, row: &[f32]) {
    for (g, &h) in g.iter_mut().zip(row) {
        *g = delta.mul_add(F::splat(-h), *g);
        whole();
    }
}

#[inline(always)]
pub(crate) fn is_zero(x: F) -> bool {
    let mut all = 0;
    for l in 0..LANES {
        all |= x.0[l].to_bits();
    }
    all << 1 == 0
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn codes_in(
    g: &mut [F],
    q: &mut [F],
    moved: &mut [F],
    h: &[f32],
    stride: usize,
    steps: &[(F, F)],
    group: usize,
    scales: &[f32],
    levels: impl Nearest,
    codes: &mut [Codes],
) {
    let n = g.len();
    for j in 0..n {
        let row = &h[j * stride..j * stride + n];
        let (scale, offset) = steps[j / group];
        let (s, t) = (F::splat(scales[j]), F::splat(1.0 / scales[j]));
        let target = g[j].mul_add(F::splat(1.0 / row[j]), q[j]) * s;
        let new = levels.code((target - offset) * scale.recip(), &mut codes[j]).mul_add(scale, offset) * t;
        let delta = new - q[j];
        if is_zero(delta) {
            continue;
        }
        q[j] = new;
        moved[j] = moved[j] + delta;
        follow(g, delta, row);
    }
}

kernel! {
    /// One sweep over the codes of a tile of columns: each column moves to the point of its grid that is best with all
    /// others held.
    ///
    /// `g`, `q`: `[columns]`, brought up to date; `moved`: what is added to `q`, on top of what is there; `h`: the tile's
    /// corner of the Hessian, rows `stride` apart, its diagonal above zero; `steps`: scale and offset of each `group`
    /// columns; `scales`: by what each column is multiplied before it is rounded.
    pub fn codes / codes_on(
        g: &mut [F],
        q: &mut [F],
        moved: &mut [F],
        h: &[f32],
        stride: usize,
        steps: &[(F, F)],
        group: usize,
        scales: &[f32],
        levels: Levels,
        codes: &mut [Codes],
    ) {
        for_levels!(levels, kind => codes_in(g, q, moved, h, stride, steps, group, scales, kind, codes));
    }
}

kernel! {
    /// `uᵀg` and `uᵀHu`: slope and curvature of the objective along `u`, `[lanes]` each.
    ///
    /// `u`, `g`: `[columns]`; `h`: their corner of the Hessian, rows `stride` apart.
    pub fn along / along_on(u: &[F], g: &[F], h: &[f32], stride: usize) -> (F, F) {
        let (mut slope, mut curvature) = (F::ZERO, F::ZERO);
        for (j, (&uj, &gj)) in u.iter().zip(g).enumerate() {
            slope = uj.mul_add(gj, slope);
            // H is symmetric: what lies left of the diagonal counts twice.
            let row = &h[j * stride..];
            let mut sum = F::ZERO;
            for (&uk, &h) in u[..j].iter().zip(row) {
                sum = uk.mul_add(F::splat(h), sum);
                whole();
            }
            sum = uj.mul_add(F::splat(row[j]), sum + sum);
            curvature = uj.mul_add(sum, curvature);
        }
        (slope, curvature)
    }
}

kernel! {
    /// Moves columns `first .. first + u.len()` of a tile by `delta·u`.
    ///
    /// `g`, `q`, `moved`, `h`: as in [`codes`].
    pub fn shift / shift_on(
        g: &mut [F],
        q: &mut [F],
        moved: &mut [F],
        h: &[f32],
        stride: usize,
        first: usize,
        u: &[F],
        delta: F,
    ) {
        if is_zero(delta) {
            return;
        }
        for (i, &u) in u.iter().enumerate() {
            let (j, step) = (first + i, delta * u);
            if is_zero(step) {
                continue;
            }
            q[j] = q[j] + step;
            moved[j] = moved[j] + step;
            follow(g, step, &h[j * stride..j * stride + q.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    const Q4: Levels = Levels::Uniform { lo: -8, hi: 7 };
    static UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

    struct Tile {
        w: Vec<F>,
        q: Vec<F>,
        g: Vec<F>,
        moved: Vec<F>,
        codes: Vec<Codes>,
        h: Vec<f32>,
    }

    /// `n` columns with a Hessian of correlated inputs, everything rounded to zero.
    fn tile(n: usize) -> Tile {
        let x: Vec<f32> = (0..3 * n * n).map(|i| (i as f32 * 0.713).sin() + (i / n) as f32 % 3.0 * 0.4).collect();
        let mut h = vec![0.0; n * n];
        crate::syrk::syrk(crate::gemm::Precision::Single, &x, n, &mut h);
        crate::syrk::mirror(n, &mut h);
        let w: Vec<F> = (0..n).map(|j| F(std::array::from_fn(|l| ((j * 16 + l) as f32 * 0.37).sin()))).collect();
        let q = vec![F::ZERO; n];
        let g = gradient(&w, &q, &h);
        Tile { w, q, g, moved: vec![F::ZERO; n], codes: vec![[0; LANES]; n], h }
    }

    fn gradient(w: &[F], q: &[F], h: &[f32]) -> Vec<F> {
        let n = w.len();
        let sum = |i: usize| (0..n).fold(F::ZERO, |sum, k| (w[k] - q[k]).mul_add(F::splat(h[i * n + k]), sum));
        (0..n).map(sum).collect()
    }

    fn objective(tile: &Tile) -> Vec<f64> {
        let g = gradient(&tile.w, &tile.q, &tile.h);
        let of = |l: usize| {
            tile.w.iter().zip(&tile.q).zip(&g).map(|((w, q), g)| f64::from((w.0[l] - q.0[l]) * g.0[l])).sum::<f64>()
        };
        (0..LANES).map(of).collect()
    }

    fn assert_up_to_date(tile: &Tile) {
        for (j, (have, want)) in tile.g.iter().zip(gradient(&tile.w, &tile.q, &tile.h)).enumerate() {
            for l in 0..LANES {
                assert!((have.0[l] - want.0[l]).abs() < 1e-3 * (1.0 + want.0[l].abs()), "column {j}, row {l}");
            }
        }
        // `q` lands on the grid exactly, `moved` adds up rounded differences.
        for (q, moved) in tile.q.iter().zip(&tile.moved) {
            for l in 0..LANES {
                assert!((q.0[l] - moved.0[l]).abs() < 1e-5, "{} moved by {}", q.0[l], moved.0[l]);
            }
        }
    }

    #[test]
    fn a_sweep_never_raises_the_objective_and_ends_where_no_code_is_better() {
        let n = 24;
        let steps = vec![(F::splat(0.15), F::splat(0.01)); 2];
        let scales: Vec<f32> = (0..n).map(|j| [1.0, 2.0][j % 2]).collect();
        let mut t = tile(n);
        let mut before = objective(&t);
        for _ in 0..30 {
            codes(&mut t.g, &mut t.q, &mut t.moved, &t.h, n, &steps, 12, &scales, Q4, &mut t.codes);
            let after = objective(&t);
            for l in 0..LANES {
                assert!(after[l] <= before[l] * 1.0001 + 1e-6, "row {l}: {} after {}", after[l], before[l]);
            }
            before = after;
        }
        assert_up_to_date(&t);
        for (j, l) in [(0, 0), (7, 3), (23, 15)] {
            for step in [-1.0, 1.0] {
                let mut other = Tile { w: t.w.clone(), q: t.q.clone(), h: t.h.clone(), ..tile(n) };
                let code = f32::from(t.codes[j][l]) + step;
                if (-8.0..=7.0).contains(&code) {
                    other.q[j].0[l] = (code * 0.15 + 0.01) / scales[j];
                    assert!(objective(&other)[l] >= before[l] * 0.9999, "column {j}, row {l}");
                }
            }
        }
    }

    #[test]
    fn the_best_step_along_a_direction_leaves_no_slope() {
        let n = 20;
        let mut t = tile(n);
        let u: Vec<F> = (0..8).map(|j| F::splat(1.0 + j as f32 * 0.3)).collect();
        let corner = &t.h[5 * n + 5..];
        let (slope, curvature) = along(&u, &t.g[5..13], corner, n);
        let delta = slope.div_or_zero(curvature);
        shift(&mut t.g, &mut t.q, &mut t.moved, &t.h, n, 5, &u, delta);
        assert_up_to_date(&t);
        let (left, _) = along(&u, &t.g[5..13], &t.h[5 * n + 5..], n);
        for l in 0..LANES {
            assert!(left.0[l].abs() < 1e-3 * slope.0[l].abs().max(1.0), "{} of {}", left.0[l], slope.0[l]);
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit() {
        for n in [1, 7, 32, 33] {
            let run = |isa, levels| {
                let mut t = tile(n);
                let steps = vec![(F::splat(0.02), F::splat(0.01)); n.div_ceil(16)];
                let scales: Vec<f32> = (0..n).map(|j| 0.7 + j as f32 * 0.1).collect();
                codes_on(isa, &mut t.g, &mut t.q, &mut t.moved, &t.h, n, &steps, 16, &scales, levels, &mut t.codes);
                let u: Vec<F> = t.w[..n.min(9)].to_vec();
                let (a, b) = along_on(isa, &u, &t.g[..u.len()], &t.h, n);
                shift_on(isa, &mut t.g, &mut t.q, &mut t.moved, &t.h, n, 0, &u, a.div_or_zero(b));
                (t.g, t.q, t.moved, t.codes, a, b)
            };
            for levels in [Q4, Levels::Table(&UNEVEN)] {
                for isa in Isa::available() {
                    assert_eq!(run(isa, levels), run(Isa::Baseline, levels), "{isa:?} with {n}");
                }
            }
        }
    }
}
