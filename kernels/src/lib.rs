//! CPU kernels of llmq: safe functions on slices, without any llmq types.
//!
//! Two kinds live here. Products ([`gemm`], [`fused`], [`syrk`], [`attention`], [`recurrent`], [`mod@cholesky`]) cut their output into tiles of a fixed size, so
//! that the result does not depend on the number of threads. Lane kernels ([`search`], [`mod@column`], [`codebook`], [`descent`], [`elementwise`]) are
//! written once on [`lanes::F`], sixteen numbers side by side, and compiled for every instruction set in [`dispatch`];
//! they contain no operation whose result depends on the instruction set, so all of them agree to the last bit.

#[cfg(any(target_arch = "x86_64", test))]
mod amx;
pub mod attention;
mod blocks;
pub mod cholesky;
pub mod codebook;
pub mod column;
pub mod convert;
pub mod descent;
pub mod dispatch;
pub mod elementwise;
pub mod fused;
pub mod gemm;
pub mod lanes;
pub mod levels;
pub mod memory;
mod micro;
mod pack;
pub mod recurrent;
pub mod search;
pub mod squares;
pub mod syrk;

pub use dispatch::Isa;
pub use lanes::{F, LANES};
pub use levels::Levels;
pub use memory::LargePages;
