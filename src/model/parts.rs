//! The places in a decoder block, and which activations the layers there read.

use super::form::MlpLayers;
use super::{Model, TensorSpec};

/// What activations a linear layer reads. Layers that share a site share a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// What attention reads, usually the normed residual stream: q, k, v.
    AttnIn,
    /// The heads' results: the attention's output layer.
    AttnOut,
    /// What the MLP reads, usually the normed residual stream: gate, up.
    FfnIn,
    /// The gated activations: down.
    FfnMid,
}

impl Site {
    /// In the order in which a block reaches them.
    pub const ALL: [Site; 4] = [Site::AttnIn, Site::AttnOut, Site::FfnIn, Site::FfnMid];

    /// Whether one layer reads it, which writes to the residual stream.
    pub fn is_inner(self) -> bool {
        matches!(self, Site::AttnOut | Site::FfnMid)
    }
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Embedding of positions, `[context, hidden]`.
    Positions,
    /// Output matrix, `[vocab, hidden]`.
    Output,
    /// The norm behind the last block.
    Norm(Kind),
    /// A tensor of a block.
    Block(Part, Kind),
    /// Something that the forward pass does not use by itself.
    Other,
}

/// A place in the decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Part {
    AttnNorm,
    Q,
    K,
    V,
    /// q, k and v in one.
    Qkv,
    QNorm,
    KNorm,
    /// Into the vector that queries come from; its norm; out of it.
    QA,
    QANorm,
    QB,
    /// Into the vector that keys and values come from, and what is turned of a key; its norm; out of it.
    KvA,
    KvANorm,
    KB,
    VB,
    Sinks,
    O,
    AttnPostNorm,
    FfnNorm,
    Router,
    /// What is added to an expert's weight for the choice alone.
    Favours,
    Gate,
    Up,
    /// Gate and up in one.
    GateUp,
    Down,
    ExpertGates,
    ExpertUps,
    ExpertDowns,
    /// How much of the shared expert is added.
    SharedRouter,
    FfnPostNorm,
}

/// Weight or bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Weight,
    Bias,
}

impl Kind {
    /// What names end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Weight => "weight",
            Kind::Bias => "bias",
        }
    }
}

impl Part {
    /// Whether it belongs to the attention; otherwise it does to the MLP.
    pub fn is_of_attention(self) -> bool {
        self < Part::FfnNorm
    }

    /// Whether it holds a layer of every expert.
    pub fn is_of_experts(self) -> bool {
        matches!(self, Part::ExpertGates | Part::ExpertUps | Part::ExpertDowns)
    }

    /// Which activations a linear layer reads; none for norms, and for what reads only some of the tokens.
    pub fn site(self) -> Option<Site> {
        match self {
            Part::Q | Part::K | Part::V | Part::Qkv | Part::QA | Part::KvA => Some(Site::AttnIn),
            Part::O => Some(Site::AttnOut),
            Part::Gate | Part::Up | Part::GateUp | Part::Router | Part::SharedRouter => Some(Site::FfnIn),
            Part::Down => Some(Site::FfnMid),
            _ => None,
        }
    }

    /// What its tensors are called in GGUF, behind `blk.N.`.
    pub fn gguf(self) -> &'static str {
        match self {
            Part::AttnNorm => "attn_norm",
            Part::Q => "attn_q",
            Part::K => "attn_k",
            Part::V => "attn_v",
            Part::Qkv => "attn_qkv",
            Part::QNorm => "attn_q_norm",
            Part::KNorm => "attn_k_norm",
            Part::QA => "attn_q_a",
            Part::QANorm => "attn_q_a_norm",
            Part::QB => "attn_q_b",
            Part::KvA => "attn_kv_a_mqa",
            Part::KvANorm => "attn_kv_a_norm",
            Part::KB => "attn_k_b",
            Part::VB => "attn_v_b",
            Part::Sinks => "attn_sinks",
            Part::O => "attn_output",
            Part::AttnPostNorm => "post_attention_norm",
            Part::FfnNorm => "ffn_norm",
            Part::Router => "ffn_gate_inp",
            Part::Favours => "exp_probs_b",
            Part::Gate => "ffn_gate",
            Part::Up | Part::GateUp => "ffn_up",
            Part::Down => "ffn_down",
            Part::ExpertGates => "ffn_gate_exps",
            Part::ExpertUps => "ffn_up_exps",
            Part::ExpertDowns => "ffn_down_exps",
            Part::SharedRouter => "ffn_gate_inp_shexp",
            Part::FfnPostNorm => "post_ffw_norm",
        }
    }

    /// What its tensors are called in most checkpoints, behind `model.layers.N.`.
    pub fn usual_source(self) -> &'static str {
        match self {
            Part::AttnNorm => "input_layernorm",
            Part::Q => "self_attn.q_proj",
            Part::K => "self_attn.k_proj",
            Part::V => "self_attn.v_proj",
            Part::Qkv => "self_attn.qkv_proj",
            Part::QNorm => "self_attn.q_norm",
            Part::KNorm => "self_attn.k_norm",
            Part::QA => "self_attn.q_a_proj",
            Part::QANorm => "self_attn.q_a_layernorm",
            Part::QB => "self_attn.q_b_proj",
            Part::KvA => "self_attn.kv_a_proj_with_mqa",
            Part::KvANorm => "self_attn.kv_a_layernorm",
            Part::KB | Part::VB => "self_attn.kv_b_proj",
            Part::Sinks => "self_attn.sinks",
            Part::O => "self_attn.o_proj",
            Part::AttnPostNorm => "post_attention_layernorm",
            Part::FfnNorm => "post_attention_layernorm",
            Part::Router => "mlp.gate",
            Part::Favours => "mlp.gate.e_score_correction_bias",
            Part::Gate => "mlp.gate_proj",
            Part::Up => "mlp.up_proj",
            Part::GateUp => "mlp.gate_up_proj",
            Part::Down => "mlp.down_proj",
            Part::ExpertGates => "mlp.experts.{}.gate_proj",
            Part::ExpertUps => "mlp.experts.{}.up_proj",
            Part::ExpertDowns => "mlp.experts.{}.down_proj",
            Part::SharedRouter => "mlp.shared_expert_gate",
            Part::FfnPostNorm => "post_feedforward_layernorm",
        }
    }
}

/// How rows are ordered in the file, seen from the checkpoint's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Unchanged.
    AsIs,
    /// Within each head of `head_dim` rows, row `i` and row `i + head_dim/2` become neighbours.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// For each row of the file, the row of the checkpoint that it holds; `None` where nothing moves.
    pub fn sources(self, rows: usize) -> Option<Vec<usize>> {
        match self {
            RowOrder::AsIs => None,
            RowOrder::Interleaved { head_dim } => {
                let half = head_dim / 2;
                Some((0..rows).map(|r| r / head_dim * head_dim + r % head_dim / 2 + r % 2 * half).collect())
            }
        }
    }
}

impl TensorSpec {
    /// Which activations it reads, for a linear layer's weight.
    pub fn site(&self) -> Option<Site> {
        match self.role {
            Role::Block(part, Kind::Weight) => part.site(),
            _ => None,
        }
    }

    /// Whether it holds a layer of every expert.
    pub fn is_of_experts(&self) -> bool {
        matches!(self.role, Role::Block(part, Kind::Weight) if part.is_of_experts())
    }
}

impl Model {
    /// What can absorb factors of a site's channels in a block ([`super::Form::absorber`]).
    pub fn absorber(&self, site: Site, block: usize) -> Option<Part> {
        self.form.absorber(site, self.experts(block).is_some())
    }

    /// Which channel of its [`Model::absorber`] makes each column of a site: query heads share those of their value head.
    pub fn channels(&self, site: Site, block: usize) -> Vec<usize> {
        let ffn = self.mlp_width(block);
        match site {
            Site::AttnIn | Site::FfnIn => (0..self.hidden).collect(),
            Site::FfnMid => {
                let first = if self.form.mlp.layers == MlpLayers::Fused { ffn } else { 0 };
                (first..first + ffn).collect()
            }
            Site::AttnOut => {
                let (d, shared) = (self.head_dim, self.heads / self.kv_heads);
                let first = if self.form.fused_qkv { (self.heads + self.kv_heads) * d } else { 0 };
                (0..self.heads * d).map(|j| first + j / d / shared * d + j % d).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_makes_the_halves_of_a_head_neighbours() {
        let order = RowOrder::Interleaved { head_dim: 4 };
        assert_eq!(order.sources(8).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(RowOrder::AsIs.sources(8), None);
    }
}
