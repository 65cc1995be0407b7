//! The gradients of what is computed number by number or row by row.

use llmq_kernels::elementwise::{self, Activation};
use rayon::prelude::*;

/// Numbers that one task handles.
const PART: usize = 1 << 14;

/// The derivative of an activation at `x`, where it is `y`.
fn slope(kind: Activation, x: f32, y: f32) -> f32 {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::Silu => {
            let s = sigmoid(x);
            s + y * (1.0 - s)
        }
        Activation::GeluTanh => {
            let (a, b) = (2.0 * (2.0 / std::f32::consts::PI).sqrt(), 0.044_715);
            let s = sigmoid(a * (x + b * x * x * x));
            s + y * (1.0 - s) * a * (1.0 + 3.0 * b * x * x)
        }
        Activation::Gelu => {
            let phi = if x == 0.0 { 0.5 } else { y / x };
            phi + x * (-0.5 * x * x).exp() / std::f32::consts::TAU.sqrt()
        }
        Activation::SiluBounded if x >= 7.0 => 0.0,
        Activation::SiluBounded => {
            let s = sigmoid(1.702 * x);
            s + 1.702 * y * (1.0 - s)
        }
        Activation::ReluSquared => 2.0 * x.max(0.0),
        Activation::Softplus => sigmoid(x),
        Activation::Sigmoid => y * (1.0 - y),
    }
}

/// The gradient at `x` of `y = activation(x)`. `x`, `y`, `grad`: `[n]`.
pub fn activate(kind: Activation, x: &[f32], y: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut dx = grad.to_vec();
    dx.par_chunks_mut(PART).zip(x.par_chunks(PART).zip(y.par_chunks(PART))).for_each(|(dx, (x, y))| {
        dx.iter_mut().zip(x.iter().zip(y)).for_each(|(dx, (x, y))| *dx *= slope(kind, *x, *y));
    });
    dx
}

/// The gradients at `gate` and `up` of `activation(gate)·up`. All: `[n]`.
pub fn gated(kind: Activation, gate: &[f32], up: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut opened = gate.to_vec();
    elementwise::activate(kind, &mut opened);
    // What is gated, and its derivative.
    let raised = |up: f32| match kind {
        Activation::SiluBounded => (up.clamp(-7.0, 7.0) + 1.0, if up.abs() < 7.0 { 1.0 } else { 0.0 }),
        _ => (up, 1.0),
    };
    let by = |(up, grad): (&f32, &f32)| grad * raised(*up).0;
    let of_gate: Vec<f32> = up.par_iter().zip(grad).map(by).collect();
    let of_gate = activate(kind, gate, &opened, &of_gate);
    let of_up = opened.par_iter().zip(up.par_iter().zip(grad)).map(|(f, (up, grad))| f * grad * raised(*up).1);
    (of_gate, of_up.collect())
}

/// The gradient at `x` of a norm of each of its rows: of `x / √(mean(x²) + eps) · gain`, or, if it is `centred`, of the same of `x −
/// mean(x)`. `x`, `grad`: `[n, width]`; `gain`: `[width]`.
///
/// With `x̂` the normed row and `g = gain ∘ grad`: `dx = (g − x̂·mean(g ∘ x̂)) / √…`, less `mean(g) / √…` where it is centred.
pub fn norm(centred: bool, x: &[f32], gain: &[f32], eps: f32, grad: &[f32]) -> Vec<f32> {
    let width = gain.len();
    let mut dx = grad.to_vec();
    dx.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(dx, x)| {
        let mean = |sum: f64| sum / width as f64;
        let middle = if centred { mean(x.iter().map(|x| f64::from(*x)).sum()) } else { 0.0 };
        let square = mean(x.iter().map(|x| (f64::from(*x) - middle).powi(2)).sum());
        let inverse = 1.0 / (square + f64::from(eps)).sqrt();
        let normed = |x: &f32| (f64::from(*x) - middle) * inverse;
        dx.iter_mut().zip(gain).for_each(|(g, gain)| *g *= gain);
        let along = mean(x.iter().zip(&*dx).map(|(x, g)| normed(x) * f64::from(*g)).sum());
        let level = if centred { mean(dx.iter().map(|g| f64::from(*g)).sum()) } else { 0.0 };
        dx.iter_mut().zip(x).for_each(|(g, x)| *g = ((f64::from(*g) - normed(x) * along - level) * inverse) as f32);
    });
    dx
}
