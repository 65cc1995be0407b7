use std::fs;

use serde_json::json;

use super::*;

/// A folder with the given files, which are JSON unless they are strings.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs::write(path, text).unwrap();
    }
    folder
}

fn tokenizer() -> Value {
    json!({
        "added_tokens": [
            {"id": 5, "content": "<s>", "special": true},
            {"id": 6, "content": "</s>", "special": true},
            {"id": 7, "content": "<|im_end|>", "special": false},
            {"id": 9, "content": "\u{2581}think", "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4, "<s>": 5},
            "merges": ["a b", "Ġ a"],
        },
    })
}

fn read(files: &[(&str, Value)], rows: usize, config: Value) -> Result<Vocabulary> {
    Vocabulary::from_files(folder(files).path(), rows, &config, None)
}

/// The vocabulary of `tokenizer()` after a change, in 12 rows.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Vocabulary> {
    let mut tokenizer = tokenizer();
    change(&mut tokenizer);
    read(&[("tokenizer.json", tokenizer)], 12, json!({}))
}

/// All that an error says, hint included.
fn complaint(result: Result<Vocabulary>) -> String {
    let error = result.unwrap_err();
    error.chain().join(": ") + " hint: " + error.hint_text().unwrap_or_default()
}

#[test]
fn tokens_get_their_kinds_and_gaps_are_filled() {
    let vocabulary = changed(|_| {}).unwrap();
    let tokens = ["a", "b", "Ġ", "ab", "Ġa", "<s>", "</s>", "<|im_end|>", "[PAD8]", " think", "[PAD10]", "[PAD11]"];
    assert_eq!(vocabulary.tokens, tokens);
    assert_eq!(vocabulary.token_type, [1, 1, 1, 1, 1, 3, 3, 3, 5, 4, 5, 5]);
    assert_eq!(vocabulary.merges, ["a b", "Ġ a"]);
    assert_eq!(vocabulary.pre, "gpt-2");
    assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(false), None));
}

#[test]
fn merges_may_be_pairs_and_hold_spaces() {
    let vocabulary = changed(|json| {
        json["model"]["vocab"] = json!({"a": 0, " ": 1, " a": 2, "a a": 3});
        json["model"]["merges"] = json!([[" ", "a"], ["a", " a"]]);
    });
    assert_eq!(vocabulary.unwrap().merges, ["Ġ a", "a Ġa"]);
}

#[test]
fn other_kinds_are_refused_by_name() {
    for (kind, hint, change) in [
        ("Unigram", "tokenizer.model", json!({"type": "Unigram", "vocab": [["a", 0.0]]})),
        ("WordPiece", "only byte-level BPE", json!({"type": "WordPiece", "vocab": {"a": 0}})),
        (
            "marked subwords",
            "only byte-level BPE",
            json!({"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}, "merges": []}),
        ),
        ("without merges", "only byte-level BPE", json!({"type": "BPE", "vocab": {"a": 0}})),
        ("no known kind", "only byte-level BPE", json!({})),
    ] {
        let text = complaint(changed(|json| json["model"] = change));
        assert!(text.contains(kind) && text.contains("tokenizer.json") && text.contains(hint), "{text}");
    }
    let text = complaint(changed(|json| {
        json["pre_tokenizer"] = json!({"type": "Metaspace"});
        json["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}]});
    }));
    assert!(text.contains("on characters"), "{text}");
}

#[test]
fn impossible_tokens_are_refused() {
    let text = complaint(read(&[("tokenizer.json", tokenizer())], 9, json!({})));
    assert!(text.contains("think\" has id 9, but the embedding has only 9 rows"), "{text}");
    let text = complaint(changed(|json| json["model"]["vocab"]["z"] = 3.into()));
    assert!(text.contains(r#"tokens "ab" and "z" both have id 3"#), "{text}");
    let text = complaint(changed(|json| json["added_tokens"][0]["id"] = 10.into()));
    assert!(text.contains(r#"token "<s>" occurs twice, with ids 5 and 10"#), "{text}");
    let text = complaint(changed(|json| json["model"]["vocab"]["z"] = (-1).into()));
    assert!(text.contains(r#"token "z" has no valid id, but -1"#), "{text}");
    let text = complaint(changed(|json| json["model"]["vocab"]["[PAD8]"] = 10.into()));
    assert!(text.contains(r#""[PAD8]" occurs twice"#), "{text}");
    let text = complaint(changed(|json| json["added_tokens"][0] = json!({"id": 5})));
    assert!(text.contains("has no content"), "{text}");
    let text = complaint(changed(|json| json["model"]["vocab"] = json!([])));
    assert!(text.contains("no model.vocab"), "{text}");
}

#[test]
fn impossible_merges_are_refused() {
    let text = complaint(changed(|json| json["model"]["merges"][1] = "a x".into()));
    assert!(text.contains(r#"merge 1 joins "a" and "x", but "x" is no token"#), "{text}");
    let text = complaint(changed(|json| json["model"]["merges"][1] = json!(["b", "a"])));
    assert!(text.contains(r#"but "ba" is no token"#), "{text}");
    let text = complaint(changed(|json| json["model"]["merges"][0] = json!(["b", "a", "c"])));
    assert!(text.contains("merge 0 is not two tokens"), "{text}");
}

#[test]
fn missing_and_broken_files_are_named() {
    let text = complaint(read(&[], 12, json!({})));
    assert!(text.contains("there is no") && text.contains("tokenizer.json"), "{text}");
    let text = complaint(read(&[("tokenizer.json", "{\n\n oops".into())], 12, json!({})));
    assert!(text.contains("tokenizer.json, line 3, column 2"), "{text}");
    let text =
        complaint(read(&[("tokenizer.json", tokenizer()), ("tokenizer_config.json", "[1".into())], 12, json!({})));
    assert!(text.contains("tokenizer_config.json, line 1"), "{text}");
}

#[test]
fn the_pre_tokenizer_can_be_overridden() {
    let mut json = tokenizer();
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    let folder = folder(&[("tokenizer.json", json)]);
    let read = |pre| Vocabulary::from_files(folder.path(), 12, &json!({}), pre);
    assert!(complaint(read(None)).contains("--pre NAME"));
    assert_eq!(read(Some("starcoder")).unwrap().pre, "starcoder");
    assert_eq!(read(Some("starcoder")).unwrap().notes, [""; 0]);
    assert!(read(Some("gpt-4o")).unwrap().notes[0].contains("combining marks"));
    let error = read(Some("stardust")).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Usage);
    assert!(error.to_string().contains("`stardust`"));
}

#[test]
fn special_tokens_come_from_the_files_in_order() {
    let special = |files: &[(&str, Value)], config: Value| {
        let mut all = vec![("tokenizer.json", tokenizer())];
        all.extend_from_slice(files);
        let vocabulary = read(&all, 12, config)?;
        Ok::<_, Error>(["bos", "eos", "pad"].map(|name| vocabulary.special(name)))
    };
    let first =
        ("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "gone"}));
    let second = ("special_tokens_map.json", json!({"bos_token": "b", "eos_token": "b", "pad_token": "ab"}));
    let third = json!({"bos_token_id": 0, "eos_token_id": [4, 7], "pad_token_id": -1});
    let last = ("generation_config.json", json!({"bos_token_id": 1, "pad_token_id": 2}));
    let all = special(&[first, second.clone(), last.clone()], third.clone()).unwrap();
    assert_eq!(all, [Some(5), Some(6), Some(3)]);
    assert_eq!(special(&[second, last.clone()], third.clone()).unwrap(), [Some(1), Some(1), Some(3)]);
    assert_eq!(special(&[last], third.clone()).unwrap(), [Some(0), Some(4), Some(2)]);
    assert_eq!(special(&[], json!({"text_config": third})).unwrap(), [Some(0), Some(4), None]);
    let error = special(&[], json!({"eos_token_id": 12})).unwrap_err();
    assert!(error.to_string().contains("config.json: eos_token_id is 12, but the embedding has only 12 rows"));
}

#[test]
fn what_is_added_follows_the_template_and_the_override() {
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let run = |single: Value, pair: Value, tokenizer_config: Value, config: Value, rows: usize| {
        let mut json = tokenizer();
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}});
        json["post_processor"] = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        read(&[("tokenizer.json", json), ("tokenizer_config.json", tokenizer_config)], rows, config).unwrap()
    };
    let none = || json!({});
    let both = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let single = json!([special("<s>"), sequence("A"), special("</s>")]);
    let pair = json!([special("<s>"), sequence("A"), special("</s>"), sequence("B"), special("</s>")]);
    let found = run(single.clone(), pair, both.clone(), none(), 12);
    assert_eq!((found.add_bos, found.add_eos, found.add_sep), (Some(true), Some(true), Some(false)));

    // Without names, the template itself says which they are.
    let found = run(single.clone(), json!([]), none(), none(), 12);
    assert_eq!((found.special("bos"), found.special("eos"), found.add_sep), (Some(5), Some(6), None));

    // An end of text that is not EOS takes its place.
    let chat = json!({"bos_token": "<s>", "eos_token": "<|im_end|>"});
    let found = run(single.clone(), json!([]), chat, none(), 12);
    assert_eq!((found.special("eos"), found.special("eot"), found.add_eos), (Some(6), Some(7), Some(true)));

    // A separator between two texts, and a first token that is not BOS.
    let separated = json!([sequence("A"), special("</s>"), sequence("B")]);
    let found = run(json!([special("<|im_end|>"), sequence("A")]), separated, both.clone(), none(), 12);
    assert_eq!((found.add_bos, found.add_eos, found.add_sep), (Some(false), None, Some(true)));
    assert_eq!(found.special("sep"), Some(6));

    let mut over = both.clone();
    over["add_bos_token"] = false.into();
    over["add_eos_token"] = false.into();
    let found = run(single.clone(), json!([]), over, none(), 12);
    assert_eq!((found.add_bos, found.add_eos), (Some(false), Some(false)));
    assert_eq!(run(single.clone(), json!([]), both, json!({"model_type": "llama"}), 49152).add_bos, Some(false));

    // Nothing can be added that has no id.
    let found =
        run(json!([sequence("A")]), json!([]), json!({"add_bos_token": true, "add_eos_token": true}), none(), 12);
    assert_eq!((found.add_bos, found.add_eos), (Some(false), Some(false)));
}

#[test]
fn an_embedding_that_no_memory_holds_is_refused() {
    let error = read(&[("tokenizer.json", tokenizer())], 4_000_000_000, json!({})).unwrap_err();
    assert!(error.to_string().contains("says that there are 4000000000 tokens") && error.hint_text().is_some());
}

#[test]
fn a_template_cannot_name_tokens_that_are_not_there() {
    let mut json = tokenizer();
    let first = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let beyond = json!({"<s>": {"id": "<s>", "ids": [12], "tokens": ["<s>"]}});
    let single = json!([first, {"Sequence": {"id": "A", "type_id": 0}}]);
    json["post_processor"] = json!({"type": "TemplateProcessing", "single": single, "special_tokens": beyond});
    let vocabulary = read(&[("tokenizer.json", json)], 12, json!({})).unwrap();
    assert_eq!(vocabulary.special("bos"), Some(5), "the token of that text, not the number");
}

#[test]
fn chat_templates_come_from_the_config_then_from_files() {
    let read = |files: &[(&str, Value)]| {
        let mut all = vec![("tokenizer.json", tokenizer())];
        all.extend_from_slice(files);
        let vocabulary = read(&all, 12, json!({})).unwrap();
        (vocabulary.chat_template, vocabulary.named_templates)
    };
    let some = |text: &str| Some(text.to_owned());
    let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let inline = ("tokenizer_config.json", json!({"chat_template": "inline"}));
    let list = json!([
        {"name": "default", "template": "d"}, {"name": "tool-use", "template": "t"}, {"name": "rag", "template": "r"},
    ]);
    let jinja = ("chat_template.jinja", "jinja".into());
    let further = ("additional_chat_templates/rag.jinja", "rag".into());
    let old = ("chat_template.json", json!({"chat_template": "old"}));
    assert_eq!(read(&[inline, jinja.clone()]), (some("inline"), vec![]));
    let found = read(&[("tokenizer_config.json", json!({"chat_template": list}))]);
    assert_eq!(found, (some("d"), vec![pair("tool_use", "t"), pair("rag", "r")]));
    assert_eq!(read(&[jinja, further, old.clone()]), (some("jinja"), vec![pair("rag", "rag")]));
    assert_eq!(read(&[old]), (some("old"), vec![]));
    assert_eq!(read(&[]), (None, vec![]));
}
