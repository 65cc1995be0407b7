//! A model's sizes as GGUF metadata, and back.

use super::half::Norm;
use super::limits::{Limits, LongRope};
use super::lm_head::OUTPUT_BIAS;
use super::rope::{Rope, Scaling, Yarn};
use super::{ARCHITECTURES, Architecture, Decoder, Model};
use crate::error::{Error, Result};
use crate::source::gguf::Gguf;
use crate::source::value::{Metadata, Value};

/// The tensor of divisors that Llama 3's rotary scaling needs: llama.cpp reads it instead of a key.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The divisors of Phi-3's rotary scaling in long contexts.
pub const ROPE_LONG: &str = "rope_factors_long.weight";

/// The same in short ones.
pub const ROPE_SHORT: &str = "rope_factors_short.weight";

/// What llama.cpp takes where there is no key `rope.freq_base`.
const USUAL_BASE: f64 = 10_000.0;

/// The keys of the model itself, in llama.cpp's order, without `general.*` and the tokenizer.
pub fn metadata(model: &Decoder, architecture: &dyn Architecture) -> Metadata {
    let mut keys: Metadata = Vec::new();
    let mut put = |key: &str, value: Value| {
        let key = format!("{}.{key}", architecture.gguf());
        match keys.iter_mut().find(|(other, _)| *other == key) {
            Some((_, own)) => *own = value,
            None => keys.push((key, value)),
        }
    };
    let size = |n: usize| Value::U32(n as u32);
    put("block_count", size(model.blocks));
    put("context_length", size(model.context));
    put("embedding_length", size(model.hidden));
    put("feed_forward_length", size(model.ffn));
    put("attention.head_count", size(model.heads));
    put("attention.head_count_kv", size(model.kv_heads));
    if let Some(rope) = model.rope.as_ref().filter(|rope| architecture.writes_rope_base() || rope.base != USUAL_BASE) {
        put("rope.freq_base", Value::F32(rope.base as f32));
    }
    put(eps_key(model.norm), Value::F32(model.norm_eps));
    if let Some(experts) = &model.experts {
        put("expert_count", size(experts.count));
        put("expert_used_count", size(experts.used));
    }
    if model.explicit_head_dim {
        put("attention.key_length", size(model.head_dim));
        put("attention.value_length", size(model.head_dim));
    }
    put("vocab_size", size(model.vocab));
    if let Some(rope) = &model.rope {
        put("rope.dimension_count", size(rope.rotary));
        match &rope.scaling {
            Scaling::None | Scaling::Factors(_) => {}
            Scaling::Linear(factor) => {
                put("rope.scaling.type", Value::Str("linear".into()));
                put("rope.scaling.factor", Value::F32(*factor as f32));
            }
            Scaling::Yarn(yarn) => {
                put("rope.scaling.type", Value::Str("yarn".into()));
                put("rope.scaling.factor", Value::F32(yarn.factor as f32));
                put("rope.scaling.original_context_length", size(yarn.original as usize));
                put("rope.scaling.yarn_beta_fast", Value::F32(yarn.fast as f32));
                put("rope.scaling.yarn_beta_slow", Value::F32(yarn.slow as f32));
                // llama.cpp multiplies the paper's growth by it; latent attention has another key for its own.
                if let Some(growth) = yarn.magnitude.filter(|_| model.latent.is_none() && model.yarn_growth.is_none()) {
                    put("rope.scaling.attn_factor", Value::F32((growth / yarn.usual_magnitude()) as f32));
                }
            }
            Scaling::Long { original, magnitude, .. } => {
                if architecture.limits().long_rope == LongRope::ByType {
                    put("rope.scaling.type", Value::Str("longrope".into()));
                }
                put("rope.scaling.original_context_length", size(*original));
                put("rope.scaling.attn_factor", Value::F32(*magnitude));
            }
        }
    }
    for (key, value) in &model.keys {
        put(key, value.clone());
    }
    keys
}

/// Where a norm's ε is said.
pub fn eps_key(norm: Norm) -> &'static str {
    match norm {
        Norm::Rms | Norm::Gain | Norm::Bare => "attention.layer_norm_rms_epsilon",
        Norm::Layer => "attention.layer_norm_epsilon",
    }
}

/// The keys of a GGUF's architecture.
pub struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
    /// How many blocks it names, and how many of these the forward pass uses.
    blocks: [usize; 2],
}

impl Keys<'_> {
    /// A value, if the key is there. `key`: without the name of the architecture.
    pub fn maybe(&self, key: &str) -> Option<&Value> {
        self.file.get(&format!("{}.{key}", self.architecture))
    }

    /// A whole number above zero, if the key is there.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        match self.maybe(key).map(|v| v.as_u64().filter(|n| (1..1 << 32).contains(n))) {
            None => Ok(None),
            Some(Some(n)) => Ok(Some(n as usize)),
            Some(None) => Err(self.wrong(&format!("{} is not a number between 1 and 2^32", self.named(key)))),
        }
    }

    /// A whole number above zero.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.maybe_size(key)?.ok_or_else(|| self.wrong(&format!("there is no {}", self.named(key))))
    }

    /// Numbers for each block: a list, or one that stands for all.
    ///
    /// # Errors
    /// Something else is there, or a list of another length.
    pub fn per_block(&self, key: &str) -> Result<Option<Vec<u64>>> {
        let [all, blocks] = self.blocks;
        let wrong = || self.wrong(&format!("{} is not a list of {blocks} numbers", self.named(key)));
        match self.maybe(key) {
            None => Ok(None),
            Some(value) => match (value.as_u64(), value.as_array()) {
                (Some(n), _) => Ok(Some(vec![n; blocks])),
                (None, Some(list)) if [all, blocks].contains(&list.len()) => {
                    let number = |i: usize| list.get(i)?.as_u64().filter(|&n| n < 1 << 32);
                    (0..blocks).map(number).collect::<Option<Vec<u64>>>().map(Some).ok_or_else(wrong)
                }
                _ => Err(wrong()),
            },
        }
    }

    /// Marks for each block, if the key is there.
    ///
    /// # Errors
    /// Something else is there, or a list of another length.
    pub fn marks(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let [all, blocks] = self.blocks;
        let Some(list) = self.maybe(key).and_then(Value::as_array) else { return Ok(None) };
        let mark = |i: usize| {
            let value = list.get(i)?;
            value.as_bool().or_else(|| value.as_u64().map(|n| n != 0))
        };
        let marks =
            (0..blocks).map(mark).collect::<Option<Vec<bool>>>().filter(|_| [all, blocks].contains(&list.len()));
        marks.map(Some).ok_or_else(|| self.wrong(&format!("{} is not a list of {blocks} marks", self.named(key))))
    }

    /// A whole number above zero: the first of a list that has a number for each block, or the only one.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn first_size(&self, key: &str) -> Result<usize> {
        let Some(list) = self.maybe(key).and_then(Value::as_array) else { return self.size(key) };
        let numbers = (0..list.len()).filter_map(|i| list.get(i)?.as_u64());
        let first = numbers.into_iter().find(|n| (1..1 << 32).contains(n));
        first.map(|n| n as usize).ok_or_else(|| self.wrong(&format!("{} has no number above zero", self.named(key))))
    }

    /// A number above zero, if the key is there.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>> {
        match self.maybe(key).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(x)) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            Some(_) => Err(self.wrong(&format!("{} is not a number above zero", self.named(key)))),
        }
    }

    /// A number above zero.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn number(&self, key: &str) -> Result<f64> {
        let missing = || self.wrong(&format!("{} is missing or not a number above zero", self.named(key)));
        self.maybe_number(key)?.ok_or_else(missing)
    }

    /// A number for each block under a key of no architecture: a list, or one that stands for all.
    ///
    /// # Errors
    /// Missing, something else, or a list of another length.
    pub fn shared_numbers(&self, key: &str) -> Result<Vec<f32>> {
        let wrong = || self.wrong(&format!("key '{key}' is not a list of {} numbers", self.blocks[1]));
        let value = self.file.get(key).ok_or_else(|| self.wrong(&format!("there is no key '{key}'")))?;
        let number = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        match value.as_array() {
            None => Ok(vec![number(value).ok_or_else(wrong)?; self.blocks[1]]),
            Some(list) if list.len() == self.blocks[1] => {
                (0..list.len()).map(|i| number(&list.get(i)?)).collect::<Option<Vec<f32>>>().ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Whether the file has a tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    /// Rows of a matrix, if the file has it.
    pub fn rows(&self, tensor: &str) -> Option<usize> {
        self.file.tensor(tensor)?.dims.get(1).map(|&n| n as usize)
    }

    /// An error about this file.
    pub fn wrong(&self, what: &str) -> Error {
        Error::new(format!("{}: {what}", self.file.path.display()))
    }

    fn named(&self, key: &str) -> String {
        format!("key '{}.{key}'", self.architecture)
    }
}

/// The model that a GGUF holds. `vector`: the numbers of a vector, if the file has it.
///
/// # Errors
/// An unsupported architecture, or keys that are missing or make no sense.
pub fn read(file: &Gguf, vector: impl Fn(&str) -> Result<Option<Vec<f32>>>) -> Result<Model> {
    let path = file.path.display();
    let name = file.get("general.architecture").and_then(Value::as_str);
    let name = name.ok_or_else(|| Error::new(format!("{path}: there is no key 'general.architecture'")))?;
    let architecture = ARCHITECTURES.iter().copied().find(|a| a.gguf() == name).ok_or_else(|| {
        let mut known: Vec<_> = ARCHITECTURES.iter().map(|a| a.gguf()).collect();
        known.dedup();
        Error::new(format!("{path}: architecture '{name}' is not supported"))
            .hint(format!("the supported ones are: {}", known.join(", ")))
    })?;
    let mut keys = Keys { file, architecture: name, blocks: [0; 2] };
    let all = keys.size("block_count")?;
    // Each of them has a tensor at least.
    if all > file.tensors.len() {
        return Err(keys.wrong(&format!("{all} blocks in a file of {} tensors", file.tensors.len())));
    }
    // Those that predict several tokens come last.
    let extra = keys.maybe("nextn_predict_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    let blocks = all.checked_sub(extra).filter(|&n| n > 0);
    let blocks = blocks.ok_or_else(|| keys.wrong(&format!("{extra} of its {all} blocks predict several tokens")))?;
    keys.blocks = [all, blocks];
    let plain = architecture.decoder();
    // A family of scans alone has none of the sizes of attention and MLP.
    let attends = plain.heads > 0;
    let of_heads = |key: &str| if attends { keys.first_size(key) } else { Ok(0) };
    let (hidden, heads) = (keys.size("embedding_length")?, of_heads("attention.head_count")?);
    let explicit = keys.maybe_size("attention.key_length")?;
    let rotary = keys.maybe_size("rope.dimension_count")?;
    let head_dim = explicit.unwrap_or(match rotary {
        // Only a part of each head may be turned.
        Some(rotary) if hidden % heads.max(1) != 0 || !may_be_partial(name) => rotary,
        _ => hidden.checked_div(heads).unwrap_or(0),
    });
    let kv_heads = match keys.maybe("attention.head_count_kv") {
        Some(_) => of_heads("attention.head_count_kv")?,
        None => heads,
    };
    if attends && (heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0) {
        return Err(Error::new(format!(
            "{path}: {heads} heads, {kv_heads} key-value heads of {head_dim} make no attention"
        )));
    }
    let rotary = rotary.unwrap_or(head_dim);
    if rotary > head_dim || !rotary.is_multiple_of(2) {
        return Err(keys.wrong(&format!("{rotary} numbers of each head of {head_dim} cannot be turned")));
    }
    let base = keys.maybe_number("rope.freq_base")?.unwrap_or(USUAL_BASE);
    let context = keys.size("context_length")?;
    let scaling = scaling(&keys, rotary, context, &architecture.limits(), &vector)?;
    let embedding =
        file.tensor("token_embd.weight").ok_or_else(|| keys.wrong("there is no tensor 'token_embd.weight'"))?;
    let vocab = *embedding.dims.get(1).ok_or_else(|| keys.wrong("'token_embd.weight' is no matrix"))?;
    let qkv_bias = ["blk.0.attn_q.bias", "blk.0.attn_qkv.bias"].iter().any(|name| keys.has(name));
    let eps = [plain.norm, Norm::Rms, Norm::Layer].map(eps_key).into_iter().find(|key| keys.maybe(key).is_some());
    let mlp_bias = ["blk.0.ffn_gate.bias", "blk.0.ffn_up.bias"].iter().any(|name| keys.has(name));
    let decoder = Decoder {
        blocks,
        hidden,
        vocab: vocab as usize,
        context,
        heads,
        kv_heads,
        head_dim,
        explicit_head_dim: explicit.is_some(),
        ffn: of_heads("feed_forward_length")?,
        norm_eps: keys.number(eps.unwrap_or(eps_key(plain.norm)))? as f32,
        rope: Some(Rope { scaling, ..Rope::plain(base, rotary) }),
        qkv_bias,
        mlp_bias,
        o_bias: keys.has("blk.0.attn_output.bias"),
        tied: !keys.has("output.weight"),
        ..plain
    };
    let mut model = architecture.read_gguf(&keys, decoder)?;
    if let Some(bias) = vector(OUTPUT_BIAS)? {
        if bias.len() != model.vocab {
            return Err(keys.wrong(&format!("'{OUTPUT_BIAS}' has {} numbers, not {}", bias.len(), model.vocab)));
        }
        model.vectors.push((OUTPUT_BIAS, bias));
    }
    let has_experts = model.blocks.iter().flat_map(|block| block.mixers()).any(|mixer| mixer.experts().is_some());
    match keys.maybe_size("expert_count").unwrap_or_default() {
        Some(experts) if !has_experts => {
            Err(keys.wrong(&format!("blocks with experts, here {experts} of them, are not supported")))
        }
        _ => Ok(model),
    }
}

/// Architectures whose rotary embedding may turn a part of each head.
fn may_be_partial(name: &str) -> bool {
    ["phi3", "glm4", "stablelm", "gptneox", "deepseek2", "glm4moe", "nemotron", "phi2"].contains(&name)
}

fn scaling(
    keys: &Keys,
    rotary: usize,
    context: usize,
    limits: &Limits,
    vector: impl Fn(&str) -> Result<Option<Vec<f32>>>,
) -> Result<Scaling> {
    let checked = |name: &str| -> Result<Option<Vec<f32>>> {
        match vector(name)? {
            Some(factors) if factors.len() != rotary / 2 => {
                let n = factors.len();
                Err(keys.wrong(&format!("tensor '{name}' has {n} factors, not {}", rotary / 2)))
            }
            found => Ok(found),
        }
    };
    if let Some((short, long)) = checked(ROPE_SHORT)?.zip(checked(ROPE_LONG)?) {
        let original = keys.maybe_size("rope.scaling.original_context_length")?.unwrap_or(context);
        let magnitude = keys.maybe_number("rope.scaling.attn_factor")?.unwrap_or(1.0) as f32;
        return Ok(Scaling::Long { short, long, original, magnitude });
    }
    if let Some(factors) = checked(ROPE_FACTORS)? {
        return Ok(Scaling::Factors(factors));
    }
    match keys.maybe("rope.scaling.type").and_then(Value::as_str) {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear(keys.maybe_number("rope.scaling.factor")?.unwrap_or(1.0))),
        Some("yarn") => {
            // As llama.cpp has it.
            let turns = |key: &str, usual: f64| match limits.yarn_turns {
                true => Ok::<f64, Error>(keys.maybe_number(key)?.unwrap_or(usual)),
                false => Ok(usual),
            };
            let yarn = Yarn {
                factor: keys.number("rope.scaling.factor")?,
                original: keys.maybe_number("rope.scaling.original_context_length")?.unwrap_or(context as f64),
                fast: turns("rope.scaling.yarn_beta_fast", Yarn::FAST)?,
                slow: turns("rope.scaling.yarn_beta_slow", Yarn::SLOW)?,
                magnitude: None,
                truncate: true,
            };
            let grown = keys.maybe_number("rope.scaling.attn_factor")?;
            let magnitude = grown.map(|factor| factor * yarn.usual_magnitude());
            Ok(Scaling::Yarn(Yarn { magnitude, ..yarn }))
        }
        Some(other) => Err(keys.wrong(&format!("rope scaling of type '{other}' is not supported"))),
    }
}
