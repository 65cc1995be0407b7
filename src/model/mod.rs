//! One decoder block, described by data.
//!
//! An [`Architecture`] turns a checkpoint's `config.json` into a [`Model`]: sizes, the variations of the one decoder
//! block ([`form`]), and a list of tensors with their names in the checkpoint and in GGUF. There is one forward pass
//! ([`block::Block`]) for all of them. To add an architecture, write one file and add it to [`ARCHITECTURES`].

pub mod block;
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
mod llama;
pub mod made;
mod olmo2;
pub mod ops;
pub mod orthogonal;
pub mod parts;
mod phi3;
mod qwen;
mod qwen_moe;
pub mod rope;
pub mod rotation;
mod sizes;
mod smollm3;
mod stablelm;
mod starcoder2;

use crate::error::{Error, Result};
use crate::source::config::Config;
use crate::source::value::Value;
pub use form::{Experts, Form, HeadNorms, Latent, MlpLayers, Norm};
use gguf_keys::Keys;
pub use made::Made;
pub use parts::{Kind, Part, Role, RowOrder, Site};
use rope::{Rope, Scaling};

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

    /// The variations that all of the family share; [`Architecture::read`] and [`Architecture::read_gguf`] fill in the others.
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
}

/// One tensor: where it comes from, where it goes, what it is for.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub source: String,
    /// Its name in GGUF.
    pub gguf: String,
    /// `[rows, columns]` of a matrix, `[n]` of a vector, `[experts, rows, columns]` of a stack.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// The block that it belongs to.
    pub block: Option<usize>,
    /// The order of its rows in the file.
    pub order: RowOrder,
    /// What happens to the checkpoint's numbers.
    pub made: Made,
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

    /// The experts of a block, if it has some.
    pub fn experts(&self, block: usize) -> Option<Experts> {
        self.form.experts.filter(|experts| block >= experts.dense)
    }

    /// Width inside the MLP of a block that every token goes through.
    pub fn mlp_width(&self, block: usize) -> usize {
        self.experts(block).map_or(self.ffn, |experts| experts.shared)
    }

    /// The tensors that come before the blocks; the embedding is the first.
    pub fn head(&self) -> Vec<TensorSpec> {
        let mut head = vec![self.embedding()];
        head.extend(self.positions());
        head
    }

    /// The token embedding.
    pub fn embedding(&self) -> TensorSpec {
        self.end(self.architecture.ends().embedding, "token_embd", vec![self.vocab, self.hidden], Role::Embedding)
    }

    /// The embedding of positions.
    pub fn positions(&self) -> Option<TensorSpec> {
        let shape = vec![self.context, self.hidden];
        let own = || self.end(self.architecture.ends().positions, "position_embd", shape, Role::Positions);
        self.form.positions.then(own)
    }

    /// The last norm: its gain, and its bias if it has one.
    pub fn output_norm(&self) -> Vec<TensorSpec> {
        let kinds: &[Kind] = if self.form.norm == Norm::Layer { &[Kind::Weight, Kind::Bias] } else { &[Kind::Weight] };
        let norm = |&kind: &Kind| TensorSpec {
            source: format!("{}.{}", self.architecture.ends().norm, kind.suffix()),
            gguf: format!("output_norm.{}", kind.suffix()),
            role: Role::Norm(kind),
            made: self.architecture.made(self, Part::AttnNorm, kind),
            ..self.end("", "", vec![self.hidden], Role::Other)
        };
        kinds.iter().map(norm).collect()
    }

    /// The output matrix; for tied models, the embedding.
    pub fn output(&self) -> TensorSpec {
        if self.tied {
            return self.embedding();
        }
        self.end(self.architecture.ends().output, "output", vec![self.vocab, self.hidden], Role::Output)
    }

    /// The tensors that come after the blocks.
    pub fn tail(&self) -> Vec<TensorSpec> {
        let mut tail = self.output_norm();
        if !self.tied {
            tail.push(self.output());
        }
        tail
    }

    /// The tensors of block `i`, in file order.
    pub fn block(&self, i: usize) -> Vec<TensorSpec> {
        let (architecture, form) = (self.architecture, &self.form);
        let (h, d) = (self.hidden, self.head_dim);
        let (q, kv) = (self.heads * d, self.kv_heads * d);
        let turned = match architecture.query_rows() {
            QueryRows::Interleaved => RowOrder::Interleaved { head_dim: d },
            QueryRows::Halves | QueryRows::Neighbours => RowOrder::AsIs,
        };
        let norm_bias = form.norm == Norm::Layer;
        let mut parts: Vec<(Part, Vec<usize>, bool, RowOrder)> = Vec::new();
        let mut put = |part: Part, shape: &[usize], bias: bool| {
            let order = if matches!(part, Part::Q | Part::K) { turned } else { RowOrder::AsIs };
            parts.push((part, shape.to_vec(), bias, order));
        };
        if form.pre_norms {
            put(Part::AttnNorm, &[h], norm_bias);
        }
        if let Some(latent) = &form.latent {
            let Latent { query, latent: n, turned, value } = *latent;
            match query {
                None => put(Part::Q, &[q, h], false),
                Some(width) => {
                    put(Part::QA, &[width, h], false);
                    put(Part::QANorm, &[width], false);
                    put(Part::QB, &[q, width], false);
                }
            }
            put(Part::KvA, &[n + turned, h], false);
            put(Part::KvANorm, &[n], false);
            put(Part::KB, &[self.heads, n, d - turned], false);
            put(Part::VB, &[self.heads, value, n], false);
        } else if form.fused_qkv {
            put(Part::Qkv, &[q + 2 * kv, h], form.qkv_bias);
        } else {
            put(Part::Q, &[q, h], form.qkv_bias);
            put(Part::K, &[kv, h], form.qkv_bias);
            put(Part::V, &[kv, h], form.qkv_bias);
        }
        match form.head_norms {
            HeadNorms::None => {}
            HeadNorms::PerHead => [Part::QNorm, Part::KNorm].into_iter().for_each(|part| put(part, &[d], false)),
            HeadNorms::Whole => {
                put(Part::QNorm, &[q], false);
                put(Part::KNorm, &[kv], false);
            }
        }
        if form.sinks {
            put(Part::Sinks, &[self.heads], false);
        }
        put(Part::O, &[h, form.latent.map_or(q, |latent| self.heads * latent.value)], form.o_bias);
        if form.post_norms {
            put(Part::AttnPostNorm, &[h], norm_bias);
        }
        if form.pre_norms {
            put(Part::FfnNorm, &[h], norm_bias);
        }
        let experts = self.experts(i);
        if let Some(experts) = &experts {
            let (n, f) = (experts.count, experts.ffn);
            put(Part::Router, &[n, h], experts.bias);
            if experts.favours {
                put(Part::Favours, &[n], false);
            }
            put(Part::ExpertGates, &[n, f, h], experts.bias);
            put(Part::ExpertUps, &[n, f, h], experts.bias);
            put(Part::ExpertDowns, &[n, h, f], experts.bias);
            if experts.shared_gate {
                put(Part::SharedRouter, &[1, h], false);
            }
        }
        let f = self.mlp_width(i);
        if f > 0 {
            match form.mlp.layers {
                MlpLayers::Gated => {
                    put(Part::Gate, &[f, h], form.mlp_bias);
                    put(Part::Up, &[f, h], form.mlp_bias);
                }
                MlpLayers::Fused => put(Part::GateUp, &[2 * f, h], form.mlp_bias),
                MlpLayers::Plain => put(Part::Up, &[f, h], form.mlp_bias),
            }
            put(Part::Down, &[h, f], form.mlp_bias);
        }
        if form.post_norms {
            put(Part::FfnPostNorm, &[h], norm_bias);
        }
        let mut tensors = Vec::new();
        for (part, shape, bias, order) in parts {
            let gguf = architecture.gguf_name(part);
            // The expert that every token goes to has an MLP's layers.
            let is_shared = experts.is_some() && matches!(part, Part::Gate | Part::Up | Part::Down);
            let (source, gguf) = match is_shared {
                true => (architecture.shared_source(part), format!("{gguf}_shexp")),
                false => (architecture.source(part).to_owned(), gguf.to_owned()),
            };
            let tensor = |kind: Kind, shape: Vec<usize>| {
                let end = architecture.suffix(part, kind);
                // A bias that has no weight beside it.
                let own = if part == Part::Favours { Kind::Bias } else { kind };
                TensorSpec {
                    source: format!("{}.{i}.{source}{end}", architecture.ends().blocks),
                    gguf: format!("blk.{i}.{gguf}.{}", own.suffix()),
                    shape,
                    role: Role::Block(part, kind),
                    block: Some(i),
                    order,
                    made: architecture.made(self, part, kind),
                }
            };
            let rows = shape[..shape.len().max(2) - 1].to_vec();
            tensors.push(tensor(Kind::Weight, shape));
            if bias {
                tensors.push(tensor(Kind::Bias, rows));
            }
        }
        tensors
    }

    /// Whether queries and keys are turned in a block.
    pub fn turns(&self, block: usize) -> bool {
        self.rope.as_ref().is_some_and(|rope| rope.turns(block))
    }

    /// Every tensor, in file order; one by one, because a damaged file may claim any number of blocks.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let blocks = (0..self.blocks).flat_map(|i| self.block(i));
        self.head().into_iter().chain(blocks).chain(self.tail())
    }

    /// Vectors that GGUF has and the checkpoint has not, with their names.
    pub fn extras(&self) -> Vec<(&'static str, Vec<f32>)> {
        match self.rope.as_ref().map(|rope| &rope.scaling) {
            Some(Scaling::Factors(factors)) => vec![(gguf_keys::ROPE_FACTORS, factors.clone())],
            Some(Scaling::Long { short, long, .. }) => {
                vec![(gguf_keys::ROPE_LONG, long.clone()), (gguf_keys::ROPE_SHORT, short.clone())]
            }
            _ => Vec::new(),
        }
    }

    fn end(&self, source: &str, gguf: &str, shape: Vec<usize>, role: Role) -> TensorSpec {
        let weight = |name: &str| format!("{name}.weight");
        let (source, gguf, order) = (weight(source), weight(gguf), RowOrder::AsIs);
        TensorSpec { source, gguf, shape, role, block: None, order, made: Made::AsIs }
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
        }
    }
}
