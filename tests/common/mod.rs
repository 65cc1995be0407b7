//! What the whole-program tests share: running the real binary, and judging what it printed and left behind.
//!
//! Each test file uses a part of this.
#![allow(dead_code, unused_macros, unused_imports)]

pub mod checkpoint;
pub mod golden;
pub mod hub;
pub mod npz;
pub mod onnx;
pub mod packing;
pub mod torch;
pub mod upload;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_llmq");

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Run {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap_or_else(|cause| panic!("cannot run {command:?}: {cause}"));
    let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs llmq with arguments that are strings or paths; those behind `;` are a list.
macro_rules! llmq {
    ($($arg:expr),* $(; $more:expr)? $(,)?) => {
        $crate::common::run(std::process::Command::new($crate::common::BINARY)$(.arg($arg))*$(.args($more))?)
    };
}
pub(crate) use llmq;

impl Run {
    /// The run succeeded.
    #[track_caller]
    pub fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// The run failed as it should: with this exit code, an error that contains all of `wanted`, and no panic.
    #[track_caller]
    pub fn failed(self, code: i32, wanted: &[&str]) -> Run {
        let Run { stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.contains("error: "), "{stderr}");
        for wanted in wanted {
            assert!(stderr.contains(wanted), "no {wanted:?} in:\n{stderr}");
        }
        self
    }

    /// Standard output as JSON, line by line.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|cause| panic!("{cause}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The JSON lines of one type.
    #[track_caller]
    pub fn lines(&self, kind: &str) -> Vec<Value> {
        self.json().into_iter().filter(|line| line["type"] == kind).collect()
    }

    /// The last JSON line, which has to be the summary.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let last = self.json().pop().expect("a line of JSON");
        assert_eq!(last["type"], "summary", "{last}");
        last
    }
}

/// The checkpoint that the project brings along.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny")
}

/// A new folder that goes away by itself.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The names in a folder, hidden ones too, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Quantizes into an empty folder. It must fail with this code and these words, and leave nothing there.
#[track_caller]
pub fn refused(model: &Path, options: &[&str], code: i32, wanted: &[&str]) -> Run {
    let out = folder();
    let run = llmq!["quantize", model, "-o", out.path().join("out.gguf"); options].failed(code, wanted);
    assert_eq!(names(out.path()), [""; 0], "left behind");
    assert_eq!(run.stdout, "");
    run
}

/// The tensors of a GGUF or a checkpoint folder, as `inspect --json` shows them.
#[track_caller]
pub fn tensors(model: &Path) -> Vec<Value> {
    llmq!["inspect", model, "--json"].ok().lines("tensor")
}

/// The type of one tensor of a GGUF.
#[track_caller]
pub fn kind(file: &Path, tensor: &str) -> String {
    let found = tensors(file).into_iter().find(|t| t["name"] == tensor);
    found.unwrap_or_else(|| panic!("no tensor {tensor}"))["kind"].as_str().expect("a type").to_owned()
}

/// Perplexity on the built-in text, as `eval --json` shows it.
#[track_caller]
pub fn perplexity<S: AsRef<OsStr>>(model: &Path, options: &[S]) -> f64 {
    let run = llmq!["eval", model, "--perplexity", "--json"; options].ok();
    run.summary()["perplexity"].as_f64().expect("a perplexity")
}

/// How far a file is from a reference on the built-in text, as `eval --json` shows it.
#[track_caller]
pub fn divergence<S: AsRef<OsStr>>(file: &Path, reference: &Path, options: &[S]) -> Value {
    llmq!["eval", file, "--reference", reference, "--json"; options].ok().summary()
}

/// The embedded checkpoint, rounded to a type.
pub fn rounded(folder: &Path, kind: &str) -> PathBuf {
    let file = folder.join(format!("{kind}.gguf"));
    llmq!["quantize", tiny(), "-o", &file, "--type", kind, "--method", "rtn"].ok();
    file
}
