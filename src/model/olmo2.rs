//! Ai2's OLMo 2.

use super::gguf_keys::Keys;
use super::mixer::attention::HeadNorms;
use super::{Architecture, BlockTensor, Decoder, Model, Part, config};
use crate::error::Result;
use crate::source::config::Config;

/// Norms behind attention and MLP instead of in front of them, and norms of queries and keys over all heads at once.
pub struct Olmo2;

impl Architecture for Olmo2 {
    fn gguf(&self) -> &'static str {
        "olmo2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmo2"]
    }

    fn examples(&self) -> &'static str {
        "OLMo 2 1B to 32B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { pre_norms: false, post_norms: true, head_norms: HeadNorms::Whole, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if model.tied {
            return Err(config::refused(config, "an embedding that is the output matrix, too, is not supported"));
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_POST_NORM => "post_feedforward_layernorm",
            _ => tensor.source,
        }
    }
}
