//! Cohere's Command R and R+, Aya, and Command R7B and A.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::rope::Scaling;
use crate::model::{Architecture, Decoder, Model, Norm, QueryRows, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Attention and MLP side by side behind one norm, which subtracts the mean and has no bias, and scaled logits.
pub struct Cohere;

/// The same; three blocks of four see a window, and the others turn nothing.
pub struct Cohere2;

/// Blocks from which on llama.cpp expects norms of queries and keys: Command R+ has them.
const LARGE: usize = 64;

/// Every so many-th block sees everything, where nothing else is said.
pub(super) const PERIOD: usize = 4;

/// The key that marks blocks with a window.
pub(super) const PATTERN: &str = "attention.sliding_window_pattern";

/// What the whole family shares.
pub(super) fn plain() -> Decoder {
    Decoder { norm: Norm::Layer, norms_without_bias: true, parallel: true, shared_norm: true, ..Decoder::PLAIN }
}

/// What all configurations have in common.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let mut model = config::read(architecture, config, true)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    if config.flag("attention_bias")? {
        return Err(config::refused(config, "attention_bias is not supported"));
    }
    if model.rope.as_ref().is_some_and(|rope| rope.scaling != Scaling::None) {
        return Err(config::refused(config, "rope scaling is not supported"));
    }
    model.logit_scale = config.maybe_positive("logit_scale")?.unwrap_or(0.0625) as f32;
    model.key("logit_scale", Value::F32(model.logit_scale));
    model.key("rope.scaling.type", "none".into());
    Ok(model)
}

/// The two whose output matrix is the embedding, and whose heads together are as wide as the stream.
fn read_tied(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let model = read(architecture, config)?;
    if !model.tied {
        return Err(config::refused(config, "an output matrix of its own is not supported"));
    }
    if model.heads * model.head_dim != model.hidden {
        return Err(config::refused(config, "head_dim other than hidden_size / num_attention_heads is not supported"));
    }
    for (key, usual) in
        [("use_parallel_block", true), ("use_gated_activation", true), ("use_parallel_embedding", false)]
    {
        if config.get(key).is_some() && config.flag(key)? != usual {
            return Err(config::refused(config, &format!("{key} {} is not supported", !usual)));
        }
    }
    Ok(model)
}

fn read_gguf(keys: &Keys, decoder: &mut Decoder) -> Result<()> {
    decoder.logit_scale = keys.maybe_number("logit_scale")?.map_or(1.0, |x| x as f32);
    Ok(())
}

/// Marks blocks that see no further than `sliding_window`.
pub(super) fn put_window(model: &mut Decoder, config: &Config, local: Vec<bool>) -> Result<()> {
    let tokens = config.maybe_size("sliding_window")?.unwrap_or(4096);
    model.size_key("attention.sliding_window", tokens);
    model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
    model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
    Ok(())
}

/// The same from a file.
pub(super) fn window_of(keys: &Keys, usual: impl Fn(usize) -> bool, blocks: usize) -> Result<Window> {
    let tokens = keys.size("attention.sliding_window")?;
    let local = keys.marks(PATTERN)?.unwrap_or_else(|| (0..blocks).map(usual).collect());
    Ok(Window { tokens, blocks: WindowBlocks::Marked(local) })
}

/// The model, in which blocks without a window turn nothing but for the first `turned` ones.
pub(super) fn build(decoder: Decoder, turned: usize, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for (_, attention) in model.attentions().filter(|(i, attention)| *i >= turned && attention.window.is_none()) {
        attention.rope = None;
    }
    model
}

impl Architecture for Cohere {
    fn gguf(&self) -> &'static str {
        "command-r"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["cohere"]
    }

    fn examples(&self) -> &'static str {
        "Command R and R+, Aya 23, Aya Expanse"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn decoder(&self) -> Decoder {
        plain()
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read_tied(self, config)?;
        // Published configurations say a length that is shorter than that of the training under the usual key.
        if let Some(context) = config.maybe_size("model_max_length")? {
            model.context = context;
        }
        let norms = config.flag("use_qk_norm")?;
        if norms != (model.blocks >= LARGE) {
            let what = format!("use_qk_norm {norms} is not supported for models of {} blocks", model.blocks);
            return Err(config::refused(config, &what));
        }
        model.head_norms = if norms { HeadNorms::Centred } else { HeadNorms::None };
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        read_gguf(keys, &mut model)?;
        model.head_norms = if model.blocks >= LARGE { HeadNorms::Centred } else { HeadNorms::None };
        Ok(model.build(self))
    }
}

impl Architecture for Cohere2 {
    fn gguf(&self) -> &'static str {
        "cohere2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["cohere2"]
    }

    fn examples(&self) -> &'static str {
        "Command R7B, Command A, Command A Vision, Aya Vision, Tiny Aya"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn decoder(&self) -> Decoder {
        plain()
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let window = Some(Window::but_every(4, PERIOD));
        build(Decoder { window, ..self.decoder().sized() }, 0, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read_tied(self, config)?;
        if config.flag("use_qk_norm")? {
            return Err(config::refused(config, "use_qk_norm is not supported"));
        }
        if config.maybe_positive("rotary_pct")?.is_some_and(|part| part != 1.0) {
            return Err(config::refused(config, "rotary_pct other than 1 is not supported"));
        }
        let kinds = config::layer_types(config, model.blocks, &["sliding_attention", "full_attention"])?;
        let period = config.maybe_size("sliding_window_pattern")?.unwrap_or(PERIOD);
        let local: Vec<bool> = match kinds {
            Some(kinds) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (0..model.blocks).map(|i| !(i + 1).is_multiple_of(period)).collect(),
        };
        put_window(&mut model, config, local)?;
        Ok(build(model, 0, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        read_gguf(keys, &mut model)?;
        let period = keys.maybe(PATTERN).and_then(Value::as_u64).filter(|&n| n > 0).unwrap_or(PERIOD as u64) as usize;
        model.window = Some(window_of(keys, |i| !(i + 1).is_multiple_of(period), model.blocks)?);
        Ok(build(model, 0, self))
    }
}
