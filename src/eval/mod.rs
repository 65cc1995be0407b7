//! Judging a file before it is published.

pub mod perplexity;
