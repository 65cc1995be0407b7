//! What the system tells of disks.

use std::path::Path;

/// Bytes that a file in `folder` may still take.
#[cfg(unix)]
pub fn available(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Not known here.
#[cfg(not(unix))]
pub fn available(_: &Path) -> Option<u64> {
    None
}
