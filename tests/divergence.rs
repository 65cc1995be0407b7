//! `llmq eval --reference`: how far a file's predictions are from those of the model that it was made from.

mod common;

use common::checkpoint::Shape;
use common::{divergence, folder, llmq, perplexity, rounded, tiny};
use serde_json::Value;
use std::fs;

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "6"];
const HINT: &str = "hint: ";

#[test]
fn a_model_is_at_no_distance_from_itself() {
    let out = folder();
    // The rows of queries and keys lie in another order in a GGUF, and the tokens come from elsewhere.
    let file = rounded(out.path(), "F32");
    for (file, reference) in [(&tiny(), &tiny()), (&file, &file), (&file, &tiny())] {
        let summary = divergence(file, reference, &SHORT);
        for key in ["kl_divergence", "kl_error", "kl_p99"] {
            assert!(summary[key].as_f64().unwrap() < 1e-7, "{key}: {summary}");
        }
        assert!(file != reference || summary["kl_p99"] == 0.0, "{summary}");
        assert_eq!(summary["same_top"], 1.0);
        assert_eq!((&summary["windows"], &summary["tokens"]), (&6.into(), &(6 * 63).into()));
        assert_eq!(summary["perplexity"], Value::Null, "nobody asked for it");
    }
}

#[test]
fn fewer_bits_are_farther_away() {
    let out = folder();
    let [coarse, fine] = ["Q2_K", "Q6_K"].map(|kind| divergence(&rounded(out.path(), kind), &tiny(), &SHORT));
    for key in ["kl_divergence", "kl_error", "kl_p99"] {
        let [coarse, fine] = [&coarse, &fine].map(|summary| summary[key].as_f64().unwrap());
        assert!(fine > 0.0 && coarse > 5.0 * fine, "{key}: {coarse}, {fine}");
    }
    let [coarse, fine] = [coarse, fine].map(|summary| summary["same_top"].as_f64().unwrap());
    assert!(coarse < fine && fine < 1.0 && coarse > 0.5, "{coarse}, {fine}");
}

#[test]
fn perplexity_of_the_same_run_is_that_of_its_own() {
    let out = folder();
    let file = rounded(out.path(), "Q4_0");
    let options = [&SHORT[..], &["--perplexity"]].concat();
    let summary = divergence(&file, &tiny(), &options);
    assert_eq!(summary["perplexity"], perplexity(&file, &SHORT));
    assert_eq!(summary["reference"], tiny().to_str().unwrap());

    let shown = llmq!["eval", &file, "--reference", tiny(); &options].ok().stdout;
    for (start, key) in [("perplexity      ", "perplexity"), ("KL divergence   ", "kl_divergence")] {
        let line = shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{shown}"));
        let digits = if key == "perplexity" { 4 } else { 6 };
        assert!(line.starts_with(&format!("{start}{:.digits$} ± ", summary[key].as_f64().unwrap())), "{line}");
    }
    assert!(shown.contains("same top token  "), "{shown}");
}

#[test]
fn the_numbers_are_the_same_at_any_thread_count_and_under_both_protocols() {
    let out = folder();
    let file = rounded(out.path(), "Q4_0");
    for protocol in ["llama.cpp", "hf"] {
        let numbers = |threads| {
            let options = [&SHORT[..], &["--protocol", protocol, "--threads", threads]].concat();
            let summary = divergence(&file, &tiny(), &options);
            ["kl", "delta_p", "same_top", "positions"].map(|key| summary[key].clone())
        };
        assert_eq!(numbers("1"), numbers("2"), "{protocol}");
    }
}

#[test]
fn another_vocabulary_is_refused() {
    let out = folder();
    let [larger, other] = ["larger", "other"].map(|name| out.path().join(name));
    Shape { vocab: 2080, ..Shape::default() }.write(&larger);
    let told = ["2048 tokens", "reference 2080", "larger", HINT];
    llmq!["eval", tiny(), "--reference", &larger; SHORT].failed(1, &told);

    Shape::default().write(&other);
    let path = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for (token, id) in [("b", "a"), ("a", "b")].map(|(token, of)| (token, vocabulary[of].clone())) {
        vocabulary.insert(token.into(), id);
    }
    let first = vocabulary["a"].as_u64().unwrap().min(vocabulary["b"].as_u64().unwrap());
    fs::write(&path, tokenizer.to_string()).unwrap();
    let told = format!("token {first} of 2048 is \"a\", but \"b\" in the reference");
    llmq!["eval", tiny(), "--reference", &other; SHORT].failed(1, &[&told, HINT]);
}

#[test]
fn a_reference_that_is_unsuitable_is_named() {
    let out = folder();
    let [nowhere, broken] = ["nowhere", "broken"].map(|name| out.path().join(name));
    llmq!["eval", tiny(), "--reference", &nowhere; SHORT].failed(1, &[nowhere.to_str().unwrap(), "No such file"]);
    let mut checkpoint = Shape { vocab: 2048, ..Shape::default() }.checkpoint();
    checkpoint.numbers("model.layers.1.post_attention_layernorm.weight").fill(1e30);
    checkpoint.write(&broken);
    let told = ["broken", "running the reference", "likelihood of scored token 0", HINT];
    llmq!["eval", tiny(), "--reference", &broken; SHORT].failed(1, &told);
}
