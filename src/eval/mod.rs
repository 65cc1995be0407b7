//! Judging a file before it is published.

pub mod divergence;
pub mod perplexity;
