//! `llmq compare`: several files, one reference pass.

mod common;

use common::checkpoint::Shape;
use common::{divergence, folder, llmq, rounded, tiny};
use serde_json::Value;
use std::path::PathBuf;

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "8"];

#[test]
fn files_are_ranked_and_each_has_the_numbers_of_a_run_of_its_own() {
    let out = folder();
    let files = ["Q2_K", "Q6_K", "Q4_0"].map(|kind| rounded(out.path(), kind));
    let run = llmq!["compare", &files[0], &files[1], &files[2], "--reference", tiny(), "--json"; SHORT].ok();
    let rows = run.lines("file");
    let named = |file: &PathBuf| Value::from(file.to_str().unwrap());
    let order = [1, 2, 0].map(|at| named(&files[at]));
    assert_eq!(rows.iter().map(|row| row["model"].clone()).collect::<Vec<_>>(), order);
    assert_eq!(run.summary()["ranking"], Value::from(order.to_vec()));
    for row in &rows {
        let path = PathBuf::from(row["model"].as_str().unwrap());
        let alone = divergence(&path, &tiny(), &[&SHORT[..], &["--perplexity"]].concat());
        for key in ["perplexity", "perplexity_error", "kl_divergence", "kl_error", "kl_p99", "same_top", "bytes"] {
            assert_eq!(row[key], alone[key], "{key}");
        }
        assert_eq!(row["relative_increase"], alone["verdict"]["relative_increase"]);
        assert_eq!(row["bytes"], path.metadata().unwrap().len());
        assert_eq!(run.summary()["reference_perplexity"], alone["reference_perplexity"]);
    }
    let pairs = run.lines("pair");
    assert_eq!(pairs.len(), 3);
    for pair in &pairs {
        let at =
            |key: &str| rows.iter().find(|row| row["model"] == pair[key]).unwrap()["kl_divergence"].as_f64().unwrap();
        assert!((pair["kl_difference"].as_f64().unwrap() - (at("worse") - at("better"))).abs() < 1e-12, "{pair}");
    }
    let clear = pairs.iter().find(|pair| pair["worse"] == order[2] && pair["better"] == order[0]).unwrap();
    assert!(clear["beyond_noise"] == true && clear["p"].as_f64().unwrap() < 0.01, "{clear}");
}

#[test]
fn a_table_is_shown_and_copies_cannot_be_told_apart() {
    let out = folder();
    let [fine, coarse] = ["Q8_0", "Q2_K"].map(|kind| rounded(out.path(), kind));
    let copy = out.path().join("copy.gguf");
    std::fs::copy(&fine, &copy).unwrap();
    let shown = llmq!["compare", &coarse, &fine, &copy, "--reference", tiny(); SHORT].ok().stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("file ") && lines[1].starts_with("original "), "{shown}");
    for (line, file) in lines[2..5].iter().zip([&fine, &copy, &coarse]) {
        assert!(line.starts_with(file.to_str().unwrap()), "{shown}");
        assert!(line.contains(&file.metadata().unwrap().len().to_string()), "{shown}");
    }
    let (fine, copy, coarse) = (fine.display(), copy.display(), coarse.display());
    assert!(shown.contains(&format!("{fine} and {copy} cannot be told apart")), "{shown}");
    assert!(shown.contains(&format!("{copy} is better than {coarse}: its KL divergence is lower by ")), "{shown}");
    assert!(shown.contains(&format!("nearest to the original: {fine}; smallest: {coarse}")), "{shown}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let out = folder();
    let other = out.path().join("larger");
    Shape { vocab: 2080, ..Shape::default() }.write(&other);
    let told = ["larger", "2080 tokens", "reference 2048", "hint: "];
    llmq!["compare", tiny(), &other, "--reference", tiny(); SHORT].failed(1, &told);
    llmq!["compare", tiny(), "--reference", tiny()].failed(2, &["nothing to compare", "hint: ", "llmq eval"]);
}
