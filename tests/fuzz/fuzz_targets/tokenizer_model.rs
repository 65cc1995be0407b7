//! SentencePiece's `tokenizer.model`, alone in a folder, and text that is encoded with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::source::tokenizer::Tokenizer;
use llmq::source::vocabulary::Vocabulary;
use llmq_fuzz::Given;
use serde_json::Value;
use std::sync::LazyLock;

static FILE: LazyLock<Given> = LazyLock::new(|| Given::new("tokenizer.model", &[]));

fuzz_target!(|bytes: &[u8]| {
    let folder = FILE.folder_holds(bytes);
    let Ok(vocabulary) = Vocabulary::from_files(folder, 16, &Value::Null, None) else { return };
    let read = Vocabulary::from_metadata(&vocabulary.to_metadata());
    assert!(read.is_ok(), "what was written cannot be read: {read:?}");
    let tokens = Tokenizer::open(folder, &vocabulary).and_then(|tokenizer| tokenizer.encode("a b<s>\u{e9} c"));
    assert!(tokens.is_ok_and(|tokens| tokens.iter().all(|&token| token < 16)), "a token without a row");
});
