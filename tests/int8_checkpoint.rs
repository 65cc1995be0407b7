//! `llmq int8 DIR`: checkpoint folders of encoders, made here of random weights.

mod common;

use common::checkpoint::{Checkpoint, Weights};
use common::{folder, llmq, names};
use llmq::source::checkpoint::Checkpoint as Mapped;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const VOCAB: usize = 40;
const HIDDEN: usize = 32;
const FFN: usize = 64;

/// A BERT of two blocks, with a pooler, an output layer that is tied to the embedding, and a buffer.
fn bert() -> Checkpoint {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut tensors = BTreeMap::new();
    let mut put = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let numbers = (0..n).map(|_| random.random_range(-0.5..0.5f32)).collect();
        tensors.insert(name.to_owned(), Weights { shape: shape.into(), numbers });
    };
    put("bert.embeddings.word_embeddings.weight", &[VOCAB, HIDDEN]);
    put("bert.embeddings.position_embeddings.weight", &[16, HIDDEN]);
    put("bert.embeddings.token_type_embeddings.weight", &[2, HIDDEN]);
    let norms = ["bert.embeddings.LayerNorm".to_owned()].into_iter();
    let norms =
        norms.chain((0..2).flat_map(|i| {
            ["attention.output", "output"].map(|part| format!("bert.encoder.layer.{i}.{part}.LayerNorm"))
        }));
    for norm in norms {
        put(&format!("{norm}.weight"), &[HIDDEN]);
        put(&format!("{norm}.bias"), &[HIDDEN]);
    }
    for i in 0..2 {
        for (part, rows, columns) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", FFN, HIDDEN),
            ("output.dense", HIDDEN, FFN),
        ] {
            put(&format!("bert.encoder.layer.{i}.{part}.weight"), &[rows, columns]);
            put(&format!("bert.encoder.layer.{i}.{part}.bias"), &[rows]);
        }
    }
    put("bert.pooler.dense.weight", &[HIDDEN, HIDDEN]);
    put("bert.pooler.dense.bias", &[HIDDEN]);
    put("cls.predictions.decoder.weight", &[VOCAB, HIDDEN]);
    put("cls.predictions.bias", &[VOCAB]);
    let config = json!({
        "architectures": ["BertForMaskedLM"],
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 16,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": VOCAB,
    });
    Checkpoint { config, tensors, dtype: Dtype::F32, shards: 1 }
}

/// Writes a checkpoint with a tokenizer of word pieces and mean pooling.
fn write(checkpoint: &Checkpoint, folder: &Path) {
    checkpoint.write(folder);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let letters = "abcdefghijklmnop".chars().flat_map(|c| [c.to_string(), format!("##{c}")]);
    let tokens: Vec<String> = special.iter().map(|text| text.to_string()).chain(letters).chain(["hi".into()]).collect();
    fs::write(folder.join("vocab.txt"), tokens.join("\n") + "\n").unwrap();
    fs::write(folder.join("modules.json"), r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "../up"}]"#).unwrap();
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    fs::write(folder.join("flax_model.msgpack"), "weights of another framework").unwrap();
}

/// The folder with a checkpoint, and where its result goes.
fn made(checkpoint: &Checkpoint) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let parent = folder();
    let (model, out) = (parent.path().join("model"), parent.path().join("out"));
    write(checkpoint, &model);
    (parent, model, out)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn relative(original: &[f32], found: &[f32]) -> f64 {
    let error: f64 = original.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / original.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

#[test]
fn a_folder_becomes_int8_and_keeps_what_is_no_linear_layer() {
    let checkpoint = bert();
    let (parent, model, out) = made(&checkpoint);
    let run = llmq!["int8", &model, "-o", &out, "--json"].ok();
    assert_eq!(names(parent.path()), ["model", "out"]);
    assert_eq!(names(&out), ["1_Pooling", "config.json", "model.safetensors", "modules.json", "vocab.txt"]);
    assert_eq!(
        fs::read(out.join("1_Pooling/config.json")).unwrap(),
        fs::read(model.join("1_Pooling/config.json")).unwrap()
    );

    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut linear = 0;
    for (name, original) in &checkpoint.tensors {
        let found = file.tensor(name).unwrap();
        assert_eq!(found.shape(), original.shape);
        let is_linear = name.ends_with("dense.weight") || name.contains(".self.") && name.ends_with(".weight");
        if !is_linear {
            assert_eq!(floats(found.data()), original.numbers, "{name}");
            continue;
        }
        linear += 1;
        assert_eq!(found.dtype(), Dtype::I8);
        let scale = file.tensor(&format!("{name}_scale")).unwrap();
        assert_eq!((scale.dtype(), scale.shape()), (Dtype::F32, &[original.shape[0], 1][..]));
        let columns = original.shape[1];
        let values: Vec<f32> = found
            .data()
            .iter()
            .enumerate()
            .map(|(i, &q)| f32::from(q as i8) * floats(scale.data())[i / columns])
            .collect();
        let error = relative(&original.numbers, &values);
        // Uniform numbers in 254 steps: a step's variance over theirs is 4/254²/… = 1.55e-5 at most, less with a good scale.
        assert!(error > 1e-6 && error < 1.6e-5, "{name}: {error}");
        let line = run.lines("tensor").into_iter().find(|line| line["name"] == **name).unwrap();
        assert!((line["relative_error"].as_f64().unwrap() / error - 1.0).abs() < 1e-3, "{line} {error}");
        assert_eq!((&line["role"], &line["to"]), (&json!("linear"), &json!("I8")));
    }
    assert_eq!(linear, 13);
    assert_eq!(file.len(), checkpoint.tensors.len() + linear);

    let config = json_of(&out.join("config.json"));
    let own = &config["quantization_config"];
    let mut rest = config.clone();
    rest.as_object_mut().unwrap().retain(|key, _| key != "quantization_config" && key != "torch_dtype");
    assert_eq!(rest, checkpoint.config);
    assert_eq!(config["torch_dtype"], "float32");
    assert_eq!((&own["quant_method"], &own["format"]), (&json!("compressed-tensors"), &json!("int-quantized")));
    assert_eq!(own["ignore"], json!(["cls.predictions.decoder"]));
    let group = &own["config_groups"]["group_0"];
    assert_eq!(group["targets"].as_array().unwrap().len(), 7);
    assert_eq!(group["input_activations"]["dynamic"], true);

    let summary = run.summary();
    assert_eq!(summary["bytes"], bytes.len());
    assert_eq!(
        summary["embedding_bytes"],
        json!({ "before": 4 * HIDDEN * (VOCAB + 18), "after": 4 * HIDDEN * (VOCAB + 18) })
    );
    assert!(summary["worst"]["name"].as_str().unwrap().ends_with(".weight"));
    assert!(run.stderr.contains("without embeddings"), "{}", run.stderr);
}

/// llmq reads what it packed: the same codes in another layout, from a checkpoint in shards of halves.
#[test]
fn weights_alone_are_packed_and_read_back() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let mut checkpoint = Checkpoint { dtype, shards: 2, ..bert() };
        // Rows of a length that fills no word of four codes.
        let odd = Weights { shape: vec![3, 5], numbers: (0..15).map(|i| i as f32 / 8.0 - 1.0).collect() };
        checkpoint.tensors.insert("classifier.weight".into(), odd);
        let (_parent, model, out) = made(&checkpoint);
        llmq!["int8", &model, "-o", &out, "--weight-only", "--max-shard-size", "8K", "--embeddings", "f16"].ok();
        let index = json_of(&out.join("model.safetensors.index.json"));
        assert!(names(&out).iter().filter(|name| name.ends_with(".safetensors")).count() > 2);
        assert!(index["weight_map"]["classifier.weight_packed"].is_string());
        let read = Mapped::open(&out).unwrap();
        let before = Mapped::open(&model).unwrap();
        for (name, original) in &checkpoint.tensors {
            let (old, new) = (before.read(name, &original.shape).unwrap(), read.read(name, &original.shape).unwrap());
            let embeds = name.contains("_embeddings.");
            let exact =
                !(name.contains("dense.weight") || name.contains("classifier") || embeds || name.contains(".self."));
            let bound = if exact || name.ends_with("bias") {
                0.0
            } else if embeds {
                1e-6
            } else {
                3e-5
            };
            assert!(relative(&old, &new) <= bound, "{dtype:?} {name}: {}", relative(&old, &new));
            assert!(!embeds || read.bytes(name).unwrap().0 == Dtype::F16);
        }
    }
}

#[test]
fn the_bytes_depend_on_no_thread_and_nothing_is_lost_by_force() {
    let (parent, model, out) = made(&bert());
    let run = |threads: &str, out: &Path| llmq!["int8", &model, "-o", out, "--threads", threads].ok();
    run("1", &out);
    let other = parent.path().join("other");
    run("3", &other);
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), fs::read(other.join("model.safetensors")).unwrap());

    llmq!["int8", &model, "-o", &out].failed(2, &["already exists", "--force"]);
    fs::write(out.join("stale"), "").unwrap();
    llmq!["int8", &model, "-o", &out, "--force", "--scales", "max"].ok();
    assert!(!out.join("stale").exists());
    assert_ne!(fs::read(out.join("model.safetensors")).unwrap(), fs::read(other.join("model.safetensors")).unwrap());
    // Not a folder that this command wrote: not even by force.
    llmq!["int8", &model, "-o", parent.path(), "--force"].failed(2, &["holds the input"]);
    let elsewhere = folder();
    fs::write(elsewhere.path().join("precious"), "").unwrap();
    llmq!["int8", &model, "-o", elsewhere.path(), "--force"].failed(2, &["no quantized checkpoint"]);
    llmq!["int8", &model, "-o", &model, "--force"].failed(2, &["is the input"]);
    llmq!["int8", &model, "-o", model.join("inside"), "--force"].failed(2, &["is the input, or inside it"]);
    // Its own result is quantized already.
    llmq!["int8", &out, "-o", parent.path().join("twice")]
        .failed(1, &["quantized already", "compressed-tensors (int-quantized)"]);
    assert_eq!(names(parent.path()), ["model", "other", "out"]);
}

#[test]
fn bad_checkpoints_are_refused_by_name_and_leave_nothing() {
    let refused = |checkpoint: &Checkpoint, options: &[&str], code: i32, wanted: &[&str]| {
        let (parent, model, out) = made(checkpoint);
        llmq!["int8", &model, "-o", &out; options].failed(code, wanted);
        assert_eq!(names(parent.path()), ["model"], "left behind");
    };
    let with = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = bert();
        change(&mut checkpoint);
        checkpoint
    };
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let wanted = [query, shown, "at element 37 of 1024", "model.safetensors"];
        let checkpoint = with(&|checkpoint| checkpoint.numbers(query)[37] = bad);
        refused(&checkpoint, &[], 1, &wanted);
        refused(&checkpoint, &["--gguf"], 1, &wanted);
    }
    let norm = with(&|checkpoint| checkpoint.numbers("bert.embeddings.LayerNorm.bias")[3] = f32::NAN);
    refused(&norm, &[], 1, &["bert.embeddings.LayerNorm.bias", "NaN", "element 3 of 32"]);
    let large = with(&|checkpoint| checkpoint.numbers("bert.embeddings.word_embeddings.weight")[70] = 1e6);
    refused(&large, &["--embeddings", "f16"], 1, &["word_embeddings", "element 70 is 1000000", "bf16"]);

    let convolutions = with(&|checkpoint| {
        let shape = vec![64, 64, 3, 3];
        checkpoint.tensors.insert("layer1.0.conv1.weight".into(), Weights { numbers: vec![0.1; 36864], shape });
    });
    refused(&convolutions, &[], 1, &["36864 of its weights are in convolutions", "ONNX", "llmq int8 static"]);
    let transposed = with(&|checkpoint| {
        let mut put = |name: &str, shape: &[usize]| {
            let numbers = vec![0.1; shape.iter().product()];
            checkpoint.tensors.insert(name.into(), Weights { numbers, shape: shape.into() });
        };
        put("h.0.mlp.c_fc.weight", &[8, 32]);
        put("h.0.mlp.c_fc.bias", &[32]);
    });
    refused(&transposed, &[], 1, &["'h.0.mlp.c_fc.weight' with shape [8, 32] has a bias of 32", "Conv1D"]);
    let nothing = with(&|checkpoint| checkpoint.tensors.retain(|name, _| name.contains("embeddings")));
    refused(&nothing, &[], 1, &["no weight of a linear layer"]);

    let of_config = |key: &str, value: Value| with(&|checkpoint| checkpoint.config[key] = value.clone());
    refused(&of_config("model_type", json!("vit")), &["--gguf"], 1, &["'vit'", "bert, distilbert and roberta"]);
    refused(&of_config("hidden_act", json!("relu")), &["--gguf"], 1, &["hidden_act is 'relu'", "GELU"]);
    refused(&of_config("position_embedding_type", json!("relative_key")), &["--gguf"], 1, &["relative_key"]);
    refused(
        &of_config("num_hidden_layers", json!(3)),
        &["--gguf"],
        1,
        &["encoder.layer.2.attention.self.query.weight"],
    );
    refused(&of_config("vocab_size", json!(41)), &["--gguf"], 1, &["word_embeddings", "[40, 32]", "[41, 32]"]);
    refused(&of_config("hidden_size", json!("wide")), &["--gguf"], 1, &["hidden_size"]);
    refused(&bert(), &["--gguf", "--type", "Q4_K_M"], 2, &["Q4_K_M", "Q8_0, F16, BF16 and F32"]);
    refused(&bert(), &["--type", "F16"], 2, &["--gguf"]);
    refused(&bert(), &["--gguf", "--weight-only"], 2, &["--weight-only"]);

    let (parent, model, out) = made(&bert());
    let shard = model.join("model.safetensors");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 9]).unwrap();
    llmq!["int8", &model, "-o", &out].failed(1, &["model.safetensors", "only"]);
    fs::write(&shard, &whole).unwrap();
    fs::write(model.join("modules.json"), "[").unwrap();
    llmq!["int8", &model, "-o", &out].failed(1, &["modules.json", "not valid JSON"]);
    fs::remove_file(model.join("modules.json")).unwrap();
    fs::remove_file(model.join("vocab.txt")).unwrap();
    llmq!["int8", &model, "-o", &out, "--gguf"].failed(1, &["no tokenizer.json, and no vocab.txt"]);
    fs::copy(common::tiny().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    llmq!["int8", &model, "-o", &out, "--gguf"].failed(1, &["tokenizer.json", "its model is BPE", "WordPiece"]);
    let same = json!({
        "model": { "type": "WordPiece", "continuing_subword_prefix": "##", "vocab": { "##▁a": 0, "a": 1 } },
    });
    fs::write(model.join("tokenizer.json"), same.to_string()).unwrap();
    llmq!["int8", &model, "-o", &out, "--gguf"].failed(1, &["two tokens become", "▁a"]);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    fs::write(model.join("vocab.txt"), "a\nb\na\n").unwrap();
    llmq!["int8", &model, "-o", &out, "--gguf"].failed(1, &["lists a token twice"]);
    fs::write(model.join("vocab.txt"), "a\nb\n").unwrap();
    llmq!["int8", &model, "-o", &out, "--gguf"].failed(1, &["no file says which token is the cls_token"]);
    fs::remove_file(model.join("config.json")).unwrap();
    llmq!["int8", &model, "-o", &out].failed(1, &["config.json", "is not a checkpoint folder"]);
    llmq!["int8", model.join("none"), "-o", &out].failed(2, &["is not a folder"]);
    assert_eq!(names(parent.path()), ["model"]);
}

#[test]
fn an_encoder_becomes_a_gguf() {
    let (parent, model, _) = made(&bert());
    let file = parent.path().join("model.gguf");
    let run = llmq!["int8", &model, "--gguf", "-o", &file, "--json"].ok();
    let shown = llmq!["inspect", &file, "--json"].ok();
    let key = |name: &str| {
        let found = shown.lines("metadata").into_iter().find(|line| line["key"] == name);
        found.unwrap_or_else(|| panic!("no key {name}"))["value"].clone()
    };
    for (name, value) in [
        ("general.architecture", json!("bert")),
        ("general.file_type", json!(7)),
        ("bert.block_count", json!(2)),
        ("bert.context_length", json!(16)),
        ("bert.attention.causal", json!(false)),
        ("bert.pooling_type", json!(1)),
        ("tokenizer.ggml.model", json!("bert")),
        ("tokenizer.ggml.token_type_count", json!(2)),
        ("tokenizer.ggml.bos_token_id", json!(2)),
        ("tokenizer.ggml.seperator_token_id", json!(3)),
        ("tokenizer.ggml.normalizer.lowercase", json!(true)),
    ] {
        assert_eq!(key(name), value, "{name}");
    }
    let tokens = key("tokenizer.ggml.tokens");
    // Two pieces more than rows would be refused; two rows more than pieces are filled.
    assert_eq!(tokens.as_array().unwrap().len(), VOCAB);
    assert_eq!(
        (&tokens[2], &tokens[5], &tokens[6], &tokens[37]),
        (&json!("[CLS]"), &json!("▁a"), &json!("a"), &json!("▁hi"))
    );
    assert_eq!(tokens[39], "▁[PAD39]");
    let kinds: BTreeMap<String, String> = shown
        .lines("tensor")
        .into_iter()
        .map(|line| (line["name"].as_str().unwrap().to_owned(), line["kind"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(kinds.len(), 5 + 2 * 16);
    for (name, kind) in &kinds {
        let single =
            name.ends_with("bias") || name.contains("norm") || name.contains("position") || name.contains("types");
        assert_eq!(kind, if single { "F32" } else { "Q8_0" }, "{name}");
    }
    let left: Vec<Value> = run.lines("tensor").into_iter().filter(|line| line["to"] == "left out").collect();
    assert_eq!(left.len(), 4, "pooler and output layer");
    llmq!["int8", &model, "--gguf", "-o", &file].failed(2, &["already exists", "--force"]);
    let cased = json!({ "do_lower_case": false, "cls_token": "[CLS]", "sep_token": { "content": "[SEP]" } });
    fs::write(model.join("tokenizer_config.json"), cased.to_string()).unwrap();
    llmq!["int8", &model, "--gguf", "-o", &file, "--force", "--type", "f32", "--pooling", "cls"].ok();
    let shown = llmq!["inspect", &file, "--json"].ok();
    assert_eq!(shown.summary()["kinds"], json!(["F32"]));
    let pooling = shown.lines("metadata").into_iter().find(|line| line["key"] == "bert.pooling_type").unwrap();
    assert_eq!(pooling["value"], 2);
    let lowercase =
        shown.lines("metadata").into_iter().find(|line| line["key"] == "tokenizer.ggml.normalizer.lowercase");
    assert_eq!(lowercase.unwrap()["value"], false);
}

/// Whatever model holds the encoder, its tensors are found behind that model's prefix; two encoders are a question.
#[test]
fn an_encoder_inside_another_model_is_found() {
    let renamed = |name: &dyn Fn(&str) -> Vec<String>| {
        let mut checkpoint = bert();
        let old = std::mem::take(&mut checkpoint.tensors);
        for (own, weights) in old {
            for new in name(own.strip_prefix("bert.").unwrap_or(&own)) {
                let Weights { numbers, shape } = &weights;
                checkpoint.tensors.insert(new, Weights { numbers: numbers.clone(), shape: shape.clone() });
            }
        }
        made(&checkpoint)
    };
    let gguf = |prefix: &str| {
        let (parent, model, _) = renamed(&|name| vec![format!("{prefix}{name}")]);
        let file = parent.path().join("model.gguf");
        llmq!["int8", &model, "--gguf", "-o", &file].ok();
        fs::read(&file).unwrap()
    };
    let plain = gguf("bert.");
    for prefix in ["", "auto_model.", "0.auto_model.", "encoder."] {
        assert!(gguf(prefix) == plain, "{prefix}");
    }
    let (_parent, model, out) = renamed(&|name| vec![format!("query.{name}"), format!("passage.{name}")]);
    llmq!["int8", &model, "--gguf", "-o", &out].failed(1, &["holds 2 encoders", "passage., query.", "hint: "]);
}
