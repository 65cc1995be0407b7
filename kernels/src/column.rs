//! Rounding column by column: plainly, and with error feedback.

use crate::descent::follow;
use crate::dispatch::kernel;
use crate::lanes::{F, LANES, whole};
use crate::levels::{Levels, Nearest, for_levels};

/// Codes of sixteen rows in one column.
pub type Codes = [i8; LANES];

#[inline(always)]
fn round_in(w: &[F], scale: F, offset: F, levels: impl Nearest, codes: &mut [Codes]) {
    let inverse = scale.recip();
    for (&w, codes) in w.iter().zip(codes) {
        levels.code((w - offset) * inverse, codes);
        whole();
    }
}

kernel! {
    /// Rounds each of `w` (`[columns]`) to the nearest point of the grid `scale·q + offset`.
    pub fn round / round_on(w: &[F], scale: F, offset: F, levels: Levels, codes: &mut [Codes]) {
        for_levels!(levels, kind => round_in(w, scale, offset, kind, codes));
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn feedback_in(
    w: &mut [F],
    first: usize,
    u: &[f32],
    stride: usize,
    lines: &[(F, F)],
    groups: &[u8],
    scales: &[f32],
    levels: impl Nearest,
    codes: &mut [Codes],
    e: &mut [F],
) {
    for (i, (codes, e)) in codes.iter_mut().zip(e).enumerate() {
        let j = first + i;
        let row = &u[j * stride + j..j * stride + w.len()]; // U_jj, U_j,j+1, …
        let (scale, offset) = lines[groups[i] as usize];
        let (s, t) = (F::splat(scales[i]), F::splat(1.0 / scales[i]));
        let q = levels.code((w[j] * s - offset) * scale.recip(), codes).mul_add(scale, offset) * t;
        let error = (w[j] - q) * F::splat(1.0 / row[0]);
        *e = error;
        follow(&mut w[j + 1..], error, &row[1..]);
    }
}

kernel! {
    /// GPTQ's inner loop over the columns of one block of the format (Frantar et al. 2022, algorithm 1).
    ///
    /// For each column `j` of the block: `q = quant(w_j·s_j) / s_j`, `e_j = (w_j − q) / U_jj`, and every later column of the tile
    /// gets `w_k −= e_j·U_jk`.
    ///
    /// `w`: `[tile]`, columns in the order in which they are rounded; the block is `first .. first + codes.len()`. `u`: the
    /// factor `U` from the tile's own corner on, rows `stride` apart. `lines`: scale and offset of each group; `groups`: the
    /// group of each column of the block, and `scales` its `s`. `e`: `[codes.len()]`, the errors for the columns behind the tile.
    pub fn feedback / feedback_on(
        w: &mut [F],
        first: usize,
        u: &[f32],
        stride: usize,
        lines: &[(F, F)],
        groups: &[u8],
        scales: &[f32],
        levels: Levels,
        codes: &mut [Codes],
        e: &mut [F],
    ) {
        for_levels!(levels, kind => feedback_in(w, first, u, stride, lines, groups, scales, kind, codes, e));
    }
}

kernel! {
    /// Solves `U·G = E` for one tile, from its last column to its first.
    ///
    /// `x`: `[tile]`, `E`, and `G` afterwards; `u`: the factor from the tile's own corner on, rows `stride` apart, of which what lies
    /// below the diagonal is not read.
    pub fn solve_upper / solve_upper_on(x: &mut [F], u: &[f32], stride: usize) {
        let n = x.len();
        for j in (0..n).rev() {
            let (own, behind) = x[j..].split_first_mut().expect("the column itself");
            let row = &u[j * stride + j..j * stride + n];
            // Four sums, none of which waits for another.
            let mut sums = [*own, F::ZERO, F::ZERO, F::ZERO];
            let (fours, rest) = behind.as_chunks::<4>();
            let (row_fours, row_rest) = row[1..].as_chunks::<4>();
            for (x, u) in fours.iter().zip(row_fours) {
                for i in 0..4 {
                    sums[i] = x[i].mul_add(F::splat(-u[i]), sums[i]);
                    whole();
                }
            }
            for (x, &u) in rest.iter().zip(row_rest) {
                sums[0] = x.mul_add(F::splat(-u), sums[0]);
            }
            *own = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * F::splat(1.0 / row[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    const Q4: Levels = Levels::Uniform { lo: -8, hi: 7 };
    static UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

    fn numbers(n: usize) -> Vec<F> {
        (0..n).map(|i| F(std::array::from_fn(|l| ((i * 16 + l) as f32 * 0.71).sin() * 2.0))).collect()
    }

    fn factor(n: usize) -> Vec<f32> {
        (0..n * n).map(|i| if i % n == i / n { 1.5 } else { (i as f32 * 0.3).cos() * 0.2 }).collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_point_and_stays_on_the_grid() {
        let mut codes = [[0; LANES]; 4];
        let w = [F::splat(0.26), F::splat(-9.0), F::splat(9.0), F::splat(0.0)];
        round(&w, F::splat(0.25), F::splat(0.0), Q4, &mut codes);
        assert_eq!(codes.map(|c| c[7]), [1, -8, 7, 0]);
        round(&w, F::ZERO, F::splat(1.0), Q4, &mut codes);
        assert_eq!(codes.map(|c| c[0]), [0, 0, 0, 0]);
    }

    #[test]
    fn an_upper_triangle_is_solved_alike_on_all_instruction_sets() {
        for n in [1, 2, 5, 32, 37] {
            let (u, e) = (factor(n), numbers(n));
            let mut g = e.clone();
            solve_upper(&mut g, &u, n);
            for (j, e) in e.iter().enumerate() {
                let back = (j..n).fold(F::ZERO, |sum, k| g[k].mul_add(F::splat(u[j * n + k]), sum));
                (0..LANES).for_each(|l| assert!((back.0[l] - e.0[l]).abs() < 1e-4, "{n}: {back:?} for {e:?}"));
            }
            for isa in Isa::available() {
                let mut own = e.clone();
                solve_upper_on(isa, &mut own, &u, n);
                assert_eq!(own, g, "{isa:?} {n}");
            }
        }
    }

    #[test]
    fn a_table_is_rounded_to_its_nearest_entry() {
        let w: Vec<F> = (-140..130).map(|x| F::splat(x as f32 + 0.3)).collect();
        let mut codes = vec![[0; LANES]; w.len()];
        round(&w, F::splat(1.0), F::ZERO, Levels::Table(&UNEVEN), &mut codes);
        for (w, codes) in w.iter().zip(&codes) {
            let nearest = |code: &usize| (f32::from(UNEVEN[*code]) - w.0[0]).abs();
            let best = (0..16).min_by(|a, b| nearest(a).total_cmp(&nearest(b))).unwrap();
            assert_eq!(codes[3], best as i8, "{}", w.0[0]);
        }
    }

    #[test]
    fn feedback_equals_the_algorithm_row_by_row() {
        let n = 40;
        let (w, u) = (numbers(n), factor(n));
        let scales: Vec<f32> = (0..n).map(|j| [1.0, 0.5, 3.0][j % 3]).collect();
        let (mut lanes, mut codes, mut e) = (w.clone(), vec![[0; LANES]; n], vec![F::ZERO; n]);
        for first in [0, 20] {
            let at = first..first + 20;
            // Neighbours in two groups of the same scale: how columns are shared out changes nothing.
            let (lines, groups) = ([(F::splat(0.3), F::ZERO); 2], [[0, 1]; 10]);
            let groups = groups.as_flattened();
            feedback(
                &mut lanes,
                first,
                &u,
                n,
                &lines,
                groups,
                &scales[at.clone()],
                Q4,
                &mut codes[at.clone()],
                &mut e[at],
            );
        }
        for l in 0..LANES {
            let mut row: Vec<f32> = w.iter().map(|w| w.0[l]).collect();
            for j in 0..n {
                let q = (row[j] * scales[j] * (1.0 / 0.3)).round_ties_even().clamp(-8.0, 7.0);
                assert_eq!(codes[j][l], q as i8, "row {l}, column {j}");
                let error = (row[j] - q * 0.3 * (1.0 / scales[j])) * (1.0 / u[j * n + j]);
                for k in j + 1..n {
                    row[k] = error.mul_add(-u[j * n + k], row[k]);
                }
            }
        }
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit() {
        let (n, u) = (33, factor(33));
        let run = |isa| {
            let (mut w, mut codes, mut e) = (numbers(n), vec![[0; LANES]; n], vec![F::ZERO; n]);
            let lines = [(F::splat(0.2), F::splat(0.1)), (F::splat(0.3), F::ZERO)];
            let groups: Vec<u8> = (0..n).map(|j| (j % 3 / 2) as u8).collect();
            let scales: Vec<f32> = (0..n).map(|j| 0.7 + j as f32 * 0.1).collect();
            feedback_on(isa, &mut w, 0, &u, n, &lines, &groups, &scales, Q4, &mut codes, &mut e);
            let (mut plain, mut uneven) = (vec![[0; LANES]; n], vec![[0; LANES]; n]);
            round_on(isa, &numbers(n), F::splat(0.2), F::splat(0.1), Q4, &mut plain);
            round_on(isa, &numbers(n), F::splat(0.02), F::ZERO, Levels::Table(&UNEVEN), &mut uneven);
            (codes, e, plain, uneven)
        };
        for isa in Isa::available() {
            assert_eq!(run(isa), run(Isa::Baseline), "{isa:?}");
        }
    }
}
