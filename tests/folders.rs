//! Folders for transformers and vLLM: they hold the codes of the GGUF, appear whole or not at all, and what they cannot hold is refused.

mod common;

use common::{BINARY, folder, golden, llmq, names, perplexity, run, tiny};
use llmq::pipeline::weights::open_gguf;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const HINT: &str = "\nhint: ";
const LITTLE: [&str; 7] = ["--method", "gptq", "--samples", "4", "--seq-len", "64", "--sweeps=1"];
const COMPANIONS: [&str; 3] = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"];

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn one_run_gives_a_gguf_and_folders_that_are_the_same_model() {
    let out = folder();
    let [gguf, gptq, awq, compressed] = ["m.gguf", "gptq", "awq", "compressed"].map(|name| out.path().join(name));
    let formats = ["--format", "gptq", "--format", "awq", "--format", "compressed-tensors"];
    // In a folder, both are as they were.
    let ends = ["--token-embedding-type", "BF16", "--output-tensor-type", "BF16"];
    let outputs = [&awq, &gguf, &gptq, &compressed].map(|path| path.to_str().unwrap());
    let outputs = ["-o", outputs[2], "-o", outputs[1], "-o", outputs[0], "-o", outputs[3]];
    llmq!["quantize", tiny(), "--json"; LITTLE.iter().chain(&formats).chain(&ends).chain(&outputs)].ok();
    assert_eq!(names(out.path()), ["awq", "compressed", "gptq", "m.gguf"]);
    let options = ["-c", "64", "--chunks", "4"];
    let wanted = perplexity(&gguf, &options);
    for (folder, method, own) in
        [(&gptq, "gptq", Some("quantize_config.json")), (&awq, "awq", None), (&compressed, "compressed-tensors", None)]
    {
        // A GGUF has the rows of queries and keys in another order, so that sums are rounded otherwise.
        let found = perplexity(folder, &options);
        assert!((found / wanted - 1.0).abs() < 1e-6, "{method}: {found}, not {wanted}");
        let mut files: Vec<&str> =
            COMPANIONS.into_iter().chain(["config.json", "model.safetensors"]).chain(own).collect();
        files.sort_unstable();
        assert_eq!(names(folder), files);
        assert_eq!(config(folder)["quantization_config"]["quant_method"], method);
        // Back in a GGUF, the codes are those that the run has chosen.
        let back = out.path().join("back.gguf");
        llmq!["quantize", folder, "-o", &back, "--type", "Q4_0", "-m", "rtn", "--force"; ends].ok();
        let (back, chosen) = (open_gguf(&back).unwrap(), open_gguf(&gguf).unwrap());
        for info in &chosen.tensors {
            let same = back.tensor(&info.name).is_some_and(|other| back.data(other) == chosen.data(info));
            assert!(same, "{method}: {} has other bytes", info.name);
        }
    }
    let own: Value = serde_json::from_slice(&fs::read(gptq.join("quantize_config.json")).unwrap()).unwrap();
    assert_eq!(own, config(&gptq)["quantization_config"]);
    let mut before = config(&gptq);
    before.as_object_mut().unwrap().remove("quantization_config");
    assert_eq!(before, config(&tiny()));
}

#[test]
fn grids_of_their_own_are_near_the_original_and_awq_scales_reach_norms() {
    let out = folder();
    let options = ["-c", "64", "--chunks", "4"];
    let original = perplexity(&tiny(), &options);
    for (format, kind, method) in
        [("gptq", "W4A16", "gptq"), ("awq", "W4A16_ASYM", "awq"), ("compressed-tensors", "W8A16", "rtn")]
    {
        let path = out.path().join(format);
        let more = ["--format", format, "--type", kind, "--group-size", "64", "--method", method, "--samples", "4"];
        llmq!["quantize", tiny(), "-o", &path, "--max-shard-size", "600K", "--seq-len", "64", "--sweeps=1"; more].ok();
        let found = config(&path)["quantization_config"].clone();
        let size = &found["group_size"];
        assert_eq!(if size.is_null() { &found["config_groups"]["group_0"]["weights"]["group_size"] } else { size }, 64);
        assert!(path.join("model.safetensors.index.json").exists() && !path.join("model.safetensors").exists());
        let off = perplexity(&path, &options) / original - 1.0;
        assert!(off.abs() < if kind == "W8A16" { 0.005 } else { 0.1 }, "{format}: {off}");
    }
    let shown = common::tensors(&out.path().join("awq"));
    let norm = shown.iter().find(|t| t["name"] == "model.layers.0.input_layernorm.weight").unwrap();
    assert_eq!(norm["kind"], "F32", "its numbers are no more those of the checkpoint");
}

#[test]
fn what_folders_cannot_hold_or_must_not_replace_is_refused() {
    let out = folder();
    let path = out.path().join("out");
    let refused = |model: &Path, options: &[&str], told: &[&str]| {
        llmq!["quantize", model, "-o", &path, "--method", "rtn"; options].failed(2, &[told, &[HINT]].concat());
        assert_eq!(names(out.path()), [""; 0], "{options:?}");
    };
    let tiny = tiny();
    for (options, told) in [
        (&["--format", "gptq", "--type", "Q4_1"][..], "no whole numbers of steps"),
        (&["--format", "gptq", "--type", "Q4_K_M"], "'Q4_K_M' is no type of these folders"),
        (&["--format", "awq", "--type", "W8A16"], "4 bits, not 8"),
        (&["--format", "exl2"], "unknown format 'exl2'"),
        (&["--format", "gptq", "--group-size", "100"], "--group-size 100"),
        (&["--group-size", "64"], "--group-size is for --format"),
        (&["--format", "gptq", "--rotate"], "--rotate cannot be used with --format"),
        (&["--format", "gptq", "--tensor-type", "attn_v=Q8_0"], "--tensor-type cannot be used"),
        (&["--format", "gptq", "--format", "awq"], "1 folders for 2 formats"),
        (&["-o", "other"], "2 outputs, and no --format"),
        (&["--format", "gptq", "-o", "m.gguf", "--type", "W4A16"], "a GGUF has no W4A16_G128"),
    ] {
        refused(&tiny, options, &[told]);
    }
    // Layers that the checkpoint stores transposed, and rows that are no whole number of groups.
    for (name, options, told) in [
        ("gpt2", &["--format", "gptq"][..], ["transposed", "leave out --format"]),
        (
            "llama",
            &["--format", "gptq", "--group-size", "128"],
            ["do not divide into groups of 128", "--group-size 64"],
        ),
    ] {
        let root = folder();
        let model = root.path().join("model");
        golden::read(name).checkpoint.write(&model);
        refused(&model, options, &told);
    }
    // Mistral's own layout, which nobody reads packed.
    let root = folder();
    fs::copy(tiny.join("model.safetensors"), root.path().join("consolidated.safetensors")).unwrap();
    fs::write(root.path().join("params.json"), "{}").unwrap();
    refused(root.path(), &["--format", "compressed-tensors"], &["Mistral's own layout", "leave out --format"]);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("precious"), "").unwrap();
    let call = |force: &[&str]| llmq!["quantize", &tiny, "-o", &path, "--format", "gptq", "--method", "rtn"; force];
    call(&[]).failed(2, &["already exists", HINT, "--force"]);
    call(&["--force"]).failed(2, &["no quantized checkpoint", HINT]);
    assert_eq!(names(&path), ["precious"]);
    fs::remove_dir_all(&path).unwrap();
    call(&[]).ok();
    let before = fs::read(path.join("model.safetensors")).unwrap();
    call(&["--force"]).ok();
    assert!(before == fs::read(path.join("model.safetensors")).unwrap(), "the same run gives the same bytes");
    assert_eq!(names(out.path()), ["out"]);
    // What it was made from is not replaced.
    llmq!["quantize", &path, "-o", &path, "--format", "gptq", "--force"].failed(2, &["holds the input", HINT]);
    let gguf = common::rounded(out.path(), "Q8_0");
    llmq!["quantize", &gguf, "-o", out.path().join("b"), "--format", "gptq"].failed(2, &["no checkpoint folder", HINT]);
}

/// A copy of the tiny checkpoint.
fn copy_of_tiny(to: &Path) {
    fs::create_dir(to).unwrap();
    for name in names(&tiny()) {
        fs::copy(tiny().join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn companions_are_copied_but_for_those_that_describe_other_weights() {
    let out = folder();
    let [model, made] = ["model", "made"].map(|name| out.path().join(name));
    copy_of_tiny(&model);
    for name in ["params.json", "adapter_config.json", "merges.txt", "notes.md"] {
        fs::write(model.join(name), "{}").unwrap();
    }
    // A number that JSON does not have, as Python writes it.
    let text = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), text.replacen('{', r#"{"bound": [0.0, Infinity],"#, 1)).unwrap();
    llmq!["quantize", &model, "-o", &made, "--format", "gptq", "--method", "rtn"].ok();
    let own = ["config.json", "merges.txt", "model.safetensors", "quantize_config.json"];
    let mut wanted: Vec<&str> = COMPANIONS.into_iter().chain(own).collect();
    wanted.sort_unstable();
    assert_eq!(names(&made), wanted);
    let text = fs::read_to_string(made.join("config.json")).unwrap();
    assert!(text.contains("    Infinity\n") && !text.contains("__float__"), "{text}");
}

#[cfg(unix)]
#[test]
fn what_a_link_leads_to_outside_of_the_folder_is_not_copied() {
    use std::os::unix::fs::symlink;
    let out = folder();
    let model = out.path().join("model");
    copy_of_tiny(&model);
    let secret = out.path().join("secret");
    fs::write(&secret, "{}").unwrap();
    symlink(&secret, model.join("extra.json")).unwrap();
    let made = out.path().join("made");
    let run = llmq!["quantize", &model, "-o", &made, "--format", "awq", "--method", "rtn"];
    run.failed(1, &["extra.json is a link to", "outside of its folder", HINT]);
    assert_eq!(names(out.path()), ["model", "secret"], "it is refused before the run");
    // A GGUF takes nothing of it.
    llmq!["quantize", &model, "-o", out.path().join("m.gguf"), "--method", "rtn", "--type", "Q4_0"].ok();
    fs::remove_file(model.join("extra.json")).unwrap();
    symlink("tokenizer.json", model.join("extra.json")).unwrap();
    llmq!["quantize", &model, "-o", &made, "--format", "awq", "--method", "rtn"].ok();
    assert!(!fs::symlink_metadata(made.join("extra.json")).unwrap().is_symlink());
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_leaves_no_folder_and_goes_on_to_the_same_bytes() {
    let out = folder();
    let [whole, killed] = ["whole", "killed"].map(|name| out.path().join(name));
    let call = |path: &Path, more: &[&str]| {
        let mut command = Command::new(BINARY);
        command
            .arg("quantize")
            .arg(tiny())
            .args(["--format", "gptq", "--json", "-o"])
            .arg(path)
            .args(LITTLE)
            .args(more);
        command
    };
    run(&mut call(&whole, &[])).ok();
    let mut child = call(&killed, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("blk.2.attn_q.weight") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended too early");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(out.path()), ["killed.unfinished", "whole"]);
    let other = run(&mut call(&killed, &["--resume", "--group-size", "64"]));
    other.failed(2, &["cannot resume", HINT]);
    let resumed = run(&mut call(&killed, &["--resume"])).ok();
    assert_eq!(resumed.lines("resumed").len(), 1);
    assert_eq!(resumed.summary()["files"], json!([killed]));
    for name in names(&whole) {
        assert!(fs::read(whole.join(&name)).unwrap() == fs::read(killed.join(&name)).unwrap(), "{name}");
    }
    assert_eq!(names(out.path()), ["killed", "whole"]);
}
