//! What holds for every method on every grid.

use super::*;
use crate::format::{Encoding, TYPES, Type};

/// The algorithm as the paper has it, and nothing after it.
const PAPER: Options = Options { damp: 0.01, order: false, sweeps: 0, scales: false };

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
    llmq_kernels::syrk::outer(a, rows, b, columns, &mut sum);
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
    Layer { w, grid, weight: 1.0, target: None }
}

/// A site whose every column can be scaled by itself, seen and held out alike.
fn site<'a>(h: &'a [f32], columns: usize, layers: Vec<Layer<'a>>) -> Site<'a> {
    let sample = Sample { hessian: h };
    let channels = Some((0..columns).collect());
    Site { columns, seen: sample, held: sample, layers, channels, factored: OnceLock::new() }
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
    let (mut h, unit) = factor::mended(h, n, damp);
    (0..n).for_each(|j| h[j * n + j] += unit as f32);
    h
}

#[test]
fn feedback_lowers_the_output_error_on_every_grid() {
    // 37 rows: two full groups of lanes and a tail.
    for (kind, grid) in grids() {
        let columns = some_columns(grid);
        let (h, w) = (hessian(columns, 1400), noise(37 * columns, 1));
        let of = |method, options| error(&rounded(method, &h, &w, grid, &options), &w, &h);
        let (plain, paper, usual) = (of("rtn", PAPER), of("gptq", PAPER), of("gptq", Options::default()));
        assert!(paper < 0.7 * plain, "{}: {paper} against {plain}", kind.name());
        assert!(usual < 0.97 * paper, "{}: {usual} against {paper}", kind.name());
    }
}

/// Checks that `rounded` is what the paper's algorithm makes of `w`, columns in this `order`: one column after the other over
/// the whole row, without lanes, lazy blocks or padding, each to the point of the stored grid that is nearest.
fn assert_by_the_paper(rounded: &Rounded, w: &[f32], h: &[f32], order: &[usize]) {
    let n = order.len();
    let (kind, grid) = grid("Q4_0");
    let (bytes, decoded) = (rounded.store(grid), rounded.values(grid));
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    let permuted: Vec<f32> = (0..n * n).map(|i| h[order[i / n] * n + order[i % n]]).collect();
    let u = factor::inverse_factor(&permuted, &(0..n).collect::<Vec<_>>(), 0.01 * mean).unwrap();
    let blocks = n / kind.width();
    let mut differing = 0;
    for (r, w) in w.chunks(n).enumerate() {
        let mut row: Vec<f64> = order.iter().map(|&j| f64::from(w[j])).collect();
        for (k, &j) in order.iter().enumerate() {
            let q = f64::from(decoded[r * n + j]);
            let at = (r * blocks + j / kind.width()) * kind.bytes();
            let d = f64::from(half::f16::from_le_bytes([bytes[at], bytes[at + 1]]));
            // The two computations may disagree only about ties.
            let nearest = (row[k] / d).round_ties_even().clamp(-8.0, 7.0) * d;
            if (nearest - q).abs() > 1e-6 {
                differing += 1;
                assert!(((row[k] - q).abs() - (row[k] - nearest).abs()).abs() < 1e-3 * d.abs(), "row {r}, column {j}");
            }
            let e = (row[k] - q) / f64::from(u[k * n + k]);
            for (later, u) in row[k..].iter_mut().zip(&u[k * n + k..]) {
                *later -= e * f64::from(*u);
            }
        }
    }
    assert!(differing < 3, "{differing} codes differ");
}

#[test]
fn gptq_equals_the_paper_step_by_step() {
    let columns = 320;
    let (h, w) = (hessian(columns, 900), noise(5 * columns, 2));
    let site = site(&h, columns, vec![layer(&w, grid("Q4_0").1)]);
    let solution = gptq::Gptq.quantize(&site, &PAPER).unwrap();
    assert_by_the_paper(&solution.layers[0].rounded, &w, &h, &(0..columns).collect::<Vec<_>>());
}

#[test]
fn act_order_equals_the_paper_on_permuted_columns() {
    let columns = 320;
    let mut h = hessian(columns, 900);
    // Blocks of different size, so that they are reordered, too.
    let size = |j: usize| 1.0 + (j / 32 * 7 % 10) as f32;
    (0..columns * columns).for_each(|i| h[i] *= size(i / columns) * size(i % columns));
    let w = noise(5 * columns, 2);
    let site = site(&h, columns, vec![layer(&w, grid("Q4_0").1)]);
    let solution = gptq::Gptq.quantize(&site, &Options { order: true, ..PAPER }).unwrap();
    let square = |j: usize| h[j * columns + j];
    let largest = |block: usize| (block * 32..block * 32 + 32).map(square).fold(0.0, f32::max);
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&a, &b| {
        largest(b / 32).total_cmp(&largest(a / 32)).then((a / 32).cmp(&(b / 32))).then(square(b).total_cmp(&square(a)))
    });
    assert!(order[..32].iter().all(|&j| j / 32 == 7) && !order.is_sorted_by_key(|j| j / 32));
    assert_by_the_paper(&solution.layers[0].rounded, &w, &h, &order);
}

#[test]
fn act_order_lowers_the_output_error() {
    let (columns, (_, grid)) = (320, grid("Q4_0"));
    let (h, w) = (hessian(columns, 900), noise(64 * columns, 2));
    let of = |order| error(&rounded("gptq", &h, &w, grid, &Options { order, ..PAPER }), &w, &h);
    assert!(of(true) < 0.98 * of(false), "{} against {}", of(true), of(false));
}

#[test]
fn polish_never_raises_the_objective_and_scales_lower_it_further() {
    let rows = 37;
    let (mut codes, mut scales, mut count) = (0.0, 0.0, 0.0);
    for (kind, grid) in grids() {
        let n = some_columns(grid);
        let (h, w) = (hessian(n, 1400), noise(rows * n, 8));
        let objective = damped(&h, 0.01);
        let of = |options| -> Vec<f64> {
            let q = rounded("gptq", &h, &w, grid, &options);
            w.chunks(n).zip(q.chunks(n)).map(|(w, q)| output_error(w, q, n, &objective).0).collect()
        };
        let start = of(Options { order: true, ..PAPER });
        let mut before = start.clone();
        for sweeps in [1, 2, 6] {
            let after = of(Options { sweeps, scales: false, ..Options::default() });
            for (r, (after, before)) in after.iter().zip(&before).enumerate() {
                assert!(*after <= before * 1.000_01, "{}, row {r}: {after} after {before}", kind.name());
            }
            before = after;
        }
        let with_scales = of(Options::default());
        for (r, (after, start)) in with_scales.iter().zip(&start).enumerate() {
            assert!(*after <= start * 1.000_01, "{}, row {r}: {after} after {start}", kind.name());
        }
        let sum = |x: &[f64]| x.iter().sum::<f64>();
        codes += (sum(&before) / sum(&start)).ln();
        scales += (sum(&with_scales) / sum(&before)).ln();
        count += 1.0;
    }
    let (codes, scales) = (f64::exp(codes / count), f64::exp(scales / count));
    assert!(codes < 0.98 && scales < 0.995, "codes {codes}, scales {scales}");
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    for method in METHODS {
        for (kind, grid) in grids() {
            let (rows, columns) = (300, few_columns(grid));
            let (h, w) = (hessian(columns, 400), noise(rows * columns, 3));
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let site = site(&h, columns, vec![layer(&w, grid), layer(&w[..20 * columns], grid)]);
                    let solution = method.quantize(&site, &Options { sweeps: 1, ..Options::default() }).unwrap();
                    let bytes: Vec<_> = solution.layers.iter().map(|solved| solved.rounded.store(grid)).collect();
                    (bytes, solution.scales)
                })
            };
            assert!(on(1) == on(3), "{} {}", method.name(), kind.name());
        }
    }
}

#[test]
fn dead_inputs_keep_their_rounded_weight_and_disturb_nothing() {
    let columns = 64;
    let mut h = hessian(columns, 200);
    for j in 0..columns {
        h[j * columns + 3] = 0.0;
        h[3 * columns + j] = 0.0;
    }
    let (w, (_, grid)) = (noise(16 * columns, 4), grid("Q8_0"));
    for method in METHODS {
        let site = site(&h, columns, vec![layer(&w, grid)]);
        let solution = method.quantize(&site, &Options::default()).unwrap();
        for (r, q) in own(&solution, &site)[0].chunks(columns).enumerate() {
            assert!((q[3] - w[r * columns + 3]).abs() < 0.02, "{}, row {r}", method.name());
        }
        assert!(solution.notes.is_empty());
        assert!(solution.scales.is_none_or(|s| s[3] == 1.0), "{}", method.name());
    }
}

#[test]
fn singular_hessians_are_damped_and_hopeless_ones_fall_back_with_a_note() {
    let columns = 64;
    let (w, (_, grid)) = (noise(16 * columns, 6), grid("Q4_0"));
    let solve = |method: &str, h: &[f32], options: &Options| {
        let site = site(h, columns, vec![layer(&w, grid)]);
        by_name(method).unwrap().quantize(&site, options).unwrap()
    };
    let bytes = |solution: &Solution| solution.layers[0].rounded.store(grid);
    let plain = plain(columns, Some(&vec![1.0; columns]), false).quantize(&w, grid);
    // One token: a matrix of rank one.
    let x = noise(columns, 7);
    let one = outer(&x, &x, 1);
    let singular = solve("gptq", &one, &Options::default());
    assert!(singular.notes.is_empty() && singular.layers[0].method == "gptq");
    assert!(singular.layers[0].rounded.values(grid).iter().all(|x| x.is_finite()));
    // No token at all: nothing to feed back.
    assert_eq!(bytes(&solve("gptq", &vec![0.0; columns * columns], &PAPER)), plain);
    // Indefinite beyond repair.
    let mut bad = vec![0.0; columns * columns];
    (0..columns).for_each(|j| bad[j * columns + j] = 1.0);
    bad[1] = 1e6;
    bad[columns] = 1e6;
    for (method, instead) in [("gptq", "rtn"), ("awq+gptq", "awq"), ("auto", "awq")] {
        let solution = solve(method, &bad, &Options::default());
        assert!(solution.notes[0].contains("rounded to nearest"), "{method}: {:?}", solution.notes);
        let instead = if solution.scales.is_some() { instead } else { "rtn" };
        assert_eq!(solution.layers[0].method, instead, "{method}");
    }
    assert_eq!(bytes(&solve("gptq", &bad, &Options::default())), plain);
    // Slightly indefinite: more damping, and a note.
    bad[1] = 1.05;
    bad[columns] = 1.05;
    let mended = solve("gptq", &bad, &Options::default());
    assert!(mended.notes[0].contains("damping of 0.1 instead of 0.01"), "{:?}", mended.notes);
    assert_eq!(mended.layers[0].method, "gptq");
}

/// Inputs a few channels of which are fifty times as large as the others.
fn outliers(columns: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mut x = activations(columns, tokens, seed);
    for row in x.chunks_mut(columns) {
        [5, 70, 71, 200].into_iter().filter(|&j| j < columns).for_each(|j| row[j] *= 50.0);
    }
    x
}

#[test]
fn awq_lowers_the_output_error_where_a_few_channels_are_huge() {
    for (kind, grid) in grids() {
        let columns = if grid.width() > 64 { 256 } else { 320 };
        let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
        let h = outer(&x, &x, 900);
        let of = |method| error(&rounded(method, &h, &w, grid, &Options::default()), &w, &h);
        let (rtn, awq, gptq, both) = (of("rtn"), of("awq"), of("gptq"), of("awq+gptq"));
        // The scales of MXFP4 are powers of two; what a factor wins is lost again to these.
        assert!(awq < 0.9 * rtn, "{}: {awq} against {rtn}", kind.name());
        assert!(both < awq && both < 1.02 * gptq, "{}: {both}, {gptq}, {awq}", kind.name());
        // Weighed rounding alone is among what AWQ chooses from.
        let unscaled = Site { channels: None, ..site(&h, columns, vec![layer(&w, grid)]) };
        let solution = awq::Awq.quantize(&unscaled, &Options::default()).unwrap();
        let weighed = error(&own(&solution, &unscaled)[0], &w, &h);
        assert!(awq < weighed, "{}: {awq} against {weighed}", kind.name());
    }
}

#[test]
fn scales_divide_out_and_are_those_of_their_channel() {
    let (columns, (_, grid)) = (320, grid("Q8_0"));
    let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
    let h = outer(&x, &x, 900);
    // Two heads of 32 columns share each group of 32 channels.
    let channels: Vec<usize> = (0..columns).map(|j| j / 64 * 32 + j % 32).collect();
    for method in ["awq", "awq+gptq"] {
        for channels in [(0..columns).collect(), channels.clone()] {
            let site = Site { channels: Some(channels.clone()), ..site(&h, columns, vec![layer(&w, grid)]) };
            let solution = by_name(method).unwrap().quantize(&site, &Options::default()).unwrap();
            let scales = solution.scales.as_ref().unwrap();
            assert_eq!(solution.layers[0].method, method);
            for j in 0..columns {
                let first = channels.iter().position(|&c| c == channels[j]).unwrap();
                assert_eq!(scales[j], scales[first], "{method}, column {j}");
            }
            assert!(scales[70] > 1.2 * scales[100], "{method}: {} and {}", scales[70], scales[100]);
            let rounded = solution.layers[0].rounded.values(grid);
            let off = |q: &[f32]| relative(weight_error((0.0, 0.0), &w, q, columns, None));
            let (own, scaled) = (off(&own(&solution, &site)[0]), off(&rounded));
            assert!(own < 1e-3 && scaled > 10.0 * own, "{method}: {own}, {scaled}");
        }
    }
}

#[test]
fn nothing_is_scaled_where_nothing_absorbs_it() {
    let (columns, (_, grid)) = (320, grid("Q4_0"));
    let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
    let h = outer(&x, &x, 900);
    for (method, instead) in [("awq", "rtn"), ("awq+gptq", "gptq"), ("auto", "gptq")] {
        let site = Site { channels: None, ..site(&h, columns, vec![layer(&w, grid)]) };
        let solution = by_name(method).unwrap().quantize(&site, &Options::default()).unwrap();
        assert!(solution.scales.is_none(), "{method}");
        assert_eq!(solution.layers[0].method, instead);
    }
}

#[test]
fn auto_is_no_worse_than_any_other_on_what_was_held_out() {
    for name in ["Q4_0", "Q5_1", "Q8_0", "MXFP4", "IQ4_NL", "Q2_K", "Q4_K"] {
        let (_, grid) = grid(name);
        let columns = few_columns(grid);
        let (w, up) = (noise(30 * columns, 13), noise(12 * columns, 14));
        // Many tokens of correlated inputs, huge channels, ones that the Hessian does not know, and so few tokens that
        // feedback learns them by heart.
        let usual = |seed, tokens| (activations(columns, tokens, seed), tokens);
        let huge = |seed, tokens| (outliers(columns, tokens, seed), tokens);
        let cases = [
            (usual(20, 900), usual(21, 300)),
            (huge(12, 900), huge(13, 300)),
            (usual(20, 900), huge(13, 300)),
            (usual(20, 9), usual(21, 300)),
        ];
        for (i, cases) in cases.into_iter().enumerate() {
            let [seen, held] = [cases.0, cases.1].map(|(x, tokens)| outer(&x, &x, tokens));
            let layers = vec![layer(&w, grid), Layer { weight: 3.0, ..layer(&up, grid) }];
            let site = Site { held: Sample { hessian: &held }, ..site(&seen, columns, layers) };
            let loss = |method: &dyn Method| -> f64 {
                let q = own(&method.quantize(&site, &Options::default()).unwrap(), &site);
                site.layers.iter().zip(&q).map(|(layer, q)| layer.weight * layer.loss(q, &site)).sum()
            };
            let auto = loss(&auto::Auto);
            for method in METHODS {
                let other = loss(*method);
                assert!(auto <= other * 1.000_01, "{name}, case {i}: {auto}, {} {other}", method.name());
            }
        }
    }
}

/// The solution of `a x = b` by Gauss's elimination. `a`: `[n, n]`, positive definite.
fn solved(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for p in 0..n {
        for i in 0..n {
            if i != p {
                let f = a[i * n + p] / a[p * n + p];
                (0..n).for_each(|j| a[i * n + j] -= f * a[p * n + j]);
                b[i] -= f * b[p];
            }
        }
    }
    (0..n).map(|p| b[p] / a[p * n + p]).collect()
}

/// Inputs, what they are in the original model, and what is missing in the stream that the layer writes to.
struct Drifted {
    tokens: usize,
    x: Vec<f32>,
    original: Vec<f32>,
    missing: Vec<f32>,
}

impl Drifted {
    fn new(columns: usize, rows: usize, tokens: usize, seed: u64, size: f32) -> Drifted {
        let x = activations(columns, tokens, seed);
        let turn = noise(columns * columns, 31);
        let mut original = x.clone();
        let noise = noise(tokens * columns, seed + 1);
        for (t, row) in original.chunks_mut(columns).enumerate() {
            let x = &x[t * columns..][..columns];
            for (j, y) in row.iter_mut().enumerate() {
                let turned: f32 = (0..columns).map(|k| turn[k * columns + j] * x[k]).sum();
                *y += size * (0.1 * turned + 0.3 * noise[t * columns + j]);
            }
        }
        let missing = (0..tokens * rows).map(|i| 0.1 * x[i / rows * columns + i % rows % columns]).collect();
        Drifted { tokens, x, original, missing }
    }

    /// The inputs' drift, what is missing, and the Hessian.
    fn means(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let drift: Vec<f32> = self.original.iter().zip(&self.x).map(|(a, b)| a - b).collect();
        let of = |a: &[f32]| outer(a, &self.x, self.tokens);
        (of(&drift), of(&self.missing), of(&self.x))
    }

    /// What row `r` of a layer should put out for a token.
    fn wanted(&self, w: &[f32], columns: usize, r: usize, token: usize) -> f64 {
        let rows = w.len() / columns;
        dot(&w[r * columns..][..columns], &self.original[token * columns..][..columns])
            + f64::from(self.missing[token * rows + r])
    }
}

/// Knows the inverse of a Hessian.
fn factored(h: &[f32], damp: f64) -> Solver {
    let n = h.len().isqrt();
    Solver::new(h, n, &[n], &Options { damp, ..Options::default() })
}

fn sum(a: Vec<f32>, b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn the_target_is_the_least_squares_solution() {
    let (n, rows, tokens) = (12, 3, 200);
    let w = noise(rows * n, 30);
    let seen = Drifted::new(n, rows, tokens, 40, 1.0);
    let (drift, missing, h) = seen.means();
    let damp = 1e-4;
    let m = sum(pull(&w, n, &drift), &missing);
    let target = Target::new(&w, n, m.clone(), m, &factored(&h, damp), &h).unwrap();
    // The same windows: the step is as long as damping leaves it.
    assert!((0.99..=1.0).contains(&target.alpha), "{}", target.alpha);
    let mean = diagonal(&h, n).iter().sum::<f32>() / n as f32;
    for r in 0..rows {
        // Normal equations: (E[x xᵀ] + λ) (w* − w) = E[(y − w x) xᵀ]
        let x = |token: usize| &seen.x[token * n..][..n];
        let mut right = vec![0.0; n];
        for t in 0..tokens {
            let missing = seen.wanted(&w, n, r, t) - dot(&w[r * n..][..n], x(t));
            right.iter_mut().zip(x(t)).for_each(|(sum, x)| *sum += missing * f64::from(*x) / tokens as f64);
        }
        let left = (0..n * n).map(|i| f64::from(h[i]) + if i % n == i / n { damp * f64::from(mean) } else { 0.0 });
        for (j, step) in solved(left.collect(), right).into_iter().enumerate() {
            let (got, want) = (f64::from(target.w[r * n + j]), f64::from(w[r * n + j]) + target.alpha * step);
            assert!((got - want).abs() < 1e-3, "row {r}, column {j}: {got} instead of {want}");
            assert!(step.abs() > 1e-3, "row {r}, column {j}: nothing to see");
        }
    }
}

#[test]
fn a_linear_drift_is_undone() {
    // x̃ = A x: the best weights are W·A.
    let (n, rows, tokens) = (10, 4, 300);
    let (w, x, turn) = (noise(rows * n, 32), activations(n, tokens, 33), noise(n * n, 34));
    let a = |i: usize, k: usize| 0.1 * turn[i * n + k] + if i == k { 1.0 } else { 0.0 };
    let original: Vec<f32> =
        (0..tokens * n).map(|i| (0..n).map(|k| a(i % n, k) * x[i / n * n + k]).sum::<f32>()).collect();
    let drift: Vec<f32> = original.iter().zip(&x).map(|(a, b)| a - b).collect();
    let (inputs, h) = (outer(&drift, &x, tokens), outer(&x, &x, tokens));
    let m = pull(&w, n, &inputs);
    let target = Target::new(&w, n, m.clone(), m, &factored(&h, 1e-6), &h).unwrap();
    for r in 0..rows {
        for k in 0..n {
            let want: f32 = (0..n).map(|i| w[r * n + i] * a(i, k)).sum();
            assert!((target.w[r * n + k] - want).abs() < 1e-3, "{} instead of {want}", target.w[r * n + k]);
        }
    }
}

#[test]
fn the_windows_held_out_say_how_far_to_go() {
    let (n, rows) = (12, 3);
    let w = noise(rows * n, 30);
    let (drift, _, h) = Drifted::new(n, rows, 400, 40, 1.0).means();
    let solver = factored(&h, 0.01);
    let of = |size: f32| {
        let (held, _, held_h) = Drifted::new(n, rows, 400, 50, size).means();
        Target::new(&w, n, pull(&w, n, &drift), pull(&w, n, &held), &solver, &held_h).unwrap()
    };
    // The same drift, half of it, none, and the opposite.
    let [whole, half, none, opposite] = [1.0, 0.5, 0.0, -1.0].map(of);
    assert!((0.9..=1.0).contains(&whole.alpha), "{}", whole.alpha);
    assert!((0.4..0.6).contains(&half.alpha), "{}", half.alpha);
    for target in [none, opposite] {
        assert_eq!((target.alpha, &target.w), (0.0, &w));
    }
    // Nothing has drifted in the windows seen: there is no step to take.
    let zeros = vec![0.0; rows * n];
    let target = Target::new(&w, n, zeros.clone(), zeros.clone(), &solver, &h).unwrap();
    assert_eq!((target.w, target.pull), (w, zeros));
}

#[test]
fn the_loss_of_a_layer_is_what_its_outputs_are_off_by() {
    let (n, rows, tokens) = (32, 5, 150);
    let w = noise(rows * n, 30);
    let held = Drifted::new(n, rows, tokens, 41, 1.0);
    let (seen, other) = (Drifted::new(n, rows, 200, 40, 1.0).means(), held.means());
    let [a, b] = [&seen, &other].map(|means| sum(pull(&w, n, &means.0), &means.1));
    let target = Target::new(&w, n, a, b, &factored(&seen.2, 0.01), &other.2).unwrap();
    let layer = Layer { target: Some(target), ..layer(&w, grid("Q4_0").1) };
    let site = Site { held: Sample { hessian: &other.2 }, ..site(&seen.2, n, vec![]) };
    let direct = |q: &[f32]| -> f64 {
        let off = |r: usize, t: usize| held.wanted(&w, n, r, t) - dot(&q[r * n..][..n], &held.x[t * n..][..n]);
        (0..rows * tokens).map(|i| off(i % rows, i / rows).powi(2)).sum::<f64>() / tokens as f64
    };
    let constant = direct(&w) - layer.loss(&w, &site);
    for q in [layer.target().to_vec(), vec![0.0; rows * n], noise(rows * n, 35)] {
        let (got, want) = (layer.loss(&q, &site) + constant, direct(&q));
        assert!((got - want).abs() < 1e-4 * want, "{got} instead of {want}");
    }
    assert!(direct(layer.target()) < 0.9 * direct(&w), "the target mends something");
}

#[test]
fn methods_round_the_target_where_there_is_one() {
    let (n, rows, (_, grid)) = (64, 16, grid("Q8_0"));
    let (w, wanted, h) = (noise(rows * n, 36), noise(rows * n, 37), hessian(n, 300));
    // What windows held out would say if the target were exactly what they want.
    let step: Vec<f32> = wanted.iter().zip(&w).map(|(a, b)| a - b).collect();
    let mut pull = vec![0.0; rows * n];
    llmq_kernels::gemm::linear(&step, &h, n, &mut pull);
    for method in ["gptq", "awq", "awq+gptq", "auto"] {
        let target = Some(Target { w: wanted.clone(), pull: pull.clone(), alpha: 1.0 });
        let site = site(&h, n, vec![Layer { target, ..layer(&w, grid) }]);
        let q = own(&by_name(method).unwrap().quantize(&site, &Options::default()).unwrap(), &site).remove(0);
        let off = relative(output_error(&wanted, &q, n, &h));
        assert!(off < 1e-3, "{method}: {off}");
    }
}

#[test]
fn scaled_rows_keep_their_codes() {
    for (kind, grid) in grids() {
        let (rows, columns) = (19, 256);
        let (h, w) = (hessian(columns, 400), noise(rows * columns, 9));
        let site = site(&h, columns, vec![layer(&w, grid)]);
        let mut rounded = gptq::Gptq.quantize(&site, &PAPER).unwrap().layers.remove(0).rounded;
        let before = rounded.values(grid);
        // Powers of two are exact wherever scales are.
        let exact: Vec<f32> = (0..rows).map(|r| [0.25, 1.0, 4.0][r % 3]).collect();
        rounded.scale_rows(&exact, &grid.freedom());
        let after = rounded.values(grid);
        for (i, (after, before)) in after.iter().zip(&before).enumerate() {
            assert_eq!(*after, before * exact[i / columns], "{}, row {}", kind.name(), i / columns);
        }
        assert_eq!(kind.decode_all(&rounded.store(grid)), after, "{}", kind.name());
    }
    // Two bytes of scale, sixteen of codes.
    let (_, grid) = grid("Q4_0");
    let w = noise(3 * 64, 10);
    let mut rounded = plain(64, None, false).round(&w, grid);
    let (before, values) = (rounded.store(grid), rounded.values(grid));
    let factors = [0.37, 1.9, 77.0];
    rounded.scale_rows(&factors, &grid.freedom());
    for (after, before) in rounded.store(grid).chunks(18).zip(before.chunks(18)) {
        assert!(after[2..] == before[2..] && after[..2] != before[..2]);
    }
    for (i, (after, before)) in rounded.values(grid).iter().zip(&values).enumerate() {
        let want = before * factors[i / 64];
        assert!((after - want).abs() <= 5e-4 * want.abs(), "{after} instead of {want}");
    }
}

#[test]
fn rows_are_scaled_only_as_far_as_half_precision_goes() {
    let (_, grid) = grid("Q4_0");
    let w = noise(20 * 64, 11);
    let can = |size: f32, factor: f32| {
        let w: Vec<f32> = w.iter().map(|w| w * size).collect();
        let mut factors = vec![1.0; 20];
        factors[..4].fill(factor);
        plain(64, None, false).round(&w, grid).can_scale_rows(&factors, &grid.freedom())
    };
    assert!(can(1.0, 0.013) && can(1.0, 77.0) && can(1e-3, 0.3));
    // A scale of 1e-4 or so has six bits left at 1e-6, and one of 6000 has an end at 65504.
    assert!(!can(1e-3, 0.013) && can(4e4, 0.013) && !can(4e4, 77.0));
}

/// What every solution has to be: finite, decoded by the type to what the method says, and not far from the weights by
/// themselves: by no more than `allowed`, a part of their squares, beyond a few times the error of rounding.
#[track_caller]
fn assert_sound(solution: &Solution, site: &Site, kinds: &[Type], allowed: f64, what: &str) {
    let own = own(solution, site);
    assert_eq!(own.len(), site.layers.len());
    if let Some(s) = &solution.scales {
        assert!(s.len() == site.columns && s.iter().all(|s| (0.01..=100.0).contains(s)), "{what}: {s:?}");
    }
    for (((solved, layer), q), kind) in solution.layers.iter().zip(&site.layers).zip(&own).zip(kinds) {
        let what = format!("{what}, {}, by {}", kind.name(), solved.method);
        let values = solved.rounded.values(layer.grid);
        assert!(values.iter().all(|x| x.is_finite()), "{what}");
        assert!(kind.decode_all(&solved.rounded.store(layer.grid)) == values, "{what}");
        let plain = plain(site.columns, None, false).round(layer.w, layer.grid).values(layer.grid);
        let of = |q: &[f32]| weight_error((0.0, 0.0), layer.w, q, site.columns, None);
        let ((error, whole), (least, _)) = (of(q), of(&plain));
        assert!(error <= 8.0 * least + allowed * whole, "{what}: {error} where rounding has {least}");
    }
}

#[test]
fn every_method_gives_what_the_file_will_decode_to_on_every_grid() {
    for (kind, grid) in grids() {
        let columns = 256;
        let h = hessian(columns, 400);
        let (w, row) = (noise(37 * columns, 15), noise(columns, 16));
        // A single row, and another width of blocks beside it.
        let (other_kind, other) = super::tests::grid(if grid.width() > 64 { "Q4_0" } else { "Q4_K" });
        for method in METHODS {
            let site = site(&h, columns, vec![layer(&w, grid), layer(&row, grid), layer(&row, other)]);
            let solution = method.quantize(&site, &Options::default()).unwrap();
            assert_sound(&solution, &site, &[kind, kind, other_kind], 0.1, method.name());
        }
    }
}

/// Hessians that a calibration may end up with when something is odd.
fn odd_hessians(n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let (one, two) = (activations(n, 1, 60), activations(n, 2, 61));
    let usual = hessian(n, 3 * n);
    let sized = |size: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..n * n).map(|i| usual[i] * size(i / n) * size(i % n)).collect()
    };
    let mut lonely = vec![0.0; n * n];
    lonely[(n - 1) * (n + 1)] = 2.0;
    vec![
        ("one token", outer(&one, &one, 1)),
        ("two tokens", outer(&two, &two, 2)),
        ("no token", vec![0.0; n * n]),
        ("equal inputs", vec![1.0; n * n]),
        ("one live column", lonely),
        ("every other column dead", sized(&|j| (j % 2) as f32)),
        ("a block dead", sized(&|j| if j < 32 { 0.0 } else { 1.0 })),
        ("tiny", sized(&|_| 1e-15)),
        ("subnormal", sized(&|_| 1e-20)),
        ("huge", sized(&|_| 1e15)),
        ("almost infinite", sized(&|_| 1e18)),
        ("tiny and huge", sized(&|j| if j % 3 == 0 { 1e15 } else { 1e-15 })),
        ("one huge column", sized(&|j| if j == 7 { 1e3 } else { 1.0 })),
    ]
}

#[test]
fn odd_hessians_and_narrow_matrices_are_rounded_soundly_by_every_method() {
    for (kind, grid) in grids() {
        // A single block, and a few; a single row, and a few.
        let wide = grid.width() > 64;
        let columns = if wide { vec![grid.width()] } else { vec![grid.width(), 3 * grid.width()] };
        for (columns, rows) in columns.into_iter().flat_map(|columns| [(columns, 1), (columns, 17)]) {
            for (what, h) in odd_hessians(columns) {
                let w = noise(rows * columns, 70);
                let plain = plain(columns, None, false).round(&w, grid).values(grid);
                let least = error(&plain, &w, &h);
                for method in METHODS.iter().filter(|m| !wide || m.name() != "awq+gptq") {
                    let site = site(&h, columns, vec![layer(&w, grid)]);
                    let solution = method.quantize(&site, &Options::default()).unwrap();
                    let what = format!("{what}, {rows} x {columns}, {}", method.name());
                    // Columns that hardly count may be lost, but no more than lost.
                    assert_sound(&solution, &site, &[kind], 1.0, &what);
                    assert!(solution.notes.is_empty(), "{what}: {:?}", solution.notes);
                    // Whoever looks at the Hessian has to be no worse by it; what cancels on a single row is luck.
                    let (error, luck) = (error(&own(&solution, &site)[0], &w, &h), if rows > 1 { 1.5 } else { 1e9 });
                    assert!(error <= least * luck + 1e-12, "{what}, {}: {error}, {least}", kind.name());
                }
            }
        }
    }
}

#[test]
fn odd_weights_are_rounded_soundly_by_every_method() {
    for (kind, grid) in grids() {
        let columns = few_columns(grid);
        let h = hessian(columns, 600);
        let usual = noise(17 * columns, 71);
        let mut sparse = vec![0.0; 17 * columns];
        sparse[3 * columns + 5] = 1.0;
        let sized = |size: f32| usual.iter().map(|w| w * size).collect::<Vec<f32>>();
        for (what, w) in [
            ("zeros", vec![0.0; 17 * columns]),
            ("all but one zero", sparse),
            ("constant", vec![-0.3; 17 * columns]),
            ("large", sized(4e4)),
            ("subnormal", sized(1e-40)),
        ] {
            for method in METHODS {
                let site = site(&h, columns, vec![layer(&w, grid)]);
                let solution = method.quantize(&site, &Options::default()).unwrap();
                assert_sound(&solution, &site, &[kind], 0.2, &format!("{what}, {}", method.name()));
            }
        }
    }
}

#[test]
fn how_large_all_inputs_are_together_changes_no_byte() {
    for (kind, grid) in grids() {
        let columns = few_columns(grid);
        let (usual, w) = (hessian(columns, 600), noise(17 * columns, 72));
        for method in METHODS {
            let of = |size: f32| {
                let h: Vec<f32> = usual.iter().map(|h| h * size).collect();
                let site = site(&h, columns, vec![layer(&w, grid)]);
                method.quantize(&site, &Options::default()).unwrap().layers[0].rounded.store(grid)
            };
            let usual = of(1.0);
            for power in [-90, 90] {
                assert!(of(2f32.powi(power)) == usual, "{} by {}, 2^{power}", kind.name(), method.name());
            }
        }
    }
}

#[test]
fn unknown_methods_are_usage_errors_that_list_the_known_ones() {
    let error = by_name("magic").err().unwrap();
    assert!(error.hint_text().unwrap().contains("gptq, awq, rtn"));
    assert!(METHODS.iter().all(|m| by_name(&m.name().to_uppercase()).unwrap().name() == m.name()));
}
