//! Microsoft's Phi 1, 1.5 and 2.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Norm, OutsideNames, Part, config};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Attention and MLP side by side behind one norm that subtracts the mean, a part of each head turned, and biases everywhere, beside
/// the output matrix too.
pub struct Phi2;

impl Architecture for Phi2 {
    fn gguf(&self) -> &'static str {
        "phi2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["phi"]
    }

    fn examples(&self) -> &'static str {
        "Phi 1, Phi 1.5, Phi 2"
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            norm: Norm::Layer,
            parallel: true,
            shared_norm: true,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            activation: Activation::GeluTanh,
            mlp: MlpLayers::Plain,
            ..Decoder::PLAIN
        }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, head_dim: false, partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &config.clone().with_defaults(serde_json::json!({ "partial_rotary_factor": 0.5 }));
        let model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "gelu_new")?;
        if config.flag("qk_layernorm")? {
            return Err(config::refused(config, "qk_layernorm is not supported"));
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::O => "self_attn.dense",
            Part::UP => "mlp.fc1",
            Part::DOWN => "mlp.fc2",
            _ => tensor.source,
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "model.embed_tokens",
            positions: "",
            blocks: "model.layers",
            norm: "model.final_layernorm",
            output: "lm_head",
        }
    }

    fn settle(&self, model: &mut Model, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        model.settle_output_bias(checkpoint)
    }
}
