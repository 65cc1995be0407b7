//! GGUF, streamed, and atomic replacement of files.

pub mod atomic;
pub mod gguf;
