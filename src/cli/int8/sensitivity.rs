//! `llmq int8 sensitivity`: which layers should stay float.

use super::calibration::{Calibrated, Options};
use crate::cli::output::{self, Progress, line};
use crate::error::{Error, Result};
use crate::int8::compare::compare;
use crate::int8::engine::Engine;
use crate::int8::onnx::OnnxFile;
use crate::int8::qdq::{Float, Layer};
use crate::int8::sensitivity::{Bench, Ranked, Step, search};
use crate::writer::atomic::{AtomicFile, check_destination};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An ONNX file
    model: PathBuf,

    #[command(flatten)]
    calibration: Options,

    /// Where the list of layers that have to stay float goes, for `llmq int8 static --exclude-file`
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Exclude layers until the outputs' signal-to-noise ratio is at least this, in dB
    #[arg(long, value_name = "DB", conflicts_with = "max_loss")]
    target_sqnr: Option<f64>,

    /// Exclude layers until accuracy falls by no more than this many points on the calibration inputs, which need labels
    #[arg(long, value_name = "POINTS")]
    max_loss: Option<f64>,

    /// How many samples layers are ranked on
    #[arg(long, value_name = "N", default_value_t = 16)]
    samples: usize,

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
    if args.samples == 0 {
        return Err(Error::usage("--samples must be at least 1"));
    }
    let file = OnnxFile::open(&args.model)?;
    let float = Float::new(&file)?;
    if let Some(path) = &args.output {
        if args.target_sqnr.is_none() && args.max_loss.is_none() {
            return Err(Error::usage("there is no list without a target")
                .hint("say what has to be reached: --target-sqnr 20, or --max-loss 1 where the data have labels"));
        }
        check_destination(path, &[&file.path], args.force)?;
    }
    let Calibrated { samples, seen, .. } = args.calibration.calibrate(&float, &|_| false, args.json)?;
    if args.max_loss.is_some() && !samples.labelled() {
        return Err(Error::usage("--max-loss is about accuracy, but the data have no labels")
            .hint("add an array 'labels' with the class of each sample, or use --target-sqnr"));
    }
    let (integers, _) = args.calibration.integers();
    let bench = Bench::new(&float, &seen.ranges, integers, &samples, args.samples)?;
    let progress = Progress::new(false, args.json);
    let total = float.layers.len() as u64;
    let ranked = bench.rank(&mut |done| progress.set(done as u64, total))?;
    progress.finish();
    show(&ranked, args.json);

    let shown = |step: &Step| tell_step(step, args);
    let found = if let Some(target) = args.target_sqnr {
        let mut judge = |excluded: &HashSet<&str>| {
            let sqnr = bench.sqnr(&|name| !excluded.contains(name))?;
            Ok((sqnr, sqnr >= target))
        };
        search(&ranked, &mut judge, &mut |step| shown(step))?
    } else if let Some(most) = args.max_loss {
        let original = Engine::new(float.model())?;
        let mut judge = |excluded: &HashSet<&str>| {
            let quantized = float.quantized(&seen.ranges, integers, &|name| excluded.contains(name))?;
            let found = compare(&original, &Engine::new(&quantized.model)?, &samples, &mut |_| ())?;
            let loss = found.counts.map_or(0.0, |counts| 100.0 * counts.loss());
            Ok((loss, loss <= most))
        };
        search(&ranked, &mut judge, &mut |step| shown(step))?
    } else {
        if args.json {
            output::json("summary", json!({ "layers": ranked.len() }));
        }
        return Ok(());
    };
    if let Some(path) = &args.output {
        let mut file = AtomicFile::create(path)?;
        let text = found.excluded.iter().map(|name| format!("{name}\n")).collect::<String>();
        file.write(
            format!("# Layers of {} that stay float, by llmq int8 sensitivity\n{text}", args.model.display())
                .as_bytes(),
        )?;
        file.commit()?;
    }
    if args.json {
        let summary = json!({ "layers": ranked.len(), "excluded": found.excluded, "measured": found.measured, "output": args.output });
        output::json("summary", summary);
    } else {
        line(format!("to stay float  {} of {} layers", found.excluded.len(), ranked.len()));
        found.excluded.iter().for_each(|name| line(format!("               {name}")));
    }
    Ok(())
}

fn show(ranked: &[Ranked], json: bool) {
    for Ranked { layer: Layer { name, op, weights }, sqnr } in ranked {
        let finite = Some(*sqnr).filter(|sqnr| sqnr.is_finite());
        match json {
            true => output::json("layer", json!({ "name": name, "op": op, "weights": weights, "sqnr": finite })),
            false => line(format!("{sqnr:>8.2} dB  {op:<8} {weights:>12} {name}")),
        }
    }
}

fn tell_step(step: &Step, args: &Args) {
    let unit = if args.max_loss.is_some() { "points lost" } else { "dB" };
    let Step { excluded, measured, passes } = step;
    if args.json {
        output::json("step", json!({ "excluded": excluded, "measured": measured, "passes": passes }));
    } else {
        let enough = if *passes { ", which is enough" } else { "" };
        output::note(&format!("{} layers in floats: {measured:.2} {unit}{enough}", excluded.len()));
    }
}
