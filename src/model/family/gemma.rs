//! Google's Gemma 1 to 3, text only.

use super::embedding_gemma::EmbeddingGemma;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::Change;
use crate::model::mixer::attention::HeadNorms;
use crate::model::rope::{Rope, Scaling};
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Part, TensorMapping, config};
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Embedded tokens are multiplied by √hidden, norms store their gain less one, and the MLP is gated by GELU.
pub struct Gemma;

/// Norms behind attention and MLP, too; scores and logits within bounds; every other block sees a window.
pub struct Gemma2;

/// Norms of queries and keys instead of a bound of scores; five blocks of six see a window and have a rotary base of their own.
pub struct Gemma3;

/// What all of them share.
pub(super) fn plain() -> Decoder {
    Decoder { activation: Activation::GeluTanh, ..Decoder::PLAIN }
}

/// What all three have in common, in front of what is special to each.
fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    // Gemma 1 has it in both keys, and only the newer one is right.
    config::check_activation(config, &["hidden_activation"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
    let mut model = config::read(architecture, config, true)?;
    model.embedding_scale = (model.hidden as f32).sqrt();
    model.explicit_head_dim = true;
    Ok(model)
}

/// Every norm is of this kind.
pub(super) fn mapping(tensor: &BlockTensor) -> TensorMapping {
    match tensor.part {
        Part::ATTN_NORM | Part::ATTN_POST_NORM | Part::FFN_NORM | Part::FFN_POST_NORM | Part::Q_NORM | Part::K_NORM => {
            Change::PlusOne.into()
        }
        _ => TensorMapping::AS_IS,
    }
}

pub(super) fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::FFN_NORM => "pre_feedforward_layernorm",
        _ => tensor.source,
    }
}

/// What scores are multiplied by: llama.cpp takes it from the size of the model. `large`: how many blocks the 27B model has.
fn attention_scale(model: &Decoder, large: usize) -> f32 {
    let per_head = if model.blocks == large { model.hidden / model.heads } else { model.head_dim };
    1.0 / (per_head as f32).sqrt()
}

fn check_scale(config: &Config, model: &Decoder, large: usize) -> Result<f32> {
    let scale = attention_scale(model, large);
    let own = config.maybe_positive("query_pre_attn_scalar")?.unwrap_or(256.0) as f32;
    if ((1.0 / own.sqrt()) / scale - 1.0).abs() > 1e-3 {
        let taken = (1.0 / (scale * scale)).round();
        return Err(config::refused(
            config,
            &format!("query_pre_attn_scalar {own} is not supported: llama.cpp takes {taken} for these sizes"),
        ));
    }
    Ok(scale)
}

const NO_ROTATION: &str = "a rotation needs an output matrix of its own, which llama.cpp does not read for it";

impl Architecture for Gemma {
    fn gguf(&self) -> &'static str {
        "gemma"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma"]
    }

    fn examples(&self) -> &'static str {
        "Gemma 1 2B and 7B, CodeGemma"
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
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, mut model: Decoder) -> Result<Model> {
        model.embedding_scale = (model.hidden as f32).sqrt();
        Ok(model.build(self))
    }

    fn writes_rope_base(&self) -> bool {
        false
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some(NO_ROTATION)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(tensor)
    }

    fn norm_mapping(&self) -> TensorMapping {
        Change::PlusOne.into()
    }
}

/// Blocks of Gemma 2 27B.
const LARGE_2: usize = 46;

impl Architecture for Gemma2 {
    fn gguf(&self) -> &'static str {
        "gemma2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma2"]
    }

    fn examples(&self) -> &'static str {
        "Gemma 2 2B, 9B and 27B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { post_norms: true, ..plain() }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        model.attention_scale = Some(check_scale(config, &model, LARGE_2)?);
        model.attention_cap = config.maybe_positive("attn_logit_softcapping")?.map(|x| x as f32);
        model.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(4096);
        config::put_windows(config, &mut model, tokens, 2)?;
        for (key, cap) in
            [("attn_logit_softcapping", model.attention_cap), ("final_logit_softcapping", model.logit_cap)]
        {
            let cap = cap.ok_or_else(|| config::refused(config, &format!("{key}: none is not supported")))?;
            model.key(key, Value::F32(cap));
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        model.embedding_scale = (model.hidden as f32).sqrt();
        model.attention_scale = Some(attention_scale(&model, LARGE_2));
        model.attention_cap = keys.maybe_number("attn_logit_softcapping")?.map(|x| x as f32);
        model.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
        let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(4096);
        config::read_windows(keys, &mut model, tokens, 2)?;
        Ok(model.build(self))
    }

    fn writes_rope_base(&self) -> bool {
        false
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(tensor)
    }

    fn norm_mapping(&self) -> TensorMapping {
        Change::PlusOne.into()
    }
}

/// Blocks of Gemma 3 27B.
const LARGE_3: usize = 62;

/// One block of six sees everything.
const PERIOD: usize = 6;

impl Architecture for Gemma3 {
    fn gguf(&self) -> &'static str {
        "gemma3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma3_text", "gemma3"]
    }

    fn examples(&self) -> &'static str {
        "Gemma 3 270M to 27B, MedGemma"
    }

    fn decoder(&self) -> Decoder {
        Decoder { post_norms: true, head_norms: HeadNorms::PerHead, ..plain() }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        if !config.flag("use_bidirectional_attention")? {
            return Ok(read_3(self, config, LARGE_3)?.build(self));
        }
        // llama.cpp has it where states make a vector, and not where they make words.
        if makes_words(config) {
            let what = "use_bidirectional_attention is not supported in a model that writes text";
            return Err(config::refused(config, what));
        }
        EmbeddingGemma.read(config)
    }

    fn read_gguf(&'static self, keys: &Keys, model: Decoder) -> Result<Model> {
        Ok(read_gguf_3(keys, model, LARGE_3)?.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(tensor)
    }

    fn norm_mapping(&self) -> TensorMapping {
        Change::PlusOne.into()
    }
}

/// Whether the class of a configuration has an output matrix: that of the text alone has none.
fn makes_words(config: &Config) -> bool {
    let classes = config.json()["architectures"].as_array().into_iter().flatten();
    let mut names = classes.filter_map(serde_json::Value::as_str);
    config.name() == "text_config"
        || names.any(|name| name.contains("ForCausalLM") || name.contains("ForConditionalGeneration"))
}

/// What configurations of Gemma 3 have in common. `large`: how many blocks the model has whose scores have another scale.
pub(super) fn read_3(architecture: &'static dyn Architecture, config: &Config, large: usize) -> Result<Decoder> {
    let mut model = read(architecture, config)?;
    model.attention_scale = Some(check_scale(config, &model, large)?);
    model.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
    let period = config.maybe_size("sliding_window_pattern")?.unwrap_or(PERIOD);
    let kinds = |i: usize| if (i + 1).is_multiple_of(period) { "full_attention" } else { "sliding_attention" };
    let types: Vec<&str> = (0..model.blocks).map(kinds).collect();
    let layered = match config.says("layer_types") {
        true => config.clone(),
        false => config.clone().with("layer_types", types.into()),
    };
    let tokens = config.maybe_size("sliding_window")?.unwrap_or(4096);
    config::put_windows(&layered, &mut model, tokens, PERIOD)?;
    put_ropes(config, &mut model)?;
    if let Some(cap) = model.logit_cap {
        model.key("final_logit_softcapping", Value::F32(cap));
    }
    Ok(model)
}

/// The rotary embeddings of blocks with a window and of the others.
pub(super) fn put_ropes(config: &Config, model: &mut Decoder) -> Result<()> {
    let bases = [
        config.maybe_positive("rope_theta")?.unwrap_or(1e6),
        config.maybe_positive("rope_local_base_freq")?.unwrap_or(1e4),
    ];
    let [rope, local] = Rope::by_kind(config, model.head_dim, bases)?;
    if local != Rope::plain(local.base, local.rotary) {
        return Err(config::refused(config, "rope_parameters of sliding_attention with a scaling is not supported"));
    }
    if let Scaling::Yarn(yarn) = &rope.scaling
        && (yarn.magnitude() / yarn.usual_magnitude() - 1.0).abs() > 1e-6
    {
        // llama.cpp multiplies by it in blocks with a window, too.
        let what = "YaRN with attention_factor, or mscale, of its own is not supported";
        return Err(config::refused(config, what));
    }
    (model.rope, model.local_rope) = (Some(rope), Some(local.clone()));
    model.key("rope.freq_base_swa", Value::F32(local.base as f32));
    Ok(())
}

/// The same of files.
pub(super) fn read_gguf_3(keys: &Keys, mut model: Decoder, large: usize) -> Result<Decoder> {
    model.embedding_scale = (model.hidden as f32).sqrt();
    model.attention_scale = Some(attention_scale(&model, large));
    model.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
    let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(4096);
    config::read_windows(keys, &mut model, tokens, PERIOD)?;
    let local = keys.maybe_number("rope.freq_base_swa")?.unwrap_or(1e4);
    model.local_rope = model.rope.as_ref().map(|rope| Rope::plain(local, rope.rotary));
    Ok(model)
}
