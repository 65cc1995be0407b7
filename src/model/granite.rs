//! IBM's Granite.

use super::gguf_keys::Keys;
use super::{Architecture, Decoder, Model, QueryRows, config};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;

/// Llama with factors for the embedding, the scores, what each half adds, and the logits.
pub struct Granite;

impl Architecture for Granite {
    fn gguf(&self) -> &'static str {
        "granite"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granite"]
    }

    fn examples(&self) -> &'static str {
        "Granite 3.0 to 3.3, 4.1 dense"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        read_factors(keys, &mut model)?;
        Ok(model.build(self))
    }
}

/// What configurations of the family have in common.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let mut model = config::read(architecture, config, true)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    let factor = |key: &str| -> Result<f32> { Ok(config.maybe_positive(key)?.map_or(1.0, |x| x as f32)) };
    let (scale, logits) = (factor("attention_multiplier")?, factor("logits_scaling")?);
    model.attention_scale = Some(scale);
    model.embedding_scale = factor("embedding_multiplier")?;
    model.residual_scale = factor("residual_multiplier")?;
    model.logit_scale = 1.0 / logits;
    model.mlp_bias = config.flag("mlp_bias")?;
    // llama.cpp takes the width of a head from the two sizes.
    model.explicit_head_dim = false;
    model.keys = vec![
        ("attention.scale", Value::F32(scale)),
        ("embedding_scale", Value::F32(model.embedding_scale)),
        ("residual_scale", Value::F32(model.residual_scale)),
        ("logit_scale", Value::F32(1.0 / model.logit_scale)),
    ];
    Ok(model)
}

/// The factors, from a file.
pub(super) fn read_factors(keys: &Keys, model: &mut Decoder) -> Result<()> {
    let factor = |key: &str| -> Result<f32> { Ok(keys.maybe_number(key)?.map_or(1.0, |x| x as f32)) };
    let scale = keys.maybe_number("attention.scale")?;
    model.attention_scale = scale.map(|x| x as f32);
    model.embedding_scale = factor("embedding_scale")?;
    model.residual_scale = factor("residual_scale")?;
    model.logit_scale = 1.0 / keys.number("logit_scale")? as f32;
    Ok(())
}
