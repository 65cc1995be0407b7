//! The products of `llmq-kernels` on a GPU, by wgpu: Vulkan on Linux and Windows, Metal on macOS. Safe functions on slices, without any
//! llmq types.
//!
//! [`adapters`] lists what there is, [`Adapter::open`] makes a [`Gpu`] of one, [`Gpu::self_test`] holds its kernels against the CPU's. A
//! [`Matrix`] is kept there for [`Gpu::linear`]; a [`Sum`] adds up outer products there until it is asked for.
//!
//! Every number is one sum in a fixed order, and which kernel computes it depends on shapes alone: the same GPU and driver give the same
//! bytes every time. Nothing panics on what a driver does: whatever goes wrong is an [`Error`].

mod adapter;
mod error;
mod gpu;
pub mod kernels;
mod matrix;
mod self_test;
mod sum;

pub use adapter::{Adapter, Kind, Setup, adapters};
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use matrix::Matrix;
pub use sum::{Part, Sum};
