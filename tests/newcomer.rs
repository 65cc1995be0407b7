//! What somebody sees who types a first command: few lines, what was decided without asking, and the nearest name of what was mistyped.

mod common;

use common::checkpoint::Shape;
use common::{folder, llmq, tiny};
use std::fs;

/// Lines of a screen.
const SCREEN: usize = 40;

const LITTLE: [&str; 4] = ["--samples", "2", "--seq-len", "64"];

#[test]
fn a_command_without_anything_to_do_says_what_to_type_in_ten_lines() {
    let run = llmq![; [] as [&str; 0]];
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines.len() <= 10, "{}", run.stderr);
    // The first command is one that the program takes.
    let first = lines.iter().find_map(|line| line.strip_prefix("  llmq ")).unwrap();
    assert!(first.starts_with("quantize Qwen/Qwen3-0.6B "), "{first}");
    let help = llmq!["--help"].ok().stdout;
    for line in lines.iter().filter_map(|line| line.strip_prefix("  llmq ")) {
        let name = line.split(' ').next().unwrap();
        assert!(help.contains(&format!("\n  {name} ")), "{name}");
    }
}

#[test]
fn what_no_option_decides_is_said_in_one_line() {
    let out = folder();
    let file = out.path().join("a.gguf");
    let run = llmq!["quantize", tiny(), "-o", &file, "--json"; LITTLE].ok();
    let wanted = "type Q4_K_M (--type); method auto, 3 sweeps (--effort balanced); the text that is built in (--calib); the CPU's ";
    let decided = run.summary()["decided"].as_str().unwrap().to_owned();
    assert!(decided.contains(wanted), "{decided}");
    // Before it begins, and in the summary.
    assert_eq!(run.stderr.matches(&format!("note: {decided}\n")).count(), 2, "{}", run.stderr);

    let options = ["--type", "Q4_0", "--method", "gptq", "--sweeps", "1", "--threads", "1"];
    let text = tiny().join("README.md");
    let run =
        llmq!["quantize", tiny(), "-o", &file, "--json", "--force", "--calib", text; options.iter().chain(&LITTLE)]
            .ok();
    assert!(run.summary()["decided"].is_null() && !run.stderr.contains("decided"), "{}", run.stderr);
    // Nothing is calibrated, so nothing is said of text; and a budget chooses types.
    let run = llmq!["quantize", tiny(), "-o", &file, "--json", "--force", "--method", "rtn"].ok();
    let decided = run.summary()["decided"].as_str().unwrap().to_owned();
    assert!(decided.contains("type Q4_K_M") && !decided.contains("text") && !decided.contains("effort"), "{decided}");
    let run =
        llmq!["quantize", tiny(), "-o", &file, "--json", "--force", "--method", "rtn", "--target-bpw", "6"; LITTLE]
            .ok();
    assert!(!run.summary()["decided"].as_str().unwrap().contains("type"));
}

#[test]
fn what_is_said_of_64_blocks_fits_a_screen() {
    let out = folder();
    let [model, file, imatrix] = ["model", "out.gguf", "imatrix.gguf"].map(|name| out.path().join(name));
    // No matrix divides into blocks of 256: every kind of them falls back.
    Shape { hidden: 64, ffn: 96, blocks: 64, ..Shape::default() }.write(&model);
    let short = ["-c", "32", "--chunks", "1"];
    let run = |run: common::Run, command: &str| {
        let run = run.ok();
        let lines = run.stdout.lines().count() + run.stderr.lines().filter(|line| !line.contains("% done")).count();
        assert!(lines <= SCREEN, "{command}: {lines} lines\n{}{}", run.stderr, run.stdout);
        run
    };
    run(llmq!["quantize", &model, "-o", &file, "--method", "rtn"], "quantize");
    run(llmq!["plan", &model], "plan");
    run(llmq!["inspect", &model], "inspect a folder");
    let keys = run(llmq!["inspect", &file], "inspect a GGUF").stdout;
    assert!(keys.contains("other keys: --all") && !keys.contains("tokenizer.ggml.tokens"), "{keys}");
    let all = llmq!["inspect", &file, "--all"].ok().stdout;
    assert!(all.contains("tokenizer.ggml.tokens") && all.contains("blk.63.ffn_down.weight"));
    run(llmq!["eval", &file, "--reference", &model; short], "eval");
    run(llmq!["imatrix", &model, "-o", &imatrix, "--chunks", "1", "-c", "32"], "imatrix");

    let layers = run(llmq!["eval", &file, "--reference", &model, "--layers"; short], "eval --layers").stdout;
    let every = llmq!["eval", &file, "--reference", &model, "--layers", "-v"; short].ok().stdout;
    let parts = |text: &str| text.lines().filter(|line| line.starts_with("block ")).count();
    assert_eq!(parts(&every), 64);
    assert!(parts(&layers) <= 18 && layers.contains("other parts, each less than "), "{layers}");
    // The part with the longest bar is among them.
    let longest = every.lines().find(|line| line.ends_with(&"█".repeat(30))).unwrap();
    assert!(layers.contains(longest), "{layers}");
}

#[test]
fn mistyped_names_are_answered_with_the_nearest_ones() {
    let model = tiny();
    let text = model.display().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["quantise", &text], "'quantize'"),
        (&["quantize", &text, "--tpye", "Q4_0"], "'--type'"),
        (&["quantize", &text, "--type", "Q4_K_N"], "did you mean Q4_K_S?"),
        (&["quantize", &text, "--method", "gpqt"], "did you mean gptq?"),
        (&["quantize", &text, "--effort", "fats"], "'fast'"),
        (&["quantize", &text, "--format", "compresed-tensors"], "did you mean compressed-tensors?"),
        (&["quantize", &text, "--tensor-type", "ffn_down=Q6_L"], "did you mean Q6_K?"),
        (&["completions", "bsh"], "'bash'"),
    ];
    for (args, wanted) in cases {
        llmq![; args].failed(2, &[wanted]);
    }
    assert!(!fs::exists("tiny.Q4_K_M.gguf").unwrap());
}
