//! What `llmq quantize` says about a file that it has made, or would make.

use super::fallbacks;
use super::output::{self, bytes, time};
use crate::pipeline::report::{self, Summary, TensorReport};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// One tensor on one line.
pub fn tensor_line(report: &TensorReport) -> String {
    let shape: Vec<String> = report.shape.iter().map(ToString::to_string).collect();
    let error = report.error.map_or(String::new(), |e| format!("  error {:.4}%", 100.0 * e));
    let method = report.method.map_or(String::new(), |name| format!("  {name}"));
    let cost = signed(report.fallback_cost.unwrap_or_default());
    let instead = report.instead_of.map_or(String::new(), |t| format!("  instead of {}, costs {cost}", t.name()));
    format!(
        "{:28} {:>14}  {:>4} -> {:5} {:>10}{error}{method}{instead}",
        report.name,
        shape.join(" x "),
        report.from,
        report.kind.name(),
        bytes(report.bytes)
    )
}

/// One tensor's fields.
pub fn tensor_json(report: &TensorReport) -> serde_json::Value {
    json!({
        "name": report.name,
        "shape": report.shape,
        "from": report.from,
        "to": report.kind.name(),
        "instead_of": report.instead_of.map(|t| t.name()),
        "fallback_bytes": report.fallback_cost,
        "bytes": report.bytes,
        "relative_error": report.error,
        "method": report.method,
        "vanished": report.vanished,
    })
}

/// A run's fields. `decided`: what no option has decided.
pub fn summary_json(summary: &Summary, decided: Option<&str>, paths: &[PathBuf], took: Duration) -> serde_json::Value {
    let parts = summary.clock.parts();
    let seconds: serde_json::Map<_, _> = parts.iter().map(|(k, t)| (k.to_string(), t.as_secs_f64().into())).collect();
    json!({
        "output": paths[0],
        "files": paths,
        "bytes": summary.bytes,
        "elements": summary.elements,
        "bits_per_weight": bits_per_weight(summary),
        "seconds": took.as_secs_f64(),
        "seconds_in": seconds,
        "linear_multiplications": summary.clock.multiplications,
        "peak_memory_bytes": report::peak_memory(),
        "calibration_tokens": summary.tokens,
        "mean_relative_error": mean_error(summary),
        "decided": decided,
        "notes": summary.notes,
        "fallbacks": summary.fallbacks(),
        "fallback_bytes": summary.fallback_bytes(),
    })
}

fn bits_per_weight(summary: &Summary) -> f64 {
    8.0 * summary.tensors.iter().map(|t| t.bytes).sum::<u64>() as f64 / summary.elements as f64
}

/// The mean relative error of the tensors that were rounded to codes.
fn mean_error(summary: &Summary) -> Option<f64> {
    let errors: Vec<f64> = summary.tensors.iter().filter_map(|t| t.error).collect();
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
}

/// The names of the files, the way they are mentioned.
pub fn shown(paths: &[PathBuf]) -> String {
    match paths {
        [only] => only.display().to_string(),
        [first, .., last] => format!("{} to {}", first.display(), last.display()),
        [] => String::new(),
    }
}

/// A run in a few lines. `decided`: what no option has decided.
pub fn show(summary: &Summary, decided: Option<&str>, paths: &[PathBuf], took: Duration) {
    let bits = bits_per_weight(summary);
    output::note(&format!("{}: {}, {bits:.2} bits per weight", shown(paths), bytes(summary.bytes)));
    let mut worst: Vec<&TensorReport> = summary.tensors.iter().filter(|t| t.error.is_some()).collect();
    worst.sort_by(|a, b| b.error.partial_cmp(&a.error).unwrap_or(std::cmp::Ordering::Equal));
    if let Some(mean) = mean_error(summary) {
        let of = if summary.tokens > 0 { "outputs" } else { "weights" };
        output::note(&format!("relative error of {of}: {:.3}% on average, the largest:", 100.0 * mean));
        for tensor in worst.iter().take(3) {
            output::note(&format!("  {:28} {:.3}%", tensor.name, 100.0 * tensor.error.unwrap_or_default()));
        }
    }
    let parts: Vec<String> = summary
        .clock
        .parts()
        .iter()
        .filter(|(_, t)| t.as_secs_f64() >= 0.005 * took.as_secs_f64())
        .map(|(name, t)| format!("{name} {}", time(*t)))
        .collect();
    output::note(&format!("{} in all: {}", time(took), parts.join(", ")));
    if let Some(peak) = report::peak_memory() {
        output::note(&format!("peak memory {}", bytes(peak)));
    }
    if summary.tokens > 0 {
        output::note(&format!("calibrated on {} tokens", summary.tokens));
    }
    let fallbacks = fallbacks::lines(summary.tensors.iter());
    for note in decided.into_iter().chain(fallbacks.iter().chain(&summary.notes).map(String::as_str)) {
        output::note(&format!("note: {note}"));
    }
}

/// A difference of sizes.
fn signed(cost: i64) -> String {
    let sign = if cost < 0 { "-" } else { "" };
    format!("{sign}{}", bytes(cost.unsigned_abs()))
}
