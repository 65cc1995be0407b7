//! llmq turns a Hugging Face checkpoint into the best GGUF of its size, on the machine a hobbyist has, and proves it.
pub mod calib;
pub mod cli;
pub mod error;
pub mod eval;
pub mod format;
pub mod grid;
pub mod interrupt;
pub mod method;
pub mod model;
pub mod pipeline;
pub mod source;
pub mod writer;
