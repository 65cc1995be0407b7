//! Folders that are there completely or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Listed, available, folder_of, sync_folder, unfinished};
use crate::error::{Context, Error, Result};

/// A folder under construction: its files go to a hidden sibling of the destination, which [`commit`] renames; dropped
/// before that, it leaves nothing behind.
///
/// [`commit`]: AtomicFolder::commit
#[derive(Debug)]
pub struct AtomicFolder {
    path: PathBuf,
    temporary: PathBuf,
    _listed: Listed,
}

impl AtomicFolder {
    /// Starts the folder that will appear at `path`, with room for `bytes`. Nothing but an empty folder may be there, or,
    /// with `force`, one for which `replaceable` holds.
    ///
    /// # Errors
    /// Something else is there, the parent folder is missing or not writable, the disk is too small, or the program is
    /// being interrupted.
    pub fn create(path: &Path, bytes: u64, force: bool, replaceable: impl Fn(&Path) -> bool) -> Result<Self> {
        check(path, force, replaceable)?;
        let parent = folder_of(path);
        let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(48).collect();
        if let Some(free) = available(parent).filter(|&free| free < bytes) {
            return Err(Error::new(format!(
                "cannot write {}: it needs {bytes} bytes, {free} are available",
                path.display()
            ))
            .hint(format!("free some space in {}, or choose another folder with -o", parent.display())));
        }
        let mut unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        let temporary = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".tmp").tempdir_in(parent);
        let temporary = temporary.context(|| format!("cannot create {}", path.display()))?.keep();
        unfinished.paths.insert(temporary.clone());
        drop(unfinished);
        Ok(Self { path: path.into(), _listed: Listed(temporary.clone()), temporary })
    }

    /// Where files of the folder are to be written.
    pub fn file(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Lets the folder appear, in the place of what may be replaced.
    ///
    /// # Errors
    /// The system refused, or the program is being interrupted; what was there before is there still.
    pub fn commit(self) -> Result<()> {
        let what = || format!("cannot finish {}", self.path.display());
        usual_mode(&self.temporary).and_then(|()| sync_folder(&self.temporary)).context(what)?;
        let unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        // A folder with files in it cannot be renamed over: it steps aside until the new one is in its place.
        let aside = self.temporary.with_extension("old");
        let replaces = self.path.is_dir();
        if replaces {
            fs::rename(&self.path, &aside).context(what)?;
        }
        if let Err(cause) = fs::rename(&self.temporary, &self.path) {
            if replaces {
                fs::rename(&aside, &self.path).ok();
            }
            return Err(cause).context(what);
        }
        drop(unfinished);
        if replaces {
            fs::remove_dir_all(&aside).context(|| format!("cannot remove {}", aside.display()))?;
        }
        sync_folder(folder_of(&self.path)).context(what)
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        // Renamed, it is no longer there; a failure leaves a hidden folder, about which nobody could do more.
        fs::remove_dir_all(&self.temporary).ok();
    }
}

/// Temporary folders are private; the finished one gets the mode of any new folder.
fn usual_mode(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let probe = folder.join(".mode");
        fs::create_dir(&probe)?;
        let mode = fs::metadata(&probe).map(|found| found.permissions());
        fs::remove_dir(&probe)?;
        fs::set_permissions(folder, mode?)?;
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Refuses a destination whose replacement would lose something.
///
/// # Errors
/// As [`AtomicFolder::create`].
pub fn check(path: &Path, force: bool, replaceable: impl Fn(&Path) -> bool) -> Result<()> {
    let shown = path.display();
    let parent = folder_of(path);
    if path.file_name().is_none() {
        return Err(Error::usage(format!("the output {shown} has no name")).hint("name a new folder with -o"));
    }
    if !parent.is_dir() {
        return Err(Error::usage(format!("cannot write {shown}: the folder {} does not exist", parent.display()))
            .hint(format!("mkdir -p {}", parent.display())));
    }
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.is_dir() {
        return Err(Error::usage(format!("the output {shown} is there already, and is no folder"))
            .hint("choose another name with -o"));
    }
    if fs::read_dir(path).context(|| format!("cannot read {shown}"))?.next().is_none() {
        return Ok(());
    }
    match (replaceable(path), force) {
        (true, true) => Ok(()),
        (true, false) => Err(Error::usage(format!("the output {shown} already exists"))
            .hint("add --force to replace it, or choose another name with -o")),
        (false, _) => Err(Error::usage(format!("the output {shown} is a folder with other things in it"))
            .hint("choose another name with -o: only folders that this command wrote are replaced")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("out");
        let dropped = AtomicFolder::create(&path, 10, false, |_| false).unwrap();
        fs::write(dropped.file("a"), "half").unwrap();
        drop(dropped);
        assert_eq!(names(parent.path()), [""; 0]);
        for content in ["first", "second"] {
            let folder = AtomicFolder::create(&path, 10, true, |_| true).unwrap();
            fs::write(folder.file(content), content).unwrap();
            folder.commit().unwrap();
            assert_eq!(names(parent.path()), ["out"]);
            assert_eq!(names(&path), [content]);
        }
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let [full, file, empty, deep] = ["full", "file", "empty", "missing/out"].map(|name| parent.path().join(name));
        fs::create_dir(&full).unwrap();
        fs::create_dir(&empty).unwrap();
        fs::write(full.join("a"), "").unwrap();
        fs::write(&file, "").unwrap();
        let refusal = |path: &Path, force, replaceable: bool| match check(path, force, |_| replaceable) {
            Ok(()) => String::new(),
            Err(error) => format!("{error}; {}", error.hint_text().unwrap()),
        };
        assert_eq!(refusal(&empty, false, false), "");
        assert_eq!(refusal(&full, true, true), "");
        assert!(refusal(&full, false, true).contains("--force"));
        assert!(refusal(&full, true, false).contains("other things in it"));
        assert!(refusal(&file, true, true).contains("no folder"));
        assert!(refusal(&deep, true, true).contains("mkdir -p"));
        let error = AtomicFolder::create(&parent.path().join("huge"), u64::MAX, false, |_| false).unwrap_err();
        assert!(error.to_string().contains("it needs 18446744073709551615 bytes, "), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_that_of_any_new_folder() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| parent.path().join(name));
        fs::create_dir(&plain).unwrap();
        AtomicFolder::create(&atomic, 0, false, |_| false).unwrap().commit().unwrap();
        let [plain, atomic] = [plain, atomic].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(atomic, plain);
    }
}
