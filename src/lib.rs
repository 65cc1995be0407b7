//! llmq turns a Hugging Face checkpoint into the best GGUF of its size, on the machine a hobbyist has, and proves it.
//!
//! ```text
//! llmq quantize org/model --type Q4_K_M                       a GGUF that llama.cpp loads, block by block, resumable
//! llmq eval model.Q4_K_M.gguf --reference org/model           how far its answers are from the original's
//! ```
//!
//! Data flows one way:
//!
//! ```text
//! source  ->  model  ->  calib  ->  method  ->  format  ->  writer
//! (IN)        (GRAPH)    (DATA)     (ALGORITHM) (BYTES)     (OUT)
//!                                \   grid      /
//! ```
//!
//! A module imports only from those to its left; [`pipeline`] alone sees all of them. [`eval`], [`int8`] and [`cli`] sit
//! on top.
//! [`grid`] is the hinge: a method asks a grid to fit a block and to round a value, a format implements it, and neither
//! imports the other. So every method works on every type. Large products go through [`compute`], to the left of all: on the CPU, or on a GPU.

pub mod calib;
pub mod cli;
pub mod compute;
mod disk;
pub mod error;
pub mod eval;
pub mod format;
pub mod grid;
mod guard;
#[cfg(feature = "int8")]
pub mod int8;
pub mod interrupt;
pub mod method;
pub mod model;
pub mod pipeline;
pub mod source;
pub mod writer;
