use super::*;
use crate::source::tokenizer::Tokenizer;

const PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A file of the 256 bytes and more tokens, the last of which the model does not have, with 24 special tokens.
fn file(more: &[&str]) -> Value {
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let tokens = bytes.chain(more.iter().map(|text| text.as_bytes().to_vec())).chain([b"zz".to_vec()]);
    let vocab = tokens.enumerate().map(|(rank, bytes)| {
        json!({"rank": rank, "token_bytes": BASE64_STANDARD.encode(&bytes), "token_str": String::from_utf8(bytes).ok()})
    });
    json!({
        "config": {
            "pattern": PATTERN, "num_vocab_tokens": 257 + more.len(), "default_vocab_size": 280 + more.len(),
            "default_num_special_tokens": 24, "version": "v3",
        },
        "vocab": vocab.collect::<Value>(),
    })
}

const MORE: [&str; 5] = ["th", "he", "the", " the", "\u{e9}"];

/// The first id behind the special tokens and bytes.
const FIRST: u32 = 24 + 256;

#[test]
fn tokens_merges_and_ids_are_those_of_llama_cpps_converter() {
    let vocabulary = of_file(&file(&MORE), 290, None).unwrap();
    assert_eq!((vocabulary.kind, vocabulary.pre.as_str()), (Kind::Bpe, "tekken"));
    let at = |id: u32| (vocabulary.tokens[id as usize].as_str(), vocabulary.token_type[id as usize]);
    assert_eq!(at(0), ("<unk>", token_type::CONTROL));
    assert_eq!(at(23), ("<SPECIAL_23>", token_type::CONTROL));
    assert_eq!(at(24), ("Ā", token_type::NORMAL), "byte 0");
    assert_eq!((at(24 + 32).0, at(24 + 127).0, at(24 + 160).0, at(24 + 173).0), ("Ġ", "ġ", "ł", "Ń"));
    assert_eq!((at(FIRST).0, at(FIRST + 3).0, at(FIRST + 4).0), ("th", "Ġthe", "Ã©"));
    // Rows that the file has no token for, among them that of the one which is cut off.
    assert_eq!(at(FIRST + 5), ("[PAD285]", token_type::UNUSED));
    // All ways to make a token, those of lower ranks first: 't' is byte 116, "th" and "he" come behind all bytes.
    assert_eq!(vocabulary.merges, ["t h", "h e", "t he", "th e", "Ġ the", "Ã ©"]);
    let ids = ["bos", "eos", "unk", "pad", "sep"].map(|name| vocabulary.special(name));
    assert_eq!(ids, [Some(1), Some(2), Some(0), Some(11), None]);
    assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(true), Some(false)));
}

#[test]
fn text_becomes_the_tokens_that_tiktoken_makes() {
    let vocabulary = of_file(&file(&MORE), 285, None).unwrap();
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let byte = |c: char| 24 + c as u32;
    // "th" is merged before "he", because its rank is lower; a whole word that is a token is never cut.
    assert_eq!(tokenizer.encode("the the").unwrap(), [FIRST + 2, FIRST + 3]);
    assert_eq!(tokenizer.encode("then").unwrap(), [FIRST + 2, byte('n')]);
    assert_eq!(tokenizer.encode("\u{e9}1 ").unwrap(), [FIRST + 4, byte('1'), byte(' ')]);
    assert_eq!(tokenizer.bos(), Some(1));
    // A vocabulary that has been a GGUF's is the same.
    let read = Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap();
    assert_eq!(
        Tokenizer::from_vocabulary(&read).unwrap().encode("then the").unwrap(),
        tokenizer.encode("then the").unwrap()
    );
}

#[test]
fn special_tokens_that_are_listed_count() {
    let mut listed = file(&MORE);
    let token = |rank: usize, text: &str| json!({"rank": rank, "token_str": text, "is_control": true});
    listed["special_tokens"] = json!([token(0, "<s>"), token(1, "</s>")]);
    let vocabulary = of_file(&listed, 285, None).unwrap();
    assert_eq!(["bos", "eos", "unk"].map(|name| vocabulary.special(name)), [Some(0), Some(1), None]);
    assert_eq!(vocabulary.tokens[2], "<SPECIAL_2>");
    listed["special_tokens"][1]["rank"] = 7.into();
    assert!(of_file(&listed, 285, None).unwrap_err().to_string().contains("special token 1"));
}

#[test]
fn a_folder_with_only_this_file_is_read_and_tokenizer_json_wins() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put(FILE, &file(&MORE).to_string());
    let read = || Vocabulary::from_files(folder.path(), 285, &Value::Null, None);
    let vocabulary = read().unwrap();
    assert!(vocabulary.notes.iter().any(|note| note.contains("no chat template")), "{:?}", vocabulary.notes);
    put("chat_template.jinja", "{{ messages }}");
    assert_eq!(read().unwrap().chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(Tokenizer::open(folder.path(), &vocabulary).unwrap().encode("the").unwrap(), [FIRST + 2]);
    put("tokenizer.json", "{");
    assert!(read().unwrap_err().to_string().contains("tokenizer.json"));
    // In Mistral's layout it is the tokenizer, whatever is beside it.
    put("params.json", "{}");
    assert_eq!(read().unwrap().tokens, vocabulary.tokens);
    assert!(Tokenizer::open(folder.path(), &vocabulary).is_ok());
}

#[test]
fn damaged_files_are_errors() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = file(&MORE);
        change(&mut file);
        of_file(&file, 285, None).unwrap_err().to_string()
    };
    let vast = u64::from(u32::MAX);
    for (change, told) in [
        (&(|f: &mut Value| f["vocab"][3]["rank"] = 4.into()) as &dyn Fn(&mut Value), "token 3"),
        (&|f| f["vocab"][65]["token_bytes"] = "Qg==".into(), "token 65"),
        (&|f| f["vocab"][257]["token_bytes"] = "not base64".into(), "token 257"),
        (&|f| f["vocab"][257]["token_bytes"] = BASE64_STANDARD.encode([b'a'; LONGEST + 1]).into(), "1 to 512 bytes"),
        (&|f| f["vocab"][257]["token_bytes"] = "dGg=".into(), "occurs twice"),
        (&|f| f["vocab"] = Value::Null, "it has 0 tokens"),
        (&|f| f["config"]["default_vocab_size"] = vast.into(), "4294967295"),
        (&|f| f["config"]["default_num_special_tokens"] = vast.into(), "more than any of 65536"),
        (&|f| f["config"]["default_vocab_size"] = 20.into(), "is to have 20 with 24 special ones"),
        (
            &|f| {
                f["config"]["default_vocab_size"] = 264.into();
                f["config"]["default_num_special_tokens"] = 3.into();
            },
            "20 special tokens",
        ),
        (&|f| f["config"]["default_num_special_tokens"] = (-1).into(), "not a size"),
        (&|f| f["config"]["pattern"] = "a+".into(), "no name for this pre-tokenizer"),
    ] {
        let message = with(change);
        assert!(message.contains(told), "no {told:?} in {message}");
    }
    assert!(of_file(&file(&MORE), 284, None).unwrap_err().to_string().contains("only 284 rows"));
    let runs: Vec<String> = (2..=LONGEST).map(|n| "a".repeat(n)).collect();
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    assert!(of_file(&file(&runs), 800, None).unwrap_err().to_string().contains("more than 64 ways"));
}
