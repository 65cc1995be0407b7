//! Calibration: text -> seeded windows of tokens -> statistics of each site.

pub mod activation_stats;
pub mod chat;
pub mod corpus;
pub mod hessian;
pub mod output_hessian;
#[cfg(feature = "parquet")]
mod parquet_column;
pub mod sets;
pub mod squares;
pub mod text;
pub mod windows;
