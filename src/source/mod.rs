//! Folder, file or name on the hub -> mapped tensors, configuration, tokenizer.

pub mod checkpoint;
pub mod config;
pub mod folder;
pub mod gguf;
pub mod hub;
pub mod imatrix;
pub mod json;
pub mod lfs;
pub mod links;
pub mod mistral;
pub mod pages;
pub mod pooling;
pub mod pre_tokenizer;
pub mod tokenizer;
pub mod value;
pub mod vocabulary;
