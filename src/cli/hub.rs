//! Models by their names on the Hugging Face Hub, where a command takes a folder or a file.

use super::output::{self, Progress, bytes};
use crate::error::Result;
use crate::source::hub::{self, Found, Need, Repository, Watch};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The model that an argument names: a folder or a file, or else `org/name[@revision]` on the hub.
///
/// # Errors
/// As [`hub::resolve`].
pub fn find(model: &Path, need: Need) -> Result<Found> {
    match named(model) {
        Some(repository) => hub::resolve(&repository, need, &Download::default()),
        None => Ok(Found::local(model)),
    }
}

/// The name on the hub that an argument is; none for what is here.
pub fn named(model: &Path) -> Option<Repository> {
    if model.exists() {
        return None;
    }
    Repository::model(model.to_str()?)
}

/// Shows how a download goes: a bar on a terminal, lines elsewhere.
#[derive(Default)]
pub struct Download {
    progress: OnceLock<Progress>,
    total: AtomicU64,
    done: AtomicU64,
}

impl Watch for Download {
    fn begin(&self, text: &str, total: u64) {
        output::note(&format!("{text} {}", bytes(total)));
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.progress.get_or_init(|| Progress::new(false, false)).set(0, total);
    }

    fn advance(&self, more: u64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        let total = self.total.load(Ordering::Relaxed);
        if let Some(progress) = self.progress.get() {
            progress.set(done.min(total), total);
        }
    }

    fn note(&self, text: &str) {
        match self.progress.get() {
            Some(progress) => crate::pipeline::report::Observer::note(progress, text),
            None => output::note(&format!("note: {text}")),
        }
    }
}
