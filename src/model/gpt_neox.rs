//! EleutherAI's GPT-NeoX, and Pythia.

use super::gguf_keys::Keys;
use super::mapping::Pick;
use super::mixer::Mixer;
use super::mixer::mlp::MlpLayers;
use super::{
    Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Norm, OutsideNames, Part, TensorMapping, config,
};
use crate::error::Result;
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

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        model.kv_heads = model.heads;
        config::check_activation(config, &["hidden_act"], Activation::Gelu, "gelu")?;
        let parallel = config.get("use_parallel_residual").map_or(Ok(true), |_| config.flag("use_parallel_residual"));
        model.parallel = parallel?;
        if config.get("attention_bias").is_some() && !config.flag("attention_bias")? {
            return Err(config::refused(config, "attention_bias false is not supported"));
        }
        // Older configurations have names of their own.
        let rope = model.rope.as_mut().expect("it was read");
        if let Some(base) = config.maybe_positive("rotary_emb_base")? {
            rope.base = base;
        }
        let inside = config.object("rope_parameters")?.is_some_and(|p| p.get("partial_rotary_factor").is_some());
        if !inside && config.get("partial_rotary_factor").is_none() {
            let part = config.maybe_positive("rotary_pct")?.unwrap_or(0.25);
            rope.rotary = (model.head_dim as f64 * part) as usize;
            if rope.rotary == 0 || !rope.rotary.is_multiple_of(2) || rope.rotary > model.head_dim {
                return Err(config.unsupported(&format!("rotary_pct {part} of head_dim {}", model.head_dim)));
            }
        }
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
