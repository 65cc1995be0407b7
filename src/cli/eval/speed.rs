//! `llmq eval --speed`: how fast a file and its original run here.

use crate::cli::output::{self, Progress, line};
use crate::error::{Context, Result};
use crate::eval::divergence::Reference;
use crate::eval::speed::{Speed, Spread, measure};
use crate::pipeline::loaded_model::LoadedModel;
use serde_json::{Value, json};

/// A text that is read and continued.
const TEXT: &str = include_str!("../../../eval/heldout.txt");

/// Of a file and, if it is a model, its reference.
pub struct Speeds {
    /// Of the file.
    pub own: Speed,
    /// Of its original.
    pub original: Option<Speed>,
}

/// # Errors
/// As [`measure`].
pub fn run(loaded: &LoadedModel, reference: Option<&Reference>, progress: &Progress) -> Result<Speeds> {
    let of = |loaded: &LoadedModel| {
        let text = loaded.tokenizer.encode(TEXT)?;
        measure(loaded, &text, &|done, total| progress.set(done as u64, total as u64))
            .context(|| "cannot measure the speed".into())
    };
    let original = match reference {
        Some(Reference::Model(original)) => Some(of(original).context(|| "running the reference".into())?),
        Some(Reference::Saved(_)) | None => None,
    };
    Ok(Speeds { own: of(loaded)?, original })
}

/// As people read it.
pub fn show(speeds: &Speeds) {
    let own = &speeds.own;
    line(format!(
        "speed           of llmq's own engine on this CPU, not of llama.cpp: {} threads, median of {} runs (least to most)",
        own.threads, own.runs
    ));
    let named = [("of the file", Some(own)), ("of the original", speeds.original.as_ref())];
    for (name, speed) in named.into_iter().filter_map(|(name, speed)| Some((name, speed?))) {
        let memory = speed.peak_memory.map_or(String::new(), |bytes| format!(", peak memory {}", output::bytes(bytes)));
        line(format!("{name:15} {}{memory}", output::bytes(speed.bytes)));
        let (prompt, generated) = (speed.prompt_tokens, speed.generated_tokens);
        let first = spread(speed.first_token_seconds, 3, " s");
        line(format!("{:15} first token after {first}, prompt of {prompt} tokens", ""));
        line(format!("{:15} prompt {}", "", spread(speed.prompt_rate, 1, " tokens/s")));
        let rate = spread(speed.generation_rate, 1, " tokens/s");
        line(format!("{:15} generation {rate}, {generated} tokens", ""));
    }
}

fn spread(Spread { median, least, most }: Spread, digits: usize, unit: &str) -> String {
    format!("{median:.digits$}{unit} ({least:.digits$} to {most:.digits$})")
}

/// As JSON.
pub fn json(speeds: &Speeds) -> Value {
    json!({ "own": speeds.own, "reference": speeds.original })
}
