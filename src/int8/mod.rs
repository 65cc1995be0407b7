//! INT8 for models that are no LLMs: BERT, ResNet, ViT, Whisper's encoder and the like, as ONNX graphs or as checkpoints.
//!
//! ```text
//! onnx (files and graphs) -> prepare               what exporters write in many ways, in one
//!                         -> weights -> dynamic    MatMulInteger, INT8 embeddings
//!                         -> engine -> bench       runs a graph; latencies, and what really runs in INT8
//!                         -> counts -> advise      what a graph consists of; what fits a model, a task and a machine
//!                         -> stored                weights in 8 bits, computed with in floats
//! samples (.npz, .npy)    -> ranges -> qdq         calibration, and static quantization
//!                                   -> choose      which calibrator, by the error on samples held out
//!                                   -> qat         a short training with the rounding in place
//!                                   -> refine      better rounding, biases and balance, from calibration inputs alone
//!                         -> compare -> statistics what it costs, and whether that is sure
//!                         -> sensitivity           which layers should stay float
//!                         -> auto                  tries all of these, and takes the knee of the curve
//! checkpoint                                       folders without a graph: compressed-tensors, and GGUF for BERT
//! ```

pub mod advise;
pub mod auto;
pub mod batch_axis;
pub mod bench;
pub mod calibration_inputs;
pub mod checkpoint;
pub mod choose;
pub mod compare;
pub mod cpu;
pub mod diversity;
pub mod dynamic;
pub mod engine;
pub mod histogram;
pub mod npy;
pub mod npz;
pub mod onnx;
pub mod op_counts;
pub mod operators;
pub mod prepare;
pub mod qat;
pub mod qdq;
pub mod ranges;
pub mod refine;
pub mod samples;
pub mod sensitivity;
pub mod statistics;
pub mod stored;
pub mod weights;
