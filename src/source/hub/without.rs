//! A build without the hub.

use super::{Found, Need, Repository, Watch};
use crate::error::{Error, Result};
use std::convert::Infallible;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

fn absent(what: &str) -> Error {
    Error::new(format!("{what} is not here, and this llmq was built without the hub"))
        .hint("give a folder, or build with --features hub")
}

/// The folder of a model.
///
/// # Errors
/// Always.
pub fn resolve(repository: &Repository, _: Need, _: &dyn Watch) -> Result<Found> {
    Err(absent(&repository.id))
}

/// The whole of a file.
///
/// # Errors
/// Always.
pub fn whole(repository: &Repository, name: &str, _: &dyn Watch) -> Result<PathBuf> {
    Err(absent(&format!("{name} of {}", repository.id)))
}

/// A file as it comes; there is none.
pub struct Part(Infallible);

impl Part {
    /// A file.
    ///
    /// # Errors
    /// Always.
    pub fn open(repository: &Repository, name: &str, _: &dyn Watch) -> Result<Part> {
        Err(absent(&format!("{name} of {}", repository.id)))
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        match self.0 {}
    }
}

impl Read for Part {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}
