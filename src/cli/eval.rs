//! `llmq eval`: how good a file is.

use super::hub::{self, Download};
use super::output::{self, Progress};
use crate::calib::sets::{self, Set};
use crate::calib::text::utf8;
use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Divergence};
use crate::eval::perplexity::{self, Perplexity, Protocol};
use crate::pipeline::subject::Subject;
use crate::source::hub::Need;
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A text that no calibration sees, written for llmq.
const SAMPLE: &str = include_str!("../../eval/heldout.txt");

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A .gguf, a checkpoint folder, or org/name[@revision] on the Hugging Face Hub
    model: PathBuf,

    /// Measure perplexity
    #[arg(long)]
    perplexity: bool,

    /// Measure how far its predictions are from those of this model, which it was made from: a checkpoint folder, a .gguf, or
    /// org/name[@revision] on the hub
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,

    /// The text, in UTF-8 [default: a sample that is built in]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// A set that is fetched instead: the test split of wikitext2, or 1100 validation texts of c4, as the papers use them
    #[arg(long, value_name = "SET", conflicts_with = "file")]
    data: Option<String>,

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
    if !args.perplexity && args.reference.is_none() {
        return Err(Error::usage("nothing to measure").hint("add --perplexity, --reference MODEL or both"));
    }
    let set = args.data.as_deref().map(set).transpose()?;
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let protocol = match args.protocol {
        Choice::LlamaCpp => Protocol::LlamaCpp,
        Choice::Hf => Protocol::Hf,
    };
    let model = hub::find(&args.model, Need::Weights)?;
    let subject = Subject::open(model.path(), args.pre.as_deref())?;
    let reference = match &args.reference {
        Some(path) => {
            let model = hub::find(path, Need::Weights)?;
            Some((path, Subject::open(model.path(), args.pre.as_deref())?))
        }
        None => None,
    };
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
    let text = match (&args.file, set) {
        (Some(path), _) => read(path)?,
        (None, Some(set)) => set.evaluation(&Download::default())?,
        (None, None) => SAMPLE.into(),
    };
    let windows = perplexity::windows(&subject, &text, protocol, context, args.chunks)?;
    let progress = Progress::new(false, args.json);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let (perplexity, divergence) = match &reference {
        None => {
            let result = perplexity::perplexity(&subject, &windows, protocol, &show)
                .context(|| format!("cannot evaluate {}", args.model.display()))?;
            (result, None)
        }
        Some((path, reference)) => {
            let result = divergence::compare(&subject, reference, &windows, protocol, &show)
                .context(|| format!("cannot compare {} with {}", args.model.display(), path.display()))?;
            (result.perplexity, Some(result.divergence))
        }
    };
    progress.finish();
    let results = Results { perplexity, divergence, protocol, context };
    if args.json {
        output::json("summary", results.json(args, started.elapsed().as_secs_f64()));
    } else {
        results.show(args);
    }
    Ok(())
}

/// What was measured, and how.
struct Results {
    perplexity: Perplexity,
    divergence: Option<Divergence>,
    protocol: Protocol,
    context: usize,
}

impl Results {
    fn json(&self, args: &Args, seconds: f64) -> serde_json::Value {
        let mut fields = json!({ "model": args.model });
        if args.perplexity {
            fields["perplexity"] = self.perplexity.value.into();
            fields["perplexity_error"] = self.perplexity.error.into();
        }
        if let Some(divergence) = &self.divergence {
            fields["reference"] = json!(args.reference);
            fields["kl_divergence"] = divergence.mean.into();
            fields["kl_error"] = divergence.error.into();
            fields["kl_p99"] = divergence.p99.into();
            fields["same_top"] = divergence.same_top.into();
        }
        fields["protocol"] = self.protocol.name().into();
        fields["context"] = self.context.into();
        fields["windows"] = self.perplexity.windows.into();
        fields["tokens"] = self.perplexity.tokens.into();
        fields["text"] = args.data.as_ref().map_or_else(|| json!(args.file), |name| json!(name));
        fields["seconds"] = seconds.into();
        fields
    }

    fn show(&self, args: &Args) {
        let Perplexity { value, error, windows, tokens } = self.perplexity;
        let (protocol, context) = (self.protocol.name(), self.context);
        let how = format!("protocol {protocol}, {windows} windows of {context} tokens, {tokens} scored");
        if args.perplexity {
            output::line(format!("perplexity {value:.4} ± {error:.4} ({how})"));
        }
        if let Some(Divergence { mean, error, p99, same_top }) = self.divergence {
            let top = 100.0 * same_top;
            output::line(format!(
                "KL divergence {mean:.6} ± {error:.6}, 99th percentile {p99:.5}, same top token {top:.2}% ({how})"
            ));
        }
    }
}

fn set(name: &str) -> Result<Set> {
    sets::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = sets::SETS.iter().map(|(name, _)| *name).collect();
        Error::usage(format!("--data: there is no set '{name}'"))
            .hint(format!("there are {}; a file goes with -f", known.join(" and ")))
    })
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    utf8(path, bytes)
}
