//! What config.json says: keys that change a model's numbers are understood or refused by name, before anything is written.

mod common;

use common::checkpoint::Weights;
use common::golden::{self, Golden};
use common::{folder, llmq, perplexity, refused};
use llmq::pipeline::weights::open_gguf;
use llmq::source::value::Value;
use serde_json::json;
use std::path::Path;

const F32: [&str; 5] = ["--type", "F32", "--method", "rtn", "--json"];
const FEW: [&str; 4] = ["--chunks", "2", "-c", "64"];

/// A golden model with other keys in its configuration; `null` takes one out.
fn changed(name: &str, keys: serde_json::Value) -> Golden {
    let mut golden = golden::read(name);
    let config = golden.checkpoint.config.as_object_mut().unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config.remove(key);
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
    golden
}

/// Writes a checkpoint and its file in single precision into a folder, and returns the notes.
#[track_caller]
fn made(golden: &Golden, place: &Path) -> Vec<String> {
    golden.checkpoint.write(&place.join("model"));
    let run = llmq!["quantize", place.join("model"), "-o", place.join("model.gguf"); F32].ok();
    let notes = run.summary()["notes"].as_array().unwrap().clone();
    notes.into_iter().map(|note| note.as_str().unwrap().to_owned()).collect()
}

/// A key of the file, without the name of its architecture.
fn key(place: &Path, name: &str) -> Option<Value> {
    let file = open_gguf(&place.join("model.gguf")).unwrap();
    let architecture = file.get("general.architecture").and_then(Value::as_str).unwrap().to_owned();
    file.get(&format!("{architecture}.{name}")).cloned()
}

/// The perplexity of the folder, and that of its file.
fn both(place: &Path) -> [f64; 2] {
    ["model", "model.gguf"].map(|name| perplexity(&place.join(name), &FEW))
}

/// The keys of a model are the same, however its configuration says it, and so are its numbers.
#[track_caller]
fn same(name: &str, keys: serde_json::Value) {
    let [plain, other] = [folder(), folder()];
    made(&golden::read(name), plain.path());
    made(&changed(name, keys), other.path());
    let metadata = |place: &Path| {
        let all = open_gguf(&place.join("model.gguf")).unwrap().metadata;
        all.into_iter().filter(|(key, _)| !key.starts_with("llmq.")).collect::<Vec<_>>()
    };
    assert_eq!(metadata(plain.path()), metadata(other.path()));
    assert_eq!(both(plain.path()), both(other.path()));
}

fn yarn() -> serde_json::Value {
    golden::read("llama-yarn").checkpoint.config["rope_parameters"].clone()
}

#[test]
fn rope_scaling_goes_before_rope_parameters_as_in_transformers() {
    let plain = json!({ "rope_type": "default", "rope_theta": 5000.0 });
    same("llama-yarn", json!({ "rope_parameters": plain, "rope_scaling": yarn() }));
    // An empty one says nothing.
    same("llama-yarn", json!({ "rope_scaling": {} }));
}

#[test]
fn what_older_configurations_say_of_the_first_training_counts() {
    let mut scaling = yarn();
    let original = scaling.as_object_mut().unwrap().remove("original_max_position_embeddings").unwrap();
    scaling["type"] = scaling.as_object_mut().unwrap().remove("rope_type").unwrap();
    let theta = scaling.as_object_mut().unwrap().remove("rope_theta").unwrap();
    same(
        "llama-yarn",
        json!({
            "rope_parameters": null,
            "rope_scaling": scaling,
            "rope_theta": theta,
            "original_max_position_embeddings": original,
        }),
    );
}

#[test]
fn yarn_grows_by_what_two_keys_say() {
    // 0.1 · mscale · ln(4) + 1, divided by the same for all dimensions.
    let mut grown = yarn();
    let factor = grown["factor"].as_f64().unwrap();
    let growth = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
    grown["attention_factor"] = json!(growth(1.0) / growth(0.5));
    let mut scaled = yarn();
    (scaled["mscale"], scaled["mscale_all_dim"]) = (json!(1.0), json!(0.5));
    let [one, other] = [folder(), folder()];
    made(&changed("llama-yarn", json!({ "rope_parameters": grown })), one.path());
    made(&changed("llama-yarn", json!({ "rope_parameters": scaled })), other.path());
    assert_eq!(both(one.path()), both(other.path()));
    let plain = folder();
    made(&golden::read("llama-yarn"), plain.path());
    assert_ne!(both(one.path()), both(plain.path()));
}

#[test]
fn two_lists_of_divisors_are_found_by_llama_cpp() {
    let out = folder();
    let long = golden::read("phi3-long").checkpoint.config["rope_parameters"].clone();
    made(&changed("llama", json!({ "rope_parameters": long })), out.path());
    assert_eq!(key(out.path(), "rope.scaling.type"), Some(Value::Str("longrope".into())));
    let [folder, file] = both(out.path());
    assert!((folder / file - 1.0).abs() < 1e-6, "{folder} and {file}");
}

/// What llama.cpp has no place for, or would compute in another way, by the key.
#[test]
fn what_a_gguf_cannot_say_is_refused_by_name() {
    let llama3 = json!({
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128
    });
    let mut exact = yarn();
    exact["truncate"] = json!(false);
    let mut early = yarn();
    early["beta_fast"] = json!(16.0);
    let partial = json!({ "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5 });
    let mut long = golden::read("phi3-long").checkpoint.config["rope_parameters"].clone();
    (long["short_factor"], long["long_factor"]) = (json!(vec![1.5; 16]), json!(vec![2.5; 16]));
    for (name, keys, wanted) in [
        ("llama", json!({ "rope_parameters": partial }), "partial_rotary_factor"),
        ("llama", json!({ "rope_parameters": exact }), "truncate"),
        ("llama", json!({ "rope_parameters": early }), "beta_fast"),
        ("llama", json!({ "is_causal": false }), "is_causal"),
        ("qwen2", json!({ "head_dim": 32 }), "head_dim"),
        ("qwen2", json!({ "rope_parameters": llama3 }), "llama3"),
        ("qwen3", json!({ "attention_bias": true }), "attention_bias"),
        ("qwen3", json!({ "rope_parameters": long }), "longrope"),
        ("smollm3", json!({ "mlp_bias": true }), "mlp_bias"),
        ("smollm3", json!({ "no_rope_layers": null, "no_rope_layer_interval": 2 }), "no_rope_layer_interval"),
        ("olmo2", json!({ "attention_bias": true }), "attention_bias"),
        ("phi3", json!({ "head_dim": 32 }), "head_dim"),
        ("starcoder2", json!({ "use_bias": false }), "use_bias"),
        ("gemma", json!({ "attention_bias": true }), "attention_bias"),
        ("gemma", json!({ "tie_word_embeddings": false }), "tie_word_embeddings"),
        ("gemma2", json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention"),
        ("gemma3", json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention"),
        (
            "gemma3",
            json!({ "use_bidirectional_attention": true, "architectures": ["Gemma3ForConditionalGeneration"] }),
            "use_bidirectional_attention",
        ),
        ("gemma3", json!({ "attn_logit_softcapping": 50.0 }), "attn_logit_softcapping"),
        ("gpt2", json!({ "scale_attn_weights": false }), "scale_attn_weights"),
        ("gpt_oss", json!({ "attention_bias": false }), "attention_bias"),
        ("gpt_oss", json!({ "swiglu_limit": 8.0 }), "swiglu_limit"),
        ("deepseek_v3", json!({ "rope_interleave": false }), "rope_interleave"),
        ("deepseek_v3", json!({ "rope_parameters": yarn() }), "mscale"),
        ("deepseek_v32", json!({ "index_head_dim": 96 }), "index_head_dim 96"),
        ("deepseek_v32", json!({ "mlp_bias": true }), "mlp_bias"),
        ("deepseek_v32", json!({ "layer_types": vec!["full_attention"; 3] }), "full_attention"),
        ("deepseek_v2", json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0 } }), "linear"),
    ] {
        let mut golden = changed(name, keys);
        // Gemma's output matrix would be there.
        let embedding = golden.checkpoint.tensors.get("model.embed_tokens.weight").cloned();
        golden
            .checkpoint
            .tensors
            .extend(embedding.map(|own| ("lm_head.weight".to_owned(), own)).filter(|_| name == "gemma"));
        let out = folder();
        golden.checkpoint.write(out.path());
        refused(out.path(), &["--type", "Q8_0", "--method", "rtn"], 1, &[wanted, "config.json"]);
    }
}

#[test]
fn keys_that_mean_nothing_are_passed_over() {
    same(
        "qwen2",
        json!({
            "sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": false, "use_cache": false, "attention_dropout": 0.1,
            "attention_bias": true, "made_up": 3
        }),
    );
    same("llama", json!({ "sliding_window": 8, "rope_scaling": { "type": "dynamic", "factor": 2.0 } }));
}

#[test]
fn blocks_with_a_window_may_be_others_than_usual() {
    let out = folder();
    let golden = golden::read("gemma3");
    let n = golden.checkpoint.config["num_hidden_layers"].as_u64().unwrap() as usize;
    let kinds: Vec<&str> = (0..n).map(|i| if i % 2 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    made(&changed("gemma3", json!({ "layer_types": kinds })), out.path());
    let pattern = key(out.path(), "attention.sliding_window_pattern").unwrap();
    let marks: Vec<bool> = (0..n).map(|i| pattern.as_array().unwrap().get(i).unwrap().as_bool().unwrap()).collect();
    assert_eq!(marks, (0..n).map(|i| i % 2 == 1).collect::<Vec<_>>());
    let [other, file] = both(out.path());
    assert_eq!(other, file);
    let usual = folder();
    made(&golden, usual.path());
    assert_ne!(both(usual.path())[0], other);
}

#[test]
fn a_base_of_frequencies_other_than_gemmas_is_kept() {
    let out = folder();
    let rope = json!({ "rope_type": "default", "rope_theta": 5000.0 });
    made(&changed("gemma", json!({ "rope_parameters": rope })), out.path());
    assert_eq!(key(out.path(), "rope.freq_base"), Some(Value::F32(5000.0)));
}

#[test]
fn a_window_that_llama_cpp_ignores_is_said() {
    for name in ["mistral", "starcoder2", "phi3"] {
        let out = folder();
        let notes = made(&changed(name, json!({ "sliding_window": 16 })), out.path());
        assert!(notes.len() == 1 && notes[0].contains("sliding_window") && notes[0].contains("16 tokens"), "{notes:?}");
        // One that holds all of the context changes nothing.
        let out = folder();
        assert_eq!(made(&changed(name, json!({ "sliding_window": 512 })), out.path()), [""; 0]);
    }
}

#[test]
fn a_size_that_is_missing_is_that_of_transformers_and_is_said() {
    let out = folder();
    let notes = made(&changed("llama", json!({ "max_position_embeddings": null, "rms_norm_eps": null })), out.path());
    let of_both = |note: &String| note.contains("max_position_embeddings 2048") && note.contains("rms_norm_eps 1e-6");
    assert!(notes.len() == 1 && of_both(&notes[0]), "{notes:?}");
    assert_eq!(key(out.path(), "context_length"), Some(Value::U32(2048)));
}

#[test]
fn the_embedding_is_copied_where_llama_cpp_needs_an_output_matrix() {
    for (name, output) in
        [("stablelm", "lm_head.weight"), ("olmo2", "lm_head.weight"), ("gpt_neox", "embed_out.weight")]
    {
        let [tied, copied] = [folder(), folder()];
        let mut golden = changed(name, json!({ "tie_word_embeddings": true }));
        golden.checkpoint.tensors.remove(output).unwrap();
        let notes = made(&golden, tied.path());
        assert!(notes.len() == 1 && notes[0].contains("copy of the embedding"), "{notes:?}");
        let embedding = ["model.embed_tokens.weight", "gpt_neox.embed_in.weight"];
        let embedding: Vec<Weights> =
            embedding.iter().filter_map(|name| golden.checkpoint.tensors.get(*name)).cloned().collect();
        golden.checkpoint.tensors.insert(output.into(), embedding[0].clone());
        golden.checkpoint.config["tie_word_embeddings"] = json!(false);
        assert_eq!(made(&golden, copied.path()), [""; 0]);
        let [one, other] = [&tied, &copied].map(|place| std::fs::read(place.path().join("model.gguf")).unwrap().len());
        assert!(one.abs_diff(other) < 256, "{name}: {one} and {other} bytes");
        assert_eq!(both(tied.path()), both(copied.path()), "{name}");
    }
}

#[test]
fn a_missing_output_matrix_is_refused_with_the_key_that_may_be_wrong() {
    let out = folder();
    let golden = changed("qwen2", json!({ "tie_word_embeddings": false }));
    golden.checkpoint.write(out.path());
    refused(
        out.path(),
        &["--type", "Q8_0", "--method", "rtn"],
        1,
        &["'lm_head.weight'", "\"tie_word_embeddings\": true"],
    );
}

/// Those that embed text are saved without the prefix of the class, and without an output matrix.
#[test]
fn models_without_their_head_are_read() {
    for (name, prefix, output) in [
        ("qwen3", "model.", "lm_head.weight"),
        ("gpt_neox", "gpt_neox.", "embed_out.weight"),
        ("gemma2", "model.", ""),
        ("gpt2", "transformer.", ""),
    ] {
        let out = folder();
        let mut golden = golden::read(name);
        golden.checkpoint.tensors.remove(output);
        let tensors = std::mem::take(&mut golden.checkpoint.tensors);
        let bare =
            |(name, own): (String, Weights)| (name.strip_prefix(prefix).map_or(name.clone(), str::to_owned), own);
        golden.checkpoint.tensors = tensors.into_iter().map(bare).collect();
        let notes = made(&golden, out.path());
        assert_eq!(notes.iter().any(|note| note.contains("no output matrix")), !output.is_empty(), "{name}: {notes:?}");
        let [folder, file] = both(out.path());
        assert_eq!(folder, file, "{name}");
    }
}
