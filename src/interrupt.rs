//! Ctrl-C, as a question that long work asks itself.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Asks long work to stop at its next [`check`]. Returns whether it had been asked before.
pub fn request() -> bool {
    REQUESTED.swap(true, Ordering::SeqCst)
}

/// To be called between steps that take less than a second or so.
///
/// # Errors
/// The user asked to stop.
pub fn check() -> Result<()> {
    if REQUESTED.load(Ordering::SeqCst) { Err(Error::interrupted()) } else { Ok(()) }
}
