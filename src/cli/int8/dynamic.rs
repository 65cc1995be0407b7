//! `llmq int8 dynamic`: an ONNX model with INT8 weights, and activations quantized while it runs.

use super::{ratio, warn_larger};
use crate::cli::output::{self, bytes, line};
use crate::error::{Context, Error, Result};
use crate::int8::cpu::Cpu;
use crate::int8::dynamic::{self, Done, OPSET, Options, Report};
use crate::int8::onnx::OnnxFile;
use crate::int8::onnx::file::Destination;
use crate::int8::operators::{Kind, listed, within};
use crate::int8::weights::Levels;
use clap::ValueEnum;
use regex::Regex;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float model, an ONNX file
    model: PathBuf,

    /// The ONNX file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The CPU that the model is going to run on
    #[arg(long, value_name = "CPU", default_value = "this")]
    target: Target,

    /// Weights of products in 7 bits, so that x86 without VNNI does not cut sums off
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reduce_range: Reduce,

    /// Leave nodes float whose name matches this regular expression; can be given several times
    #[arg(long, value_name = "RE")]
    exclude: Vec<Regex>,

    /// Replace the output if it exists
    #[arg(long)]
    force: bool,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

/// Where a model is going to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The CPU of this machine
    This,
    /// x86 with VNNI: servers since 2019, desktops since 2021
    Vnni,
    /// Older x86
    Avx2,
    /// ARM
    Arm,
}

impl Target {
    pub fn cpu(self) -> Cpu {
        match self {
            Self::This => Cpu::this(),
            Self::Vnni => Cpu::Vnni,
            Self::Avx2 => Cpu::X86,
            Self::Arm => Cpu::ArmDot,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reduce {
    /// Where the target needs it
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

impl Reduce {
    /// How large codes may get on a CPU.
    pub fn levels(self, cpu: Cpu) -> Levels {
        match self {
            Self::Auto if cpu.needs_reduced_range() => Levels::Reduced,
            Self::On => Levels::Reduced,
            Self::Auto | Self::Off => Levels::Full,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    crate::cli::use_threads(args.threads)?;
    let mut file = OnnxFile::open(&args.model)?;
    file.need_opset(OPSET, "dynamic quantization")?;
    let destination = Destination::new(&args.output, &file, args.force)?;
    let cpu = args.target.cpu();
    let levels = args.reduce_range.levels(cpu);
    let options = Options { levels, exclude: &args.exclude };
    let mut model = std::mem::take(&mut file.model);
    check_exclusions(args, &model)?;
    let (report, prepared) =
        dynamic::quantize(&mut model, &options).context(|| format!("cannot quantize {}", args.model.display()))?;
    let written = destination.write(model)?;
    warn_larger(file.bytes, written, args.json);
    for note in prepared.notes() {
        output::note(&format!("note: {note}"));
    }
    if args.json {
        tell(args, &report, file.bytes, written, levels, cpu);
    } else {
        show(args, &report, file.bytes, written, levels, cpu);
    }
    Ok(())
}

/// Refuses an exclusion that excludes nothing.
fn check_exclusions(args: &Args, model: &crate::int8::onnx::proto::ModelProto) -> Result<()> {
    let nodes = || model.graph.iter().flat_map(within);
    match args.exclude.iter().find(|name| !nodes().any(|node| name.is_match(node.label()))) {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!("--exclude {name} matches no node of {}", args.model.display()))),
    }
}

fn show(args: &Args, report: &Report, before: u64, after: u64, levels: Levels, cpu: Cpu) {
    line(format!("{}: {} -> {} ({})", args.output.display(), bytes(before), bytes(after), ratio(before, after)));
    for (what, nodes) in by_recipe(&report.done) {
        line(format!("in INT8: {nodes} {what}"));
    }
    for (op, reason, count, first) in report.reasons() {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        line(format!("left float: {op} {first}{more}: {reason}"));
    }
    if !report.others.is_empty() {
        line(format!("without weights, as before: {}", listed(&report.others)));
    }
    let range = match levels {
        Levels::Full => "8 bits",
        Levels::Reduced => "7 bits, since sums of two products would be cut off",
    };
    line(format!("made for {}: weights of products have {range}", cpu.name()));
    let (original, quantized) = (args.model.display(), args.output.display());
    output::note(&format!("next: llmq int8 bench {original} {quantized}"));
}

/// How many nodes became what, in words.
pub fn by_recipe(done: &[Done]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        for stored in [false, true] {
            let done: Vec<_> = done.iter().filter(|done| done.kind == kind && done.stored == stored).collect();
            let weights: usize = done.iter().map(|done| done.elements).sum();
            let how = match kind {
                Kind::Embedding => ", a scale for each row",
                _ if stored => ", stored so and computed in floats",
                _ => "",
            };
            if !done.is_empty() {
                found.push((format!("{}, {weights} weights{how}", kind.name()), done.len()));
            }
        }
    }
    found
}

fn tell(args: &Args, report: &Report, before: u64, after: u64, levels: Levels, cpu: Cpu) {
    for done in &report.done {
        output::json(
            "quantized",
            json!({
                "node": done.node, "op": done.op, "kind": done.kind.name(),
                "weight": done.weight, "elements": done.elements, "computed": if done.stored { "float" } else { "int8" },
            }),
        );
    }
    for left in &report.left {
        output::json("left_float", json!({ "node": left.node, "op": left.op, "reason": left.reason }));
    }
    output::json(
        "summary",
        json!({
            "output": args.output,
            "bytes_before": before,
            "bytes_after": after,
            "quantized": report.done.len(),
            "left_float": report.left.len(),
            "others": report.others,
            "cpu": cpu.name(),
            "reduced_range": levels == Levels::Reduced,
        }),
    );
}
