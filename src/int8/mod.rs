//! INT8 for models that are no language models: ONNX graphs of BERT, ResNet, ViT and the like.

pub mod diversity;
pub mod histogram;
pub mod npy;
pub mod npz;
pub mod ranges;
pub mod samples;
pub mod statistics;
