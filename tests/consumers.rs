//! llmq's files in the hands of those they are made for: llama.cpp, the PyPI package gguf, and a browser.
//!
//! Needs what scripts/setup-consumers.sh installs; without it, every test here fails and says so.

mod common;

#[path = "consumers/architectures.rs"]
mod architectures;
#[path = "consumers/ask.rs"]
mod ask;
#[path = "consumers/browser.rs"]
mod browser;
#[path = "consumers/embeddings.rs"]
mod embeddings;
#[path = "consumers/folders.rs"]
mod folders;
#[path = "consumers/gguf.rs"]
mod gguf;
#[path = "consumers/llama.rs"]
mod llama;
#[path = "consumers/packed.rs"]
mod packed;
#[path = "consumers/tokens.rs"]
mod tokens;

use common::llmq;
use std::path::{Path, PathBuf};

/// Quantizes a checkpoint into a folder that has to be kept while the file is used.
fn quantize(model: &Path, kind: &str, method: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = common::folder();
    let file = folder.path().join("model.gguf");
    let options = ["--method", method, "--samples", "8", "--seq-len", "128"];
    if llmq::format::by_name(kind).unwrap().is_quantized() {
        let own = format!("^blk={kind}");
        llmq!["quantize", model, "-o", &file, "--type", "Q8_0", "--tensor-type", own; options].ok();
    } else {
        llmq!["quantize", model, "-o", &file, "--type", kind; options].ok();
    }
    (folder, file)
}
