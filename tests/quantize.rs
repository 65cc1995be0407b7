//! `llmq quantize` when all is well: every type and method, the same bytes from the same input, what is shown, and the
//! options that choose types and calibration text.

mod common;

use common::checkpoint::Shape;
use common::{folder, kind, llmq, names, perplexity, tensors, tiny};
use llmq::eval::perplexity::{Protocol, losses, windows};
use llmq::pipeline::loaded_model::LoadedModel;
use llmq::pipeline::weights::open_gguf;
use llmq::{format, method};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::Path;

/// Little enough calibration for a test that does not look at quality.
const LITTLE: [&str; 4] = ["--samples", "8", "--seq-len", "128"];

/// The file that a model becomes with these options.
#[track_caller]
fn quantized(model: &Path, options: &[&str]) -> Vec<u8> {
    let out = folder();
    let file = out.path().join("out.gguf");
    llmq!["quantize", model, "-o", &file; options].ok();
    fs::read(&file).unwrap()
}

#[test]
fn the_usual_command_makes_a_file_that_inspect_and_eval_read() {
    let out = folder();
    let file = out.path().join("tiny.gguf");
    let run = llmq!["quantize", tiny(), "-o", &file; LITTLE].ok();
    assert_eq!(run.stdout, "", "standard output is for data");
    assert!(run.stderr.contains("bits per weight") && run.stderr.contains("peak memory"), "{}", run.stderr);
    assert_eq!(names(out.path()), ["tiny.gguf"]);

    let inspected = llmq!["inspect", &file, "--json"].ok();
    assert_eq!(inspected.summary()["kinds"], json!(["F32", "Q4_K", "Q6_K"]));
    assert!(inspected.lines("metadata").iter().any(|m| m["value"] == "llama-bpe"));
    // Every tensor of the checkpoint is there; their names differ.
    assert_eq!(inspected.lines("tensor").len(), tensors(&tiny()).len());

    let quality = perplexity(&file, &["-c", "256"]) / perplexity(&tiny(), &["-c", "256"]);
    assert!((0.95..1.05).contains(&quality), "{quality}");
}

/// Where a run is, for programs that watch one.
#[test]
fn a_run_says_which_block_it_is_in_and_what_it_does_there() {
    let out = folder();
    let run = llmq!["quantize", tiny(), "-o", out.path().join("tiny.gguf"), "--json"; LITTLE].ok();
    let lines = run.lines("progress");
    let block = |line: &serde_json::Value| line["block"].as_u64();
    let blocks: Vec<u64> = lines.iter().filter_map(block).collect();
    assert!(blocks.is_sorted() && (0..4).all(|i| blocks.contains(&i)), "{blocks:?}");
    let done: Vec<f64> = lines.iter().map(|line| line["done"].as_f64().unwrap()).collect();
    assert!(done.is_sorted() && done[0] < 0.1 && (0.5..=1.0).contains(done.last().unwrap()), "{done:?}");
    let of_second = lines.iter().filter(|line| block(line) == Some(1)).map(|line| line["what"].as_str().unwrap());
    let sites = ["attn_q, attn_k, attn_v", "attn_output", "ffn_gate, ffn_up", "ffn_down"];
    let wanted: Vec<String> =
        sites.iter().flat_map(|of| [format!("calibrating {of}"), format!("rounding {of}")]).collect();
    let told: Vec<&str> = of_second.filter(|what| !what.starts_with("r") || what.starts_with("rounding")).collect();
    assert_eq!(told, wanted);
    assert!(lines.iter().all(|line| line["blocks"] == 4));
    assert!(lines.iter().any(|line| line["seconds_a_block"].as_f64().is_some_and(|seconds| seconds > 0.0)));
}

#[test]
fn every_type_and_method_makes_a_file_as_good_as_its_bits() {
    let out = folder();
    let options = ["-c", "128", "--chunks", "4"];
    let original = perplexity(&tiny(), &options);
    // Each type once, each method at least twice; all pairs meet in the methods' own tests.
    let each_type = format::writable().zip(method::METHODS.iter().cycle());
    let each_method = method::METHODS.iter().map(|method| (format::by_name("Q4_K").unwrap(), method));
    for (kind, method) in each_type.chain(each_method) {
        let (bits, kind, method) = (kind.bits(), kind.name(), method.name());
        let file = out.path().join(format!("{kind}.{method}.gguf"));
        let own = format!("^blk.1={kind}");
        llmq!["quantize", tiny(), "-o", &file, "--force", "--type", "F16", "--tensor-type", own, "-m", method; LITTLE]
            .ok();
        assert_eq!(common::kind(&file, "blk.1.ffn_up.weight"), kind);
        let quality = perplexity(&file, &options) / original;
        let allowed = if bits < 3.0 { 2.0 } else { 1.1 };
        assert!((0.9..allowed).contains(&quality), "{kind} {method}: {quality}");
    }
}

#[test]
fn gptq_stays_closer_to_the_original_than_rounding() {
    let out = folder();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/heldout.txt")).unwrap();
    let likelihoods = |model: &Path| {
        let loaded = LoadedModel::open(model, None).unwrap();
        let windows = windows(&loaded, &text, Protocol::LlamaCpp, 128, Some(16)).unwrap();
        losses(&loaded, &windows, 0, &|_, _| ()).unwrap()
    };
    let original = likelihoods(&tiny());
    // The mean squared change of a token's log-likelihood.
    let change = |method: &str| {
        let file = out.path().join(method);
        let options = ["--type", "Q4_0", "--method", method, "--samples", "32", "--seq-len", "128"];
        llmq!["quantize", tiny(), "-o", &file; options].ok();
        let changed = likelihoods(&file);
        original.iter().zip(&changed).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / original.len() as f64
    };
    let (gptq, rtn) = (change("gptq"), change("rtn"));
    assert!(gptq > 0.0 && gptq < 0.7 * rtn, "gptq {gptq}, rtn {rtn}");
}

#[test]
fn the_same_input_makes_the_same_bytes_at_any_thread_count() {
    let on = |kind: &str, threads: &str| {
        quantized(&tiny(), &[&LITTLE[..], &["--type", kind, "--threads", threads]].concat())
    };
    let one = on("Q4_K_M", "1");
    assert!((0..2).all(|_| one == on("Q4_K_M", "2")));
    // Columns in runs, mixes of several types.
    assert!(on("IQ2_M", "1") == on("IQ2_M", "3"));
    assert!(one != quantized(&tiny(), &[&LITTLE[..], &["--seed", "1"]].concat()), "the seed chooses the windows");
}

#[test]
fn little_memory_makes_the_same_bytes_and_too_little_is_refused_at_once() {
    let options = ["--samples", "64", "--seq-len", "256", "--method", "gptq"];
    let plan = llmq!["plan", tiny(), "--json"; options].ok().summary();
    // Room for everything but the activations that a run likes to keep.
    let forecast = &plan["forecasts"][0];
    let [all, kept] = [&forecast["peak_memory_bytes"], &forecast["peak_memory_in"]["inner activations that are kept"]];
    let little = (all.as_u64().unwrap() - kept.as_u64().unwrap() / 2).to_string();
    assert!(quantized(&tiny(), &[&options[..], &["--ram", &little]].concat()) == quantized(&tiny(), &options));
    let told = ["the run would need about", "more than --ram 20.00 MB", "hint: ", "llmq plan"];
    common::refused(&tiny(), &[&options[..], &["--ram", "20M"]].concat(), 1, &told);
}

#[test]
fn shards_make_the_same_bytes_as_one_file() {
    // The folders have the same name because the file is called after them.
    let root = folder();
    let [whole, sharded] = ["whole/model", "sharded/model"].map(|name| root.path().join(name));
    let mut checkpoint = Shape { tied: false, ..Shape::default() }.checkpoint();
    checkpoint.write(&whole);
    checkpoint.shards = 3;
    checkpoint.write(&sharded);
    assert!(sharded.join("model-00003-of-00003.safetensors").is_file() && !sharded.join("model.safetensors").exists());
    assert!(quantized(&whole, &LITTLE) == quantized(&sharded, &LITTLE));
}

#[test]
fn a_dry_run_writes_nothing_and_predicts_the_size() {
    for (model, options) in [(tiny(), vec!["--type", "Q5_1"]), (tiny(), vec!["--output-tensor-type", "F16"])] {
        let out = folder();
        let file = out.path().join("out.gguf");
        let options = [&options[..], &["--method", "rtn"]].concat();
        let dry = llmq!["quantize", &model, "-o", &file, "--dry-run", "--json"; &options].ok();
        assert_eq!(names(out.path()), [""; 0]);
        let shown = llmq!["quantize", &model, "-o", &file, "--dry-run"; &options].ok();
        assert!(shown.stdout.contains("blk.3.ffn_down.weight") && shown.stdout.contains("bits per weight"));
        let real = llmq!["quantize", &model, "-o", &file, "--json"; &options].ok();
        let bytes = fs::metadata(&file).unwrap().len();
        assert_eq!(dry.summary()["bytes"], bytes);
        assert_eq!(real.summary()["bytes"], bytes);
        assert_eq!(dry.lines("tensor").len(), real.lines("tensor").len());
    }
}

#[test]
fn json_lines_are_tagged_and_end_in_a_summary() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let run = llmq!["quantize", tiny(), "-o", &file, "--json"; LITTLE].ok();
    let shown: Vec<_> = tensors(&file).iter().map(|t| t["name"].clone()).collect();
    let told: Vec<_> = run.lines("tensor").iter().map(|t| t["name"].clone()).collect();
    assert_eq!(told, shown);
    for tensor in run.lines("tensor") {
        assert_eq!(tensor["relative_error"].is_f64(), tensor["to"] != "F32", "{tensor}");
    }
    let summary = run.summary();
    assert_eq!(summary["output"], file.to_str().unwrap());
    assert_eq!(summary["bytes"], fs::metadata(&file).unwrap().len());
    assert_eq!(summary["calibration_tokens"], 8 * 128);
    assert_eq!(summary["fallbacks"], json!([]));
    let bits = summary["bits_per_weight"].as_f64().unwrap();
    assert_eq!(bits, llmq!["inspect", &file, "--json"].ok().summary()["bits_per_weight"]);
    assert!((4.5..6.0).contains(&bits), "{bits}");
}

#[test]
fn types_can_be_chosen_per_tensor() {
    let out = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| out.path().join(name));
    Shape { tied: false, ..Shape::default() }.write(&model);
    let overrides = ["--tensor-type", r"blk\.0\.ffn_.*=q5_1", "--tensor-type", "attn_V=BF16"];
    let ends = ["--output-tensor-type", "F16", "--token-embedding-type", "Q4_1", "--type", "Q5_0", "--method", "rtn"];
    llmq!["quantize", &model, "-o", &file; [&overrides[..], &ends].concat()].ok();
    for (tensor, wanted) in [
        ("blk.0.ffn_down.weight", "Q5_1"),
        ("blk.1.ffn_down.weight", "Q5_0"),
        ("blk.1.attn_v.weight", "BF16"),
        ("blk.1.attn_k.weight", "Q5_0"),
        ("blk.1.attn_norm.weight", "F32"),
        ("output.weight", "F16"),
        ("token_embd.weight", "Q4_1"),
    ] {
        assert_eq!(kind(&file, tensor), wanted, "{tensor}");
    }
}

#[test]
fn rows_that_do_not_divide_into_blocks_fall_back_and_are_reported() {
    let out = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| out.path().join(name));
    Shape { ffn: 80, ..Shape::default() }.write(&model);
    let run =
        llmq!["quantize", &model, "-o", &file, "--json", "--type", "Q4_0", "--output-tensor-type", "Q8_0"; LITTLE].ok();
    let told = "note: blk.*.ffn_down.weight (2 tensors): Q4_0 -> F16, ";
    // Before the run and behind it, and each time only once, however many blocks there are.
    assert_eq!(run.stderr.matches(told).count(), 2, "{}", run.stderr);
    assert!(run.stderr.contains(" kB more, because rows of 80 do not divide into blocks of 32"), "{}", run.stderr);
    assert!(!run.stderr.contains("blk.0.ffn_down"), "{}", run.stderr);
    assert_eq!(run.summary()["fallbacks"], json!(["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]));
    assert_eq!(kind(&file, "blk.1.ffn_down.weight"), "F16");
    assert_eq!(kind(&file, "blk.1.ffn_up.weight"), "Q4_0");
}

#[test]
fn calibration_text_of_every_format_is_the_same_text() {
    let root = folder();
    let text = "The quick brown fox jumps over the lazy dog; 1, 2, 3 and so on.\n".repeat(60);
    let line = json!({ "text": text, "url": "https://example.org" }).to_string() + "\n";
    let [plain, lines, packed] = ["a.txt", "a.jsonl", "a.json.gz"].map(|name| root.path().join(name));
    fs::write(&plain, &text).unwrap();
    fs::write(&lines, &line).unwrap();
    let mut gz = flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    gz.write_all(line.as_bytes()).unwrap();
    gz.finish().unwrap();
    let model = root.path().join("model");
    Shape::default().write(&model);
    // The keys name the text.
    let weights = |options: &[&str]| {
        let file = root.path().join("out.gguf");
        llmq!["quantize", &model, "-o", &file, "--force"; LITTLE.iter().chain(options)].ok();
        let gguf = open_gguf(&file).unwrap();
        gguf.tensors.iter().flat_map(|info| gguf.data(info)).copied().collect::<Vec<u8>>()
    };
    let of_text = |file: &Path| weights(&["--calib", file.to_str().unwrap()]);
    let first = of_text(&plain);
    assert!(first == of_text(&lines));
    assert!(first == of_text(&packed));
    assert!(first != weights(&[]), "the text decides");
}

#[test]
fn without_a_name_the_file_is_called_after_the_model_and_the_type() {
    let here = folder();
    let mut command = std::process::Command::new(common::BINARY);
    common::run(command.current_dir(here.path()).arg("quantize").arg(tiny()).args(["--type", "q8_0", "-m", "rtn"]))
        .ok();
    assert_eq!(names(here.path()), ["tiny.Q8_0.gguf"]);
}

#[test]
fn verbose_shows_every_tensor_with_its_error() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let run = llmq!["quantize", tiny(), "-o", &file, "-v"; LITTLE].ok();
    for tensor in tensors(&file) {
        let name = tensor["name"].as_str().unwrap();
        let line = run.stderr.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        assert_eq!(line.contains("error "), tensor["kind"] != "F32", "{line}");
    }
}

#[test]
fn help_names_the_options() {
    let help = llmq!["quantize", "--help"].ok().stdout;
    for option in
        ["--type", "--method", "--calib", "--samples", "--seq-len", "--seed", "--damp", "--dry-run", "--force"]
    {
        assert!(help.contains(option), "{option}");
    }
    assert!(llmq!["--help"].ok().stdout.contains("inspect"));
    assert_eq!(llmq!["quantize"].code, Some(2), "a missing argument is wrong usage");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(common::BINARY);
    let child = command.arg("inspect").arg(tiny()).stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}
