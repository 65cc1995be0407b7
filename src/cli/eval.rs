//! `llmq eval`: how good a file is.

mod advice;
mod json;
mod show;
mod tasks;

use super::output::{self, Progress};
use super::scoring::{self, Setting, Size, Text};
use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Candidate, Reference};
use crate::eval::perplexity::{self, Perplexity, Protocol};
use crate::eval::saved::{SavedLogits, Saving};
use crate::eval::statistics::{Scored, Statistics};
use crate::eval::verdict::Verdict;
use crate::pipeline::subject::Subject;
use crate::writer::atomic::check_destination;
use advice::Step;
use candle_core::Tensor;
pub(super) use show::grouped;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A .gguf, a checkpoint folder, or org/name[@revision] on the Hugging Face Hub
    model: PathBuf,

    /// Measure perplexity
    #[arg(long)]
    perplexity: bool,

    /// Measure how far its predictions are from those of this model, which it was made from: a checkpoint folder, a
    /// .gguf, org/name[@revision] on the hub, or logits that were saved
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,

    /// Save the log-probabilities of the reference, or of the model if there is none, in llama-perplexity's format; --reference
    /// takes that file instead of the model
    #[arg(long, value_name = "FILE")]
    save_logits: Option<PathBuf>,

    /// Exit with code 1 if perplexity rises by more than this over the reference's: 2% is two per cent
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_increase: Option<f64>,

    #[command(flatten)]
    text: Text,

    #[command(flatten)]
    tasks: tasks::Tasks,

    /// The pre-tokenizer's name in llama.cpp, if the model's is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Show also how the measures depend on the position in the window
    #[arg(short, long)]
    verbose: bool,

    /// Replace an existing file of logits
    #[arg(long)]
    force: bool,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

/// A relative increase, from a number of per cent.
fn percent(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x / 100.0),
        _ => Err("not a number of per cent, for example 2% or 0.5%".into()),
    }
}

pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let subject = scoring::open(&args.model, args.pre.as_deref())?;
    let reference = match &args.reference {
        Some(path) => Some(scoring::reference(path, args.pre.as_deref())?),
        None => None,
    };
    let progress = Progress::new(false, args.json);
    let reached = args.tasks.run(&subject, reference.as_ref(), &progress)?;
    let results = match args.perplexity || reference.is_some() {
        true => Some(measure(args, &subject, reference.as_ref(), &progress)?),
        false => None,
    };
    progress.finish();
    if args.json {
        let mut fields = results.as_ref().map_or_else(|| serde_json::json!({ "model": args.model }), json::summary);
        if args.tasks.any() {
            fields["tasks"] = tasks::json(&reached);
        }
        fields["seconds"] = started.elapsed().as_secs_f64().into();
        output::json("summary", fields);
    } else {
        results.iter().for_each(show::show);
        tasks::show(&reached);
    }
    results.as_ref().and_then(Results::exceeded).map_or(Ok(()), Err)
}

/// Perplexity, and the distance from a reference.
fn measure<'a>(
    args: &'a Args,
    subject: &Subject,
    reference: Option<&Reference>,
    progress: &Progress,
) -> Result<Results<'a>> {
    let (setting, cut) = match (reference, &args.reference) {
        (Some(Reference::Saved(saved)), Some(path)) => args.text.saved(path, saved)?,
        _ => args.text.cut(subject)?,
    };
    let mut saving = match &args.save_logits {
        Some(path) => Some(Saving::create(path, subject.model.vocab, &cut)?),
        None => None,
    };
    let mut keep = |subject: &Subject, states: &Tensor| match &mut saving {
        Some(saving) => saving.append_states(subject, states),
        None => Ok(()),
    };
    let windows = perplexity::begun(cut, subject, setting.protocol);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let name = args.model.display().to_string();
    let measured = match reference {
        None => {
            let result = perplexity::perplexity(subject, &windows, setting.protocol, &mut keep, &show)
                .context(|| format!("cannot evaluate {name}"))?;
            Measured::Alone(result)
        }
        Some(reference) => {
            let file = Candidate { subject, name: &name };
            let scored = divergence::compare(&[file], reference, &windows, setting.protocol, &mut keep, &show)
                .context(|| match &args.reference {
                    Some(path) => format!("cannot compare {name} with {}", path.display()),
                    None => format!("cannot compare {name}"),
                })?;
            Measured::against(&scored[0], windows.len(), &setting)
        }
    };
    if let (Some(saving), Some(path)) = (saving, &args.save_logits) {
        saving.commit()?;
        let size = path.metadata().map_or(0, |file| file.len());
        output::note(&format!("{}: {}, to be given to --reference", path.display(), output::bytes(size)));
    }
    Ok(Results { args, size: Size::of(subject), setting, measured })
}

/// Refuses options that do not go together.
fn check(args: &Args) -> Result<()> {
    args.text.check()?;
    if !args.perplexity && args.reference.is_none() && !args.tasks.any() {
        return Err(Error::usage("nothing to measure")
            .hint("add --perplexity, --reference MODEL or both, or tasks such as --hellaswag FILE"));
    }
    if args.max_increase.is_some() && args.reference.is_none() {
        return Err(Error::usage("--max-increase is about an increase over a reference")
            .hint("add --reference MODEL, the model that the file was made from"));
    }
    let Some(path) = &args.save_logits else { return Ok(()) };
    if !args.perplexity && args.reference.is_none() {
        return Err(Error::usage("--save-logits saves what is measured").hint("add --perplexity"));
    }
    if args.text.protocol() == Protocol::Hf {
        return Err(Error::usage(
            "--save-logits writes llama-perplexity's format, which scores the second half of windows",
        )
        .hint("leave --protocol hf out"));
    }
    if args.reference.as_deref().is_some_and(SavedLogits::is_one) {
        return Err(Error::usage("--save-logits would save again what --reference has saved already"));
    }
    let inputs: Vec<&Path> = [Some(&args.model), args.reference.as_ref(), args.text.file.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    check_destination(path, &inputs, args.force)
}

/// What was measured, and how.
struct Results<'a> {
    args: &'a Args,
    size: Size,
    setting: Setting,
    measured: Measured,
}

/// Of a model alone its perplexity, of a model and its reference everything.
enum Measured {
    Alone(Perplexity),
    Against(Box<Statistics>, Verdict),
}

impl Measured {
    fn against(tokens: &[Scored], windows: usize, setting: &Setting) -> Measured {
        let statistics = Statistics::of(tokens, setting.context, setting.protocol.first(setting.context));
        Measured::Against(Box::new(statistics), Verdict::of(tokens, windows))
    }

    fn perplexity(&self) -> Perplexity {
        match self {
            Measured::Alone(perplexity) => *perplexity,
            Measured::Against(statistics, _) => statistics.perplexity,
        }
    }
}

impl Results<'_> {
    /// The verdict, if it was asked for.
    fn verdict(&self) -> Option<&Verdict> {
        match &self.measured {
            Measured::Against(_, verdict) if self.args.perplexity || self.args.max_increase.is_some() => Some(verdict),
            _ => None,
        }
    }

    fn steps(&self) -> Vec<Step> {
        self.verdict().map_or_else(Vec::new, |verdict| advice::next_steps(self, verdict))
    }

    /// What `--max-increase` has to say.
    fn exceeded(&self) -> Option<Error> {
        let (most, verdict) = (self.args.max_increase?, self.verdict()?);
        if verdict.increase <= most {
            return None;
        }
        let (name, most, (low, high)) = (self.args.model.display(), 100.0 * most, verdict.interval);
        let (increase, low, high) = (100.0 * verdict.increase, 100.0 * low, 100.0 * high);
        let what = format!(
            "{name}: perplexity rises by {increase:.2}% (95% interval {low:+.2}% to {high:+.2}%), more than the {most}% of \
             --max-increase"
        );
        let hint = self.steps().first().map(|step| format!("{}: {}", step.why, step.command));
        let error = Error::new(what);
        Some(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }
}
