//! Error feedback onto steps that are given.

use super::*;

/// Codes of the algorithm by hand: one column after the other over the whole row, in double precision.
fn by_hand(w: &[f32], scales: &[f32], h: &[f32], largest: f64) -> Vec<f64> {
    let n = h.len().isqrt();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]));
    let u = factor::inverse_factor(&damped(h, 0.01), &order).unwrap();
    let mut codes = vec![0.0; w.len()];
    for (r, (w, &scale)) in w.chunks(n).zip(scales).enumerate() {
        let mut row: Vec<f64> = order.iter().map(|&j| f64::from(w[j])).collect();
        for k in 0..n {
            let code = (row[k] / f64::from(scale)).round_ties_even().clamp(-largest, largest);
            codes[r * n + order[k]] = code;
            let error = (row[k] - code * f64::from(scale)) / f64::from(u[k * n + k]);
            (k + 1..n).for_each(|l| row[l] -= error * f64::from(u[k * n + l]));
        }
    }
    codes
}

#[test]
fn rows_with_a_settled_step_follow_the_paper_and_lose_less_than_to_nearest() {
    // More columns than errors are collected for at once, and more rows than one task takes.
    let (n, rows) = (150, 133);
    let (h, w) = (hessian(n, 600), noise(rows * n, 4));
    let scales: Vec<f32> = (0..rows).map(|r| 0.02 + 0.001 * (r % 7) as f32).collect();
    let codes = GptqInt8::new(&h, n).unwrap().round(&w, &scales, 64);
    let hand = by_hand(&w, &scales, &h, 64.0);
    let differing = codes.iter().zip(&hand).filter(|(a, b)| f64::from(**a) != **b).count();
    // What lies between two codes may round to either side in single precision, and others follow.
    assert!(differing < codes.len() / 200, "{differing} of {}", codes.len());
    assert!(codes.iter().all(|code| (-64..=64).contains(code)));
    let values = |codes: &[i8]| -> Vec<f32> {
        codes.iter().enumerate().map(|(at, &code)| f32::from(code) * scales[at / n]).collect()
    };
    let nearest: Vec<i8> = (0..w.len()).map(|at| (w[at] / scales[at / n]).round().clamp(-64.0, 64.0) as i8).collect();
    let [fed, nearest] = [codes, nearest].map(|codes| error(&values(&codes), &w, &h));
    assert!(fed < 0.7 * nearest, "{fed} against {nearest}");
}

#[test]
fn what_is_no_hessian_has_no_factor() {
    assert!(GptqInt8::new(&[f32::NAN; 4], 2).is_none());
    // Inputs that are always zero are rounded to nearest.
    let codes = GptqInt8::new(&[0.0; 4], 2).unwrap().round(&[0.26, -0.9], &[0.1], 127);
    assert_eq!(codes, [3, -9]);
}
