//! NVIDIA's Nemotron-H, Nemotron Nano v2 and Nemotron 3: every block is one half of Mamba-2, attention, an MLP, or experts.

use super::mamba2::{self, BACKBONE, Names};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::Attention;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mamba2::Mamba2;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::mixer::routing::Scoring;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, ExtraBlocks, Kind, Model, OutsideNames, Part, TensorMapping, TensorRole,
    TensorSpec, config, mixture,
};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;
use serde_json::json;

/// Dense.
pub struct NemotronH;

/// With experts, and maybe a block behind the others that predicts one token more.
pub struct NemotronHMoe;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Mamba,
    Attention,
    Mlp,
    Experts,
}

const NAMES: Names = Names {
    heads: "mamba_num_heads",
    head_dim: "mamba_head_dim",
    groups: "n_groups",
    state: "ssm_state_size",
    taps: "conv_kernel",
    conv_bias: "use_conv_bias",
    biases: &["use_bias", "mamba_proj_bias", "attention_bias", "mlp_bias"],
};

fn plain() -> Decoder {
    Decoder { explicit_head_dim: true, activation: Activation::ReluSquared, mlp: MlpLayers::Plain, ..Decoder::PLAIN }
}

/// What each block is: a letter each, or a list of words, for which there are two sets.
fn halves(config: &Config) -> Result<Vec<Half>> {
    let unknown = |kind: &str| config.unsupported(&format!("blocks of type '{kind}' are not supported"));
    let of = |kind: &str| match kind {
        "M" | "mamba" | "linear_attention" => Ok(Half::Mamba),
        "*" | "attention" | "full_attention" => Ok(Half::Attention),
        "-" | "mlp" => Ok(Half::Mlp),
        "E" | "moe" => Ok(Half::Experts),
        other => Err(unknown(other)),
    };
    let list = config.get("layers_block_type").or_else(|| config.get("layer_types"));
    let found: Vec<Half> =
        match (config.maybe_string("hybrid_override_pattern")?, list.and_then(|list| list.as_array())) {
            (Some(pattern), _) => pattern.chars().map(|letter| of(&letter.to_string())).collect::<Result<_>>()?,
            (None, Some(list)) => {
                list.iter().map(|kind| of(kind.as_str().unwrap_or_default())).collect::<Result<_>>()?
            }
            (None, None) => {
                return Err(config.unsupported("neither hybrid_override_pattern nor layers_block_type is there"));
            }
        };
    match config.maybe_size("num_hidden_layers")? {
        Some(n) if n != found.len() => {
            Err(config.unsupported(&format!("{} kinds of blocks, and num_hidden_layers is {n}", found.len())))
        }
        _ if found.is_empty() => Err(config.unsupported("there are no blocks")),
        _ => Ok(found),
    }
}

/// Experts of two layers, with one that every token goes to.
fn with_shared(decoder: &Decoder, experts: Experts, width: usize) -> Experts {
    Experts {
        activation: Activation::ReluSquared,
        layers: MlpLayers::Plain,
        scoring: Scoring::Sigmoid,
        selection_bias: true,
        shared: mixture::shared(decoder, width),
        ..experts
    }
}

fn arrange(decoder: Decoder, halves: &[Half], mamba: Mamba2, architecture: &'static dyn Architecture) -> Model {
    let norm = decoder.norm_of(Part::ATTN_NORM, "norm");
    let block = |half: &Half| {
        let mixer: Mixer = match (half, decoder.experts) {
            (Half::Mamba, _) => mamba.into(),
            (Half::Attention, _) => Attention::plain(decoder.heads, decoder.kv_heads, decoder.head_dim, None).into(),
            (Half::Experts, Some(experts)) => experts.into(),
            (Half::Mlp | Half::Experts, _) => decoder.mlp().into(),
        };
        BlockConfig { halves: vec![HalfConfig::new(Some(norm), mixer)] }
    };
    let blocks = halves.iter().map(block).collect();
    let mut model = decoder.build(architecture);
    model.blocks = blocks;
    // As llama.cpp has it, though nothing subtracts a mean.
    let [usual, own] = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"]
        .map(|key| format!("{}.{key}", architecture.gguf()));
    model.keys.iter_mut().filter(|(key, _)| *key == usual).for_each(|(key, _)| key.clone_from(&own));
    model
}

fn read(config: &Config) -> Result<Model> {
    let halves = halves(config)?;
    // Older and newer configurations call the same by several names.
    let first = |keys: [&str; 2]| config.get(keys.into_iter().find(|key| config.says(key)).unwrap_or(keys[0])).cloned();
    let (eps, head_dim) = (first(["layer_norm_epsilon", "rms_norm_eps"]), first(["head_dim", "attention_head_dim"]));
    let config = &config
        .clone()
        .with("rms_norm_eps", json!(eps))
        .with("head_dim", json!(head_dim))
        .with("num_hidden_layers", json!(halves.len()));
    config::check_activation(config, &["mlp_hidden_act"], Activation::ReluSquared, "relu2")?;
    config::check_activation(config, &["mamba_hidden_act"], Activation::Silu, "silu")?;
    let routed = halves.contains(&Half::Experts);
    if routed && halves.contains(&Half::Mlp) {
        return Err(config::refused(config, "blocks with an MLP beside blocks with experts are not supported"));
    }
    let architecture: &'static dyn Architecture = if routed { &NemotronHMoe } else { &NemotronH };
    let mut model = config::read(architecture, config, false)?;
    let mamba = NAMES.read(config, None, Some(model.norm_eps))?;
    model.context = mamba2::ANY_CONTEXT;
    if routed {
        let (count, used) = (config.size("n_routed_experts")?, config.size("num_experts_per_tok")?);
        let (width, shared) =
            (config.size("moe_intermediate_size")?, config.size("moe_shared_expert_intermediate_size")?);
        let [groups, of_groups] = ["n_group", "topk_group"].map(|key| config.maybe_size(key));
        let (groups, of_groups) = (groups?.unwrap_or(1), of_groups?.unwrap_or(1));
        if !count.is_multiple_of(groups) {
            return Err(config.unsupported(&format!("{count} experts do not divide into n_group {groups}")));
        }
        let experts = Experts {
            normed: config.get("norm_topk_prob").is_none() || config.flag("norm_topk_prob")?,
            scale: config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            groups: Some((groups, of_groups)).filter(|_| groups > 1),
            latent: config.maybe_size("moe_latent_size")?,
            ..with_shared(&model, Experts::plain(count, used, width), shared)
        };
        model.ffn = width;
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_feed_forward_length", shared);
        model.size_key("expert_shared_count", config.maybe_size("n_shared_experts")?.unwrap_or(1));
        model.size_key("expert_group_count", groups);
        model.size_key("expert_group_used_count", of_groups);
        model.key("expert_weights_norm", Value::Bool(experts.normed));
        model.key("expert_weights_scale", Value::F32(experts.scale));
        if let Some(width) = experts.latent {
            model.size_key("moe_latent_size", width);
        }
        model.experts = Some(experts);
    }
    // The width of Mamba-2 comes from its heads alone; and what is said of experts is for nothing without any.
    config.ignore(&["expand"]);
    if !routed {
        config.ignore(&OF_EXPERTS);
    }
    mamba2::put_keys(&mut model, &mamba);
    model.key("rope.scaling.finetuned", Value::Bool(false));
    let inside = |half: &Half| matches!(half, Half::Mlp | Half::Experts);
    model.key(FFN, mamba2::per_block(model.ffn, halves.iter().map(inside)));
    model.key(KV_HEADS, mamba2::per_block(model.kv_heads, halves.iter().map(|half| *half == Half::Attention)));
    model.rope = None;
    Ok(arrange(model, &halves, mamba, architecture))
}

/// Keys of experts.
const OF_EXPERTS: [&str; 10] = [
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "moe_latent_size",
    "routed_scaling_factor",
    "norm_topk_prob",
    "n_group",
    "topk_group",
];

const FFN: &str = "feed_forward_length";
const KV_HEADS: &str = "attention.head_count_kv";

fn read_gguf(architecture: &'static dyn Architecture, keys: &Keys, mut model: Decoder) -> Result<Model> {
    let list = |key: &str| keys.per_block(key)?.ok_or_else(|| keys.wrong(&format!("there is no list {key}")));
    let (ffn, kv_heads) = (list(FFN)?, list(KV_HEADS)?);
    let routed = keys.maybe_size("expert_count")?.is_some();
    let halves: Vec<Half> = ffn
        .iter()
        .zip(&kv_heads)
        .map(|pair| match pair {
            (0, 0) => Half::Mamba,
            (0, _) => Half::Attention,
            _ if routed => Half::Experts,
            _ => Half::Mlp,
        })
        .collect();
    let differ = |list: &[u64], usual: usize| list.iter().any(|&n| n != 0 && n != usual as u64);
    if differ(&ffn, model.ffn) || differ(&kv_heads, model.kv_heads) {
        return Err(keys.wrong("blocks of several widths are not supported"));
    }
    mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
    if let Some(experts) = &mut model.experts {
        let groups = keys.maybe_size("expert_group_count")?.zip(keys.maybe_size("expert_group_used_count")?);
        experts.groups = groups.filter(|(n, _)| *n > 1 && experts.count.is_multiple_of(*n));
        experts.latent = keys.maybe_size("moe_latent_size")?;
    }
    let mamba = mamba2::of_gguf(keys, Some(model.norm_eps))?;
    Ok(arrange(model, &halves, mamba, architecture))
}

fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::Q => "mixer.q_proj",
        Part::K => "mixer.k_proj",
        Part::V => "mixer.v_proj",
        Part::O => "mixer.o_proj",
        Part::UP => "mixer.up_proj",
        Part::DOWN => "mixer.down_proj",
        Part::ROUTER => "mixer.gate",
        Part::SELECTION_BIAS => "mixer.gate.e_score_correction_bias",
        Part::EXPERT_UPS => "mixer.experts.{}.up_proj",
        Part::EXPERT_DOWNS => "mixer.experts.{}.down_proj",
        Part::SHARED_UP => "mixer.shared_experts.up_proj",
        Part::SHARED_DOWN => "mixer.shared_experts.down_proj",
        Part::LATENT_DOWN => "mixer.fc1_latent_proj",
        Part::LATENT_UP => "mixer.fc2_latent_proj",
        part => mamba2::source(part).unwrap_or(tensor.source),
    }
}

/// What a block that predicts one token more has besides its halves: its name in the checkpoint and in GGUF, and whether it is a matrix.
const MTP: [(&str, &str, bool); 4] = [
    ("mtp.layers.0.enorm", "enorm", false),
    ("mtp.layers.0.hnorm", "hnorm", false),
    ("mtp.layers.0.eh_proj", "eh_proj", true),
    ("mtp.layers.1.final_layernorm", "shared_head_norm", false),
];

/// Two layers of the checkpoint, attention and experts, which are one block of the file.
fn extra_blocks(model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
    let whole = has("mtp.layers.0.eh_proj.weight") && has("mtp.layers.1.mixer.gate.weight");
    // llama.cpp runs one, and no more.
    if !whole || has("mtp.layers.2.norm.weight") {
        return None;
    }
    let half = |fits: fn(&Mixer) -> bool| model.blocks.iter().find(|block| fits(&block.halves[0].mixer));
    let mut halves = half(|mixer| matches!(mixer, Mixer::Attention(_)))?.halves.clone();
    let mut experts = half(|mixer| matches!(mixer, Mixer::Experts(_)))?.halves[0].clone();
    experts.norm.as_mut()?.part = Part::ATTN_POST_NORM;
    halves.push(experts);
    let n = model.blocks.len();
    let mut longer = model.clone();
    longer.blocks.push(BlockConfig { halves });
    let inside = longer.named(format!("{}.{n}.", model.architecture.outside().blocks));
    let of_halves = longer.block(n).into_iter().map(|spec| {
        let rest = spec.source.strip_prefix(&inside).unwrap_or(&spec.source);
        let source = format!("mtp.layers.{}.{rest}", spec.half);
        TensorSpec { source, role: TensorRole::Other, block: None, reads: None, ..spec }
    });
    let own = MTP.map(|(source, name, matrix)| {
        let shape = if matrix { vec![model.hidden, 2 * model.hidden] } else { vec![model.hidden] };
        let (source, gguf) = (format!("{source}.weight"), format!("blk.{n}.nextn.{name}.weight"));
        TensorSpec::plain(source, gguf, shape, TensorRole::Other)
    });
    let tensors = of_halves.chain(own).collect();
    let mut keys = vec![("nextn_predict_layers", Value::U32(1))];
    for key in [FFN, KV_HEADS] {
        let full = format!("{}.{key}", model.architecture.gguf());
        let list = model.keys.iter().find(|(own, _)| *own == full).and_then(|(_, value)| value.as_array())?;
        let mut numbers: Vec<u32> = (0..list.len()).filter_map(|i| Some(list.get(i)?.as_u64()? as u32)).collect();
        numbers.push(numbers.iter().copied().max()?);
        keys.push((key, Value::Array(Array::U32(numbers))));
    }
    Some(ExtraBlocks { count: 1, tensors, keys })
}

/// What the two do alike.
macro_rules! family {
    ($name:ident, $gguf:literal, $examples:literal, $routed:literal) => {
        impl Architecture for $name {
            fn gguf(&self) -> &'static str {
                $gguf
            }

            fn model_types(&self) -> &'static [&'static str] {
                &["nemotron_h"]
            }

            fn examples(&self) -> &'static str {
                $examples
            }

            fn decoder(&self) -> Decoder {
                plain()
            }

            fn outside(&self) -> OutsideNames {
                BACKBONE
            }

            fn limits(&self) -> Limits {
                Limits { o_bias: Place::Optional, mlp_bias: Place::Optional, ..Limits::of(&self.decoder()) }
            }

            fn sample(&'static self) -> Model {
                let mamba = Mamba2 { heads: 2, head_dim: 8, groups: 1, state: 4, taps: 4, norm: Some(1e-5) };
                let inside = if $routed { Half::Experts } else { Half::Mlp };
                let decoder = Decoder { blocks: 3, ..self.decoder().sized() };
                let experts = $routed.then(|| with_shared(&decoder, Experts::plain(2, 1, 8), 8));
                arrange(Decoder { experts, ..decoder }, &[Half::Mamba, Half::Attention, inside], mamba, self)
            }

            fn read(&'static self, config: &Config) -> Result<Model> {
                read(config)
            }

            fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
                read_gguf(self, keys, decoder)
            }

            fn source(&self, tensor: &BlockTensor) -> &'static str {
                source(tensor)
            }

            fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
                mamba2::mapping(tensor, kind)
            }

            fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
                extra_blocks(model, has)
            }
        }
    };
}

family!(NemotronHMoe, "nemotron_h_moe", "Nemotron 3 Nano 30B-A3B, 3.5 Lightning, Super 120B-A12B", true);
family!(NemotronH, "nemotron_h", "Nemotron-H 8B to 56B, Nemotron Nano 9B and 12B v2", false);
