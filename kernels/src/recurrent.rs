//! Mixers that carry a state from position to position instead of looking back at all of them.
//!
//! But for Kimi Delta Attention, their recurrences are computed in chunks of 64 positions. What happens within a chunk is attention without a softmax, what
//! earlier chunks add is one product with the state, and the state moves on once a chunk by another, so that nearly all of the work is
//! matrix products (Yang et al. 2024, "Gated Linear Attention", section 4; Dao and Gu 2024, section 6).

mod causal_conv;
mod chunk;
mod gated_delta_rule;
mod kda;
mod mamba2;
mod tasks;

pub use causal_conv::{CausalConv, causal_conv};
pub use gated_delta_rule::{DeltaInputs, DeltaShape, HeadOrder, gated_delta_rule};
pub use kda::{KdaInputs, KdaShape, kda};
pub use mamba2::{Mamba2Inputs, Mamba2Shape, mamba2_scan};

/// Positions that are handled at once. A constant, so that results do not depend on the number of threads.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests;
