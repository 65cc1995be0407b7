//! What a checkpoint's own tensors decide, whatever its configuration says, and what is said of those that nobody needs.

mod common;

use common::checkpoint::{Checkpoint, Weights};
use common::golden::{self, Golden};
use common::{folder, llmq, perplexity, refused};
use llmq::format;
use llmq::pipeline::weights::open_gguf;
use serde_json::json;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";
const F32: [&str; 5] = ["--type", "F32", "--method", "rtn", "--json"];

/// Writes a checkpoint and its file in single precision, in a folder of their own, and returns the notes.
fn made(checkpoint: &Checkpoint, place: &Path) -> Vec<String> {
    checkpoint.write(&place.join("model"));
    let run = llmq!["quantize", place.join("model"), "-o", place.join("model.gguf"); F32].ok();
    let notes = run.summary()["notes"].as_array().unwrap().clone();
    notes.into_iter().map(|note| note.as_str().unwrap().to_owned()).collect()
}

/// The numbers of a tensor of the file, if it is there.
fn stored(place: &Path, name: &str) -> Option<Vec<f32>> {
    let file = open_gguf(&place.join("model.gguf")).unwrap();
    let info = file.tensor(name)?;
    Some(format::by_id(info.type_id).unwrap().decode_all(file.data(info)))
}

/// Both folders, and the files made of them, are the same model.
fn same(one: &Path, other: &Path) -> bool {
    let few = ["--chunks", "2", "-c", "64"];
    let all = [one, other].map(|place| ["model", "model.gguf"].map(|name| perplexity(&place.join(name), &few)));
    all.as_flattened().iter().all(|own| *own == all[0][0])
}

/// A tied model whose embedding is stored under the output matrix's name, too, or alone.
fn tied() -> Golden {
    let golden = golden::read("qwen2");
    assert_eq!(golden.checkpoint.config["tie_word_embeddings"], true);
    assert!(!golden.checkpoint.tensors.contains_key(OUTPUT));
    golden
}

#[test]
fn a_trained_output_matrix_counts_though_the_configuration_ties_it() {
    let [plain, trained] = [folder(), folder()];
    let Golden { mut checkpoint, .. } = tied();
    assert_eq!(made(&checkpoint, plain.path()), [""; 0]);
    let mut output = checkpoint.tensors[EMBEDDING].clone();
    // In the last rows alone, which are read last, too.
    let n = output.numbers.len();
    output.numbers[n - 64..].reverse();
    checkpoint.tensors.insert(OUTPUT.into(), output.clone());
    let notes = made(&checkpoint, trained.path());
    let of_output =
        |note: &String| note.contains("'lm_head.weight' is stored and differs") && note.contains("output.weight");
    assert!(notes.len() == 1 && of_output(&notes[0]), "{notes:?}");
    assert_eq!(stored(trained.path(), "output.weight"), Some(output.numbers));
    assert!(!same(plain.path(), trained.path()));
    // transformers reads it the same way: the folder and the file are one model.
    let few = ["--chunks", "2", "-c", "64"];
    let [folder, file] = ["model", "model.gguf"].map(|name| perplexity(&trained.path().join(name), &few));
    assert_eq!(folder, file);
}

#[test]
fn a_copy_of_the_embedding_is_no_output_matrix() {
    let [plain, copied] = [folder(), folder()];
    let Golden { mut checkpoint, .. } = tied();
    made(&checkpoint, plain.path());
    let copy = checkpoint.tensors[EMBEDDING].clone();
    checkpoint.tensors.insert(OUTPUT.into(), copy);
    assert_eq!(made(&checkpoint, copied.path()), [""; 0]);
    assert_eq!(stored(copied.path(), "output.weight"), None);
    assert!(same(plain.path(), copied.path()));
}

#[test]
fn an_embedding_may_be_stored_under_the_name_of_the_output_matrix() {
    let [plain, moved] = [folder(), folder()];
    let Golden { mut checkpoint, .. } = tied();
    made(&checkpoint, plain.path());
    let embedding = checkpoint.tensors.remove(EMBEDDING).unwrap();
    checkpoint.tensors.insert(OUTPUT.into(), embedding.clone());
    let notes = made(&checkpoint, moved.path());
    assert!(notes.len() == 1 && notes[0].contains("tied embedding under the output matrix's name"), "{notes:?}");
    assert_eq!(stored(moved.path(), "token_embd.weight"), Some(embedding.numbers));
    assert_eq!(stored(moved.path(), "output.weight"), None);
    assert!(same(plain.path(), moved.path()));
}

/// The same inside a model that sees, whose output matrix has another prefix than the rest.
#[test]
fn a_trained_output_matrix_is_found_outside_the_text() {
    let out = folder();
    let Golden { mut checkpoint, .. } = golden::read("qwen3_5-seeing");
    assert_eq!(checkpoint.config["tie_word_embeddings"], true);
    let mut output = checkpoint.tensors["model.language_model.embed_tokens.weight"].clone();
    output.numbers.reverse();
    checkpoint.tensors.insert(OUTPUT.into(), output.clone());
    let notes = made(&checkpoint, out.path());
    assert!(notes.len() == 1 && notes[0].contains("'lm_head.weight' is stored and differs"), "{notes:?}");
    assert_eq!(stored(out.path(), "output.weight"), Some(output.numbers));
}

#[test]
fn what_is_left_out_is_said() {
    let out = folder();
    let Golden { mut checkpoint, .. } = golden::read("mistral3");
    let mut add =
        |name: &str| checkpoint.tensors.insert(name.into(), Weights { shape: vec![2], numbers: vec![1.0, 2.0] });
    for name in ["vision_tower.ln_pre.weight", "vision_tower.patch_conv.weight", "multi_modal_projector.norm.weight"] {
        add(name);
    }
    // Buffers of old checkpoints are nobody's loss.
    add("language_model.model.layers.0.self_attn.rotary_emb.inv_freq");
    let notes = made(&checkpoint, out.path());
    assert!(notes.len() == 1 && notes[0].starts_with("3 tensors of vision and audio are left out"), "{notes:?}");
    assert!(notes[0].contains("mmproj"), "{notes:?}");

    let out = folder();
    let Golden { mut checkpoint, .. } = tied();
    for name in ["a.weight", "b.weight", "c.weight", "d.weight", "mtp.fc.weight"] {
        checkpoint.tensors.insert(name.into(), Weights { shape: vec![2], numbers: vec![1.0, 2.0] });
    }
    let notes = made(&checkpoint, out.path());
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("1 tensors of multi-token prediction are left out"), "{notes:?}");
    let unknown = "4 tensors have no place in this architecture and are left out: a.weight, b.weight, c.weight, …";
    assert_eq!(notes[1], unknown);
}

/// llama.cpp's loader asks for keys and values of blocks that use those of others: what a checkpoint has is kept, and else there are zeros.
#[test]
fn keys_and_values_that_nothing_reads_are_kept() {
    let out = folder();
    let Golden { mut checkpoint, .. } = golden::read("gemma3n-shared");
    let own = checkpoint.tensors["model.layers.18.self_attn.k_proj.weight"].clone();
    checkpoint.tensors.insert("model.layers.20.self_attn.k_proj.weight".into(), own.clone());
    assert_eq!(made(&checkpoint, out.path()), Vec::<String>::new());
    assert_eq!(stored(out.path(), "blk.20.attn_v.weight"), Some(vec![0.0; own.numbers.len()]));
    assert_eq!(stored(out.path(), "blk.20.attn_k.weight"), Some(own.numbers));
}

#[test]
fn what_llama_cpp_cannot_load_is_refused_with_that_reason() {
    for (kind, reason) in [
        ("lfm3", "llama.cpp cannot load models of this type yet"),
        ("olmo_hybrid", "llama.cpp cannot load models of this type yet"),
        ("phimoe", "llama.cpp computes something else with models of this type"),
        ("bert", "encoders are for llmq int8"),
        ("no_such_type", "the supported ones are: llama, "),
    ] {
        let out = folder();
        let Golden { mut checkpoint, .. } = tied();
        checkpoint.config["model_type"] = kind.into();
        let model = out.path().join("model");
        checkpoint.write(&model);
        let wanted = [&format!("model_type '{kind}' is not supported")[..], reason];
        refused(&model, &["--type", "Q8_0", "--method", "rtn"], 1, &wanted);
    }
    // Of these it computes what they say of one gate, which the type alone does not tell.
    for (gate, reason) in [
        (
            json!("sigmoid"),
            "hyper-connections, attention to chosen blocks and a table of n-grams are not supported here",
        ),
        (json!("silu"), "the output gate of its gated delta nets is a sigmoid, and output_gate_type, or hidden_act"),
        (json!(null), "where there is none, says silu"),
    ] {
        let out = folder();
        let Golden { mut checkpoint, .. } = tied();
        checkpoint.config["model_type"] = "qwen4_exp_text".into();
        checkpoint.config["output_gate_type"] = gate;
        let model = out.path().join("model");
        checkpoint.write(&model);
        let wanted = ["model_type 'qwen4_exp_text' is not supported", reason];
        refused(&model, &["--type", "Q8_0", "--method", "rtn"], 1, &wanted);
    }
    // What llama.cpp stops at when it runs a file is refused before there is one.
    for (name, key, value) in [
        ("gemma4_e2b", "num_kv_shared_layers", serde_json::json!(3)),
        // What it has fixed numbers for.
        ("gemma3n", "num_kv_shared_layers", serde_json::json!(2)),
        ("gemma3n", "laurel_rank", serde_json::json!(32)),
        ("gemma3n", "altup_num_inputs", serde_json::json!(2)),
        ("gemma3n", "hidden_size_per_layer_input", serde_json::json!(128)),
        ("gemma3n", "activation_sparsity_pattern", serde_json::json!([0.95, 0.95, 0.9, 0.95])),
        ("gemma3n", "final_logit_softcapping", serde_json::json!(null)),
        ("gemma3n", "intermediate_size", serde_json::json!([1024, 1024, 1024, 512])),
    ] {
        let out = folder();
        let Golden { mut checkpoint, .. } = golden::read(name);
        checkpoint.config[key] = value;
        checkpoint.write(&out.path().join("model"));
        let wanted = [key, "llama.cpp has no such variation"];
        refused(&out.path().join("model"), &["--type", "Q8_0", "--method", "rtn"], 1, &wanted);
    }
}
