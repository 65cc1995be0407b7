//! Zhipu's GLM-4 (0414).

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, QueryRows, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Norms in front of and behind attention and MLP, half of each head turned in neighbouring pairs, gate and up in one layer.
pub struct Glm4;

impl Architecture for Glm4 {
    fn gguf(&self) -> &'static str {
        "glm4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["glm4"]
    }

    fn examples(&self) -> &'static str {
        "GLM-4-0414 9B and 32B, GLM-Z1"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn decoder(&self) -> Decoder {
        Decoder { post_norms: true, mlp: MlpLayers::Fused, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        // attention_bias is about q, k and v alone.
        model.o_bias = false;
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ATTN_POST_NORM => "post_self_attn_layernorm",
            Part::FFN_POST_NORM => "post_mlp_layernorm",
            _ => tensor.source,
        }
    }
}
