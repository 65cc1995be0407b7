//! Arcee's AFM.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, Decoder, Model, QueryRows, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Llama with an MLP of two layers and a squared ReLU between them.
pub struct Arcee;

impl Architecture for Arcee {
    fn gguf(&self) -> &'static str {
        "arcee"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["arcee"]
    }

    fn examples(&self) -> &'static str {
        "AFM-4.5B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn decoder(&self) -> Decoder {
        Decoder { activation: Activation::ReluSquared, mlp: MlpLayers::Plain, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { rope_factors: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "relu2")?;
        model.mlp_bias = config.flag("mlp_bias")?;
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}
