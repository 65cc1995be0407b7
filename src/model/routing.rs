//! A mixture of experts in the place of an MLP: where the router sends tokens, and what comes of it.

use super::block::{Block, Half};
use super::form::{Experts, Scoring};
use super::matrix::Matrix;
use super::ops;
use super::{Kind, Part};
use crate::error::{Error, Result};
use candle_core::Tensor;

/// The tokens of an expert.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// Which rows of the input go to it, in order.
    pub tokens: Vec<u32>,
    /// By what its outputs are multiplied.
    pub weights: Vec<f32>,
}

impl Route {
    /// The rows of `x`, `[tokens, columns]`, that go to the expert.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn select(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.index_select(&Tensor::from_slice(&self.tokens, self.tokens.len(), x.device())?, 0)
    }

    /// The expert's own rows, each multiplied by its weight.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn weigh(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        rows.broadcast_mul(&Tensor::from_slice(&self.weights, (self.weights.len(), 1), rows.device())?)
    }
}

impl<'a> Block<'a> {
    /// Whether it has experts.
    pub fn has_experts(&self) -> bool {
        self.frame.model.experts(self.index).is_some()
    }

    /// Whether every token goes through an MLP beside the experts, or instead of them.
    pub fn has_shared_expert(&self) -> bool {
        self.frame.model.mlp_width(self.index) > 0
    }

    /// Which tokens go to which expert: the ones that the router gives the most weight (Shazeer et al. 2017, section 2.1, without
    /// noise, the softmax before the choice; DeepSeek-AI 2024, section 2.1.2, for sigmoids, groups and favours).
    /// `x`: the MLP's input, `[tokens, hidden]`; result: one route per expert.
    ///
    /// # Errors
    /// Shapes that do not fit, or a router whose scores are no numbers.
    pub fn routes(&self, x: &Tensor) -> Result<Vec<Route>> {
        let Some(experts) = self.frame.model.experts(self.index) else { return Ok(Vec::new()) };
        let scores = self.linear(Part::Router, x)?.to_vec2::<f32>()?;
        let favours: Vec<f32> = match self.tensors.get(&(Part::Favours, Kind::Weight)) {
            Some(favours) => favours.to_vec1()?,
            None => vec![0.0; experts.count],
        };
        let mut routes = vec![Route::default(); experts.count];
        for (token, scores) in scores.iter().enumerate() {
            let weights = weights(experts.scoring, scores);
            if weights.iter().any(|weight| !weight.is_finite()) {
                return Err(Error::new(format!("the router's scores of token {token} are no numbers")));
            }
            let merits: Vec<f32> = weights.iter().zip(&favours).map(|(weight, favour)| weight + favour).collect();
            let chosen = choose(&experts, &merits);
            let total: f32 = if experts.normed { chosen.iter().map(|&e| weights[e]).sum() } else { 1.0 };
            for &e in &chosen {
                routes[e].tokens.push(token as u32);
                routes[e].weights.push(weights[e] / total * experts.scale);
            }
        }
        Ok(routes)
    }

    /// What an expert's last layer reads. `x`: the rows of the MLP's input that go to it, `[tokens, hidden]`; `weight`: the
    /// expert's own matrices.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn expert_inner(
        &self,
        expert: usize,
        x: &Tensor,
        weight: &dyn Fn(Part) -> Result<Matrix<'a>>,
    ) -> Result<Tensor> {
        let of = |part: Part| self.expert_linear(part, expert, x, &weight(part)?);
        Ok(ops::gated(self.frame.model.form.mlp.activation, &of(Part::ExpertGates)?, &of(Part::ExpertUps)?)?)
    }

    fn expert_linear(&self, part: Part, expert: usize, x: &Tensor, weight: &Matrix<'_>) -> Result<Tensor> {
        let y = weight.linear(self.frame.precision, x)?;
        match self.bias(part) {
            Some(bias) => Ok(y.broadcast_add(&bias.get(expert)?)?),
            None => Ok(y),
        }
    }

    /// One expert's matrix, `[rows, columns]`.
    ///
    /// # Errors
    /// There is no such expert.
    pub fn expert(&self, part: Part, expert: usize) -> Result<Matrix<'a>> {
        let count = self.frame.model.experts(self.index).map_or(0, |experts| experts.count);
        self.of_stack(part, expert, count)
    }

    /// What all experts make of the MLP's input together, `[tokens, hidden]`. `weight`: a matrix of one of them.
    pub(super) fn mixture(&self, x: &Tensor, weight: &dyn Fn(Part, usize) -> Result<Matrix<'a>>) -> Result<Tensor> {
        let mut y = x.zeros_like()?;
        for (expert, route) in self.routes(x)?.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
            let inner = self.expert_inner(expert, &route.select(x)?, &|part| weight(part, expert))?;
            let own = self.expert_linear(Part::ExpertDowns, expert, &inner, &weight(Part::ExpertDowns, expert)?)?;
            let tokens = Tensor::from_slice(&route.tokens, route.tokens.len(), x.device())?;
            y = y.index_add(&tokens, &route.weigh(&own)?, 0)?;
        }
        if self.has_shared_expert() {
            let mut shared = self.last(Half::Mlp, &self.inner(Half::Mlp, x)?)?;
            if self.has(Part::SharedRouter) {
                let open = (self.linear(Part::SharedRouter, x)?.neg()?.exp()? + 1.0)?.recip()?;
                shared = shared.broadcast_mul(&open)?;
            }
            y = (y + shared)?;
        }
        Ok(y)
    }
}

/// The weights of all experts from a router's scores of a token.
fn weights(scoring: Scoring, scores: &[f32]) -> Vec<f32> {
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
fn choose(experts: &Experts, merits: &[f32]) -> Vec<usize> {
    let mut open: Vec<usize> = (0..experts.count).collect();
    if let Some((groups, used)) = experts.groups {
        // A group is worth its two best.
        let each = experts.count / groups;
        let worth = |group: usize| {
            let mut own: Vec<f32> = merits[group * each..(group + 1) * each].to_vec();
            own.sort_by(|a, b| b.total_cmp(a));
            match experts.favours {
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
        let experts = Experts { groups: Some((2, 1)), favours: true, ..Experts::plain(4, 2, 8) };
        // The single best is in the first group, the two best together in the second.
        assert_eq!(choose(&experts, &[0.9, 0.1, 0.6, 0.7]), [3, 2]);
        assert_eq!(choose(&Experts { favours: false, ..experts }, &[0.9, 0.1, 0.6, 0.7]), [0, 1]);
        assert_eq!(choose(&Experts { groups: None, ..experts }, &[0.9, 0.1, 0.6, 0.7]), [0, 3]);
        assert_eq!(choose(&Experts::plain(3, 2, 8), &[0.5, 0.5, 0.5]), [0, 1]);
    }

    #[test]
    fn scores_become_weights() {
        let softmax = weights(Scoring::Softmax, &[0.0, 2f32.ln(), 0.0]);
        assert!(softmax.iter().zip([0.25, 0.5, 0.25]).all(|(a, b)| (a - b).abs() < 1e-6), "{softmax:?}");
        assert_eq!(weights(Scoring::Sigmoid, &[0.0, f32::INFINITY]), [0.5, 1.0]);
    }
}
