//! Calibration: text -> seeded windows of tokens -> statistics of each site.

pub mod evidence;
pub mod hessian;
pub mod squares;
pub mod text;
pub mod windows;
