//! `llmq int8 validate`: is a quantized graph good enough?

use super::calibration;
use crate::cli::output::grouped;
use crate::cli::output::{self, Progress, line};
use crate::error::{Context, Error, Result};
use crate::eval::verdict::CONFIDENCE;
use crate::int8::compare::{Comparison, LEAST_SQNR, compare, trusted};
use crate::int8::engine::Engine;
use crate::int8::onnx::OnnxFile;
use crate::int8::statistics::{Loss, Task};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "Without labels it exits with code 1 where an output has an SQNR below 10 dB.")]
pub struct Args {
    /// The float ONNX file
    original: PathBuf,

    /// What was made from it
    quantized: PathBuf,

    /// Inputs to judge on, none of which calibration has seen: .npz or .npy files, or folders of them; an array 'labels'
    /// with the true class of each sample makes a verdict about accuracy possible
    #[arg(long, value_name = "FILES", num_args = 1.., required = true)]
    data: Vec<PathBuf>,

    /// What the model is for, which decides about what may be lost
    #[arg(long, value_name = "TASK", default_value = "image")]
    task: Named,

    /// Exit with code 1 if accuracy falls by more than this many points
    #[arg(long, value_name = "POINTS")]
    max_loss: Option<f64>,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Named {
    /// Excellent below 1 point, acceptable up to 2
    Image,
    /// Excellent below 1 point, acceptable up to 2
    Detection,
    /// Excellent below 0.5 points, acceptable up to 1
    Nlp,
    /// Acceptable up to 0.5 points
    Critical,
}

impl Named {
    pub fn task(self) -> Task {
        match self {
            Named::Image => Task::Image,
            Named::Detection => Task::Detection,
            Named::Nlp => Task::Nlp,
            Named::Critical => Task::Critical,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    crate::cli::use_threads(args.threads)?;
    let (original, quantized) = (OnnxFile::open(&args.original)?, OnnxFile::open(&args.quantized)?);
    trusted(&original.model)?;
    trusted(&quantized.model)?;
    let engine = |file: &OnnxFile| Engine::new(&file.model).context(|| format!("cannot run {}", file.path.display()));
    let engines = (engine(&original)?, engine(&quantized)?);
    let samples = calibration::open(&args.data, &engines.0)?;
    if args.max_loss.is_some() && !samples.labelled() {
        return Err(Error::usage("--max-loss is about accuracy, but the data have no labels")
            .hint("add an array 'labels' with the class of each sample"));
    }
    let progress = Progress::new(false, args.json);
    let total = samples.len() as u64;
    let found = compare(&engines.0, &engines.1, &samples, &mut |done| progress.set(done as u64, total))?;
    progress.finish();
    let loss = found.counts.map(|counts| Loss::of(counts, args.task.task().limits()));
    if args.json {
        output::json("summary", summary(args, &found, loss.as_ref(), original.bytes, quantized.bytes));
    } else {
        show(&found, loss.as_ref());
    }
    match (args.max_loss, loss) {
        (Some(most), Some(loss)) if 100.0 * loss.points > most => Err(Error::new(format!(
            "accuracy falls by {:.2} points, more than the {most} of --max-loss",
            100.0 * loss.points
        ))
        .hint(BLAME)),
        (None, None) => ruined(&found).map_or(Ok(()), |told| Err(Error::new(told).hint(BLAME))),
        _ => Ok(()),
    }
}

const BLAME: &str = "find the layers to blame: llmq int8 sensitivity";

/// What is wrong where an output is so far from the original's that labels are not needed to say so.
fn ruined(found: &Comparison) -> Option<String> {
    let output = found.ruined()?;
    let (name, sqnr) = (&output.name, output.likeness.sqnr());
    Some(format!("output '{name}' has an SQNR of {sqnr:.2} dB; below {LEAST_SQNR}, a model is not usable for anything"))
}

fn show(found: &Comparison, loss: Option<&Loss>) {
    line(format!("samples        {}", found.samples));
    for output in &found.outputs {
        let likeness = &output.likeness;
        line(format!(
            "output         {}: SQNR {:.2} dB, cosine {:.6} (least {:.6})",
            output.name,
            likeness.sqnr(),
            likeness.cosine(),
            likeness.least_cosine()
        ));
        if output.chooses {
            let (agree, rows) = (100.0 * likeness.agreement(), likeness.rows());
            line(format!("               the largest number is at the same place in {agree:.2}% of {rows} rows"));
        }
    }
    let Some(loss) = loss else {
        match ruined(found) {
            Some(told) => line(format!("verdict        unsuitable: {told}")),
            None => line("verdict        none about accuracy: the data have no labels"),
        }
        return;
    };
    let counts = &loss.counts;
    line(format!(
        "accuracy       {:.2}% of the original, {:.2}% quantized, of {} samples: {} lost, {} gained",
        100.0 * counts.original(),
        100.0 * counts.quantized(),
        counts.total(),
        counts.lost,
        counts.gained
    ));
    line(format!("verdict        {}", in_words(loss)));
}

/// A verdict on one or two lines.
pub fn in_words(loss: &Loss) -> String {
    let (low, high) = loss.interval;
    let mut size =
        format!("{:+.2} points, 95% interval {:+.2} to {:+.2}", 100.0 * loss.points, 100.0 * low, 100.0 * high);
    if let Some((part, (low, high))) = loss.relative() {
        size += &format!("; {:+.2}% of the accuracy, {:+.2}% to {:+.2}%", 100.0 * part, 100.0 * low, 100.0 * high);
    }
    let limits = loss.limits.map(|limit| 100.0 * limit);
    let Some(more) = loss.more else {
        let grade = loss.grades.0;
        let between = match grade as usize {
            0 => format!("less than {}", limits[0]),
            n @ (1 | 2) => format!("{} to {}", limits[n - 1], limits[n]),
            _ => format!("more than {}", limits[2]),
        };
        return format!("{}: the loss is {between} points ({size})", grade.name());
    };
    let straddled: Vec<String> = loss.straddled().map(|limit| format!("{}", 100.0 * limit)).collect();
    let enough = if more.is_finite() && more < 1e12 {
        format!("about {} more samples should settle it", grouped(more))
    } else {
        "it lies on the limit, and no number of samples will settle it".into()
    };
    format!(
        "inconclusive, from {} to {}: the interval of the loss contains {} ({size})\n               {enough}",
        loss.grades.0.name(),
        loss.grades.1.name(),
        straddled.join(", ")
    )
}

fn summary(args: &Args, found: &Comparison, loss: Option<&Loss>, original: u64, quantized: u64) -> Value {
    let outputs = found.outputs.iter().map(|output| {
        let likeness = &output.likeness;
        let sqnr = Some(likeness.sqnr()).filter(|sqnr| sqnr.is_finite());
        json!({
            "name": output.name,
            "sqnr": sqnr,
            "cosine": likeness.cosine(),
            "least_cosine": likeness.least_cosine(),
            "agreement": output.chooses.then(|| likeness.agreement()),
        })
    });
    json!({
        "original": args.original,
        "quantized": args.quantized,
        "original_bytes": original,
        "bytes": quantized,
        "samples": found.samples,
        "outputs": outputs.collect::<Vec<_>>(),
        "verdict": loss.map(|loss| verdict(loss, args.max_loss)).or_else(|| {
            ruined(found).map(|told| json!({ "grade": "unsuitable", "why": told }))
        }),
    })
}

fn verdict(loss: &Loss, most: Option<f64>) -> Value {
    json!({
        "grade": loss.settled().map_or("inconclusive", |grade| grade.name()),
        "between": [loss.grades.0.name(), loss.grades.1.name()],
        "accuracy": loss.counts.quantized(),
        "original_accuracy": loss.counts.original(),
        "lost": loss.counts.lost,
        "gained": loss.counts.gained,
        "loss": loss.points,
        "interval": [loss.interval.0, loss.interval.1],
        "relative_loss": loss.relative().map(|(part, _)| part),
        "relative_interval": loss.relative().map(|(_, (low, high))| [low, high]),
        "confidence": CONFIDENCE,
        "limits": loss.limits,
        "more_samples": loss.more.filter(|more| more.is_finite()),
        "max_loss_points": most,
        "exceeded": most.map(|most| 100.0 * loss.points > most),
    })
}
