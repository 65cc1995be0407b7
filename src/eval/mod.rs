//! Judging a file before it is published.

pub mod blocks;
pub mod divergence;
pub mod generation;
pub mod histogram;
pub mod layers;
mod logits;
pub mod perplexity;
pub mod ranking;
pub mod report;
pub mod saved;
pub mod speed;
pub mod statistics;
pub mod tasks;
pub mod tensors;
pub mod unfinished;
pub mod verdict;
