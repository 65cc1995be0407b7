//! What a GGUF of an architecture can say: what llama.cpp's loader has a place for.
//!
//! A tensor that the loader does not know, or one that it misses, makes it refuse a file; a variation without a key makes it compute
//! something else. Both are found before a run begins.

use super::decoder::Decoder;
use super::mixer::Mixer;
use super::mixer::attention::Attention;
use super::rope::{Rope, Scaling, Yarn};
use super::{Model, config, gguf_keys};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;

/// Whether an architecture has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It must not be there.
    None,
    /// It may be there.
    Optional,
    /// It has to be there.
    Needed,
}

impl Place {
    fn of(needed: bool, otherwise: Place) -> Place {
        if needed { Place::Needed } else { otherwise }
    }
}

/// How an architecture has the two lists of divisors of LongRoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongRope {
    /// Not at all.
    None,
    /// If `rope.scaling.type` says so.
    ByType,
    /// Whenever they are there.
    ByTensors,
}

/// What llama.cpp's loader has a place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// An output matrix beside the embedding.
    pub output: Place,
    /// Biases on q, k and v.
    pub qkv_bias: Place,
    /// A bias on the attention's output.
    pub o_bias: Place,
    /// Biases on the MLP's layers.
    pub mlp_bias: Place,
    /// Heads may be wider or narrower than the stream divided by their number.
    pub head_dim: bool,
    /// A part of each head may be turned.
    pub partial_rotary: bool,
    /// Divisors of frequencies, as Llama 3's scaling needs.
    pub rope_factors: bool,
    /// Two lists of them.
    pub long_rope: LongRope,
    /// It computes windows.
    pub windows: bool,
    /// It reads between which numbers of turns YaRN interpolates, and does not take the paper's.
    pub yarn_turns: bool,
    /// Where it takes another range than the model has, people accept that.
    pub approximates_yarn: bool,
}

impl Limits {
    /// What most architectures have, those with the variations of `decoder`.
    pub fn of(decoder: &Decoder) -> Limits {
        Limits {
            output: Place::Optional,
            qkv_bias: Place::of(decoder.qkv_bias && decoder.fused_qkv, Place::Optional),
            o_bias: Place::of(decoder.o_bias, Place::None),
            mlp_bias: Place::of(decoder.mlp_bias, Place::None),
            head_dim: true,
            partial_rotary: false,
            rope_factors: false,
            long_rope: LongRope::None,
            windows: true,
            yarn_turns: false,
            approximates_yarn: false,
        }
    }

    /// Llama's own loader, which others share.
    pub fn of_llama(decoder: &Decoder) -> Limits {
        Limits {
            o_bias: Place::Optional,
            mlp_bias: Place::Optional,
            rope_factors: true,
            long_rope: LongRope::ByType,
            ..Limits::of(decoder)
        }
    }
}

impl Limits {
    /// What YaRN has that llama.cpp takes in another way.
    fn approximated(&self, rope: &Rope) -> Option<&'static str> {
        match rope.scaling {
            Scaling::Yarn(Yarn { truncate: false, .. }) => Some("truncate false"),
            Scaling::Yarn(Yarn { fast, slow, .. }) if !self.yarn_turns && (fast, slow) != (Yarn::FAST, Yarn::SLOW) => {
                Some("beta_fast other than 32 or beta_slow other than 1")
            }
            _ => None,
        }
    }
}

/// Keys that say whether there are biases, for messages.
const OF_BIASES: [&str; 7] =
    ["attention_bias", "use_qkv_bias", "qkv_bias", "mlp_bias", "use_bias", "bias", "attention_out_bias"];

impl Model {
    /// Refuses what llama.cpp would not load, or compute in another way.
    ///
    /// # Errors
    /// There is such a thing; the message names the key.
    pub(super) fn check_limits(&self, config: &Config) -> Result<()> {
        let limits = self.architecture.limits();
        let refused = |what: String| Err(config::refused(config, &what));
        let bias = |what: &str, place: Place, there: bool| -> Result<()> {
            let so = |key: &&&str| config.says(key) && config.flag(key).is_ok_and(|flag| flag == there);
            let said = OF_BIASES.iter().filter(so).copied().collect::<Vec<_>>().join(", ");
            let keys = if said.is_empty() { "attention_bias" } else { said.as_str() };
            match (place, there) {
                (Place::None, true) => refused(format!("{keys}: biases {what} are not supported")),
                (Place::Needed, false) => refused(format!("{keys}: no biases {what} is not supported")),
                _ => Ok(()),
            }
        };
        for mixer in self.blocks.iter().flat_map(|block| block.mixers()) {
            let other = mixer.rope().and_then(|rope| limits.approximated(rope));
            if let Some(other) = other.filter(|_| !limits.approximates_yarn) {
                return refused(format!("YaRN with {other} is not supported"));
            }
            match mixer {
                Mixer::Attention(own) => {
                    bias("on q, k and v", limits.qkv_bias, own.qkv_bias)?;
                    bias("on the attention's output", limits.o_bias, own.o_bias)?;
                    self.check_attention(config, own, &limits)?;
                }
                Mixer::Mlp(own) => bias("on the MLP's layers", limits.mlp_bias, own.bias)?,
                _ => {}
            }
        }
        let has = |name: &str| self.vectors.iter().any(|(vector, _)| *vector == name);
        if has(gguf_keys::ROPE_FACTORS) && !limits.rope_factors {
            return refused("rope scaling of type 'llama3' is not supported".into());
        }
        if has(gguf_keys::ROPE_LONG) && limits.long_rope == LongRope::None {
            return refused("rope scaling of type 'longrope' is not supported".into());
        }
        Ok(())
    }

    fn check_attention(&self, config: &Config, own: &Attention, limits: &Limits) -> Result<()> {
        let usual = self.hidden / own.heads;
        if !limits.head_dim && own.head_dim != usual {
            let what = format!(
                "head_dim {} is not supported: {} of {} heads are {usual}",
                own.head_dim, self.hidden, own.heads
            );
            return Err(config::refused(config, &what));
        }
        let Some(rope) = &own.rope else { return Ok(()) };
        if !limits.partial_rotary && rope.rotary != own.head_dim {
            let what = format!(
                "partial_rotary_factor is not supported: {} of {} numbers of each head would be turned",
                rope.rotary, own.head_dim
            );
            return Err(config::refused(config, &what));
        }
        Ok(())
    }

    /// Makes the output matrix what llama.cpp has a place for: a copy of the embedding where it needs one.
    ///
    /// # Errors
    /// A matrix that it would not read.
    pub(super) fn settle_output_place(&mut self, config: &Config) -> Result<Option<String>> {
        match self.architecture.limits().output {
            Place::None if !self.tied => {
                Err(config::refused(config, "an output matrix of its own (tie_word_embeddings false) is not supported"))
            }
            Place::Needed if self.tied => {
                self.output_source = Some(self.embedding().source);
                self.tied = false;
                Ok(Some("llama.cpp needs output.weight here: it becomes a copy of the embedding".into()))
            }
            _ => Ok(None),
        }
    }

    /// What llama.cpp computes in another way than the model, as it is known to and as people accept.
    pub(super) fn differences(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let limits = self.architecture.limits();
        if self.keys.iter().any(|(key, value)| key.ends_with(".prefix_lm") && *value == Value::Bool(true)) {
            notes.push("the model was trained to see the tokens of a prompt in both directions (prefix_lm); llama.cpp sees all text in one, and so does llmq".into());
        }
        let mixers = || self.blocks.iter().flat_map(|block| block.mixers());
        let window = mixers().find_map(|mixer| match mixer {
            Mixer::Attention(own) => own.window.filter(|&tokens| tokens < self.context),
            _ => None,
        });
        if let Some(tokens) = window.filter(|_| !limits.windows) {
            notes.push(format!(
                "llama.cpp ignores the sliding_window of this architecture: results differ beyond {tokens} tokens of context"
            ));
        }
        if let Some(other) = mixers().find_map(|mixer| limits.approximated(mixer.rope()?)) {
            notes.push(format!("YaRN with {other} is a little different in llama.cpp"));
        }
        notes
    }
}
