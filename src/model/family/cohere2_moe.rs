//! Cohere's models with experts: North Mini Code, Command A+.

use super::cohere::{self, PATTERN, PERIOD};
use super::deepseek2;
use crate::error::Result;
use crate::model::decoder::Window;
use crate::model::gguf_keys::{Keys, eps_key};
use crate::model::mixer::Mixer;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, ExtraBlocks, Model, Norm, QueryRows, config, mixture, nextn};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// [`super::cohere::Cohere2`] with experts behind some dense blocks; shared ones count as much as all others together.
pub struct Cohere2Moe;

/// The model; where there are shared experts, what a block adds is the mean of theirs and of the others'.
fn build(decoder: Decoder, architecture: &'static dyn Architecture) -> Model {
    let dense = decoder.dense;
    let mut model = cohere::build(decoder, dense, architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if half.mixer.experts().is_some_and(|experts| experts.shared.is_some()) {
            half.residual_scale = 0.5;
        }
    }
    model
}

impl Architecture for Cohere2Moe {
    fn gguf(&self) -> &'static str {
        "cohere2moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["cohere2_moe"]
    }

    fn examples(&self) -> &'static str {
        "North Mini Code, Command A+"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn decoder(&self) -> Decoder {
        Decoder { explicit_head_dim: true, ..cohere::plain() }
    }

    fn sample(&'static self) -> Model {
        let experts = Some(Experts { shared: mixture::shared(&self.decoder(), 8), ..Experts::plain(2, 1, 8) });
        build(Decoder { window: Some(Window::but_every(4, PERIOD)), experts, ..self.decoder().sized() }, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &config.clone().with_defaults(serde_json::json!({ "head_dim": 128, "layer_norm_eps": 1e-5 }));
        let mut model = cohere::read(self, config)?;
        model.explicit_head_dim = true;
        if model.rope.as_ref().is_some_and(|rope| rope.rotary != model.head_dim) {
            return Err(config::refused(config, "partial_rotary_factor other than 1 is not supported"));
        }
        if let Some(eps) = config.maybe_positive("rms_norm_eps")? {
            (model.norm, model.norm_eps) = (Norm::Rms, eps as f32);
        }
        let (n, width) = (model.blocks, model.ffn);
        let dense = config::leading_dense(config, n, 0)?;
        let period = |key: &str, usual: usize| -> Result<usize> { Ok(config.maybe_size(key)?.unwrap_or(usual)) };
        let (of_dense, of_others) =
            (period("prefix_dense_sliding_window_pattern", 1)?, period("sliding_window_pattern", PERIOD)?);
        let kinds = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match kinds {
            Some(kinds) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
            // Each part counts from its own first block.
            None => (1..=dense)
                .map(|i| !i.is_multiple_of(of_dense))
                .chain((1..=n - dense.min(n)).map(|i| !i.is_multiple_of(of_others)))
                .collect(),
        };
        if of_dense != 1 && local.iter().take(dense).any(|local| !local) {
            return Err(config::refused(config, "dense blocks that turn nothing are not supported"));
        }
        cohere::put_window(&mut model, config, local)?;
        let softmax = match config.maybe_string("expert_selection_fn")?.as_deref() {
            None | Some("softmax") => true,
            Some("sigmoid") => false,
            Some(other) => {
                return Err(config::refused(config, &format!("expert_selection_fn '{other}' is not supported")));
            }
        };
        // A softmax over those that are used is one over all, made to add up to one.
        let normed = softmax || config.get("norm_topk_prob").is_none() || config.flag("norm_topk_prob")?;
        let beside = config::count(config, "num_shared_experts")?.unwrap_or(0);
        let combined = config.maybe_string("shared_expert_combination_strategy")?;
        if beside > 0 && combined.as_deref().is_some_and(|how| how != "average") {
            return Err(config::refused(
                config,
                "shared_expert_combination_strategy other than 'average' is not supported",
            ));
        }
        model.dense = dense;
        model.ffn = config.maybe_size("prefix_dense_intermediate_size")?.unwrap_or(width);
        model.experts = Some(Experts {
            scoring: if softmax { Scoring::Softmax } else { Scoring::Sigmoid },
            normed,
            shared: mixture::shared(&model, beside * width),
            ..Experts::plain(config.size("num_experts")?, config.size("num_experts_per_tok")?, width)
        });
        model.size_key("expert_feed_forward_length", width);
        model.size_key("leading_dense_block_count", dense);
        model.key("expert_weights_norm", Value::Bool(normed));
        model.size_key("expert_gating_func", if softmax { 1 } else { 2 });
        if beside > 0 {
            model.size_key("expert_shared_count", beside);
            model.size_key("expert_shared_feed_forward_length", beside * width);
        }
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        model.logit_scale = keys.number("logit_scale")? as f32;
        let rms = keys.maybe_number(eps_key(Norm::Rms))?;
        if let Some(eps) = rms {
            (model.norm, model.norm_eps) = (Norm::Rms, eps as f32);
        }
        let number = |key: &str| keys.maybe(key).and_then(Value::as_u64).unwrap_or(0) as usize;
        model.dense = number("leading_dense_block_count");
        // Periods begin with the block that sees everything.
        let period = Some(number(PATTERN)).filter(|&n| n > 0).unwrap_or(PERIOD);
        model.window = Some(cohere::window_of(keys, |i| !i.is_multiple_of(period), model.blocks)?);
        let width = keys.first_size("expert_feed_forward_length")?;
        let beside = match number("expert_shared_feed_forward_length") {
            0 => number("expert_shared_count") * width,
            own => own,
        };
        model.experts = Some(Experts {
            scoring: if number("expert_gating_func") == 1 { Scoring::Softmax } else { Scoring::Sigmoid },
            normed: keys.maybe("expert_weights_norm").and_then(Value::as_bool).unwrap_or(false),
            shared: mixture::shared(&model, beside),
            ..Experts::plain(keys.size("expert_count")?, keys.size("expert_used_count")?, width)
        });
        Ok(build(model, self))
    }

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        let mut extra = nextn::numbered(model, model.blocks.last()?, has)?;
        let local = model.blocks.iter().map(|block| {
            block.mixers().any(|mixer| matches!(mixer, Mixer::Attention(attention) if attention.window.is_some()))
        });
        let local: Vec<bool> = local.chain(std::iter::repeat_n(false, extra.count)).collect();
        extra.keys.push((PATTERN, Value::Array(Array::Bool(local))));
        Some(extra)
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        deepseek2::source(tensor)
    }
}
