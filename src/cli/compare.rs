//! `llmq compare`: which of several files is nearest to their original.

use super::device::OnDevice;
use super::eval_progress::{EvalProgress, Keeping};
use super::output::{self, Progress, line};
use super::report_files::{Basis, Entry, ReportFiles, weight_lines};
use super::scoring::{self, Setting, Size, Text};
use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Candidate, Reference};
use crate::eval::perplexity;
use crate::eval::ranking::{Pair, pairs, ranking};
use crate::eval::report::digest_of_tokens;
use crate::eval::statistics::Statistics;
use crate::eval::verdict::Verdict;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files to compare, each a .gguf or a checkpoint folder
    #[arg(required = true)]
    models: Vec<PathBuf>,

    /// The model that they were made from: a checkpoint folder, a .gguf, or logits that `llmq eval --save-logits` saved
    #[arg(long, value_name = "MODEL")]
    reference: PathBuf,

    /// A file that others made, for example llama-quantize: compared, too, and drawn as a curve of its own; repeatable
    #[arg(long, value_name = "FILE")]
    peer: Vec<PathBuf>,

    #[command(flatten)]
    report_files: ReportFiles,

    #[command(flatten)]
    text: Text,

    #[command(flatten)]
    keeping: Keeping,

    /// The pre-tokenizer's name in llama.cpp, if the models' is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    #[command(flatten)]
    on: OnDevice,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

/// What was found out about one file.
struct Row {
    name: String,
    peer: bool,
    size: Size,
    statistics: Statistics,
    verdict: Verdict,
}

pub fn run(args: &Args) -> Result<()> {
    let paths: Vec<&Path> = args.models.iter().chain(&args.peer).map(PathBuf::as_path).collect();
    if paths.len() < 2 {
        let model = args.models[0].display();
        return Err(Error::usage("there is nothing to compare one file with").hint(format!(
            "name several, or judge the one: llmq eval {model} --perplexity --reference {}",
            args.reference.display()
        )));
    }
    let inputs = paths.iter().copied().chain([args.reference.as_path()]).chain(args.text.file.as_deref());
    args.report_files.check(&inputs.collect::<Vec<_>>(), args.force)?;
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let pre = args.pre.as_deref();
    let mut all_loaded = paths.iter().map(|path| scoring::open(path, pre)).collect::<Result<Vec<_>>>()?;
    let mut reference = scoring::reference(&args.reference, pre)?;
    scoring::compute_on(&args.on, &mut all_loaded, Some(&mut reference))?;
    let (setting, cut) = match &reference {
        Reference::Saved(saved) => args.text.saved(&args.reference, saved)?,
        Reference::Model(_) => args.text.cut(&all_loaded[0])?,
    };
    let windows = perplexity::begun(cut, &all_loaded[0], setting.protocol);
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let files: Vec<Candidate> =
        all_loaded.iter().zip(&names).map(|(loaded, name)| Candidate { loaded, name }).collect();
    let progress = Progress::new(false, args.json);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let models: Vec<_> = paths.iter().copied().zip(&all_loaded).collect();
    let unfinished = args.keeping.open(&models, (Some(&args.reference), Some(&reference)), &setting, &windows)?;
    let mut shown = EvalProgress::new(&progress, files.len(), unfinished);
    let (protocol, parts) = (setting.protocol, &mut shown);
    let scored = divergence::compare_in_parts(&files, &reference, &windows, protocol, &mut |_, _| Ok(()), parts, &show);
    let scored = match scored.context(|| format!("cannot compare with {}", args.reference.display())) {
        Err(error) => return Err(shown.give_up(error)),
        Ok(scored) => scored,
    };
    shown.finish();

    let first = setting.protocol.first(setting.context);
    let rows = files.iter().zip(&scored).enumerate().map(|(i, (file, tokens))| Row {
        name: file.name.into(),
        peer: i >= args.models.len(),
        size: Size::of(file.loaded),
        statistics: Statistics::of(tokens, setting.context, first),
        verdict: Verdict::of(tokens, windows.len()),
    });
    let (rows, order): (Vec<Row>, _) = (rows.collect(), ranking(&scored));
    let pairs = pairs(&scored, windows.len());
    let entry = |&at: &usize| -> Result<Entry> {
        let (Row { peer, statistics, verdict, .. }, loaded) = (&rows[at], &all_loaded[at]);
        let tensors = args.report_files.weights(loaded, &reference, &progress).context(|| rows[at].name.clone())?;
        Ok(Entry { path: paths[at], loaded, peer: *peer, statistics, verdict, tensors, speed: None })
    };
    let entries = order.iter().map(entry).collect::<Result<Vec<_>>>()?;
    progress.finish();
    let mut lines = tell(args, &setting, &rows, &order, &pairs, started.elapsed().as_secs_f64());
    let weights = entries.iter().flat_map(|entry| weight_lines(entry.path, &entry.tensors));
    lines.splice(..0, weights);
    if args.json {
        lines.iter().for_each(line);
    } else {
        show_table(&setting, &rows, &order);
        show_pairs(&rows, &order, &pairs);
    }
    let (text, tokens) = (args.text.name(), digest_of_tokens(&windows));
    let basis = Basis { path: &args.reference, reference: &reference, setting, text, tokens: &tokens, speed: None };
    args.report_files.write(&basis, entries, None, lines, &Progress::new(false, args.json))
}

fn show_table(setting: &Setting, rows: &[Row], order: &[usize]) {
    let wide = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(8);
    line(format!(
        "{:wide$} {:>15} {:>6} {:>20} {:>9} {:>22} {:>9} {:>9}",
        "file", "bytes", "bits", "perplexity", "increase", "KL divergence", "99%", "same top"
    ));
    let original = rows[0].statistics.reference;
    line(format!("{:wide$} {:>15} {:>6} {:>20}", "original", "", "", around(original.value, original.error, 4)));
    for &at in order {
        let Row { name, size, statistics, verdict, .. } = &rows[at];
        let (own, kl) = (statistics.perplexity, &statistics.divergence);
        line(format!(
            "{name:wide$} {:>15} {:>6.2} {:>20} {:>+8.2}% {:>22} {:>9.5} {:>8.2}%",
            size.bytes,
            size.bits,
            around(own.value, own.error, 4),
            100.0 * verdict.increase,
            around(kl.mean.value, kl.mean.error, 6),
            kl.quantile(0.99),
            100.0 * statistics.same_top.value
        ));
    }
    let (n, context, name) = (original.windows, setting.context, setting.protocol.name());
    line(format!("measured on {n} windows of {context} tokens, {} scored, protocol {name}", original.tokens));
}

fn around(value: f64, error: f64, digits: usize) -> String {
    format!("{value:.digits$} ± {error:.digits$}")
}

/// Each file against the next in the ranking.
fn show_pairs(rows: &[Row], order: &[usize], pairs: &[Pair]) {
    line("");
    for next in order.windows(2) {
        let Some(pair) = pairs.iter().find(|pair| [pair.better, pair.worse] == *next) else { continue };
        let (better, worse) = (&rows[pair.better], &rows[pair.worse]);
        let by = around(pair.divergence.mean, pair.divergence.error, 6);
        let p = if pair.p < 1e-4 { "p < 0.0001".into() } else { format!("p = {:.4}", pair.p) };
        line(match pair.is_beyond_noise() {
            true => format!("{} is better than {}: its KL divergence is lower by {by} ({p})", better.name, worse.name),
            false => format!(
                "{} and {} cannot be told apart: their KL divergences differ by {by} ({p})",
                better.name, worse.name
            ),
        });
    }
    if let [first, ..] = order {
        let best = &rows[*first];
        let smaller = order.iter().map(|&at| &rows[at]).filter(|row| row.size.bytes < best.size.bytes);
        if let Some(smallest) = smaller.min_by_key(|row| row.size.bytes) {
            line(format!("nearest to the original: {}; smallest: {}", best.name, smallest.name));
        } else {
            line(format!("nearest to the original, and smallest: {}", best.name));
        }
    }
}

/// What `--json` prints.
fn tell(args: &Args, setting: &Setting, rows: &[Row], order: &[usize], pairs: &[Pair], seconds: f64) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut push = |tag: &str, fields: Value| lines.push(output::tagged(tag, fields));
    for &at in order {
        let Row { name, peer, size, statistics, verdict } = &rows[at];
        push(
            "file",
            json!({
                "model": name,
                "peer": peer,
                "bytes": size.bytes,
                "bits_per_weight": size.bits,
                "perplexity": statistics.perplexity.value,
                "perplexity_error": statistics.perplexity.error,
                "relative_increase": verdict.increase,
                "interval": [verdict.interval.0, verdict.interval.1],
                "grade": verdict.settled().map_or("inconclusive", |grade| grade.name()),
                "kl_divergence": statistics.divergence.mean.value,
                "kl_error": statistics.divergence.mean.error,
                "kl_p99": statistics.divergence.quantile(0.99),
                "kl_histogram": scoring::histogram(&statistics.histogram),
                "same_top": statistics.same_top.value,
                "same_top_error": statistics.same_top.error,
            }),
        );
    }
    for pair in pairs {
        push(
            "pair",
            json!({
                "better": rows[pair.better].name,
                "worse": rows[pair.worse].name,
                "kl_difference": pair.divergence.mean,
                "kl_difference_error": pair.divergence.error,
                "ln_ratio": pair.ln_ratio.mean,
                "ln_ratio_error": pair.ln_ratio.error,
                "p": pair.p,
                "beyond_noise": pair.is_beyond_noise(),
            }),
        );
    }
    let original = rows[0].statistics.reference;
    push(
        "summary",
        json!({
            "reference": args.reference,
            "reference_perplexity": original.value,
            "reference_perplexity_error": original.error,
            "ranking": order.iter().map(|&at| &rows[at].name).collect::<Vec<_>>(),
            "protocol": setting.protocol.name(),
            "context": setting.context,
            "windows": original.windows,
            "tokens": original.tokens,
            "text": args.text.name(),
            "seconds": seconds,
        }),
    );
    lines
}
