//! The variations of the decoder block: what one architecture does and another does not.

use super::parts::{Part, Site};
use llmq_kernels::elementwise::Activation;

/// How a model's blocks differ from the plainest one, which is Llama's. Everything here is data; [`super::block`] acts on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// What kind of norms they are.
    pub norm: Norm,
    /// A norm in front of attention and of the MLP.
    pub pre_norms: bool,
    /// A norm behind each, before it is added to the residual stream.
    pub post_norms: bool,
    /// Attention and MLP both read the stream in front of the block.
    pub parallel: bool,
    /// They read it through the same norm.
    pub shared_norm: bool,
    /// q, k and v are one layer.
    pub fused_qkv: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on the attention's output.
    pub o_bias: bool,
    /// Norms of queries and keys.
    pub head_norms: HeadNorms,
    /// By what scores are multiplied, if not by `1/√head_dim`.
    pub attention_scale: Option<f32>,
    /// By what YaRN's growth of scores was multiplied before it went into their scale.
    pub yarn_growth: Option<f32>,
    /// Scores stay below this.
    pub attention_cap: Option<f32>,
    /// Which blocks see how far.
    pub window: Option<Window>,
    /// Each head has a score of nothing.
    pub sinks: bool,
    /// Keys and values come from a narrow vector.
    pub latent: Option<Latent>,
    /// What is in the MLP.
    pub mlp: Mlp,
    /// Biases on the layers of the MLP.
    pub mlp_bias: bool,
    /// By what embedded tokens are multiplied.
    pub embedding_scale: f32,
    /// By what attention and MLP are multiplied before they are added to the stream.
    pub residual_scale: f32,
    /// By what logits are multiplied.
    pub logit_scale: f32,
    /// Logits stay below this.
    pub logit_cap: Option<f32>,
    /// Positions have embeddings of their own, which are learned.
    pub positions: bool,
    /// The MLP is a mixture of experts.
    pub experts: Option<Experts>,
}

/// A kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) · gain`.
    Rms,
    /// `(x − mean(x)) / deviation(x) · gain + bias`.
    Layer,
}

/// Norms of queries and keys, before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// There are none.
    None,
    /// Each head by itself, all with the same gain of `head_dim` numbers.
    PerHead,
    /// Each head by itself, with a gain of its own, after its mean was subtracted.
    Centred,
    /// All heads as one vector.
    Whole,
}

/// Attention that does not see everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// A position sees itself and so many less one before it.
    pub tokens: usize,
    /// Every so many-th block sees everything; none does if there is no such number.
    pub period: Option<usize>,
}

impl Window {
    /// Whether a block is one of those that do not see everything.
    pub fn holds(&self, block: usize) -> bool {
        self.period.is_none_or(|period| !(block + 1).is_multiple_of(period))
    }
}

/// The layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// The function between them.
    pub activation: Activation,
    /// How they are arranged.
    pub layers: MlpLayers,
}

/// How the layers of an MLP are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpLayers {
    /// `down(f(gate(x)) · up(x))`.
    Gated,
    /// The same, gate and up being one layer, gate first.
    Fused,
    /// `down(f(up(x)))`.
    Plain,
}

/// A mixture of experts in the place of an MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// So many blocks, the first ones, have an MLP nevertheless.
    pub dense: usize,
    /// How many there are.
    pub count: usize,
    /// How many each token goes to.
    pub used: usize,
    /// Width inside an expert.
    pub ffn: usize,
    /// How scores become weights.
    pub scoring: Scoring,
    /// The weights of those that are used are made to add up to one.
    pub normed: bool,
    /// By what their weights are multiplied at the end.
    pub scale: f32,
    /// Something is added to each expert's weight for the choice alone.
    pub favours: bool,
    /// In how many groups they are, and how many of these each token may use.
    pub groups: Option<(usize, usize)>,
    /// The router and the experts have biases.
    pub bias: bool,
    /// Width inside the expert that every token goes to; 0 if there is none.
    pub shared: usize,
    /// How much of the shared expert is added depends on the token.
    pub shared_gate: bool,
}

/// How a router's scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// All together, `exp(s) / Σ exp(s)`.
    Softmax,
    /// Each by itself, `1 / (1 + exp(−s))`.
    Sigmoid,
}

impl Experts {
    /// Those of a family whose models have different ones.
    pub const UNREAD: Experts = Experts::plain(0, 0, 0);

    /// The plainest: a softmax over all, those that are used normed.
    pub const fn plain(count: usize, used: usize, ffn: usize) -> Experts {
        Experts {
            dense: 0,
            count,
            used,
            ffn,
            scoring: Scoring::Softmax,
            normed: true,
            scale: 1.0,
            favours: false,
            groups: None,
            bias: false,
            shared: 0,
            shared_gate: false,
        }
    }
}

/// Attention whose keys and values come from one narrow vector per token (DeepSeek-AI 2024, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Width of the vector that queries come from; none if they come from the stream itself.
    pub query: Option<usize>,
    /// Width of the vector that keys and values come from.
    pub latent: usize,
    /// Numbers of each key that are turned, the same for all heads; they come last.
    pub turned: usize,
    /// Numbers of each value.
    pub value: usize,
}

impl Latent {
    /// That of a family whose models have different ones.
    pub const UNREAD: Latent = Latent { query: None, latent: 0, turned: 0, value: 0 };
}

impl Form {
    /// Llama's.
    pub const PLAIN: Form = Form {
        norm: Norm::Rms,
        pre_norms: true,
        post_norms: false,
        parallel: false,
        shared_norm: false,
        fused_qkv: false,
        qkv_bias: false,
        o_bias: false,
        head_norms: HeadNorms::None,
        attention_scale: None,
        yarn_growth: None,
        attention_cap: None,
        window: None,
        sinks: false,
        latent: None,
        mlp: Mlp { activation: Activation::Silu, layers: MlpLayers::Gated },
        mlp_bias: false,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
        positions: false,
        experts: None,
    };

    /// The part that makes a site's activations, each channel by itself, so that it can absorb a factor for each: a norm's gain, or
    /// the rows of a linear layer whose output only gets mixed or multiplied on its way. None where nothing can. `experts`: the
    /// block has some.
    pub fn absorber(&self, site: Site, experts: bool) -> Option<Part> {
        // The layers of two sites would have to agree on a norm's factors.
        let norms = self.pre_norms && !self.shared_norm;
        match site {
            Site::AttnIn => norms.then_some(Part::AttnNorm),
            Site::AttnOut if self.latent.is_some() => None,
            Site::AttnOut => Some(if self.fused_qkv { Part::Qkv } else { Part::V }),
            // What goes to experts is not rounded together with what else reads the norm.
            Site::FfnIn => (norms && !experts).then_some(Part::FfnNorm),
            Site::FfnMid => match self.mlp.layers {
                MlpLayers::Gated => Some(Part::Up),
                MlpLayers::Fused => Some(Part::GateUp),
                // An activation stands between.
                MlpLayers::Plain => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sixth_block_sees_everything() {
        let window = Window { tokens: 4, period: Some(6) };
        let wide: Vec<usize> = (0..13).filter(|&i| !window.holds(i)).collect();
        assert_eq!(wide, [5, 11]);
        assert!(Window { tokens: 4, period: None }.holds(5));
    }
}
