//! A file from the hub into the cache: resumed where an earlier attempt ended, tried again where the network failed, whole or
//! not there at all.

use super::cache::Kept;
use super::client::{Client, Facts};
use super::digest;
use super::failure::Failure;
use super::{Repository, Watch};
use crate::error::{Error, Result};
use crate::interrupt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failures in a row, without a byte in between, after which it is given up, and the pause behind the first.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(250);

/// Files on their way at once.
const ABREAST: usize = 8;

/// A file of a commit, with what the hub says about it.
#[derive(Debug, Clone)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub file: String,
    /// Where it is on the hub.
    pub url: String,
    /// The commit that it is of.
    pub commit: String,
    /// Its size and the name of its content.
    pub facts: Facts,
}

/// Attempts until one succeeds, or none is worthwhile any more.
///
/// # Errors
/// That of the last attempt, or the user asked to stop.
pub fn patiently<T>(watch: &dyn Watch, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut failures = Failures::default();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(failure) => failures.pause(failure, false, watch)?,
        }
    }
}

/// Failures in a row.
#[derive(Default)]
pub struct Failures(u32);

impl Failures {
    /// Waits before another attempt. `moved`: something arrived since the last failure.
    ///
    /// # Errors
    /// The failure itself, if another attempt is of no use; or the user asked to stop.
    pub fn pause(&mut self, failure: Failure, moved: bool, watch: &dyn Watch) -> Result<(), Failure> {
        self.0 = if moved { 1 } else { self.0 + 1 };
        let usual = PAUSE * 2u32.pow(self.0 - 1);
        let Some(pause) = failure.again_in(usual).filter(|_| self.0 < ATTEMPTS) else { return Err(failure) };
        if pause > Duration::from_secs(5) {
            watch.note(&format!("the hub asks to wait {} s", pause.as_secs()));
        }
        let until = Instant::now() + pause;
        while Instant::now() < until {
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Brings a file into the cache. Returns its place in the snapshot.
///
/// # Errors
/// The network, the hub or the disk fails; what has arrived is kept for another time.
pub fn fetch(client: &Client, kept: &Kept, wanted: &RemoteFile, watch: &dyn Watch) -> Result<PathBuf, Failure> {
    let path = kept.snapshot(&wanted.commit).join(&wanted.file);
    if path.exists() {
        return Ok(path);
    }
    let (blob, part) = kept.blob(&wanted.file, &wanted.facts)?;
    let _lock = kept.lock(&blob)?;
    if !blob.exists() {
        let file = complete(client, kept, wanted, &part, watch)?;
        // A blob is trusted for ever, so it must not be there before its content is.
        digest::check(&part, &wanted.file, &wanted.facts)?;
        file.sync_all().and_then(|()| std::fs::rename(&part, &blob)).map_err(|cause| kept.unwritable(cause))?;
    }
    Ok(kept.link(&wanted.commit, &wanted.file, &blob)?)
}

/// Appends to an incomplete file until it is whole.
fn complete(
    client: &Client,
    kept: &Kept,
    wanted: &RemoteFile,
    part: &Path,
    watch: &dyn Watch,
) -> Result<File, Failure> {
    let unwritable = |cause| kept.unwritable(cause);
    let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(unwritable)?;
    let mut have = file.metadata().map_err(unwritable)?.len();
    if wanted.facts.size.is_some_and(|size| have > size) {
        file.set_len(0).map_err(unwritable)?;
        have = 0;
    }
    watch.advance(have);
    let mut failures = Failures::default();
    while wanted.facts.size != Some(have) {
        let before = have;
        let mut attempt = || -> Result<bool, Failure> {
            let mut stream = client.open(&wanted.url, have, None)?;
            if stream.from != 0 && stream.from != have {
                let (asked, begins) = (have, stream.from);
                return Err(Error::new(format!("{}: asked for byte {asked}, got byte {begins}", wanted.url)).into());
            }
            if stream.from != have {
                // The server sends all of it again.
                file.set_len(0).map_err(unwritable)?;
                have = 0;
            }
            while let Some(piece) = stream.piece()? {
                file.write_all(&piece).map_err(unwritable)?;
                have += piece.len() as u64;
                watch.advance(piece.len() as u64);
            }
            Ok(wanted.facts.size.is_none())
        };
        match attempt() {
            Ok(true) => break,
            Ok(false) if wanted.facts.size == Some(have) => break,
            Ok(false) => {
                let cause = format!("{have} bytes arrived, but the file has {}", wanted.facts.size.unwrap_or_default());
                failures.pause(Failure::Network(cause.into()), have > before, watch)?;
            }
            Err(failure) => failures.pause(failure, have > before, watch)?,
        }
    }
    Ok(file)
}

/// Works on several things at once. The first error ends it.
///
/// # Errors
/// That of the first piece of work, in their order, that failed.
pub fn abreast<T: Sync, U: Send>(
    things: &[T],
    work: impl Fn(&T) -> Result<U, Failure> + Sync,
) -> Result<Vec<U>, Failure> {
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<Mutex<Option<Result<U, Failure>>>> = things.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..ABREAST.min(things.len()) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(thing), Some(place)) = (things.get(i), results.get(i)) else { return };
                    let result = work(thing);
                    over.fetch_or(result.is_err(), Ordering::Relaxed);
                    if let Ok(mut place) = place.lock() {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    let mut done = Vec::new();
    let mut missing = false;
    for result in results {
        match result.into_inner().ok().flatten() {
            Some(result) => done.push(result?),
            None => missing = true,
        }
    }
    if missing { Err(Error::new("a transfer was left unfinished").into()) } else { Ok(done) }
}

/// What the hub says about files of a commit.
///
/// # Errors
/// A file is not there, or there is no answer.
pub fn facts(
    client: &Client,
    repository: &Repository,
    commit: &str,
    files: &[String],
    endpoint: &str,
    watch: &dyn Watch,
) -> Result<Vec<RemoteFile>, Failure> {
    abreast(files, |file| {
        let url = repository.url(endpoint, commit, file);
        let facts = patiently(watch, || client.facts(&url))?;
        Ok(RemoteFile { file: file.clone(), url, commit: commit.to_owned(), facts })
    })
}
