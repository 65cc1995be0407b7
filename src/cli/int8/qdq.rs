//! `llmq int8 static`: calibrated INT8 for ONNX graphs.

use super::calibration::{Calibrated, Options, named};
use super::dynamic::by_recipe;
use super::ratio;
use super::refining;
use super::training::{self, Training};
use super::warn_larger;
use crate::cli::output::{self, bytes, line};
use crate::error::{Error, Result};
use crate::int8::compare::LEAST_SQNR;
use crate::int8::dynamic::Done;
use crate::int8::onnx::OnnxFile;
use crate::int8::onnx::file::Destination;
use crate::int8::operators::{Kind, listed};
use crate::int8::qat;
use crate::int8::qdq::exclude::{self, Exclusions};
use crate::int8::qdq::observe::Seen;
use crate::int8::qdq::plan::{Plan, Role};
use crate::int8::qdq::{CalibratedGraph, Float, Layer, Quantized};
use crate::int8::refine;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An ONNX file
    model: PathBuf,

    /// Where the quantized model goes
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,

    #[command(flatten)]
    calibration: Options,

    #[command(flatten)]
    training: Training,

    /// Make the result better with what the calibration inputs tell: balance between activations and weights, rounding with
    /// error feedback, and bias correction. Each is kept only if it helps on samples held out
    #[arg(long, conflicts_with_all = ["list", "qat"])]
    refine: bool,

    /// Layers that stay float: names, or regular expressions that match whole names
    #[arg(long, value_name = "NODE")]
    exclude: Vec<String>,

    /// A file with one of these a line, as `llmq int8 sensitivity` writes it
    #[arg(long, value_name = "FILE")]
    exclude_file: Option<PathBuf>,

    /// Replace an existing file
    #[arg(long)]
    force: bool,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    crate::cli::use_threads(args.threads)?;
    let started = Instant::now();
    let file = OnnxFile::open(&args.model)?;
    let float = Float::new(&file)?;
    if args.calibration.list {
        list(&float, args.json);
        return Ok(());
    }
    let training = args.training.options()?;
    let Some(output) = &args.output else { return Err(Error::usage("--output is missing")) };
    let mut patterns = args.exclude.clone();
    if let Some(path) = &args.exclude_file {
        patterns.extend(exclude::lines(path)?);
    }
    let exclusions = Exclusions::new(&patterns, &float.layers)?;
    if float.layers.iter().all(|layer| exclusions.contains(&layer.name)) {
        return Err(Error::new("every layer is excluded: nothing would run in integers"));
    }
    let destination = Destination::new(output, &file, args.force)?;
    let (integers, words) = args.calibration.integers();
    let excluded = |name: &str| exclusions.contains(name);
    if training.is_some() {
        qat::check(&float, integers, &excluded)?;
    }
    let Calibrated { samples, mut seen, calibrators, sqnr } =
        args.calibration.calibrate(&float, &excluded, args.json)?;
    let given = CalibratedGraph {
        float: &float,
        samples: &samples,
        ranges: &seen.ranges,
        calibrators: &calibrators,
        integers,
        excluded: &excluded,
    };
    let (mut trained, mut refined) = (None, None);
    let quantized = if let Some(options) = training {
        let found = training::train(given, options, args.json)?;
        seen.ranges = found.ranges;
        trained = Some(found.report);
        found.quantized
    } else if args.refine {
        let found = refining::refine(given, args.json)?;
        seen.ranges = found.ranges;
        refined = Some(found.report);
        found.quantized
    } else {
        float.quantized(&seen.ranges, integers, &excluded)?
    };
    let Quantized { model, plan, dynamic } = quantized;
    let size = destination.write(model)?;
    warn_larger(file.bytes, size, args.json);
    for note in float.prepared.notes() {
        output::note(&format!("note: {note}"));
    }
    let summary = Summary {
        args,
        file: &file,
        float: &float,
        seen: &seen,
        calibrators: named(&calibrators),
        plan: &plan,
        size,
        words,
        sqnr,
        dynamic: &dynamic,
        trained: trained.as_ref(),
        refined: refined.as_ref(),
    };
    if args.json {
        summary.tell(started)
    } else {
        summary.show()
    }
    let better = trained.is_some() || refined.is_some();
    sqnr.filter(|&sqnr| !better && sqnr < LEAST_SQNR).map_or(Ok(()), |sqnr| {
        Err(Error::new(format!(
            "the outputs have an SQNR of {sqnr:.2} dB; below {LEAST_SQNR}, a model is not usable for anything"
        ))
        .hint("llmq int8 auto leaves in floats what loses too much"))
    })
}

fn list(float: &Float, json: bool) {
    for Layer { name, op, weights } in &float.layers {
        match json {
            true => output::json("layer", json!({ "name": name, "op": op, "weights": weights })),
            false => line(format!("{op:<8} {weights:>12} {name}")),
        }
    }
    for left in &float.plan.left {
        match json {
            true => output::json("float", json!({ "name": left.node, "op": left.op, "why": left.why })),
            false => line(format!("{:<8} {:>12} {} (stays float: {})", left.op, "", left.node, left.why)),
        }
    }
    if json {
        output::json("summary", json!({ "layers": float.layers.len(), "float": float.plan.left.len() }));
    }
}

struct Summary<'a> {
    args: &'a Args,
    file: &'a OnnxFile,
    float: &'a Float,
    seen: &'a Seen,
    calibrators: String,
    plan: &'a Plan,
    size: u64,
    words: String,
    /// By the samples that chose the calibrators, in dB, before training and refinement.
    sqnr: Option<f64>,
    dynamic: &'a [Done],
    trained: Option<&'a qat::Report>,
    refined: Option<&'a refine::Report>,
}

impl Summary<'_> {
    /// How many layers of each operator run in integers.
    fn layers(&self) -> BTreeMap<&str, usize> {
        let left: Vec<&str> = self.plan.left.iter().map(|left| left.node.as_str()).collect();
        let mut counts = BTreeMap::new();
        for layer in self.float.layers.iter().filter(|layer| !left.contains(&layer.name.as_str())) {
            *counts.entry(layer.op.as_str()).or_default() += 1;
        }
        counts
    }

    /// How many other nodes do.
    fn others(&self) -> usize {
        self.plan.roles.values().filter(|role| matches!(role, Role::Join | Role::Move)).count()
    }

    fn show(&self) {
        let (from, to) = (self.file.bytes, self.size);
        let output = self.args.output.as_deref().unwrap_or(&self.args.model).display();
        line(format!("written        {output}, {} instead of {} ({})", bytes(to), bytes(from), ratio(from, to)));
        let layers: Vec<String> = self.layers().iter().map(|(op, n)| format!("{n} {op}")).collect();
        line(format!("in integers    {}; {} other nodes between them", layers.join(", "), self.others()));
        line(format!("               {}", self.words));
        let (samples, ranges, by) = (self.seen.samples, self.plan.observed().count(), &self.calibrators);
        line(format!("calibration    {samples} samples, {ranges} ranges by {by}"));
        if let Some(sqnr) = self.sqnr {
            line(format!("               SQNR {sqnr:.2} dB by the calibration samples"));
        }
        if let Some(report) = self.trained {
            training::show(report);
        }
        if let Some(report) = self.refined {
            refining::show(report, self.seen.samples);
        }
        for (what, nodes) in by_recipe(self.dynamic) {
            line(format!("besides        {nodes} {what}"));
        }
        if self.float.folded > 0 {
            line(format!("folded         {} BatchNormalization into the convolutions before them", self.float.folded));
        }
        let mut why: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for left in &self.plan.left {
            why.entry((&left.op, left.why)).or_default().push(&left.node);
        }
        for ((op, why), nodes) in why {
            let more = if nodes.len() > 2 { format!(" and {} more", nodes.len() - 2) } else { String::new() };
            let some = nodes[..nodes.len().min(2)].join(", ");
            line(format!("left float     {} {op}, {why}: {some}{more}", nodes.len()));
        }
        if !self.plan.others.is_empty() {
            line(format!("as before      {}", listed(&self.plan.others)));
        }
        let (model, output) = (self.args.model.display(), output);
        output::note(&format!("\njudge it: llmq int8 validate {model} {output} --data FILES"));
    }

    fn tell(&self, started: Instant) {
        for left in &self.plan.left {
            output::json("float", json!({ "name": left.node, "op": left.op, "why": left.why }));
        }
        let mut ranges: Vec<_> =
            self.plan.observed().filter_map(|name| Some((name, self.seen.ranges.get(name)?))).collect();
        ranges.sort_by_key(|(name, _)| *name);
        for (name, range) in ranges {
            let (scale, zero) = range.grid();
            output::json(
                "range",
                json!({ "value": name, "low": range.low, "high": range.high, "scale": scale, "zero_point": zero }),
            );
        }
        output::json(
            "summary",
            json!({
                "output": self.args.output,
                "bytes": self.size,
                "original_bytes": self.file.bytes,
                "others": self.plan.others,
                "samples": self.seen.samples,
                "calibrator": self.calibrators,
                "sqnr": self.sqnr,
                "layers": self.layers(),
                "other_nodes": self.others(),
                "embeddings": self.dynamic.iter().filter(|done| done.kind == Kind::Embedding).count(),
                "dynamic": by_recipe(self.dynamic).into_iter().collect::<BTreeMap<_, _>>(),
                "prepared": self.float.prepared.notes(),
                "left_float": self.plan.left.len(),
                "folded": self.float.folded,
                "trained": self.trained.map(training::tell),
                "refined": self.refined.map(refining::tell),
                "integers": self.words,
                "warnings": self.seen.warnings,
                "seconds": started.elapsed().as_secs_f64(),
            }),
        );
    }
}
