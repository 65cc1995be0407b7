//! ONNX Runtime, through Python.

use super::{Kernels, Sizes, Times, kernels, shape_of};
use crate::error::{Context, Error, Result};
use crate::int8::engine::Input;
use crate::int8::onnx::OnnxFile;
use crate::int8::onnx::proto::tensor_proto::DataType;
use serde::Deserialize;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("onnxruntime.py");

/// A Python that has ONNX Runtime.
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    python: OsString,
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

#[derive(Deserialize)]
struct Answer {
    version: String,
    seconds: Vec<Vec<f64>>,
    optimized: Vec<bool>,
}

impl OnnxRuntime {
    /// Looks whether this Python has the packages.
    pub fn find(python: &OsStr) -> Option<Self> {
        let mut command = Command::new(python);
        command
            .args(["-c", "import numpy, onnxruntime"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then(|| Self { python: python.into() })
    }

    /// Times models in turn on the same inputs.
    ///
    /// # Errors
    /// ONNX Runtime cannot run one of them, or an input's shape is not known.
    pub fn time(
        &self,
        files: &[&OnnxFile],
        inputs: &[Input],
        sizes: &Sizes,
        runs: usize,
        threads: usize,
    ) -> Result<Measured> {
        let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".into())?;
        let optimized: Vec<_> = (0..files.len()).map(|n| folder.path().join(format!("{n}.onnx"))).collect();
        let entry = |input: &Input| {
            let kind = match input.kind {
                Some(DataType::Float) => "float32",
                Some(DataType::Int64) => "int64",
                Some(DataType::Int32) => "int32",
                Some(DataType::Bool) => "bool",
                _ => {
                    return Err(Error::new(format!(
                        "input '{}' has a type that llmq cannot make values of",
                        input.name
                    )));
                }
            };
            Ok(json!({ "name": input.name, "type": kind, "dims": shape_of(input, sizes)? }))
        };
        let question = json!({
            "models": files.iter().map(|file| &file.path).collect::<Vec<_>>(),
            "optimized": optimized,
            "inputs": inputs.iter().map(entry).collect::<Result<Vec<_>>>()?,
            "runs": runs,
            "threads": threads,
        });
        let answer = self.ask(&question.to_string())?;
        if answer.seconds.len() != files.len() || answer.seconds.iter().any(Vec::is_empty) {
            return Err(Error::new("ONNX Runtime gave no times"));
        }
        let of = |(path, saved): (&std::path::PathBuf, &bool)| {
            let model = saved.then(|| OnnxFile::open(path).ok())??.model;
            kernels(model).ok()
        };
        Ok(Measured {
            version: answer.version,
            times: answer.seconds.into_iter().map(Times::new).collect(),
            kernels: optimized.iter().zip(&answer.optimized).map(of).collect(),
        })
    }

    fn ask(&self, question: &str) -> Result<Answer> {
        let name = self.python.to_string_lossy();
        let what = || format!("cannot run ONNX Runtime with {name}");
        let mut command = Command::new(&self.python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(question.as_bytes()).context(what)?;
        }
        let output = child.wait_with_output().context(what)?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            let last =
                told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gives no reason").to_owned();
            return Err(Error::new(format!("ONNX Runtime cannot run these models: {last}")));
        }
        serde_json::from_slice(&output.stdout).context(what)
    }
}
