//! `llmq imatrix`, and what `quantize` does with its files.

mod common;

use common::checkpoint::Shape;
use common::{folder, kind, llmq, names, refused, tensors, tiny};
use llmq::pipeline::weights::open_gguf;
use llmq::source::imatrix::Imatrix;
use llmq::source::value::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "8"];

/// The importance-weighted relative error of a file's matrices, as the run reports it.
fn error(options: &[&str], model: &Path) -> f64 {
    let out = folder();
    let run = llmq!["quantize", model, "-o", out.path().join("out.gguf"), "--json", "-m", "rtn"; options].ok();
    run.summary()["mean_relative_error"].as_f64().unwrap()
}

#[test]
fn every_layer_is_measured_and_layers_that_read_the_same_have_the_same() {
    let out = folder();
    let file = out.path().join("imatrix.gguf");
    let run = llmq!["imatrix", tiny(), "-o", &file, "--json"; SHORT].ok();
    assert_eq!(run.summary()["windows"], 8);
    let imatrix = Imatrix::read(&file).unwrap();
    assert_eq!((imatrix.chunks, imatrix.chunk_size, imatrix.entries.len()), (8, 128, 4 * 7));
    for i in 0..4 {
        let entry = |part: &str| &imatrix.entries[&format!("blk.{i}.{part}.weight")];
        assert_eq!(entry("attn_q"), entry("attn_v"));
        assert_eq!(entry("ffn_up"), entry("ffn_gate"));
        assert_eq!(entry("ffn_down").counts, [8.0 * 128.0]);
        // The inputs of q, k and v are normed: their mean square is the mean of the squared gains, about.
        assert!(entry("attn_q").sums.iter().all(|&x| x > 0.0));
    }
    // Whatever the model comes from.
    let [gguf, again] = ["model.gguf", "again.gguf"].map(|name| out.path().join(name));
    llmq!["quantize", tiny(), "-o", &gguf, "--type", "F32"].ok();
    llmq!["imatrix", &gguf, "-o", &again, "--process-output"; SHORT].ok();
    let mut again = Imatrix::read(&again).unwrap();
    assert!(again.entries.remove("token_embd.weight").is_some(), "the tied output matrix");
    assert_eq!(again.entries.len(), imatrix.entries.len());
    for (name, entry) in &imatrix.entries {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * a.abs();
        assert!(entry.sums.iter().zip(&again.entries[name].sums).all(close), "{name}");
    }
}

#[test]
fn files_are_added_up() {
    let out = folder();
    let [one, two, sum] = ["one.gguf", "two.gguf", "sum.gguf"].map(|name| out.path().join(name));
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/calibration.txt");
    let options = ["-c", "128", "--chunks", "4", "-f", text.to_str().unwrap()];
    llmq!["imatrix", tiny(), "-o", &one; options].ok();
    // With a text, what is measured and the file.
    let run = llmq!["imatrix", tiny(), "-o", &two, "--json", "--in-file", &one; options].ok();
    assert!(run.stderr.contains("4 windows measured + "), "{}", run.stderr);
    assert_eq!((&run.summary()["measured_windows"], &run.summary()["windows"]), (&4.into(), &8.into()));
    llmq!["imatrix", "-o", &sum, "--in-file", &one, "--in-file", &two].ok();
    // Without one nothing is measured, though there is a model: the files are only held against it.
    let merged = out.path().join("merged.gguf");
    let run = llmq!["imatrix", tiny(), "-o", &merged, "--in-file", &one, "--in-file", &two].ok();
    assert!(run.stderr.contains("nothing is measured beside them without a text (-f)"), "{}", run.stderr);
    assert!(fs::read(&merged).unwrap() == fs::read(&sum).unwrap());
    let foreign = folder();
    Shape::default().write(&foreign.path().join("narrow"));
    llmq!["imatrix", foreign.path().join("narrow"), "-o", out.path().join("x.gguf"), "--in-file", &one]
        .failed(1, &["one.gguf does not fit", "whose shape is", "another model"]);
    llmq!["imatrix", tiny(), "-o", out.path().join("x.gguf"), "--in-file", &one, "--chunks", "4"]
        .failed(2, &["--chunks is about measuring", "-f"]);
    let [one, two, sum] = [one, two, sum].map(|file| Imatrix::read(&file).unwrap());
    assert_eq!((one.chunks, two.chunks, sum.chunks), (4, 8, 12));
    for (name, entry) in &one.entries {
        for (i, x) in entry.sums.iter().enumerate() {
            assert!((two.entries[name].sums[i] - 2.0 * x).abs() <= 1e-5 * x, "{name}");
            assert!((sum.entries[name].sums[i] - 3.0 * x).abs() <= 1e-5 * x, "{name}");
        }
        assert_eq!(sum.entries[name].counts, [3.0 * 4.0 * 128.0]);
    }
    llmq!["imatrix"].failed(2, &["MODEL"]);
}

#[test]
fn importance_decides_scales_types_and_keys() {
    let out = folder();
    let file = out.path().join("imatrix.gguf");
    let path = file.to_str().unwrap();
    llmq!["imatrix", tiny(), "-o", &file; SHORT].ok();
    let model = out.path().join("out.gguf");
    llmq!["quantize", tiny(), "-o", &model, "--type", "Q4_0", "-m", "rtn", "--imatrix", path].ok();
    let gguf = open_gguf(&model).unwrap();
    assert_eq!(gguf.get("quantize.imatrix.file"), Some(&Value::from("imatrix.gguf")));
    assert_eq!(gguf.get("quantize.imatrix.entries_count"), Some(&Value::U32(28)));
    assert_eq!(gguf.get("quantize.imatrix.chunks_count"), Some(&Value::U32(8)));
    // The scales are those that the importances ask for, not those of equal weights.
    let plain = out.path().join("plain.gguf");
    llmq!["quantize", tiny(), "-o", &plain, "--type", "Q4_0", "-m", "rtn"].ok();
    assert!(fs::read(&model).unwrap() != fs::read(&plain).unwrap());
    let weighted = error(&["--type", "Q4_K_S", "--imatrix", path], &tiny());
    assert!((0.001..0.01).contains(&weighted), "{weighted}");
}

/// An importance matrix of some blocks only is used as far as it goes, and that is said; calibration needs none.
#[test]
fn a_partial_file_says_what_it_lacks() {
    let out = folder();
    let [whole, partial, model] = ["whole.gguf", "partial.gguf", "m.gguf"].map(|name| out.path().join(name));
    llmq!["imatrix", tiny(), "-o", &whole; SHORT].ok();
    let mut imatrix = Imatrix::read(&whole).unwrap();
    imatrix.entries.retain(|name, _| {
        !name.starts_with("blk.0.") && !name.starts_with("blk.1.") && !name.starts_with("blk.3.ffn_up")
    });
    llmq::writer::imatrix::write(&partial, &imatrix).unwrap();
    let run = |file: &Path, options: &[&str]| {
        let run = llmq!["quantize", tiny(), "-o", &model, "--force", "--json", "--imatrix", file; options].ok();
        (run.summary()["notes"].to_string(), run.stderr)
    };
    let (notes, told) = run(&partial, &["--type", "Q4_0", "-m", "rtn"]);
    let wanted =
        "partial.gguf: no data for 15 of 28 matrices, which are rounded without: those of blk.0 to blk.1, blk.3";
    assert!(notes.contains(wanted) && told.contains(wanted), "{notes} {told}");
    assert!(!run(&whole, &["--type", "Q4_0", "-m", "rtn"]).0.contains("no data"));
    // What is not rounded needs no data.
    let (notes, _) = run(&partial, &["--type", "Q4_0", "-m", "rtn", "--tensor-type", "blk.(0|1|3)=F16"]);
    assert!(!notes.contains("no data"), "{notes}");
    let options = ["--type", "Q4_0", "-m", "gptq", "--samples", "4", "--seq-len", "64"];
    assert!(!run(&partial, &options).0.contains("no data"));
}

#[test]
fn a_calibrated_run_can_save_what_it_saw() {
    let out = folder();
    let [model, saved, measured] = ["m.gguf", "saved.gguf", "measured.gguf"].map(|name| out.path().join(name));
    let options = ["--samples", "16", "--seq-len", "128", "--tensor-type", "attn_=F16"];
    llmq!["quantize", tiny(), "-o", &model, "--type", "Q8_0", "--save-imatrix", &saved; options].ok();
    assert_eq!(names(out.path()), ["m.gguf", "saved.gguf"]);
    llmq!["imatrix", tiny(), "-o", &measured, "-c", "128", "--chunks", "32"].ok();
    let (saved, measured) = (Imatrix::read(&saved).unwrap(), Imatrix::read(&measured).unwrap());
    assert_eq!((saved.chunks, saved.chunk_size), (16, 128));
    assert_eq!(saved.entries.len(), measured.entries.len(), "also of layers that are not quantized");
    // Other windows of the same text through almost the same model.
    for (name, entry) in &measured.entries {
        let mean = |entry: &llmq::source::imatrix::Entry| entry.means(0).unwrap().iter().sum::<f32>();
        let ratio = mean(&saved.entries[name]) / mean(entry);
        assert!((0.6..1.6).contains(&ratio), "{name}: {ratio}");
    }
    let path = out.path().join("again.gguf");
    llmq!["quantize", tiny(), "-o", &path, "-m", "rtn", "--save-imatrix", &saved_name(out.path())]
        .failed(2, &["calibrated method"]);
}

fn saved_name(folder: &Path) -> std::path::PathBuf {
    folder.join("other.gguf")
}

#[test]
fn files_that_do_not_belong_are_refused() {
    let out = folder();
    let [imatrix, other, model] = ["i.gguf", "other.gguf", "model.gguf"].map(|name| out.path().join(name));
    llmq!["imatrix", tiny(), "-o", &imatrix; SHORT].ok();
    llmq!["quantize", tiny(), "-o", &model, "--type", "F16"].ok();
    let with = |file: &Path| vec!["-m".to_owned(), "rtn".into(), "--imatrix".into(), file.to_str().unwrap().into()];
    let refuse = |file: &Path, code: i32, wanted: &[&str]| {
        let options = with(file);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        refused(&tiny(), &options, code, wanted);
    };
    refuse(&model, 1, &["its general.type is 'model', not 'imatrix'"]);
    refuse(&out.path().join("none"), 1, &["cannot read"]);
    fs::write(&other, b"nothing of the kind").unwrap();
    refuse(&other, 1, &["as an importance matrix"]);
    let bytes = fs::read(&imatrix).unwrap();
    fs::write(&other, &bytes[..bytes.len() - 100]).unwrap();
    refuse(&other, 1, &["other.gguf", "the file ends at byte"]);
    // Another model's: other names, then other widths.
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
        fs::write(&other, bytes).unwrap();
    };
    changed(b"blk.", b"bla.");
    refuse(&other, 1, &["none of its 28 entries"]);
    let model = out.path().join("narrow");
    common::checkpoint::Shape::default().write(&model);
    let options = with(&imatrix);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    refused(&model, &options, 1, &["i.gguf", "whose shape is", "another model"]);
    let untouched = fs::read(&imatrix).unwrap();
    llmq!["imatrix", tiny(), "-o", &imatrix; SHORT].failed(2, &["--force"]);
    llmq!["imatrix", tiny(), "-o", &imatrix, "--in-file", &imatrix, "--force"].failed(2, &["i.gguf"]);
    assert!(fs::read(&imatrix).unwrap() == untouched);
}

#[test]
fn types_come_from_a_file_too_and_mixes_are_case_insensitive() {
    let out = folder();
    let [types, file] = ["types", "out.gguf"].map(|name| out.path().join(name));
    fs::write(&types, "attn_v=q8_0\nffn_down=F16 ").unwrap();
    let options = ["--type", "q3_k_m", "-m", "rtn", "--tensor-type", "blk.0.attn_v=Q6_K"];
    llmq!["quantize", tiny(), "-o", &file, "--tensor-type-file", &types; options].ok();
    assert_eq!(kind(&file, "blk.0.attn_v.weight"), "Q6_K");
    assert_eq!(kind(&file, "blk.1.attn_v.weight"), "Q8_0");
    assert_eq!(kind(&file, "blk.1.ffn_down.weight"), "F16");
    assert_eq!(kind(&file, "blk.1.attn_output.weight"), "Q4_K");
    assert_eq!(tensors(&file).len(), 38);
    fs::write(&types, "nothing_like_it=Q8_0").unwrap();
    let path = types.to_str().unwrap();
    refused(&tiny(), &["-m", "rtn", "--tensor-type-file", path], 2, &["nothing_like_it", "matches no tensor"]);
    refused(&tiny(), &["-m", "rtn", "--tensor-type", "attn_v=NVFP4"], 2, &["reads tensors of type NVFP4"]);
}

/// Conversations in a text are written with the model's own template, from a checkpoint and from a GGUF.
#[test]
fn conversations_become_text_with_the_models_template() {
    let out = folder();
    let [model, gguf, chat, text] =
        ["model", "model.gguf", "chat.jsonl", "text.jsonl"].map(|name| out.path().join(name));
    Shape::default().write(&model);
    let config = model.join("tokenizer_config.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["chat_template"] = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}".into();
    fs::write(&config, keys.to_string()).unwrap();
    let words = "The quick brown fox jumps over the lazy dog. ".repeat(40);
    let message = serde_json::json!({ "messages": [{ "role": "user", "content": words }] });
    fs::write(&chat, message.to_string()).unwrap();
    fs::write(&text, serde_json::json!({ "text": format!("<user>{words}") }).to_string()).unwrap();
    llmq!["quantize", &model, "-o", &gguf, "--type", "F32", "--method", "rtn"].ok();
    let of = |model: &Path, text: &Path| {
        let file = out.path().join("imatrix.gguf");
        llmq!["imatrix", model, "-f", text, "-o", &file, "-c", "64", "--force"].ok();
        Imatrix::read(&file).unwrap().entries["blk.1.ffn_down.weight"].sums.clone()
    };
    let wanted = of(&model, &text);
    assert!(wanted == of(&model, &chat) && of(&gguf, &text) == of(&gguf, &chat));
    let none = tiny();
    llmq!["imatrix", &none, "-f", &chat, "-o", out.path().join("x.gguf")].failed(1, &["no chat template", "hint: "]);
}

/// Templates that ask for the date are told the same day every time, or the one that reproducible builds name.
#[test]
fn the_date_of_a_conversation_is_not_the_calendars() {
    let out = folder();
    let [model, chat, text] = ["model", "chat.jsonl", "text.jsonl"].map(|name| out.path().join(name));
    Shape::default().write(&model);
    let config = model.join("tokenizer_config.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["chat_template"] = "{{ strftime_now('%d %b %Y, ') }}{{ messages[0].content }}".into();
    fs::write(&config, keys.to_string()).unwrap();
    let words = "The quick brown fox jumps over the lazy dog. ".repeat(40);
    let message = serde_json::json!({ "messages": [{ "role": "user", "content": words }] });
    fs::write(&chat, message.to_string()).unwrap();
    let file = out.path().join("imatrix.gguf");
    let command = |text: &Path, epoch: Option<&str>| {
        let mut command = Command::new(common::BINARY);
        command
            .env_remove("SOURCE_DATE_EPOCH")
            .args(["imatrix", "-c", "64", "--force"])
            .arg(&model)
            .arg("-f")
            .arg(text)
            .arg("-o")
            .arg(&file)
            .envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch)));
        common::run(&mut command)
    };
    let sums = || Imatrix::read(&file).unwrap().entries["blk.1.ffn_down.weight"].sums.clone();
    for (epoch, day) in [(None, "26 Jul 2024, "), (Some("1795900000"), "28 Nov 2026, ")] {
        command(&chat, epoch).ok();
        let got = sums();
        fs::write(&text, serde_json::json!({ "text": format!("{day}{words}") }).to_string()).unwrap();
        command(&text, None).ok();
        assert!(got == sums(), "{day}");
    }
    for epoch in ["yesterday", "", "99999999999999999999"] {
        command(&chat, Some(epoch)).failed(1, &["SOURCE_DATE_EPOCH", "no number of seconds since 1970"]);
    }
}
