//! The folder in which every Hugging Face tool keeps what it has fetched: `models--org--name/{blobs,refs,snapshots}`. A file of
//! a snapshot is a link to a blob, which is called after its content.

use super::Repository;
use super::client::Facts;
use super::environment::Environment;
use crate::disk;
use crate::error::{Error, Result};
use crate::interrupt;
use hf_hub::{Cache, CacheRepo};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One repository's part of it.
pub struct Kept {
    folder: PathBuf,
    locks: PathBuf,
    layout: CacheRepo,
    revision: String,
}

impl Kept {
    /// The place of a repository.
    pub fn new(repository: &Repository, environment: &Environment) -> Kept {
        let repo = repository.repo();
        let name = repo.folder_name();
        Kept {
            folder: environment.cache.join(&name),
            locks: environment.cache.join(".locks").join(&name),
            layout: Cache::new(environment.cache.clone()).repo(repo),
            revision: repository.revision.clone(),
        }
    }

    /// The repository's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that the revision stood for when it was last asked about; a commit stands for itself.
    pub fn commit(&self) -> Option<String> {
        let commit = match is_commit(&self.revision) {
            true => self.revision.clone(),
            false => std::fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?.trim().to_owned(),
        };
        is_commit(&commit).then_some(commit)
    }

    /// Keeps in mind which commit the revision stands for.
    ///
    /// # Errors
    /// What the hub says is no commit, or the folder cannot be written to.
    pub fn remember(&self, commit: &str) -> Result<()> {
        if !is_commit(commit) {
            return Err(Error::new(format!(
                "the hub says that '{}' is commit '{commit}', which is none",
                self.revision
            ))
            .hint("check HF_ENDPOINT, if you use it"));
        }
        if self.revision != commit && self.commit().as_deref() != Some(commit) {
            self.layout.create_ref(commit).map_err(|cause| self.unwritable(cause))?;
        }
        Ok(())
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Where content is kept under its name, and where while it is incomplete. The hub's other tools leave incomplete files of
    /// their own, not all of them from the beginning on, so those of llmq have another ending.
    ///
    /// # Errors
    /// The hub gives no name, or one that is no file name.
    pub fn blob(&self, file: &str, facts: &Facts) -> Result<(PathBuf, PathBuf)> {
        let safe =
            |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let etag = facts.etag.as_deref().filter(safe).ok_or_else(|| {
            Error::new(format!("the hub gives no usable ETag for {file}, but {:?}", facts.etag))
                .hint("check HF_ENDPOINT, if you use it: a mirror has to pass ETags on")
        })?;
        let path = self.layout.blob_path(etag);
        Ok((path.clone(), path.with_extension("llmq.incomplete")))
    }

    /// Makes the file of a snapshot a link to a blob.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|cause| self.unwritable(cause))?;
        }
        // What dangles there is in the way.
        if path.symlink_metadata().is_ok() && !path.exists() {
            std::fs::remove_file(&path).map_err(|cause| self.unwritable(cause))?;
        }
        #[cfg(unix)]
        let linked = {
            let up = "../".repeat(2 + file.matches('/').count());
            let name = blob.file_name().unwrap_or_default().to_string_lossy();
            std::os::unix::fs::symlink(format!("{up}blobs/{name}"), &path)
        };
        // Links need a privilege there; huggingface_hub moves the file, too.
        #[cfg(not(unix))]
        let linked = std::fs::rename(blob, &path);
        match linked {
            Err(_) if path.exists() => Ok(path), // another program was faster
            Err(cause) => Err(self.unwritable(cause)),
            Ok(()) => Ok(path),
        }
    }

    /// Waits until no other program writes this blob. The lock is the one that huggingface_hub takes.
    ///
    /// # Errors
    /// The folder cannot be written to, or the user asked to stop.
    pub fn lock(&self, blob: &Path) -> Result<File> {
        let folders = [Some(self.locks.as_path()), blob.parent()];
        for folder in folders.into_iter().flatten() {
            std::fs::create_dir_all(folder).map_err(|cause| self.unwritable(cause))?;
        }
        let mut name = blob.file_name().unwrap_or_default().to_os_string();
        name.push(".lock");
        let file = File::create(self.locks.join(name)).map_err(|cause| self.unwritable(cause))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    interrupt::check()?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(cause)) => return Err(self.unwritable(cause)),
            }
        }
    }

    /// Says before a download that the disk has no room for it.
    ///
    /// # Errors
    /// It has not.
    pub fn reserve(&self, needed: u64) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(|cause| self.unwritable(cause))?;
        if let Some(free) = disk::available(&self.folder).filter(|free| *free < needed) {
            let folder = self.folder.display();
            return Err(Error::new(format!(
                "no room for the download: {needed} bytes are to come, but {free} are free at {folder}"
            ))
            .hint("free some, or set HF_HUB_CACHE to a folder on a larger disk"));
        }
        Ok(())
    }

    /// An error about writing here.
    pub fn unwritable(&self, cause: std::io::Error) -> Error {
        let full = matches!(
            cause.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge
        );
        Error::new(format!("cannot write to {}", self.folder.display())).because(cause).hint(if full {
            "free some room, or set HF_HUB_CACHE to a folder on a larger disk; what has arrived is kept"
        } else {
            "set HF_HUB_CACHE to a folder that may be written to"
        })
    }
}

/// Whether a revision is a commit's whole name.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}
