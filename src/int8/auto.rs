//! All ways to a smaller or faster graph that can be tried, on samples that none of them has learned from, and the one on the knee of
//! the curve of size, error and time.
//!
//! - weights alone in 8 bits, computed with in floats: as fast as before, and the least error;
//! - dynamic: products in integers, activations quantized while it runs;
//! - static: whatever has an integer kernel, ranges by the calibrators that do best;
//! - mixed: static, but for the layers that lose most, as many as it takes.
//!
//! Weights that do not run in integers are stored in 8 bits in each. Sixteen bits for the activation that ruins a graph are no candidate of
//! their own: ONNX Runtime has no 16-bit kernel on a CPU, and computes such a layer in floats, which mixed does without rounding.

use super::bench::{BenchInput, Kernels, OnnxRuntime};
use super::choose::{Choice, choose};
use super::compare::LEAST_SQNR;
use super::cpu::Cpu;
use super::dynamic::{self, quantize_embeddings};
use super::engine::Engine;
use super::onnx::OnnxFile;
use super::onnx::file::Destination;
use super::onnx::proto::ModelProto;
use super::prepare::prepare_static;
use super::qdq::Float;
use super::qdq::rewrite::Integers;
use super::ranges::Calibrator;
use super::refine::judge::judge;
use super::refine::split::spread;
use super::samples::Samples;
use super::sensitivity;
use super::stored::store;
use crate::error::{Context, Error, Result};
use std::path::Path;

/// Two times are the same that differ by a smaller part.
const SAME_TIME: f64 = 1.05;

/// Two sizes are the same that differ by a smaller part.
const SAME_SIZE: f64 = 1.02;

/// How much longer than float a graph may take: machines are never quiet.
const SLOWER: f64 = 1.1;

/// The samples that rank layers.
const RANKING: usize = 2;

/// What can be tried.
#[derive(Debug)]
pub struct Candidate {
    /// What it is called.
    pub name: String,
    /// The graph.
    pub model: ModelProto,
    /// The part of its layers that multiply integers, 0 to 1.
    pub integers: f64,
    /// Layers that a static recipe exists for and that compute in floats, the most sensitive first.
    pub left: Vec<String>,
    /// The least signal-to-noise ratio of all outputs in dB, on the samples that judge.
    pub sqnr: f64,
    /// The size of its files.
    pub bytes: u64,
    /// Its time as a part of float's in ONNX Runtime, the lower quartiles; none where that was not found.
    pub time: Option<f64>,
    /// What ONNX Runtime's own graph multiplies in.
    pub kernels: Option<Kernels>,
}

/// All that was tried.
#[derive(Debug, Default)]
pub struct Curve {
    /// In the order of the list above.
    pub candidates: Vec<Candidate>,
    /// What could not be tried, and why.
    pub failed: Vec<(String, String)>,
    /// Static with one calibrator for all: the SQNR in dB.
    pub calibrators: Vec<(Calibrator, f64)>,
    /// How many samples judged, and whether nothing learned from them.
    pub judges: (usize, bool),
    /// The version of ONNX Runtime that measured time, and float's time in seconds.
    pub runtime: Option<(String, f64)>,
}

/// What is tried on what.
#[derive(Debug)]
pub struct Trial<'a> {
    /// The float graph.
    pub file: &'a OnnxFile,
    /// Samples of its inputs.
    pub samples: &'a Samples,
    /// The integers of the machine that the model is for.
    pub integers: Integers,
    /// The SQNR in dB that is good enough.
    pub enough: f64,
}

/// What is being done, how far it is, and of how many steps.
pub type Told<'a> = &'a mut dyn FnMut(&str, usize, usize);

/// Makes and judges all candidates.
///
/// # Errors
/// The float graph cannot be run on the samples, or a tensor is damaged.
pub fn candidates(trial: &Trial, told: Told) -> Result<Curve> {
    let Trial { file, samples, integers, enough } = *trial;
    let mut curve = Curve::default();
    let teacher = Engine::new(&file.model).context(|| format!("cannot run {}", file.path.display()))?;
    let float = Float::new(file);
    let choice = match &float {
        Ok(float) => {
            Some(choose(float, samples, integers, &|_| false, &mut |done, all| told("calibrators", done, all))?)
        }
        Err(_) => None,
    };
    let all: Vec<usize> = (0..samples.len()).collect();
    let judges = choice.as_ref().map_or_else(|| spread(&all, 8), |choice| choice.judges.clone());
    curve.judges = (judges.len(), choice.as_ref().is_none_or(|choice| choice.held_out));
    let add = |curve: &mut Curve, name: &str, left: Vec<String>, made: Result<(ModelProto, f64)>| {
        let judged =
            made.and_then(|(model, part)| Ok((judge(&teacher, &model, samples, &judges)?.sqnr(), model, part)));
        let name = name.to_owned();
        match judged {
            Ok((sqnr, model, integers)) => {
                curve.candidates.push(Candidate {
                    name,
                    model,
                    integers,
                    left,
                    sqnr,
                    bytes: 0,
                    time: None,
                    kernels: None,
                });
                Some(sqnr)
            }
            Err(error) => {
                curve.failed.push((name, error.to_string()));
                None
            }
        }
    };
    add(&mut curve, "weights", vec![], weights(file, float.as_ref().ok()));
    add(&mut curve, "dynamic", vec![], products(file, integers));
    let (float, Choice { seen, tried, .. }) = match (float, choice) {
        (Ok(float), Some(choice)) => (float, choice),
        (Err(error), _) => {
            curve.failed.push(("static".into(), error.to_string()));
            return Ok(curve);
        }
        (Ok(_), None) => return Ok(curve),
    };
    curve.calibrators = tried;
    let fixed = |left: &[String]| {
        let excluded = |name: &str| left.iter().any(|left| left == name);
        let (mut model, _) = float.in_integers(float.model().clone(), &seen.ranges, integers, &excluded)?;
        let stored = rest(&mut model)?;
        Ok((model, part(float.layers.len() - left.len(), stored)))
    };
    let reached = add(&mut curve, "static", vec![], fixed(&[]));
    if reached.is_some_and(|sqnr| sqnr < enough) && float.layers.len() > 1 {
        let bench = sensitivity::Bench::new(&float, &seen.ranges, integers, samples, RANKING)?;
        let layers = float.layers.len();
        let ranked = bench.rank(&mut |done| told("layers", done, layers))?;
        let names: Vec<String> = ranked.into_iter().map(|ranked| ranked.layer.name).collect();
        let counts = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < layers);
        for n in counts {
            let left = names[..n].to_vec();
            let model = fixed(&left);
            if add(&mut curve, &format!("mixed {n}"), left, model).is_some_and(|sqnr| sqnr >= enough) {
                break;
            }
        }
    }
    Ok(curve)
}

/// Weights in 8 bits, all arithmetic in floats.
fn weights(file: &OnnxFile, float: Option<&Float>) -> Result<(ModelProto, f64)> {
    let mut model = match float {
        Some(float) => float.model().clone(),
        None => {
            let mut model = file.model.clone();
            prepare_static(&mut model)?;
            model
        }
    };
    match rest(&mut model)? {
        0 => Err(Error::new("it has no weights that 8 bits could hold")),
        _ => Ok((model, 0.0)),
    }
}

/// What still computes in floats gets its weights in 8 bits; says how many there are.
fn rest(model: &mut ModelProto) -> Result<usize> {
    Ok(quantize_embeddings(model)?.done.len() + store(model, &|_| false)?)
}

/// The part of all layers that are in integers.
fn part(integers: usize, stored: usize) -> f64 {
    integers as f64 / (integers + stored).max(1) as f64
}

/// Products in integers.
fn products(file: &OnnxFile, integers: Integers) -> Result<(ModelProto, f64)> {
    file.need_opset(dynamic::OPSET, "dynamic quantization")?;
    let mut model = file.model.clone();
    let done = dynamic::quantize_products(&mut model, integers.levels)?.done.len();
    let stored = rest(&mut model)?;
    Ok((model, part(done, stored)))
}

/// Measures sizes, and time where ONNX Runtime is found.
///
/// # Errors
/// The files cannot be written or run.
pub fn measure(
    curve: &mut Curve,
    trial: &Trial,
    runtime: Option<&OnnxRuntime>,
    runs: usize,
    threads: usize,
) -> Result<()> {
    let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".into())?;
    let paths: Vec<_> = (0..curve.candidates.len()).map(|n| folder.path().join(format!("{n}.onnx"))).collect();
    for (candidate, path) in curve.candidates.iter_mut().zip(&paths) {
        candidate.bytes = Destination::new(path, trial.file, true)?.write(candidate.model.clone())?;
    }
    let (Some(runtime), Some(sample)) = (runtime, trial.samples.iter().next()) else { return Ok(()) };
    let sample = sample?;
    let engine = Engine::new(&trial.file.model)?;
    let inputs = engine.inputs().iter().zip(&sample.inputs).map(|(input, array)| BenchInput::of_sample(input, array));
    let files: Vec<&Path> = std::iter::once(&trial.file.path).chain(&paths).map(|path| path.as_path()).collect();
    let found = runtime.time(&files, inputs.collect::<Result<_>>()?, runs, threads)?;
    let mut quartiles = found.times.iter().map(|times| times.quantile(0.25));
    let float = quartiles.next().unwrap_or(f64::NAN);
    let kernels = found.kernels.into_iter().skip(1);
    for ((candidate, seconds), kernels) in curve.candidates.iter_mut().zip(quartiles).zip(kernels) {
        (candidate.time, candidate.kernels) = (Some(seconds / float), kernels);
    }
    curve.runtime = Some((found.version, float));
    Ok(())
}

/// The knee: of the candidates that are good enough the fastest, of equally fast ones the smallest, of equally small ones the nearest to
/// float. Where none is good enough, the nearest of those that are of any use. Where time is not known, a layer in integers
/// is taken for twice as fast on a CPU that is fast with them.
///
/// # Errors
/// None is of any use.
pub fn knee<'c>(curve: &'c Curve, trial: &Trial, cpu: Cpu) -> Result<&'c Candidate> {
    let useful = |candidate: &&Candidate| {
        let better = candidate.bytes < trial.file.bytes || candidate.time.is_some_and(|time| time * SAME_TIME < 1.0);
        candidate.sqnr >= LEAST_SQNR && better && candidate.time.is_none_or(|time| time <= SLOWER)
    };
    let useful: Vec<&Candidate> = curve.candidates.iter().filter(useful).collect();
    let nearest = |some: &[&'c Candidate]| some.iter().copied().max_by(|a, b| a.sqnr.total_cmp(&b.sqnr));
    let good: Vec<&Candidate> = useful.iter().copied().filter(|candidate| candidate.sqnr >= trial.enough).collect();
    let fastest = |candidate: &Candidate| match candidate.time {
        Some(time) => time,
        None if cpu.is_fast() => 1.0 - 0.5 * candidate.integers,
        None => 1.0 + 0.5 * candidate.integers,
    };
    let least = good.iter().map(|candidate| fastest(candidate)).fold(f64::INFINITY, f64::min);
    let fast: Vec<&Candidate> = good.into_iter().filter(|candidate| fastest(candidate) <= SAME_TIME * least).collect();
    let smallest = fast.iter().map(|candidate| candidate.bytes).min().unwrap_or(0) as f64;
    let small: Vec<&Candidate> =
        fast.into_iter().filter(|candidate| candidate.bytes as f64 <= SAME_SIZE * smallest).collect();
    nearest(&small).or_else(|| nearest(&useful)).ok_or_else(|| {
        let path = trial.file.path.display();
        Error::new(format!(
            "nothing useful is left of {path}: each candidate has an SQNR below {LEAST_SQNR} dB, or is neither smaller nor faster than float"
        ))
        .hint("leave the model as it is")
    })
}
