//! The optimizer: Adam (Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1).

/// The decay rates of the moments, and what keeps the quotient finite: the paper's.
const BETA: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// The moments of all parameters.
#[derive(Debug, Default)]
pub struct Adam {
    t: i32,
    moments: Vec<Vec<[f32; 2]>>,
}

impl Adam {
    /// Turns gradients, one list for each parameter, into what is to be taken off; `alpha` is the step size of each.
    pub fn steps(&mut self, gradients: &mut [Vec<f32>], alpha: impl Fn(usize) -> f64) {
        self.t += 1;
        self.moments.resize(gradients.len(), Vec::new());
        let corrections = BETA.map(|beta| 1.0 - beta.powi(self.t));
        for (at, (gradients, moments)) in gradients.iter_mut().zip(&mut self.moments).enumerate() {
            moments.resize(gradients.len(), [0.0; 2]);
            let alpha = alpha(at);
            for (gradient, [m, v]) in gradients.iter_mut().zip(moments) {
                let g = f64::from(*gradient);
                *m = (BETA[0] * f64::from(*m) + (1.0 - BETA[0]) * g) as f32;
                *v = (BETA[1] * f64::from(*v) + (1.0 - BETA[1]) * g * g) as f32;
                let (m, v) = (f64::from(*m) / corrections[0], f64::from(*v) / corrections[1]);
                *gradient = (alpha * m / (v.sqrt() + EPSILON)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_steps_by_hand() {
        let mut adam = Adam::default();
        let mut first = vec![vec![3.0f32, -0.5]];
        adam.steps(&mut first, |_| 0.1);
        // Whatever its size, the first gradient makes a step of alpha.
        assert!(first[0].iter().zip([0.1, -0.1]).all(|(a, b)| (a - b).abs() < 1e-6), "{first:?}");
        let mut second = vec![vec![-1.0f32, -0.5]];
        adam.steps(&mut second, |_| 0.1);
        // m = 0.9 · 0.3 - 0.1 = 0.17, v = 0.999 · 0.009 + 0.001 = 0.009991; divided by 0.19 and 0.001999.
        let expected = 0.1 * (0.17 / 0.19) / (0.009991f64 / 0.001999).sqrt();
        assert!((f64::from(second[0][0]) - expected).abs() < 1e-6 && (second[0][1] + 0.1).abs() < 1e-6, "{second:?}");
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl() {
        let (mut x, mut adam) = ([4.0f32, -300.0], Adam::default());
        for step in 0..2000 {
            let mut gradient = vec![vec![2.0 * (x[0] - 1.0), 200.0 * (x[1] + 299.0)]];
            adam.steps(&mut gradient, |_| 0.05 * (1.0 - f64::from(step) / 2000.0));
            x.iter_mut().zip(&gradient[0]).for_each(|(x, step)| *x -= step);
        }
        assert!((x[0] - 1.0).abs() < 1e-3 && (x[1] + 299.0).abs() < 1e-3, "{x:?}");
    }
}
