//! Google's Gemma 1 to 3, text only.

use super::form::{Mlp, Window};
use super::gguf_keys::Keys;
use super::rope::Rope;
use super::{Architecture, Form, HeadNorms, Kind, Made, MlpLayers, Model, Part, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Embedded tokens are multiplied by √hidden, norms store their gain less one, and the MLP is gated by GELU.
pub struct Gemma;

/// Norms behind attention and MLP, too; scores and logits within bounds; every other block sees a window.
pub struct Gemma2;

/// Norms of queries and keys instead of a bound of scores; five blocks of six see a window and have a rotary base of their own.
pub struct Gemma3;

const FORM: Form = Form { mlp: Mlp { activation: Activation::GeluTanh, layers: MlpLayers::Gated }, ..Form::PLAIN };

/// What all three have in common, in front of what is special to each.
fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Model> {
    // Gemma 1 has it in both keys, and only the newer one is right.
    sizes::check_activation(config, &["hidden_activation"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
    let mut model = sizes::read(architecture, config, true)?;
    model.form.embedding_scale = (model.hidden as f32).sqrt();
    model.explicit_head_dim = true;
    if !model.tied {
        return Err(sizes::refused(config, "an output matrix of its own is not supported"));
    }
    Ok(model)
}

/// Every norm is of this kind.
fn made(part: Part) -> Made {
    match part {
        Part::AttnNorm | Part::AttnPostNorm | Part::FfnNorm | Part::FfnPostNorm | Part::QNorm | Part::KNorm => {
            Made::PlusOne
        }
        _ => Made::AsIs,
    }
}

fn source(part: Part) -> &'static str {
    match part {
        Part::FfnNorm => "pre_feedforward_layernorm",
        _ => part.usual_source(),
    }
}

/// What scores are multiplied by: llama.cpp takes it from the size of the model. `large`: how many blocks the 27B model has.
fn attention_scale(model: &Model, large: usize) -> f32 {
    let per_head = if model.blocks == large { model.hidden / model.heads } else { model.head_dim };
    1.0 / (per_head as f32).sqrt()
}

fn check_scale(config: &Config, model: &Model, large: usize) -> Result<f32> {
    let scale = attention_scale(model, large);
    let own = config.maybe_positive("query_pre_attn_scalar")?.unwrap_or(256.0) as f32;
    if ((1.0 / own.sqrt()) / scale - 1.0).abs() > 1e-3 {
        let taken = (1.0 / (scale * scale)).round();
        return Err(sizes::refused(
            config,
            &format!("query_pre_attn_scalar {own} is not supported: llama.cpp takes {taken} for these sizes"),
        ));
    }
    Ok(scale)
}

impl Architecture for Gemma {
    fn gguf(&self) -> &'static str {
        "gemma"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma"]
    }

    fn form(&self) -> Form {
        FORM
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        read(self, config)
    }

    fn read_gguf(&self, _: &Keys, model: &mut Model) -> Result<()> {
        model.form.embedding_scale = (model.hidden as f32).sqrt();
        Ok(())
    }

    fn writes_rope_base(&self) -> bool {
        false
    }

    fn obstacle_to_rotation(&self, _: &Form) -> Option<&'static str> {
        Some("a rotation needs an output matrix of its own, which llama.cpp does not read for it")
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        made(part)
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

    fn form(&self) -> Form {
        Form { post_norms: true, ..FORM }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        model.form.attention_scale = Some(check_scale(config, &model, LARGE_2)?);
        model.form.attention_cap = config.maybe_positive("attn_logit_softcapping")?.map(|x| x as f32);
        model.form.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(4096);
        model.form.window = Some(Window { tokens, period: Some(2) });
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        model.form.embedding_scale = (model.hidden as f32).sqrt();
        model.form.attention_scale = Some(attention_scale(model, LARGE_2));
        model.form.attention_cap = keys.maybe_number("attn_logit_softcapping")?.map(|x| x as f32);
        model.form.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
        let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(4096);
        model.form.window = Some(Window { tokens, period: Some(2) });
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let form = &model.form;
        let mut keys = Vec::new();
        keys.extend(form.attention_cap.map(|cap| ("attn_logit_softcapping", Value::F32(cap))));
        keys.extend(form.logit_cap.map(|cap| ("final_logit_softcapping", Value::F32(cap))));
        keys.extend(form.window.map(|window| ("attention.sliding_window", Value::U32(window.tokens as u32))));
        keys
    }

    fn writes_rope_base(&self) -> bool {
        false
    }

    fn source(&self, part: Part) -> &'static str {
        source(part)
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        made(part)
    }
}

/// Blocks of Gemma 3 27B.
const LARGE_3: usize = 62;

impl Architecture for Gemma3 {
    fn gguf(&self) -> &'static str {
        "gemma3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma3_text", "gemma3"]
    }

    fn form(&self) -> Form {
        Form { post_norms: true, head_norms: HeadNorms::PerHead, ..FORM }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        // A model that sees, too, has this one's configuration inside; keys of usual values are left out there.
        let inside = config.object("text_config")?.map(|text| text.with_defaults(usual_of_gemma3()));
        let config = inside.as_ref().unwrap_or(config);
        let mut model = read(self, config)?;
        model.form.attention_scale = Some(check_scale(config, &model, LARGE_3)?);
        model.form.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
        let period = config.maybe_size("sliding_window_pattern")?.unwrap_or(PERIOD);
        if period != PERIOD {
            return Err(sizes::refused(config, &format!("sliding_window_pattern {period} is not supported")));
        }
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(4096);
        model.form.window = Some(Window { tokens, period: Some(PERIOD) });
        // Newer configurations have parameters for each kind of block.
        let newer = config.object("rope_parameters")?;
        let of = |kind: &str| newer.as_ref().map(|parameters| parameters.object(kind)).transpose().map(Option::flatten);
        let mut rope = match of("full_attention")? {
            Some(parameters) => Rope::of(config, Some(parameters), model.head_dim)?,
            None => Rope::read(config, model.head_dim)?,
        };
        if config.get("rope_theta").is_none() && newer.is_none() {
            rope.base = 1e6;
        }
        rope.local_base = Some(match of("sliding_attention")? {
            Some(parameters) => parameters.positive("rope_theta")?,
            None => config.maybe_positive("rope_local_base_freq")?.unwrap_or(1e4),
        });
        model.rope = Some(rope);
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        model.form.embedding_scale = (model.hidden as f32).sqrt();
        model.form.attention_scale = Some(attention_scale(model, LARGE_3));
        model.form.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
        let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(4096);
        model.form.window = Some(Window { tokens, period: Some(PERIOD) });
        let local = keys.maybe_number("rope.freq_base_swa")?.unwrap_or(1e4);
        model.rope.iter_mut().for_each(|rope| rope.local_base = Some(local));
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let form = &model.form;
        let mut keys = Vec::new();
        keys.extend(form.logit_cap.map(|cap| ("final_logit_softcapping", Value::F32(cap))));
        keys.extend(form.window.map(|window| ("attention.sliding_window", Value::U32(window.tokens as u32))));
        let local = model.rope.as_ref().and_then(|rope| rope.local_base);
        keys.extend(local.map(|base| ("rope.freq_base_swa", Value::F32(base as f32))));
        keys
    }

    fn source(&self, part: Part) -> &'static str {
        source(part)
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        made(part)
    }
}

/// What transformers takes for granted in `text_config`.
fn usual_of_gemma3() -> serde_json::Value {
    serde_json::json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    })
}

/// One block of six sees everything.
const PERIOD: usize = 6;
