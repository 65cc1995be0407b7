//! Where a router sends tokens.

use super::experts::Experts;
use candle_core::Tensor;

/// The tokens of an expert.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// Which rows of the input go to it, in order.
    pub tokens: Vec<u32>,
    /// By what its outputs are multiplied.
    pub weights: Vec<f32>,
    /// They are what its inputs are multiplied by instead.
    pub of_inputs: bool,
}

impl Route {
    /// The rows of `x`, `[tokens, columns]`, that go to the expert, as it reads them.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn select(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let rows = x.index_select(&Tensor::from_slice(&self.tokens, self.tokens.len(), x.device())?, 0)?;
        if self.of_inputs { self.by_weights(&rows) } else { Ok(rows) }
    }

    /// The expert's own rows, each multiplied by its weight.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn weigh(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        if self.of_inputs { Ok(rows.clone()) } else { self.by_weights(rows) }
    }

    fn by_weights(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        rows.broadcast_mul(&Tensor::from_slice(&self.weights, (self.weights.len(), 1), rows.device())?)
    }
}

/// How a router's scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// All together, `exp(s) / Σ exp(s)`.
    Softmax,
    /// Each by itself, `1 / (1 + exp(−s))`.
    Sigmoid,
}

/// The weights of all experts from a router's scores of a token.
pub(super) fn weights(scoring: Scoring, scores: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
        Scoring::Softmax => {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f32 = powers.iter().sum();
            powers.iter().map(|power| power / total).collect()
        }
    }
}

/// The experts that a token goes to, by how much each of them merits it; of equal ones the first.
pub(super) fn choose(experts: &Experts, merits: &[f32]) -> Vec<usize> {
    let mut open: Vec<usize> = (0..experts.count).collect();
    if let Some((groups, used)) = experts.groups {
        // A group is worth its two best.
        let each = experts.count / groups;
        let worth = |group: usize| {
            let mut own: Vec<f32> = merits[group * each..(group + 1) * each].to_vec();
            own.sort_by(|a, b| b.total_cmp(a));
            match experts.selection_bias {
                true => own.iter().take(2).sum::<f32>(),
                false => own[0],
            }
        };
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)));
        let allowed = &order[..used.min(groups)];
        open.retain(|e| allowed.contains(&(e / each)));
    }
    open.sort_by(|&a, &b| merits[b].total_cmp(&merits[a]));
    open.truncate(experts.used);
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_chosen_within_the_best_groups() {
        let experts = Experts { groups: Some((2, 1)), selection_bias: true, ..Experts::plain(4, 2, 8) };
        // The single best is in the first group, the two best together in the second.
        assert_eq!(choose(&experts, &[0.9, 0.1, 0.6, 0.7]), [3, 2]);
        assert_eq!(choose(&Experts { selection_bias: false, ..experts }, &[0.9, 0.1, 0.6, 0.7]), [0, 1]);
        assert_eq!(choose(&Experts { groups: None, ..experts }, &[0.9, 0.1, 0.6, 0.7]), [0, 3]);
        assert_eq!(choose(&Experts::plain(3, 2, 8), &[0.5, 0.5, 0.5]), [0, 1]);
    }

    #[test]
    fn weights_are_of_inputs_or_of_outputs() {
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0], (3, 1), &candle_core::Device::Cpu).unwrap();
        let rows = |x: candle_core::Result<Tensor>| x.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let route = Route { tokens: vec![0, 2], weights: vec![0.5, 2.0], of_inputs: false };
        let own = route.select(&x).unwrap();
        assert_eq!((rows(Ok(own.clone())), rows(route.weigh(&own))), (vec![1.0, 3.0], vec![0.5, 6.0]));
        let route = Route { of_inputs: true, ..route };
        let own = route.select(&x).unwrap();
        assert_eq!((rows(Ok(own.clone())), rows(route.weigh(&own))), (vec![0.5, 6.0], vec![0.5, 6.0]));
    }

    #[test]
    fn scores_become_weights() {
        let softmax = weights(Scoring::Softmax, &[0.0, 2f32.ln(), 0.0]);
        assert!(softmax.iter().zip([0.25, 0.5, 0.25]).all(|(a, b)| (a - b).abs() < 1e-6), "{softmax:?}");
        assert_eq!(weights(Scoring::Sigmoid, &[0.0, f32::INFINITY]), [0.5, 1.0]);
    }
}
