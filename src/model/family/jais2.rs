//! Inception's Jais 2.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, Decoder, Model, Norm, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Norms that subtract the mean, biases everywhere, and an MLP of two layers with the square of what is above zero.
pub struct Jais2;

impl Architecture for Jais2 {
    fn gguf(&self) -> &'static str {
        "jais2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["jais2"]
    }

    fn examples(&self) -> &'static str {
        "Jais 2 8B and 70B"
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            norm: Norm::Layer,
            activation: Activation::ReluSquared,
            mlp: MlpLayers::Plain,
            mlp_bias: true,
            qkv_bias: true,
            o_bias: true,
            ..Decoder::PLAIN
        }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "relu2")?;
        for key in ["attention_bias", "mlp_bias"] {
            if config.get(key).is_some() && !config.flag(key)? {
                return Err(config::refused(config, &format!("{key} false is not supported")));
            }
        }
        if model.rope.as_ref().is_some_and(|rope| rope.rotary != model.head_dim) {
            return Err(config::refused(config, "partial_rotary_factor other than 1 is not supported"));
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}
