//! What `--refine` shows.

use crate::cli::output::{Progress, line};
use crate::error::Result;
use crate::int8::qdq::CalibratedGraph;
use crate::int8::refine::{self, LEAST, Name, Refined, Report, Step};
use serde_json::{Value, json};

/// Refines, and shows how it goes.
pub fn refine(given: CalibratedGraph, json: bool) -> Result<Refined> {
    let progress = Progress::new(false, json);
    let mut current = None;
    let told = &mut |name: Name, done: usize, total: usize| {
        if current != Some(name) {
            current = Some(name);
            progress.say(name.name());
        }
        progress.set(done as u64, total as u64);
    };
    let refined = refine::refine(given, told)?;
    progress.finish();
    Ok(refined)
}

/// Whether there were samples enough.
fn too_few(report: &Report) -> bool {
    report.judge == 0
}

pub fn show(report: &Report, samples: usize) {
    if too_few(report) {
        line(format!(
            "refined        not at all: {samples} samples are too few to tell what helps, {LEAST} are needed"
        ));
        return;
    }
    let Report { teach, judge, steps } = report;
    line(format!("refined        from {teach} samples, judged by {judge} others"));
    for step in steps {
        line(format!("               {}", words(step)));
    }
}

/// What a step brought, for people.
fn words(step: &Step) -> String {
    let Step { name, changed, all, before, after, kept } = step;
    let (what, where_to) = match name {
        Name::Balance => ("balance", "activations"),
        Name::Rounding => ("rounding with error feedback", "layers"),
        Name::Bias => ("bias correction", "layers"),
    };
    let Some(after) = after else { return format!("{what}: nothing to change in {all} {where_to}") };
    let verdict = if *kept { "kept" } else { "dropped" };
    let gain = after - before;
    format!("{what} of {changed} of {all} {where_to}: {before:.2} to {after:.2} dB ({gain:+.2}), {verdict}")
}

pub fn tell(report: &Report) -> Value {
    let step = |step: &Step| {
        json!({
            "step": step.name.name(),
            "changed": step.changed,
            "of": step.all,
            "sqnr_before": step.before,
            "sqnr_after": step.after,
            "kept": step.kept,
        })
    };
    json!({
        "samples": report.teach,
        "held_out": report.judge,
        "too_few": too_few(report),
        "steps": report.steps.iter().map(step).collect::<Vec<_>>(),
    })
}
