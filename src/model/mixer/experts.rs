//! A mixture of experts in the place of an MLP (Shazeer et al. 2017): what the router sends where, and what comes of it.

use super::mlp::{Mlp, MlpLayers};
use super::routing::{Route, Scoring, choose, weights};
use super::{At, Cost, Mix, Place};
use crate::error::{Error, Result};
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::matrix::Matrix;
use crate::model::ops;
use crate::model::part::{Absorber, BlockTensor, Part, Reads};
use candle_core::Tensor;
use llmq_kernels::elementwise::Activation;

impl Part {
    /// The router.
    pub const ROUTER: Part = Part("ffn_gate_inp");
    /// What the router's input is multiplied by, where it has a norm of its own.
    pub const ROUTER_SCALE: Part = Part("ffn_gate_inp.scale");
    /// What is added to an expert's weight for the choice alone.
    pub const SELECTION_BIAS: Part = Part("exp_probs_b");
    /// The gates of all experts.
    pub const EXPERT_GATES: Part = Part("ffn_gate_exps");
    /// Up, of all experts.
    pub const EXPERT_UPS: Part = Part("ffn_up_exps");
    /// Gate and up in one, of all experts.
    pub const EXPERT_GATE_UPS: Part = Part("ffn_gate_up_exps");
    /// Down, of all experts.
    pub const EXPERT_DOWNS: Part = Part("ffn_down_exps");
    /// What each expert's result is multiplied by.
    pub const EXPERT_SCALES: Part = Part("ffn_down_exps.scale");
    /// How much of the shared expert is added.
    pub const SHARED_ROUTER: Part = Part("ffn_gate_inp_shexp");
    /// The norm behind the MLP beside the experts.
    pub const BESIDE_NORM: Part = Part("post_ffw_norm_1");
    /// The norm in front of experts that read the stream by themselves.
    pub const EXPERT_NORM: Part = Part("pre_ffw_norm_2");
    /// The norm behind them.
    pub const EXPERT_POST_NORM: Part = Part("post_ffw_norm_2");
    /// The layer in front of experts that read and write a narrow vector.
    pub const LATENT_DOWN: Part = Part("ffn_latent_down");
    /// The layer behind them.
    pub const LATENT_UP: Part = Part("ffn_latent_up");
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many each token goes to.
    pub used: usize,
    /// Width inside an expert.
    pub width: usize,
    /// The function between the layers of an expert.
    pub activation: Activation,
    /// How they are arranged.
    pub layers: MlpLayers,
    /// How scores become weights.
    pub scoring: Scoring,
    /// The weights of those that are used are made to add up to one.
    pub normed: bool,
    /// By what their weights are multiplied at the end.
    pub scale: f32,
    /// They are what inputs are multiplied by, and not outputs.
    pub weigh_inputs: bool,
    /// Something is added to each expert's weight for the choice alone.
    pub selection_bias: bool,
    /// In how many groups they are, and how many of these each token may use.
    pub groups: Option<(usize, usize)>,
    /// The router and the experts have biases.
    pub bias: bool,
    /// The MLP that every token goes through, too.
    pub shared: Option<Mlp>,
    /// How much of it is added depends on the token.
    pub shared_gate: bool,
    /// The experts and their router read the stream itself, through norms of their own, and a norm stands behind each (Gemma 4).
    /// This is the norms' ε.
    pub beside: Option<f32>,
    /// The experts read and write a vector of so many numbers, with a layer in front of all of them and one behind (Nemotron 3 Super).
    pub latent: Option<usize>,
}

/// What goes to experts.
pub struct Routed {
    /// What they read, `[tokens, hidden]`.
    pub x: Tensor,
    /// Where each token goes: a route for every expert.
    pub routes: Vec<Route>,
}

impl Experts {
    /// The plainest: a softmax over all, those that are used normed.
    pub const fn plain(count: usize, used: usize, width: usize) -> Experts {
        Experts {
            count,
            used,
            width,
            activation: Activation::Silu,
            layers: MlpLayers::Gated,
            scoring: Scoring::Softmax,
            normed: true,
            scale: 1.0,
            weigh_inputs: false,
            selection_bias: false,
            groups: None,
            bias: false,
            shared: None,
            shared_gate: false,
            beside: None,
            latent: None,
        }
    }

    /// The stacks of the experts' first layers.
    pub fn firsts(&self) -> &'static [Part] {
        match self.layers {
            MlpLayers::Gated => &[Part::EXPERT_GATES, Part::EXPERT_UPS],
            MlpLayers::Fused => &[Part::EXPERT_GATE_UPS],
            MlpLayers::Plain => &[Part::EXPERT_UPS],
        }
    }

    /// What they read, and which tokens go to which of them: the ones that the router gives the most weight (Shazeer et al. 2017,
    /// section 2.1, without noise, the softmax before the choice; DeepSeek-AI 2024, section 2.1.2, for sigmoids, groups and biases).
    /// `x`: the half's input, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a router whose scores are no numbers.
    pub fn routed(&self, layers: &Layers, x: &Tensor, at: &At) -> Result<Routed> {
        let (own, read) = match self.beside {
            None if self.latent.is_some() => (layers.linear(Part::LATENT_DOWN, x)?, x.clone()),
            None => (x.clone(), x.clone()),
            Some(eps) => {
                let h = &at.states.h;
                let scale = layers.weight(Part::ROUTER_SCALE);
                let scale = (scale * (1.0 / (scale.elem_count() as f64).sqrt()))?;
                let own = ops::norm(Norm::Rms, h, layers.weight(Part::EXPERT_NORM), None, eps)?;
                (own, ops::norm(Norm::Rms, h, &scale, None, eps)?)
            }
        };
        let scores = layers.linear(Part::ROUTER, &read)?.to_vec2::<f32>()?;
        let vector = |part: Part, other: f32| -> Result<Vec<f32>> {
            Ok(layers.maybe(part).map_or_else(|| Ok(vec![other; self.count]), Tensor::to_vec1)?)
        };
        let (biases, scales) = (vector(Part::SELECTION_BIAS, 0.0)?, vector(Part::EXPERT_SCALES, 1.0)?);
        let mut routes = vec![Route { of_inputs: self.weigh_inputs, ..Route::default() }; self.count];
        for (token, scores) in scores.iter().enumerate() {
            let weights = weights(self.scoring, scores);
            if weights.iter().any(|weight| !weight.is_finite()) {
                return Err(Error::new(format!("the router's scores of token {token} are no numbers")));
            }
            let merits: Vec<f32> = weights.iter().zip(&biases).map(|(weight, bias)| weight + bias).collect();
            let chosen = choose(self, &merits);
            let total: f32 = if self.normed { chosen.iter().map(|&e| weights[e]).sum() } else { 1.0 };
            for &e in &chosen {
                routes[e].tokens.push(token as u32);
                routes[e].weights.push(weights[e] / total * self.scale * scales[e]);
            }
        }
        Ok(Routed { x: own, routes })
    }

    /// What an expert's last layer reads. `x`: the rows of [`Routed::x`] that go to it, `[tokens, hidden]`; `weight`: the
    /// expert's own matrices.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn expert_inner<'a>(
        &self,
        layers: &Layers,
        expert: usize,
        x: &Tensor,
        weight: &dyn Fn(Part) -> Result<Matrix<'a>>,
    ) -> Result<Tensor> {
        let firsts = self.firsts().iter().map(|&part| layers.expert_linear(part, expert, x, &weight(part)?));
        let firsts = firsts.collect::<Result<Vec<_>>>()?;
        let mlp = Mlp { activation: self.activation, layers: self.layers, ..Mlp::gated(self.width, self.activation) };
        match &firsts[..] {
            [gate, up] => mlp.between(Some(gate), up),
            [up] => mlp.between(None, up),
            _ => Err(Error::new("an expert has one or two first layers")),
        }
    }

    /// What all experts make of their input together, `[tokens, hidden]`.
    fn mixture(&self, layers: &Layers, x: &Tensor, at: &At) -> Result<Tensor> {
        let Routed { x, routes } = self.routed(layers, x, at)?;
        let mut y = x.zeros_like()?;
        for (expert, route) in routes.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
            let inner = self.expert_inner(layers, expert, &route.select(&x)?, &|part| layers.expert(part, expert))?;
            let weight = layers.expert(Part::EXPERT_DOWNS, expert)?;
            let own = layers.expert_linear(Part::EXPERT_DOWNS, expert, &inner, &weight)?;
            let tokens = Tensor::from_slice(&route.tokens, route.tokens.len(), x.device())?;
            y = y.index_add(&tokens, &route.weigh(&own)?, 0)?;
        }
        match self.beside {
            Some(eps) => Ok(ops::norm(Norm::Rms, &y, layers.weight(Part::EXPERT_POST_NORM), None, eps)?),
            None if self.latent.is_some() => layers.linear(Part::LATENT_UP, &y),
            None => Ok(y),
        }
    }
}

impl Mix for Experts {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (n, f, input) = (self.count, self.width, Reads::Site(Place::Input));
        // What goes through a norm of its own is not what the half's other layers read.
        let of_router = if self.beside.is_some() { Reads::Between } else { input };
        let mut tensors = Vec::new();
        let stack =
            |part, source, shape: [usize; 3], reads| BlockTensor::linear(part, source, &shape, reads).bias(self.bias);
        if self.beside.is_some() {
            tensors.extend(self.shared.iter().flat_map(|mlp| mlp.tensors(hidden)));
            tensors.push(BlockTensor::new(Part::BESIDE_NORM, "post_feedforward_layernorm_1", &[hidden]));
            tensors.push(BlockTensor::new(Part::EXPERT_NORM, "pre_feedforward_layernorm_2", &[hidden]));
            tensors.push(BlockTensor::new(Part::ROUTER_SCALE, "router.scale", &[hidden]).bare(""));
        }
        tensors.push(BlockTensor::linear(Part::ROUTER, "mlp.gate", &[n, hidden], of_router).bias(self.bias));
        if self.selection_bias {
            tensors.push(BlockTensor::new(Part::SELECTION_BIAS, "mlp.gate.e_score_correction_bias", &[n]).bare("bias"));
        }
        let layer = |part, source, shape: [usize; 2], reads| BlockTensor::linear(part, source, &shape, reads);
        let read = match self.latent {
            Some(width) => {
                tensors.push(layer(Part::LATENT_DOWN, "mlp.fc1_latent_proj", [width, hidden], input));
                tensors.push(layer(Part::LATENT_UP, "mlp.fc2_latent_proj", [hidden, width], Reads::Between));
                width
            }
            None => hidden,
        };
        match self.layers {
            MlpLayers::Gated => {
                tensors.push(stack(Part::EXPERT_GATES, "mlp.experts.{}.gate_proj", [n, f, read], Reads::Routed));
                tensors.push(stack(Part::EXPERT_UPS, "mlp.experts.{}.up_proj", [n, f, read], Reads::Routed));
            }
            MlpLayers::Fused => {
                let shape = [n, 2 * f, read];
                tensors.push(stack(Part::EXPERT_GATE_UPS, "mlp.experts.gate_up_proj", shape, Reads::Routed));
            }
            MlpLayers::Plain => {
                tensors.push(stack(Part::EXPERT_UPS, "mlp.experts.{}.up_proj", [n, f, read], Reads::Routed));
            }
        }
        tensors.push(stack(Part::EXPERT_DOWNS, "mlp.experts.{}.down_proj", [n, read, f], Reads::RoutedInner));
        if self.beside.is_some() {
            tensors.push(BlockTensor::new(Part::EXPERT_SCALES, "router.per_expert_scale", &[n]).bare(""));
            tensors.push(BlockTensor::new(Part::EXPERT_POST_NORM, "post_feedforward_layernorm_2", &[hidden]));
            return tensors;
        }
        if self.shared_gate {
            tensors.push(BlockTensor::linear(Part::SHARED_ROUTER, "mlp.shared_expert_gate", &[1, hidden], input));
        }
        tensors.extend(self.shared.iter().flat_map(|mlp| mlp.tensors(hidden)));
        tensors
    }

    fn last(&self) -> Option<Part> {
        self.shared.and_then(|mlp| mlp.last())
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        match &self.shared {
            Some(mlp) => mlp.inner(layers, x, at),
            None => Err(layers.missing("an MLP that every token goes through")),
        }
    }

    fn output(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let y = self.mixture(layers, x, at)?;
        let Some(mlp) = &self.shared else { return Ok(y) };
        let mut shared = mlp.output(layers, x, at)?;
        if let Some(eps) = self.beside {
            shared = ops::norm(Norm::Rms, &shared, layers.weight(Part::BESIDE_NORM), None, eps)?;
        }
        if self.shared_gate {
            shared = shared.broadcast_mul(&ops::sigmoid(&layers.linear(Part::SHARED_ROUTER, x)?)?)?;
        }
        Ok((y + shared)?)
    }

    fn absorber(&self) -> Option<Absorber> {
        self.shared.and_then(|mlp| mlp.absorber())
    }

    fn may_scale_input(&self) -> bool {
        // What goes to experts is not rounded together with what else reads the norm.
        self.beside.is_some()
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some("it has experts")
    }

    fn experts(&self) -> Option<&Experts> {
        Some(self)
    }

    fn cost(&self) -> Cost {
        self.shared.map_or(Cost::default(), |mlp| mlp.cost())
    }
}
