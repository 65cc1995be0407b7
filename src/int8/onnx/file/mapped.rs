//! Files in memory, page by page as they are read.
//!
//! Pages that were read count as this process's memory until they are given back. Whoever has copied values out of a file has no
//! use for its pages, but sees only bytes: so the files that are mapped are known here.

use crate::error::Result;
use crate::source::pages;
use memmap2::Mmap;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes that are read at once: whole values of every type.
pub const PART: usize = 4 << 20;

/// Who reads a byte may get all of a huge page.
const AROUND: usize = 2 << 20;

/// The files that are mapped, by their first address.
static MAPPED: Mutex<BTreeMap<usize, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

fn mapped() -> MutexGuard<'static, BTreeMap<usize, Weak<Mmap>>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that its bytes keep mapped.
struct Known(Arc<Mmap>);

impl AsRef<[u8]> for Known {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        mapped().remove(&(self.0.as_ptr() as usize));
    }
}

/// Maps a file; its pages are read when they are needed.
///
/// # Errors
/// It cannot be opened or mapped.
pub fn map(path: &Path) -> std::io::Result<Bytes> {
    map_file(&File::open(path)?)
}

/// Maps an open file.
///
/// # Errors
/// It cannot be mapped.
pub fn map_file(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: the map is read-only. As with every mapped file, another program that shortens it meanwhile ends this one.
    let map = Arc::new(unsafe { Mmap::map(file) }?);
    mapped().insert(map.as_ptr() as usize, Arc::downgrade(&map));
    Ok(Bytes::from_owner(Known(map)))
}

/// Gives back the pages of bytes of a mapped file, as [`pages::release`] does, and those around that came with them. Bytes from elsewhere
/// stay.
pub fn release(bytes: &[u8]) {
    // Fewer bytes are not worth a call.
    const LEAST: usize = 1 << 18;
    if bytes.len() < LEAST {
        return;
    }
    let start = bytes.as_ptr() as usize;
    let map = mapped().range(..=start).next_back().and_then(|(first, map)| Some((start - first, map.upgrade()?)));
    if let Some((at, map)) = map.filter(|(at, map)| at + bytes.len() <= map.len()) {
        pages::release(&map, at.saturating_sub(AROUND)..map.len().min(at + bytes.len() + AROUND));
    }
}

/// Reads bytes part by part. The pages of a part go back before the next is read: large tensors are in memory once, not twice.
///
/// # Errors
/// Those of `read`.
pub fn each_part(bytes: &[u8], mut read: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    bytes.chunks(PART).try_for_each(|part| {
        read(part)?;
        release(part);
        Ok(())
    })
}

/// The kilobytes of a mapped file that are in memory; `bytes` begin where the file does.
#[cfg(all(test, target_os = "linux"))]
pub fn resident(bytes: &[u8]) -> usize {
    let first = format!("{:x}-", bytes.as_ptr() as usize);
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let map = maps.split(&first).nth(1).unwrap();
    let line = map.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_given_back_are_read_again_and_others_stay() {
        const N: usize = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values");
        let values: Vec<u8> = (0..N).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &values).unwrap();
        let bytes = map(&path).unwrap();
        for part in [0..N, 5..N, N / 4 - 1..N / 2 + 7, 0..9] {
            release(&bytes[part]);
            assert!(bytes[..] == values[..]);
        }
        // What is of no file would be zero afterwards.
        release(&values);
        assert!(bytes[..] == values[..]);
        let first = bytes.as_ptr() as usize;
        drop(bytes);
        assert!(!mapped().contains_key(&first));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_that_were_given_back_are_no_longer_counted() {
        const N: usize = 64 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values");
        std::fs::write(&path, vec![1u8; N]).unwrap();
        let bytes = map(&path).unwrap();
        assert_eq!(bytes.iter().step_by(512).map(|&x| usize::from(x)).sum::<usize>(), N / 512);
        let before = resident(&bytes);
        release(&bytes[N / 2..]);
        let after = resident(&bytes);
        assert!(before * 1024 >= N && after * 1024 <= N / 2 - AROUND + 4096, "{before} and {after} KiB");
        assert!(after * 1024 >= N / 2 - AROUND - 4096, "{after} KiB");
    }
}
