//! What nearly every `config.json` says in the same words.

use super::Architecture;
use super::config_keys;
use super::decoder::{Decoder, Window, WindowBlocks};
use super::gguf_keys::Keys;
use super::half::Norm;
use super::rope::Rope;
use crate::error::{Error, Result};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// The configuration of the text model: what is inside `text_config`, or `llm_config`, where the model sees or hears, too. Whether the embedding is
/// the output matrix is said outside; and the weights' quantization is said outside.
///
/// # Errors
/// `text_config` is no object.
pub fn text(config: &Config) -> Result<Config> {
    let kind = config.maybe_string("model_type")?;
    let outer = kind.as_deref().and_then(config_keys::class);
    let of_text = || outer.and_then(|class| class.text.as_deref()).and_then(config_keys::class);
    let text = config.object("text_config")?.map_or_else(|| config.object("llm_config"), |text| Ok(Some(text)))?;
    let Some(text) = text else { return Ok(config.clone().of_class(of_text().or(outer))) };
    let outside = ["quantization_config", "vision_config"];
    let said = outside.iter().filter_map(|&key| Some((key.to_owned(), config.get(key)?.clone())));
    let text = text.with_defaults(serde_json::Value::Object(said.collect()));
    let inside = text.maybe_string("model_type")?.as_deref().and_then(config_keys::class);
    let tied = match config.get("tie_word_embeddings") {
        None if text.says("tie_word_embeddings") => None,
        None => outer.and_then(|class| class.keys.get("tie_word_embeddings")),
        said => said,
    };
    let text = text.of_class(inside.or_else(of_text));
    Ok(match tied.filter(|tied| !tied.is_null()) {
        Some(tied) => text.with("tie_word_embeddings", tied.clone()),
        None => text,
    })
}

/// Reads sizes, rotary embedding and biases; what is special to a family is put on top by its own file. `tied`: whether the
/// embedding is the output matrix where the configuration does not say.
///
/// # Errors
/// A key that is missing or of the wrong kind, or sizes that make no attention.
pub fn read(architecture: &'static dyn Architecture, config: &Config, tied: bool) -> Result<Decoder> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.maybe_size("num_key_value_heads")?.unwrap_or(heads);
    let explicit = config.maybe_size("head_dim")?;
    let head_dim = head_dim(config, hidden, heads, explicit)?;
    if heads % kv_heads != 0 {
        return Err(config.unsupported(&format!("{heads} heads cannot share {kv_heads} key-value heads evenly")));
    }
    let plain = architecture.decoder();
    let eps = match plain.norm {
        Norm::Rms | Norm::Gain | Norm::Bare => config.positive("rms_norm_eps")?,
        Norm::Layer => first(config, &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"])?,
    };
    // Some classes do not read the key, and have biases whatever it says.
    let reads = |key: &str| config.class().is_none_or(|class| class.keys.contains_key(class.name(key)));
    let bias = reads("attention_bias") && config.flag("attention_bias")?;
    let (rope, local_rope) = Rope::kinds(config, head_dim)?;
    Ok(Decoder {
        blocks: config.size("num_hidden_layers")?,
        hidden,
        vocab: config.size("vocab_size")?,
        context: config.size("max_position_embeddings")?,
        heads,
        kv_heads,
        head_dim,
        explicit_head_dim: explicit.is_some(),
        ffn: config.size("intermediate_size")?,
        norm_eps: eps as f32,
        rope: Some(rope),
        local_rope,
        qkv_bias: plain.qkv_bias || bias,
        o_bias: plain.o_bias || bias,
        tied: config.maybe_flag("tie_word_embeddings")?.unwrap_or(tied),
        ..plain
    })
}

/// Writes the base of the rotary embedding of blocks with a window, which stretch nothing.
///
/// # Errors
/// They do stretch, or turn another part of each head.
pub fn put_local_base(config: &Config, model: &mut Decoder) -> Result<()> {
    let Some((rope, local)) = model.rope.as_ref().zip(model.local_rope.as_ref()) else { return Ok(()) };
    if *local != Rope::plain(local.base, rope.rotary) {
        return Err(refused(config, "rope_parameters of sliding_attention with a scaling of its own is not supported"));
    }
    if local.base != rope.base {
        let base = local.base as f32;
        model.key("rope.freq_base_swa", Value::F32(base));
    }
    Ok(())
}

/// Which blocks have a window of so many tokens: by `layer_types`, or else all but every `period`-th, as llama.cpp takes it where no key
/// says something else.
///
/// # Errors
/// As [`layer_types`].
pub fn put_windows(config: &Config, model: &mut Decoder, tokens: usize, period: usize) -> Result<()> {
    let usual = Window::but_every(tokens, period);
    let types = layer_types(config, model.blocks, &["sliding_attention", "full_attention"])?;
    let local: Option<Vec<bool>> = types.map(|types| types.iter().map(|kind| kind == "sliding_attention").collect());
    let other = local.filter(|local| (0..model.blocks).any(|i| local[i] != usual.holds(i)));
    model.size_key("attention.sliding_window", tokens);
    if let Some(local) = &other {
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
    }
    model.window = Some(other.map_or(usual, |local| Window { tokens, blocks: WindowBlocks::Marked(local) }));
    Ok(())
}

/// The same in GGUF.
///
/// # Errors
/// A list of another length.
pub fn read_windows(keys: &Keys, model: &mut Decoder, tokens: usize, period: usize) -> Result<()> {
    let number = keys.maybe(PATTERN).and_then(Value::as_u64).map(|n| n as usize).filter(|&n| n > 0);
    let usual = WindowBlocks::ButEvery(number.unwrap_or(period));
    model.window = Some(Window { tokens, blocks: keys.marks(PATTERN)?.map_or(usual, WindowBlocks::Marked) });
    Ok(())
}

/// The key of GGUF that says which blocks have a window.
const PATTERN: &str = "attention.sliding_window_pattern";

/// What each block is, by `layer_types`; none where that is not said. Newer versions of transformers have other names for some.
///
/// # Errors
/// Another number of blocks, or a kind that is none of `known`.
pub fn layer_types(config: &Config, blocks: usize, known: &[&str]) -> Result<Option<Vec<String>>> {
    kinds(config, "layer_types", blocks, known)
}

/// The same under another key.
fn kinds(config: &Config, key: &str, blocks: usize, known: &[&str]) -> Result<Option<Vec<String>>> {
    let Some(list) = config.get(key) else { return Ok(None) };
    let all: Vec<String> =
        list.as_array().into_iter().flatten().filter_map(|kind| kind.as_str()).map(str::to_owned).collect();
    if all.len() != blocks {
        return Err(config.unsupported(&format!("{key} names {} blocks, and there are {blocks}", all.len())));
    }
    match all.iter().find(|kind| !known.contains(&kind.as_str())) {
        None => Ok(Some(all)),
        Some(kind) => Err(config
            .unsupported(&format!("blocks of type '{kind}' are not supported"))
            .hint(format!("the supported ones are: {}", known.join(", ")))),
    }
}

/// How many blocks, the first ones, have no experts: by `mlp_layer_types`, or by `first_k_dense_replace`. `usual`: where neither is
/// said.
///
/// # Errors
/// Blocks without experts behind one that has them.
pub fn leading_dense(config: &Config, blocks: usize, usual: usize) -> Result<usize> {
    if let Some(kinds) = kinds(config, "mlp_layer_types", blocks, &["dense", "sparse"])? {
        // Which transformers has no use for then.
        config.ignore(&["first_k_dense_replace"]);
        let first = kinds.iter().position(|kind| kind == "sparse").unwrap_or(blocks);
        return match kinds[first..].iter().any(|kind| kind == "dense") {
            true => Err(refused(config, "dense blocks behind one with experts are not supported")),
            false => Ok(first),
        };
    }
    Ok(count(config, "first_k_dense_replace")?.unwrap_or(usual))
}

/// A whole number, zero too, if the key is there.
///
/// # Errors
/// Something else is there.
pub fn count(config: &Config, key: &str) -> Result<Option<usize>> {
    match config.get(key).is_some_and(|n| n.as_u64() == Some(0)) {
        true => Ok(Some(0)),
        false => config.maybe_size(key),
    }
}

/// The first of several names for a whole number above zero.
///
/// # Errors
/// None of them is there.
pub fn first_size(config: &Config, keys: &[&str]) -> Result<usize> {
    for key in keys {
        if let Some(n) = config.maybe_size(key)? {
            return Ok(n);
        }
    }
    config.size(keys[0])
}

/// Numbers per head. `explicit`: what the configuration says itself.
///
/// # Errors
/// Sizes that make no attention.
pub fn head_dim(config: &Config, hidden: usize, heads: usize, explicit: Option<usize>) -> Result<usize> {
    if explicit.is_none() && !hidden.is_multiple_of(heads) {
        return Err(config.unsupported(&format!("hidden_size {hidden} does not divide into {heads} heads")));
    }
    let head_dim = explicit.unwrap_or(hidden / heads);
    if !head_dim.is_multiple_of(2) {
        return Err(config.unsupported(&format!("head_dim {head_dim} is odd, and rotary embedding needs pairs")));
    }
    if head_dim > 1 << 16 {
        return Err(config.unsupported(&format!("head_dim {head_dim} is beyond {}", 1 << 16)));
    }
    Ok(head_dim)
}

/// The first of several names for a number above zero.
fn first(config: &Config, keys: &[&str]) -> Result<f64> {
    for key in keys {
        if let Some(x) = config.maybe_positive(key)? {
            return Ok(x);
        }
    }
    config.positive(keys[0])
}

/// Refuses an activation that llama.cpp does not use for the family. `keys`: where the configuration may say it.
///
/// # Errors
/// Another activation.
pub fn check_activation(config: &Config, keys: &[&str], wanted: Activation, usual: &str) -> Result<()> {
    for key in keys {
        let Some(name) = config.maybe_string(key)? else { continue };
        let known = match name.as_str() {
            "silu" | "swish" => Some(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Activation::GeluTanh),
            "gelu" => Some(Activation::Gelu),
            "relu2" => Some(Activation::ReluSquared),
            _ => None,
        };
        if known != Some(wanted) {
            return Err(config
                .unsupported(&format!("{key} '{name}' is not supported"))
                .hint(format!("llama.cpp runs models of this type with {usual} only")));
        }
        return Ok(());
    }
    Ok(())
}

/// What a family does not have in llama.cpp.
pub fn refused(config: &Config, what: &str) -> Error {
    config.unsupported(what).hint("llama.cpp has no such variation of this architecture")
}
