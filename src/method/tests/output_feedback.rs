//! Feedback between rows.

use super::*;
use crate::calib::output_hessian::{CHUNK, OutputHessian};
use candle_core::{Device, Tensor};

/// The second moment of gradients of correlated rows of different size.
fn moment(rows: usize, tokens: usize) -> Vec<f32> {
    let mut sum = OutputHessian::new(rows);
    let g = Tensor::from_vec(activations(rows, tokens, 21), (tokens, rows), &Device::Cpu).unwrap();
    sum.add(Precision::Single, &g).unwrap();
    sum.finish()
}

/// `tr(G E H Eᵀ)`, chunk by chunk, in double precision.
fn two_sided(g: &[f32], h: &[f32], w: &[f32], q: &[f32], n: usize) -> f64 {
    let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect();
    let rows = e.len() / n;
    let times_h: Vec<f64> =
        (0..rows * n).map(|at| (0..n).map(|k| e[at / n * n + k] * f64::from(h[k * n + at % n])).sum()).collect();
    let mut sum = 0.0;
    for (r, s) in (0..rows).flat_map(|r| (r / CHUNK * CHUNK..rows.min((r / CHUNK + 1) * CHUNK)).map(move |s| (r, s))) {
        let dot: f64 = e[r * n..(r + 1) * n].iter().zip(&times_h[s * n..(s + 1) * n]).map(|(a, b)| a * b).sum();
        sum += f64::from(g[r * CHUNK + s % CHUNK]) * dot;
    }
    sum
}

#[test]
fn it_lowers_what_errors_of_outputs_cost_on_every_grid() {
    for (kind, grid) in grids() {
        // One whole chunk, and one that is not.
        let (rows, n) = (CHUNK + 21, few_columns(grid));
        let (g, h, w) = (moment(rows, 400), hessian(n, 400), noise(rows * n, 13));
        let scales: Vec<f32> = (0..n).map(|j| 0.7 + (j % 5) as f32 * 0.15).collect();
        for scales in [None, Some(&scales[..])] {
            let solver = Solver::new(seen(&h), &[Span::of(grid)], &Options::default());
            let own = |q: QuantizedMatrix| {
                let q = q.values(grid);
                scales.map_or(q.clone(), |s| over(q, s))
            };
            let one_sided = own(solver.round(&w, scales, grid));
            let both = own(OutputFeedback::new(&g, rows).round(&solver, &w, n, scales, grid));
            let [one_sided, both] = [one_sided, both].map(|q| two_sided(&g, &h, &w, &q, n));
            assert!(both < 0.85 * one_sided, "{}: {both} instead of {one_sided}", kind.name());
        }
    }
}

#[test]
fn rows_that_have_nothing_to_do_with_each_other_are_rounded_as_ever() {
    let (_, grid) = grid("Q4_K");
    let (rows, n) = (CHUNK + 7, 256);
    let (h, w) = (hessian(n, 400), noise(rows * n, 14));
    let solver = Solver::new(seen(&h), &[Span::of(grid)], &Options::default());
    let mut g = vec![0.0; 2 * CHUNK * CHUNK];
    let alone = solver.round(&w, None, grid).values(grid);
    // Without a gradient, and with independent ones.
    for size in [0.0, 1.0] {
        (0..rows).for_each(|r| g[r * CHUNK + r % CHUNK] = size * (1.0 + (r % 3) as f32));
        assert!(OutputFeedback::new(&g, rows).round(&solver, &w, n, None, grid).values(grid) == alone, "{size}");
    }
}

#[test]
fn every_method_with_error_feedback_has_it_at_any_number_of_threads() {
    let (_, grid) = grid("Q4_0");
    let (rows, n) = (3 * CHUNK, 64);
    let (g, h, w) = (moment(rows, 400), hessian(n, 200), noise(rows * n, 7));
    for method in ["auto", "gptq", "awq+gptq"] {
        let on = |threads: usize, fed: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let outputs = fed.then(|| OutputFeedback::new(&g, rows));
                let site = site(&h, n, vec![Layer { outputs, ..layer(&w, grid) }]);
                own(&by_name(method).unwrap().quantize(&site, &Options::default()).unwrap(), &site).remove(0)
            })
        };
        let one = on(1, true);
        assert!(one == on(2, true) && one == on(5, true) && one != on(1, false), "{method}");
    }
}
