//! One decoder block, described by data.
//!
//! An [`Architecture`] turns a checkpoint's `config.json` into a [`Model`]: sizes, the variations of the one decoder
//! block, and a list of tensors with their names in the checkpoint and in GGUF. There is one forward pass
//! ([`block::Block`]) for all of them. To add an architecture, write one file and add it to [`ARCHITECTURES`].

pub mod block;
pub mod gguf_keys;
mod llama;
pub mod ops;
pub mod orthogonal;
pub mod rope;
pub mod rotation;

use crate::error::{Error, Result};
use crate::source::config::Config;
use rope::Rope;

/// Every architecture.
pub static ARCHITECTURES: &[&dyn Architecture] = &[&llama::Llama];

/// A family of checkpoints.
pub trait Architecture: Sync {
    /// `general.architecture` in GGUF.
    fn gguf(&self) -> &'static str;

    /// The values of `model_type` in `config.json` that it covers.
    fn model_types(&self) -> &'static [&'static str];

    /// The order in which GGUF stores the rows of queries and keys.
    fn query_rows(&self) -> QueryRows;

    /// Why a rotation of the residual stream and of the values ([`rotation`]) would change what a model computes, if it would:
    /// norms that subtract the mean, or any step but RMS norms and linear layers between the stream and a block's inside.
    fn obstacle_to_rotation(&self, model: &Model) -> Option<&'static str>;

    /// Reads the configuration.
    ///
    /// # Errors
    /// A key that is missing, of the wrong kind, or asks for something unsupported.
    fn read(&'static self, config: &Config) -> Result<Model>;
}

/// The order of query and key rows in GGUF; llama.cpp picks the pairing of rotary embedding by architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryRows {
    /// Hugging Face's, unchanged.
    Halves,
    /// The two halves of a head interleaved, as Meta's own checkpoints have them.
    Interleaved,
}

/// A model: everything that the forward pass and the writer need to know, without its weights.
#[derive(Clone)]
pub struct Model {
    /// Which family it belongs to.
    pub architecture: &'static dyn Architecture,
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
    /// Whether the configuration names [`Model::head_dim`]; GGUF then stores it.
    pub explicit_head_dim: bool,
    /// Width inside the MLP.
    pub ffn: usize,
    /// The ε of the norms.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Biases on q, k, v and the attention's output.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// The embedding is the output matrix, too.
    pub tied: bool,
}

/// What activations a linear layer reads. Layers that share a site share a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The normed residual stream before attention: q, k, v.
    AttnIn,
    /// The heads' results: the attention's output layer.
    AttnOut,
    /// The normed residual stream before the MLP: gate, up.
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

    /// The part that makes the activations, each channel by itself, so that it can absorb a factor for each: a norm's gain, or
    /// the rows of a linear layer whose output only gets mixed or multiplied on its way.
    pub fn absorber(self) -> Part {
        match self {
            Site::AttnIn => Part::AttnNorm,
            Site::AttnOut => Part::V,
            Site::FfnIn => Part::FfnNorm,
            Site::FfnMid => Part::Up,
        }
    }
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Output matrix, `[vocab, hidden]`.
    Output,
    /// The gain of a norm that is not part of a block.
    Norm,
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
    O,
    FfnNorm,
    Gate,
    Up,
    Down,
}

impl Part {
    /// Whether it belongs to the attention; otherwise it does to the MLP.
    pub fn is_of_attention(self) -> bool {
        matches!(self, Part::AttnNorm | Part::Q | Part::K | Part::V | Part::O)
    }
}

/// Weight or bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Weight,
    Bias,
}

impl Part {
    /// Which activations a linear layer reads; none for norms.
    pub fn site(self) -> Option<Site> {
        match self {
            Part::AttnNorm | Part::FfnNorm => None,
            Part::Q | Part::K | Part::V => Some(Site::AttnIn),
            Part::O => Some(Site::AttnOut),
            Part::Gate | Part::Up => Some(Site::FfnIn),
            Part::Down => Some(Site::FfnMid),
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

/// One tensor: where it comes from, where it goes, what it is for.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub source: String,
    /// Its name in GGUF.
    pub gguf: String,
    /// `[rows, columns]` of a matrix, `[n]` of a vector.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// The block that it belongs to.
    pub block: Option<usize>,
    /// The order of its rows in the file.
    pub order: RowOrder,
}

impl TensorSpec {
    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many rows it has: steps along all dimensions but the last. A vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Which activations it reads, for a linear layer's weight.
    pub fn site(&self) -> Option<Site> {
        match self.role {
            Role::Block(part, Kind::Weight) => part.site(),
            _ => None,
        }
    }
}

impl Model {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// An unsupported `model_type` (the message lists the supported ones), or what the architecture refuses.
    pub fn read(config: &Config) -> Result<Model> {
        let found = config.string("model_type")?;
        match ARCHITECTURES.iter().find(|a| a.model_types().contains(&found.as_str())) {
            Some(architecture) => architecture.read(config),
            None => {
                let known: Vec<_> = ARCHITECTURES.iter().flat_map(|a| a.model_types()).copied().collect();
                Err(Error::new(format!("{}: model_type '{found}' is not supported", config.path().display()))
                    .hint(format!("the supported ones are: {}", known.join(", "))))
            }
        }
    }

    /// Which channel of its [`Site::absorber`] makes each column of a site: query heads share those of their value head.
    pub fn channels(&self, site: Site) -> Vec<usize> {
        match site {
            Site::AttnIn | Site::FfnIn => (0..self.hidden).collect(),
            Site::FfnMid => (0..self.ffn).collect(),
            Site::AttnOut => {
                let (d, shared) = (self.head_dim, self.heads / self.kv_heads);
                (0..self.heads * d).map(|j| j / d / shared * d + j % d).collect()
            }
        }
    }

    /// The tensors that come before the blocks.
    pub fn head(&self) -> Vec<TensorSpec> {
        vec![self.embedding()]
    }

    /// The token embedding.
    pub fn embedding(&self) -> TensorSpec {
        let shape = vec![self.vocab, self.hidden];
        spec("model.embed_tokens.weight", "token_embd.weight", shape, Role::Embedding, RowOrder::AsIs)
    }

    /// The gain of the last norm.
    pub fn output_norm(&self) -> TensorSpec {
        spec("model.norm.weight", "output_norm.weight", vec![self.hidden], Role::Norm, RowOrder::AsIs)
    }

    /// The output matrix; for tied models, the embedding.
    pub fn output(&self) -> TensorSpec {
        let shape = vec![self.vocab, self.hidden];
        if self.tied {
            self.embedding()
        } else {
            spec("lm_head.weight", "output.weight", shape, Role::Output, RowOrder::AsIs)
        }
    }

    /// The tensors that come after the blocks.
    pub fn tail(&self) -> Vec<TensorSpec> {
        let mut tail = vec![self.output_norm()];
        if !self.tied {
            tail.push(self.output());
        }
        tail
    }

    /// The tensors of block `i`, in file order.
    pub fn block(&self, i: usize) -> Vec<TensorSpec> {
        let (h, f, d) = (self.hidden, self.ffn, self.head_dim);
        let (q, kv) = (self.heads * d, self.kv_heads * d);
        let turned = match self.architecture.query_rows() {
            QueryRows::Halves => RowOrder::AsIs,
            QueryRows::Interleaved => RowOrder::Interleaved { head_dim: d },
        };
        let (attn, mlp) = (self.attention_bias, self.mlp_bias);
        let parts = [
            (Part::AttnNorm, "input_layernorm", "attn_norm", vec![h], false, RowOrder::AsIs),
            (Part::Q, "self_attn.q_proj", "attn_q", vec![q, h], attn, turned),
            (Part::K, "self_attn.k_proj", "attn_k", vec![kv, h], attn, turned),
            (Part::V, "self_attn.v_proj", "attn_v", vec![kv, h], attn, RowOrder::AsIs),
            (Part::O, "self_attn.o_proj", "attn_output", vec![h, q], attn, RowOrder::AsIs),
            (Part::FfnNorm, "post_attention_layernorm", "ffn_norm", vec![h], false, RowOrder::AsIs),
            (Part::Gate, "mlp.gate_proj", "ffn_gate", vec![f, h], mlp, RowOrder::AsIs),
            (Part::Up, "mlp.up_proj", "ffn_up", vec![f, h], mlp, RowOrder::AsIs),
            (Part::Down, "mlp.down_proj", "ffn_down", vec![h, f], mlp, RowOrder::AsIs),
        ];
        let mut tensors = Vec::new();
        for (part, source, gguf, shape, bias, order) in parts {
            let tensor = |kind: Kind, suffix: &str, shape: Vec<usize>| TensorSpec {
                source: format!("model.layers.{i}.{source}.{suffix}"),
                gguf: format!("blk.{i}.{gguf}.{suffix}"),
                shape,
                role: Role::Block(part, kind),
                block: Some(i),
                order,
            };
            let rows = shape[0];
            tensors.push(tensor(Kind::Weight, "weight", shape));
            if bias {
                tensors.push(tensor(Kind::Bias, "bias", vec![rows]));
            }
        }
        tensors
    }

    /// Every tensor, in file order; one by one, because a damaged file may claim any number of blocks.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let blocks = (0..self.blocks).flat_map(|i| self.block(i));
        self.head().into_iter().chain(blocks).chain(self.tail())
    }
}

fn spec(source: &str, gguf: &str, shape: Vec<usize>, role: Role, order: RowOrder) -> TensorSpec {
    TensorSpec { source: source.into(), gguf: gguf.into(), shape, role, block: None, order }
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
