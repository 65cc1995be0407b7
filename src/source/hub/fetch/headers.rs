//! A model without its weights: safetensors of which only the headers are real.

use super::client::Client;
use super::failure::Failure;
use super::transfer::{RemoteFile, abreast, patiently};
use super::{Found, Repository, Watch};
use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Headers beyond this are not those of safetensors, which sets this limit itself.
const LONGEST: u64 = 100_000_000;

/// A folder that looks like a snapshot, of which `missing` is not in the cache: their headers are fetched, and what would follow is a
/// hole as long.
///
/// # Errors
/// The network or the hub fails, or a file is no safetensors.
pub fn folder(
    client: &Client,
    repository: &Repository,
    snapshot: &Path,
    missing: &[RemoteFile],
    watch: &dyn Watch,
) -> Result<Found, Failure> {
    let temporary = tempfile::Builder::new()
        .prefix("llmq-")
        .tempdir()
        .context(|| format!("cannot make a folder in {}", std::env::temp_dir().display()))?;
    // Called after the model, as what is made of it is.
    let folder = temporary.path().join(repository.name());
    mirror(snapshot, &folder).context(|| format!("cannot write to {}", folder.display()))?;
    abreast(missing, |wanted| {
        let (header, size) = header(client, wanted, watch)?;
        let path = folder.join(&wanted.file);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&header)?;
            file.set_len(size)
        };
        Ok(write().context(|| format!("cannot write to {}", path.display()))?)
    })?;
    Ok(Found { path: folder, _temporary: Some(temporary) })
}

/// The length of the header and the header itself, as they are in the file, and the size of the file.
fn header(client: &Client, wanted: &RemoteFile, watch: &dyn Watch) -> Result<(Vec<u8>, u64), Failure> {
    let RemoteFile { file, url, facts, .. } = wanted;
    let size = facts.size.ok_or_else(|| {
        Error::new(format!("the hub does not say how long {file} is"))
            .hint("check HF_ENDPOINT, if you use it: a mirror has to pass lengths on")
    })?;
    let no_header = |why: String| -> Failure {
        Error::new(format!("{file}: {why}")).hint("the file is damaged; tell those who have published it").into()
    };
    if size < 8 {
        return Err(no_header(format!("it has {size} bytes, too few for a safetensors header")));
    }
    let mut bytes = patiently(watch, || client.read(url, 0, 8))?;
    let length = bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    if length > LONGEST.min(size - 8) {
        return Err(no_header(format!("its header should take {length} bytes, but the file has only {size}")));
    }
    bytes.extend(patiently(watch, || client.read(url, 8, 8 + length))?);
    Ok((bytes, size))
}

/// Repeats a folder as links, or as copies where there are none.
fn mirror(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?.path();
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() {
            mirror(&entry, &target)?;
            continue;
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(entry.canonicalize()?, &target)?;
        #[cfg(not(unix))]
        std::fs::copy(&entry, &target)?;
    }
    Ok(())
}
