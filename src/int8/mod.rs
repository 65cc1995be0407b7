//! INT8 for models that are no LLMs: BERT, ResNet, ViT, Whisper's encoder and the like, as ONNX graphs or as checkpoints.
//!
//! ```text
//! onnx (files and graphs) -> weights -> dynamic    MatMulInteger, INT8 embeddings
//!                         -> engine (runs a graph)
//!                         -> advise                what fits a model, a task and a machine
//!                         -> bench                 sizes, latencies, what really runs in INT8
//! ```

pub mod engine;
pub mod onnx;
