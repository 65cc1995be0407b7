//! GGUF, streamed, whole or in shards; safetensors; importance matrices; atomic replacement of files and folders.

pub mod atomic;
pub mod gguf;
pub mod imatrix;
pub mod packing;
pub mod safetensors;
pub mod shards;
