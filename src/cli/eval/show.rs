//! The results of `llmq eval` as people read them.

use super::{Measured, Results, layers};
use crate::cli::output::{grouped, line};
use crate::eval::perplexity::Perplexity;
use crate::eval::statistics::{Mean, Statistics};
use crate::eval::verdict::{Grade, PROMISE, Verdict};

/// All of it.
pub fn show(results: &Results) {
    let args = results.args;
    let Perplexity { value, error, windows, tokens } = results.measured.perplexity();
    match &results.measured {
        Measured::Alone(_) => line(format!("perplexity      {value:.4} ± {error:.4}")),
        Measured::Against(statistics, _) => {
            if args.tells_perplexity() {
                ratio(statistics);
            }
            distances(statistics);
        }
    }
    let (protocol, context) = (results.setting.protocol.name(), results.setting.context);
    line(format!("measured on     {windows} windows of {context} tokens, {tokens} scored, protocol {protocol}"));
    if let (Measured::Against(statistics, _), true) = (&results.measured, args.verbose) {
        positions(statistics);
    }
    if let Some(layers) = &results.layers {
        layers::show(layers, args.verbose);
    }
    if let (Measured::Against(statistics, _), Some(verdict)) = (&results.measured, results.verdict()) {
        line("");
        line(format!("verdict         {}", in_words(verdict, tokens / windows, context)));
        let Mean { value, error } = statistics.difference;
        let kept = if value < PROMISE { "kept" } else { "not kept" };
        line(format!("promise of INT4 perplexity rises by less than {PROMISE}: {kept}, {value:+.4} ± {error:.4}"));
        for step in results.steps() {
            line(format!("next            {}:", step.why));
            line(format!("                {}", step.command));
        }
    }
}

fn ratio(s: &Statistics) {
    let (own, original) = (&s.perplexity, &s.reference);
    let (a, b) = (own.value, own.error);
    line(format!("perplexity      {a:.4} ± {b:.4}, of the original {:.4} ± {:.4}", original.value, original.error));
    let (ratio, difference, correlation) = (s.ln_ratio, s.difference, 100.0 * s.correlation);
    line(format!("increase        {:+.4} ± {:.4}", difference.value, difference.error));
    line(format!("ln ratio        {:+.6} ± {:.6}, correlation {correlation:.2}%", ratio.value, ratio.error));
}

fn distances(s: &Statistics) {
    let kl = &s.divergence;
    let at = |part| kl.quantile(part);
    line(format!(
        "KL divergence   {:.6} ± {:.6}, median {:.6}, 90% {:.5}, 95% {:.5}, 99% {:.5}, 99.9% {:.4}, largest {:.4}",
        kl.mean.value,
        kl.mean.error,
        at(0.5),
        at(0.9),
        at(0.95),
        at(0.99),
        at(0.999),
        kl.max
    ));
    let (p, rms) = (&s.delta_p, s.delta_p_rms);
    let at = |part| 100.0 * p.quantile(part);
    line(format!(
        "Δp              {:+.3}% ± {:.3}%, root mean square {:.3}% ± {:.3}%",
        100.0 * p.mean.value,
        100.0 * p.mean.error,
        100.0 * rms.value,
        100.0 * rms.error
    ));
    line(format!(
        "                least {:+.2}%, 1% {:+.2}%, 5% {:+.2}%, 25% {:+.2}%, median {:+.3}%, 75% {:+.2}%, 95% {:+.2}%, 99% {:+.2}%, \
         largest {:+.2}%",
        100.0 * p.min,
        at(0.01),
        at(0.05),
        at(0.25),
        at(0.5),
        at(0.75),
        at(0.95),
        at(0.99),
        100.0 * p.max
    ));
    line(format!("same top token  {:.2}% ± {:.2}%", 100.0 * s.same_top.value, 100.0 * s.same_top.error));
}

fn positions(s: &Statistics) {
    line("");
    line("positions         tokens   perplexity     original   KL divergence          same top token");
    for part in &s.parts {
        let positions = format!("{} to {}", part.positions.start, part.positions.end - 1);
        line(format!(
            "{positions:15} {:>8} {:>12.4} {:>12.4}   {:.6} ± {:.6}   {:.2}%",
            part.perplexity.tokens,
            part.perplexity.value,
            part.reference.value,
            part.divergence.value,
            part.divergence.error,
            100.0 * part.same_top.value
        ));
    }
}

/// A verdict on one or two lines. `scored`: the scored tokens of a window of `context`.
fn in_words(verdict: &Verdict, scored: usize, context: usize) -> String {
    let (low, high) = verdict.interval;
    let rises =
        format!("{:+.2}%, 95% interval {:+.2}% to {:+.2}%", 100.0 * verdict.increase, 100.0 * low, 100.0 * high);
    let Some(more) = verdict.more else {
        let meaning = match verdict.grades.0 {
            Grade::Excellent => "excellent: perplexity rises by less than 1%",
            Grade::Acceptable => "acceptable: perplexity rises by 1% to 2%",
            Grade::Poor => "try a better method or more bits: perplexity rises by 2% to 3%",
            Grade::NotRecommended => "not recommended: perplexity rises by more than 3%",
        };
        return format!("{meaning} ({rises})");
    };
    let limits: Vec<String> = verdict.straddled().map(|limit| format!("{}%", 100.0 * limit)).collect();
    let (best, worst) = (verdict.grades.0.name(), verdict.grades.1.name());
    let enough = if more.is_finite() && more < 1e12 {
        let windows = (more / scored as f64).ceil();
        format!(
            "about {} more scored tokens ({} windows of {context}) should settle it",
            grouped(more),
            grouped(windows)
        )
    } else {
        "it lies on the limit, and no text of any length will settle it".into()
    };
    let limits = limits.join(", ");
    format!(
        "inconclusive, from {best} to {worst}: the interval of the increase contains {limits} ({rises})\n                {enough}"
    )
}
