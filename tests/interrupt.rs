//! Ctrl-C and its kin before the first block of a calibrated run is finished: exit code 130, and nothing changed on the disk.
//! What becomes of finished blocks is in `resume.rs`.
#![cfg(unix)]

mod common;

use common::{BINARY, folder, names, run, tiny};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// Starts a run into `folder` that takes long, sends the signals once it has written a tensor, and returns its exit code
/// and standard error.
fn interrupted(folder: &Path, options: &[&str], signals: &[&str]) -> (Option<i32>, String) {
    let before = names(folder).len();
    let mut command = Command::new(BINARY);
    command.arg("quantize").arg(tiny()).arg("-o").arg(folder.join("out.gguf"));
    command.args(["--samples", "250", "--seq-len", "512", "--json"]).args(options);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.contains("token_embd.weight"), "{first}");
    assert_eq!(names(folder).len(), before + 1, "the temporary should be there");
    for signal in signals {
        run(Command::new("kill").args([signal, child.id().to_string().as_str()])).ok();
    }
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("\"summary\""), "it was done before the signal came: {rest}");
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn ctrl_c_and_termination_leave_nothing() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let out = folder();
        let (code, stderr) = interrupted(out.path(), &[], &[signal]);
        assert_eq!(code, Some(130), "{signal}: {stderr}");
        assert!(stderr.contains("interrupted") && !stderr.contains("panicked"), "{signal}: {stderr}");
        assert_eq!(names(out.path()), [""; 0], "{signal}");
    }
}

#[test]
fn an_impatient_second_ctrl_c_leaves_at_most_what_a_kill_would() {
    let out = folder();
    let (code, stderr) = interrupted(out.path(), &[], &["-INT", "-INT"]);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(names(out.path()).iter().all(|name| name == "out.gguf.unfinished"), "{:?}", names(out.path()));
}

#[test]
fn the_file_that_was_to_be_replaced_is_intact() {
    let out = folder();
    let old = out.path().join("out.gguf");
    fs::write(&old, "precious").unwrap();
    let (code, stderr) = interrupted(out.path(), &["--force"], &["-INT"]);
    assert_eq!(code, Some(130), "{stderr}");
    assert_eq!(fs::read(&old).unwrap(), b"precious");
    assert_eq!(names(out.path()), ["out.gguf"]);
}
