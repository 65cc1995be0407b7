//! A real embedding model, MiniLM-L6, as a GGUF in llama.cpp: the tokens of its own tokenizer, the vectors of transformers, and
//! hardly other ones from Q8_0.

use crate::ask;
use crate::common::{folder, llmq};
use std::path::PathBuf;
use tokenizers::Tokenizer;

const TEXT: &str = include_str!("../../eval/heldout.txt");

/// Texts, and the first numbers of what transformers 5.23 makes of them: the mean over all tokens, scaled to length one.
const KNOWN: [(&str, [f64; 6]); 4] = [
    ("A ship left the harbour at dawn.", [0.031851, 0.12551, 0.026173, 0.117008, 0.08875, 0.028744]),
    ("Ein Äpfel-Kuchen, bitte!", [-0.037164, 0.099349, 0.03601, -0.000177, -0.086296, 0.056422]),
    (
        "The cost of moving house: 1,250.50 dollars (roughly).",
        [0.085087, -0.055634, 0.026215, 0.034041, 0.019196, -0.05402],
    ),
    ("北京 is large.", [0.165071, 0.060718, 0.020902, -0.03605, -0.027638, 0.003276]),
];

#[test]
fn an_embedding_model_gives_the_vectors_of_transformers() {
    let model = ask::minilm();
    let out = folder();
    let file = |kind: &str| {
        let file = out.path().join(format!("{kind}.gguf"));
        llmq!["int8", &model, "--gguf", "--type", kind, "-o", &file].ok();
        file
    };
    let files: Vec<PathBuf> = ["F32", "Q8_0"].into_iter().map(file).collect();
    let sizes: Vec<u64> = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).collect();
    assert!(sizes[1] * 10 < sizes[0] * 3, "{sizes:?}");

    let mut texts: Vec<String> = KNOWN.iter().map(|(text, _)| text.to_string()).collect();
    texts.extend(sentences());
    let [single, eight]: [ask::Embedded; 2] =
        ask::embedded(&files, &texts).try_into().ok().expect("an answer for each file");

    let mut tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).unwrap();
    tokenizer.with_padding(None).with_truncation(None).unwrap();
    for ((text, theirs), again) in texts.iter().zip(&single.tokens).zip(&eight.tokens) {
        let original = tokenizer.encode_fast(text.as_str(), false).unwrap();
        assert_eq!((theirs.as_slice(), again.as_slice()), (original.get_ids(), original.get_ids()), "{text}");
    }
    for ((text, known), vector) in KNOWN.iter().zip(&single.embeddings) {
        for (known, found) in known.iter().zip(vector) {
            // llama.cpp looks GELU up in a table of halves.
            assert!((known - found).abs() < 2e-3, "{text}: {known} {found}");
        }
    }
    let cosines: Vec<f64> = single.embeddings.iter().zip(&eight.embeddings).map(|(a, b)| dot(a, b)).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let lowest = cosines.iter().copied().fold(1.0, f64::min);
    println!("cosine {mean:.6} on average over {} sentences, the lowest {lowest:.6}", cosines.len());
    assert!(mean >= 0.999 && lowest >= 0.99, "{mean} {lowest}");
}

/// 200 different sentences of a text that no test tunes anything on.
fn sentences() -> Vec<String> {
    let text = TEXT.replace('\n', " ");
    let mut sentences: Vec<String> = Vec::new();
    for sentence in text.split_inclusive(['.', '!', '?']).map(str::trim) {
        if (20..400).contains(&sentence.len()) && !sentences.iter().any(|other| other == sentence) {
            sentences.push(sentence.to_owned());
        }
    }
    sentences.truncate(200);
    assert_eq!(sentences.len(), 200);
    sentences
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
