//! What a long evaluation has finished, on disk, so that one that is stopped goes on where it was.
//!
//! Windows are evaluated in parts. The numbers of each finished part are appended to a file, with a hash, and made durable; a
//! run that goes on takes them from there, to the last bit, and computes the others. The file begins with the settings that decide
//! about these numbers. A last part that was not written to its end is computed again; damage elsewhere is an error.

use super::perplexity::Parts;
use crate::error::{Context, Error, Result};
use crate::pipeline::journal::{Settings, difference};
use crate::writer::atomic::{folder_of, sync_folder};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const HASH: usize = blake3::OUT_LEN;

/// The parts of one evaluation that are finished.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    /// The first line of the file, which its parts are bound to.
    head: Vec<u8>,
    /// What an earlier run has finished.
    known: Vec<Vec<f64>>,
    /// Parts that are in the file.
    kept: usize,
    /// Open for appending, and locked, once a part is in it.
    file: Option<File>,
}

impl Unfinished {
    /// An evaluation with these settings that keeps its parts at `path`. `resume`: go on with what is there; otherwise that is
    /// replaced as soon as a part is finished.
    ///
    /// # Errors
    /// With `resume`: other settings, or a damaged file. In any case, if another process is at it.
    pub fn open(path: &Path, settings: &Settings, resume: bool) -> Result<Unfinished> {
        let json = serde_json::to_string(settings).context(|| "settings".into())?;
        let head = format!("{} {json}\n", blake3::hash(json.as_bytes())).into_bytes();
        let new = Unfinished { path: path.to_path_buf(), head, known: Vec::new(), kept: 0, file: None };
        let file = match File::options().read(true).append(true).open(path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(new),
            Err(_) if !resume => return Ok(new),
            file => file.context(|| format!("cannot resume from {}", path.display()))?,
        };
        lock(&file, path)?;
        if !resume { Ok(new) } else { new.resumed(file, settings) }
    }

    fn resumed(mut self, file: File, settings: &Settings) -> Result<Unfinished> {
        let shown = self.path.display().to_string();
        let what = || format!("cannot resume from {shown}");
        let bytes = fs::read(&self.path).context(what)?;
        let damaged = |of: &str| {
            Err(Error::new(format!("{of} is damaged")).hint(format!("start over: rm {shown}"))).context(what)
        };
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return damaged("its first line") };
        let (head, mut rest) = bytes.split_at(end + 1);
        let Some(before) = parse(head) else { return damaged("its first line") };
        if let Some(changed) = difference(&before, settings) {
            return Err(Error::usage(format!("cannot resume from {shown}: {changed}")).hint(format!(
                "repeat the command of the unfinished run and add --resume, or start over: rm {shown}"
            )));
        }
        let mut whole = head.len();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length);
            // A length that is not that of whole numbers, or a part that the file is too short for.
            let Some(own) = usize::try_from(length).ok().and_then(|n| after.split_at_checked(n)) else { break };
            let (numbers, after) = own;
            let Some((hash, after)) = after.split_at_checked(HASH) else { break };
            if *hash != *self.hash(self.known.len(), numbers).as_bytes() || numbers.len() % 8 != 0 {
                return damaged(&format!("part {}", self.known.len() + 1));
            }
            let number = |bytes: &[u8]| bytes.try_into().map_or(f64::NAN, f64::from_le_bytes);
            self.known.push(numbers.chunks_exact(8).map(number).collect());
            whole += 8 + numbers.len() + HASH;
            rest = after;
        }
        file.set_len(whole as u64).context(what)?;
        self.kept = self.known.len();
        self.file = (self.kept > 0).then_some(file);
        Ok(self)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Parts that are on the disk.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Removes the file of an evaluation that is done.
    pub fn finish(self) {
        if self.file.is_some() {
            // What cannot be removed is only in the way.
            fs::remove_file(&self.path).ok();
        }
    }

    fn hash(&self, part: usize, numbers: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.head).update(&(part as u64).to_le_bytes()).update(numbers);
        hasher.finalize()
    }

    fn append(&mut self, numbers: &[f64]) -> Result<()> {
        let numbers: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let hash = self.hash(self.kept, &numbers);
        let record = [&(numbers.len() as u64).to_le_bytes()[..], &numbers, hash.as_bytes()].concat();
        let what = || format!("cannot keep what is finished in {}", self.path.display());
        match &mut self.file {
            Some(file) => file.write_all(&record).and_then(|()| file.sync_data()).context(what)?,
            None => self.file = Some(self.begin(&record).context(what)?),
        }
        self.kept += 1;
        Ok(())
    }

    /// The file with its first part appears at once, in the place of what an earlier run has left there.
    fn begin(&self, record: &[u8]) -> std::io::Result<File> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = File::create(&new)?;
        file.try_lock().ok();
        file.write_all(&[&self.head, record].concat())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        sync_folder(folder_of(&self.path))?;
        Ok(file)
    }
}

impl Parts for Unfinished {
    fn known(&mut self, part: usize) -> Option<Vec<f64>> {
        self.known.get_mut(part).map(std::mem::take)
    }

    fn add(&mut self, part: usize, parts: usize, numbers: &[f64]) -> Result<()> {
        // Behind the last one there is nothing to go on with.
        if part + 1 < parts { self.append(numbers) } else { Ok(()) }
    }
}

/// # Errors
/// Another process has locked the file.
fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::new(format!("another llmq is at work with {}", path.display()))
            .hint("wait for it, or give this one another folder with --work-dir")),
        // A file system without locks is used without them.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// The settings in a first line.
fn parse(head: &[u8]) -> Option<Settings> {
    let (hash, json) = std::str::from_utf8(head).ok()?.trim_end_matches('\n').split_once(' ')?;
    let whole = *hash == *blake3::hash(json.as_bytes()).to_hex();
    whole.then(|| serde_json::from_str(json).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(context: &str) -> Settings {
        Settings::from([("-c".into(), context.into()), ("the model".into(), "1234".into())])
    }

    fn written(path: &Path) -> Vec<u8> {
        let mut one = Unfinished::open(path, &settings("512"), false).unwrap();
        one.add(0, 3, &[1.5, f64::MIN_POSITIVE]).unwrap();
        one.add(1, 3, &[2.5]).unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn parts_come_back_to_the_last_bit_and_a_torn_one_is_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.eval-unfinished");
        let whole = written(&path);
        let first = whole.len() - (8 + 8 + HASH);
        for length in first..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut again = Unfinished::open(&path, &settings("512"), true).unwrap();
            assert_eq!(again.known(0), Some(vec![1.5, f64::MIN_POSITIVE]));
            assert_eq!(again.known(1), (length == whole.len()).then(|| vec![2.5]), "{length}");
            if length < whole.len() {
                again.add(1, 3, &[2.5]).unwrap();
            }
            assert_eq!(again.kept(), 2);
            assert!(fs::read(&path).unwrap() == whole, "{length}");
            again.finish();
            assert!(!path.exists());
        }
    }

    #[test]
    fn damage_is_found_and_other_settings_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.eval-unfinished");
        let whole = written(&path);
        let lengths = [whole.len() - (8 + 8 + HASH), whole.iter().position(|&b| b == b'\n').unwrap() + 1];
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            let opened = Unfinished::open(&path, &settings("512"), true);
            // A length that has grown looks like a part that was not written to its end.
            let torn = lengths.iter().any(|&from| (from..from + 8).contains(&at));
            match opened {
                Err(error) => {
                    assert!(error.chain().join(": ").contains("damaged"), "byte {at}: {error}");
                    assert!(error.hint_text().unwrap().contains("rm "));
                }
                Ok(opened) => assert!(torn && opened.kept() < 2, "byte {at}"),
            }
        }
        fs::write(&path, &whole).unwrap();
        let error = Unfinished::open(&path, &settings("256"), true).unwrap_err();
        assert!(error.to_string().contains("-c was 512 and is 256"), "{error}");
        assert_eq!(Unfinished::open(&path, &settings("256"), false).unwrap().kept(), 0);
        assert!(fs::read(&path).unwrap() == whole, "nothing is finished that could take its place");
    }

    #[test]
    fn what_has_one_part_leaves_the_disk_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.eval-unfinished");
        let mut one = Unfinished::open(&path, &settings("512"), true).unwrap();
        one.add(0, 1, &[1.0]).unwrap();
        assert!(!path.exists());
        one.finish();
    }

    #[test]
    fn two_at_once_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.eval-unfinished");
        let mut one = Unfinished::open(&path, &settings("512"), false).unwrap();
        one.add(0, 3, &[1.0]).unwrap();
        for resume in [false, true] {
            let error = Unfinished::open(&path, &settings("512"), resume).unwrap_err();
            assert!(error.to_string().contains("another llmq"), "{error}");
        }
    }
}
