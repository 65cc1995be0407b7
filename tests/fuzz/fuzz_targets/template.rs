//! A chat template, with conversations as people have them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::calib::chat::Chat;
use llmq::source::value::Metadata;
use serde_json::{Value, json};
use std::hint::black_box;
use std::sync::LazyLock;

static MESSAGES: LazyLock<Value> = LazyLock::new(|| {
    json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": " Hi <|x|> "},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5]}}}]},
        {"role": "tool", "content": "t"},
    ])
});
static TOOLS: LazyLock<Value> = LazyLock::new(|| json!([{"type": "function", "function": {"name": "f"}}]));

fuzz_target!(|template: &str| {
    let tokens = ["<s>", "</s>"].map(str::to_owned).to_vec();
    let keys: Metadata = vec![
        ("tokenizer.chat_template".into(), template.into()),
        ("tokenizer.ggml.tokens".into(), tokens.into()),
        ("tokenizer.ggml.bos_token_id".into(), 0u32.into()),
        ("tokenizer.ggml.eos_token_id".into(), 1u32.into()),
    ];
    let Ok(Some(chat)) = Chat::of(&keys, true) else { return };
    let _ = black_box(chat.render(&MESSAGES, Some(&TOOLS)));
});
