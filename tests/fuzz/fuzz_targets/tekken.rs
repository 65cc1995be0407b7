//! Mistral's `tekken.json`, alone in a folder, and text that is encoded with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq_fuzz::{InputFile, alone, encode};
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| {
    alone();
    InputFile::new("tekken.json", &[])
});

fuzz_target!(|bytes: &[u8]| encode(FILE.folder_holds(bytes), 16));
