//! Models whose blocks are all of one kind, attention and MLP, before they are listed: most families begin with this.

use super::gguf_keys;
use super::half::{BlockConfig, HalfConfig, Norm, NormConfig};
use super::mapping::ExpertLayout;
use super::mixer::attention::{Attention, Gate, HeadNorms, KeysValues};
use super::mixer::experts::Experts;
use super::mixer::latent_attention::LatentAttention;
use super::mixer::mlp::{Mlp, MlpLayers};
use super::part::{Part, RowOrder};
use super::rope::{Rope, Scaling};
use super::{Architecture, Model, QueryRows};
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Sizes and variations of a model whose blocks are alike, but for what is said here.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Decoder blocks.
    pub blocks: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context that it was made for, in tokens.
    pub context: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Whether the configuration names [`Decoder::head_dim`]; GGUF then stores it.
    pub explicit_head_dim: bool,
    /// Width inside the MLP.
    pub ffn: usize,
    /// The ε of the norms.
    pub norm_eps: f32,
    /// Rotary embedding; none if there is none.
    pub rope: Option<Rope>,
    /// That of blocks with a window, where it is another one.
    pub local_rope: Option<Rope>,
    /// Every so many-th block turns nothing.
    pub rope_skip: Option<usize>,
    /// The embedding is the output matrix, too.
    pub tied: bool,
    /// What kind of norms they are.
    pub norm: Norm,
    /// Norms that subtract the mean have no bias.
    pub norms_without_bias: bool,
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
    /// The function inside the MLP.
    pub activation: Activation,
    /// How the layers of the MLP are arranged.
    pub mlp: MlpLayers,
    /// Biases on the layers of the MLP.
    pub mlp_bias: bool,
    /// The MLP is a mixture of experts.
    pub experts: Option<Experts>,
    /// So many blocks, the first ones, have an MLP nevertheless.
    pub dense: usize,
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
    /// Keys that are special to the family, behind the name of the architecture; they replace usual ones of the same name.
    pub keys: Vec<(&'static str, Value)>,
}

/// Attention that does not see everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// A position sees itself and so many less one before it.
    pub tokens: usize,
    /// Which blocks see no further.
    pub blocks: WindowBlocks,
}

/// Which blocks see no further than a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowBlocks {
    /// All.
    All,
    /// All but every so many-th.
    ButEvery(usize),
    /// Those that are marked.
    Marked(Vec<bool>),
}

impl Window {
    /// In every block.
    pub fn everywhere(tokens: usize) -> Window {
        Window { tokens, blocks: WindowBlocks::All }
    }

    /// In all blocks but every `period`-th.
    pub fn but_every(tokens: usize, period: usize) -> Window {
        Window { tokens, blocks: WindowBlocks::ButEvery(period) }
    }

    /// Whether a block is one of those that do not see everything.
    pub fn holds(&self, block: usize) -> bool {
        match &self.blocks {
            WindowBlocks::All => true,
            WindowBlocks::ButEvery(period) => !(block + 1).is_multiple_of(*period),
            WindowBlocks::Marked(marked) => marked.get(block).copied().unwrap_or(false),
        }
    }
}

/// The sizes of attention through narrow vectors.
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

impl Decoder {
    /// Llama's, without sizes.
    pub const PLAIN: Decoder = Decoder {
        blocks: 0,
        hidden: 0,
        vocab: 0,
        context: 0,
        heads: 1,
        kv_heads: 1,
        head_dim: 0,
        explicit_head_dim: false,
        ffn: 0,
        norm_eps: 1e-5,
        rope: None,
        local_rope: None,
        rope_skip: None,
        tied: false,
        norm: Norm::Rms,
        norms_without_bias: false,
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
        activation: Activation::Silu,
        mlp: MlpLayers::Gated,
        mlp_bias: false,
        experts: None,
        dense: 0,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
        positions: false,
        keys: Vec::new(),
    };

    /// The same with small sizes, for what depends on the family alone.
    #[must_use]
    pub fn sized(self) -> Decoder {
        let rope = Some(Rope::plain(1e4, 4));
        Decoder { blocks: 1, hidden: 8, vocab: 8, context: 8, heads: 2, kv_heads: 2, head_dim: 4, ffn: 8, rope, ..self }
    }

    /// Adds a key, or replaces it.
    pub fn key(&mut self, key: &'static str, value: Value) {
        self.keys.retain(|(other, _)| *other != key);
        self.keys.push((key, value));
    }

    /// The same for a whole number.
    pub fn size_key(&mut self, key: &'static str, n: usize) {
        self.key(key, Value::U32(n as u32));
    }

    /// A norm of this model.
    pub fn norm_of(&self, part: Part, source: &'static str) -> NormConfig {
        NormConfig {
            part,
            source,
            kind: self.norm,
            bias: self.norm == Norm::Layer && !self.norms_without_bias,
            eps: self.norm_eps,
        }
    }

    /// The attention of a block.
    pub fn attention(&self, block: usize, order: RowOrder) -> Attention {
        let window = self.window.as_ref().filter(|window| window.holds(block));
        let rope = match (&self.local_rope, window) {
            (Some(local), Some(_)) => Some(local),
            _ => self.rope.as_ref(),
        };
        let turns = self.rope_skip.is_none_or(|skip| !(block + 1).is_multiple_of(skip));
        Attention {
            fused_qkv: self.fused_qkv,
            qkv_bias: self.qkv_bias,
            o_bias: self.o_bias,
            head_norms: self.head_norms,
            eps: self.norm_eps,
            value_norm: false,
            gate: Gate::None,
            keys_values: KeysValues::Own,
            scale: self.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt()),
            cap: self.attention_cap,
            window: window.map(|window| window.tokens),
            sinks: self.sinks,
            order,
            ..Attention::plain(self.heads, self.kv_heads, self.head_dim, rope.filter(|_| turns).cloned())
        }
    }

    /// The MLP of a block without experts.
    pub fn mlp(&self) -> Mlp {
        Mlp { layers: self.mlp, bias: self.mlp_bias, ..Mlp::gated(self.ffn, self.activation) }
    }

    fn block(&self, block: usize, order: RowOrder) -> BlockConfig {
        let attn_norm = self.norm_of(Part::ATTN_NORM, "input_layernorm");
        let ffn_norm = self.norm_of(Part::FFN_NORM, "post_attention_layernorm");
        let post = |part, source| self.post_norms.then(|| self.norm_of(part, source));
        let first = HalfConfig::new(self.pre_norms.then_some(attn_norm), self.attention(block, order));
        let first = match self.latent {
            None => first,
            Some(Latent { query, latent, turned, value }) => HalfConfig::new(
                first.norm,
                LatentAttention {
                    heads: self.heads,
                    head_dim: self.head_dim,
                    query,
                    latent,
                    turned,
                    value,
                    joined: false,
                    gate: false,
                    scale: self.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt()),
                    temperature: None,
                    rope: self.rope.clone(),
                    indexer: None,
                    eps: self.norm_eps,
                },
            ),
        };
        let norm = self.pre_norms.then_some(if self.shared_norm { attn_norm } else { ffn_norm });
        let second = match self.experts.filter(|_| block >= self.dense) {
            None => HalfConfig::new(norm, self.mlp()),
            Some(experts) => HalfConfig::new(norm, Experts { activation: self.activation, ..experts }),
        };
        let halves = vec![
            HalfConfig {
                post_norm: post(Part::ATTN_POST_NORM, "post_attention_layernorm"),
                residual_scale: self.residual_scale,
                ..first
            },
            HalfConfig {
                parallel: self.parallel,
                post_norm: post(Part::FFN_POST_NORM, "post_feedforward_layernorm"),
                residual_scale: self.residual_scale,
                ..second
            },
        ];
        BlockConfig { halves }
    }

    /// The model with its blocks listed.
    pub fn build(self, architecture: &'static dyn Architecture) -> Model {
        let order = match architecture.query_rows() {
            QueryRows::Interleaved => RowOrder::Interleaved { head_dim: self.head_dim },
            QueryRows::Halves | QueryRows::Neighbours => RowOrder::AsIs,
        };
        let vectors = match self.rope.as_ref().map(|rope| &rope.scaling) {
            Some(Scaling::Factors(factors)) => vec![(gguf_keys::ROPE_FACTORS, factors.clone())],
            Some(Scaling::Long { short, long, .. }) => {
                vec![(gguf_keys::ROPE_LONG, long.clone()), (gguf_keys::ROPE_SHORT, short.clone())]
            }
            _ => Vec::new(),
        };
        Model {
            architecture,
            blocks: (0..self.blocks).map(|block| self.block(block, order)).collect(),
            keys: gguf_keys::metadata(&self, architecture),
            hidden: self.hidden,
            vocab: self.vocab,
            context: self.context,
            group: self.heads / self.kv_heads.max(1),
            norm: self.norm_of(Part("output_norm"), ""),
            embedding_scale: self.embedding_scale,
            embedding_norm: None,
            positions: self.positions,
            per_layer: None,
            streams: None,
            looped: None,
            logit_scale: self.logit_scale,
            logit_cap: self.logit_cap,
            tied: self.tied,
            vectors,
            tail: Vec::new(),
            renamed: ("", ""),
            embedding_source: None,
            output_source: None,
            joined: false,
            expert_layout: ExpertLayout::Usual,
            factors: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sixth_block_sees_everything() {
        let window = Window::but_every(4, 6);
        let wide: Vec<usize> = (0..13).filter(|&i| !window.holds(i)).collect();
        assert_eq!(wide, [5, 11]);
        assert!(Window::everywhere(4).holds(5));
        let marked = Window { tokens: 4, blocks: WindowBlocks::Marked(vec![true, false]) };
        assert_eq!([0, 1, 2].map(|i| marked.holds(i)), [true, false, false]);
    }

    #[test]
    fn blocks_with_a_window_have_a_base_of_their_own_and_some_turn_nothing() {
        let decoder = Decoder {
            rope: Some(Rope { scaling: Scaling::Linear(8.0), ..Rope::plain(10_000.0, 8) }),
            local_rope: Some(Rope::plain(100.0, 8)),
            window: Some(Window::but_every(4, 2)),
            rope_skip: Some(4),
            head_dim: 8,
            ..Decoder::PLAIN
        };
        let rope = |block| decoder.attention(block, RowOrder::AsIs).rope;
        assert_eq!(rope(0), decoder.local_rope);
        assert_eq!(rope(1), decoder.rope);
        assert_eq!((0..8).filter(|&block| rope(block).is_none()).collect::<Vec<_>>(), [3, 7]);
    }
}
