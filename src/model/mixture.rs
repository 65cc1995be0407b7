//! What GGUF says of a mixture of experts in the same words for many families.

use super::gguf_keys::Keys;
use super::mixer::experts::Experts;
use super::mixer::mlp::{Mlp, MlpLayers};
use super::mixer::routing::Scoring;
use super::{Decoder, config};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;

/// The MLP that every token goes through beside experts, of a width; none of no width.
pub fn shared(model: &Decoder, width: usize) -> Option<Mlp> {
    let mlp = Mlp { activation: model.activation, layers: model.mlp, ..Mlp::gated(width, model.activation) };
    (width > 0).then_some(Mlp { shared: true, ..mlp })
}

/// Reads experts as DeepSeek V3 has them: chosen by sigmoids with a bias, in groups, with shared ones beside them. `normed`: whether
/// their weights add up to one where the configuration does not say.
///
/// # Errors
/// A key that is missing or of the wrong kind, or experts that do not divide into their groups.
pub fn read(config: &Config, model: &Decoder, normed: bool) -> Result<Experts> {
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
        shared: shared(model, beside * width),
        ..Experts::plain(count, config.size("num_experts_per_tok")?, width)
    })
}

/// The keys of such experts.
pub fn put_keys(model: &mut Decoder) {
    let Some(experts) = model.experts else { return };
    model.size_key("leading_dense_block_count", model.dense);
    model.size_key("expert_feed_forward_length", experts.width);
    model.size_key("expert_shared_count", experts.shared.map_or(0, |mlp| mlp.width) / experts.width.max(1));
    if let Some((groups, used)) = experts.groups {
        model.size_key("expert_group_count", groups);
        model.size_key("expert_group_used_count", used);
    }
    put_router(model);
}

/// The keys of experts whose router says how scores become weights.
pub fn put_router(model: &mut Decoder) {
    let Some(experts) = model.experts else { return };
    model.size_key("expert_gating_func", if experts.scoring == Scoring::Sigmoid { 2 } else { 1 });
    model.key("expert_weights_norm", Value::Bool(experts.normed));
    model.key("expert_weights_scale", Value::F32(experts.scale));
}

/// Reads the experts of a GGUF, if it has some. `usual`: what holds where a key is missing.
///
/// # Errors
/// A key that is missing or makes no sense.
pub fn read_gguf(keys: &Keys, model: &mut Decoder, usual: Experts) -> Result<()> {
    let Some(count) = keys.maybe_size("expert_count")? else { return Ok(()) };
    let width = match keys.maybe("expert_feed_forward_length") {
        Some(_) => keys.first_size("expert_feed_forward_length")?,
        None => model.ffn,
    };
    let number = |key: &str| keys.maybe(key).and_then(Value::as_u64).map(|n| n as usize);
    let first = (0..model.blocks).find(|i| keys.has(&format!("blk.{i}.ffn_gate_inp.weight"))).unwrap_or(0);
    let has = |name: &str| keys.has(&format!("blk.{first}.{name}"));
    let beside = match number("expert_shared_feed_forward_length") {
        Some(width) => width,
        None => number("expert_shared_count").unwrap_or(0) * width,
    };
    model.dense = number("leading_dense_block_count").unwrap_or(0);
    let groups = number("expert_group_count").zip(number("expert_group_used_count"));
    model.experts = Some(Experts {
        activation: model.activation,
        layers: match has("ffn_gate_up_exps.weight") {
            true => MlpLayers::Fused,
            false => model.mlp,
        },
        scoring: match keys.maybe("expert_gating_func").and_then(Value::as_u64) {
            Some(2) => Scoring::Sigmoid,
            Some(1) => Scoring::Softmax,
            _ => usual.scoring,
        },
        normed: keys.maybe("expert_weights_norm").and_then(Value::as_bool).unwrap_or(usual.normed),
        scale: keys.maybe_number("expert_weights_scale")?.map_or(usual.scale, |x| x as f32),
        selection_bias: has("exp_probs_b.bias"),
        groups: groups.filter(|(n, _)| *n > 1 && count.is_multiple_of(*n)),
        shared: shared(model, if has("ffn_up_shexp.weight") { beside } else { 0 }),
        shared_gate: has("ffn_gate_inp_shexp.weight"),
        ..Experts::plain(count, keys.size("expert_used_count")?, width)
    });
    Ok(())
}
