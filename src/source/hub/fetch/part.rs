//! The beginning of a large file of a dataset: only as much as is read is fetched, and what was fetched is kept.

use super::cache::Kept;
use super::client::{Client, Facts, Stream};
use super::digest;
use super::environment::Environment;
use super::failure::Failure;
use super::transfer::{self, Failures, RemoteFile, patiently};
use super::{Repository, Watch};
use crate::error::{Context, Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file of the hub as a reader.
pub struct Part<'a> {
    path: PathBuf,
    file: File,
    /// Bytes read, and bytes that are in the file.
    at: u64,
    held: u64,
    /// What has arrived and was not read yet.
    piece: Vec<u8>,
    /// Where the rest is; none if there is no rest.
    remote: Option<Remote<'a>>,
}

/// The rest of a file.
struct Remote<'a> {
    repository: Repository,
    environment: Environment,
    client: Client,
    kept: Kept,
    watch: &'a dyn Watch,
    name: String,
    commit: String,
    facts: Option<Facts>,
    stream: Option<Stream>,
    failures: Failures,
    /// Something has arrived since the last failure.
    moved: bool,
    _lock: File,
}

/// The whole of a dataset's file, in the cache.
///
/// # Errors
/// It is neither there nor can it be fetched.
pub fn whole(repository: &Repository, name: &str, watch: &dyn Watch) -> Result<PathBuf> {
    let environment = Environment::read()?;
    let kept = Kept::new(repository, &environment);
    let cached = kept.commit().map(|commit| kept.snapshot(&commit).join(name)).filter(|path| path.exists());
    if let Some(path) = cached {
        return Ok(path);
    }
    if environment.offline {
        return Err(not_kept(repository, name, &environment));
    }
    let client = Client::new(&environment);
    let attempt = || -> Result<PathBuf, Failure> {
        let wanted = ask(&client, repository, name, &environment, watch)?;
        kept.remember(&wanted.commit)?;
        kept.reserve(wanted.facts.size.unwrap_or_default())?;
        let what = format!("fetching {name} of {} from {},", repository.id, environment.endpoint);
        watch.begin(&what, wanted.facts.size.unwrap_or_default());
        transfer::fetch(&client, &kept, &wanted, watch)
    };
    attempt().map_err(|failure| {
        failure.explain(&format!("cannot fetch {name} of {}", repository.id), repository, &environment)
    })
}

fn ask(
    client: &Client,
    repository: &Repository,
    name: &str,
    environment: &Environment,
    watch: &dyn Watch,
) -> Result<RemoteFile, Failure> {
    let url = repository.url(&environment.endpoint, &repository.revision, name);
    let facts = patiently(watch, || client.facts(&url))?;
    let commit = facts.commit.clone().ok_or_else(|| {
        Error::new(format!("the hub does not say of which commit {name} is"))
            .hint("check HF_ENDPOINT, if you use it: a mirror has to pass X-Repo-Commit on")
    })?;
    Ok(RemoteFile { file: name.into(), url, commit, facts })
}

fn not_kept(repository: &Repository, name: &str, environment: &Environment) -> Error {
    let (id, cache) = (&repository.id, environment.cache.display());
    Error::new(format!("HF_HUB_OFFLINE is set, and {cache} does not hold {name} of the dataset {id}"))
        .hint("unset HF_HUB_OFFLINE once to fetch it, or name a file of your own")
}

impl<'a> Part<'a> {
    /// Opens a file of a dataset.
    ///
    /// # Errors
    /// Nothing of it is in the cache, and the hub cannot be asked.
    pub fn open(repository: &Repository, name: &str, watch: &'a dyn Watch) -> Result<Part<'a>> {
        let environment = Environment::read()?;
        let client = Client::new(&environment);
        let kept = Kept::new(repository, &environment);
        if let Some(path) = kept.commit().map(|commit| kept.snapshot(&commit).join(name)).filter(|path| path.exists()) {
            let file = File::open(&path).context(|| format!("cannot open {}", path.display()))?;
            return Part::new(path, file, None);
        }
        // Beside the snapshots, for other tools take what is in these for whole.
        let place = |commit: &str| kept.folder().join("llmq").join(commit).join(name);
        let commit = match kept.commit().filter(|commit| place(commit).exists()) {
            Some(commit) => commit,
            None if environment.offline => return Err(not_kept(repository, name, &environment)),
            None => {
                let wanted = ask(&client, repository, name, &environment, watch).map_err(|failure| {
                    let what = format!("cannot fetch {name} of the dataset {}", repository.id);
                    failure.explain(&what, repository, &environment)
                })?;
                kept.remember(&wanted.commit)?;
                wanted.commit
            }
        };
        let path = place(&commit);
        let lock = kept.lock(&path)?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|cause| kept.unwritable(cause))?;
        let remote = Remote {
            repository: repository.clone(),
            environment,
            client,
            kept,
            watch,
            name: name.into(),
            commit,
            facts: None,
            stream: None,
            failures: Failures::default(),
            moved: false,
            _lock: lock,
        };
        Part::new(path, file, Some(remote))
    }

    fn new(path: PathBuf, file: File, remote: Option<Remote<'a>>) -> Result<Part<'a>> {
        let held = file.metadata().context(|| format!("cannot read {}", path.display()))?.len();
        Ok(Part { path, file, at: 0, held, piece: Vec::new(), remote })
    }

    /// The file on this machine.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next piece of what is not here yet, and keeps it. Whether there was one.
    fn more(&mut self) -> Result<bool> {
        let Some(remote) = &mut self.remote else { return Ok(false) };
        if remote.environment.offline {
            let (held, path) = (self.held, self.path.display());
            return Err(Error::new(format!(
                "HF_HUB_OFFLINE is set, and only the first {held} bytes of {path} are here"
            ))
            .hint("unset HF_HUB_OFFLINE once to fetch more, or lower --samples or --seq-len"));
        }
        match remote.patiently(self.held)? {
            Some(piece) => {
                self.file.write_all(&piece).map_err(|cause| remote.kept.unwritable(cause))?;
                self.held += piece.len() as u64;
                remote.watch.advance(piece.len() as u64);
                self.piece = piece;
                Ok(true)
            }
            None => {
                remote.complete(&self.file, &self.path)?;
                self.remote = None;
                Ok(false)
            }
        }
    }
}

impl Remote<'_> {
    /// The piece behind the first `held` bytes; none if there is none.
    fn patiently(&mut self, held: u64) -> Result<Option<Vec<u8>>> {
        loop {
            match self.attempt(held) {
                Ok(piece) => {
                    self.moved = true;
                    return Ok(piece);
                }
                Err(failure) => {
                    self.stream = None;
                    let pause = self.failures.pause(failure, self.moved, self.watch);
                    self.moved = false;
                    pause.map_err(|failure| {
                        let what = format!("cannot fetch more of the dataset {}", self.repository.id);
                        failure.explain(&what, &self.repository, &self.environment)
                    })?;
                }
            }
        }
    }

    fn attempt(&mut self, held: u64) -> Result<Option<Vec<u8>>, Failure> {
        let url = self.repository.url(&self.environment.endpoint, &self.commit, &self.name);
        let facts = match &self.facts {
            Some(facts) => facts,
            None => {
                let facts = self.client.facts(&url)?;
                let (id, endpoint) = (&self.repository.id, &self.environment.endpoint);
                let what = format!("fetching as much of {id} as is needed, from {endpoint}: at most");
                self.watch.begin(&what, facts.size.unwrap_or_default().saturating_sub(held));
                self.facts.insert(facts)
            }
        };
        if facts.size == Some(held) {
            return Ok(None);
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.client.open(&url, held, None)?;
                if stream.from != held {
                    let begins = stream.from;
                    return Err(Error::new(format!("{url}: asked for byte {held}, got byte {begins}")).into());
                }
                self.stream.insert(stream)
            }
        };
        stream.piece()
    }

    /// Puts a file that has come to its end where other tools look for it.
    fn complete(&self, file: &File, path: &Path) -> Result<()> {
        let facts = self.facts.clone().unwrap_or_default();
        digest::check(path, &self.name, &facts)?;
        let (blob, _) = self.kept.blob(&self.name, &facts)?;
        let moved = match blob.parent() {
            Some(parent) => std::fs::create_dir_all(parent),
            None => Ok(()),
        };
        moved
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(path, &blob))
            .map_err(|cause| self.kept.unwritable(cause))?;
        self.kept.link(&self.commit, &self.name, &blob)?;
        Ok(())
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = if self.at < self.held - self.piece.len() as u64 {
            self.file.read(buffer)?
        } else {
            if self.piece.is_empty() && !self.more().map_err(io::Error::other)? {
                return Ok(0);
            }
            let n = buffer.len().min(self.piece.len());
            buffer[..n].copy_from_slice(&self.piece[..n]);
            self.piece.drain(..n);
            n
        };
        self.at += n as u64;
        Ok(n)
    }
}
