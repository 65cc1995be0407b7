//! Error feedback, its order and its polish, against the paper.

use super::*;

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
fn assert_by_the_paper(rounded: &QuantizedMatrix, w: &[f32], h: &[f32], order: &[usize]) {
    let n = order.len();
    let (kind, grid) = grid("Q4_0");
    let (bytes, decoded) = (rounded.store(grid), rounded.values(grid));
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    let mut permuted: Vec<f32> = (0..n * n).map(|i| h[order[i / n] * n + order[i % n]]).collect();
    (0..n).for_each(|j| permuted[j * n + j] += (0.01 * mean) as f32);
    let u = factor::inverse_factor(&permuted, &(0..n).collect::<Vec<_>>()).unwrap();
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
    let solution = crate::method::gptq::Gptq.quantize(&site, &PAPER).unwrap();
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
    let solution = crate::method::gptq::Gptq.quantize(&site, &Options { order: true, ..PAPER }).unwrap();
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
fn feedback_in_bfloat16_costs_next_to_nothing() {
    let mut ratios = 0.0;
    for (_, grid) in grids() {
        let columns = some_columns(grid);
        let (h, w) = (hessian(columns, 1400), noise(37 * columns, 1));
        let of = |feedback| error(&rounded("gptq", &h, &w, grid, &Options { feedback, ..Options::default() }), &w, &h);
        ratios += (of(Precision::Bf16) / of(Precision::Single)).ln();
    }
    let ratio = f64::exp(ratios / grids().count() as f64);
    assert!(ratio < 1.003, "{ratio} of the error");
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
    let exact = Options { feedback: Precision::Single, ..Options::default() };
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
            let after = of(Options { sweeps, scales: false, ..exact });
            for (r, (after, before)) in after.iter().zip(&before).enumerate() {
                assert!(*after <= before * 1.000_01, "{}, row {r}: {after} after {before}", kind.name());
            }
            before = after;
        }
        let with_scales = of(exact);
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
