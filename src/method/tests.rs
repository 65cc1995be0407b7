//! What holds for every method on every grid.

use super::*;
use crate::format::{Encoding, TYPES, Type};

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_add(99);
    let mut uniform = || {
        s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

/// The Hessian of activations whose columns are correlated and of different size.
fn hessian(columns: usize, tokens: usize) -> Vec<f32> {
    let mut x = noise(tokens * columns, 5); // [tokens, columns]
    for row in x.chunks_mut(columns) {
        for j in 1..columns {
            row[j] = 0.8 * row[j - 1] + 0.6 * row[j];
        }
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j % 7) as f32);
    }
    let mut h = vec![0.0; columns * columns];
    llmq_kernels::syrk::syrk(&x, columns, &mut h);
    llmq_kernels::syrk::mirror(columns, &mut h);
    h
}

fn grids() -> impl Iterator<Item = (Type, &'static dyn Grid)> {
    TYPES.iter().filter_map(|&t| if let Encoding::Grid(g) = t.encoding() { Some((t, g)) } else { None })
}

fn error(method: &str, h: &[f32], w: &[f32], columns: usize, kind: Type, grid: &dyn Grid) -> f64 {
    let prepared = by_name(method).unwrap().prepare(h, columns, &Options { damp: 0.01 }).unwrap();
    let q = kind.decode_all(&prepared.quantize(w, grid));
    relative(output_error(w, &q, columns, h))
}

#[test]
fn feedback_lowers_the_output_error_on_every_grid() {
    // 37 rows: two full groups of lanes and a tail; 320 columns: two full lazy blocks and a tail.
    let (rows, columns) = (37, 320);
    let (h, w) = (hessian(columns, 900), noise(rows * columns, 1));
    for (kind, grid) in grids().filter(|(_, grid)| columns % grid.width() == 0) {
        let plain = error("rtn", &h, &w, columns, kind, grid);
        let fed_back = error("gptq", &h, &w, columns, kind, grid);
        assert!(fed_back < 0.7 * plain, "{}: {fed_back} against {plain}", kind.name());
    }
}

#[test]
fn gptq_equals_the_paper_step_by_step() {
    // One column after the other over the whole matrix, without lanes, lazy blocks or padding.
    let (rows, columns) = (5, 320);
    let (h, w) = (hessian(columns, 900), noise(rows * columns, 2));
    let kind = crate::format::by_name("Q4_0").unwrap();
    let Encoding::Grid(grid) = kind.encoding() else { unreachable!() };
    let prepared = by_name("gptq").unwrap().prepare(&h, columns, &Options { damp: 0.01 }).unwrap();
    let bytes = prepared.quantize(&w, grid);
    let mean = (0..columns).map(|j| f64::from(h[j * columns + j])).sum::<f64>() / columns as f64;
    let u = super::factor::inverse_factor(&h, columns, 0.01 * mean).unwrap();
    let decoded = kind.decode_all(&bytes);
    let mut differing = 0;
    for r in 0..rows {
        let mut row: Vec<f64> = w[r * columns..][..columns].iter().map(|&x| f64::from(x)).collect();
        for j in 0..columns {
            let q = f64::from(decoded[r * columns + j]);
            let d =
                f64::from(crate::format::by_name("F16").unwrap().decode_all(&bytes[(r * 10 + j / 32) * 18..][..2])[0]);
            // The stored value has to be the point of the block's grid that is nearest to the updated weight; the two
            // computations may disagree only about ties.
            let nearest = (row[j] / d).round_ties_even().clamp(-8.0, 7.0) * d;
            if (nearest - q).abs() > 1e-6 {
                differing += 1;
                assert!(((row[j] - q).abs() - (row[j] - nearest).abs()).abs() < 1e-3 * d.abs(), "row {r}, column {j}");
            }
            let e = (row[j] - q) / f64::from(u[j * columns + j]);
            for k in j..columns {
                row[k] -= e * f64::from(u[j * columns + k]);
            }
        }
    }
    assert!(differing < 3, "{differing} codes differ");
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let (rows, columns) = (300, 160);
    let (h, w) = (hessian(columns, 400), noise(rows * columns, 3));
    for method in METHODS {
        for (_, grid) in grids().filter(|(_, grid)| columns % grid.width() == 0) {
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| method.prepare(&h, columns, &Options { damp: 0.01 }).unwrap().quantize(&w, grid))
            };
            assert_eq!(on(1), on(3), "{}", method.name());
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
    let w = noise(16 * columns, 4);
    let kind = crate::format::by_name("Q8_0").unwrap();
    let Encoding::Grid(grid) = kind.encoding() else { unreachable!() };
    let prepared = by_name("gptq").unwrap().prepare(&h, columns, &Options { damp: 0.01 }).unwrap();
    let q = kind.decode_all(&prepared.quantize(&w, grid));
    for r in 0..16 {
        assert!((q[r * columns + 3] - w[r * columns + 3]).abs() < 0.02, "row {r}");
    }
    assert!(prepared.note().is_none());
}

#[test]
fn singular_hessians_are_damped_and_hopeless_ones_fall_back_with_a_note() {
    let columns = 64;
    let (w, kind) = (noise(16 * columns, 6), crate::format::by_name("Q4_0").unwrap());
    let Encoding::Grid(grid) = kind.encoding() else { unreachable!() };
    let options = Options { damp: 0.01 };
    let gptq = by_name("gptq").unwrap();
    let plain = super::plain(columns, Some(&vec![1.0; columns]), false).quantize(&w, grid);
    // One token: a matrix of rank one.
    let x = noise(columns, 7);
    let one: Vec<f32> = (0..columns * columns).map(|i| x[i / columns] * x[i % columns]).collect();
    let prepared = gptq.prepare(&one, columns, &options).unwrap();
    assert!(kind.decode_all(&prepared.quantize(&w, grid)).iter().all(|x| x.is_finite()));
    // No token at all: nothing to feed back.
    let prepared = gptq.prepare(&vec![0.0; columns * columns], columns, &options).unwrap();
    assert_eq!(prepared.quantize(&w, grid), plain);
    // Indefinite beyond repair.
    let mut bad = vec![0.0; columns * columns];
    (0..columns).for_each(|j| bad[j * columns + j] = 1.0);
    bad[1] = 1e6;
    bad[columns] = 1e6;
    let prepared = gptq.prepare(&bad, columns, &options).unwrap();
    assert_eq!(prepared.quantize(&w, grid), plain);
    assert!(prepared.note().unwrap().contains("rounded to nearest"));
    // Slightly indefinite: more damping, and a note.
    bad[1] = 1.05;
    bad[columns] = 1.05;
    assert!(gptq.prepare(&bad, columns, &options).unwrap().note().unwrap().contains("damping"));
}

#[test]
fn unknown_methods_are_usage_errors_that_list_the_known_ones() {
    let error = by_name("magic").err().unwrap();
    assert!(error.hint_text().unwrap().contains("gptq"));
}
