//! Qwen 2 and 3, without experts.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::attention::HeadNorms;
use crate::model::{Architecture, Decoder, Model, config};
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

    fn examples(&self) -> &'static str {
        "Qwen 2 and 2.5, QwQ 32B, Qwen2.5-Coder"
    }

    fn decoder(&self) -> Decoder {
        Decoder { qkv_bias: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}

impl Architecture for Qwen3 {
    fn gguf(&self) -> &'static str {
        "qwen3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn examples(&self) -> &'static str {
        "Qwen 3 0.6B to 32B, Qwen3-Embedding"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}

/// What the family's configurations have in common.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    if config.flag("use_sliding_window")? {
        return Err(config::refused(config, "use_sliding_window is not supported"));
    }
    // They speak of such windows.
    config.ignore(&["sliding_window", "max_window_layers"]);
    let model = config::read(architecture, config, false)?;
    config::layer_types(config, model.blocks, &["full_attention"])?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    Ok(model)
}
