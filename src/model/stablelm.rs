//! Stability's StableLM.

use super::{Architecture, Form, Model, Norm, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;

/// Llama with norms that subtract the mean, and a part of each head turned.
pub struct StableLm;

impl Architecture for StableLm {
    fn gguf(&self) -> &'static str {
        "stablelm"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["stablelm"]
    }

    fn form(&self) -> Form {
        Form { norm: Norm::Layer, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        // Only the 12B model of 2024 has them.
        for key in ["use_parallel_residual", "qk_layernorm"] {
            if config.flag(key)? {
                return Err(config.unsupported(&format!("{key} is not supported")));
            }
        }
        let mut model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        model.form.qkv_bias = config.flag("use_qkv_bias")?;
        Ok(model)
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        vec![("use_parallel_residual", Value::Bool(model.form.parallel))]
    }
}
