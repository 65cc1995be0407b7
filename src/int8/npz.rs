//! NumPy's `.npz`: a zip of `.npy`, as `np.savez` and `np.savez_compressed` write it. Entries are read as streams, so that
//! a file of any size costs only the samples at hand.

use flate2::read::DeflateDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// Where an entry lies.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The array's name: that of the entry without `.npy`.
    pub name: String,
    start: u64,
    bytes: u64,
    deflated: bool,
}

/// The arrays of a file.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with the name of the file.
pub fn entries(path: &Path) -> Result<Vec<Entry>, String> {
    let file = File::open(path).map_err(|cause| format!("cannot be opened: {cause}"))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|cause| format!("is no whole zip: {cause}"))?;
    let mut entries = Vec::new();
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i).map_err(|cause| format!("has a damaged entry {i}: {cause}"))?;
        let full = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let Some(name) = full.strip_suffix(".npy") else { continue };
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => return Err(format!("holds '{full}', compressed with {other}; NumPy uses deflate or nothing")),
        };
        if entry.encrypted() {
            return Err(format!("holds '{full}', which is encrypted"));
        }
        let start = entry.data_start().ok_or_else(|| format!("does not say where '{full}' begins"))?;
        entries.push(Entry { name: name.to_owned(), start, bytes: entry.compressed_size(), deflated });
    }
    Ok(entries)
}

/// The bytes of an entry, decompressed.
///
/// # Errors
/// As for [`entries`].
pub fn open(path: &Path, entry: &Entry) -> Result<Box<dyn Read>, String> {
    let mut file = File::open(path).map_err(|cause| format!("cannot be opened: {cause}"))?;
    file.seek(SeekFrom::Start(entry.start)).map_err(|cause| format!("cannot be read: {cause}"))?;
    let raw = BufReader::with_capacity(1 << 16, file.take(entry.bytes));
    Ok(if entry.deflated { Box::new(DeflateDecoder::new(raw)) } else { Box::new(raw) })
}
