//! ONNX Runtime, through Python.

use super::runtime::{Answer, Question};
use crate::error::{Context, Error, Result};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("onnxruntime.py");

/// A Python that has ONNX Runtime.
#[derive(Debug, Clone)]
pub struct Python {
    program: OsString,
}

impl Python {
    /// Looks whether this Python has the packages.
    pub fn find(program: &OsStr) -> Option<Self> {
        let mut command = Command::new(program);
        command
            .args(["-c", "import numpy, onnxruntime"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then(|| Self { program: program.into() })
    }

    /// Has a script answer.
    pub(super) fn ask(&self, question: &Question) -> Result<Answer> {
        let name = self.program.to_string_lossy();
        let what = || format!("cannot run ONNX Runtime with {name}");
        let question = serde_json::to_vec(question).context(what)?;
        let mut command = Command::new(&self.program);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&question).context(what)?;
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
