//! Pages of mapped files.

use memmap2::Mmap;
use std::ops::Range;

/// Says that a part of a file's map will be read soon. Only a hint: nothing depends on it.
#[cfg(unix)]
pub fn expect(map: &Mmap, bytes: Range<usize>) {
    let _ = map.advise_range(memmap2::Advice::WillNeed, bytes.start, bytes.len());
}

/// Pages are the system's own business here.
#[cfg(not(unix))]
pub fn expect(_: &Mmap, _: Range<usize>) {}

/// Gives pages of a file's map back to the system: they count as this process's memory while they are mapped in. Pages that hold other
/// bytes as well stay. What is read again comes from the file again.
#[cfg(unix)]
pub fn release(map: &Mmap, bytes: Range<usize>) {
    const PAGE: usize = 4096;
    let first = bytes.start.next_multiple_of(PAGE);
    let last = bytes.end / PAGE * PAGE;
    if first < last {
        // SAFETY: the mapping is file-backed and never written, so dropped pages are read again from the file. A failure only means that
        // the pages stay, hence the ignored result.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, last - first) };
    }
}

/// Pages are the system's own business here.
#[cfg(not(unix))]
pub fn release(_: &Mmap, _: Range<usize>) {}
