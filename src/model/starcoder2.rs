//! BigCode's StarCoder 2.

use super::form::{Mlp, Window};
use super::{Architecture, Form, MlpLayers, Model, Norm, Part, sizes};
use crate::error::Result;
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

    fn form(&self) -> Form {
        let mlp = Mlp { activation: Activation::GeluTanh, layers: MlpLayers::Plain };
        Form { norm: Norm::Layer, mlp, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, true)?;
        sizes::check_activation(config, &["hidden_act"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
        let bias = config.get("use_bias").map_or(Ok(true), |_| config.flag("use_bias"))?;
        (model.form.qkv_bias, model.form.o_bias, model.form.mlp_bias) = (bias, bias, bias);
        // llama.cpp ignores it, which only matters in contexts that are longer.
        model.form.window = config.maybe_size("sliding_window")?.map(|tokens| Window { tokens, period: None });
        Ok(model)
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::Up => "mlp.c_fc",
            Part::Down => "mlp.c_proj",
            _ => part.usual_source(),
        }
    }
}
