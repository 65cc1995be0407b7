//! What holds for every method on every grid.

mod awq;
mod gptaq;
mod gptq;
mod gptq_int8;
mod odd;
mod output_feedback;
mod rows;

use super::*;
use crate::format::{Encoding, TYPES, Type};

/// The algorithm as the paper has it, and nothing after it.
const PAPER: Options =
    Options { damp: 0.01, order: false, sweeps: 0, scales: false, outputs: false, feedback: Precision::Single };

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_add(99);
    let mut uniform = || {
        s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

/// Inputs whose columns are correlated and of different size: `[tokens, columns]`.
fn activations(columns: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mut x = noise(tokens * columns, seed);
    for row in x.chunks_mut(columns) {
        for j in 1..columns {
            row[j] = 0.8 * row[j - 1] + 0.6 * row[j];
        }
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j * 5 % 7) as f32);
    }
    x
}

/// `E[a bᵀ]`. `a`, `b`: `[tokens, columns]` each.
fn outer(a: &[f32], b: &[f32], tokens: usize) -> Vec<f32> {
    let (rows, columns) = (a.len() / tokens, b.len() / tokens);
    let mut sum = vec![0.0; rows * columns];
    llmq_kernels::syrk::outer(llmq_kernels::gemm::Precision::Single, a, rows, b, columns, &mut sum);
    sum.iter().map(|x| x / tokens as f32).collect()
}

fn hessian(columns: usize, tokens: usize) -> Vec<f32> {
    let x = activations(columns, tokens, 5);
    outer(&x, &x, tokens)
}

fn grids() -> impl Iterator<Item = (Type, &'static dyn Grid)> {
    TYPES.iter().filter_map(|&t| if let Encoding::Grid(g) = t.encoding() { Some((t, g)) } else { None })
}

fn grid(name: &str) -> (Type, &'static dyn Grid) {
    grids().find(|(kind, _)| kind.name() == name).unwrap()
}

/// Two tiles and, where blocks are narrow enough for one, a tail.
fn some_columns(grid: &dyn Grid) -> usize {
    if grid.width() > 64 { 512 } else { 320 }
}

/// As few columns as show everything that happens within a tile.
fn few_columns(grid: &dyn Grid) -> usize {
    if grid.width() > 64 { 256 } else { 64 }
}

fn layer<'a>(w: &'a [f32], grid: &'a dyn Grid) -> Layer<'a> {
    Layer { w, grid, weight: 1.0, target: None, outputs: None }
}

/// A Hessian with the usual damping.
fn seen(h: &[f32]) -> Arc<Damped> {
    Arc::new(Damped::new(h.to_vec(), h.len().isqrt(), 0.01))
}

/// A site whose every column can be scaled by itself, seen and held out alike.
fn site<'a>(h: &'a [f32], columns: usize, layers: Vec<Layer<'a>>) -> Site<'a> {
    let channels = Some((0..columns).collect());
    Site { columns, seen: seen(h), held: Some(h), layers, channels, factored: OnceLock::new() }
}

/// The numbers that a site's layers compute with in the end, the scales divided out.
fn own(solution: &Solution, site: &Site) -> Vec<Vec<f32>> {
    let values = solution.layers.iter().zip(&site.layers).map(|(solved, layer)| {
        let q = solved.rounded.values(layer.grid);
        match &solution.scales {
            Some(s) => over(q, s),
            None => q,
        }
    });
    values.collect()
}

/// A single layer, rounded.
fn rounded(method: &str, h: &[f32], w: &[f32], grid: &dyn Grid, options: &Options) -> Vec<f32> {
    let site = site(h, h.len().isqrt(), vec![layer(w, grid)]);
    own(&by_name(method).unwrap().quantize(&site, options).unwrap(), &site).remove(0)
}

fn error(q: &[f32], w: &[f32], h: &[f32]) -> f64 {
    relative(output_error(w, q, h.len().isqrt(), h))
}

/// `h` and what is added to it.
fn damped(h: &[f32], damp: f64) -> Vec<f32> {
    let n = h.len().isqrt();
    Damped::new(h.to_vec(), n, damp).h
}

#[test]
fn what_is_symmetric_or_triangular_is_multiplied_in_bands() {
    let (n, rows) = (BAND + 64, 5);
    let h = hessian(n, 2 * n);
    let x = noise(rows * n, 3);
    let y: Vec<f64> = (0..rows * n)
        .map(|at| (0..n).map(|k| f64::from(x[at / n * n + k]) * f64::from(h[k * n + at % n])).sum())
        .collect();
    let whole: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * y).sum();
    let [energy] = energies(&x, n, &h)[..] else { panic!("five rows are one part") };
    assert!((energy / whole - 1.0).abs() < 1e-5, "{energy} {whole}");
    // M·H⁻¹·H = M, with what damping adds to H.
    for order in [false, true] {
        let solver = Solver::new(seen(&h), &[Span { width: 32, run: 1 }], &Options { order, ..PAPER });
        let damped = 0.01 * (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
        let solved = solver.times_inverse(y.iter().map(|y| *y as f32).collect()).unwrap();
        let mut off = 0.0;
        for (at, y) in y.iter().enumerate() {
            let (row, j) = (&solved[at / n * n..][..n], at % n);
            let back: f64 = (0..n).map(|k| f64::from(row[k]) * f64::from(h[k * n + j])).sum();
            off += (back + damped * f64::from(row[j]) - y).powi(2);
        }
        let size: f64 = y.iter().map(|y| y * y).sum();
        assert!(off < 1e-8 * size, "{off} of {size}");
    }
}

#[test]
fn how_many_rows_a_task_takes_changes_nothing() {
    let (rows, n) = (4 * PART + 40, 64);
    // Many on few threads, no fewer than a part on many.
    assert_eq!([1, 2, 4, 8, 16, 999].map(|threads| rows_at_once(4096, threads)), [512, 512, 512, 256, 128, 128]);
    assert_eq!([1, 2, 4, 5].map(|threads| rows_at_once(rows, threads)), [384, 384, 256, 128]);
    // No thread is left without in a last round.
    assert_eq!([576, 1536, 1600, 16].map(|rows| rows_evenly(rows, 2)), [288, 384, 400, 16]);
    let (h, w, drift) = (hessian(n, 200), noise(rows * n, 7), noise(n * n, 8));
    let (_, grid) = grid("Q4_0");
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let solver =
                Solver::new(seen(&h), &[Span { width: 32, run: 1 }], &Options { sweeps: 2, scales: true, ..PAPER });
            let m = pull(Precision::Single, &w, n, &drift);
            let step = solver.times_inverse(m.clone()).unwrap();
            let target = Target::new(&w, n, &step, few(&m, n, JUDGED).into_owned(), &h);
            let q = solver.round(&target.w, None, grid).values(grid);
            let scales = vec![0.02; rows];
            (output_error(&w, &q, n, &h), target.alpha, q, GptqInt8::new(&h, n).unwrap().round(&w, &scales, 127))
        })
    };
    let one = on(1);
    assert!(one.1 > 0.0 && one == on(2) && one == on(5));
}
