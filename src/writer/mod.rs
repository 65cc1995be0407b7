//! GGUF, streamed, whole or in shards; importance matrices; atomic replacement of files.

pub mod atomic;
pub mod gguf;
pub mod imatrix;
pub mod packing;
pub mod safetensors;
pub mod shards;
