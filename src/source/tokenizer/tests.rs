use std::fs;

use serde_json::{Value, json};

use super::*;

fn tiny() -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
    serde_json::from_str(&fs::read_to_string(folder.join("tokenizer.json")).unwrap()).unwrap()
}

/// The tokenizer of a checkpoint of 2050 rows with files beside the tiny checkpoint's `tokenizer.json`.
fn opened(change: impl FnOnce(&mut Value), beside: &[(&str, Value)]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let mut json = tiny();
    change(&mut json);
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    for (name, content) in beside {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    let vocabulary = Vocabulary::from_files(folder.path(), 2050, &json!({}), Some("llama-bpe")).unwrap();
    Tokenizer::open(folder.path(), &vocabulary).unwrap()
}

const TEXT: &str = "the morning <|im_start|>was <extra> not";

#[test]
fn texts_are_neither_cut_nor_padded() {
    let plain = opened(|_| {}, &[]).encode(TEXT).unwrap();
    let cut = opened(
        |json| {
            json["truncation"] =
                json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
            json["padding"] = json!({
                "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "!",
            });
        },
        &[],
    );
    assert_eq!(cut.encode(TEXT).unwrap(), plain);
    assert_eq!(cut.encode_documents(&[TEXT.into()]).unwrap()[1..], plain);
}

#[test]
fn added_tokens_of_other_files_are_found_in_text() {
    let decoder = json!({"2048": {"content": "<|im_start|>", "special": true}});
    let tokenizer = opened(|_| {}, &[("tokenizer_config.json", json!({"added_tokens_decoder": decoder}))]);
    assert!(tokenizer.encode(TEXT).unwrap().contains(&2048));
    let older = [("added_tokens.json", json!({"<extra>": 2049}))];
    assert!(opened(|_| {}, &older).encode(TEXT).unwrap().contains(&2049));
}

#[test]
fn tokens_without_a_row_are_not_made() {
    let beyond = json!({
        "id": 2050, "content": "<extra>", "special": false, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false,
    });
    let more = |json: &mut Value| {
        let added = json["added_tokens"].as_array_mut().unwrap();
        for id in [2048, 2049] {
            let mut other = beyond.clone();
            (other["id"], other["content"]) = (id.into(), format!("<{id}>").into());
            added.push(other);
        }
        added.push(beyond.clone());
    };
    let ids = opened(more, &[]).encode(TEXT).unwrap();
    assert!(ids.iter().all(|id| *id < 2050), "{ids:?}");
    assert_eq!(ids, opened(|_| {}, &[]).encode(TEXT).unwrap());
}

#[test]
fn steps_that_stop_the_tokenizers_crate_are_not_run() {
    let plain = opened(|_| {}, &[]).encode(TEXT).unwrap();
    for (key, step) in [
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAGE="})),
    ] {
        let steps = json!({"type": "Sequence", "normalizers": [step], "pretokenizers": [step]});
        let ids = opened(|json| json[key] = steps, &[]).encode(TEXT).unwrap();
        assert_eq!(ids, plain, "the vocabulary encodes");
    }
}

/// Each part of a `tokenizer.json` in turn becomes something else: errors there may be, but no panic.
#[test]
fn no_damage_makes_it_panic() {
    let mut json = tiny();
    let vocab = ["!", "a", "b", "ab", "Ġ"].into_iter().zip(0..).map(|(text, id)| (text.to_owned(), id.into()));
    json["model"]["vocab"] = Value::Object(vocab.collect());
    json["model"]["merges"] = json!([["a", "b"]]);
    (json["added_tokens"][0]["id"], json["added_tokens"][1]["id"]) = (5.into(), 6.into());
    // None of these steps compiles a regex.
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let steps = json!([{"type": "Digits", "individual_digits": true}, bytes]);
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]});
    let mut paths = Vec::new();
    list(&json, String::new(), &mut paths);
    assert!(paths.len() > 50, "{paths:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut read = 0;
    for path in &paths {
        for odd in [json!(null), json!(-1), json!("é"), json!([]), json!({})] {
            let mut damaged = json.clone();
            *damaged.pointer_mut(path).unwrap() = odd;
            fs::write(folder.path().join("tokenizer.json"), damaged.to_string()).unwrap();
            let Ok(vocabulary) = Vocabulary::from_files(folder.path(), 8, &json!({}), None) else { continue };
            if let Ok(tokenizer) = Tokenizer::open(folder.path(), &vocabulary) {
                read += usize::from(tokenizer.encode("ab é\n<|begin_of_text|>").is_ok());
            }
        }
    }
    assert!(read > 20, "only {read} could still be read");
}

fn list(value: &Value, path: String, paths: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (key.replace('~', "~0").replace('/', "~1"), item)).collect(),
        _ => Vec::new(),
    };
    for (key, item) in parts {
        let path = format!("{path}/{key}");
        list(item, path.clone(), paths);
        paths.push(path);
    }
}
