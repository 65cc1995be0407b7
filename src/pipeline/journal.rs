//! What a run has finished, on disk, so that a crash costs one block.
//!
//! A calibrated run keeps a folder beside its output, `OUT.unfinished`: the output's draft, the residual stream
//! ([`super::stream`]), and the journal. The journal is written anew behind each block, after everything that it speaks of has
//! been made durable, and replaces the one before it by a rename: at any moment there is one that is true. It names every setting
//! that decides about the bytes of the output; a run that goes on must have the same.

use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::writer::atomic::{folder_of, sync_folder};
use crate::writer::shards::Saved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const NAME: &str = "journal";
const LOCK: &str = "lock";
const STATISTICS: &str = "statistics.gguf";

/// Every setting that decides about the output's bytes: its name, and its value or a hash of it.
pub type Settings = BTreeMap<String, String>;

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Finished blocks.
    pub blocks: usize,
    /// Nothing is left to be done but to let the files appear.
    pub complete: bool,
    /// How far each file is.
    pub files: Vec<Saved>,
    /// The error and the method of each tensor that has been written, and how many of its numbers vanished.
    pub tensors: Vec<(Option<f64>, Option<String>, usize)>,
    /// What went other than planned.
    pub notes: Vec<String>,
    /// The stream behind these blocks.
    pub stream: super::stream::Place,
}

/// A journal and the settings that it was kept under.
#[derive(Serialize, Deserialize)]
struct Page {
    settings: Settings,
    state: State,
}

/// The folder of an unfinished run, held by this process.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// Where the stream is to be.
    scratch: PathBuf,
    settings: Settings,
    previous: Option<(Settings, State)>,
    /// What has been recorded, in this run or before, is worth going on with.
    recorded: bool,
    /// An earlier run is being continued.
    resumed: bool,
    /// Held for as long as the file is open.
    _lock: File,
}

/// The folder that an unfinished run for an output is in.
pub fn folder(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".unfinished");
    output.with_file_name(name)
}

/// How a run's settings differ from those of the one that it is to continue: the first that does.
pub fn difference(before: &Settings, now: &Settings) -> Option<String> {
    let name = before.keys().chain(now.keys()).find(|&name| before.get(name) != now.get(name))?;
    let [was, is] = [before, now].map(|of| of.get(name).map_or("not there", String::as_str));
    Some(match name.starts_with("the ") {
        true => format!("{name} is not what it was"),
        false => format!("{name} was {was} and is {is}"),
    })
}

impl Journal {
    /// Takes possession of the folder for an output, which is made if it is not there. `resume`: go on with what is in it;
    /// `discard`: throw that away. `scratch`: another folder for the stream, which is made, too.
    ///
    /// # Errors
    /// Another process holds it; it has something in it that is neither to be continued nor to be thrown away; its journal is
    /// damaged; a folder cannot be made.
    pub fn claim(output: &Path, scratch: Option<&Path>, resume: bool, discard: bool) -> Result<Journal> {
        let folder = folder(output);
        let shown = folder.display();
        let what = || format!("cannot work in {}", folder.display());
        match fs::create_dir(&folder) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause).context(what),
            _ => {}
        }
        let lock = File::options().create(true).write(true).truncate(false).open(folder.join(LOCK)).context(what)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(format!("another llmq is at work in {shown}"))
                    .hint("wait for it, or choose another output with -o"));
            }
            // A file system without locks is used without them.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let page = match fs::read(folder.join(NAME)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            _ if !resume && discard => None,
            read if !resume => {
                read.context(what)?;
                return Err(Error::usage(format!("{shown} holds an unfinished run for {}", output.display()))
                    .hint("go on with it: add --resume; or start over and lose it: add --force"));
            }
            read => {
                let page = Page::parse(&read.context(what)?);
                let page = page.map_err(|error| error.hint(format!("start over: rm -r {shown}")));
                Some(page.context(|| format!("cannot resume from {}", folder.join(NAME).display()))?)
            }
        };
        let previous = page.map(|Page { settings, state }| (settings, state));
        let scratch = match (&previous, scratch) {
            (Some((_, state)), None) => folder_of(&state.stream.path).to_path_buf(),
            (_, Some(scratch)) => scratch.to_path_buf(),
            (None, None) => folder.clone(),
        };
        let recorded = folder.join(NAME).exists();
        let resumed = previous.is_some();
        let journal = Journal { folder, scratch, settings: Settings::new(), previous, recorded, resumed, _lock: lock };
        journal.make_scratch()?;
        Ok(journal)
    }

    /// At the start: that the stream's folder cannot be had would show only behind the first windows. A run that goes on needs the
    /// one that holds its stream, not a new one.
    fn make_scratch(&self) -> Result<()> {
        if self.resumed {
            return Ok(());
        }
        match fs::create_dir(&self.scratch) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                let what = format!("cannot make the folder {} for the residual stream", self.scratch.display());
                Err(Error::new(what).hint("choose a folder that can be written with --work-dir").because(cause))
            }
            _ => Ok(()),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder for the stream.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Whether the run that is to be continued lacks nothing but the last step.
    pub fn is_complete(&self) -> bool {
        self.previous.as_ref().is_some_and(|(_, state)| state.complete)
    }

    /// Where the statistics of a run that keeps them are saved.
    pub fn statistics(&self) -> PathBuf {
        self.folder.join(STATISTICS)
    }

    /// Sets what this run's settings are, and gives how far the one came that it continues.
    ///
    /// # Errors
    /// That one had others.
    pub fn begin(&mut self, settings: Settings) -> Result<Option<State>> {
        self.settings = settings;
        let Some((before, state)) = self.previous.take() else {
            // What is thrown away goes only now, when the command has proved to be a good one.
            if self.recorded {
                fs::remove_file(self.folder.join(NAME))
                    .context(|| format!("cannot work in {}", self.folder.display()))?;
                self.recorded = false;
            }
            return Ok(None);
        };
        let Some(what) = difference(&before, &self.settings) else { return Ok(Some(state)) };
        let shown = self.folder.display();
        Err(Error::usage(format!("cannot resume from {shown}: {what}"))
            .hint(format!("repeat the command of the unfinished run and add --resume, or start over: rm -r {shown}")))
    }

    /// Replaces the journal. Everything that `state` speaks of has to be durable.
    ///
    /// # Errors
    /// The disk refuses, or the folder has vanished.
    pub fn record(&mut self, state: &State) -> Result<()> {
        let (path, new) = (self.folder.join(NAME), self.folder.join("journal.new"));
        let page = Page { settings: self.settings.clone(), state: state.clone() };
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&page.bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_folder(&self.folder)
        };
        write().context(|| format!("cannot write {}", path.display()))?;
        self.recorded |= state.blocks > 0;
        Ok(())
    }

    /// Removes the folder, whose work is done.
    pub fn finish(mut self) {
        self.recorded = false;
    }

    /// What becomes of a run that has failed: what it has finished stays if going on can help, which the error then says.
    pub fn give_up(mut self, error: Error) -> Error {
        let shown = self.folder.display();
        match self.recorded && error.may_pass() {
            true if error.kind() == Kind::Interrupted => error.hint(format!(
                "what is finished is in {shown}: repeat the command with --resume to go on, or rm -r {shown}"
            )),
            true => {
                let hint = error.hint_text().map_or(String::new(), |hint| format!("{hint}; then "));
                error.hint(format!("{hint}repeat the command with --resume: what is finished is kept in {shown}"))
            }
            false => {
                // What an earlier run has left is only thrown away by its owner.
                self.recorded &= self.resumed;
                error
            }
        }
    }
}

/// Where nothing has been recorded nothing stays.
impl Drop for Journal {
    fn drop(&mut self) {
        if !self.recorded {
            // The stream may be elsewhere; what cannot be removed is only in the way.
            super::stream::remove(&self.scratch, &self.folder);
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

impl Page {
    /// A line with the hash of the rest, then JSON.
    fn bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec_pretty(self).expect("it has strings for keys");
        [blake3::hash(&json).to_hex().as_bytes(), b"\n", &json].concat()
    }

    fn parse(bytes: &[u8]) -> Result<Page> {
        let damaged = || Error::new("it is damaged");
        let (hash, json) = bytes.split_at_checked(65).ok_or_else(damaged)?;
        if *hash != *[blake3::hash(json).to_hex().as_bytes(), b"\n"].concat() {
            return Err(damaged());
        }
        serde_json::from_slice(json).map_err(|cause| damaged().because(cause))
    }
}

impl Error {
    /// Whether the same run may succeed another time: it was interrupted, or the system refused something.
    fn may_pass(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if error.is::<io::Error>() {
                return true;
            }
            next = error.source();
        }
        self.kind() == Kind::Interrupted || interrupt::check().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::stream::Place;

    fn state(blocks: usize, folder: &Path) -> State {
        State {
            blocks,
            complete: false,
            files: vec![Saved { tensors: 3, hash: "aa".into() }],
            tensors: vec![(Some(0.1), Some("gptq".into()), 0), (None, None, 7)],
            notes: vec!["a note".into()],
            stream: Place { path: folder.join("stream-0"), hashes: vec!["bb".into()], kept: 0 },
        }
    }

    fn settings(kind: &str) -> Settings {
        Settings::from([("--type".into(), kind.into()), ("the model".into(), "1234".into())])
    }

    #[test]
    fn the_last_record_is_read_back_under_the_same_settings_only() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("out.gguf");
        let claim = |resume, discard| Journal::claim(&output, None, resume, discard);
        let mut journal = claim(true, false).unwrap();
        assert_eq!(journal.begin(settings("Q4_0")).unwrap(), None);
        for blocks in 0..3 {
            journal.record(&state(blocks, journal.folder())).unwrap();
        }
        assert!(claim(true, false).unwrap_err().to_string().contains("another llmq"));
        drop(journal);

        let refused = claim(false, false).unwrap_err();
        assert!(refused.hint_text().unwrap().contains("--resume") && refused.kind() == Kind::Usage);
        let mut journal = claim(true, false).unwrap();
        let error = journal.begin(settings("Q5_0")).unwrap_err();
        assert!(error.to_string().contains("--type was Q4_0 and is Q5_0"), "{error}");
        drop(journal);
        let mut journal = claim(true, false).unwrap();
        let other = Settings::from([("the model".into(), "5678".into()), ("--type".into(), "Q4_0".into())]);
        assert!(journal.begin(other).unwrap_err().to_string().contains("the model is not what it was"));
        drop(journal);
        let mut journal = claim(true, false).unwrap();
        let found = journal.begin(settings("Q4_0")).unwrap();
        assert_eq!(found, Some(state(2, journal.folder())));
        drop(journal);
        let mut journal = claim(false, true).unwrap();
        assert_eq!(journal.begin(settings("Q5_0")).unwrap(), None);
        journal.finish();
        assert!(!folder(&output).exists());
    }

    #[test]
    fn every_damage_to_a_journal_is_found() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("out.gguf");
        let mut journal = Journal::claim(&output, None, false, false).unwrap();
        journal.begin(settings("Q4_0")).unwrap();
        journal.record(&state(1, journal.folder())).unwrap();
        let path = journal.folder().join(NAME);
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert!(Page::parse(&damaged).is_err() && Page::parse(&whole[..at]).is_err(), "byte {at}");
        }
        fs::write(&path, &whole[1..]).unwrap();
        let error = Journal::claim(&output, None, true, false).unwrap_err();
        assert!(error.chain().join(": ").contains("damaged") && error.hint_text().unwrap().contains("rm -r"));
    }

    #[test]
    fn only_what_may_pass_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("out.gguf");
        let full = || Error::new("cannot write").because(io::Error::from(io::ErrorKind::StorageFull));
        for (error, recorded, kept) in [
            (full(), true, true),
            (Error::interrupted(), true, true),
            (Error::new("NaN in block 3"), true, false),
            (full(), false, false),
        ] {
            let mut journal = Journal::claim(&output, None, false, true).unwrap();
            journal.begin(settings("Q4_0")).unwrap();
            if recorded {
                journal.record(&state(1, journal.folder())).unwrap();
            }
            let error = journal.give_up(error);
            assert_eq!(folder(&output).exists(), kept, "{error}");
            assert_eq!(error.hint_text().is_some_and(|hint| hint.contains("--resume")), kept);
        }
    }
}
