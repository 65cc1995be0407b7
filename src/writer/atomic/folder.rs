//! Folders that are there completely or not at all.

use super::{Listed, folder_of, sync_folder, unfinished};
use crate::disk;
use crate::error::{Context, Error, Result};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder under construction: a hidden temporary beside its place, which [`commit`](AtomicFolder::commit) renames; dropped
/// before that, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFolder {
    path: PathBuf,
    /// Whether something was at the final path when work began, and so may be replaced.
    replaces: bool,
    temporary: TempDir,
    /// Dropped behind the temporary, so that this is listed for as long as it exists.
    _listed: Listed,
}

impl AtomicFolder {
    /// Starts the folder that will appear at `path`, where there has to be room for `bytes`.
    ///
    /// # Errors
    /// The folder around it is missing or not writable, the disk is too small, or the program is being interrupted.
    pub fn create(path: &Path, bytes: u64) -> Result<AtomicFolder> {
        let around = folder_of(path);
        if let Some(free) = disk::available(around).filter(|&free| free < bytes) {
            let shown = path.display();
            return Err(Error::new(format!("cannot write {shown}: it needs {bytes} bytes, {free} are available"))
                .hint(format!("free some space in {}, or choose another folder with -o", around.display())));
        }
        let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(48).collect();
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // The system takes the umask off, as for any new folder.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let mut unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        let temporary = builder.tempdir_in(around).context(|| format!("cannot create {}", path.display()))?;
        unfinished.paths.insert(temporary.path().to_owned());
        let listed = Listed(temporary.path().to_owned());
        let replaces = fs::symlink_metadata(path).is_ok();
        Ok(AtomicFolder { path: path.into(), replaces, temporary, _listed: listed })
    }

    /// Where its files are made.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Where one of its files is to be written.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Lets the folder, whose files have to be durable, appear at its final path, in the place of what was there when work began.
    ///
    /// # Errors
    /// The system refused, or the program is being interrupted.
    pub fn commit(self) -> Result<()> {
        let what = || format!("cannot finish {}", self.path.display());
        sync_folder(self.temporary.path()).context(what)?;
        let unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        // What was there takes the temporary's place, and goes with it.
        if self.replaces {
            exchange(self.temporary.path(), &self.path)
        } else {
            appear(self.temporary.path(), &self.path)
        }
        .context(what)?;
        drop(unfinished);
        sync_folder(folder_of(&self.path)).context(what)
    }
}

/// Renames a folder to where nothing is; some systems would replace an empty folder.
fn appear(from: &Path, to: &Path) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// Lets two folders change places.
fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            // A file system that cannot.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => {}
            done => return Ok(done?),
        }
    }
    let aside = from.with_extension("old");
    fs::rename(to, &aside)?;
    match fs::rename(from, to) {
        Ok(()) => fs::rename(&aside, from),
        Err(cause) => {
            // The old one goes back; if even that fails, the first cause matters more.
            fs::rename(&aside, to).ok();
            Err(cause)
        }
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
    fn a_folder_appears_whole_replaces_an_old_one_and_leaves_nothing_if_dropped() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        for content in ["first", "second"] {
            let folder = AtomicFolder::create(&path, 10).unwrap();
            fs::write(folder.file(content), content).unwrap();
            assert_eq!(names(root.path()).len(), if content == "first" { 1 } else { 2 });
            folder.commit().unwrap();
            assert_eq!((names(root.path()), names(&path)), (vec!["out".to_owned()], vec![content.to_owned()]));
        }
        let folder = AtomicFolder::create(&path, 10).unwrap();
        fs::write(folder.file("third"), "").unwrap();
        drop(folder);
        assert_eq!((names(root.path()), names(&path)), (vec!["out".to_owned()], vec!["second".to_owned()]));
        assert!(!unfinished().paths.iter().any(|path| path.starts_with(&root)));
    }

    #[test]
    fn what_appeared_meanwhile_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let folder = AtomicFolder::create(&path, 10).unwrap();
        fs::write(&path, "someone else's").unwrap();
        assert!(folder.commit().unwrap_err().to_string().contains("cannot finish"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "someone else's");
        assert_eq!(names(root.path()), ["out"]);
    }

    #[test]
    fn a_disk_that_is_too_small_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = AtomicFolder::create(&root.path().join("huge"), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("it needs 18446744073709551615 bytes, "), "{error}");
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_that_of_any_new_folder() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| root.path().join(name));
        fs::create_dir(&plain).unwrap();
        AtomicFolder::create(&atomic, 0).unwrap().commit().unwrap();
        let [plain, atomic] = [plain, atomic].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(atomic, plain);
    }
}
