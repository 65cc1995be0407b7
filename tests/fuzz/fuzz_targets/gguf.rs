//! A GGUF: its header, what `inspect` shows of it, the bytes of its tensors, and its vocabulary.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::pipeline::weights::open_gguf;
use llmq::source::tokenizer::Tokenizer;
use llmq::source::vocabulary::{Kind, Vocabulary};
use llmq_fuzz::InputFile;
use std::hint::black_box;
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| InputFile::new("model.gguf", &[]));

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = open_gguf(FILE.holds(bytes)) else { return };
    for (_, value) in &file.metadata {
        black_box(value.to_string());
    }
    for info in &file.tensors {
        black_box((info.elements(), file.data(info).first(), file.data(info).last()));
    }
    if let Ok(vocabulary) = Vocabulary::from_metadata(&file.metadata) {
        black_box(vocabulary.to_metadata());
        // That of the other kind compiles regular expressions, which takes a thousand times as long.
        if vocabulary.kind == Kind::SentencePiece {
            let _ = Tokenizer::from_vocabulary(&vocabulary).map(|tokenizer| tokenizer.encode("a b<s>\u{e9} c"));
        }
    }
});
