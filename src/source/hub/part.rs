//! The beginning of a large file of a dataset: only as much as is read is fetched, and what was fetched is kept.

use super::cache::Kept;
use super::client::{Client, Facts, Stream};
use super::environment::Environment;
use super::failure::Failure;
use super::transfer::{self, Failures, Wanted, patiently};
use super::{Repository, Watch};
use crate::error::{Context, Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// A file of the hub as a reader.
pub struct Part<'a> {
    repository: Repository,
    environment: Environment,
    client: Client,
    watch: &'a dyn Watch,
    /// None of it is missing, so that nothing is ever fetched.
    whole: bool,
    url: String,
    path: PathBuf,
    file: File,
    size: Option<u64>,
    /// Bytes read, and bytes that are in the file.
    at: u64,
    kept: u64,
    /// What `kept` was before the last piece came.
    resumed: u64,
    stream: Option<Stream>,
    /// What has arrived and was not read yet.
    piece: Vec<u8>,
    failures: Failures,
    _lock: Option<File>,
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
        let what = format!("fetching {name} of {} from {}", repository.id, environment.endpoint);
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
) -> Result<Wanted, Failure> {
    let url = repository.url(&environment.endpoint, &repository.revision, name);
    let facts = patiently(watch, || client.facts(&url))?;
    let commit = facts.commit.clone().ok_or_else(|| {
        Error::new(format!("the hub does not say of which commit {name} is"))
            .hint("check HF_ENDPOINT, if you use it: a mirror has to pass X-Repo-Commit on")
    })?;
    Ok(Wanted { file: name.into(), url, commit, facts })
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
        let repository = repository.clone();
        if let Some(path) = kept.commit().map(|commit| kept.snapshot(&commit).join(name)).filter(|path| path.exists()) {
            let file = File::open(&path).context(|| format!("cannot open {}", path.display()))?;
            return Part::new(repository, environment, client, watch, path, file, None);
        }
        // Beside the snapshots, for other tools take what is in these for whole.
        let place = |commit: &str| kept.folder().join("llmq").join(commit).join(name);
        let known = kept.commit().map(|commit| (place(&commit), commit)).filter(|(path, _)| path.exists());
        let (path, commit) = match known {
            Some(known) => known,
            None if environment.offline => return Err(not_kept(&repository, name, &environment)),
            None => {
                let wanted = ask(&client, &repository, name, &environment, watch).map_err(|failure| {
                    let what = format!("cannot fetch {name} of the dataset {}", repository.id);
                    failure.explain(&what, &repository, &environment)
                })?;
                kept.remember(&wanted.commit)?;
                (place(&wanted.commit), wanted.commit)
            }
        };
        let lock = kept.lock(&path)?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|cause| kept.unwritable(cause))?;
        let url = repository.url(&environment.endpoint, &commit, name);
        Part::new(repository, environment, client, watch, path, file, Some((url, lock)))
    }

    fn new(
        repository: Repository,
        environment: Environment,
        client: Client,
        watch: &'a dyn Watch,
        path: PathBuf,
        file: File,
        remote: Option<(String, File)>,
    ) -> Result<Part<'a>> {
        let kept = file.metadata().context(|| format!("cannot read {}", path.display()))?.len();
        let whole = remote.is_none();
        let (url, lock) = remote.unzip();
        Ok(Part {
            repository,
            environment,
            client,
            watch,
            whole,
            url: url.unwrap_or_default(),
            path,
            file,
            size: None,
            at: 0,
            kept,
            resumed: kept,
            stream: None,
            piece: Vec::new(),
            failures: Failures::default(),
            _lock: lock,
        })
    }

    /// The file on this machine.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Waits for the next piece of what is not here yet, and keeps it. None behind the last.
    fn more(&mut self) -> Result<bool> {
        let id = self.repository.id.clone();
        if self.environment.offline {
            return Err(Error::new(format!(
                "HF_HUB_OFFLINE is set, and only the first {} bytes of {} are here",
                self.kept,
                self.path.display()
            ))
            .hint("unset HF_HUB_OFFLINE once to fetch more, or lower --samples or --seq-len"));
        }
        let what = format!("cannot fetch more of the dataset {id}");
        let mut moved = self.kept > self.resumed;
        let piece = loop {
            match self.attempt() {
                Ok(None) => return Ok(false),
                Ok(Some(piece)) => break piece,
                Err(failure) => {
                    self.stream = None;
                    let pause = self.failures.pause(failure, moved, self.watch);
                    pause.map_err(|failure| failure.explain(&what, &self.repository, &self.environment))?;
                    moved = false;
                }
            }
        };
        self.resumed = self.kept;
        self.file.write_all(&piece).context(|| format!("cannot write to {}", self.path.display()))?;
        self.kept += piece.len() as u64;
        self.watch.advance(piece.len() as u64);
        self.piece = piece;
        Ok(true)
    }

    fn attempt(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        if self.stream.is_none() {
            let url = self.url.clone();
            if self.size.is_none() {
                let Facts { size, .. } = patiently(self.watch, || self.client.facts(&url))?;
                self.size = size;
                let what = format!(
                    "fetching as much of {} as is needed, from {}",
                    self.repository.id, self.environment.endpoint
                );
                self.watch.begin(&what, size.unwrap_or_default().saturating_sub(self.kept));
            }
            if self.size == Some(self.kept) {
                return Ok(None);
            }
            let stream = patiently(self.watch, || self.client.open(&url, self.kept, None))?;
            if stream.from != self.kept {
                let (asked, begins) = (self.kept, stream.from);
                return Err(Error::new(format!("{url}: asked for byte {asked}, got byte {begins}")).into());
            }
            self.stream = Some(stream);
        }
        match &mut self.stream {
            Some(stream) => stream.piece(),
            None => Ok(None),
        }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = if self.at < self.kept - self.piece.len() as u64 {
            self.file.read(buffer)?
        } else {
            if self.piece.is_empty() && (self.whole || !self.more().map_err(io::Error::other)?) {
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
