//! Whether what was fetched is what the hub has: a large file is called after its SHA-256 there.

use super::client::Facts;
use crate::error::{Context, Error, Result};
use crate::interrupt;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Checks a whole file, `name` on the hub, against its ETag, if that is a SHA-256; those of small files are Git's names. A file
/// that is wrong is removed.
///
/// # Errors
/// It is wrong, it cannot be read, or the user asked to stop.
pub fn check(path: &Path, name: &str, facts: &Facts) -> Result<()> {
    let is_sha256 = |etag: &&str| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    let Some(wanted) = facts.etag.as_deref().filter(is_sha256) else { return Ok(()) };
    let found = sha256(path)?;
    if found.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let error = Error::new(format!("{name} arrived damaged: its SHA-256 is {found}, and on the hub it is {wanted}"));
    Err(match std::fs::remove_file(path) {
        Ok(()) => error.hint("what arrived was removed; the same command fetches it again"),
        Err(cause) => error.because(cause).hint(format!("remove it and fetch it again: rm {}", path.display())),
    })
}

fn sha256(path: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut file = File::open(path).context(unreadable)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        interrupt::check()?;
        match file.read(&mut piece).context(unreadable)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&piece[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_of_another_name_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let with = |etag: &str| Facts { etag: Some(etag.into()), ..Facts::default() };
        // The example of FIPS 180-4.
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        std::fs::write(&path, "abc").unwrap();
        for etag in [of_abc, &of_abc.to_uppercase(), "8baef1b4abc478178b004d62031cf7fe6db6f903", ""] {
            check(&path, "a/file", &with(etag)).unwrap();
        }
        std::fs::write(&path, "abd").unwrap();
        let error = check(&path, "a/file", &with(of_abc)).unwrap_err();
        assert!(error.to_string().contains("a/file") && error.to_string().contains(of_abc), "{error}");
        assert!(!path.exists());
    }
}
