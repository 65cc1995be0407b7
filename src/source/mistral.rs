//! Mistral's own layout: `params.json` beside `consolidated.safetensors`, and what `config.json` would say instead.
//!
//! The keys are those of mistral-inference's `TransformerArgs`, with what vLLM's reader of the layout adds to them. Tensors are
//! called `layers.N.attention.wq.weight` and so on; rows of queries and keys come in pairs of neighbours, as in GGUF.

use super::config::Config;
use super::json;
use super::value::quoted;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file of parameters.
pub const PARAMS: &str = "params.json";

/// `model_type` of such a checkpoint, which no model of transformers has.
pub const MODEL_TYPE: &str = "mistral_native";

/// More layers than any model has; what is listed for each of them has to be bounded.
const LAYERS: usize = 1 << 16;

/// The context where nothing says otherwise, as in vLLM and llama.cpp.
const CONTEXT: usize = 128_000;

/// Sizes that have to be there, and their names in `config.json`.
const SIZES: [(&str, &str); 6] = [
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("hidden_dim", "intermediate_size"),
    ("vocab_size", "vocab_size"),
];

/// Sizes under the same name in both; all but the first belong to latent attention.
const SAME: [&str; 6] =
    ["head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"];

/// What is read below in some other way.
const READ: [&str; 13] = [
    "norm_eps",
    "rope_theta",
    "yarn",
    "llama_4_scaling",
    "sliding_window",
    "_sliding_window",
    "moe",
    "quantization",
    "tied_embeddings",
    "max_position_embeddings",
    "max_seq_len",
    "model_type",
    "activation",
];

/// What changes nothing in the language model: the encoders of images and sound beside it, and how it was run.
const ASIDE: [&str; 5] = ["vision_encoder", "multimodal", "max_batch_size", "causal", "dtype"];

/// Counts of experts, and their names in the configurations of DeepSeek's models.
const EXPERTS: [(&str, &str); 7] = [
    ("num_experts_per_tok", "num_experts_per_tok"),
    ("num_shared_experts", "n_shared_experts"),
    ("expert_hidden_dim", "moe_intermediate_size"),
    ("first_k_dense_replace", "first_k_dense_replace"),
    ("route_every_n", "moe_layer_freq"),
    ("num_expert_groups", "n_group"),
    ("num_expert_groups_per_tok", "topk_group"),
];

/// Whether a folder's configuration is `params.json`: there is no `config.json`, or none of the weights that go with it.
pub fn is_native(folder: &Path) -> bool {
    let there = |name: &str| folder.join(name).is_file();
    if !there(PARAMS) || !there("config.json") {
        return there(PARAMS);
    }
    let names =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let (mut own, mut other) = (false, false);
    for name in names {
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        own |= weights && name.starts_with("consolidated");
        other |= weights && name.starts_with("model") || name.starts_with("pytorch_model");
    }
    own && !other
}

/// What `config.json` would say; its path is that of `params.json`.
///
/// # Errors
/// As [`equivalent`], or a file that cannot be read.
pub fn config(folder: &Path) -> Result<Config> {
    let path = folder.join(PARAMS);
    let params = Config::of(path.clone(), json::read(&path)?)?;
    Config::of(path, equivalent(&params)?)
}

/// What `params.json` amounts to in the words of `config.json`, with [`MODEL_TYPE`].
///
/// # Errors
/// A key that is missing or of another kind, or one that is not known and may change what the model computes.
pub fn equivalent(params: &Config) -> Result<Value> {
    let known =
        |key: &str| SIZES.iter().any(|(own, _)| *own == key) || [&SAME[..], &READ, &ASIDE].concat().contains(&key);
    refuse_unknown(params, "", known)?;
    let kind = params.maybe_string("model_type")?.unwrap_or("transformer".into());
    let activation = params.maybe_string("activation")?.unwrap_or("silu".into());
    if kind != "transformer" || activation != "silu" || params.get("causal") == Some(&Value::Bool(false)) {
        let what = format!("a model of type '{kind}' with activation '{activation}', or one that sees the future");
        return Err(params.unsupported(&format!("{what}, is not supported")));
    }
    let mut out = Map::new();
    out.insert("model_type".into(), MODEL_TYPE.into());
    for (own, theirs) in SIZES {
        out.insert(theirs.into(), params.size(own)?.into());
    }
    for key in SAME {
        out.extend(params.maybe_size(key)?.map(|n| (key.to_owned(), n.into())));
    }
    let context = params.maybe_size("max_position_embeddings")?.or(params.maybe_size("max_seq_len")?);
    out.insert("max_position_embeddings".into(), context.unwrap_or(CONTEXT).into());
    out.insert("rms_norm_eps".into(), params.positive("norm_eps")?.into());
    out.insert("hidden_act".into(), activation.into());
    out.insert("tie_word_embeddings".into(), params.flag("tied_embeddings")?.into());
    out.insert("rope_parameters".into(), rope(params)?);
    windows(params, &mut out)?;
    if let Some(moe) = params.object("moe")? {
        experts(&moe, &mut out)?;
    }
    if let Some(quantization) = params.object("quantization")? {
        out.insert("quantization_config".into(), fp8(&quantization)?);
    }
    Ok(out.into())
}

/// Refuses keys that are not known, unless they say that there is nothing of the kind.
fn refuse_unknown(params: &Config, within: &str, known: impl Fn(&str) -> bool) -> Result<()> {
    let all = params.json().as_object().into_iter().flatten();
    let unknown = all.filter(|(key, value)| !known(key) && !value.is_null() && **value != Value::Bool(false));
    let unknown: Vec<String> = unknown.map(|(key, value)| format!("'{within}{key}': {}", shown(value))).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let what = format!("it has keys that are not known and may change what the model computes: {}", unknown.join(", "));
    Err(params
        .unsupported(&what)
        .hint("take the checkpoint in the layout of transformers (config.json), if there is one"))
}

/// Rotary embeddings in the words of transformers' Ministral 3.
fn rope(params: &Config) -> Result<Value> {
    let theta = params.maybe_positive("rope_theta")?.ok_or_else(|| {
        // mistral-inference takes 10^6, vLLM and llama.cpp 10^4.
        params.unsupported("it has no 'rope_theta', and programs differ in what they take then").hint(
            "add it: 10000.0 for Mistral 7B v0.1, 1000000.0 for Mixtral 8x7B, for others what their config.json has",
        )
    })?;
    let mut out = Map::from_iter([("rope_type".into(), "default".into()), ("rope_theta".into(), theta.into())]);
    if let Some(yarn) = params.object("yarn")? {
        const KEYS: [(&str, &str); 4] = [
            ("factor", "factor"),
            ("original_max_position_embeddings", ORIGINAL),
            ("beta", "beta_fast"),
            ("alpha", "beta_slow"),
        ];
        refuse_unknown(&yarn, "yarn.", |key| key == "apply_scale" || KEYS.iter().any(|(own, _)| *own == key))?;
        out.insert("rope_type".into(), "yarn".into());
        for (own, theirs) in KEYS {
            yarn.positive(own)?;
            out.extend(yarn.get(own).map(|value| (theirs.to_owned(), value.clone())));
        }
        let Some(scales) = yarn.get("apply_scale") else {
            return Err(params.unsupported("'yarn' does not say whether it scales attention ('apply_scale')"));
        };
        if !yarn.flag("apply_scale")? {
            // Two scales that are each other's inverse: attention stays as it is.
            out.extend(["mscale", "mscale_all_dim"].map(|key| (key.to_owned(), json!(1.0))));
        }
        debug_assert!(scales.is_boolean());
    }
    if let Some(scaling) = params.object("llama_4_scaling")? {
        refuse_unknown(&scaling, "llama_4_scaling.", |key| ["beta", ORIGINAL].contains(&key))?;
        let (beta, original) = (scaling.positive("beta")?, scaling.size(ORIGINAL)?);
        let other =
            out.insert(ORIGINAL.into(), original.into()).filter(|other| other.as_f64() != Some(original as f64));
        if let Some(other) = other {
            let what = format!("'llama_4_scaling.{ORIGINAL}' is {original}, but 'yarn.{ORIGINAL}' is {other}");
            return Err(params.unsupported(&format!("{what}, for which GGUF has no second key")));
        }
        out.insert("llama_4_scaling_beta".into(), beta.into());
    }
    Ok(out.into())
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// One window for all layers, or a list that repeats over the layers, where `null` is none.
fn windows(params: &Config, out: &mut Map<String, Value>) -> Result<()> {
    let key = if params.get("_sliding_window").is_some() { "_sliding_window" } else { "sliding_window" };
    let Some(list) = params.get(key).and_then(Value::as_array) else {
        out.extend(params.maybe_size(key)?.map(|n| ("sliding_window".to_owned(), n.into())));
        return Ok(());
    };
    let layers = params.size("n_layers")?;
    if layers > LAYERS {
        return Err(params.unsupported(&format!("'n_layers' is {layers}, and no model has more than {LAYERS}")));
    }
    let sizes: Vec<&Value> = list.iter().filter(|size| !size.is_null()).collect();
    let one =
        sizes.first().filter(|one| one.as_u64().is_some_and(|n| n > 0) && sizes.iter().all(|other| other == *one));
    let Some(one) = one.filter(|_| layers.is_multiple_of(list.len())) else {
        let what = format!(
            "'{key}' is {}, not one size and null for each of a part of {layers} layers",
            Value::from(list.clone())
        );
        return Err(params.unsupported(&what));
    };
    out.insert("sliding_window".into(), (*one).clone());
    let kinds = list.iter().map(|size| if size.is_null() { "full_attention" } else { "sliding_attention" });
    out.insert("layer_types".into(), kinds.cycle().take(layers).collect());
    Ok(())
}

/// Experts in the words of Mixtral (`num_local_experts`) and of DeepSeek's models.
fn experts(moe: &Config, out: &mut Map<String, Value>) -> Result<()> {
    let read = ["num_experts", "routed_scale"];
    refuse_unknown(moe, "moe.", |key| read.contains(&key) || EXPERTS.iter().any(|(own, _)| *own == key))?;
    let count = moe.size("num_experts")?;
    moe.size("num_experts_per_tok")?;
    for (own, theirs) in EXPERTS {
        let Some(value) = moe.get(own) else { continue };
        let n = value.as_u64().filter(|&n| n < 1 << 32);
        let n = n.ok_or_else(|| moe.unsupported(&format!("'moe.{own}' is {value}, not a whole number below 2^32")))?;
        out.insert(theirs.into(), n.into());
    }
    out.extend(moe.maybe_positive("routed_scale")?.map(|x| ("routed_scaling_factor".to_owned(), x.into())));
    out.extend([
        ("num_local_experts".to_owned(), count.into()),
        ("n_routed_experts".to_owned(), count.into()),
        ("scoring_func".to_owned(), "softmax".into()),
        ("norm_topk_prob".to_owned(), true.into()),
    ]);
    Ok(())
}

/// The one quantization of the layout: FP8 with a scale per matrix.
fn fp8(quantization: &Config) -> Result<Value> {
    let format = quantization.string("qformat_weight")?;
    let activations = quantization.maybe_string("qscheme_act")?;
    let scheme = match (format.as_str(), activations.as_deref()) {
        ("fp8_e4m3", None | Some("TENSOR")) => "static",
        ("fp8_e4m3", Some("NO_SCALES")) => "dynamic",
        _ => return Err(unknown_quantization(quantization)),
    };
    Ok(json!({ "quant_method": "fp8", "activation_scheme": scheme }))
}

fn unknown_quantization(quantization: &Config) -> Error {
    let found = shown(quantization.json());
    let what = format!("'quantization' is {found}, of which only qformat_weight fp8_e4m3 is read");
    quantization.unsupported(&what).hint("start from the original checkpoint in 16 bits")
}

/// A value as errors show it.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 80;
    quoted(&value.to_string(), LIMIT)
}

#[cfg(test)]
mod tests;
