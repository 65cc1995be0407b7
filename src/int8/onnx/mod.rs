//! ONNX files: messages, files, tensors, nodes, and a graph that can be read both ways and edited.
//!
//! The rest of [`int8`](super) sees a model as a [`file::OnnxFile`] (what is on disk), makes a [`graph::Graph`] of its main graph,
//! edits that, and puts it back; graphs inside `If`, `Loop` and `Scan` are edited the same way, from inside ([`Graph::inside`]).
//! Model-local functions are carried along untouched.

pub mod file;
pub mod graph;
pub mod merge;
pub mod node;
pub mod proto;
pub mod rank;
pub mod shape;
pub mod tensor;
mod visit;

pub use file::OnnxFile;
pub use graph::Graph;
pub use tensor::Tensor;
