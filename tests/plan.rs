//! `llmq plan`: what it says is what `llmq quantize` does, and it reads no weights.

mod common;

use common::checkpoint::Shape;
use common::{Run, folder, llmq, names, tiny};
use llmq::format::mix;
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

#[track_caller]
fn plan(model: &Path, options: &[&str]) -> Run {
    llmq!["plan", model, "--json"; options].ok()
}

fn number(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary}"))
}

/// The advice that was given, by its kind.
fn advice(summary: &Value) -> Vec<&str> {
    summary["advice"].as_array().unwrap().iter().map(|a| a["kind"].as_str().unwrap()).collect()
}

#[test]
fn every_type_has_the_size_that_quantize_gives_it() {
    let root = folder();
    let odd = root.path().join("odd");
    // Rows of 96 divide into no block of 256: many types fall back.
    Shape { hidden: 96, heads: 3, kv_heads: 1, ffn: 288, tied: false, ..Shape::default() }.write(&odd);
    for model in [tiny(), odd] {
        let run = plan(&model, &[]);
        let sizes = run.lines("size");
        assert_eq!(sizes.len(), mix::all().count());
        for size in &sizes {
            let name = size["name"].as_str().unwrap();
            let dry = llmq!["quantize", &model, "--dry-run", "--json", "--type", name].ok().summary();
            assert_eq!(size["bytes"], dry["bytes"], "{name} of {}", model.display());
            assert_eq!(size["bits_per_weight"], dry["bits_per_weight"], "{name}");
            assert_eq!(size["asked_for"], name == "Q4_K_M");
        }
        let asked = sizes.iter().find(|size| size["name"] == "Q4_K_M").unwrap();
        assert_eq!(run.summary()["bytes"], asked["bytes"]);
    }
}

#[test]
fn overrides_and_fallbacks_are_those_of_quantize() {
    let root = folder();
    let model = root.path().join("model");
    Shape { ffn: 96, ..Shape::default() }.write(&model);
    let options = ["--type", "Q4_0", "--tensor-type", "ffn_down=Q5_K", "--token-embedding-type", "Q8_0"];
    let summary = plan(&model, &options).summary();
    let dry = llmq!["quantize", &model, "--dry-run", "--json"; options].ok().summary();
    assert_eq!((&summary["bytes"], &summary["fallback_bytes"]), (&dry["bytes"], &dry["fallback_bytes"]));
    let fallbacks = summary["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 2, "{fallbacks:?}");
    assert_eq!((&fallbacks[0]["name"], &fallbacks[0]["instead_of"]), (&json!("blk.0.ffn_down.weight"), &json!("Q5_K")));
    assert_eq!(fallbacks[0]["to"], "Q5_1");
    let sum: i64 = fallbacks.iter().map(|f| f["bytes"].as_i64().unwrap()).sum();
    assert_eq!(summary["fallback_bytes"], sum);
}

#[test]
fn memory_and_time_grow_with_windows_and_rtn_needs_next_to_none() {
    let of = |options: &[&str]| plan(&tiny(), options).summary();
    let memory = |samples: &str| number(&of(&["--samples", samples]), "peak_memory_bytes");
    // Up to where inner activations are not kept any more.
    let [few, some, many] = ["8", "32", "96"].map(memory);
    assert!(few > 1_000_000 && few < some && some < many, "{few} {some} {many}");

    let summary = of(&["--samples", "64", "--seq-len", "256"]);
    let forecasts = summary["forecasts"].as_array().unwrap();
    let methods: Vec<&Value> = forecasts.iter().map(|f| &f["method"]).collect();
    assert_eq!(methods, ["auto", "auto", "auto", "auto", "rtn"]);
    let names: Vec<&Value> = forecasts.iter().map(|f| &f["name"]).collect();
    assert_eq!(names, ["as asked for", "--effort fast", "--effort balanced", "--effort best", "--method rtn"]);
    let seconds: Vec<f64> = forecasts.iter().map(|f| f["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.iter().all(|s| s.is_finite() && *s > 0.0), "{seconds:?}");
    let [asked, fast, balanced, best, rtn] = seconds[..] else { panic!("{seconds:?}") };
    assert!(rtn < fast && fast < balanced && balanced < best && asked < balanced, "{seconds:?}");
    assert!(number(&forecasts[4], "peak_memory_bytes") < number(&forecasts[0], "peak_memory_bytes"));
    // Both streams, of which a part is there for the original model, too.
    let scratch = number(&forecasts[0], "scratch_bytes");
    assert!(scratch > 2 * 64 * 256 * 256 * 2 && scratch < 4 * 64 * 256 * 256 * 2, "{scratch}");
    assert_eq!(number(&forecasts[4], "scratch_bytes"), 0);
    for forecast in forecasts {
        let parts = forecast["peak_memory_in"].as_object().unwrap().values().map(|v| v.as_u64().unwrap());
        assert_eq!(parts.sum::<u64>(), number(forecast, "peak_memory_bytes"));
        let parts = forecast["seconds_in"].as_object().unwrap().values().map(|v| v.as_f64().unwrap());
        assert!((parts.sum::<f64>() - forecast["seconds"].as_f64().unwrap()).abs() < 1e-9);
    }
    assert_eq!((&summary["samples"], &summary["seq_len"]), (&json!(64), &json!(256)));
    let rtn = of(&["--method", "rtn"]);
    assert_eq!(rtn["forecasts"].as_array().unwrap().len(), 1);
    assert_eq!((&rtn["samples"], &rtn["method"]), (&Value::Null, &json!("rtn")));
}

/// As many passes as the plan says: activations that are needed twice are computed once, and the original model runs beside the
/// quantized one on some of the windows alone.
#[test]
fn a_run_multiplies_as_often_as_its_plan_says() {
    let root = folder();
    let untied = root.path().join("untied");
    Shape { tied: false, ..Shape::default() }.write(&untied);
    let once = |model: &Path, options: &[&str]| {
        let options = [&["--type", "Q4_0", "--samples", "12", "--seq-len", "128"], options].concat();
        let planned = plan(model, &options).summary()["forecasts"][0]["linear_multiplications"].as_f64().unwrap();
        let file = root.path().join("out.gguf");
        let summary = llmq!["quantize", model, "-o", &file, "--force", "--json"; options.iter()].ok().summary();
        let done = summary["linear_multiplications"].as_f64().unwrap();
        assert!((done / planned - 1.0).abs() < 0.001, "{options:?}: {done} multiplications, {planned} planned");
        done
    };
    for model in [tiny(), untied] {
        let [auto, plain] = [&[][..], &["--method", "gptq", "--no-gptaq"]].map(|options| once(&model, options));
        assert!(plain < auto, "{plain} without the original model beside, {auto} with it");
    }
}

#[test]
fn what_does_not_fit_main_memory_says_how_many_windows_do() {
    let fitting = plan(&tiny(), &["--ram", "16G"]).summary();
    assert_eq!((&fitting["fits_ram"], &fitting["samples_that_fit"]), (&json!(true), &Value::Null));
    let needed = number(&fitting["forecasts"][0], "peak_memory_bytes");
    let ram = &format!("{}K", needed * 9 / 10_000);
    let over = plan(&tiny(), &["--ram", ram]).summary();
    assert_eq!((&over["fits_ram"], &over["ram_bytes"]), (&json!(false), &json!(needed * 9 / 10_000 * 1000)));
    let samples = number(&over, "samples_that_fit");
    assert!((1..128).contains(&samples));
    let with = |samples: u64| plan(&tiny(), &["--ram", ram, "--samples", &samples.to_string()]).summary();
    // What the program itself holds differs a little from run to run, so not just as many, or one window more.
    assert_eq!(with(samples.saturating_sub(8).max(1))["fits_ram"], true);
    assert_eq!(with(samples + 8)["fits_ram"], false);
    let shorter = number(&over, "seq_len_that_fits").to_string();
    assert_eq!(plan(&tiny(), &["--ram", ram, "--seq-len", &shorter]).summary()["fits_ram"], true);
    let text = llmq!["plan", tiny(), "--ram", ram].ok().stdout;
    assert!(
        text.contains(&format!("what does: --samples {samples}")) || text.contains("what does: --samples"),
        "{text}"
    );
}

#[test]
fn the_largest_type_that_fits_is_marked() {
    let run = plan(&tiny(), &["--vram", "11M", "--context", "512"]);
    let summary = run.summary();
    // 4 blocks of 2 heads of 64, keys and values, two bytes each.
    assert_eq!(number(&summary, "cache_bytes"), 2 * 4 * 2 * 64 * 512 * 2);
    assert_eq!(number(&summary, "reserve_bytes"), 512 * 4 * (8 * 256 + 2048));
    let sizes = run.lines("size");
    let besides = number(&summary, "cache_bytes") + number(&summary, "reserve_bytes");
    let fits = |size: &&Value| number(size, "gpu_bytes") <= 11_000_000;
    for size in &sizes {
        assert_eq!(size["fits_vram"], fits(&size), "{size}");
        assert!(
            number(size, "gpu_bytes") - besides < number(size, "bytes"),
            "a tied embedding is on the GPU; no header is"
        );
    }
    let largest = sizes.iter().filter(fits).max_by_key(|size| number(size, "bytes")).expect("one that fits");
    assert_eq!(sizes.iter().filter(|size| size["largest_that_fits"] == true).count(), 1);
    assert_eq!((&summary["largest_that_fits"], &largest["largest_that_fits"]), (&largest["name"], &json!(true)));
    assert_eq!(advice(&plan(&tiny(), &["--vram", "1M"]).summary())[0], "does not fit");
    let shorter = plan(&tiny(), &["--context", "256"]).summary();
    assert_eq!(number(&shorter, "cache_bytes") * 2, number(&summary, "cache_bytes"));
    assert_eq!(plan(&tiny(), &[]).summary()["fits_vram"], Value::Null);
}

#[test]
fn small_and_quantized_models_are_advised_against() {
    assert_eq!(advice(&plan(&tiny(), &[]).summary()), ["small", "accuracy"]);
    let out = folder();
    let file = out.path().join("model.gguf");
    llmq!["quantize", tiny(), "-o", &file, "--type", "Q4_0", "-m", "rtn"].ok();
    let summary = plan(&file, &[]).summary();
    assert_eq!(advice(&summary)[0], "quantized already");
    assert_eq!(summary["source_type"], "Q4_0");
    assert!(llmq!["plan", &file].ok().stdout.contains("--allow-requantize"));

    let model = out.path().join("packed");
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.config["quantization_config"] = json!({ "quant_method": "gptq", "bits": 4 });
    checkpoint.tensors.remove("model.layers.0.mlp.up_proj.weight");
    checkpoint.write(&model);
    llmq!["plan", &model].failed(1, &["is quantized already, with gptq", "hint: ", "original checkpoint"]);
}

#[test]
fn a_gguf_that_llmq_cannot_run_is_planned_for_rtn() {
    let out = folder();
    let file = out.path().join("model.gguf");
    let other = ["--type", "F16", "--override-kv", "general.architecture=str:qwen9"];
    llmq!["quantize", tiny(), "-o", &file; other].ok();
    let run = plan(&file, &["--vram", "1G"]);
    let summary = run.summary();
    assert_eq!((&summary["method"], &summary["architecture"]), (&json!("rtn"), &json!("qwen9")));
    assert_eq!(advice(&summary)[0], "only rtn");
    let dry = llmq!["quantize", &file, "--dry-run", "--json", "-m", "rtn"].ok().summary();
    assert_eq!(summary["bytes"], dry["bytes"]);
    // Its keys are not those of this architecture, so nothing is known of its context.
    assert_eq!((&summary["cache_bytes"], &summary["fits_vram"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_gguf_of_llama_is_planned_like_its_folder() {
    let out = folder();
    let file = out.path().join("model.gguf");
    llmq!["quantize", tiny(), "-o", &file, "--type", "BF16"].ok();
    let [folder, gguf] = [tiny(), file].map(|model| plan(&model, &[]).lines("size"));
    for (folder, gguf) in folder.iter().zip(&gguf) {
        for key in ["name", "bits_per_weight", "gpu_bytes"] {
            assert_eq!(folder[key], gguf[key]);
        }
    }
}

/// The weights are a hole in a file of gigabytes: reading them would take longer than this test may.
#[test]
fn no_weights_are_read() {
    let root = folder();
    let model = root.path().join("model");
    Shape::default().write(&model);
    let (hidden, ffn, blocks, vocab) = (2048u64, 8192u64, 24u64, 2048u64);
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    for (key, value) in [("hidden_size", hidden), ("intermediate_size", ffn), ("num_hidden_layers", blocks)] {
        config[key] = value.into();
    }
    config["num_attention_heads"] = 32.into();
    config["num_key_value_heads"] = 8.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    let mut put = |name: String, shape: &[u64]| {
        let next = end + 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [end, next] }));
        end = next;
    };
    put("model.embed_tokens.weight".into(), &[vocab, hidden]);
    for i in 0..blocks {
        for (name, rows, columns) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden / 4, hidden),
            ("self_attn.v_proj", hidden / 4, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ] {
            put(format!("model.layers.{i}.{name}.weight"), &[rows, columns]);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("model.layers.{i}.{norm}.weight"), &[hidden]);
        }
    }
    put("model.norm.weight".into(), &[hidden]);
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    fs::write(model.join("model.safetensors"), &bytes).unwrap();
    let file = OpenOptions::new().write(true).open(model.join("model.safetensors")).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    drop(file);

    let started = Instant::now();
    let summary = plan(&model, &["--ram", "8G", "--vram", "2G"]).summary();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(number(&summary, "elements") > 1_400_000_000);
    assert!(summary["seconds"].as_f64().unwrap() > 60.0);
    assert!(advice(&summary).contains(&"room for more"), "{summary}");
    assert_eq!(names(&model).len(), 5, "nothing was written");
}

#[test]
fn what_makes_no_sense_is_refused() {
    llmq!["plan", "./no-model"].failed(1, &["./no-model", "cannot read"]);
    llmq!["plan", tiny(), "--type", "Q9"].failed(2, &["unknown type 'Q9'"]);
    llmq!["plan", tiny(), "--samples", "0"].failed(2, &["--samples"]);
    llmq!["plan", tiny(), "--target-bpw", "4"].failed(2, &["reads headers only", "hint: "]);
    for (option, value) in [("--ram", "much"), ("--vram", "0"), ("--context", "0")] {
        llmq!["plan", tiny(), option, value].failed(2, &[option]);
    }
}

/// What is said of a folder is said before the run, too: a stale index, keys that are missing, a matrix that is not tied after
/// all, two templates, a window that llama.cpp does not have, rows that do not divide into blocks.
#[test]
fn a_plan_and_a_dry_run_say_what_a_run_says() {
    let root = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| root.path().join(name));
    let mut checkpoint = Shape { tied: false, ..Shape::default() }.checkpoint();
    let config = checkpoint.config.as_object_mut().unwrap();
    config.extend([
        ("tie_word_embeddings".into(), true.into()),
        ("model_type".into(), "mistral".into()),
        ("sliding_window".into(), 16.into()),
    ]);
    config.remove("rms_norm_eps");
    checkpoint.write(&model);
    fs::write(model.join("model.safetensors.index.json"), r#"{"weight_map": {"a": "gone.safetensors"}}"#).unwrap();
    fs::write(model.join("tokenizer_config.json"), r#"{"chat_template": "a"}"#).unwrap();
    fs::write(model.join("chat_template.jinja"), "b").unwrap();
    let options = ["--type", "Q4_K_M", "--method", "rtn"];
    let of = |run: Run| run.summary()["notes"].clone();
    let dry = of(llmq!["quantize", &model, "--dry-run", "--json", "-o", &file; options].ok());
    let run = llmq!["quantize", &model, "--json", "-o", &file; options].ok();
    let while_it_runs: Vec<Value> = run.lines("note").into_iter().map(|line| line["text"].clone()).collect();
    let said = of(run);
    for part in ["model.safetensors.index.json", "rms_norm_eps", "lm_head.weight", "chat_template.jinja", "window"] {
        assert!(said.as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(part)), "{part}: {said}");
    }
    assert_eq!(dry, said);
    assert_eq!(of(plan(&model, &options)), said);
    assert_eq!(Value::Array(while_it_runs), said);
    let lines = |text: &str| -> Vec<String> {
        let told = said.as_array().unwrap().iter().map(|note| note.as_str().unwrap());
        let divided = text.lines().filter_map(|line| line.strip_prefix("note: ").or(Some(line)));
        let divided = divided.filter(|line| line.contains("do not divide into blocks")).map(str::to_owned);
        assert!(told.clone().all(|note| text.contains(note)), "{text}");
        // A run says them as it begins, and again when it is done.
        let mut once: Vec<String> = Vec::new();
        divided.for_each(|line| once.extend((!once.contains(&line)).then_some(line)));
        once
    };
    let shown = lines(&llmq!["quantize", &model, "-o", &file, "--force"; options].ok().stderr);
    assert!(!shown.is_empty());
    assert_eq!(lines(&llmq!["quantize", &model, "--dry-run", "-o", &file, "--force"; options].ok().stderr), shown);
    assert_eq!(lines(&llmq!["plan", &model; options].ok().stdout), shown);
}

#[test]
fn a_time_limit_takes_the_best_that_fits_it_and_says_what_that_is() {
    let run = |time| llmq!["quantize", tiny(), "--dry-run", "--time", time];
    let said = run("100h").ok().stderr;
    assert!(said.contains("--time is enough for --method auto --samples 256 --sweeps 8, in about "), "{said}");
    let hurried = run("3s").ok().stderr;
    assert!(hurried.contains("--time is enough for --method ") && !hurried.contains("--samples 256"), "{hurried}");
    run("0.0001s").failed(1, &["the fastest way there is", "more than --time", "hint: `llmq plan`"]);
    run("soon").failed(2, &["a time is a number with s, m or h behind it"]);
    llmq!["quantize", tiny(), "--dry-run", "--time", "2h", "--effort", "fast"].failed(2, &["cannot be used with"]);
    // The file is that of the options that were said.
    let (root, seconds) = (folder(), "40s");
    let [timed, again] = ["timed.gguf", "again.gguf"].map(|name| root.path().join(name));
    let few = ["--seq-len", "64", "--type", "Q4_0"];
    let said = llmq!["quantize", tiny(), "-o", &timed, "--time", seconds; few].ok().stderr;
    let words = said.split("is enough for ").nth(1).unwrap().split(", in about").next().unwrap();
    llmq!["quantize", tiny(), "-o", &again; few.into_iter().chain(words.split(' '))].ok();
    assert!(fs::read(timed).unwrap() == fs::read(again).unwrap(), "{words}");
}
