//! ONNX Runtime, as a library or through Python, whichever is found.

use super::bench_inputs::BenchInput;
#[cfg(feature = "ort")]
use super::library::Library;
use super::python::Python;
use super::{Kernels, Times, kernels};
use crate::error::{Context, Error, Result};
use crate::int8::onnx::OnnxFile;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A way to run ONNX Runtime.
#[derive(Debug)]
pub enum OnnxRuntime {
    /// Its library, in this process.
    #[cfg(feature = "ort")]
    Library(Library),
    /// The package of a Python.
    Python(Python),
}

/// What ONNX Runtime did.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Its version.
    pub version: String,
    /// Per model, the times of its runs.
    pub times: Vec<Times>,
    /// Per model, what its own graph consists of; none if it could not save that.
    pub kernels: Vec<Option<Kernels>>,
}

/// What is asked of ONNX Runtime.
#[derive(Debug, Serialize)]
pub(super) struct Question {
    /// The files.
    pub models: Vec<PathBuf>,
    /// Where the graphs go that it makes of them.
    pub optimized: Vec<PathBuf>,
    /// What all models are given.
    pub inputs: Vec<BenchInput>,
    pub runs: usize,
    /// 0: as many as it likes.
    pub threads: usize,
}

/// What it says.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub version: String,
    /// Per model, of each run that counts.
    pub seconds: Vec<Vec<f64>>,
    /// Per model, whether it saved its graph.
    pub optimized: Vec<bool>,
}

impl OnnxRuntime {
    /// Looks for the library, if this program has been built with the feature `ort`: that file, else the one that `ORT_DYLIB_PATH`
    /// names, else that of the system. Then whether this Python has the packages.
    ///
    /// # Errors
    /// A library was named that cannot be loaded, or that this program cannot load any.
    pub fn find(library: Option<&Path>, python: &OsStr) -> Result<Option<Self>> {
        #[cfg(feature = "ort")]
        if let Some(library) = Library::find(library)? {
            return Ok(Some(Self::Library(library)));
        }
        #[cfg(not(feature = "ort"))]
        if let Some(library) = library {
            let what = format!("cannot load {}: this llmq was built without the feature ort", library.display());
            return Err(Error::usage(what).hint("build it with --features ort, or name a Python with --python"));
        }
        Ok(Python::find(python).map(Self::Python))
    }

    /// Times models in turn on the same inputs.
    ///
    /// # Errors
    /// ONNX Runtime cannot run one of them.
    pub fn time(&self, files: &[&Path], inputs: Vec<BenchInput>, runs: usize, threads: usize) -> Result<Measured> {
        let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".into())?;
        let question = Question {
            models: files.iter().map(|&path| path.into()).collect(),
            optimized: (0..files.len()).map(|n| folder.path().join(format!("{n}.onnx"))).collect(),
            inputs,
            runs,
            threads,
        };
        let answer = match self {
            #[cfg(feature = "ort")]
            Self::Library(library) => library.ask(&question)?,
            Self::Python(python) => python.ask(&question)?,
        };
        if answer.seconds.len() != files.len() || answer.seconds.iter().any(Vec::is_empty) {
            return Err(Error::new("ONNX Runtime gave no times"));
        }
        let of = |(path, saved): (&PathBuf, &bool)| {
            let model = saved.then(|| OnnxFile::open(path).ok())??.model;
            kernels(model).ok()
        };
        Ok(Measured {
            version: answer.version,
            times: answer.seconds.into_iter().map(Times::new).collect(),
            kernels: question.optimized.iter().zip(&answer.optimized).map(of).collect(),
        })
    }
}
