//! `llmq int8 auto`: what fits a model best, by trying.

use super::calibration::{self, warn};
use super::dynamic::{Reduce, Target};
use super::ratio;
use crate::cli::output::{self, Progress, bytes, line};
use crate::error::Result;
use crate::int8::auto::{Candidate, Curve, Trial, candidates, knee, measure};
use crate::int8::batch_axis::doubts;
use crate::int8::bench::OnnxRuntime;
use crate::int8::cpu::Cpu;
use crate::int8::engine::Engine;
use crate::int8::onnx::OnnxFile;
use crate::int8::onnx::file::Destination;
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It exits with code 1, and writes nothing, where no candidate has an SQNR of 10 dB, or none is smaller or faster."
)]
pub struct Args {
    /// An ONNX file
    model: PathBuf,

    /// Inputs to calibrate and to judge on, as for `llmq int8 static --calib`: a third of them is held out
    #[arg(long, value_name = "FILES", num_args = 1.., required = true)]
    samples: Vec<PathBuf>,

    /// Where the quantized model goes [default: beside the model, its name ending in .int8.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The signal-to-noise ratio of the outputs that is good enough, in dB: 20 is noise of a hundredth of the signal's power
    #[arg(long, value_name = "DB", default_value_t = 20.0)]
    sqnr: f64,

    /// The CPU that the model is going to run on
    #[arg(long, value_name = "CPU", default_value = "this")]
    target: Target,

    /// Weights in 7 bits, so that x86 without VNNI does not cut sums off
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reduce_range: Reduce,

    /// ONNX Runtime's library, which measures time; as for `llmq int8 bench`
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,

    /// The Python that has the packages onnxruntime and numpy, where no library is found
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: OsString,

    /// How many runs of each candidate
    #[arg(long, value_name = "N", default_value_t = 40)]
    runs: usize,

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
    let file = OnnxFile::open(&args.model)?;
    let output = args.output.clone().unwrap_or_else(|| args.model.with_extension("int8.onnx"));
    let destination = Destination::new(&output, &file, args.force)?;
    let cpu = args.target.cpu();
    let runtime = match cpu == Cpu::this() {
        true => OnnxRuntime::find(args.library.as_deref(), &args.python)?,
        false => None,
    };
    let engine = Engine::new(&file.model)?;
    let samples = calibration::open(&args.samples, &engine)?;
    let integers = calibration::integers(cpu, args.reduce_range);
    let trial = Trial { file: &file, samples: &samples, integers, enough: args.sqnr };
    let progress = Progress::new(false, args.json);
    let mut current = String::new();
    let mut curve = candidates(&trial, &mut |what, done, total| {
        if current != what {
            what.clone_into(&mut current);
            progress.say(what);
        }
        progress.set(done as u64, total as u64);
    })?;
    progress.finish();
    if let Some(doubt) = doubts(&engine, &samples)? {
        warn(&doubt, args.json);
    }
    measure(&mut curve, &trial, runtime.as_ref(), args.runs.max(1), args.threads.unwrap_or(0))?;
    let chosen = knee(&curve, &trial, cpu);
    let name = chosen.as_ref().map_or("", |chosen| &chosen.name);
    if args.json {
        tell(&curve, &file)
    } else {
        show(&curve, &file, name)
    }
    let chosen = chosen?;
    let size = destination.write(chosen.model.clone())?;
    if args.json {
        output::json(
            "summary",
            json!({ "output": output, "bytes": size, "original_bytes": file.bytes, "chosen": chosen.name, "sqnr": finite(chosen.sqnr),
                "time": chosen.time, "left_float": chosen.left, "judges": curve.judges.0, "held_out": curve.judges.1 }),
        );
    } else {
        summarize(chosen, &curve, args, size, &file);
        line(format!(
            "written        {}, {} instead of {} ({})",
            output.display(),
            bytes(size),
            bytes(file.bytes),
            ratio(file.bytes, size)
        ));
    }
    Ok(())
}

fn finite(x: f64) -> Option<f64> {
    Some(x).filter(|x| x.is_finite())
}

/// So much of a bar of ten.
fn bar(part: f64) -> String {
    "#".repeat((10.0 * part).round().clamp(0.0, 10.0) as usize)
}

/// The curve, the largest files first: bars of ten are as large as float, as slow as float, and without noise (50 dB).
fn show(curve: &Curve, file: &OnnxFile, chosen: &str) {
    line(format!("{:12} {:>21} {:>20} {:>20}", "candidate", "size", "SQNR", "time"));
    let row = |name: &str, size: u64, sqnr: Option<f64>, time: Option<f64>| {
        let sizes = format!("{:>9} {:11}", bytes(size), bar(size as f64 / file.bytes as f64));
        let sqnrs = sqnr.map_or(String::new(), |sqnr| format!("{sqnr:>6.1} dB {:10}", bar(sqnr / 50.0)));
        let times = time.map_or(String::new(), |time| format!("{time:>8.2} {:11}", bar(time)));
        let mark = if name == chosen { " <" } else { "" };
        line(format!("{name:12} {sizes} {sqnrs:20} {times}{mark}").trim_end());
    };
    row("float", file.bytes, None, curve.runtime.as_ref().map(|_| 1.0));
    let mut candidates: Vec<&Candidate> = curve.candidates.iter().collect();
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.bytes));
    for candidate in candidates {
        row(&candidate.name, candidate.bytes, Some(candidate.sqnr), candidate.time);
    }
    for (name, why) in &curve.failed {
        line(format!("{name:12} not possible: {why}"));
    }
}

fn tell(curve: &Curve, file: &OnnxFile) {
    let time = curve.runtime.as_ref().map(|(_, seconds)| 1e3 * seconds);
    output::json("float", json!({ "bytes": file.bytes, "ms": time }));
    for candidate in &curve.candidates {
        let fields = json!({ "name": candidate.name, "bytes": candidate.bytes, "sqnr": finite(candidate.sqnr), "time": candidate.time,
            "left_float": candidate.left });
        output::json("candidate", fields);
    }
    for (calibrator, sqnr) in &curve.calibrators {
        output::json("calibrator", json!({ "name": calibrator.name(), "sqnr": finite(*sqnr) }));
    }
    for (name, why) in &curve.failed {
        output::json("failed", json!({ "name": name, "why": why }));
    }
}

fn summarize(chosen: &Candidate, curve: &Curve, args: &Args, size: u64, file: &OnnxFile) {
    let (judges, held_out) = curve.judges;
    let how = if held_out {
        "that nothing has learned from"
    } else {
        "that calibrated, too: there are too few to hold some out"
    };
    line(format!("judged         on {judges} samples {how}"));
    if !curve.calibrators.is_empty() {
        let tried = curve.calibrators.iter().map(|(calibrator, sqnr)| format!("{} {sqnr:.1}", calibrator.name()));
        line(format!("calibrators    of static, one for all, dB: {}", tried.collect::<Vec<_>>().join(", ")));
    }
    match &curve.runtime {
        Some((version, seconds)) => {
            line(format!("time           ONNX Runtime {version}, float {:.3} ms", 1e3 * seconds))
        }
        None => line(
            "time           not measured: ONNX Runtime was not found (--library, --python), or the model is for another CPU",
        ),
    }
    let enough = if chosen.sqnr >= args.sqnr {
        format!("the fastest with {} dB, of equal ones the smallest, then the nearest", args.sqnr)
    } else {
        format!("the nearest: none has {} dB", args.sqnr)
    };
    line(format!("chosen         {}: {enough}", chosen.name));
    if chosen.integers == 0.0 {
        line("left float     all arithmetic; only weights are in 8 bits");
    } else if !chosen.left.is_empty() {
        let more = if chosen.left.len() > 4 { format!(" and {} more", chosen.left.len() - 4) } else { String::new() };
        let some = chosen.left[..chosen.left.len().min(4)].join(", ");
        line(format!("left float     {some}{more}: they lose most; their weights are in 8 bits"));
    }
    if let Some(kernels) = &chosen.kernels {
        let count = |ops: &std::collections::BTreeMap<String, usize>| {
            ops.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", ")
        };
        let (int8, float) = (count(&kernels.int8), count(&kernels.float));
        line(format!("multiplies     in INT8: {}; in floats: {}", none(&int8), none(&float)));
    }
    if size >= file.bytes {
        warn("the result is not smaller than the original", false);
    }
}

fn none(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}
