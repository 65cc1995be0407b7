//! Long evaluations: stopped in every way, they go on to the very same result; and how fast a model runs.
#![cfg(unix)]

mod common;

use common::checkpoint::Shape;
use common::{BINARY, Run, folder, llmq, names, run};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A small model, a rounded file of it, and a text that takes several parts.
struct Setup {
    root: TempDir,
    model: PathBuf,
    file: PathBuf,
    text: PathBuf,
}

impl Setup {
    fn new() -> Setup {
        let root = folder();
        let [model, file, text] = ["model", "q.gguf", "text.txt"].map(|name| root.path().join(name));
        Shape::default().checkpoint().write(&model);
        llmq!["quantize", &model, "-o", &file, "--type", "Q4_0", "--method", "rtn"].ok();
        let sample = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/heldout.txt")).unwrap();
        fs::write(&text, sample.repeat(6)).unwrap();
        Setup { root, model, file, text }
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("eval").arg(&self.file).args(["--perplexity", "--json", "-c", "64", "-f"]).arg(&self.text);
        command.args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn against(&self) -> [&str; 2] {
        ["--reference", self.model.to_str().unwrap()]
    }

    fn eval(&self, options: &[&str]) -> Run {
        run(&mut self.command(options))
    }

    /// What is beside the file, where it is kept.
    fn unfinished(&self) -> PathBuf {
        self.root.path().join("q.gguf.eval-unfinished")
    }

    /// Starts an evaluation, and waits until a part of it is on the disk.
    fn begun(&self, options: &[&str]) -> Child {
        let child = self.command(options).spawn().unwrap();
        let started = Instant::now();
        while !self.unfinished().exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "no part is finished");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    fn killed(&self, options: &[&str]) {
        let mut child = self.begun(options);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(self.unfinished().exists(), "it was done before it was killed");
    }
}

/// A summary without the time that it took.
fn result(run: &Run) -> Value {
    let mut summary = run.summary();
    summary.as_object_mut().unwrap().remove("seconds").unwrap();
    summary
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_very_same_result() {
    let setup = Setup::new();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut gone_on = 0;
    for options in [&setup.against()[..], &[]] {
        let started = Instant::now();
        let wanted = result(&setup.eval(options).ok());
        let whole = started.elapsed();
        assert!(!setup.unfinished().exists());
        for _ in 0..3 {
            let mut child = setup.command(options).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(random.random_range(0.3..1.0)));
            child.kill().unwrap();
            child.wait().unwrap();
            let resumed = setup.eval(&[options, &["--resume"]].concat()).ok();
            gone_on += resumed.lines("resumed").len();
            assert_eq!(result(&resumed), wanted, "{}", resumed.stderr);
            assert_eq!(names(setup.root.path()), ["model", "q.gguf", "text.txt"]);
        }
    }
    assert!(gone_on > 0, "none of the runs had something to go on with");
}

#[test]
fn a_comparison_goes_on_and_only_with_the_same_files() {
    let setup = Setup::new();
    let other = setup.root.path().join("other.gguf");
    llmq!["quantize", &setup.model, "-o", &other, "--type", "Q8_0", "--method", "rtn"].ok();
    let compare = |files: &[&Path], options: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("compare").args(files).args(setup.against()).args(["--json", "-c", "64", "-f"]).arg(&setup.text);
        command.args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (both, kept) = ([&*setup.file, &*other], setup.root.path().join("q.gguf.compare-unfinished"));
    let table = |run: &Run| [run.lines("file"), run.lines("pair")];
    let wanted = table(&run(&mut compare(&both, &[])).ok());
    let mut child = compare(&both, &[]).spawn().unwrap();
    let started = Instant::now();
    while !kept.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "no part is finished");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let turned = [&*other, &*setup.file];
    fs::copy(&kept, setup.root.path().join("other.gguf.compare-unfinished")).unwrap();
    run(&mut compare(&turned, &["--resume"])).failed(2, &["the set of files is not what it was", "hint: "]);
    let resumed = run(&mut compare(&both, &["--resume"])).ok();
    assert!(resumed.lines("resumed")[0]["finished_parts"].as_u64().unwrap() >= 1);
    assert_eq!(table(&resumed), wanted);
    assert!(!kept.exists());
}

#[test]
fn ctrl_c_says_how_to_go_on_and_what_is_left_is_mentioned() {
    let setup = Setup::new();
    let wanted = result(&setup.eval(&[]).ok());
    let child = setup.begun(&[]);
    run(Command::new("kill").args(["-INT", child.id().to_string().as_str()])).ok();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted; what is finished is in") && stderr.contains("--resume"), "{stderr}");
    let again = setup.eval(&["--chunks", "4"]).ok();
    assert!(again.stderr.contains("holds an unfinished evaluation") && again.stderr.contains("--resume"));
    // That one was too short to take its place.
    let resumed = setup.eval(&["--resume"]).ok();
    assert!(resumed.lines("resumed")[0]["finished_parts"].as_u64().unwrap() >= 1);
    assert_eq!(result(&resumed), wanted);
    assert!(!setup.unfinished().exists());
}

#[test]
fn other_settings_and_damage_are_refused_by_name() {
    let setup = Setup::new();
    setup.killed(&[]);
    let kept = fs::read(setup.unfinished()).unwrap();
    setup.eval(&["--resume", "--chunks", "300"]).failed(2, &["the text is not what it was", "hint: ", "rm "]);
    setup.eval(&["--resume", "--protocol", "hf"]).failed(2, &["--protocol was llama.cpp and is hf"]);
    let options = [&setup.against()[..], &["--resume"]].concat();
    setup.eval(&options).failed(2, &["the reference is not what it was"]);
    setup.eval(&["--resume", "--save-logits", "logits"]).failed(2, &["does not go with --resume"]);
    let mut damaged = kept.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(setup.unfinished(), &damaged).unwrap();
    setup.eval(&["--resume"]).failed(1, &["cannot resume from", "damaged", "hint: start over: rm"]);
    fs::write(setup.unfinished(), "not one\n").unwrap();
    setup.eval(&["--resume"]).failed(1, &["its first line is damaged"]);
    // A folder that cannot be written costs nothing but this.
    let gone = setup.root.path().join("gone");
    let told = setup.eval(&["--work-dir", gone.to_str().unwrap()]).ok();
    assert!(told.stderr.contains("cannot keep what is finished"), "{}", told.stderr);
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("q.gguf.eval-unfinished"), kept).unwrap();
    let resumed = setup.eval(&["--work-dir", gone.to_str().unwrap(), "--resume"]).ok();
    assert_eq!(resumed.lines("resumed").len(), 1);
    assert_eq!(names(&gone), [""; 0]);
}

#[test]
fn speed_is_measured_of_both() {
    let setup = Setup::new();
    let summary =
        llmq!["eval", &setup.file, "--speed", "--reference", &setup.model, "--json"].ok().summary()["speed"].clone();
    for name in ["own", "reference"] {
        let speed = &summary[name];
        for measure in ["first_token_seconds", "prompt_rate", "generation_rate"] {
            let [least, median, most] = ["least", "median", "most"].map(|key| speed[measure][key].as_f64().unwrap());
            assert!(0.0 < least && least <= median && median <= most, "{speed}");
        }
        assert!(speed["runs"].as_u64().unwrap() >= 2 && speed["peak_memory"].as_u64().unwrap() > 1 << 20, "{speed}");
        assert_eq!(speed["engine"], "llmq, CPU");
    }
    assert_eq!(summary["own"]["bytes"], setup.file.metadata().unwrap().len());
    let shown = llmq!["eval", &setup.file, "--speed"].ok().stdout;
    assert!(shown.contains("llmq's own engine on this CPU, not of llama.cpp"), "{shown}");
    assert!(shown.contains("generation ") && !shown.contains("of the original"), "{shown}");
}
