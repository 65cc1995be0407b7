//! llama.cpp cuts text into the tokens of the checkpoint's own tokenizer, and so does the one llmq rebuilds from a GGUF.

use crate::ask;
use crate::common::checkpoint::Shape;
use crate::common::{divergence, folder};
use crate::quantize;
use llmq::pipeline::loaded_model::LoadedModel;
use llmq::pipeline::weights::open_gguf;
use llmq::source::pre_tokenizer::{self, PreTokenizer};
use llmq::source::tokenizer::Tokenizer;
use llmq::source::value::Metadata;
use llmq::source::vocabulary::Vocabulary;
use llmq::writer::gguf::GgufWriter;
use regex::Regex;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer};

/// Text no tokenizer may trip over.
const TEXTS: [&str; 29] = [
    "",
    " ",
    "a",
    "\n",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'll say we've HE'D; it'S what they don't, y'all 'tis",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2nd",
    "\u{661}\u{662}\u{663} \u{bd} \u{2163} x\u{b2}",
    "naïve café Äpfel Ünïcödé Łódź straße",
    "cafe\u{301} a\u{30a} n\u{303}o",
    "Съешь ещё этих мягких французских булок",
    "我想在apple工作1314151天～，你呢？",
    "こんにちは世界、カタカナ。안녕하세요",
    "مرحبا بالعالم، كيف حالك؟ שלום",
    "हिन्दी में लिखा กำลังเรียน",
    "🚀 😶\u{200d}🌫\u{fe0f} 👩\u{200d}👩\u{200d}👧 ✅🦙🦙 🇩🇪",
    "spaces   in     runs        and at the end    ",
    "a\r\n\r\nb\r\n c\rd",
    "\t\ttabs\tand \t mixed\n\n\n  \n",
    "\u{a0}\u{2003}\u{3000}wide spaces\u{2028}lines\u{85}",
    "fn main() { println!(\"{}\", x[i] + 1); } // 100%\n",
    "def f(x):\n    if x:\n        return {'a': x**2}\n\n",
    "https://example.org/a_b-c?d=e&f=%20#g me@example.org",
    "------======= ''''''``````\"\"\"\"......!!!!!!??????",
    "<|begin_of_text|>Hello<|end_of_text|> <|end_of_text <|unknown|>",
    "<|begin_of_text|><|begin_of_text|>",
    "\u{0}\u{1}\u{7f}\u{feff}\u{fffd}",
    "[PAD5]",
];

/// Where llama.cpp cuts otherwise than the originals, by the text that shows it: these tokens in this text, and in no
/// other, may differ. A file cannot change that, but a release that does should be noticed.
const OWN_WAYS: [(&str, &str); 9] = [
    // Its regexes have no \p{M}: what follows a letter is no part of its word.
    ("gpt-4o", r"\p{M}"),
    ("tekken", r"\p{M}"),
    ("kimi-k2", r"\p{M}"),
    // It leaves the first digits of a number together with what stands before them.
    ("afmoe", r"\s\p{N}"),
    ("tiny_aya", r"\s\p{N}"),
    // A real U+2581 is no space to it when it looks for tokens that are runs of spaces.
    ("spm_gemma", r"\x{2581}"),
    // It puts the space in front of what follows a special token too, and of text that has one.
    ("json_metaspace", r"^[ \x{2581}]|<\||<s>|</s>|<unk>|<tool>|\[CALL\]"),
    // It takes only spaces off the end of a text, or of what stands in front of a special token.
    ("json_unigram", r"\x{85}\s*($|<\||<tool>|\[CALL\])"),
    // It joins pairs where the original looks for the likeliest tokens of a whole text.
    ("spm_unigram", r"(?s)."),
];

#[test]
fn text_becomes_the_tokens_of_the_checkpoint() {
    let checkpoint = folder();
    Shape::default().write(checkpoint.path());
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(checkpoint.path().join("chat_template.jinja"), template).unwrap();
    let (_folder, file) = quantize(checkpoint.path(), "F16", "rtn");
    let long = TEXTS.concat().repeat(20) + &"x".repeat(1000) + &" ".repeat(1000);
    let texts: Vec<&str> = TEXTS.into_iter().chain([long.as_str()]).collect();
    let llama = ask::llama(&file, &texts, &[]);
    assert_eq!((llama.bos, llama.eos, llama.add_bos), (Some(2046), Some(2047), true));
    assert_eq!(llama.chat_template.as_deref(), Some(template));
    assert_eq!(llama.metadata["architecture"], "llama");
    assert_eq!(llama.tokens_special.len(), texts.len());

    let vocabulary = Vocabulary::from_metadata(&open_gguf(&file).unwrap().metadata).unwrap();
    assert_eq!(vocabulary.pre, "llama-bpe");
    let rebuilt = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let original = tokenizers::Tokenizer::from_file(checkpoint.path().join("tokenizer.json")).unwrap();
    for (text, theirs) in texts.iter().zip(&llama.tokens_special) {
        assert_eq!(original.encode(*text, false).unwrap().get_ids(), theirs, "llama.cpp, {text:?}");
        assert_eq!(rebuilt.encode(text).unwrap(), *theirs, "rebuilt, {text:?}");
    }
}

/// 500 strings, a tokenizer for every way of cutting text, and every kind of SentencePiece.
#[test]
fn every_kind_of_tokenizer_gives_the_tokens_of_the_original() {
    let folder = folder();
    for pre in byte_level() {
        let path = folder.path().join(pre.names[0]);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("tokenizer.json"), untrained(pre).to_string()).unwrap();
    }
    let originals = ask::originals(folder.path());
    assert_eq!(originals.texts.len(), 500);
    assert_eq!(originals.tokens.len(), byte_level().count() + 11);

    let young = |name: &String| rows().find(|pre| pre.young && pre.names[0] == name).map(|pre| pre.names[0]);
    let files = originals.sizes.iter();
    let kinds = files.map(|(name, size)| vocabulary_file(&folder.path().join(name), size + 3, young(name)));
    let (files, vocabularies): (Vec<_>, Vec<_>) = kinds.unzip();
    let llama = ask::tokenized(&files, &originals.texts);
    assert_eq!(llama.len(), files.len());
    for (((name, expected), vocabulary), llama) in originals.tokens.iter().zip(&vocabularies).zip(&llama) {
        // For json_unigram, where the end of a line is a space; what is logged can arrive with the next file's answer.
        let odd = |warning: &&String| !warning.contains("model vocab missing newline token");
        let warnings: Vec<&String> = llama.warnings.iter().filter(odd).collect();
        assert!(warnings.is_empty(), "llama.cpp warns of {name}: {warnings:?}");
        let is_byte_level = byte_level().find(|pre| pre.names[0] == name);
        let raw = if name == "sarvam-moe" { Some("sarvam-moe") } else { (name == "gemma4").then_some("") };
        assert_eq!(vocabulary.pre, raw.or(is_byte_level.map(|pre| pre.names[0])).unwrap_or("default"));
        let own_way = OWN_WAYS.iter().find(|(other, _)| other == name).map(|(_, text)| *text);
        let own_way = own_way.map(|text| Regex::new(text).unwrap());
        let normalizes = is_byte_level.is_some_and(|pre| pre.nfc);
        let may_differ = |text: &str| {
            own_way.as_ref().is_some_and(|own_way| own_way.is_match(text)) || (normalizes && !is_composed(text))
        };
        let ours = Tokenizer::from_vocabulary(vocabulary).unwrap();
        let mut differs = false;
        for ((text, expected), theirs) in originals.texts.iter().zip(expected).zip(&llama.tokens_special) {
            let ours = ours.encode(text).unwrap();
            // llmq follows the original where it can: where only a regex or a normal form stands in the way.
            let followed = if is_byte_level.is_some() { expected } else { theirs };
            assert_eq!(ours, *followed, "{name}: llmq, {text:?}");
            if may_differ(text) {
                differs |= expected != theirs;
            } else {
                assert_eq!(theirs, expected, "{name}: llama.cpp, {text:?}");
            }
        }
        assert_eq!(differs, own_way.is_some() || normalizes, "{name}: llama.cpp has no longer its own way");
    }
}

/// A checkpoint whose tokenizer is a lone tokenizer.model, with fewer tokens than the embedding has rows.
#[test]
fn a_tokenizer_model_goes_all_the_way() {
    let trained = folder();
    let originals = ask::originals(trained.path());
    let checkpoint = folder();
    Shape::default().write(checkpoint.path());
    std::fs::remove_file(checkpoint.path().join("tokenizer.json")).unwrap();
    for name in ["tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(trained.path().join("spm_bpe").join(name), checkpoint.path().join(name)).unwrap();
    }
    let (_folder, file) = quantize(checkpoint.path(), "F32", "rtn");
    let texts: Vec<&str> = originals.texts.iter().map(String::as_str).collect();
    let llama = ask::llama(&file, &texts, &[]);
    assert_eq!(llama.tokens_special, originals.tokens["spm_bpe"]);
    assert_eq!((llama.bos, llama.eos, llama.add_bos), (Some(1), Some(2), true));
    for model in [checkpoint.path(), &file] {
        let tokenizer = LoadedModel::open(model, None).unwrap().tokenizer;
        assert_eq!(tokenizer.bos(), Some(1));
        for (text, expected) in texts.iter().zip(&originals.tokens["spm_bpe"]) {
            assert_eq!(tokenizer.encode(text).unwrap(), *expected, "{}: {text:?}", model.display());
        }
    }
    let same = divergence(&file, checkpoint.path(), &["-c", "128", "--chunks", "2"]);
    assert!(same["kl_divergence"].as_f64().unwrap() < 1e-6, "{same}");
}

/// One of each way of cutting text.
fn rows() -> impl Iterator<Item = &'static PreTokenizer> {
    let rows = pre_tokenizer::names().filter_map(|name| Some((name, pre_tokenizer::by_name(name)?)));
    rows.filter(|(name, pre)| pre.names[0] == *name).map(|(_, pre)| pre)
}

/// Those for merges of bytes.
fn byte_level() -> impl Iterator<Item = &'static PreTokenizer> {
    rows().filter(|pre| !pre.is_raw())
}

/// Whether text is in normal form C, into which llama.cpp never brings it.
fn is_composed(text: &str) -> bool {
    let mut normalized = NormalizedString::from(text);
    NFC.normalize(&mut normalized).unwrap();
    normalized.get() == text
}

/// A `tokenizer.json` that cuts text in a given way and has no tokens yet.
fn untrained(pre: &PreTokenizer) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": pre.nfc.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": pre.build().unwrap(),
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": {},
            "merges": [],
        },
    })
}

/// A file that holds the vocabulary of a folder and nothing else, and the vocabulary as it is read back.
fn vocabulary_file(folder: &Path, rows: usize, pre: Option<&str>) -> (PathBuf, Vocabulary) {
    // For the architecture alone the kind is Gemma 4's own.
    let gemma4 = folder.file_name().is_some_and(|name| name == "gemma4");
    let (config, pre) = if gemma4 { (json!({ "model_type": "gemma4" }), None) } else { (json!({}), pre) };
    let written = Vocabulary::from_files(folder, rows, &config, pre).unwrap();
    let mut metadata: Metadata = vec![
        ("general.architecture".into(), "llama".into()),
        ("llama.attention.layer_norm_rms_epsilon".into(), 1e-5f32.into()),
    ];
    let sizes = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"];
    metadata.extend(sizes.map(|key| (format!("llama.{key}"), 1u32.into())));
    metadata.extend(written.to_metadata());
    let file = folder.join("vocabulary.gguf");
    GgufWriter::create(&file, &metadata, Vec::new()).unwrap().finish().unwrap();
    let read = Vocabulary::from_metadata(&open_gguf(&file).unwrap().metadata).unwrap();
    assert_eq!(read, Vocabulary { notes: Vec::new(), ..written });
    (file, read)
}
