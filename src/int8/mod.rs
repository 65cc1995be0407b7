//! INT8 for models that are no LLMs: BERT, ResNet, ViT, Whisper's encoder and the like, as ONNX graphs or as checkpoints.
//!
//! ```text
//! onnx (files and graphs) -> weights -> dynamic    MatMulInteger, INT8 embeddings
//!                         -> engine (runs a graph)
//!                         -> advise                what fits a model, a task and a machine
//!                         -> bench                 sizes, latencies, what really runs in INT8
//! samples (.npz, .npy)    -> ranges (histograms)  -> qdq          static quantization
//!                         -> compare, statistics   what it costs, and whether that is sure
//!                         -> sensitivity           which layers should stay float
//! ```

pub mod compare;
pub mod diversity;
pub mod engine;
pub mod feed;
pub mod fold;
pub mod histogram;
pub mod npy;
pub mod npz;
pub mod onnx;
pub mod qdq;
pub mod ranges;
pub mod samples;
pub mod sensitivity;
pub mod statistics;
