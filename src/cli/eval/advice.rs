//! What to type after a verdict.

use super::Results;
use crate::cli::output::rounded;
use crate::cli::shell::word;
use crate::eval::perplexity::Protocol;
use crate::eval::saved::SavedLogits;
use crate::eval::verdict::{Grade, Verdict};
use crate::format::mix;

/// A suggestion.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// What it is good for.
    pub why: String,
    /// The command to type.
    pub command: String,
}

/// Mixes that are suggested where more bits are needed, from few bits to many.
const LADDER: [&str; 6] = ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"];

/// What is worth trying after this verdict; nothing where the file is excellent.
pub fn next_steps(results: &Results, verdict: &Verdict) -> Vec<Step> {
    let mut steps = Vec::new();
    let worst = verdict.grades.1;
    // Saved logits cannot be quantized, and bring no more text.
    let reference = match results.args.reference.as_deref() {
        Some(path) if !SavedLogits::is_one(path) => word(path),
        _ => "ORIGINAL".into(),
    };
    if let Some(more) = verdict.more.filter(|more| *more < 1e9) {
        steps.push(longer(results, &reference, more));
    }
    let bits = results.size.bits;
    let better = || Step {
        why: "the same size, but each tensor with the method and the type that it needs".into(),
        command: format!("llmq quantize {reference} --method auto --target-bpw {bits:.2}"),
    };
    let larger = || {
        let name = LADDER.into_iter().find(|name| mix::named(name).is_ok_and(|mix| mix.base.bits() > bits))?;
        Some(Step { why: "more bits".into(), command: format!("llmq quantize {reference} --type {name}") })
    };
    // Nothing is left to try for what has 16 bits.
    let quantized = results.size.file_type.is_some() && bits < 16.0;
    match worst {
        _ if !quantized => {}
        Grade::Excellent => {}
        Grade::Acceptable => steps.push(better()),
        Grade::Poor => steps.extend([better()].into_iter().chain(larger())),
        Grade::NotRecommended => steps.extend(larger().into_iter().chain([better()])),
    }
    steps
}

/// The same command on more text.
fn longer(results: &Results, reference: &str, more: f64) -> Step {
    let args = results.args;
    let perplexity = results.measured.perplexity();
    let scored = perplexity.tokens as f64 / perplexity.windows as f64;
    let windows = perplexity.windows as u64 + rounded((more / scored).ceil());
    let mut command = format!("llmq eval {} --perplexity --reference {reference}", word(&args.model));
    match &args.text.file {
        // There may be more of it than was asked for.
        Some(file) if args.text.chunks.is_some() => command += &format!(" -f {}", word(file)),
        _ => command += " -f LONGER.txt",
    }
    if let Some(context) = args.text.context {
        command += &format!(" -c {context}");
    }
    if args.text.protocol() == Protocol::Hf {
        command += " --protocol hf";
    }
    command += &format!(" --chunks {windows}");
    Step { why: "more text".into(), command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_ladder_is_a_mix_with_more_bits_than_the_one_before() {
        let bits = LADDER.map(|name| mix::named(name).unwrap().base.bits());
        assert!(bits.windows(2).all(|pair| pair[0] < pair[1]), "{bits:?}");
    }
}
