//! `llmq eval --save-logits`: what a model gives, in llama-perplexity's format, in place of the model.

mod common;

use common::{divergence, folder, llmq, names, perplexity, rounded, tiny};
use serde_json::Value;
use std::fs;
use std::path::Path;

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "6"];

/// Saves what the embedded checkpoint gives.
fn save(path: &Path) {
    llmq!["eval", tiny(), "--perplexity", "--save-logits", path; SHORT].ok();
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn saved_logits_take_the_place_of_the_model() {
    let out = folder();
    let saved = out.path().join("base.kld");
    save(&saved);
    for kind in ["Q4_0", "Q2_K"] {
        let file = rounded(out.path(), kind);
        let model = divergence(&file, &tiny(), &[&SHORT[..], &["--perplexity"]].concat());
        let saved = divergence(&file, &saved, &["--perplexity"]);
        for key in ["perplexity", "perplexity_error", "windows", "tokens", "context", "protocol"] {
            assert_eq!(saved[key], model[key], "{key}");
        }
        let near = |key: &str, by: f64| {
            let (saved, model) = (number(&saved[key]), number(&model[key]));
            assert!((saved - model).abs() <= by * model.abs(), "{key}: {saved}, {model}");
        };
        near("reference_perplexity", 1e-5);
        near("kl_divergence", 1e-3);
        near("kl_error", 1e-3);
        near("kl_p99", 1e-3);
        near("same_top", 0.006);
        assert!((number(&saved["ln_ratio"]) - number(&model["ln_ratio"])).abs() < 1e-5);
    }
    let files = ["Q4_0", "Q2_K"].map(|kind| out.path().join(format!("{kind}.gguf")));
    let ranked =
        llmq!["compare", &files[1], &files[0], "--reference", &saved, "--json"].ok().summary()["ranking"].clone();
    assert_eq!(ranked, Value::from(files.map(|file| file.to_str().unwrap().to_owned()).to_vec()));
    // Fewer windows than were saved, but no other ones.
    let fewer = divergence(&tiny(), &saved, &["--chunks", "2", "--perplexity"]);
    assert_eq!(fewer["windows"], 2);
    assert!(number(&fewer["kl"]["max"]) < 1e-6 && fewer["verdict"]["grade"] == "excellent", "{fewer}");
}

#[test]
fn a_file_says_what_the_format_says() {
    let out = folder();
    let [own, of_reference] = ["own", "of-reference"].map(|name| out.path().join(name));
    save(&own);
    let file = rounded(out.path(), "Q4_0");
    llmq!["eval", &file, "--reference", tiny(), "--save-logits", &of_reference; SHORT].ok();
    let bytes = fs::read(&own).unwrap();
    assert_eq!(bytes, fs::read(&of_reference).unwrap(), "of the reference where there is one");

    let i32_at = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let f32_at = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((&bytes[..8], [8, 12, 16].map(i32_at)), (&b"_logits_"[..], [128, 2048, 6]));
    let tokens: Vec<i32> = (0..6 * 128).map(|i| i32_at(20 + 4 * i)).collect();
    let row = 2 * (2048 + 4);
    let rows = 20 + 4 * tokens.len();
    assert_eq!(bytes.len(), rows + 6 * 63 * row);
    // The perplexity that the codes of the right tokens give, by the format's description alone.
    let mut loss = 0.0;
    for i in 0..6 * 63 {
        let target = tokens[i / 63 * 128 + 65 + i % 63] as usize;
        let at = rows + i * row;
        let log_probability = |token: usize| {
            let code = u16::from_le_bytes(bytes[at + 8 + 2 * token..][..2].try_into().unwrap());
            f64::from(f32_at(at)) * f64::from(code) + f64::from(f32_at(at + 4))
        };
        loss -= log_probability(target);
        let total: f64 = (0..2048).map(|token| log_probability(token).exp()).sum();
        assert!((total - 1.0).abs() < 1e-3, "row {i} adds up to {total}");
    }
    let (saved, own) = ((loss / (6.0 * 63.0)).exp(), perplexity(&tiny(), &SHORT));
    assert!((saved / own - 1.0).abs() < 1e-5, "{saved}, {own}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let out = folder();
    let saved = out.path().join("base.kld");
    save(&saved);
    let eval = |options: &[&str]| llmq!["eval", tiny(), "--perplexity", "--reference", &saved; options];
    eval(&["-c", "64"]).failed(2, &["base.kld", "windows of 128 tokens", "hint: leave -c out"]);
    eval(&["-f", "Cargo.toml"]).failed(2, &["its own text", "hint: leave -f out"]);
    eval(&["--protocol", "hf"]).failed(2, &["hint: leave --protocol hf out"]);
    eval(&["--save-logits", "again"]).failed(2, &["saved already"]);

    let other = out.path().join("other");
    llmq!["eval", tiny(), "--perplexity", "--protocol", "hf", "--save-logits", &other]
        .failed(2, &["second half", "hint: "]);
    let again = || llmq!["eval", tiny(), "--perplexity", "--save-logits", &saved; SHORT];
    again().failed(2, &["already exists", "--force"]);

    let bytes = fs::read(&saved).unwrap();
    fs::write(&saved, &bytes[..bytes.len() - 1]).unwrap();
    let told = ["base.kld", "6 windows of 128 tokens", "vocabulary of 2048", "hint: ", "--save-logits"];
    eval(&[]).failed(1, &[&told[..], &[&bytes.len().to_string(), &(bytes.len() - 1).to_string()]].concat());
    let mut hostile = bytes.clone();
    // All codes of the first row to the largest: the probabilities of its tokens add up to far more than one.
    let rows = 20 + 4 * 6 * 128;
    hostile[rows + 8..rows + 8 + 2 * 2048].fill(0xff);
    fs::write(&saved, &hostile).unwrap();
    eval(&[]).failed(1, &["scored token 0", "add up to", "hint: "]);
    let mut odd = bytes.clone();
    odd[12..16].copy_from_slice(&2050i32.to_le_bytes());
    odd.resize(rows + 6 * 63 * 2 * (2050 + 4), 0);
    fs::write(&saved, &odd).unwrap();
    eval(&[]).failed(1, &["2048 tokens", "reference 2050"]);
    assert_eq!(names(out.path()), ["base.kld"], "left behind");
}
