//! Tencent's Hunyuan 1, dense and with experts.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::rope::{self, Rope};
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config, mixture};
use crate::source::config::Config;

/// Llama with norms of queries and keys behind the rotary embedding.
pub struct HunyuanDense;

/// The same with experts, and an MLP beside them.
pub struct HunyuanMoe;

/// A context that llama.cpp gives models whose configuration names a base to be stretched.
const STRETCHED: usize = 256 << 10;

fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let mut model = config::read(architecture, config, true)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    for key in ["mlp_bias", "use_cla", "use_mla"] {
        if config.flag(key)? {
            return Err(config::refused(config, &format!("{key} is not supported")));
        }
    }
    if model.qkv_bias || model.o_bias {
        return Err(config::refused(config, "attention_bias is not supported"));
    }
    if config.maybe_flag("use_qk_norm")? == Some(false) {
        return Err(config::refused(config, "use_qk_norm false is not supported"));
    }
    model.explicit_head_dim = true;
    let scaling = rope::parameters(config)?;
    let alpha = scaling.as_ref().map(|scaling| scaling.maybe_positive("alpha")).transpose()?.flatten();
    if let (Some(alpha), Some(rope)) = (alpha, &model.rope) {
        // The base grows once and for all (NTK-aware scaling).
        let d = model.head_dim as f64;
        model.rope = Some(Rope::plain(rope.base * alpha.powf(d / (d - 2.0)), rope.rotary));
        model.context = STRETCHED;
    }
    Ok(model)
}

fn build(model: Decoder, architecture: &'static dyn Architecture) -> Model {
    let mut model = model.build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::Attention(attention) = &mut half.mixer {
            attention.norms_behind_rope = true;
        }
    }
    model
}

fn plain() -> Decoder {
    Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
}

fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::Q_NORM => "self_attn.query_layernorm",
        Part::K_NORM => "self_attn.key_layernorm",
        Part::ROUTER => "mlp.gate.wg",
        Part::SHARED_GATE => "mlp.shared_mlp.gate_proj",
        Part::SHARED_UP => "mlp.shared_mlp.up_proj",
        Part::SHARED_DOWN => "mlp.shared_mlp.down_proj",
        _ => tensor.source,
    }
}

impl Architecture for HunyuanDense {
    fn gguf(&self) -> &'static str {
        "hunyuan-dense"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["hunyuan_v1_dense"]
    }

    fn examples(&self) -> &'static str {
        "Hunyuan 0.5B to 7B"
    }

    fn decoder(&self) -> Decoder {
        plain()
    }

    fn sample(&'static self) -> Model {
        build(self.decoder().sized(), self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(build(read(self, config)?, self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(build(decoder, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }
}

impl Architecture for HunyuanMoe {
    fn gguf(&self) -> &'static str {
        "hunyuan-moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["hunyuan_v1_moe"]
    }

    fn examples(&self) -> &'static str {
        "Hunyuan-A13B"
    }

    fn decoder(&self) -> Decoder {
        plain()
    }

    fn sample(&'static self) -> Model {
        build(Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        // Lists have a number for each block, which has to be the same for all.
        let even = |key: &str| -> Result<Option<usize>> {
            match config.get(key) {
                Some(serde_json::Value::Array(list)) if list.iter().all(|n| Some(n) == list.first()) => {
                    Ok(list.first().and_then(serde_json::Value::as_u64).map(|n| n as usize))
                }
                Some(serde_json::Value::Array(_)) => {
                    Err(config::refused(config, &format!("{key} of several values is not supported")))
                }
                _ => config.maybe_size(key),
            }
        };
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        let used = even("moe_topk")?.ok_or_else(|| config.unsupported("it does not say moe_topk"))?;
        // The code that came with the model has experts of this width, whatever moe_intermediate_size says.
        let width = model.ffn;
        let shared = even("num_shared_expert")?.unwrap_or(1);
        model.experts = Some(Experts { shared: mixture::shared(&model, width), ..Experts::plain(count, used, width) });
        model.size_key("expert_shared_feed_forward_length", width);
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_count", shared);
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts::plain(0, 0, 0))?;
        Ok(build(model, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }
}
