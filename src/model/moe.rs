//! Experts as DeepSeek V3 has them, whatever attention stands in front: chosen by sigmoids with a bias, in groups, with shared ones
//! beside them, behind some dense blocks.

use super::gguf_keys::Keys;
use super::mixer::experts::Experts;
use super::mixer::mlp::Mlp;
use super::mixer::routing::Scoring;
use super::{Decoder, config};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// The experts that every token goes to, as one MLP; none of no width.
pub fn shared(width: usize) -> Option<Mlp> {
    (width > 0).then(|| Mlp { shared: true, ..Mlp::gated(width, Activation::Silu) })
}

/// Reads experts that are chosen by sigmoids. `normed`: whether their weights add up to one where the configuration does not say.
///
/// # Errors
/// A key that is missing or of the wrong kind, or experts that do not divide into their groups.
pub fn read(config: &Config, normed: bool) -> Result<Experts> {
    let count = config::first_size(config, &["n_routed_experts", "num_experts", "num_local_experts"])?;
    let width = config.size("moe_intermediate_size")?;
    let groups = config.maybe_size("n_group")?.zip(config.maybe_size("topk_group")?).filter(|(n, _)| *n > 1);
    if groups.is_some_and(|(n, _)| !count.is_multiple_of(n)) {
        return Err(config.unsupported(&format!("{count} experts do not divide into n_group groups")));
    }
    let beside = match config::count(config, "n_shared_experts")? {
        Some(n) => n,
        None => config::count(config, "num_shared_experts")?.unwrap_or(0),
    };
    Ok(Experts {
        scoring: Scoring::Sigmoid,
        normed: config.get("norm_topk_prob").map_or(Ok(normed), |_| config.flag("norm_topk_prob"))?,
        scale: config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        selection_bias: true,
        groups,
        shared: shared(beside * width),
        ..Experts::plain(count, config.size("num_experts_per_tok")?, width)
    })
}

/// The keys of a model's experts besides the usual ones.
pub fn put_keys(model: &mut Decoder) {
    let Some(experts) = model.experts else { return };
    model.size_key("leading_dense_block_count", model.dense);
    model.size_key("expert_feed_forward_length", experts.width);
    let shared = experts.shared.map_or(0, |mlp| mlp.width);
    model.size_key("expert_shared_count", shared / experts.width.max(1));
    model.key("expert_weights_scale", Value::F32(experts.scale));
    model.key("expert_weights_norm", Value::Bool(experts.normed));
    model.size_key("expert_gating_func", if experts.scoring == Scoring::Sigmoid { 2 } else { 1 });
    if let Some((groups, used)) = experts.groups {
        model.size_key("expert_group_count", groups);
        model.size_key("expert_group_used_count", used);
    }
}

/// The experts of a file, and how many dense blocks come before them.
///
/// # Errors
/// A key that is missing or makes no sense.
pub fn read_gguf(keys: &Keys, model: &mut Decoder) -> Result<()> {
    model.experts = None;
    let Some(count) = keys.maybe_size("expert_count")? else { return Ok(()) };
    let width = keys.first_size("expert_feed_forward_length")?;
    let sigmoid = keys.maybe("expert_gating_func").and_then(Value::as_u64) == Some(2);
    let number = |key: &str| keys.maybe(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    model.dense = number("leading_dense_block_count");
    let groups = keys.maybe_size("expert_group_count")?.zip(keys.maybe_size("expert_group_used_count")?);
    model.experts = Some(Experts {
        scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
        normed: keys.maybe("expert_weights_norm").and_then(Value::as_bool).unwrap_or(false),
        scale: keys.maybe_number("expert_weights_scale")?.unwrap_or(1.0) as f32,
        selection_bias: keys.has(&format!("blk.{}.exp_probs_b.bias", model.dense)),
        groups: groups.filter(|(n, _)| *n > 1 && count.is_multiple_of(*n)),
        shared: shared(number("expert_shared_count") * width),
        ..Experts::plain(count, keys.size("expert_used_count")?, width)
    });
    Ok(())
}
