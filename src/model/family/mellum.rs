//! JetBrains' Mellum 2.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::rope::{Rope, Scaling};
use crate::model::{Architecture, Decoder, Model, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Qwen 3 with experts; some blocks see a window, and rotary embedding is stretched in the others alone.
pub struct Mellum;

/// The key that marks blocks with a window.
const PATTERN: &str = "attention.sliding_window_pattern";

/// Every so many-th block sees everything, where nothing else is said.
const PERIOD: usize = 4;

fn put_window(model: &mut Decoder, tokens: usize, local: Vec<bool>) {
    model.local_rope = model.rope.as_ref().map(|rope| Rope { scaling: Scaling::None, ..rope.clone() });
    model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
}

impl Architecture for Mellum {
    fn gguf(&self) -> &'static str {
        "mellum"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mellum"]
    }

    fn examples(&self) -> &'static str {
        "Mellum 2 12B-A2.5B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &config.clone().with_defaults(serde_json::json!({ "head_dim": 128 }));
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "tie_word_embeddings"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        if config.get("norm_topk_prob").is_some() && !config.flag("norm_topk_prob")? {
            return Err(config::refused(config, "norm_topk_prob false is not supported"));
        }
        let n = model.blocks;
        if config::leading_dense(config, n, 0)? > 0 {
            return Err(config::refused(config, "blocks without experts are not supported"));
        }
        let kinds = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match kinds {
            Some(kinds) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
            None => vec![false; n],
        };
        let parameters = config.object("rope_parameters")?;
        let of = |kind: &str| parameters.as_ref().map(|all| all.object(kind)).transpose().map(Option::flatten);
        let (whole, part) = (of("full_attention")?, of("sliding_attention")?);
        let rope = match whole.is_some() || part.is_some() {
            true => Rope::of(config, whole.or(part.clone()), model.head_dim)?,
            false => Rope::read(config, model.head_dim)?,
        };
        if local.contains(&true) {
            let own = part.map_or(Ok(rope.clone()), |own| Rope::of(config, Some(own), model.head_dim))?;
            if own.base != rope.base && local.contains(&false) {
                let what = "rope_parameters with several values of rope_theta are not supported";
                return Err(config.unsupported(what).hint(
                    "llama.cpp has a key for the base of blocks with a window, and turns those of Mellum with the other one nevertheless",
                ));
            }
            if own.scaling != Scaling::None && !matches!(own.scaling, Scaling::Yarn(_)) {
                return Err(config::refused(config, "rope scaling of blocks with a window is not supported"));
            }
            let tokens = config.maybe_size("sliding_window")?.unwrap_or(1024);
            model.size_key("attention.sliding_window", tokens);
            model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
            model.rope = Some(rope);
            put_window(&mut model, tokens, local);
        } else {
            model.rope = Some(rope);
        }
        let width = config.size("moe_intermediate_size")?;
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        model.experts = Some(Experts::plain(count, config.size("num_experts_per_tok")?, width));
        model.explicit_head_dim = true;
        model.size_key("expert_feed_forward_length", width);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
        model.experts = Some(Experts::plain(count, used, keys.first_size("expert_feed_forward_length")?));
        if let Some(tokens) = keys.maybe_size("attention.sliding_window")? {
            let usual = || (0..model.blocks).map(|i| !(i + 1).is_multiple_of(PERIOD)).collect();
            let local = keys.marks(PATTERN)?.unwrap_or_else(usual);
            put_window(&mut model, tokens, local);
        }
        Ok(model.build(self))
    }
}
