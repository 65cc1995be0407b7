//! A model's sizes as GGUF metadata, and back.

use super::rope::Rope;
use super::{ARCHITECTURES, Model};
use crate::error::{Error, Result};
use crate::source::gguf::Gguf;
use crate::source::value::{Metadata, Value};

/// The tensor of divisors that Llama 3's rotary scaling needs: llama.cpp reads it instead of a key.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The keys of the model itself, in llama.cpp's order, without `general.*` and the tokenizer.
pub fn metadata(model: &Model) -> Metadata {
    let mut keys = Vec::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{}.{key}", model.architecture.gguf()), value));
    let size = |n: usize| Value::U32(n as u32);
    put("block_count", size(model.blocks));
    put("context_length", size(model.context));
    put("embedding_length", size(model.hidden));
    put("feed_forward_length", size(model.ffn));
    put("attention.head_count", size(model.heads));
    put("attention.head_count_kv", size(model.kv_heads));
    put("rope.freq_base", Value::F32(model.rope.base as f32));
    put("attention.layer_norm_rms_epsilon", Value::F32(model.norm_eps));
    if model.explicit_head_dim {
        put("attention.key_length", size(model.head_dim));
        put("attention.value_length", size(model.head_dim));
    }
    put("vocab_size", size(model.vocab));
    put("rope.dimension_count", size(model.head_dim));
    if model.rope.linear != 1.0 {
        put("rope.scaling.type", Value::Str("linear".into()));
        put("rope.scaling.factor", Value::F32(model.rope.linear as f32));
    }
    keys
}

/// The model that a GGUF holds. `factors`: the content of [`ROPE_FACTORS`], if that tensor is there.
///
/// # Errors
/// An unsupported architecture, or keys that are missing or make no sense.
pub fn read(file: &Gguf, factors: Option<Vec<f32>>) -> Result<Model> {
    let path = file.path.display();
    let name = file.get("general.architecture").and_then(Value::as_str);
    let name = name.ok_or_else(|| Error::new(format!("{path}: there is no key 'general.architecture'")))?;
    let architecture = ARCHITECTURES.iter().copied().find(|a| a.gguf() == name).ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.gguf()).collect();
        Error::new(format!("{path}: architecture '{name}' is not supported"))
            .hint(format!("the supported ones are: {}", known.join(", ")))
    })?;
    let maybe = |key: &str| file.get(&format!("{name}.{key}"));
    let maybe_size = |key: &str| match maybe(key).map(|v| v.as_u64().filter(|n| (1..1 << 32).contains(n))) {
        None => Ok(None),
        Some(Some(n)) => Ok(Some(n as usize)),
        Some(None) => Err(Error::new(format!("{path}: key '{name}.{key}' is not a number between 1 and 2^32"))),
    };
    let size =
        |key: &str| maybe_size(key)?.ok_or_else(|| Error::new(format!("{path}: there is no key '{name}.{key}'")));
    let number = |key: &str, otherwise: Option<f64>| match maybe(key).map(Value::as_f64) {
        Some(Some(x)) if x.is_finite() && x > 0.0 => Ok(x),
        None if otherwise.is_some() => Ok(otherwise.unwrap_or_default()),
        _ => Err(Error::new(format!("{path}: key '{name}.{key}' is missing or not a number above zero"))),
    };
    if let Some(experts) = maybe_size("expert_count").unwrap_or_default() {
        return Err(Error::new(format!("{path}: blocks with experts, here {experts} of them, are not supported")));
    }
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let explicit = maybe_size("attention.key_length")?;
    let head_dim = explicit.or(maybe_size("rope.dimension_count")?).unwrap_or(hidden / heads);
    let kv_heads = maybe_size("attention.head_count_kv")?.unwrap_or(heads);
    if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
        return Err(Error::new(format!(
            "{path}: {heads} heads, {kv_heads} key-value heads of {head_dim} make no attention"
        )));
    }
    if let Some(factors) = &factors
        && factors.len() != head_dim / 2
    {
        let n = factors.len();
        return Err(Error::new(format!("{path}: tensor '{ROPE_FACTORS}' has {n} factors, not {}", head_dim / 2)));
    }
    let linear = match maybe("rope.scaling.type").and_then(Value::as_str) {
        None | Some("none") => 1.0,
        Some("linear") => number("rope.scaling.factor", Some(1.0))?,
        Some(other) => return Err(Error::new(format!("{path}: rope scaling of type '{other}' is not supported"))),
    };
    let embedding = file
        .tensor("token_embd.weight")
        .ok_or_else(|| Error::new(format!("{path}: there is no tensor 'token_embd.weight'")))?;
    let vocab =
        *embedding.dims.get(1).ok_or_else(|| Error::new(format!("{path}: 'token_embd.weight' is no matrix")))?;
    Ok(Model {
        architecture,
        blocks: size("block_count")?,
        hidden,
        vocab: vocab as usize,
        context: size("context_length")?,
        heads,
        kv_heads,
        head_dim,
        explicit_head_dim: explicit.is_some(),
        ffn: size("feed_forward_length")?,
        norm_eps: number("attention.layer_norm_rms_epsilon", None)? as f32,
        rope: Rope { base: number("rope.freq_base", Some(10_000.0))?, linear, factors },
        attention_bias: file.tensor("blk.0.attn_q.bias").is_some(),
        mlp_bias: file.tensor("blk.0.ffn_gate.bias").is_some(),
        tied: file.tensor("output.weight").is_none(),
    })
}
