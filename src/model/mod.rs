//! One decoder block, described by data.
//!
//! An [`Architecture`] turns a checkpoint's `config.json` into a [`Model`]: sizes, the variations of the one decoder
//! block ([`form`]), and a list of tensors with their names in the checkpoint and in GGUF. There is one forward pass
//! ([`block::Block`]) for all of them. To add an architecture, write one file and add it to [`ARCHITECTURES`].

pub mod block;
pub mod cache;
mod deepseek2;
pub mod ends;
pub mod form;
mod gemma;
pub mod gguf_keys;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod latent;
mod llama;
pub mod made;
pub mod matrix;
mod olmo2;
pub mod ops;
pub mod orthogonal;
pub mod parts;
mod phi3;
mod qwen;
mod qwen_moe;
pub mod rope;
pub mod rotation;
pub mod routing;
mod sizes;
mod smollm3;
mod stablelm;
mod starcoder2;
mod tensors;

use crate::error::{Error, Result};
use crate::source::config::Config;
use crate::source::value::Value;
pub use form::{Experts, Form, HeadNorms, Latent, MlpLayers, Norm};
use gguf_keys::Keys;
pub use made::Made;
pub use parts::{Kind, Part, Role, RowOrder, Site};
use rope::Rope;
pub use tensors::TensorSpec;

/// Every architecture.
pub static ARCHITECTURES: &[&dyn Architecture] = &[
    &llama::Llama,
    &qwen::Qwen2,
    &qwen::Qwen3,
    &qwen_moe::Qwen2Moe,
    &qwen_moe::Qwen3Moe,
    &gemma::Gemma,
    &gemma::Gemma2,
    &gemma::Gemma3,
    &phi3::Phi3,
    &smollm3::SmolLm3,
    &granite::Granite,
    &olmo2::Olmo2,
    &glm4::Glm4,
    &stablelm::StableLm,
    &starcoder2::StarCoder2,
    &gpt2::Gpt2,
    &gpt_neox::GptNeoX,
    &gpt_oss::GptOss,
    &deepseek2::DeepSeek2,
];

/// A family of checkpoints.
pub trait Architecture: Sync {
    /// `general.architecture` in GGUF.
    fn gguf(&self) -> &'static str;

    /// The values of `model_type` in `config.json` that it covers.
    fn model_types(&self) -> &'static [&'static str];

    /// The order of the rows of queries and keys, in the checkpoint and in GGUF.
    fn query_rows(&self) -> QueryRows {
        QueryRows::Halves
    }

    /// The variations that all of the family share; [`Architecture::read`] and [`Architecture::read_gguf`] fill in the others, and
    /// the sizes of experts and of latent attention.
    fn form(&self) -> Form {
        Form::PLAIN
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// A key that is missing, of the wrong kind, or asks for something unsupported.
    fn read(&'static self, config: &Config) -> Result<Model>;

    /// Reads what is special to the family from a GGUF's keys.
    ///
    /// # Errors
    /// A key that is missing or makes no sense.
    fn read_gguf(&self, _keys: &Keys, _model: &mut Model) -> Result<()> {
        Ok(())
    }

    /// The keys that are special to the family, behind the name of the architecture.
    fn keys(&self, _model: &Model) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Whether GGUF has the key `rope.freq_base`; llama.cpp takes 10000 without it.
    fn writes_rope_base(&self) -> bool {
        true
    }

    /// How many key and value heads GGUF names.
    fn kv_heads(&self, model: &Model) -> usize {
        model.kv_heads
    }

    /// What a part's tensors are called in the checkpoint, behind the block's prefix.
    fn source(&self, part: Part) -> &'static str {
        part.usual_source()
    }

    /// The same for a layer of the expert that every token goes to.
    fn shared_source(&self, part: Part) -> String {
        part.usual_source().replace("mlp.", "mlp.shared_expert.")
    }

    /// What the checkpoint's name of a tensor ends with.
    fn suffix(&self, part: Part, kind: Kind) -> String {
        // Some vectors are named like a layer, and are none.
        if matches!(part, Part::Sinks | Part::Favours) { String::new() } else { format!(".{}", kind.suffix()) }
    }

    /// What a part's tensors are called in GGUF, behind `blk.N.`.
    fn gguf_name(&self, part: Part) -> &'static str {
        part.gguf()
    }

    /// Names of the checkpoint's tensors outside the blocks, and the prefix of those inside.
    fn ends(&self) -> Ends {
        Ends {
            embedding: "model.embed_tokens",
            positions: "",
            blocks: "model.layers",
            norm: "model.norm",
            output: "lm_head",
        }
    }

    /// How a tensor is made from the checkpoint's; a norm outside the blocks is asked for as [`Part::AttnNorm`].
    fn made(&self, _model: &Model, _part: Part, _kind: Kind) -> Made {
        Made::AsIs
    }

    /// Why a rotation of the residual stream and of the values ([`rotation`]) would change what a model computes, or cannot be
    /// done: norms that subtract the mean, or any step but RMS norms and linear layers between the stream and a block's inside.
    fn obstacle_to_rotation(&self, form: &Form) -> Option<&'static str> {
        match () {
            () if form.norm == Norm::Layer => Some("its norms subtract the mean, which a rotation does not keep"),
            () if form.post_norms || !form.pre_norms => {
                Some("norms stand between its layers and the residual stream, and a rotation cannot pass them")
            }
            () if form.fused_qkv || form.mlp.layers == MlpLayers::Fused => Some("it has several layers in one tensor"),
            () if form.experts.is_some() => Some("it has experts"),
            () if form.latent.is_some() => Some("its keys and values come from a narrower vector"),
            () => None,
        }
    }
}

/// Names of a checkpoint's tensors outside the blocks, without `.weight`, and the prefix of those inside.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
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
    /// Rotary embedding; none if there is none.
    pub rope: Option<Rope>,
    /// How its blocks differ from the plainest.
    pub form: Form,
    /// The embedding is the output matrix, too.
    pub tied: bool,
    /// A prefix of the checkpoint's names, and what is there instead ([`Model::settle`]).
    pub renamed: (&'static str, &'static str),
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
                    .hint(format!("the supported ones are: {}; encoders are for llmq int8", known.join(", "))))
            }
        }
    }

    /// The experts of a block, if it has some.
    pub fn experts(&self, block: usize) -> Option<Experts> {
        self.form.experts.filter(|experts| block >= experts.dense)
    }

    /// Width inside the MLP of a block that every token goes through.
    pub fn mlp_width(&self, block: usize) -> usize {
        self.experts(block).map_or(self.ffn, |experts| experts.shared)
    }
}

#[cfg(test)]
impl Model {
    /// A small plain one.
    pub(crate) fn sample() -> Model {
        Model {
            architecture: ARCHITECTURES[0],
            blocks: 2,
            hidden: 8,
            vocab: 20,
            context: 64,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            explicit_head_dim: true,
            ffn: 16,
            norm_eps: 1e-5,
            rope: Some(Rope::plain(1e4, 4)),
            form: Form::PLAIN,
            tied: true,
            renamed: ("", ""),
        }
    }
}
