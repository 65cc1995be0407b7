//! `llmq eval`: how good a file is.

use super::output::{self, Progress};
use crate::calib::text::utf8;
use crate::error::{Context, Error, Result};
use crate::eval::perplexity::{self, Protocol};
use crate::pipeline::subject::Subject;
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A text that no calibration sees, written for llmq.
const SAMPLE: &str = include_str!("../../eval/heldout.txt");

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A .gguf or a checkpoint folder
    model: PathBuf,

    /// Measure perplexity
    #[arg(long)]
    perplexity: bool,

    /// The text, in UTF-8 [default: a sample that is built in]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Tokens per window [default: 512 for llama.cpp; 2048, or the model's context if shorter, for hf]
    #[arg(short = 'c', long = "ctx-size", value_name = "N")]
    context: Option<usize>,

    /// How many windows at most
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,

    /// llama.cpp: windows of 512, second half scored, as llama-perplexity does;
    /// hf: windows of 2048, every target scored, as the GPTQ and AWQ papers do
    #[arg(long, default_value = "llama.cpp")]
    protocol: Choice,

    /// The pre-tokenizer's name in llama.cpp, if the model's is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Choice {
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Hf,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.perplexity {
        return Err(Error::usage("nothing to measure").hint("add --perplexity"));
    }
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let protocol = match args.protocol {
        Choice::LlamaCpp => Protocol::LlamaCpp,
        Choice::Hf => Protocol::Hf,
    };
    let subject = Subject::open(&args.model, args.pre.as_deref())?;
    let context = match args.context {
        Some(n) if n < 4 => {
            return Err(Error::usage(format!("windows of {n} tokens are too short: -c 4 is the least")));
        }
        Some(n) => n,
        None => protocol.usual_context().min(subject.model.context),
    };
    if context > subject.model.context {
        let own = subject.model.context;
        output::note(&format!("note: windows of {context} tokens are longer than the model's context of {own}"));
    }
    if args.chunks == Some(0) {
        return Err(Error::usage("--chunks must be at least 1"));
    }
    let text = match &args.file {
        Some(path) => read(path)?,
        None => SAMPLE.into(),
    };
    let windows = perplexity::windows(&subject, &text, protocol, context, args.chunks)?;
    let progress = Progress::new(false, args.json);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let result = perplexity::perplexity(&subject, &windows, protocol, &show)
        .context(|| format!("cannot evaluate {}", args.model.display()))?;
    progress.finish();
    if args.json {
        output::json(
            "summary",
            json!({
                "model": args.model,
                "perplexity": result.value,
                "perplexity_error": result.error,
                "protocol": protocol.name(),
                "context": context,
                "windows": result.windows,
                "tokens": result.tokens,
                "text": args.file,
                "seconds": started.elapsed().as_secs_f64(),
            }),
        );
    } else {
        output::line(format!(
            "perplexity {:.4} ± {:.4} (protocol {}, {} windows of {context} tokens, {} scored)",
            result.value,
            result.error,
            protocol.name(),
            result.windows,
            result.tokens
        ));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    utf8(path, bytes)
}
