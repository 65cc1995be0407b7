//! llama.cpp cuts text into the tokens of the checkpoint's own tokenizer, and so does the one llmq rebuilds from a GGUF.

use crate::ask;
use crate::common::checkpoint::Shape;
use crate::common::{folder, tiny};
use crate::quantize;
use llmq::pipeline::weights::open_gguf;
use llmq::source::pre_tokenizer;
use llmq::source::vocabulary::Vocabulary;
use regex::Regex;
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::Tokenizer;

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

/// Where llama.cpp cuts otherwise than the tokenizers that it has the name from, and text that shows it. A file cannot
/// change that, but a release that does should be noticed.
const OWN_WAYS: [(&str, &str); 3] = [
    ("deepseek-llm", r"\p{N}{2}"), // keeps digits together
    ("falcon", "ó"),               // whose second byte stands as a digit, ³, where Hugging Face looks for digits
    ("tiny_aya", r"\d\p{Han}"),    // sees the end of a word there
];

/// What llama.cpp never brings into normal form C.
const DECOMPOSED: &str = r"[\u{300}-\u{36f}]";

#[test]
fn text_becomes_the_tokens_of_the_checkpoint() {
    let checkpoint = folder();
    Shape::default().write(checkpoint.path());
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(checkpoint.path().join("chat_template.jinja"), template).unwrap();
    let llama = tokenizes_alike(checkpoint.path(), "llama-bpe", None);
    assert_eq!((llama.bos, llama.eos, llama.add_bos), (Some(2046), Some(2047), true));
    assert_eq!(llama.chat_template.as_deref(), Some(template));
    assert_eq!(llama.metadata["architecture"], "llama");
}

#[test]
fn every_pre_tokenizer_cuts_as_the_one_of_its_name_in_llama_cpp() {
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
    for name in pre_tokenizer::names() {
        let pre = pre_tokenizer::by_name(name).unwrap();
        if pre.names[0] != name {
            continue; // the same under another name
        }
        let mut tokenizer = tokenizer.clone();
        tokenizer["pre_tokenizer"] = serde_json::to_value(pre.build().unwrap()).unwrap();
        tokenizer["model"]["ignore_merges"] = pre.ignore_merges.into();
        tokenizer["normalizer"] = if pre.nfc { json!({ "type": "NFC" }) } else { Value::Null };
        let checkpoint = folder();
        Shape::default().write(checkpoint.path());
        std::fs::write(checkpoint.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let own_way = OWN_WAYS.iter().find(|(other, _)| *other == name).map(|(_, text)| *text);
        tokenizes_alike(checkpoint.path(), name, own_way.or(pre.nfc.then_some(DECOMPOSED)));
    }
}

/// Compares the checkpoint's tokenizer, the one rebuilt from its GGUF and llama.cpp, which differs in some text that
/// matches `own_way` and in no other. Returns what else llama.cpp says.
fn tokenizes_alike(checkpoint: &Path, pre: &str, own_way: Option<&str>) -> ask::Llama {
    let (_folder, file) = quantize(checkpoint, "F16", "rtn");
    let long = TEXTS.concat().repeat(20) + &"x".repeat(1000) + &" ".repeat(1000);
    let texts: Vec<&str> = TEXTS.into_iter().chain([long.as_str()]).collect();
    let llama = ask::llama(&file, &texts, &[]);
    assert_eq!(llama.tokens_special.len(), texts.len());

    let vocabulary = Vocabulary::from_metadata(&open_gguf(&file).unwrap().metadata).unwrap();
    assert_eq!(vocabulary.pre, pre);
    let original = Tokenizer::from_file(checkpoint.join("tokenizer.json")).unwrap();
    let rebuilt = vocabulary.tokenizer().unwrap();
    let own_way = own_way.map(|text| Regex::new(text).unwrap());
    let mut differs = false;
    for (text, theirs) in texts.iter().zip(&llama.tokens_special) {
        let encode = |tokenizer: &Tokenizer| tokenizer.encode(*text, false).unwrap().get_ids().to_vec();
        let ours = encode(&original);
        assert_eq!(encode(&rebuilt), ours, "{pre}: rebuilt, {text:?}");
        if own_way.as_ref().is_some_and(|own_way| own_way.is_match(text)) {
            differs |= ours != *theirs;
        } else {
            assert_eq!(*theirs, ours, "{pre}: llama.cpp, {text:?}");
        }
    }
    assert_eq!(differs, own_way.is_some(), "{pre}: llama.cpp has no longer its own way of cutting");
    llama
}
