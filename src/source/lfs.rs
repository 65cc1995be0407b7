//! Git LFS pointers: what `git clone` leaves in the place of a large file where Git LFS is not installed.

use crate::error::{Error, Result};
use std::path::Path;

/// How every pointer begins (Git LFS specification, "The Pointer").
const START: &[u8] = b"version https://git-lfs.github.com/spec/";
/// The specification's limit on a pointer's size, in bytes.
const LARGEST: usize = 1024;

/// Refuses the bytes of a file that are a pointer instead of the file.
///
/// # Errors
/// They are.
pub fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.len() >= LARGEST || !bytes.starts_with(START) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(bytes);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
    let what = format!("{} is a Git LFS pointer, not the file{size} that it stands for", path.display());
    Err(Error::new(what).hint("fetch the file itself: `git lfs pull` in its folder, or `hf download ORG/NAME`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::config::Config;
    use crate::source::gguf::Gguf;
    use crate::source::vocabulary::Vocabulary;

    #[test]
    fn a_pointer_is_told_from_a_file_that_speaks_of_pointers() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5775872\n";
        let error = refuse_pointer(Path::new("a/model.safetensors"), pointer).unwrap_err();
        assert!(error.to_string().starts_with("a/model.safetensors is a Git LFS pointer"), "{error}");
        assert!(error.to_string().contains("5775872 bytes"), "{error}");
        assert!(error.hint_text().unwrap().contains("git lfs pull"));
        let long = [&pointer[..], &[b' '; LARGEST]].concat();
        for other in [&b""[..], b"# version https://git-lfs.github.com/spec/v1", &long] {
            refuse_pointer(Path::new("a"), other).unwrap();
        }
    }

    #[test]
    fn every_file_that_git_lfs_may_hold_is_looked_at() {
        const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5775872\n";
        let folder = tempfile::tempdir().unwrap();
        let pointer = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, POINTER).unwrap();
            path
        };
        let named = |error: Option<Error>, name: &str| {
            let told = error.expect("an error").chain().join(": ");
            assert!(told.contains(&format!("{name} is a Git LFS pointer")), "{told}");
        };
        let config = serde_json::json!({});
        for name in ["tokenizer.model", "tokenizer.json", "tekken.json"] {
            let path = pointer(name);
            named(Vocabulary::from_files(folder.path(), 8, &config, None).err(), name);
            std::fs::remove_file(path).unwrap();
        }
        named(Gguf::open(&pointer("a.gguf"), |_| None).err(), "a.gguf");
        named(Config::open(&pointer("config.json")).err(), "config.json");
    }
}
