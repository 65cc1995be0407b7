//! Judging a file before it is published.

pub mod blocks;
pub mod divergence;
mod logits;
pub mod perplexity;
pub mod ranking;
pub mod saved;
pub mod statistics;
pub mod tasks;
pub mod verdict;
