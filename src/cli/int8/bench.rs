//! `llmq int8 bench`: what quantizing brought.

use crate::cli::output::{self, bytes, line};
use crate::error::{Error, Result};
use crate::int8::bench::{BenchInput, Kernels, OnnxRuntime, Times, kernels, with_rten};
use crate::int8::cpu::Cpu;
use crate::int8::engine::Input;
use crate::int8::onnx::OnnxFile;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float model, an ONNX file
    original: PathBuf,

    /// What was made from it
    quantized: PathBuf,

    /// What runs the models
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: Choice,

    /// ONNX Runtime's library, libonnxruntime.so or onnxruntime.dll, for an llmq that was built with the feature ort
    /// [default: what ORT_DYLIB_PATH names, else the system's]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,

    /// The Python that has the packages onnxruntime and numpy, where no library is found
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: OsString,

    /// The size of an open dimension, or several to measure one after the other, such as length=16,64,256; can be given several
    /// times. An open first one is 1 otherwise
    #[arg(long, value_name = "NAME=N,...", value_parser = sizes)]
    dim: Vec<(String, Vec<usize>)>,

    /// How many runs of each model
    #[arg(long, value_name = "N", default_value_t = 100)]
    runs: usize,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// ONNX Runtime if it is found, else rten
    Auto,
    /// ONNX Runtime
    Onnxruntime,
    /// The engine that llmq brings along; its speed is not that of ONNX Runtime
    Rten,
}

fn sizes(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, sizes) = text.split_once('=').ok_or("it is not of the form NAME=N")?;
    let size = |size: &str| size.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("'{size}' is no size"));
    Ok((name.into(), sizes.split(',').map(size).collect::<Result<_, _>>()?))
}

/// Every choice of one size for each dimension.
fn choices(dims: &[(String, Vec<usize>)]) -> Vec<Vec<(String, usize)>> {
    dims.iter().fold(vec![vec![]], |all, (name, sizes)| {
        let with = |chosen: &Vec<(String, usize)>, size: usize| [&chosen[..], &[(name.clone(), size)]].concat();
        all.iter().flat_map(|chosen| sizes.iter().map(move |&size| with(chosen, size))).collect()
    })
}

fn shown(dims: &[(String, usize)]) -> String {
    dims.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
}

/// What was measured, by whatever engine.
struct Measured {
    engine: String,
    times: Vec<Times>,
    kernels: Vec<Kernels>,
    /// The kernels are what the engine really runs, not what the graph suggests.
    real: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.runs == 0 {
        return Err(Error::usage("--runs must be at least 1"));
    }
    crate::cli::use_threads(args.threads)?;
    let files = [OnnxFile::open(&args.original)?, OnnxFile::open(&args.quantized)?];
    let runtime = match args.engine {
        Choice::Rten => None,
        _ => OnnxRuntime::find(args.library.as_deref(), &args.python)?,
    };
    if runtime.is_none() && args.engine == Choice::Onnxruntime {
        let python = args.python.to_string_lossy();
        return Err(Error::usage(format!(
            "no library of ONNX Runtime is found, and {python} has no packages onnxruntime and numpy"
        ))
        .hint("pip install onnxruntime, name another program with --python, or use --engine rten"));
    }
    let mut all = Vec::new();
    for dims in choices(&args.dim) {
        let measured = measure(args, &[&files[0], &files[1]], runtime.as_ref(), &dims)?;
        match args.json {
            true => tell(args, &files, &measured, &dims),
            false => show(args, &files, &measured, &dims),
        }
        all.push((dims, measured));
    }
    if args.json {
        summarize(args, &files, &all);
    } else if let Some((_, measured)) = all.last() {
        notes(measured);
    }
    Ok(())
}

fn measure(
    args: &Args,
    files: &[&OnnxFile],
    runtime: Option<&OnnxRuntime>,
    dims: &[(String, usize)],
) -> Result<Measured> {
    let by_graph = || files.iter().map(|file| kernels(file.model.clone())).collect::<Result<Vec<_>>>();
    let Some(runtime) = runtime else {
        let times = with_rten(files, dims, args.runs)?;
        return Ok(Measured { engine: "rten".into(), times, kernels: by_graph()?, real: false });
    };
    let graph = files[0].model.graph.clone().unwrap_or_default();
    let given = |name: &str| graph.initializer.iter().all(|tensor| tensor.name() != name);
    let inputs = graph.input.iter().filter(|input| given(input.name())).map(Input::of);
    let inputs = inputs.map(|input| BenchInput::of(&input, dims)).collect::<Result<Vec<_>>>()?;
    let paths: Vec<&Path> = files.iter().map(|file| file.path.as_path()).collect();
    let found = runtime.time(&paths, inputs, args.runs, args.threads.unwrap_or(0))?;
    let engine = format!("ONNX Runtime {}", found.version);
    Ok(match found.kernels.into_iter().collect::<Option<Vec<_>>>() {
        Some(kernels) => Measured { engine, times: found.times, kernels, real: true },
        None => Measured { engine, times: found.times, kernels: by_graph()?, real: false },
    })
}

fn show(args: &Args, files: &[OnnxFile; 2], measured: &Measured, dims: &[(String, usize)]) {
    if args.dim.iter().any(|(_, sizes)| sizes.len() > 1) {
        line(format!("with {}:", shown(dims)));
    }
    let names = [&args.original, &args.quantized].map(|path| path.display().to_string());
    let wide = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
    line(format!("{:wide$} {:>10} {:>10} {:>10} {:>10}", "model", "size", "p50", "p99", "per second"));
    for ((name, file), times) in names.iter().zip(files).zip(&measured.times) {
        let [p50, p99] = [0.5, 0.99].map(|part| format!("{:.3} ms", 1e3 * times.quantile(part)));
        line(format!("{name:wide$} {:>10} {p50:>10} {p99:>10} {:>10.1}", bytes(file.bytes), times.throughput()));
    }
    let smaller = files[0].bytes as f64 / files[1].bytes as f64;
    let faster = measured.times[0].quantile(0.5) / measured.times[1].quantile(0.5);
    line(format!(
        "{smaller:.2}x smaller, {faster:.2}x the speed at p50 in {}, {} runs each",
        measured.engine, args.runs
    ));
    let source = if measured.real { "by the graph that the engine runs" } else { "by the graph in the file" };
    for (name, kernels) in ["original", "quantized"].iter().zip(&measured.kernels) {
        let list = |ops: &std::collections::BTreeMap<String, usize>| match ops.is_empty() {
            true => "none".into(),
            false => ops.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", "),
        };
        line(format!("{name}: in INT8: {}; in floats: {} ({source})", list(&kernels.int8), list(&kernels.float)));
    }
}

fn notes(measured: &Measured) {
    if measured.engine == "rten" {
        output::note(
            "note: these are rten's latencies; ONNX Runtime has other kernels, so they say nothing about its speed-up",
        );
    }
    if !Cpu::this().is_fast() {
        output::note(&format!("note: this CPU ({}) multiplies bytes hardly faster than floats", Cpu::this().name()));
    }
}

fn tell(args: &Args, files: &[OnnxFile; 2], measured: &Measured, dims: &[(String, usize)]) {
    let paths = [&args.original, &args.quantized];
    for ((path, file), (times, kernels)) in paths.iter().zip(files).zip(measured.times.iter().zip(&measured.kernels)) {
        output::json(
            "model",
            json!({
                "model": path, "bytes": file.bytes, "dims": shown(dims),
                "p50_ms": 1e3 * times.quantile(0.5), "p99_ms": 1e3 * times.quantile(0.99),
                "per_second": times.throughput(),
                "int8": kernels.int8, "float": kernels.float,
            }),
        );
    }
}

fn summarize(args: &Args, files: &[OnnxFile; 2], all: &[(Vec<(String, usize)>, Measured)]) {
    let faster = |measured: &Measured| measured.times[0].quantile(0.5) / measured.times[1].quantile(0.5);
    let Some((_, last)) = all.last() else { return };
    let source: Value = if last.real { "engine" } else { "file" }.into();
    let sizes = all.iter().map(|(dims, measured)| json!({ "dims": shown(dims), "faster": faster(measured) }));
    output::json(
        "summary",
        json!({
            "engine": last.engine, "runs": args.runs, "kernels_from": source, "cpu": Cpu::this().name(),
            "smaller": files[0].bytes as f64 / files[1].bytes as f64,
            // Of several sizes, the one that gains least.
            "faster": all.iter().map(|(_, measured)| faster(measured)).fold(f64::INFINITY, f64::min),
            "sizes": sizes.collect::<Vec<_>>(),
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_sizes_are_measured_one_after_the_other() {
        assert_eq!(choices(&[]), [vec![]]);
        let dims = [sizes("length=16,64").unwrap(), sizes("batch=1,2").unwrap()];
        let all: Vec<String> = choices(&dims).iter().map(|dims| shown(dims)).collect();
        assert_eq!(all, ["length=16 batch=1", "length=16 batch=2", "length=64 batch=1", "length=64 batch=2"]);
        for bad in ["length", "length=", "length=0", "length=4,x"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }
}
