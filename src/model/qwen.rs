//! Qwen 2 and 3, without experts.

use super::{Architecture, Form, HeadNorms, Model, sizes};
use crate::error::Result;
use crate::source::config::Config;

/// Qwen 2 and 2.5: Llama with biases on q, k and v.
pub struct Qwen2;

/// Qwen 3: Llama with norms of queries and keys.
pub struct Qwen3;

impl Architecture for Qwen2 {
    fn gguf(&self) -> &'static str {
        "qwen2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn form(&self) -> Form {
        Form { qkv_bias: true, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        read(self, config)
    }
}

impl Architecture for Qwen3 {
    fn gguf(&self) -> &'static str {
        "qwen3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn form(&self) -> Form {
        Form { head_norms: HeadNorms::PerHead, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        read(self, config)
    }
}

/// What the family's configurations have in common.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Model> {
    if config.flag("use_sliding_window")? {
        return Err(sizes::refused(config, "use_sliding_window is not supported"));
    }
    let model = sizes::read(architecture, config, false)?;
    sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
    Ok(model)
}
