//! `llmq int8 DIR`: a checkpoint folder without a graph.

use crate::cli::output::{self, Progress, bytes, time};
use crate::error::{Error, Result};
use crate::int8::checkpoint::folder::{self, Options};
use crate::int8::checkpoint::layers::Role;
use crate::int8::checkpoint::rows::Scales;
use crate::int8::checkpoint::scheme::Scheme;
use crate::int8::checkpoint::{Summary, TensorReport, gguf};
use crate::source::pooling::Pooling;
use clap::ValueEnum;
use safetensors::Dtype;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct CheckpointArgs {
    /// A checkpoint folder: config.json and safetensors or pytorch_model.bin
    model: PathBuf,

    /// The folder to write, or the file with --gguf [default: NAME-int8, or NAME.TYPE.gguf, in this folder]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Round weights only, and leave activations as they are
    #[arg(long, conflicts_with = "gguf")]
    weight_only: bool,

    /// How the scale of each output channel is chosen: by the least squared error, or by its largest weight
    #[arg(long, value_name = "HOW", default_value = "mse", conflicts_with = "gguf")]
    scales: ScaleChoice,

    /// The type of embeddings, which this layout has no INT8 for [default: as they are]
    #[arg(long, value_name = "TYPE", conflicts_with = "gguf")]
    embeddings: Option<Embeddings>,

    /// The largest file of weights, for example 5G or 500M
    #[arg(long, value_name = "SIZE", default_value = "5G", value_parser = crate::cli::quantize::size, conflicts_with = "gguf")]
    max_shard_size: u64,

    /// Write a GGUF for llama.cpp instead: BERT, DistilBERT and RoBERTa
    #[arg(long)]
    gguf: bool,

    /// The type of the GGUF's matrices: Q8_0, F16, BF16 or F32
    #[arg(long = "type", value_name = "TYPE", default_value = "Q8_0", requires = "gguf")]
    kind: String,

    /// How the vectors of a text become one in llama.cpp [default: what 1_Pooling/config.json says]
    #[arg(long, value_name = "HOW", requires = "gguf")]
    pooling: Option<PoolingChoice>,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Replace what an earlier run has written
    #[arg(long)]
    force: bool,

    /// One JSON object a line on standard output: each tensor, then a summary
    #[arg(long)]
    json: bool,

    /// Show each tensor
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScaleChoice {
    Mse,
    Max,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Embeddings {
    F16,
    Bf16,
    F32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PoolingChoice {
    None,
    Mean,
    Cls,
    Last,
}

pub fn run(args: &CheckpointArgs) -> Result<()> {
    crate::cli::use_threads(args.threads)?;
    let started = Instant::now();
    if !args.model.is_dir() {
        return Err(Error::usage(format!("{} is not a folder", args.model.display()))
            .hint("llmq int8 takes a checkpoint folder with config.json and safetensors"));
    }
    let progress = Progress::new(false, args.json);
    let show_progress = |done: u64, total: u64| progress.set(done, total);
    let (output, summary) = if args.gguf {
        let output =
            args.output.clone().unwrap_or_else(|| default(&args.model, &format!(".{}.gguf", args.kind.to_uppercase())));
        let pooling = args.pooling.map(|how| match how {
            PoolingChoice::None => Pooling::None,
            PoolingChoice::Mean => Pooling::Mean,
            PoolingChoice::Cls => Pooling::Cls,
            PoolingChoice::Last => Pooling::Last,
        });
        let plan = gguf::Plan::new(&args.model, &args.kind, pooling)?;
        let summary = plan.run(&output, args.force, &show_progress)?;
        (output, summary)
    } else {
        let output = args.output.clone().unwrap_or_else(|| default(&args.model, "-int8"));
        let summary = folder::Plan::new(&args.model, args.options())?.run(&output, args.force, &show_progress)?;
        (output, summary)
    };
    progress.finish();
    show(args, &output, &summary, started.elapsed());
    Ok(())
}

impl CheckpointArgs {
    fn options(&self) -> Options {
        Options {
            scheme: if self.weight_only { Scheme::WeightOnly } else { Scheme::W8A8 },
            scales: match self.scales {
                ScaleChoice::Mse => Scales::Mse,
                ScaleChoice::Max => Scales::Max,
            },
            embeddings: self.embeddings.map(|kind| match kind {
                Embeddings::F16 => Dtype::F16,
                Embeddings::Bf16 => Dtype::BF16,
                Embeddings::F32 => Dtype::F32,
            }),
            max_shard: self.max_shard_size,
        }
    }
}

/// A name in this folder, after that of the model.
fn default(model: &Path, ending: &str) -> PathBuf {
    let own = model.canonicalize().unwrap_or_else(|_| model.into());
    let name = own.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
    format!("{name}{ending}").into()
}

fn show(args: &CheckpointArgs, output: &Path, summary: &Summary, took: Duration) {
    for tensor in &summary.tensors {
        if args.json {
            output::json("tensor", tensor_json(tensor));
        }
        if args.verbose {
            output::note(&tensor_line(tensor));
        }
    }
    let all = summary.sizes(|_| true);
    let embeddings = summary.sizes(|role| role == Role::Embedding);
    let others = summary.sizes(|role| role != Role::Embedding);
    output::note(&format!("{}: {}, in {}", output.display(), bytes(summary.bytes), time(took)));
    output::note(&format!("{:24} {:>10} {:>10} {:>8}", "", "before", "after", "smaller"));
    for (name, (before, after)) in [("all tensors", all), ("without embeddings", others), ("embeddings", embeddings)] {
        output::note(&format!("{name:24} {:>10} {:>10} {:>7.2}x", bytes(before), bytes(after), ratio(before, after)));
    }
    if let Some((worst, error)) = summary.worst() {
        let mean = summary.mean_error().unwrap_or_default();
        let (mean, error) = (100.0 * mean, 100.0 * error);
        output::note(&format!(
            "relative error of weights: {mean:.4}% on average, the largest {error:.4}%: {}",
            worst.name
        ));
    }
    for note in &summary.notes {
        output::note(&format!("note: {note}"));
    }
    if !args.gguf && args.embeddings.is_none() && 2 * embeddings.1 > all.1 {
        let share = 100.0 * embeddings.1 as f64 / all.1 as f64;
        let half = if summary.tensors.iter().any(|t| t.role == Role::Embedding && t.to == "F32") {
            "; --embeddings f16 halves them"
        } else {
            ""
        };
        output::note(&format!(
            "note: embeddings are {share:.0}% of the result, and this layout has no INT8 for them{half}"
        ));
    }
    if args.json {
        let sizes = |(before, after): (u64, u64)| json!({ "before": before, "after": after });
        let worst = summary.worst().map(|(tensor, error)| json!({ "name": tensor.name, "relative_error": error }));
        let fields = json!({
            "output": output,
            "bytes": summary.bytes,
            "tensor_bytes": sizes(all),
            "embedding_bytes": sizes(embeddings),
            "other_bytes": sizes(others),
            "mean_relative_error": summary.mean_error(),
            "worst": worst,
            "notes": summary.notes,
            "seconds": took.as_secs_f64(),
        });
        output::json("summary", fields);
    }
}

fn ratio(before: u64, after: u64) -> f64 {
    if after == 0 { 1.0 } else { before as f64 / after as f64 }
}

fn tensor_line(tensor: &TensorReport) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
    let error = tensor.error.map_or(String::new(), |error| format!("  error {:.4}%", 100.0 * error));
    format!(
        "{:60} {:>14}  {:>4} -> {:8} {:>10}{error}",
        tensor.name,
        shape.join(" x "),
        tensor.from,
        tensor.to,
        bytes(tensor.after)
    )
}

fn tensor_json(tensor: &TensorReport) -> serde_json::Value {
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "role": tensor.role.name(),
        "from": tensor.from,
        "to": tensor.to,
        "bytes_before": tensor.before,
        "bytes": tensor.after,
        "relative_error": tensor.error,
    })
}
