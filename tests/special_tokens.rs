//! The text of special tokens in a text that is measured: plain text under llama.cpp's protocol, those tokens under the other one.

mod common;

use common::{folder, llmq, tiny};
use llmq::eval::perplexity::{Protocol, cut};
use llmq::pipeline::loaded_model::LoadedModel;
use llmq::source::imatrix::Imatrix;
use serde_json::json;
use std::fs;
use std::path::Path;

const END: &str = "<|end_of_text|>";

fn text() -> String {
    let words = "The old miller went down to the river. He counted the sacks twice, as always";
    (0..20).map(|i| format!("{words}, {i} of them.{END}")).collect()
}

#[test]
fn the_protocol_decides_from_a_folder_and_from_a_gguf() {
    let out = folder();
    let file = out.path().join("f32.gguf");
    llmq!["quantize", tiny(), "-o", &file, "--type", "F32"].ok();
    for model in [tiny(), file] {
        let loaded = LoadedModel::open(&model, None).unwrap();
        let end = loaded.tokenizer.encode(END).unwrap();
        assert_eq!(end.len(), 1, "one special token");
        let of = |protocol| cut(&loaded, &text(), protocol, 64, None).unwrap().concat();
        let count = |tokens: &[u32]| tokens.iter().filter(|&&token| token == end[0]).count();
        let (plain, special) = (of(Protocol::LlamaCpp), of(Protocol::Hf));
        assert_eq!(count(&plain), 0);
        assert!(count(&special) > 10, "{special:?}");
        // It is the same text all the same.
        let said = |tokens: &[u32]| -> String {
            let all = tokens.iter().filter(|&&token| Some(token) != loaded.tokenizer.bos());
            all.map(|&token| loaded.tokenizer.token(token).unwrap().replace('Ġ', " ")).collect()
        };
        let (plain, special) = (said(&plain), said(&special));
        let shared = plain.len().min(special.len());
        assert!(shared > 1000 && text().contains(&special[..200]) && plain[..shared - 20].contains(&special[..200]));
    }
}

/// Importance matrices are measured on conversations, too, which are full of special tokens.
#[test]
fn calibration_reads_special_tokens() {
    let out = folder();
    let measured = |name: &str, end: &str| {
        let [lines, file] = [format!("{name}.jsonl"), format!("{name}.gguf")].map(|name| out.path().join(name));
        fs::write(&lines, json!({ "text": text().replace(END, end) }).to_string()).unwrap();
        llmq!["imatrix", tiny(), "-f", &lines, "-c", "32", "-o", &file].ok();
        Imatrix::read(&file).unwrap().chunks
    };
    // A special token is one, its text is several.
    assert!(measured("special", END) < measured("plain", "<|end_of_texts|>"));
}

#[test]
fn the_help_says_so() {
    let help = llmq!["eval", Path::new("--help")].ok().stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("the text of special tokens read as plain text, as llama-perplexity does"), "{help}");
}
