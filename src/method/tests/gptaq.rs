//! What layers aim at where their inputs have drifted.

use super::*;

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
    Solver::new(Arc::new(Damped::new(h.to_vec(), n, damp)), &[Span { width: n, run: 1 }], &Options::default())
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
    let m = sum(pull(Precision::Single, &w, n, &drift), &missing);
    let target = Target::new(&w, n, &factored(&h, damp).times_inverse(m.clone()).unwrap(), m, &h);
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
    let m = pull(Precision::Single, &w, n, &inputs);
    let target = Target::new(&w, n, &factored(&h, 1e-6).times_inverse(m.clone()).unwrap(), m, &h);
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
    let step = factored(&h, 0.01).times_inverse(pull(Precision::Single, &w, n, &drift)).unwrap();
    let of = |size: f32| {
        let (held, _, held_h) = Drifted::new(n, rows, 400, 50, size).means();
        Target::new(&w, n, &step, pull(Precision::Single, &w, n, &held), &held_h)
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
    let target = Target::new(&w, n, &zeros, zeros.clone(), &h);
    assert_eq!((target.w, target.pull), (w, zeros));
}

#[test]
fn the_loss_of_a_layer_is_what_its_outputs_are_off_by() {
    let (n, rows, tokens) = (32, 5, 150);
    let w = noise(rows * n, 30);
    let held = Drifted::new(n, rows, tokens, 41, 1.0);
    let (seen, other) = (Drifted::new(n, rows, 200, 40, 1.0).means(), held.means());
    let [a, b] = [&seen, &other].map(|means| sum(pull(Precision::Single, &w, n, &means.0), &means.1));
    let target = Target::new(&w, n, &factored(&seen.2, 0.01).times_inverse(a).unwrap(), b, &other.2);
    let layer = Layer { target: Some(target), ..layer(&w, grid("Q4_0").1) };
    let site = Site { held: Some(&other.2), ..site(&seen.2, n, vec![]) };
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
    llmq_kernels::gemm::linear(llmq_kernels::gemm::Precision::Single, &step, &h, n, &mut pull);
    for method in ["gptq", "awq", "awq+gptq", "auto"] {
        let target = Some(Target { w: wanted.clone(), pull: pull.clone(), alpha: 1.0 });
        let site = site(&h, n, vec![Layer { target, ..layer(&w, grid) }]);
        let q = own(&by_name(method).unwrap().quantize(&site, &Options::default()).unwrap(), &site).remove(0);
        let off = relative(output_error(&wanted, &q, n, &h));
        assert!(off < 1e-3, "{method}: {off}");
    }
}
