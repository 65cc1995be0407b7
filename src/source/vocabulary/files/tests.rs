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
        ("does not cut text like this", "tokenizer.model", json!({"type": "Unigram", "vocab": [["a", 0.0]]})),
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
    let text = complaint(read(&[("tokenizer.json", tokenizer())], 5, json!({})));
    assert!(text.contains("<s>\" has id 5, but the embedding has only 5 rows"), "{text}");
    let text = complaint(read(&[("tokenizer.json", tokenizer())], usize::MAX, json!({})));
    assert!(text.contains("4194304 at most"), "{text}");
    let text = complaint(changed(|json| json["model"]["vocab"]["z"] = 3.into()));
    assert!(text.contains(r#"tokens "ab" and "z" both have id 3"#), "{text}");
    let text = complaint(changed(|json| json["added_tokens"][0]["content"] = "<x>".into()));
    assert!(text.contains(r#"tokens "<s>" and "<x>" both have id 5"#), "{text}");
    let text = complaint(changed(|json| json["added_tokens"][1]["id"] = 7.into()));
    assert!(text.contains(r#"tokens "</s>" and "<|im_end|>" both have id 7"#), "{text}");
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
fn files_that_no_tokenizer_has_are_not_read_whole() {
    for name in ["tokenizer.json", "tokenizer.model"] {
        let folder = folder(&[]);
        fs::File::create(folder.path().join(name)).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let text = complaint(Vocabulary::from_files(folder.path(), 12, &json!({}), None));
        assert!(text.contains(name) && text.contains("more than 134217728 bytes"), "{text}");
    }
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
    let error = read(Some("sarvam-moe")).unwrap_err();
    assert!(error.to_string().contains("BPE on characters"), "{error}");
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
}

#[test]
fn special_tokens_without_a_row_are_skipped_with_a_note() {
    let last = ("generation_config.json", json!({"pad_token_id": 12, "eos_token_id": [4]}));
    let found = read(&[("tokenizer.json", tokenizer()), last], 12, json!({"eos_token_id": 99})).unwrap();
    assert_eq!((found.special("pad"), found.special("eos")), (None, Some(4)), "the next file is asked");
    let notes = found.notes.join("; ");
    assert!(notes.contains("generation_config.json: pad_token_id is 12 and is left out"), "{notes}");
    assert!(notes.contains("config.json: eos_token_id is 99"), "{notes}");
    let mut json = tokenizer();
    let bos = json!({"SpecialToken": {"id": "<s>"}});
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A"}}], "pair": [],
        "special_tokens": {"<s>": {"ids": [4000000000u32]}},
    });
    assert_eq!(read(&[("tokenizer.json", json)], 12, json!({})).unwrap().special("bos"), Some(5), "by its text");
}

#[test]
fn added_tokens_come_from_all_files() {
    let decoder = json!({
        "5": {"content": "<s>", "special": false},
        "8": {"content": "<|im_start|>", "special": true},
        "3": {"content": "<stale>", "special": true},
        "10": {"content": "plain"},
    });
    let older = json!({"older": 11, "named": 12, "</s>": 3, "beaten": 10});
    let config = json!({"added_tokens_decoder": decoder, "pad_token": "b", "additional_special_tokens": ["named", {"content": "new"}]});
    let files = [("tokenizer.json", tokenizer()), ("tokenizer_config.json", config), ("added_tokens.json", older)];
    let found = read(&files, 15, json!({})).unwrap();
    let added = [(1, "b", 3), (3, "ab", 1), (5, "<s>", 3), (6, "</s>", 3), (8, "<|im_start|>", 3)];
    let further = [(10, "plain", 4), (11, "older", 4), (12, "named", 3), (13, "new", 3), (14, "[PAD14]", 5)];
    for (id, text, kind) in added.into_iter().chain(further) {
        assert_eq!((found.tokens[id].as_str(), found.token_type[id]), (text, kind));
    }
    assert_eq!(found.special("pad"), Some(1));
    assert_eq!(found.notes, [r#"2 added tokens ("<stale>" first) are left out: other tokens have their ids"#]);
    // A name that only a file without ids has gets the next id, and that of special_tokens_map.json counts more.
    let files = [
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({"pad_token": "one"})),
        ("special_tokens_map.json", json!({"pad_token": {"content": "two"}})),
    ];
    let found = read(&files, 12, json!({})).unwrap();
    assert_eq!((found.tokens[10].as_str(), found.special("pad")), ("two", Some(10)));
}

#[test]
fn added_tokens_beyond_the_embedding_are_left_out() {
    let found = read(&[("tokenizer.json", tokenizer())], 9, json!({})).unwrap();
    assert_eq!(found.tokens.len(), 9);
    let note = "1 added tokens (\"\u{2581}think\" first) are left out: the embedding has no rows for them";
    assert_eq!(found.notes, [note]);
    let config = ("tokenizer_config.json", json!({"extra_special_tokens": {"video": "<|video|>"}}));
    let found = read(&[("tokenizer.json", tokenizer()), config], 10, json!({})).unwrap();
    assert!(found.notes[0].contains("<|video|>"), "{:?}", found.notes);
}

#[test]
fn a_text_under_two_ids_keeps_that_of_the_vocabulary() {
    let added = json!({"id": 10, "content": "ab", "special": false});
    let found = changed(|json| json["added_tokens"].as_array_mut().unwrap().push(added)).unwrap();
    assert_eq!((found.tokens[3].as_str(), found.token_type[3]), ("ab", token_type::USER_DEFINED));
    assert_eq!((found.tokens[10].as_str(), found.token_type[10]), ("[PAD10]", token_type::UNUSED));
    assert!(found.notes[0].contains("(\"ab\" first) have an id of their own"), "{:?}", found.notes);
}

#[test]
fn vocab_and_merges_are_a_tokenizer() {
    let vocab = json!({"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4, "<|endoftext|>": 5});
    let with = |config: Value, merges: &str, model_type: &str, pre: Option<&str>| {
        let files = [("vocab.json", vocab.clone()), ("merges.txt", merges.into()), ("tokenizer_config.json", config)];
        Vocabulary::from_files(folder(&files).path(), 7, &json!({"model_type": model_type}), pre)
    };
    let merges = "#version: 0.2\na b\nĠ a\n";
    let found = with(json!({"tokenizer_class": "GPT2TokenizerFast"}), merges, "llama", None).unwrap();
    assert_eq!((found.pre.as_str(), found.merges), ("gpt-2", vec!["a b".to_owned(), "Ġ a".into()]));
    assert_eq!(found.token_type[4..], [1, 3, 5]);
    assert_eq!(with(json!({}), merges, "qwen2", None).unwrap().pre, "qwen2");
    let roberta = with(json!({"tokenizer_class": "RobertaTokenizer", "bos_token": "a"}), merges, "x", None).unwrap();
    assert_eq!((roberta.add_bos, roberta.add_sep), (Some(true), Some(true)));
    let text = complaint(with(json!({"tokenizer_class": "Odd"}), merges, "llama", None));
    assert!(text.contains("it is not known how Odd cuts text") && text.contains("--pre NAME"), "{text}");
    assert_eq!(with(json!({"tokenizer_class": "Odd"}), merges, "llama", Some("starcoder")).unwrap().pre, "starcoder");
    let text = complaint(with(json!({"tokenizer_class": "GPT2Tokenizer"}), "a b c\n", "llama", None));
    assert!(text.contains("vocab.json") && text.contains("merge 0"), "{text}");
    let text = complaint(read(&[("vocab.json", vocab.clone())], 7, json!({})));
    assert!(text.contains("has vocab.json, but no merges.txt"), "{text}");
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
fn chat_templates_come_from_files_of_their_own_first() {
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
    assert_eq!(read(&[inline.clone(), jinja.clone()]), (some("jinja"), vec![]));
    assert_eq!(read(&[inline.clone(), old.clone()]), (some("inline"), vec![]));
    let found = read(&[("tokenizer_config.json", json!({"chat_template": list}))]);
    assert_eq!(found, (some("d"), vec![pair("tool_use", "t"), pair("rag", "r")]));
    assert_eq!(read(&[jinja.clone(), further, old.clone()]), (some("jinja"), vec![pair("rag", "rag")]));
    assert_eq!(read(&[old]), (some("old"), vec![]));
    assert_eq!(read(&[]), (None, vec![]));
    let notes = |inline: Value| {
        let files = [("tokenizer.json", tokenizer()), ("tokenizer_config.json", inline), jinja.clone()];
        self::read(&files, 12, json!({})).unwrap().notes
    };
    assert!(notes(json!({"chat_template": "inline"}))[0].contains("another chat template than chat_template.jinja"));
    assert_eq!(notes(json!({"chat_template": "jinja"})), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_template_that_is_a_link_out_of_the_folder_is_refused() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "what nobody should publish").unwrap();
    for name in ["chat_template.jinja", "additional_chat_templates/rag.jinja"] {
        let own = ("chat_template.jinja", "own".into());
        let folder = folder(&[("tokenizer.json", tokenizer()), own, ("additional_chat_templates/a.jinja", "a".into())]);
        let read = || Vocabulary::from_files(folder.path(), 12, &json!({}), None);
        assert_eq!(read().unwrap().chat_template.as_deref(), Some("own"));
        fs::remove_file(folder.path().join(name)).ok();
        symlink(outside.path(), folder.path().join(name)).unwrap();
        let error = read().unwrap_err().chain().join(": ");
        assert!(error.contains(&format!("{name} is a link to")), "{error}");
    }
}

#[test]
fn files_that_only_python_reads_are_read() {
    let files = [
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", "\u{feff}{\"model_max_length\": Infinity, \"bos_token\": \"<s>\"}".into()),
        ("generation_config.json", "{\"penalty\": -Infinity, \"pad_token_id\": 2}".into()),
    ];
    let found = read(&files, 12, json!({})).unwrap();
    assert_eq!((found.special("bos"), found.special("pad")), (Some(5), Some(2)));
}
