//! Files and folders that are there completely or not at all: written beside their final place, made durable, renamed.

mod destination;
mod folder;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempPath};

pub use self::destination::{check_destination, check_folder};
pub use self::folder::AtomicFolder;
use crate::disk;
use crate::error::{Context, Error, Result};

/// Bytes collected before they go to the system.
const BUFFER: usize = 1 << 20;

/// A file under construction. Its bytes go to a hidden temporary in the destination's folder, which [`commit`] makes
/// durable and renames; dropped before that, it leaves nothing behind.
///
/// [`commit`]: AtomicFile::commit
#[derive(Debug)]
pub struct AtomicFile {
    /// The final path.
    path: PathBuf,
    /// Whether something was at the final path when work began, and so may be replaced.
    replaces: bool,
    /// Bytes given to [`AtomicFile::write`].
    written: u64,
    /// Of these bytes, for a draft.
    hash: Option<blake3::Hasher>,
    /// Dropped before `listed`, so that a temporary is listed for as long as it exists.
    file: BufWriter<NamedTempFile>,
    /// None for a draft, which is to outlive the program.
    listed: Option<Listed>,
}

impl AtomicFile {
    /// Starts the file that will appear at `path`.
    ///
    /// # Errors
    ///
    /// The folder is missing or not writable, or the program is being interrupted.
    pub fn create(path: &Path) -> Result<Self> {
        // A name has at most 255 bytes on most systems, and the temporary's must not be longer.
        let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(48).collect();
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // The system takes the umask off, as for any new file; renaming keeps the mode.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let folder = folder_of(path);
        let what = || format!("cannot create {}", path.display());
        let mut unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        let file = builder.tempfile_in(folder).context(what)?;
        unfinished.paths.insert(file.path().to_owned());
        let listed = Some(Listed(file.path().to_owned()));
        Ok(Self::with(path, file, None, listed))
    }

    /// Starts the file that will appear at `path` as a draft: a file in the same file system that stays where it is when the
    /// program ends early, so that [`AtomicFile::go_on`] can continue it. What is there is overwritten.
    ///
    /// # Errors
    ///
    /// The draft cannot be made.
    pub fn create_draft(path: &Path, draft: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(draft);
        Self::of_draft(path, draft, file.context(|| format!("cannot create {}", draft.display()))?)
    }

    /// Goes on behind the first `written` bytes of a draft, which have to have this hash; what follows them is overwritten.
    ///
    /// # Errors
    ///
    /// The draft is missing, shorter, or has other bytes.
    pub fn go_on(path: &Path, draft: &Path, written: u64, hash: &blake3::Hash) -> Result<Self> {
        let what = || format!("cannot go on with {}", draft.display());
        let file = File::options().read(true).write(true).open(draft).context(what)?;
        let mut this = Self::of_draft(path, draft, file)?;
        let file = this.file.get_mut().as_file_mut();
        let mut hasher = blake3::Hasher::new();
        let read = hasher.update_reader(io::Read::take(&mut *file, written)).context(what)?.count();
        if read != written || hasher.finalize() != *hash {
            let found =
                if read < written { format!("{read} bytes, but {written} are needed") } else { "other bytes".into() };
            return Err(Error::new(format!("{} has {found}", draft.display())));
        }
        file.seek(SeekFrom::Start(written)).context(what)?;
        (this.written, this.hash) = (written, Some(hasher));
        Ok(this)
    }

    fn of_draft(path: &Path, draft: &Path, file: File) -> Result<Self> {
        let name = TempPath::try_from_path(draft).context(|| format!("cannot create {}", draft.display()))?;
        let mut file = NamedTempFile::from_parts(file, name);
        file.disable_cleanup(true);
        Ok(Self::with(path, file, Some(blake3::Hasher::new()), None))
    }

    fn with(path: &Path, file: NamedTempFile, hash: Option<blake3::Hasher>, listed: Option<Listed>) -> Self {
        let replaces = fs::symlink_metadata(path).is_ok();
        let file = BufWriter::with_capacity(BUFFER, file);
        Self { path: path.to_owned(), replaces, written: 0, hash, file, listed }
    }

    /// Makes what has been written so far durable; gives the hash of a draft, for [`AtomicFile::go_on`].
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn sync(&mut self) -> Result<Option<blake3::Hash>> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().as_file().sync_data());
        synced.map_err(|cause| self.failure(cause))?;
        Ok(self.hash.as_ref().map(blake3::Hasher::finalize))
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Reserves `bytes` on the disk, so that a disk too small is found now and not after hours of work. A file system
    /// that cannot reserve is no error.
    pub fn preallocate(&mut self, bytes: u64) -> Result<()> {
        let available = disk::available(folder_of(&self.path));
        let Err(cause) = reserve(self.file.get_ref().as_file(), bytes) else { return Ok(()) };
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let available = available.map_or_else(String::new, |n| format!(", {n} are available"));
                let what = format!("cannot write {}: it needs {bytes} bytes{available}", self.path.display());
                Err(Error::new(what).hint(self.hint(&cause)).because(cause))
            }
            _ => Ok(()),
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// The system refused; the error names the final path and how far the file had come.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|cause| self.failure(cause))?;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file durable and lets it appear at its final path, replacing what was there when work began.
    ///
    /// # Errors
    ///
    /// The system refused, or the program is being interrupted. When only the last step fails, because the final path
    /// was taken meanwhile, say, the finished temporary stays and the error names it.
    pub fn commit(mut self) -> Result<()> {
        self.complete().map_err(|cause| self.failure(cause))?;
        // `listed` outlives the lock, which it takes when it is dropped.
        let Self { path, replaces, file, listed: _listed, .. } = self;
        let (file, _) = file.into_parts();
        let unfinished = unfinished();
        if unfinished.closed {
            return Err(Error::interrupted());
        }
        let (file, cause) = match persist(file, &path, replaces) {
            Ok(()) => return sync_folder(folder_of(&path)).context(|| format!("cannot finish {}", path.display())),
            Err(failed) => (failed.file, failed.error),
        };
        let error = match file.keep() {
            Ok((_, kept)) => {
                Error::new(format!("cannot finish {}: its content is in {}", path.display(), kept.display()))
                    .hint(format!("move it yourself: mv {} {}", kept.display(), path.display()))
            }
            Err(_) => Error::new(format!("cannot finish {}", path.display())),
        };
        Err(error.because(cause))
    }

    /// Everything up to the rename.
    fn complete(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let file = self.file.get_ref().as_file();
        // More may have been reserved.
        file.set_len(self.written)?;
        file.sync_all()
    }

    fn failure(&self, cause: io::Error) -> Error {
        let done = self.written.saturating_sub(self.file.buffer().len() as u64);
        Error::new(format!("cannot write {}: failed after {done} bytes", self.path.display()))
            .hint(self.hint(&cause))
            .because(cause)
    }

    fn hint(&self, cause: &io::Error) -> String {
        let folder = folder_of(&self.path).display();
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                format!("free some space in {folder}, or choose another folder with -o")
            }
            ErrorKind::FileTooLarge => {
                "the file system or `ulimit -f` does not allow a file of this size: choose another folder with -o"
                    .into()
            }
            _ => format!("check free space and health of the disk that holds {folder}, or choose another with -o"),
        }
    }
}

/// Renames `file` to `path`; what was not there when work began is not replaced.
fn persist(file: NamedTempFile, path: &Path, replaces: bool) -> Result<(), tempfile::PersistError> {
    let failed = match replaces {
        true => return file.persist(path).map(drop),
        false => match file.persist_noclobber(path) {
            Ok(_) => return Ok(()),
            Err(failed) => failed,
        },
    };
    // Some file systems cannot rename without replacing; looking first is the next best.
    match failed.error.kind() {
        ErrorKind::AlreadyExists => Err(failed),
        _ if fs::symlink_metadata(path).is_ok() => Err(failed),
        _ => failed.file.persist(path).map(drop),
    }
}

/// Makes a rename in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Not every file system can, and not every folder may be opened; the file itself is durable.
        Err(e)
            if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Reserves disk space for a file of `bytes`, where the system can.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    if bytes > 0 {
        let all = rustix::fs::FallocateFlags::empty();
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, all, 0, bytes))?;
    }
    Ok(())
}

/// Other systems do not reserve.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// The temporaries of this process that are neither committed nor dropped.
#[derive(Debug)]
struct Unfinished {
    paths: BTreeSet<PathBuf>,
    /// Set when the process is about to end: no temporary may begin or be committed any more.
    closed: bool,
}

impl Unfinished {
    fn discard(&mut self) {
        self.closed = true;
        for path in std::mem::take(&mut self.paths) {
            // On the way out there is nobody left to tell.
            fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).ok();
        }
    }
}

static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { paths: BTreeSet::new(), closed: false });

fn unfinished() -> MutexGuard<'static, Unfinished> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes its path off the list of unfinished temporaries when dropped.
#[derive(Debug)]
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        unfinished().paths.remove(&self.0);
    }
}

/// Deletes every unfinished temporary and lets none begin or be committed from now on: for the second Ctrl-C, right
/// before `exit`. Waits for a rename in progress; must not be called from a raw signal handler, since it locks.
pub fn discard_all() {
    unfinished().discard();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn commit_makes_the_file_appear_and_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        for content in ["first, longer", "second"] {
            let mut file = AtomicFile::create(&path).unwrap();
            file.preallocate(1000).unwrap();
            file.write(content.as_bytes()).unwrap();
            assert_eq!(file.written(), content.len() as u64);
            assert_eq!(names(folder.path()).len(), if content == "second" { 2 } else { 1 });
            file.commit().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(folder.path()), ["out.gguf"]);
        }
        assert!(!unfinished().paths.iter().any(|path| path.starts_with(&folder)));
    }

    #[test]
    fn a_dropped_file_leaves_nothing_and_the_old_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(&[1; 3 << 20]).unwrap();
        assert!(unfinished().paths.iter().any(|path| path.starts_with(&folder)));
        drop(file);
        assert_eq!(names(folder.path()), ["out.gguf"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert!(!unfinished().paths.iter().any(|path| path.starts_with(&folder)));
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_that_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| folder.path().join(name));
        File::create(&plain).unwrap();
        AtomicFile::create(&atomic).unwrap().commit().unwrap();
        let [plain, atomic] = [plain, atomic].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(atomic, plain);
    }

    #[test]
    fn what_appeared_meanwhile_is_not_replaced_and_the_work_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"mine").unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = file.commit().unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        let kept = folder.path().join(&names(folder.path())[0]);
        assert!(error.to_string().contains(&kept.display().to_string()), "{error}");
        assert_eq!(fs::read_to_string(kept).unwrap(), "mine");
    }

    #[test]
    fn a_long_name_fits() {
        let folder = tempfile::tempdir().unwrap();
        AtomicFile::create(&folder.path().join("é".repeat(125))).unwrap().commit().unwrap();
    }

    #[test]
    fn discarding_deletes_what_is_listed() {
        // On a list of its own: the real one is shared with the other tests.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("temporary");
        fs::write(&path, "").unwrap();
        let mut list = Unfinished { paths: BTreeSet::from([path]), closed: false };
        list.discard();
        assert!(list.closed && list.paths.is_empty());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_disk_too_small_is_found_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&folder.path().join("out.gguf")).unwrap();
        // Larger than any disk; file systems without reservation accept it.
        if let Err(error) = file.preallocate(1 << 60) {
            assert!(error.to_string().contains("it needs 1152921504606846976 bytes, "), "{error}");
            assert!(error.hint_text().unwrap().contains("-o"));
        }
    }
}
