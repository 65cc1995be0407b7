//! Models whose output is not the next token, as GGUFs in llama.cpp. A real one, MiniLM-L6: the tokens of its own tokenizer, the
//! vectors of transformers, and hardly other ones from Q8_0. Decoders that embed, or that score texts.

use crate::ask;
use crate::common::golden::{self, Golden};
use crate::common::{folder, llmq};
use candle_core::Device;
use llmq::eval::generation::Generation;
use llmq::model::frame::Frame;
use llmq::pipeline::loaded_model::LoadedModel;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
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

/// Writes a golden checkpoint as sentence-transformers saves it; `modules`: the kind of each, its folder, and what its `config.json` says.
fn saved(golden: &Golden, modules: &[(&str, &str, Value)], out: &Path) -> PathBuf {
    let model = out.join("model");
    golden.checkpoint.write(&model);
    let entry =
        |kind: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path });
    let mut list = vec![entry("Transformer", "")];
    for (kind, path, config) in modules {
        std::fs::create_dir_all(model.join(path)).unwrap();
        std::fs::write(model.join(path).join("config.json"), config.to_string()).unwrap();
        list.push(entry(kind, path));
    }
    std::fs::write(model.join("modules.json"), Value::from(list).to_string()).unwrap();
    model
}

fn written(model: &Path, out: &Path) -> PathBuf {
    let file = out.join("model.gguf");
    llmq!["quantize", model, "-o", &file, "--type", "F32", "--method", "rtn"].ok();
    file
}

/// The mean of Gemma's last states, and what the layers behind make of it.
#[test]
fn a_decoder_that_sees_both_ways_gives_the_vectors_of_transformers() {
    let (out, golden) = (folder(), golden::read("gemma3-embedding"));
    let means = golden.means.clone().expect("means");
    let pooling = ("Pooling", "1_Pooling", json!({ "pooling_mode_mean_tokens": true }));
    let compare = |modules: &[(&str, &str, Value)], wanted: &dyn Fn(&[f64]) -> Vec<f64>| {
        let model = saved(&golden, modules, out.path());
        for (_, path, config) in modules.iter().filter(|(kind, ..)| *kind == "Dense") {
            let of = |key: &str| config[key].as_u64().unwrap() as usize;
            dense(&model.join(path), of("out_features"), of("in_features"));
        }
        let file = written(&model, out.path());
        let vectors = ask::embedded_tokens(&[file], &golden.windows).remove(0).embeddings;
        for (mean, vector) in means.iter().zip(vectors) {
            let wanted = wanted(mean);
            let length = dot(&wanted, &wanted).sqrt();
            assert_eq!(wanted.len(), vector.len());
            let worst = wanted.iter().zip(&vector).map(|(a, b)| (a / length - b).abs()).fold(0.0, f64::max);
            // llama.cpp has a table of halves for GELU.
            assert!(worst < 2e-3, "{modules:?}: {worst}");
        }
        std::fs::remove_dir_all(&model).unwrap();
        std::fs::remove_file(out.path().join("model.gguf")).unwrap();
    };
    compare(std::slice::from_ref(&pooling), &|mean| mean.to_vec());
    let [up, down] = [(96, 64), (64, 96)]
        .map(|(rows, columns): (usize, usize)| json!({ "in_features": columns, "out_features": rows, "bias": false }));
    compare(&[pooling, ("Dense", "2_Dense", up), ("Dense", "3_Dense", down)], &|mean| {
        product(64, 96, &product(96, 64, mean))
    });
}

/// The numbers of a layer of sentence-transformers.
fn layer(rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) / (columns as f32).sqrt()).collect()
}

fn dense(folder: &Path, rows: usize, columns: usize) {
    let bytes: Vec<u8> = layer(rows, columns).iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![rows, columns], &bytes).unwrap();
    safetensors::serialize_to_file([("linear.weight", view)], None, &folder.join("model.safetensors")).unwrap();
}

fn product(rows: usize, columns: usize, x: &[f64]) -> Vec<f64> {
    let weights: Vec<f64> = layer(rows, columns).into_iter().map(f64::from).collect();
    weights.chunks_exact(columns).map(|row| dot(row, x)).collect()
}

/// A reranker of Qwen 3 scores a text by two logits behind it.
#[test]
fn a_reranker_gives_the_scores_of_its_answers() {
    let texts = ["The ship left at dawn.", "What is a reranker?", "1, 2, 3"];
    for name in ["qwen3", "qwen3-own-output"] {
        let (out, mut golden) = (folder(), golden::read("qwen3"));
        if name == "qwen3" {
            golden.checkpoint.config["tie_word_embeddings"] = true.into();
            golden.checkpoint.tensors.remove("lm_head.weight");
        }
        let answers = ("LogitScore", "1_LogitScore", json!({ "true_token_id": 9, "false_token_id": 7 }));
        let model = saved(&golden, &[answers], out.path());
        let scores = ask::ranked(&written(&model, out.path()), &texts);
        let loaded = LoadedModel::open(&model, None).unwrap();
        let frame = Frame::new(&loaded.model, loaded.pairing(), 64, &Device::Cpu).unwrap();
        for (text, score) in texts.iter().zip(scores) {
            let mut generation = Generation::new(&loaded, &frame).unwrap();
            let ids = [vec![loaded.tokenizer.bos().unwrap()], loaded.tokenizer.encode_plain(text).unwrap()].concat();
            let logits = generation.read(&ids).unwrap();
            let wanted = 1.0 / (1.0 + f64::from(logits[7] - logits[9]).exp());
            // Keys and values are in half precision there.
            assert!((wanted - score).abs() < 2e-3, "{name}, {text}: {wanted} here, {score} in llama.cpp");
        }
    }
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
