//! NVIDIA's Nemotron 4 and Minitron.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::Change;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::rope::Scaling;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Norm, Part, TensorMapping, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Norms that subtract the mean and store their gain less one, half of each head turned, and an MLP with the square of what is above
/// zero.
pub struct Nemotron;

impl Architecture for Nemotron {
    fn gguf(&self) -> &'static str {
        "nemotron"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["nemotron"]
    }

    fn examples(&self) -> &'static str {
        "Nemotron 3 8B, Nemotron 4, Minitron 4B and 8B"
    }

    fn decoder(&self) -> Decoder {
        let (activation, mlp) = (Activation::ReluSquared, MlpLayers::Plain);
        Decoder { norm: Norm::Layer, activation, mlp, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits {
            output: Place::Needed,
            o_bias: Place::Optional,
            mlp_bias: Place::Optional,
            partial_rotary: true,
            ..Limits::of(&self.decoder())
        }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let part = ["partial_rotary_factor", "rope_percent"].iter().find_map(|key| config.get(key).cloned());
        let part = part.unwrap_or_else(|| 0.5.into());
        let config =
            &config.clone().with_defaults(serde_json::json!({ "partial_rotary_factor": part, "norm_eps": 1e-5 }));
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "relu2")?;
        if model.tied {
            return Err(config::refused(config, "tie_word_embeddings is not supported"));
        }
        if model.heads * model.head_dim != model.hidden {
            return Err(config::refused(
                config,
                "head_dim other than hidden_size / num_attention_heads is not supported",
            ));
        }
        model.mlp_bias = config.flag("mlp_bias")?;
        match model.rope.as_ref().map(|rope| &rope.scaling) {
            Some(Scaling::None) => model.key("rope.scaling.type", "none".into()),
            Some(Scaling::Linear(_)) => {}
            _ => return Err(config::refused(config, "rope scaling other than linear is not supported")),
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        match (tensor.part, kind) {
            (Part::ATTN_NORM | Part::FFN_NORM, Kind::Weight) => Change::PlusOne.into(),
            _ => TensorMapping::AS_IS,
        }
    }

    fn norm_mapping(&self) -> TensorMapping {
        Change::PlusOne.into()
    }
}
