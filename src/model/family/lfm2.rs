//! Liquid's LFM2, dense and with experts: short convolutions, and attention in some blocks.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::limits::Limits;
use crate::model::mapping::TensorMapping;
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::mixer::short_conv::ShortConv;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, OutsideNames, Part, config, mixture};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Dense.
pub struct Lfm2;

/// With experts behind some blocks.
pub struct Lfm2Moe;

fn plain() -> Decoder {
    Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
}

/// Puts a short convolution in the place of attention. `conv`: where.
fn arrange(model: Decoder, conv: &[bool], taps: usize, architecture: &'static dyn Architecture) -> Model {
    let mixer = ShortConv { hidden: model.hidden, taps };
    let mut model = model.build(architecture);
    // The last norm has the name of another in llama.cpp.
    model.norm.part = Part("token_embd_norm");
    for (block, _) in model.blocks.iter_mut().zip(conv).filter(|(_, conv)| **conv) {
        block.halves[0] = HalfConfig { mixer: mixer.into(), ..block.halves[0].clone() };
    }
    model
}

fn read(architecture: &'static dyn Architecture, config: &Config, experts: bool) -> Result<Model> {
    let usual = serde_json::json!({
        "rms_norm_eps": config.maybe_positive("norm_eps")?,
        "intermediate_size": config.maybe_size("block_ff_dim")?,
        "tie_word_embeddings": config.get("tie_embedding").cloned(),
    });
    let config = &config.clone().with_defaults(usual);
    let mut model = config::read(architecture, config, true)?;
    if config.flag("conv_bias")? {
        return Err(config::refused(config, "conv_bias is not supported"));
    }
    let types = config::layer_types(config, model.blocks, &["conv", "full_attention"])?;
    let types =
        types.ok_or_else(|| config.unsupported("it does not say which blocks are convolutions (layer_types)"))?;
    let conv: Vec<bool> = types.iter().map(|kind| kind == "conv").collect();
    let taps = config.size("conv_L_cache")?;
    if !experts && config.maybe_flag("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        let mut width = 2 * model.ffn / 3;
        if let Some(factor) = config.maybe_positive("block_ffn_dim_multiplier")? {
            width = (factor * width as f64) as usize;
        }
        model.ffn = width.next_multiple_of(config.maybe_size("block_multiple_of")?.unwrap_or(256));
    }
    if experts {
        let width = config.size("moe_intermediate_size")?;
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        model.dense = config.get("num_dense_layers").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        let norm = config.maybe_flag("norm_topk_prob")?.unwrap_or(true);
        let scale = config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0);
        if !norm || scale != 1.0 {
            return Err(config::refused(
                config,
                "norm_topk_prob false or routed_scaling_factor other than 1 is not supported",
            ));
        }
        if config.maybe_flag("use_expert_bias")? == Some(false) {
            return Err(config::refused(config, "use_expert_bias false is not supported"));
        }
        model.experts = Some(Experts {
            scoring: Scoring::Sigmoid,
            selection_bias: true,
            ..Experts::plain(count, config.size("num_experts_per_tok")?, width)
        });
        model.size_key("expert_feed_forward_length", width);
        model.size_key("leading_dense_block_count", model.dense);
        model.size_key("expert_gating_func", 2);
    }
    let heads = conv.iter().map(|&conv| if conv { 0 } else { model.kv_heads as u32 }).collect();
    model.key("attention.head_count_kv", Value::Array(Array::U32(heads)));
    model.size_key("shortconv.l_cache", taps);
    Ok(arrange(model, &conv, taps, architecture))
}

fn read_gguf(architecture: &'static dyn Architecture, keys: &Keys, mut model: Decoder) -> Result<Model> {
    let usual = Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) };
    mixture::read_gguf(keys, &mut model, usual)?;
    let heads = keys.per_block("attention.head_count_kv")?;
    let heads = heads.ok_or_else(|| keys.wrong("it does not say which blocks have attention"))?;
    let conv: Vec<bool> = heads.iter().map(|&n| n == 0).collect();
    let taps = keys.size("shortconv.l_cache")?;
    Ok(arrange(model, &conv, taps, architecture))
}

fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::ATTN_NORM => "operator_norm",
        Part::FFN_NORM => "ffn_norm",
        Part::O => "self_attn.out_proj",
        Part::Q_NORM => "self_attn.q_layernorm",
        Part::K_NORM => "self_attn.k_layernorm",
        Part::GATE => "feed_forward.w1",
        Part::UP => "feed_forward.w3",
        Part::DOWN => "feed_forward.w2",
        Part::ROUTER => "feed_forward.gate",
        Part::SELECTION_BIAS => "feed_forward.expert_bias",
        Part::EXPERT_GATES => "feed_forward.experts.{}.w1",
        Part::EXPERT_UPS => "feed_forward.experts.{}.w3",
        Part::EXPERT_DOWNS => "feed_forward.experts.{}.w2",
        _ => tensor.source,
    }
}

fn mapping(tensor: &BlockTensor) -> TensorMapping {
    match tensor.part {
        Part::SHORTCONV => {
            TensorMapping { stored: Some(vec![tensor.shape[0], 1, tensor.shape[1]]), ..TensorMapping::AS_IS }
        }
        _ if tensor.source.contains("{}") => TensorMapping::STACKED,
        _ => TensorMapping::AS_IS,
    }
}

const OUTSIDE: OutsideNames = OutsideNames {
    embedding: "model.embed_tokens",
    positions: "",
    blocks: "model.layers",
    norm: "model.embedding_norm",
    output: "lm_head",
};

/// What the two do alike.
macro_rules! family {
    ($name:ident, $gguf:literal, $types:expr, $examples:literal, $experts:literal) => {
        impl Architecture for $name {
            fn gguf(&self) -> &'static str {
                $gguf
            }

            fn model_types(&self) -> &'static [&'static str] {
                $types
            }

            fn examples(&self) -> &'static str {
                $examples
            }

            fn decoder(&self) -> Decoder {
                plain()
            }

            fn limits(&self) -> Limits {
                Limits { head_dim: false, ..Limits::of(&self.decoder()) }
            }

            fn sample(&'static self) -> Model {
                let experts = $experts.then(|| Experts::plain(2, 1, 8));
                let decoder = Decoder { experts, ..self.decoder().sized() };
                arrange(Decoder { blocks: 2, ..decoder }, &[true, false], 3, self)
            }

            fn read(&'static self, config: &Config) -> Result<Model> {
                read(self, config, $experts)
            }

            fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
                read_gguf(self, keys, decoder)
            }

            fn source(&self, tensor: &BlockTensor) -> &'static str {
                source(tensor)
            }

            fn outside(&self) -> OutsideNames {
                OUTSIDE
            }

            fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
                mapping(tensor)
            }
        }
    };
}

family!(Lfm2, "lfm2", &["lfm2"], "LFM2 and LFM2.5 350M to 2.6B, LFM2-VL", false);
family!(Lfm2Moe, "lfm2moe", &["lfm2_moe"], "LFM2-8B-A1B, LFM2-24B-A2B", true);
