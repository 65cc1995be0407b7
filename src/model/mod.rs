//! What a model is: a list of blocks, each a list of halves, each with a mixer.
//!
//! An [`Architecture`] turns a checkpoint's `config.json` into a [`Model`]: what each block is ([`half`]), and a list of tensors with
//! their names in the checkpoint and in GGUF. There is one forward pass for each [`mixer`], not one for each family. To add an
//! architecture, write one file in [`family`] and add it to the list there; to add a mixer, the same in [`mixer`].

pub mod backward;
pub mod block;
pub mod checkpoint;
mod config;
pub mod config_keys;
pub mod decoder;
pub mod embedding;
pub mod family;
pub mod frame;
pub mod gguf_keys;
pub mod half;
pub mod layers;
pub mod limits;
pub mod lm_head;
pub mod looped;
pub mod mapping;
pub mod matrix;
pub mod mixer;
mod mixture;
pub mod nextn;
pub mod ops;
pub mod orthogonal;
pub mod part;
pub mod per_layer;
pub mod pooling;
pub mod rope;
pub mod rotation;
pub mod sampled_loss;
mod sharing;
pub mod states;
pub mod streams;
mod tensors;

use crate::error::Result;
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::value::Value;
pub use decoder::Decoder;
pub use family::ARCHITECTURES;
use gguf_keys::Keys;
pub use half::{BlockConfig, HalfConfig, Norm, NormConfig};
use limits::Limits;
use looped::Looped;
pub use mapping::TensorMapping;
use mixer::{Attention, Mixer};
pub use part::{BlockTensor, Kind, Part, Reads, RowOrder, Site, TensorRole};
use per_layer::PerLayer;
use streams::Streams;
pub use tensors::TensorSpec;

/// A family of checkpoints.
pub trait Architecture: Sync {
    /// `general.architecture` in GGUF.
    fn gguf(&self) -> &'static str;

    /// The values of `model_type` in `config.json` that it covers.
    fn model_types(&self) -> &'static [&'static str];

    /// Published models that it covers.
    fn examples(&self) -> &'static str;

    /// The order of the rows of queries and keys, in the checkpoint and in GGUF.
    fn query_rows(&self) -> QueryRows {
        QueryRows::Halves
    }

    /// The variations that all of the family share; [`Architecture::read`] and [`Architecture::read_gguf`] fill in the others, and
    /// the sizes.
    fn decoder(&self) -> Decoder {
        Decoder::PLAIN
    }

    /// What llama.cpp's loader has a place for.
    fn limits(&self) -> Limits {
        Limits::of(&self.decoder())
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// A key that is missing, of the wrong kind, or asks for something unsupported.
    fn read(&'static self, config: &Config) -> Result<Model>;

    /// Makes the model of a GGUF. `decoder`: what usual keys say.
    ///
    /// # Errors
    /// A key that is missing or makes no sense.
    fn read_gguf(&'static self, _keys: &Keys, decoder: Decoder) -> Result<Model>;

    /// A small model that shows what applies to the family.
    fn sample(&'static self) -> Model;

    /// Whether GGUF has the key `rope.freq_base`; llama.cpp takes 10000 without it.
    fn writes_rope_base(&self) -> bool {
        true
    }

    /// What a tensor is called in the checkpoint, behind the block's prefix.
    fn source(&self, tensor: &BlockTensor) -> &'static str {
        tensor.source
    }

    /// What the checkpoint's name of a tensor ends with.
    fn suffix(&self, tensor: &BlockTensor, kind: Kind) -> String {
        if tensor.bare { String::new() } else { format!(".{}", kind.suffix()) }
    }

    /// What a tensor is called in GGUF, behind `blk.N.`.
    fn gguf_name(&self, part: Part) -> &'static str {
        part.0
    }

    /// What that name ends with; nothing at all where it is empty.
    fn ending(&self, tensor: &BlockTensor) -> &'static str {
        tensor.ending
    }

    /// Names of the checkpoint's tensors outside the blocks, and the prefix of those inside.
    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "model.embed_tokens",
            positions: "",
            blocks: "model.layers",
            norm: "model.norm",
            output: "lm_head",
        }
    }

    /// How a tensor of a block is made from the checkpoint's.
    fn mapping(&self, _block: &BlockConfig, tensor: &BlockTensor, _kind: Kind) -> TensorMapping {
        if self.source(tensor).contains("{}") { TensorMapping::STACKED } else { TensorMapping::AS_IS }
    }

    /// Where a layer is in checkpoints that have several in one tensor: what that is called behind the block's prefix, and how the layer
    /// is made from it.
    fn joined(&self, _tensor: &BlockTensor) -> Option<(&'static str, TensorMapping)> {
        None
    }

    /// How the last norm is made.
    fn norm_mapping(&self) -> TensorMapping {
        TensorMapping::AS_IS
    }

    /// Takes numbers of the model that are tensors of a checkpoint, and keys in GGUF. Returns the names of those tensors.
    ///
    /// # Errors
    /// A tensor is missing, or makes no sense.
    fn settle(&self, _model: &mut Model, _checkpoint: &Checkpoint) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What a checkpoint has behind the blocks, and llama.cpp keeps, though the forward pass does not use it: layers that predict
    /// several tokens. `has`: whether the checkpoint has a tensor. They come with keys of the file.
    fn extra_blocks(&self, _model: &Model, _has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        None
    }

    /// Why a rotation of the residual stream and of the values ([`rotation`]) cannot be stored, if it cannot.
    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        None
    }
}

/// Blocks that a file keeps, and that the forward pass does not use.
pub struct ExtraBlocks {
    /// How many.
    pub count: usize,
    /// Their tensors.
    pub tensors: Vec<TensorSpec>,
    /// Keys of the file, behind the name of the architecture.
    pub keys: Vec<(&'static str, Value)>,
}

/// Names of a checkpoint's tensors outside the blocks, without `.weight`, and the prefix of those inside.
#[derive(Debug, Clone, Copy)]
pub struct OutsideNames {
    /// The token embedding.
    pub embedding: &'static str,
    /// The embedding of positions.
    pub positions: &'static str,
    /// What comes before `.N.` of a block.
    pub blocks: &'static str,
    /// The last norm.
    pub norm: &'static str,
    /// The output matrix.
    pub output: &'static str,
}

/// The order of query and key rows; llama.cpp picks the pairing of rotary embedding by architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryRows {
    /// Halves of a head are turned together, in the checkpoint and in GGUF.
    Halves,
    /// Halves in the checkpoint; in GGUF they are interleaved, as Meta's own checkpoints have them.
    Interleaved,
    /// Neighbours are turned together, in the checkpoint and in GGUF.
    Neighbours,
}

/// A model: everything that the forward pass and the writer need to know, without its weights.
#[derive(Clone)]
pub struct Model {
    /// Which family it belongs to.
    pub architecture: &'static dyn Architecture,
    /// Decoder blocks.
    pub blocks: Vec<BlockConfig>,
    /// The keys of the model itself, in llama.cpp's order, without `general.*` and the tokenizer.
    pub keys: Vec<(String, Value)>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context that it was made for, in tokens.
    pub context: usize,
    /// Query heads for each key-value head, as mixes of types count them.
    pub group: usize,
    /// The last norm.
    pub norm: NormConfig,
    /// By what embedded tokens are multiplied.
    pub embedding_scale: f32,
    /// Embedded tokens go through an RMS norm without a gain; its ε.
    pub embedding_norm: Option<f32>,
    /// Positions have embeddings of their own, which are learned.
    pub positions: bool,
    /// Tokens have an embedding for each block, too.
    pub per_layer: Option<PerLayer>,
    /// There are several residual streams.
    pub streams: Option<Streams>,
    /// Blocks run several times.
    pub looped: Option<Looped>,
    /// By what logits are multiplied.
    pub logit_scale: f32,
    /// Logits stay below this.
    pub logit_cap: Option<f32>,
    /// The embedding is the output matrix, too.
    pub tied: bool,
    /// Vectors that GGUF has and the checkpoint has not, with their names.
    pub vectors: Vec<(&'static str, Vec<f32>)>,
    /// Tensors behind the blocks that the forward pass does not use ([`Architecture::extra_blocks`]).
    pub tail: Vec<TensorSpec>,
    /// A prefix of the checkpoint's names, and what is there instead ([`checkpoint`]).
    pub renamed: (&'static str, &'static str),
    /// The name of the embedding in the checkpoint, where it has none of its own.
    pub embedding_source: Option<String>,
    /// The name of the output matrix in the checkpoint, where it is known.
    pub output_source: Option<String>,
    /// The checkpoint has some layers in one tensor ([`Architecture::joined`]).
    pub joined: bool,
    /// How the checkpoint has its experts.
    pub expert_layout: mapping::ExpertLayout,
    /// By what the checkpoint's numbers are multiplied on their way into the file.
    pub factors: Vec<(TensorRole, mapping::RowFactors)>,
}

impl Model {
    /// Puts a value in the place of a key, or adds it. `key`: behind the name of the architecture.
    pub fn set_key(&mut self, key: &str, value: Value) {
        let key = format!("{}.{key}", self.architecture.gguf());
        match self.keys.iter_mut().find(|(other, _)| *other == key) {
            Some((_, own)) => *own = value,
            None => self.keys.push((key, value)),
        }
    }

    /// The attention of each block that has it, with the block's number.
    pub fn attentions(&mut self) -> impl Iterator<Item = (usize, &mut Attention)> {
        let halves = self
            .blocks
            .iter_mut()
            .enumerate()
            .flat_map(|(i, block)| block.halves.iter_mut().map(move |half| (i, half)));
        halves.filter_map(|(i, half)| match &mut half.mixer {
            Mixer::Attention(attention) => Some((i, &mut **attention)),
            _ => None,
        })
    }

    /// Numbers for each token that blocks keep for later ones.
    pub fn kept_columns(&self) -> usize {
        self.blocks.iter().flat_map(|block| block.mixers()).map(|mixer| mixer.kept_columns()).sum()
    }
}

#[cfg(test)]
impl Model {
    /// A small plain one.
    pub(crate) fn sample() -> Model {
        Model::sample_of(Decoder { kv_heads: 2, heads: 2, head_dim: 4, hidden: 8, ffn: 16, ..Decoder::PLAIN })
    }

    /// Another one, of two blocks.
    pub(crate) fn sample_of(decoder: Decoder) -> Model {
        let rope = Some(rope::Rope::plain(1e4, decoder.head_dim));
        Decoder { blocks: 2, vocab: 20, context: 64, rope, tied: true, ..decoder }.build(ARCHITECTURES[0])
    }
}
