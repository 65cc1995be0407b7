//! What GGUF says of a mixture of experts in the same words for many families.

use super::Decoder;
use super::gguf_keys::Keys;
use super::mixer::experts::Experts;
use super::mixer::mlp::{Mlp, MlpLayers};
use super::mixer::routing::Scoring;
use crate::error::Result;
use crate::source::value::Value;

/// The MLP that every token goes through beside experts, of a width; none of no width.
pub fn shared(model: &Decoder, width: usize) -> Option<Mlp> {
    let mlp = Mlp { activation: model.activation, layers: model.mlp, ..Mlp::gated(width, model.activation) };
    (width > 0).then_some(Mlp { shared: true, ..mlp })
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
        shared: shared(model, if has("ffn_up_shexp.weight") { beside } else { 0 }),
        shared_gate: has("ffn_gate_inp_shexp.weight"),
        ..Experts::plain(count, keys.size("expert_used_count")?, width)
    });
    Ok(())
}
