//! A `tokenizer.json`, alone in a folder, and text that is encoded with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::source::tokenizer::Tokenizer;
use llmq::source::vocabulary::Vocabulary;
use llmq_fuzz::{Given, alone};
use serde_json::Value;
use std::sync::LazyLock;

const ROWS: usize = 16;

static FILE: LazyLock<Given> = LazyLock::new(|| {
    alone();
    Given::new("tokenizer.json", &[])
});

fuzz_target!(|bytes: &[u8]| {
    let folder = FILE.folder_holds(bytes);
    let Ok(vocabulary) = Vocabulary::from_files(folder, ROWS, &Value::Null, None) else { return };
    let read = Vocabulary::from_metadata(&vocabulary.to_metadata());
    assert!(read.is_ok(), "what was written cannot be read: {read:?}");
    let Ok(tokenizer) = Tokenizer::open(folder, &vocabulary) else { return };
    let Ok(tokens) = tokenizer.encode("a b<s>\u{e9} c 12") else { return };
    assert!(tokens.iter().all(|&token| (token as usize) < ROWS), "a token without a row");
});
