//! ONNX Runtime's library, loaded while the program runs.

use super::bench_inputs::{BenchInput, Kind};
use super::in_turn;
use super::runtime::{Answer, Question};
use crate::error::{Error, Result};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::{DynTensor, Tensor};
use regex::Regex;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A library that is loaded.
pub struct Library {
    environment: Environment,
    version: String,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Library {
    /// Loads that file, else the one that `ORT_DYLIB_PATH` names, else what the system finds by the library's name, if anything.
    ///
    /// # Errors
    /// A file was named that cannot be loaded, or is too old.
    pub fn find(named: Option<&Path>) -> Result<Option<Self>> {
        let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = match named.or(variable.as_deref()) {
            // The crate looks for relative ones beside the program first.
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.into()),
            None => format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}").into(),
        };
        let refused = |cause: String| {
            Error::new(format!("cannot load ONNX Runtime's library {}: {cause}", path.display()))
                .hint("the package onnxruntime of Python has it in onnxruntime/capi")
        };
        let loaded = ort::init_from(&path).map_err(|cause| refused(cause.to_string()));
        if named.is_none() && variable.is_none() && loaded.is_err() {
            return Ok(None);
        }
        let environment = loaded?.with_name("llmq").build().map_err(|cause| refused(cause.to_string()))?;
        environment.set_log_level(LogLevel::Error);
        Ok(Some(Self { environment, version: version(&path) }))
    }

    /// Loads the models and runs them in turn.
    pub(super) fn ask(&self, question: &Question) -> Result<Answer> {
        let what = |path: &Path, cause: ort::Error| {
            Error::new(format!("ONNX Runtime cannot run {}: {}", path.display(), cause.message()))
        };
        let mut sessions = Vec::new();
        let mut optimized = Vec::new();
        for (path, to) in question.models.iter().zip(&question.optimized) {
            let saving = self.session(path, Some(to), question.threads);
            optimized.push(saving.is_ok());
            // Too large to be saved, perhaps; if not, this fails as well and says why.
            let session = saving.or_else(|_| self.session(path, None, question.threads));
            sessions.push(session.map_err(|cause| what(path, cause))?);
        }
        let inputs = question.inputs.iter().map(|given| Ok((given.name.as_str(), value(given)?)));
        let inputs = inputs.collect::<ort::Result<Vec<_>>>();
        let inputs = inputs.map_err(|cause| Error::new(format!("ONNX Runtime: {}", cause.message())))?;
        let seconds = in_turn(sessions.len(), question.runs, |at| {
            let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let start = Instant::now();
            sessions[at].run(inputs).map_err(|cause| what(&question.models[at], cause))?;
            Ok(start.elapsed())
        })?;
        Ok(Answer { version: self.version.clone(), seconds, optimized })
    }

    fn session(&self, path: &Path, optimized: Option<&Path>, threads: usize) -> ort::Result<Session> {
        let mut builder = Session::builder(&self.environment)?.with_intra_threads(threads)?;
        if let Some(to) = optimized {
            builder = builder.with_optimized_model_path(to)?;
        }
        builder.commit_from_file(path)
    }
}

/// The library's version, which is in the name of its file where links are followed; else the commit that it was built from.
fn version(path: &Path) -> String {
    let file = path.canonicalize().unwrap_or_default();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let version = Regex::new(r"\d+\.\d+\.\d+").expect("it is one").find(&name);
    let commit = || ort::info().split([',', ' ']).find_map(|part| part.strip_prefix("git-commit-id="));
    match version {
        Some(version) => version.as_str().into(),
        None => format!("of commit {}", commit().unwrap_or("unknown")),
    }
}

fn value(given: &BenchInput) -> ort::Result<DynTensor> {
    let (dims, whole) = (given.dims.clone(), given.integers());
    Ok(match given.kind {
        Kind::Float32 => Tensor::from_array((dims, given.noise()))?.upcast(),
        Kind::Int64 => Tensor::from_array((dims, whole.into_iter().map(i64::from).collect::<Vec<_>>()))?.upcast(),
        Kind::Int32 => Tensor::from_array((dims, whole))?.upcast(),
        Kind::Bool => Tensor::from_array((dims, whole.into_iter().map(|x| x != 0).collect::<Vec<_>>()))?.upcast(),
    })
}
