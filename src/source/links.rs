//! Links in a checkpoint folder that lead out of it.
//!
//! Reading through them is the user's own business: the hub's cache consists of links, and people link files to save space. But
//! what is copied into a new folder, or word for word into a GGUF, is likely to be published, and an archive or a git repository can
//! hold a link to anything.

use crate::error::{Context, Error, Result};
use std::path::Path;

/// Refuses a file of `folder` that is really somewhere else. The blobs of the hub's cache, beside the folder's commit, count as
/// inside; where `config.json` is itself a link, so does the folder that it leads to, since people link whole checkpoints file by file.
///
/// # Errors
/// It is outside, or not there.
pub fn stays_inside(folder: &Path, file: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().context(|| format!("cannot read {}", path.display()));
    let (root, target) = (real(folder)?, real(file)?);
    // models--ORG--NAME/snapshots/COMMIT, with models--ORG--NAME/blobs.
    let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    let config = folder.join("config.json").canonicalize().ok();
    let beside = config.as_deref().and_then(Path::parent).is_some_and(|place| target.parent() == Some(place));
    if target.starts_with(&root) || blobs.is_some_and(|blobs| target.starts_with(blobs)) || beside {
        return Ok(());
    }
    let (file, target) = (file.display(), target.display());
    Err(Error::new(format!("{file} is a link to {target}, outside of its folder, and would be copied from there"))
        .hint("put a copy in the place of the link, if the file belongs to the model; or else remove it"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_out_of_a_folder_are_refused_and_those_of_the_hubs_cache_are_not() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let commit = place.join("models--a--b/snapshots/0123");
        fs::create_dir_all(&commit).unwrap();
        fs::create_dir_all(place.join("models--a--b/blobs")).unwrap();
        let put = |path: &str| fs::write(place.join(path), "x").unwrap();
        ["secret", "models--a--b/blobs/45", "models--a--b/README"].into_iter().for_each(put);
        put("models--a--b/snapshots/0123/own");
        let inside = |name: &str| stays_inside(&commit, &commit.join(name));
        for (target, name) in [("own", "a"), ("../../blobs/45", "b"), ("../../../secret", "c"), ("../../README", "d")] {
            symlink(target, commit.join(name)).unwrap();
        }
        symlink(place.join("secret"), commit.join("e")).unwrap();
        for name in ["own", "a", "b"] {
            inside(name).unwrap();
        }
        for name in ["c", "d", "e"] {
            let error = inside(name).unwrap_err();
            assert!(error.to_string().contains("outside of its folder") && error.hint_text().is_some(), "{error}");
        }
        assert!(inside("missing").unwrap_err().to_string().contains("cannot read"));
        // A checkpoint whose every file is a link into one other folder.
        symlink("../../../config.json", commit.join("config.json")).unwrap();
        put("config.json");
        inside("c").unwrap();
        inside("d").unwrap_err();
    }
}
