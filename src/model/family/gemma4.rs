//! Google's Gemma 4, text only: dense, with experts beside the MLP, and with embeddings of tokens for each block (E2B, E4B).

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::limits::Limits;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{HeadNorms, KeysValues};
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::mixer::per_layer_gate::PerLayerGate;
use crate::model::per_layer::PerLayer;
use crate::model::rope::{Rope, Scaling};
use crate::model::{Architecture, BlockTensor, Decoder, Kind, Model, Part, config, gguf_keys};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// Values behind a norm, two kinds of blocks with heads of their own, and a factor behind each block.
pub struct Gemma4;

impl Part {
    /// By what the stream is multiplied behind a block.
    const LAYER_OUTPUT_SCALE: Part = Part("layer_output_scale");
}

/// What is not said for all blocks at once.
struct Blocks {
    /// Those with a window.
    local: Vec<bool>,
    /// Tokens of it.
    window: usize,
    /// Numbers of a head, key heads, and rotary embedding, of blocks with a window and of the others.
    kinds: [Kinds; 2],
    /// Width of the MLP.
    ffn: Vec<usize>,
    /// So many blocks, the last ones, use keys and values of earlier ones.
    shared: usize,
    /// Numbers of a token's embedding for each block.
    per_layer: Option<usize>,
    /// The stream is multiplied behind each block.
    scaled: bool,
}

struct Kinds {
    head_dim: usize,
    kv_heads: usize,
    rope: Rope,
    /// Values are the keys.
    same: bool,
}

/// What Gemma 3n and 4 have in common.
pub(super) fn plain() -> Decoder {
    Decoder {
        activation: Activation::GeluTanh,
        post_norms: true,
        head_norms: HeadNorms::PerHead,
        attention_scale: Some(1.0),
        explicit_head_dim: true,
        ..Decoder::PLAIN
    }
}

/// Turns the first pairs of a head alone, with the frequencies of all: the others are divided by so much that they stay.
fn proportional(base: f64, head_dim: usize, part: f64) -> Rope {
    let turned = (head_dim as f64 * part / 2.0) as usize;
    let factors = (0..head_dim / 2).map(|i| if i < turned { 1.0 } else { 1e30 }).collect();
    Rope { scaling: Scaling::Factors(factors), ..Rope::plain(base, head_dim) }
}

fn build(mut decoder: Decoder, blocks: &Blocks, architecture: &'static dyn Architecture) -> Model {
    decoder.embedding_scale = (decoder.hidden as f32).sqrt();
    let (eps, activation, rows) = (decoder.norm_eps, decoder.activation, decoder.vocab);
    let mut model = decoder.build(architecture);
    for (i, block) in model.blocks.iter_mut().enumerate() {
        let kind = blocks.kind(i);
        for half in &mut block.halves {
            match &mut half.mixer {
                Mixer::Attention(own) => {
                    (own.head_dim, own.kv_heads, own.rope) = (kind.head_dim, kind.kv_heads, Some(kind.rope.clone()));
                    own.window = blocks.local[i].then_some(blocks.window);
                    own.value_norm = true;
                    if kind.same {
                        own.keys_values = KeysValues::Same;
                    }
                }
                Mixer::Mlp(mlp) => mlp.width = blocks.ffn[i],
                Mixer::Experts(experts) => experts.shared.iter_mut().for_each(|mlp| mlp.width = blocks.ffn[i]),
                _ => {}
            }
        }
        if let Some(width) = blocks.per_layer {
            let post = crate::model::NormConfig {
                part: Part::PER_LAYER_POST_NORM,
                source: "post_per_layer_input_norm",
                kind: crate::model::Norm::Rms,
                bias: false,
                eps,
            };
            let gate = HalfConfig::new(None, PerLayerGate { block: i, width, activation });
            block.halves.push(HalfConfig { post_norm: Some(post), ..gate });
        }
        if let Some(last) = block.halves.last_mut() {
            last.output_scale = blocks.scaled.then_some(Part::LAYER_OUTPUT_SCALE);
        }
    }
    model.share_keys_values(blocks.shared);
    model.per_layer = blocks.per_layer.map(|width| PerLayer { width, rows, eps });
    let of_full = blocks.local.iter().any(|local| !local);
    if let (true, Scaling::Factors(factors)) = (of_full, &blocks.kinds[1].rope.scaling) {
        model.vectors = vec![(gguf_keys::ROPE_FACTORS, factors.clone())];
    }
    model
}

impl Blocks {
    fn kind(&self, block: usize) -> &Kinds {
        &self.kinds[usize::from(!self.local[block])]
    }
}

fn mixture(decoder: &Decoder, count: usize, used: usize, width: usize) -> Experts {
    Experts {
        layers: MlpLayers::Fused,
        shared: Some(decoder.mlp()),
        beside: Some(decoder.norm_eps),
        ..Experts::plain(count, used, width)
    }
}

/// What `per_layer_config` says of the blocks without a window, which has to be the same for all of them and of no other.
fn said_by_block(config: &Config, key: &str, local: &[bool]) -> Result<Option<usize>> {
    const KNOWN: [&str; 2] = ["head_dim", "num_key_value_heads"];
    let Some(all) = config.object("per_layer_config")? else { return Ok(None) };
    let mut found = Vec::new();
    for (i, own) in all.json().as_object().into_iter().flatten() {
        let of_full = i.parse::<usize>().is_ok_and(|i| local.get(i) == Some(&false));
        let keys = own.as_object().into_iter().flatten();
        if !of_full || keys.clone().any(|(key, _)| !KNOWN.contains(&key.as_str())) {
            return Err(config::refused(config, &format!("per_layer_config of block {i}, {own}, is not supported")));
        }
        found.push(own.get(key).and_then(serde_json::Value::as_u64).map(|n| n as usize));
    }
    let whole = local.iter().filter(|local| !**local).count();
    match found.first().copied().flatten() {
        Some(n) if found.len() == whole && found.iter().all(|own| *own == Some(n)) => Ok(Some(n)),
        None if found.iter().all(Option::is_none) => Ok(None),
        _ => Err(config::refused(config, &format!("per_layer_config with several values of {key} is not supported"))),
    }
}

/// Reads what each kind of block has.
fn kinds(config: &Config, model: &Decoder, local: &[bool]) -> Result<[Kinds; 2]> {
    let parameters = config.object("rope_parameters")?;
    let of = |kind: &str| parameters.as_ref().map(|all| all.object(kind)).transpose().map(Option::flatten);
    let local_rope = match of("sliding_attention")? {
        Some(own) => Rope::of(config, Some(own), model.head_dim)?,
        None => Rope::plain(1e4, model.head_dim),
    };
    // Newer versions of transformers say by block what earlier ones said of all blocks without a window.
    let of_full = |key: &str| said_by_block(config, key, local);
    let head_dim = match config.maybe_size("global_head_dim")? {
        Some(own) => own,
        None => of_full("head_dim")?.unwrap_or(512),
    };
    let full_rope = match of("full_attention")? {
        None => proportional(1e6, head_dim, 0.25),
        Some(own) if own.maybe_string("rope_type")?.as_deref() == Some("proportional") => {
            let part = own.maybe_positive("partial_rotary_factor")?.unwrap_or(1.0);
            proportional(own.maybe_positive("rope_theta")?.unwrap_or(1e6), head_dim, part)
        }
        Some(_) => {
            return Err(config::refused(config, "full attention without rope_type 'proportional' is not supported"));
        }
    };
    let same = config.flag("attention_k_eq_v")?;
    let global = config.maybe_size("num_global_key_value_heads")?.filter(|_| same);
    let kv_heads = match global {
        Some(own) => own,
        None => of_full("num_key_value_heads")?.unwrap_or(model.kv_heads),
    };
    if !model.heads.is_multiple_of(kv_heads) {
        return Err(
            config.unsupported(&format!("{} heads cannot share {kv_heads} key-value heads evenly", model.heads))
        );
    }
    Ok([
        Kinds { head_dim: model.head_dim, kv_heads: model.kv_heads, rope: local_rope, same: false },
        Kinds { head_dim, kv_heads, rope: full_rope, same },
    ])
}

impl Architecture for Gemma4 {
    fn gguf(&self) -> &'static str {
        "gemma4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"]
    }

    fn examples(&self) -> &'static str {
        "Gemma 4 E2B, E4B, 12B, 31B, 26B-A4B"
    }

    fn decoder(&self) -> Decoder {
        plain()
    }

    fn limits(&self) -> Limits {
        Limits { rope_factors: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let decoder = self.decoder().sized();
        let kind = || Kinds { head_dim: 4, kv_heads: 2, rope: Rope::plain(1e4, 4), same: false };
        let blocks = Blocks {
            local: vec![true],
            window: 4,
            kinds: [kind(), kind()],
            ffn: vec![8],
            shared: 0,
            per_layer: None,
            scaled: true,
        };
        build(decoder, &blocks, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &config.clone().with_defaults(usual());
        config::check_activation(config, &["hidden_activation"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
        let mut model = config::read(self, config, true)?;
        model.explicit_head_dim = true;
        if config.flag("attention_bias")? {
            return Err(config::refused(config, "attention_bias is not supported"));
        }
        // Images and sounds see both ways; text does not.
        if config.maybe_string("use_bidirectional_attention")?.is_some_and(|kind| kind != "vision") {
            return Err(config::refused(config, "use_bidirectional_attention other than 'vision' is not supported"));
        }
        let n = model.blocks;
        let types = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            // Every sixth sees everything, and the last does.
            None => (0..n).map(|i| !(i + 1).is_multiple_of(6) && i + 1 != n).collect(),
        };
        let kinds = kinds(config, &model, &local)?;
        let shared = config.get("num_kv_shared_layers").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        if shared >= n.max(1) {
            return Err(
                config.unsupported(&format!("num_kv_shared_layers {shared} of {n} leaves no block to share with"))
            );
        }
        if shared > 0 && (shared + 2 > n || local[n - shared - 2..n - shared] != [true, false]) {
            let what = format!(
                "num_kv_shared_layers {shared}: the two blocks before must be one with a window and one without"
            );
            return Err(config::refused(config, &what));
        }
        let wide = config.flag("use_double_wide_mlp")?;
        let ffn: Vec<usize> = (0..n).map(|i| if wide && i >= n - shared { 2 * model.ffn } else { model.ffn }).collect();
        let per_layer = config.get("hidden_size_per_layer_input").and_then(|n| n.as_u64()).filter(|&n| n > 0);
        let per_layer = per_layer.map(|n| n as usize);
        if per_layer.is_some() && config.maybe_size("vocab_size_per_layer_input")?.is_some_and(|n| n != model.vocab) {
            return Err(config::refused(config, "vocab_size_per_layer_input other than vocab_size is not supported"));
        }
        model.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
        let window = config.maybe_size("sliding_window")?.unwrap_or(512);
        if config.flag("enable_moe_block")? {
            let width = config::first_size(config, &["moe_intermediate_size", "expert_intermediate_size"])?;
            let used = config::first_size(config, &["top_k_experts", "num_experts_per_tok"])?;
            model.experts = Some(mixture(&model, config.size("num_experts")?, used, width));
            model.size_key("expert_feed_forward_length", width);
        }
        let [of_local, of_full] = &kinds;
        model.rope = Some(Rope::plain(of_full.rope.base, of_full.head_dim));
        model.size_key("attention.key_length", of_full.head_dim);
        model.size_key("attention.value_length", of_full.head_dim);
        model.size_key("attention.key_length_swa", of_local.head_dim);
        model.size_key("attention.value_length_swa", of_local.head_dim);
        model.size_key("rope.dimension_count_swa", of_local.rope.rotary);
        model.key("rope.freq_base_swa", Value::F32(of_local.rope.base as f32));
        model.size_key("attention.sliding_window", window);
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        model.size_key("attention.shared_kv_layers", shared);
        model.size_key("embedding_length_per_layer_input", per_layer.unwrap_or(0));
        if let Some(cap) = model.logit_cap {
            model.key("final_logit_softcapping", Value::F32(cap));
        }
        let numbers = |numbers: Vec<usize>| Value::Array(Array::U32(numbers.into_iter().map(|n| n as u32).collect()));
        if of_full.kv_heads != of_local.kv_heads {
            let heads = local.iter().map(|&own| kinds[usize::from(!own)].kv_heads).collect();
            model.key("attention.head_count_kv", numbers(heads));
        }
        if wide {
            model.key("feed_forward_length", numbers(ffn.clone()));
        }
        let blocks = Blocks { local, window, kinds, ffn, shared, per_layer, scaled: true };
        Ok(build(model, &blocks, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let n = model.blocks;
        let marks = keys.marks(PATTERN)?;
        let local = marks.ok_or_else(|| keys.wrong("there is no list of blocks with a window"))?;
        let kv_heads = keys.per_block("attention.head_count_kv")?.unwrap_or_else(|| vec![model.kv_heads as u64; n]);
        let of =
            |own: bool| local.iter().position(|&local| local == own).map_or(model.kv_heads, |i| kv_heads[i] as usize);
        let (of_local, of_full) = (of(true), of(false));
        if [of_local, of_full].iter().any(|&n| n == 0 || !model.heads.is_multiple_of(n)) {
            return Err(keys
                .wrong(&format!("{} heads, {of_local} and {of_full} key-value heads make no attention", model.heads)));
        }
        let head_dim = keys.maybe_size("attention.key_length_swa")?.unwrap_or(model.head_dim);
        let base = keys.maybe_number("rope.freq_base_swa")?.unwrap_or(1e4);
        let rotary = keys.maybe_size("rope.dimension_count_swa")?.unwrap_or(head_dim);
        let full_rope = model.rope.clone().unwrap_or_else(|| Rope::plain(1e6, model.head_dim));
        let first_full = local.iter().position(|local| !local);
        let same = first_full.is_some_and(|i| !keys.has(&format!("blk.{i}.attn_v.weight")));
        let shared = keys.maybe("attention.shared_kv_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
        if shared >= n {
            return Err(keys.wrong(&format!("{shared} of {n} blocks share keys and values")));
        }
        let per_layer = keys.maybe("embedding_length_per_layer_input").and_then(Value::as_u64).filter(|&n| n > 0);
        model.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
        if let Some(count) = keys.maybe_size("expert_count")? {
            let (used, width) = (keys.size("expert_used_count")?, keys.first_size("expert_feed_forward_length")?);
            let layers = match keys.has("blk.0.ffn_gate_up_exps.weight") {
                true => MlpLayers::Fused,
                false => MlpLayers::Gated,
            };
            model.experts = Some(Experts { layers, ..mixture(&model, count, used, width) });
        }
        let ffn = keys.per_block("feed_forward_length")?.unwrap_or_else(|| vec![model.ffn as u64; n]);
        let blocks = Blocks {
            local,
            window: keys.size("attention.sliding_window")?,
            kinds: [
                Kinds { head_dim, kv_heads: of_local, rope: Rope::plain(base, rotary), same: false },
                Kinds { head_dim: model.head_dim, kv_heads: of_full, rope: full_rope, same },
            ],
            ffn: ffn.into_iter().map(|n| n as usize).collect(),
            shared,
            per_layer: per_layer.map(|n| n as usize),
            scaled: keys.has("blk.0.layer_output_scale.weight"),
        };
        Ok(build(model, &blocks, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_NORM => "pre_feedforward_layernorm",
            Part::ROUTER => "router.proj",
            Part::EXPERT_GATE_UPS => "experts.gate_up_proj",
            Part::EXPERT_DOWNS => "experts.down_proj",
            _ => tensor.source,
        }
    }

    fn suffix(&self, tensor: &BlockTensor, kind: Kind) -> String {
        match tensor.part {
            Part::EXPERT_GATE_UPS | Part::EXPERT_DOWNS => String::new(),
            _ if tensor.bare => String::new(),
            _ => format!(".{}", kind.suffix()),
        }
    }
}

/// The key that marks blocks with a window.
const PATTERN: &str = "attention.sliding_window_pattern";

/// What transformers takes for granted.
fn usual() -> serde_json::Value {
    serde_json::json!({
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "hidden_activation": "gelu_pytorch_tanh",
    })
}
