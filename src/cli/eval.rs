//! `llmq eval`: how good a file is.

mod advice;
mod json;
mod layers;
mod show;
mod speed;
mod tasks;

use super::device::OnDevice;
use super::eval_progress::{EvalProgress, Keeping};
use super::output::{self, Progress};
use super::report_files::{Basis, Entry, ReportFiles, weight_lines};
use super::scoring::{self, Setting, Size, Text};
use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Candidate, Reference};
use crate::eval::layers::Layer;
use crate::eval::perplexity::{self, Perplexity, Protocol};
use crate::eval::report::digest_of_tokens;
use crate::eval::saved::{SavedLogits, Saving};
use crate::eval::statistics::{Scored, Statistics};
use crate::eval::verdict::Verdict;
use crate::pipeline::loaded_model::LoadedModel;
use crate::writer::atomic::check_destination;
use advice::Step;
use candle_core::Tensor;
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

    /// Measure how fast it runs here, in llmq's own engine, and how fast the reference does if it is a model
    #[arg(long)]
    speed: bool,

    /// Measure what each block costs, on N windows of the text: the error of the residual stream, and the KL divergence when
    /// only that block is quantized
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "8")]
    layers: Option<usize>,

    #[command(flatten)]
    report_files: ReportFiles,

    #[command(flatten)]
    text: Text,

    #[command(flatten)]
    keeping: Keeping,

    #[command(flatten)]
    tasks: tasks::Tasks,

    /// The pre-tokenizer's name in llama.cpp, if the model's is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    #[command(flatten)]
    on: OnDevice,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Show also how the measures depend on the position in the window, and every part that --layers measures
    #[arg(short, long)]
    verbose: bool,

    /// Replace existing files
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

impl Args {
    /// Whether perplexity is told: a report without it would lack its verdict.
    fn tells_perplexity(&self) -> bool {
        self.perplexity || self.report_files.any()
    }
}

pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let mut loaded = scoring::open(&args.model, args.pre.as_deref())?;
    let mut reference = match &args.reference {
        Some(path) => Some(scoring::reference(path, args.pre.as_deref())?),
        None => None,
    };
    scoring::compute_on(&args.on, [&mut loaded], reference.as_mut())?;
    let progress = Progress::new(false, args.json);
    let reached = args.tasks.run(&loaded, reference.as_ref(), &progress)?;
    let speeds = match args.speed {
        true => Some(speed::run(&loaded, reference.as_ref(), &progress)?),
        false => None,
    };
    let results = match args.tells_perplexity() || (reference.is_some() && !args.speed) {
        true => Some(measure(args, &loaded, reference.as_ref(), &progress)?),
        false => None,
    };
    let weights = match &reference {
        Some(reference) => args.report_files.weights(&loaded, reference, &progress)?,
        None => Vec::new(),
    };
    progress.finish();
    let mut lines = weight_lines(&args.model, &weights);
    lines.extend(results.iter().filter_map(|results| results.layers.as_deref()).flat_map(layers::lines));
    let mut fields = results.as_ref().map_or_else(|| serde_json::json!({ "model": args.model }), json::summary);
    if args.tasks.any() {
        fields["tasks"] = tasks::json(&reached);
    }
    if let Some(speeds) = &speeds {
        fields["speed"] = speed::json(speeds);
    }
    fields["seconds"] = started.elapsed().as_secs_f64().into();
    lines.push(output::tagged("summary", fields));
    if args.json {
        lines.iter().for_each(output::line);
    } else {
        results.iter().for_each(show::show);
        tasks::show(&reached);
        speeds.iter().for_each(speed::show);
    }
    if let (Some(results), Some(reference), Some(path)) = (&results, &reference, &args.reference)
        && let Measured::Against(statistics, verdict) = &results.measured
    {
        let (setting, text) = (results.setting, args.text.name());
        let (own, original) = speeds.map_or((None, None), |speeds| (Some(speeds.own), speeds.original));
        let basis = Basis { path, reference, setting, text, tokens: &results.tokens, speed: original };
        let path = &args.model;
        let file = Entry { path, loaded: &loaded, peer: false, statistics, verdict, tensors: weights, speed: own };
        args.report_files.write(&basis, vec![file], results.layers.clone(), lines, &Progress::new(false, args.json))?;
    }
    results.as_ref().and_then(Results::exceeded).map_or(Ok(()), Err)
}

/// Perplexity, and the distance from a reference.
fn measure<'a>(
    args: &'a Args,
    loaded: &LoadedModel,
    reference: Option<&Reference>,
    progress: &Progress,
) -> Result<Results<'a>> {
    let (setting, cut) = match (reference, &args.reference) {
        (Some(Reference::Saved(saved)), Some(path)) => args.text.saved(path, saved)?,
        _ => args.text.cut(loaded)?,
    };
    let mut saving = match &args.save_logits {
        Some(path) => Some(Saving::create(path, loaded.model.vocab, &cut)?),
        None => None,
    };
    let mut keep = |loaded: &LoadedModel, states: &Tensor| match &mut saving {
        Some(saving) => saving.append_states(loaded, states),
        None => Ok(()),
    };
    let windows = perplexity::begun(cut, loaded, setting.protocol);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let name = args.model.display().to_string();
    let unfinished = match args.save_logits {
        None => {
            let original = (args.reference.as_deref(), reference);
            args.keeping.open(&[(&args.model, loaded)], original, &setting, &windows)?
        }
        Some(_) => None,
    };
    let mut shown = EvalProgress::new(progress, usize::from(reference.is_some()), unfinished);
    let measured = match reference {
        None => {
            let (protocol, parts) = (setting.protocol, &mut shown);
            perplexity::perplexity_in_parts(loaded, &windows, protocol, &mut keep, parts, &show)
                .context(|| format!("cannot evaluate {name}"))
                .map(Measured::Alone)
        }
        Some(reference) => {
            let file = Candidate { loaded, name: &name };
            let (protocol, parts) = (setting.protocol, &mut shown);
            divergence::compare_in_parts(&[file], reference, &windows, protocol, &mut keep, parts, &show)
                .context(|| match &args.reference {
                    Some(path) => format!("cannot compare {name} with {}", path.display()),
                    None => format!("cannot compare {name}"),
                })
                .map(|scored| Measured::against(&scored[0], windows.len(), &setting))
        }
    };
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) => return Err(shown.give_up(error)),
    };
    shown.finish();
    if let (Some(saving), Some(path)) = (saving, &args.save_logits) {
        saving.commit()?;
        let size = path.metadata().map_or(0, |file| file.len());
        output::note(&format!("{}: {}, to be given to --reference", path.display(), output::bytes(size)));
    }
    let layers = match (args.layers, reference) {
        (Some(n), Some(Reference::Model(original))) => {
            Some(layers::measure(loaded, original, &windows[..n.min(windows.len())], setting, progress)?)
        }
        _ => None,
    };
    let tokens = digest_of_tokens(&windows);
    Ok(Results { args, size: Size::of(loaded), setting, measured, layers, tokens })
}

/// Refuses options that do not go together.
fn check(args: &Args) -> Result<()> {
    args.text.check()?;
    layers::check(args)?;
    if !args.perplexity && args.reference.is_none() && !args.tasks.any() && !args.speed {
        return Err(Error::usage("nothing to measure")
            .hint("add --perplexity, --reference MODEL or both, --speed, or tasks such as --hellaswag FILE"));
    }
    if args.max_increase.is_some() && args.reference.is_none() {
        return Err(Error::usage("--max-increase is about an increase over a reference")
            .hint("add --reference MODEL, the model that the file was made from"));
    }
    let inputs: Vec<&Path> = [Some(&args.model), args.reference.as_ref(), args.text.file.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    if args.report_files.any() && args.reference.is_none() {
        return Err(Error::usage("a report and a model card tell how far a file is from its original")
            .hint("add --reference MODEL, the model that the file was made from"));
    }
    args.report_files.check(&inputs, args.force)?;
    let Some(path) = &args.save_logits else { return Ok(()) };
    if args.keeping.resumes() {
        return Err(Error::usage("--save-logits has to see all windows: it does not go with --resume"));
    }
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
    check_destination(path, &inputs, args.force)
}

/// What was measured, and how.
struct Results<'a> {
    args: &'a Args,
    size: Size,
    setting: Setting,
    measured: Measured,
    /// What each block costs, if that was asked for.
    layers: Option<Vec<Layer>>,
    /// SHA-256 of the windows.
    tokens: String,
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
            Measured::Against(_, verdict) if self.args.tells_perplexity() || self.args.max_increase.is_some() => {
                Some(verdict)
            }
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
