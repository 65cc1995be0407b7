//! BigCode's StarCoder 2.

use crate::error::Result;
use crate::model::decoder::Window;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Norm, Part, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Norms that subtract the mean, biases everywhere, and an MLP of two layers.
pub struct StarCoder2;

impl Architecture for StarCoder2 {
    fn gguf(&self) -> &'static str {
        "starcoder2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["starcoder2"]
    }

    fn examples(&self) -> &'static str {
        "StarCoder 2 3B to 15B"
    }

    fn decoder(&self) -> Decoder {
        let (activation, mlp) = (Activation::GeluTanh, MlpLayers::Plain);
        Decoder { norm: Norm::Layer, activation, mlp, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits {
            o_bias: Place::Needed,
            mlp_bias: Place::Needed,
            head_dim: false,
            windows: false,
            ..Limits::of(&self.decoder())
        }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, true)?;
        config::check_activation(config, &["hidden_act"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
        let bias = config.maybe_flag("use_bias")?.unwrap_or(true);
        (model.qkv_bias, model.o_bias, model.mlp_bias) = (bias, bias, bias);
        // llama.cpp ignores it, which only matters in contexts that are longer.
        model.window = config.maybe_size("sliding_window")?.map(Window::everywhere);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::UP => "mlp.c_fc",
            Part::DOWN => "mlp.c_proj",
            _ => tensor.source,
        }
    }
}
