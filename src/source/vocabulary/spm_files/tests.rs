use std::fs;
use std::path::Path;

use serde_json::json;

use super::super::sentencepiece::write;
use super::super::{Kind, Vocabulary};
use super::*;
use crate::source::tokenizer::Tokenizer;

const PIECES: [(&str, f32, i32); 8] = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0x0A>", 0.0, 6),
    ("\u{2581}\u{2581}", 0.0, 4),
    ("\u{2581}a", -0.0, 1),
    ("\u{2581}", -1.0, 1),
    ("a", -2.0, 1),
];

fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::write(folder.join(name), content).unwrap();
}

fn of_model(more: &[Vec<u8>]) -> (tempfile::TempDir, Result<Vocabulary>) {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.model", [write::model(&PIECES, true), more.concat()].concat());
    let vocabulary = Vocabulary::from_files(folder.path(), 9, &json!({}), None);
    (folder, vocabulary)
}

/// A tokenizer.json converted from the pieces.
fn converted() -> Value {
    let vocab: serde_json::Map<_, _> =
        PIECES.iter().zip(0..).map(|((text, ..), id)| ((*text).into(), id.into())).collect();
    json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 8, "content": "<|x|>", "special": false}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        "pre_tokenizer": null,
        "decoder": null,
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab,
            "merges": [["\u{2581}", "a"], ["\u{2581}", "\u{2581}"]],
        },
    })
}

fn of_json(change: impl FnOnce(&mut Value)) -> Result<Vocabulary> {
    let folder = tempfile::tempdir().unwrap();
    let mut json = converted();
    change(&mut json);
    put(folder.path(), "tokenizer.json", json.to_string());
    Vocabulary::from_files(folder.path(), 10, &json!({}), None)
}

fn complaint(result: Result<Vocabulary>) -> String {
    let error = result.unwrap_err();
    error.chain().join(": ") + " hint: " + error.hint_text().unwrap_or_default()
}

#[test]
fn a_model_becomes_what_llama_cpp_s_converter_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.model", write::model(&PIECES, true));
    put(folder.path(), "added_tokens.json", json!({"old": 8, "<tool>": 9}).to_string());
    let decoder = json!({
        "0": {"content": "<unk>", "special": true},
        "8": {"content": "\u{2581}think", "special": false},
        "10": {"content": "<|x|>", "special": false},
    });
    put(folder.path(), "tokenizer_config.json", json!({"added_tokens_decoder": decoder}).to_string());
    let vocabulary = Vocabulary::from_files(folder.path(), 12, &json!({}), None).unwrap();
    let texts = vocabulary.tokens.iter().map(String::as_str).zip(vocabulary.scores.iter().copied());
    let expected = [
        (("<unk>", -1000.0), 3),
        (("<s>", 0.0), 3),
        (("</s>", 0.0), 3),
        (("<0x0A>", 0.0), 6),
        (("  ", 0.0), 4),
        (("\u{2581}a", 0.0), 1),
        (("\u{2581}", -1.0), 1),
        (("a", -2.0), 1),
        ((" think", -1000.0), 4),
        (("<tool>", -1000.0), 4),
        (("<|x|>", -1000.0), 3),
        (("[PAD11]", -10000.0), 5),
    ];
    assert_eq!(texts.zip(vocabulary.token_type.iter().copied()).collect::<Vec<_>>(), expected);
    let keys: Vec<_> = vocabulary.to_metadata().into_iter().map(|(key, _)| key).collect();
    let expected = [
        "model",
        "pre",
        "tokens",
        "scores",
        "token_type",
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "add_bos_token",
        "add_space_prefix",
    ];
    assert_eq!(keys, expected.map(|key| format!("tokenizer.ggml.{key}")));
    assert_eq!(
        (vocabulary.special("bos"), vocabulary.special("eos"), vocabulary.special("unk")),
        (Some(1), Some(2), Some(0))
    );
    assert_eq!((vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix), (Some(true), None, Some(true)));
    let notes = [
        "255 of the 256 byte tokens are missing: llama.cpp stops at a character that is no token",
        r#"1 added tokens ("old" first) are left out: other tokens have their ids"#,
    ];
    assert_eq!(vocabulary.notes, notes);
    assert_eq!(
        Vocabulary { notes: Vec::new(), ..vocabulary.clone() },
        Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap()
    );
    // Without tokenizer.json, the vocabulary encodes.
    let tokenizer = Tokenizer::open(folder.path(), &vocabulary).unwrap();
    assert_eq!(tokenizer.encode("a\n  <|x|>a").unwrap(), [5, 3, 4, 10, 5]);
    assert_eq!(tokenizer.encode_documents(&["a".into(), "<s>".into()]).unwrap(), [1, 5, 1, 1]);
    assert_eq!((tokenizer.token(8).as_deref(), tokenizer.token(11)), (Some(" think"), None));
}

#[test]
fn files_beside_the_model_can_change_its_flags() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.model", write::model(&PIECES, true));
    put(
        folder.path(),
        "tokenizer_config.json",
        r#"{"add_prefix_space": false, "add_bos_token": false, "add_eos_token": true}"#,
    );
    let flags = || {
        let found = Vocabulary::from_files(folder.path(), 9, &json!({}), None).unwrap();
        (found.add_space_prefix, found.add_bos, found.add_eos)
    };
    assert_eq!(flags(), (Some(false), Some(false), Some(true)));
    let mut json = converted();
    json["normalizer"] =
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, json["normalizer"]]});
    json["added_tokens"] = json!([]);
    put(folder.path(), "tokenizer.json", json.to_string());
    assert_eq!(flags(), (Some(true), Some(false), Some(true)));
    // Whichever file encodes, tokens are called what GGUF calls them.
    let vocabulary = Vocabulary::from_files(folder.path(), 9, &json!({}), None).unwrap();
    let [own, rebuilt] = [Tokenizer::open(folder.path(), &vocabulary), Tokenizer::from_vocabulary(&vocabulary)];
    let names = |tokenizer: Result<Tokenizer>| tokenizer.map(|it| (0..10).map(|id| it.token(id)).collect::<Vec<_>>());
    let names = [own, rebuilt].map(|tokenizer| names(tokenizer).unwrap());
    assert_eq!(names[0], names[1]);
    assert_eq!(names[0][4].as_deref(), Some("  "));
}

#[test]
fn what_llama_cpp_does_otherwise_is_told() {
    let notes = |more: &[Vec<u8>]| of_model(more).1.unwrap().notes.join("; ");
    assert!(!notes(&[]).contains("unigram"));
    assert!(notes(&[write::bytes(2, &write::number(3, 1))]).contains("unigram model"));
    assert!(notes(&[write::bytes(3, &write::bytes(2, b"x"))]).contains("replaces characters"));
    assert!(notes(&[write::bytes(3, &write::number(4, 1))]).contains("runs of spaces"));
    assert!(
        of_json(|json| json["normalizer"] =
            json!({"type": "Sequence", "normalizers": [json["normalizer"], {"type": "NFKC"}]}))
        .unwrap()
        .notes
        .join("; ")
        .contains("NFKC")
    );
    let trained = of_json(|json| json["model"]["merges"] = json!(["\u{2581} a"])).unwrap().notes.join("; ");
    assert!(
        trained.contains("1 tokens can be put together in ways that are no merge (\"\u{2581}\" and \"\u{2581}\""),
        "{trained}"
    );
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.json", converted().to_string());
    let notes = Vocabulary::from_files(folder.path(), 8, &json!({}), None).unwrap().notes.join("; ");
    assert!(notes.contains("1 added tokens (\"<|x|>\" first) are left out"), "{notes}");
}

#[test]
fn a_converted_json_gets_scores_from_its_merges() {
    let vocabulary = of_json(|_| {}).unwrap();
    let scores = PIECES.iter().zip(&vocabulary.scores).map(|((text, ..), score)| (*text, *score));
    let expected = [
        ("<unk>", -1000.0),
        ("<s>", -2.0),
        ("</s>", -2.0),
        ("<0x0A>", 0.0),
        ("\u{2581}\u{2581}", -1.0),
        ("\u{2581}a", 0.0),
        ("\u{2581}", -2.0),
        ("a", -2.0),
    ];
    assert_eq!(scores.collect::<Vec<_>>(), expected);
    assert_eq!(vocabulary.token_type, [3, 1, 1, 6, 1, 1, 1, 1, 3, 5]);
    assert_eq!((vocabulary.add_space_prefix, vocabulary.pre.as_str()), (Some(false), "default"));
}

#[test]
fn a_model_that_is_not_of_the_same_tokenizer_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.json", converted().to_string());
    put(folder.path(), "tokenizer.model", write::model(&PIECES, true));
    let scores = || Vocabulary::from_files(folder.path(), 9, &json!({}), None).unwrap().scores[7];
    assert_eq!(scores(), -2.0);
    put(folder.path(), "tokenizer.model", write::model(&PIECES.map(|(text, _, kind)| (text, -7.0, kind)), true));
    assert_eq!(scores(), -7.0);
    let mut other = PIECES.map(|(text, _, kind)| (text, -7.0, kind));
    other.swap(6, 7);
    put(folder.path(), "tokenizer.model", write::model(&other, true));
    assert_eq!(scores(), -2.0);
    let notes = Vocabulary::from_files(folder.path(), 9, &json!({}), None).unwrap().notes.join("; ");
    assert!(notes.contains("tokenizer.model is left aside"), "{notes}");
}

#[test]
fn a_damaged_model_beside_a_good_json_is_left_aside() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.json", converted().to_string());
    put(folder.path(), "tokenizer.model", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 499723\n");
    let found = Vocabulary::from_files(folder.path(), 9, &json!({}), None).unwrap();
    assert_eq!(found.scores[7], -2.0);
    let notes = found.notes.join("; ");
    assert!(notes.contains("tokenizer.model is left aside: ") && notes.contains("Git LFS pointer"), "{notes}");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let text = complaint(Vocabulary::from_files(folder.path(), 9, &json!({}), None));
    assert!(text.contains("Git LFS pointer"), "{text}");
}

#[test]
fn placeholders_are_renamed_but_a_text_keeps_its_id() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "tokenizer.model", write::model(&PIECES, true));
    let token = |text: &str| json!({"content": text, "special": true});
    let texts = |decoder: Value| {
        put(folder.path(), "tokenizer_config.json", json!({"added_tokens_decoder": decoder}).to_string());
        let found = Vocabulary::from_files(folder.path(), 10, &json!({}), None).unwrap();
        [2, 6, 7, 8].map(|id| found.tokens[id].clone())
    };
    assert_eq!(texts(json!({"7": token("<x>")})), ["</s>", "\u{2581}", "<x>", "[PAD8]"]);
    assert_eq!(texts(json!({"8": token("</s>")})), ["</s>", "\u{2581}", "a", "[PAD8]"]);
    assert_eq!(texts(json!({"6": token("a"), "7": token("\u{2581}")})), ["</s>", "a", "\u{2581}", "[PAD8]"], "swapped");
}

#[test]
fn what_gguf_cannot_hold_is_refused() {
    let text = complaint(of_model(&[write::bytes(2, &write::number(3, 3))]).1);
    assert!(text.contains("tokenizer.model is of type 3") && text.contains("hint"), "{text}");
    let text = complaint(of_model(&[write::bytes(2, &write::number(24, 1))]).1);
    assert!(text.contains("behind it"), "{text}");
    let text = complaint(of_model(&[vec![0x0a, 0x7f]]).1);
    assert!(text.contains("tokenizer.model is not a SentencePiece model"), "{text}");
    let folder = of_model(&[]).0;
    let text = complaint(Vocabulary::from_files(folder.path(), 7, &json!({}), None));
    assert!(text.contains("\"a\" has id 7, but the embedding has only 7 rows"), "{text}");
    let error = Vocabulary::from_files(folder.path(), 9, &json!({}), Some("llama-bpe")).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Usage);
    let text = complaint(of_json(|json| json["normalizer"] = Value::Null));
    assert!(text.contains("does not replace spaces"), "{text}");
    let text = complaint(of_json(|json| json["pre_tokenizer"] = json!({"type": "Digits"})));
    assert!(text.contains("tokenizer.json") && text.contains("Digits"), "{text}");
    let text = complaint(of_json(|json| json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"})));
    assert!(text.contains("drops all whitespace"), "{text}");
}

/// The vocabulary of `converted()` for Gemma 4, after a change of it.
fn gemma4(model_type: &str, pre: Option<&str>, change: impl FnOnce(&mut Value)) -> Result<Vocabulary> {
    let folder = tempfile::tempdir().unwrap();
    let mut json = converted();
    for (id, text) in [(1, "<s>"), (8, "<|tool_call>"), (9, "<|turn>")] {
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": text, "special": true}));
    }
    json["added_tokens"].as_array_mut().unwrap().remove(1);
    change(&mut json);
    put(folder.path(), "tokenizer.json", json.to_string());
    put(folder.path(), "tokenizer_config.json", r#"{"bos_token": "<s>", "add_bos_token": false}"#);
    put(folder.path(), "generation_config.json", r#"{"suppress_tokens": [9, 8, 10, -1, 1e99, "x"]}"#);
    Vocabulary::from_files(folder.path(), 10, &json!({"model_type": model_type}), pre)
}

#[test]
fn gemma_4_keeps_its_merges() {
    let found = gemma4("gemma4_text", None, |_| {}).unwrap();
    assert_eq!(found.merges, ["\u{2581} a", "\u{2581} \u{2581}"]);
    assert_eq!(found.token_type, [3, 3, 1, 6, 1, 1, 1, 1, 4, 3], "tool calls are always shown");
    assert_eq!(found.scores, [-1000.0; 10]);
    assert_eq!((found.bos(), found.add_bos, found.add_space_prefix), (Some(1), Some(true), Some(false)));
    assert_eq!(found.suppress_tokens, [0; 0]);
    let keys: Vec<_> = found.to_metadata().into_iter().map(|(key, _)| key).collect();
    let expected =
        ["model", "tokens", "scores", "token_type", "merges", "bos_token_id", "add_bos_token", "add_space_prefix"];
    assert_eq!(keys, expected.map(|key| format!("tokenizer.ggml.{key}")), "as llama.cpp's converter writes");
    assert_eq!(gemma4("gemma4_unified", None, |_| {}).unwrap().suppress_tokens, [9, 8]);
    let tokenizer = Tokenizer::from_vocabulary(&Vocabulary::from_metadata(&found.to_metadata()).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("a a<|turn>  a").unwrap(), [7, 5, 9, 6, 5]);
    assert_eq!(tokenizer.bos(), Some(1));
}

#[test]
fn what_gemma_4_cannot_say_is_told() {
    let notes = |change: &dyn Fn(&mut Value)| gemma4("gemma4", None, change).unwrap().notes.join("; ");
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let both =
        |json: &Value| json!({"type": "Sequence", "normalizers": [prepend, {"type": "NFKC"}, json["normalizer"]]});
    let found = notes(&|json| json["normalizer"] = both(json));
    assert!(found.contains("puts a space in front") && found.contains("NFKC"), "{found}");
    assert!(found.contains("255 of the 256 byte tokens are missing: llama.cpp leaves out"), "{found}");
    let mut vocab = converted()["model"]["vocab"].clone();
    vocab["}\n"] = 9.into();
    let found = notes(&|json| {
        json["model"]["vocab"] = vocab.clone();
        json["added_tokens"].as_array_mut().unwrap().pop();
    });
    assert!(found.contains(r#"no text becomes the token "}\n""#), "{found}");
    let text = complaint(gemma4("gemma4", None, |json| {
        json["added_tokens"].as_array_mut().unwrap().remove(1);
        json["model"]["vocab"].as_object_mut().unwrap().remove("<s>");
    }));
    assert!(text.contains("which token is BOS") && text.contains("tokenizer_config.json"), "{text}");
}

#[test]
fn other_tokenizers_of_merges_on_characters_are_asked_for_by_name() {
    let found = gemma4("sarvam_moe", Some("sarvam-moe"), |_| {}).unwrap();
    assert_eq!((found.kind, found.pre.as_str(), found.add_bos), (Kind::Bpe, "sarvam-moe", Some(false)));
    assert_eq!(found.token_type[8], token_type::CONTROL);
    let tokenizer = Tokenizer::from_vocabulary(&found).unwrap();
    assert_eq!(tokenizer.encode("a a<|turn>").unwrap(), [7, 5, 9]);
    let error = gemma4("llama", Some("llama-bpe"), |_| {}).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Usage);
}
