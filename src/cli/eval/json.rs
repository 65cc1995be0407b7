//! The results of `llmq eval` as JSON.

use super::{Measured, Results};
use crate::cli::scoring::histogram;
use crate::eval::statistics::{Distribution, Mean, Part, QUANTILES, Statistics};
use crate::eval::verdict::{CONFIDENCE, PROMISE, Verdict};
use serde_json::{Map, Value, json};

/// All of it, in one object.
pub fn summary(results: &Results) -> Value {
    let args = results.args;
    let mut fields = json!({ "model": args.model });
    let perplexity = results.measured.perplexity();
    if args.tells_perplexity() {
        fields["perplexity"] = perplexity.value.into();
        fields["perplexity_error"] = perplexity.error.into();
    }
    if let Measured::Against(statistics, _) = &results.measured {
        fields["reference"] = json!(args.reference);
        if args.tells_perplexity() {
            ratio(&mut fields, statistics);
        }
        fields["kl_divergence"] = statistics.divergence.mean.value.into();
        fields["kl_error"] = statistics.divergence.mean.error.into();
        fields["kl_p99"] = statistics.divergence.quantile(0.99).into();
        fields["kl"] = distribution(&statistics.divergence);
        fields["kl_histogram"] = histogram(&statistics.histogram);
        fields["delta_p"] = distribution(&statistics.delta_p);
        fields["delta_p"]["rms"] = mean(&statistics.delta_p_rms);
        fields["same_top"] = statistics.same_top.value.into();
        fields["same_top_error"] = statistics.same_top.error.into();
        fields["positions"] = statistics.parts.iter().map(part).collect();
    }
    if let Some(found) = results.verdict() {
        fields["verdict"] = verdict(found, args.max_increase);
        fields["verdict"]["next"] =
            results.steps().iter().map(|step| json!({ "why": step.why, "command": step.command })).collect();
    }
    fields["bytes"] = results.size.bytes.into();
    fields["bits_per_weight"] = results.size.bits.into();
    fields["protocol"] = results.setting.protocol.name().into();
    fields["context"] = results.setting.context.into();
    fields["windows"] = perplexity.windows.into();
    fields["tokens"] = perplexity.tokens.into();
    fields["text"] = json!(args.text.name());
    fields
}

fn ratio(fields: &mut Value, statistics: &Statistics) {
    fields["reference_perplexity"] = statistics.reference.value.into();
    fields["reference_perplexity_error"] = statistics.reference.error.into();
    fields["ln_ratio"] = statistics.ln_ratio.value.into();
    fields["ln_ratio_error"] = statistics.ln_ratio.error.into();
    fields["increase"] = statistics.difference.value.into();
    fields["increase_error"] = statistics.difference.error.into();
    fields["correlation"] = statistics.correlation.into();
}

fn mean(mean: &Mean) -> Value {
    json!({ "value": mean.value, "error": mean.error })
}

fn distribution(of: &Distribution) -> Value {
    let quantiles: Map<String, Value> =
        QUANTILES.iter().zip(of.quantiles).map(|(part, value)| (part.to_string(), value.into())).collect();
    json!({ "mean": of.mean.value, "error": of.mean.error, "min": of.min, "quantiles": quantiles, "max": of.max })
}

fn part(part: &Part) -> Value {
    json!({
        "first": part.positions.start,
        "last": part.positions.end - 1,
        "tokens": part.perplexity.tokens,
        "perplexity": part.perplexity.value,
        "reference_perplexity": part.reference.value,
        "kl_divergence": part.divergence.value,
        "kl_error": part.divergence.error,
        "same_top": part.same_top.value,
    })
}

fn verdict(verdict: &Verdict, most: Option<f64>) -> Value {
    json!({
        "grade": verdict.settled().map_or("inconclusive", |grade| grade.name()),
        "between": [verdict.grades.0.name(), verdict.grades.1.name()],
        "relative_increase": verdict.increase,
        "interval": [verdict.interval.0, verdict.interval.1],
        "confidence": CONFIDENCE,
        "more_tokens": verdict.more.filter(|more| more.is_finite()),
        "promise": PROMISE,
        "max_increase": most,
        "exceeded": most.map(|most| verdict.increase > most),
    })
}
