//! IBM's Granite.

use super::gguf_keys::Keys;
use super::{Architecture, Form, Model, QueryRows, sizes};
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

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = sizes::read(self, config, true)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        let factor = |key: &str| -> Result<f32> { Ok(config.maybe_positive(key)?.map_or(1.0, |x| x as f32)) };
        let form = Form {
            attention_scale: Some(factor("attention_multiplier")?),
            embedding_scale: factor("embedding_multiplier")?,
            residual_scale: factor("residual_multiplier")?,
            logit_scale: 1.0 / factor("logits_scaling")?,
            mlp_bias: config.flag("mlp_bias")?,
            ..model.form
        };
        // llama.cpp takes the width of a head from the two sizes.
        Ok(Model { form, explicit_head_dim: false, ..model })
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        let factor = |key: &str| -> Result<f32> { Ok(keys.maybe_number(key)?.map_or(1.0, |x| x as f32)) };
        let scale = keys.maybe_number("attention.scale")?;
        model.form.attention_scale = scale.map(|x| x as f32);
        model.form.embedding_scale = factor("embedding_scale")?;
        model.form.residual_scale = factor("residual_scale")?;
        model.form.logit_scale = 1.0 / keys.number("logit_scale")? as f32;
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let form = &model.form;
        vec![
            ("attention.scale", Value::F32(form.attention_scale.unwrap_or(1.0))),
            ("embedding_scale", Value::F32(form.embedding_scale)),
            ("residual_scale", Value::F32(form.residual_scale)),
            ("logit_scale", Value::F32(1.0 / form.logit_scale)),
        ]
    }
}
