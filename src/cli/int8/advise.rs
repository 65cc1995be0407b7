//! `llmq int8 advise`: what fits a model, a target and a tolerance, and what to type.

use crate::cli::output::{self, bytes, line};
use crate::error::{Context, Error, Result};
use crate::int8::advise::{Advice, Choice, Situation, Target, advise};
use crate::int8::cpu::Cpu;
use crate::int8::onnx::OnnxFile;
use crate::int8::op_counts::OpCounts;
use crate::model::Model;
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An ONNX file, a folder that holds one, or a checkpoint folder
    model: PathBuf,

    /// Where the model is going to run
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: Where,

    /// How many points of accuracy may be lost
    #[arg(long, value_name = "POINTS", default_value_t = 1.0)]
    tolerance: f64,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Where {
    /// A CPU like this machine's
    Cpu,
    /// A GPU
    Gpu,
    /// A small device, mostly ARM
    Edge,
}

/// A model in either form.
struct AdvisedModel {
    /// What it is, for messages and commands.
    path: PathBuf,
    counts: OpCounts,
    bytes: u64,
    /// It is a graph, not a checkpoint.
    graph: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !(args.tolerance.is_finite() && args.tolerance >= 0.0) {
        return Err(Error::usage(format!("--tolerance {} is no number of points", args.tolerance)));
    }
    let subject = open(&args.model)?;
    let target = match args.target {
        Where::Cpu => Target::Cpu(Cpu::this()),
        Where::Gpu => Target::Gpu,
        Where::Edge => Target::Edge,
    };
    let (counts, bytes) = (subject.counts.clone(), subject.bytes);
    let advice = advise(&Situation { counts, bytes, target, tolerance: args.tolerance });
    let command = command(&subject, advice.choice);
    if args.json {
        tell(&subject, &advice, command.as_deref());
    } else {
        show(&subject, &advice, command.as_deref());
    }
    Ok(())
}

fn open(path: &Path) -> Result<AdvisedModel> {
    if !path.is_dir() {
        return graph(path);
    }
    let mut found = Vec::new();
    for folder in [path.to_owned(), path.join("onnx")] {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        found.extend(files.filter(|file| file.extension().is_some_and(|ending| ending == "onnx")));
    }
    found.sort();
    match &found[..] {
        [] if path.join("config.json").is_file() => checkpoint(path),
        [] => Err(Error::new(format!("there is neither an ONNX file nor a config.json in {}", path.display()))),
        [one] => graph(one),
        several => {
            // The hub's folders hold several forms of one model; the float one has the plain name.
            match several.iter().find(|file| file.file_name().is_some_and(|name| name == "model.onnx")) {
                Some(model) => graph(model),
                None => Err(Error::new(format!("there are {} ONNX files in {}", several.len(), path.display()))
                    .hint(format!("name one: llmq int8 advise {}", several[0].display()))),
            }
        }
    }
}

fn graph(path: &Path) -> Result<AdvisedModel> {
    let file = OnnxFile::open(path)?;
    let counts = OpCounts::of(file.model).context(|| format!("cannot read {}", path.display()))?;
    Ok(AdvisedModel { path: path.into(), counts, bytes: file.bytes, graph: true })
}

fn checkpoint(path: &Path) -> Result<AdvisedModel> {
    let checkpoint = Checkpoint::open(path)?;
    if Model::read(&Config::open(&path.join("config.json"))?).is_ok() {
        let shown = path.display();
        return Err(Error::usage(format!(
            "{shown} is a language model that writes text, which INT8 is not the best for"
        ))
        .hint(format!("llmq quantize {shown} -o OUT.gguf")));
    }
    let bytes = checkpoint.tensors().map(|tensor| tensor.bytes as u64).sum();
    Ok(AdvisedModel { path: path.into(), counts: OpCounts::of_checkpoint(&checkpoint), bytes, graph: false })
}

/// What to type.
fn command(subject: &AdvisedModel, choice: Choice) -> Option<String> {
    let path = subject.path.display();
    let out = subject.path.with_extension("int8.onnx");
    let out = out.display();
    Some(match choice {
        Choice::Nothing => return None,
        Choice::Fp16 => format!(
            "python -c \"import onnx; from onnxruntime.transformers.float16 import convert_float_to_float16 as f; \
             onnx.save(f(onnx.load('{path}')), '{}')\"",
            subject.path.with_extension("fp16.onnx").display()
        ),
        Choice::Dynamic if !subject.graph => format!("llmq int8 {path} -o {path}-int8"),
        Choice::Static | Choice::Qat if !subject.graph => return None,
        Choice::Dynamic => format!("llmq int8 dynamic {path} -o {out}"),
        Choice::Static => format!("llmq int8 static {path} --calib SAMPLES -o {out}"),
        Choice::Qat => format!("llmq int8 static {path} --calib SAMPLES --qat -o {out}"),
    })
}

fn show(subject: &AdvisedModel, advice: &Advice, command: Option<&str>) {
    let AdvisedModel { path, counts, bytes: size, .. } = subject;
    line(format!("{}: {}, {} weights", path.display(), bytes(*size), counts.weights()));
    for (kind, share) in &counts.kinds {
        let work =
            counts.work(*kind).map_or(String::new(), |part| format!(", {:.0}% of the multiplications", 100.0 * part));
        let part = 100.0 * counts.part(*kind);
        line(format!("  {} {}: {part:.0}% of the weights{work}", share.nodes, kind.name()));
    }
    line(format!("advice: {}", advice.choice.name()));
    for reason in &advice.reasons {
        line(format!("  - {reason}"));
    }
    match command {
        Some(command) => line(format!("  {command}")),
        None if advice.choice != Choice::Nothing => {
            line("  export the model to ONNX first: torch.onnx.export(model, inputs, 'model.onnx')")
        }
        None => {}
    }
}

fn tell(subject: &AdvisedModel, advice: &Advice, command: Option<&str>) {
    let counts = &subject.counts;
    for (kind, share) in &counts.kinds {
        let fields = json!({
            "kind": kind.name(), "nodes": share.nodes, "weights": share.weights,
            "part_of_weights": counts.part(*kind), "part_of_multiplications": counts.work(*kind),
        });
        output::json("kind", fields);
    }
    output::json(
        "summary",
        json!({
            "model": subject.path, "bytes": subject.bytes, "weights": counts.weights(), "cpu": Cpu::this().name(),
            "choice": advice.choice.name(), "rule": advice.rule, "reasons": advice.reasons, "command": command,
        }),
    );
}
