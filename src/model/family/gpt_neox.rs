//! EleutherAI's GPT-NeoX, and Pythia.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::Pick;
use crate::model::mixer::Mixer;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Norm, OutsideNames, Part, TensorMapping, config,
};
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Attention and MLP side by side, norms that subtract the mean, q, k and v in one layer whose rows are sorted by heads in
/// the checkpoint, and a part of each head turned.
pub struct GptNeoX;

impl Architecture for GptNeoX {
    fn gguf(&self) -> &'static str {
        "gptneox"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_neox"]
    }

    fn examples(&self) -> &'static str {
        "GPT-NeoX 20B, Pythia"
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            norm: Norm::Layer,
            parallel: true,
            fused_qkv: true,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            activation: Activation::Gelu,
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
        // The parameters have other names outside their object.
        let base = config.maybe_positive("rotary_emb_base")?.unwrap_or(1e4);
        let part = config.maybe_positive("rotary_pct")?.unwrap_or(0.25);
        let config = &config.clone().with("rope_theta", base.into()).with("partial_rotary_factor", part.into());
        let mut model = config::read(self, config, false)?;
        model.kv_heads = model.heads;
        config::check_activation(config, &["hidden_act"], Activation::Gelu, "gelu")?;
        model.parallel = config.maybe_flag("use_parallel_residual")?.unwrap_or(true);
        let bias = config.maybe_flag("attention_bias")?.unwrap_or(true);
        (model.qkv_bias, model.o_bias) = (bias, bias);
        model.key("use_parallel_residual", Value::Bool(model.parallel));
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        model.parallel = keys.maybe("use_parallel_residual").and_then(Value::as_bool).unwrap_or(true);
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::QKV => "attention.query_key_value",
            Part::O => "attention.dense",
            Part::UP => "mlp.dense_h_to_4h",
            Part::DOWN => "mlp.dense_4h_to_h",
            _ => tensor.source,
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "gpt_neox.embed_in",
            positions: "",
            blocks: "gpt_neox.layers",
            norm: "gpt_neox.final_layer_norm",
            output: "embed_out",
        }
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        match (tensor.part, &block.halves[0].mixer) {
            (Part::QKV, Mixer::Attention(own)) => Pick::ByHeads { heads: own.heads, head_dim: own.head_dim }.into(),
            _ => TensorMapping::AS_IS,
        }
    }
}
