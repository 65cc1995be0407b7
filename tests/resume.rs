//! Runs that end before they are done, in every way, and go on: the result has the bytes of a run that nothing disturbed.
#![cfg(unix)]

mod common;

use common::checkpoint::Shape;
use common::{BINARY, Run, folder, llmq, names, run, tiny};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const LITTLE: [&str; 8] = ["--samples", "8", "--seq-len", "128", "--type", "Q4_0", "--method", "gptq"];
const HINT: &str = "\nhint: ";

fn command(model: &Path, output: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("quantize").arg(model).arg("-o").arg(output).args(LITTLE).arg("--json").args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn quantized(model: &Path, output: &Path, options: &[&str]) -> Run {
    run(&mut command(model, output, options))
}

/// The bytes of a run that nothing disturbs, and how long it takes.
fn undisturbed(model: &Path, options: &[&str]) -> (Vec<u8>, Duration) {
    let out = folder();
    let file = out.path().join("out.gguf");
    let started = Instant::now();
    quantized(model, &file, options).ok();
    assert_eq!(names(out.path()), ["out.gguf"]);
    (fs::read(file).unwrap(), started.elapsed())
}

/// Starts a run, and waits until it says that it has written this tensor.
fn started(model: &Path, output: &Path, options: &[&str], tensor: &str) -> (Child, BufReader<ChildStdout>) {
    wait_for(&mut command(model, output, options), tensor)
}

fn wait_for(command: &mut Command, tensor: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(tensor) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before {tensor}");
    }
    (child, lines)
}

/// A run that was killed once it had begun with block 2.
fn killed(model: &Path, output: &Path, options: &[&str]) {
    let (mut child, _lines) = started(model, output, options, "blk.2.attn_q.weight");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!output.exists() && unfinished(output).join("journal").exists());
}

fn unfinished(output: &Path) -> PathBuf {
    output.with_file_name(format!("{}.unfinished", output.file_name().unwrap().to_str().unwrap()))
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_same_bytes() {
    let (wanted, whole) = undisturbed(&tiny(), &[]);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut gone_on = 0;
    for _ in 0..20 {
        let out = folder();
        let file = out.path().join("out.gguf");
        let mut child = command(&tiny(), &file, &[]).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.0)));
        child.kill().unwrap();
        child.wait().unwrap();
        if file.exists() && !unfinished(&file).exists() {
            // It was faster this time.
            continue;
        }
        let resumed = quantized(&tiny(), &file, &["--resume"]).ok();
        gone_on += resumed.lines("resumed").len();
        assert!(fs::read(&file).unwrap() == wanted, "{}", resumed.stderr);
        assert_eq!(names(out.path()), ["out.gguf"]);
    }
    assert!(gone_on > 5, "only {gone_on} runs of 20 had something to go on with");
}

#[test]
fn killed_again_and_again_it_still_comes_to_the_same_bytes() {
    let root = folder();
    let model = root.path().join("model");
    Shape { tied: false, blocks: 6, ..Shape::default() }.checkpoint().write(&model);
    let scratch = root.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let matrix = |name: &str| root.path().join(name);
    let options = ["--max-shard-size", "150K", "--work-dir", scratch.to_str().unwrap(), "--save-imatrix"];
    let [one, other] = ["undisturbed", "disturbed"].map(|name| root.path().join(name));
    [&one, &other].iter().for_each(|path| fs::create_dir(path).unwrap());
    let call = |folder: &Path, matrix: &Path, more: &[&str]| {
        command(&model, &folder.join("out.gguf"), &[&options[..], &[matrix.to_str().unwrap()], more].concat())
    };
    run(&mut call(&one, &matrix("a.gguf"), &[])).ok();
    for block in 1..6 {
        let mut command = call(&other, &matrix("b.gguf"), &["--resume"]);
        let (mut child, _lines) = wait_for(&mut command, &format!("blk.{block}.attn_q.weight"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let last = run(&mut call(&other, &matrix("b.gguf"), &["--resume"])).ok();
    let resumed = &last.lines("resumed")[0];
    assert!(resumed["finished_blocks"].as_u64().unwrap() >= 4 && resumed["blocks"] == 6, "{resumed}");
    assert!(names(&one).len() > 2, "several shards were wanted");
    assert_eq!(names(&one), names(&other));
    for name in names(&one) {
        assert!(fs::read(one.join(&name)).unwrap() == fs::read(other.join(&name)).unwrap(), "{name}");
    }
    assert!(fs::read(matrix("a.gguf")).unwrap() == fs::read(matrix("b.gguf")).unwrap());
    assert_eq!(names(&scratch), [""; 0], "left behind");
    // What was finished before is in the summary, too.
    assert!(last.summary()["mean_relative_error"].as_f64().unwrap() > 0.0);
}

#[test]
fn ctrl_c_keeps_what_is_finished_and_says_how_to_go_on() {
    let (wanted, _) = undisturbed(&tiny(), &[]);
    let out = folder();
    let file = out.path().join("out.gguf");
    let (child, mut lines) = started(&tiny(), &file, &[], "blk.1.attn_q.weight");
    run(Command::new("kill").args(["-INT", child.id().to_string().as_str()])).ok();
    lines.read_to_string(&mut String::new()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted; what is finished is in") && stderr.contains("--resume"), "{stderr}");
    assert_eq!(names(out.path()), ["out.gguf.unfinished"]);
    // Whoever forgets to say so is reminded, and nothing is lost.
    let told = ["out.gguf.unfinished holds an unfinished run", HINT, "--resume", "--force"];
    quantized(&tiny(), &file, &[]).failed(2, &told);
    quantized(&tiny(), &file, &["--resume"]).ok();
    assert!(fs::read(&file).unwrap() == wanted);
    assert_eq!(names(out.path()), ["out.gguf"]);
}

#[test]
fn other_settings_and_inputs_are_refused_by_name_and_force_starts_over() {
    let root = folder();
    let model = root.path().join("model");
    let mut checkpoint = Shape { blocks: 4, ..Shape::default() }.checkpoint();
    checkpoint.write(&model);
    let file = root.path().join("out.gguf");
    killed(&model, &file, &[]);
    let text = root.path().join("text.txt");
    fs::write(&text, "Another text, and a long one. ".repeat(500)).unwrap();
    for (options, told) in [
        (&["--type", "Q5_0"][..], "--type was Q4_0 and is Q5_0"),
        (&["--method", "auto"], "--method was gptq and is auto"),
        (&["--samples", "9"], "--samples was 8 and is 9"),
        (&["--seed", "5"], "--seed was 0 and is 5"),
        (&["--damp", "0.02"], "--damp was 0.01 and is 0.02"),
        (&["--no-gptaq"], "--no-gptaq was false and is true"),
        (&["--tensor-type", "ffn_up=Q8_0"], "the choice of the tensors' types is not what it was"),
        (&["--override-kv", "a=int:1"], "the keys of the output is not what it was"),
        (&["--calib", text.to_str().unwrap()], "the calibration text is not what it was"),
    ] {
        // Given twice an option would be refused for that.
        let same = LITTLE.chunks(2).filter(|pair| pair[0] != options[0]).flatten().copied();
        let all: Vec<&str> = same.chain(options.iter().copied()).chain(["--resume"]).collect();
        llmq!["quantize", &model, "-o", &file; all].failed(2, &["cannot resume", told, HINT]);
    }
    checkpoint.numbers("model.layers.3.mlp.up_proj.weight")[5] += 0.5;
    checkpoint.write(&model);
    quantized(&model, &file, &["--resume"])
        .failed(2, &["cannot resume", "the model is not what it was", HINT, "rm -r"]);
    assert!(unfinished(&file).join("journal").exists());
    let (wanted, _) = undisturbed(&model, &[]);
    quantized(&model, &file, &["--force"]).ok();
    assert!(fs::read(&file).unwrap() == wanted);
    assert_eq!(names(root.path()), ["model", "out.gguf", "text.txt"]);
}

#[test]
fn with_nothing_to_go_on_with_it_begins_and_two_at_once_are_refused() {
    let (wanted, _) = undisturbed(&tiny(), &[]);
    let out = folder();
    let file = out.path().join("out.gguf");
    let (mut child, mut lines) = started(&tiny(), &file, &["--resume"], "token_embd.weight");
    quantized(&tiny(), &file, &["--resume"]).failed(1, &["another llmq is at work", HINT]);
    lines.read_to_string(&mut String::new()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(fs::read(&file).unwrap() == wanted);
}

#[test]
fn damage_is_found_and_named_and_loses_nothing() {
    let out = folder();
    let file = out.path().join("out.gguf");
    killed(&tiny(), &file, &[]);
    let work = unfinished(&file);
    let stream = {
        let journal = fs::read_to_string(work.join("journal")).unwrap();
        if journal.contains("/stream-0\"") { "stream-0" } else { "stream-1" }
    };
    for (name, told) in
        [("journal", "cannot resume from"), (stream, "is damaged in batch 0"), ("out.gguf", "out.gguf has other bytes")]
    {
        let path = work.join(name);
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[200] ^= 1;
        fs::write(&path, damaged).unwrap();
        quantized(&tiny(), &file, &["--resume"]).failed(1, &[told, path.to_str().unwrap(), HINT, "rm -r"]);
        fs::write(&path, &whole[..150]).unwrap();
        quantized(&tiny(), &file, &["--resume"]).failed(1, &[path.to_str().unwrap(), HINT, "rm -r"]);
        fs::remove_file(&path).unwrap();
        if name != "journal" {
            quantized(&tiny(), &file, &["--resume"]).failed(1, &[path.to_str().unwrap(), HINT, "rm -r"]);
        }
        fs::write(&path, whole).unwrap();
    }
    quantized(&tiny(), &file, &["--resume"]).ok();
    assert!(fs::read(&file).unwrap() == undisturbed(&tiny(), &[]).0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_up_in_the_middle_loses_no_finished_block() {
    let (wanted, _) = undisturbed(&tiny(), &[]);
    let out = folder();
    let file = out.path().join("out.gguf");
    fs::write(&file, "precious").unwrap();
    let (child, mut lines) = started(&tiny(), &file, &["--force"], "blk.1.attn_q.weight");
    // No disk that can be had everywhere accepts the reservation and refuses the bytes, but a limit can come later.
    run(Command::new("prlimit").arg("--pid").arg(child.id().to_string()).arg("--fsize=100000")).ok();
    lines.read_to_string(&mut String::new()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let run =
        Run { code: ended.status.code(), stdout: String::new(), stderr: String::from_utf8(ended.stderr).unwrap() };
    run.failed(1, &["out.gguf", "File too large", HINT, "--resume", "what is finished is kept in"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(quantized(&tiny(), &file, &["--resume", "--force"]).ok().lines("resumed").len(), 1);
    assert!(fs::read(&file).unwrap() == wanted);
    assert_eq!(names(out.path()), ["out.gguf"]);
}

#[test]
fn a_scratch_folder_that_vanishes_is_named() {
    let out = folder();
    let [file, scratch] = ["out.gguf", "scratch"].map(|name| out.path().join(name));
    fs::create_dir(&scratch).unwrap();
    let options = ["--work-dir", scratch.to_str().unwrap()];
    let (child, mut lines) = started(&tiny(), &file, &options, "blk.1.attn_q.weight");
    fs::remove_dir_all(&scratch).unwrap();
    lines.read_to_string(&mut String::new()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let run =
        Run { code: ended.status.code(), stdout: String::new(), stderr: String::from_utf8(ended.stderr).unwrap() };
    run.failed(1, &["cannot save the calibration's residual stream", scratch.to_str().unwrap(), HINT]);
    assert!(!file.exists());
    quantized(&tiny(), &file, &["--resume"]).failed(1, &["cannot keep", scratch.to_str().unwrap(), HINT]);
    quantized(&tiny(), &file, &["--work-dir", "/nowhere"]).failed(2, &["unfinished run"]);
}

#[test]
fn a_scratch_folder_is_made_or_refused_at_the_start() {
    let out = folder();
    let [file, scratch] = ["out.gguf", "scratch"].map(|name| out.path().join(name));
    let deep = scratch.join("deeper");
    let run = quantized(&tiny(), &file, &["--work-dir", deep.to_str().unwrap()]);
    run.failed(1, &["cannot make the folder", deep.to_str().unwrap(), HINT]);
    assert!(names(out.path()).is_empty());
    quantized(&tiny(), &file, &["--work-dir", scratch.to_str().unwrap()]).ok();
    assert_eq!(names(out.path()), ["out.gguf", "scratch"]);
    assert!(names(&scratch).is_empty());
}
