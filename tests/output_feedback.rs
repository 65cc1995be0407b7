//! `--output-feedback` as a whole: closer files, the same bytes however a run went, refused where it cannot be had.
#![cfg(unix)]

mod common;

use common::{BINARY, Run, folder, golden, llmq, run, tiny};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const LITTLE: [&str; 8] = ["--samples", "16", "--seq-len", "128", "--type", "Q4_0", "--method", "gptq"];

fn command(output: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("quantize").arg(tiny()).arg("-o").arg(output).args(LITTLE).arg("--json").args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn quantized(output: &Path, options: &[&str]) -> Run {
    run(&mut command(output, options)).ok()
}

fn divergence(file: &Path) -> f64 {
    let judged = llmq!["eval", file, "--reference", tiny(), "-c", "128", "--chunks", "40", "--json"].ok();
    judged.lines("summary")[0]["kl_divergence"].as_f64().unwrap()
}

#[test]
fn files_are_closer_and_the_same_at_any_number_of_threads() {
    let out = folder();
    let [plain, one, two] = ["plain", "one", "two"].map(|name| out.path().join(format!("{name}.gguf")));
    quantized(&plain, &[]);
    quantized(&one, &["--output-feedback", "--threads", "1"]);
    quantized(&two, &["--output-feedback", "--threads", "2"]);
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap());
    let (without, with) = (divergence(&plain), divergence(&one));
    assert!(with < 0.95 * without, "{with} instead of {without}");
}

#[test]
fn killed_it_goes_on_to_the_same_bytes_even_if_what_was_measured_is_lost() {
    let root = folder();
    let wanted = root.path().join("undisturbed.gguf");
    quantized(&wanted, &["--output-feedback"]);
    for damage in [false, true] {
        let file = root.path().join(format!("{damage}.gguf"));
        let mut child = command(&file, &["--output-feedback"]).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("blk.2.attn_q.weight")), "it has a block 2");
        child.kill().unwrap();
        child.wait().unwrap();
        let measured = root.path().join(format!("{damage}.gguf.unfinished/output-hessians"));
        assert!(measured.exists());
        if damage {
            let mut bytes = fs::read(&measured).unwrap();
            let last = bytes.len() - 2;
            bytes[last] ^= 0x40;
            fs::write(&measured, bytes).unwrap();
        }
        let resumed = quantized(&file, &["--output-feedback", "--resume"]);
        assert_eq!(resumed.lines("resumed").len(), 1);
        assert!(fs::read(&file).unwrap() == fs::read(&wanted).unwrap(), "damaged: {damage}");
    }
}

#[test]
fn what_has_no_backward_pass_is_refused_by_name() {
    let out = folder();
    let model = out.path().join("model");
    golden::read("mamba2").checkpoint.write(&model);
    let output = out.path().join("out.gguf");
    let options = ["--type", "Q4_0", "--samples", "2", "--seq-len", "16", "--output-feedback"];
    let refused = llmq!["quantize", &model, "-o", output; options];
    refused.failed(2, &["--output-feedback is not for this model (mamba2)", "hint: leave --output-feedback out"]);
}
