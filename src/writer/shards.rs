//! One model in one file, or in several that are no larger than asked for.

use super::gguf::{GgufWriter, TensorPlan, file_size};
use crate::error::{Context, Error, Result};
use crate::source::gguf::{DEFAULT_ALIGNMENT, shard_name, split_keys};
use crate::source::value::Metadata;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The files that a model will be, in the order in which they are filled.
#[derive(Debug)]
pub struct Files {
    files: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    metadata: Metadata,
    tensors: Vec<TensorPlan>,
}

impl Files {
    /// One file at `path`; or, where the data is larger than `most` bytes, shards of at most that much data each under
    /// llama.cpp's names (`NAME-00001-of-00003.gguf`) and with its keys. All keys of the model are in the first.
    ///
    /// # Errors
    /// A tensor that is larger than a shard may be, or more shards than can be numbered.
    pub fn new(path: &Path, metadata: &Metadata, tensors: Vec<TensorPlan>, most: Option<u64>) -> Result<Files> {
        let all = tensors.len();
        let mut groups: Vec<Vec<TensorPlan>> = vec![Vec::new()];
        let mut held = 0u64;
        for tensor in tensors {
            let size = tensor.bytes.next_multiple_of(DEFAULT_ALIGNMENT);
            if let Some(most) = most.filter(|&most| size > most) {
                let what = format!("tensor '{}' has {size} bytes, more than the {most} of a shard", tensor.name);
                return Err(Error::usage(what).hint(format!("raise --max-shard-size to {} or more", rounded_up(size))));
            }
            if most.is_some_and(|most| held.saturating_add(size) > most) {
                groups.push(Vec::new());
                held = 0;
            }
            held = held.saturating_add(size);
            groups.last_mut().expect("there is a group").push(tensor);
        }
        let count = groups.len();
        if count == 1 {
            let tensors = groups.remove(0);
            return Ok(Files { files: vec![Part { path: path.into(), metadata: metadata.clone(), tensors }] });
        }
        if count > usize::from(u16::MAX) || all > i32::MAX as usize {
            return Err(Error::usage(format!("there would be {count} shards; {} can be numbered", u16::MAX))
                .hint("raise --max-shard-size"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let prefix = name.strip_suffix(".gguf").unwrap_or(&name);
        let files = groups.into_iter().enumerate().map(|(no, tensors)| {
            let mut keys = if no == 0 { metadata.clone() } else { Metadata::new() };
            keys.extend(split_keys(no, count, all));
            Part { path: path.with_file_name(shard_name(prefix, no, count)), metadata: keys, tensors }
        });
        Ok(Files { files: files.collect() })
    }

    /// Where they will be.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|part| part.path.as_path())
    }

    /// The bytes of all of them.
    ///
    /// # Errors
    /// A plan that no file can hold.
    pub fn size(&self) -> Result<u64> {
        self.files.iter().map(|part| file_size(&part.metadata, &part.tensors)).sum()
    }

    /// Starts all files, so that a disk too small for the last is found before the first is filled. `drafts`: the folder, in
    /// the same file system, that holds them until they are finished, and longer if that does not come to pass; else they are
    /// temporaries.
    ///
    /// # Errors
    /// As [`GgufWriter::create`].
    pub fn create(self, drafts: Option<&Path>) -> Result<Writer> {
        let writers = self.files.into_iter().map(|part| {
            let writer = match drafts {
                Some(folder) => {
                    GgufWriter::create_draft(&part.path, &draft(folder, &part.path), &part.metadata, part.tensors)
                }
                None => GgufWriter::create(&part.path, &part.metadata, part.tensors),
            };
            Ok((part.path, Some(writer?)))
        });
        Ok(Writer { writers: writers.collect::<Result<_>>()?, current: 0, drafts: drafts.is_some() })
    }

    /// Goes on with drafts in a folder, each behind as many tensors as it had when it was saved. A file that has appeared at
    /// its place already is finished.
    ///
    /// # Errors
    /// As [`GgufWriter::go_on`]; other files than were saved.
    pub fn go_on(self, drafts: &Path, saved: &[Saved]) -> Result<Writer> {
        if saved.len() != self.files.len() {
            let (there, planned) = (saved.len(), self.files.len());
            return Err(Error::new(format!("{} holds {there} files where {planned} are planned", drafts.display())));
        }
        let mut current = 0;
        let mut writers = Vec::new();
        for (i, (part, saved)) in self.files.into_iter().zip(saved).enumerate() {
            let draft = draft(drafts, &part.path);
            let all = saved.tensors == part.tensors.len();
            if saved.tensors > 0 {
                current = i;
            }
            let writer = match all && !draft.exists() && part.path.exists() {
                true => None,
                false => {
                    let hash =
                        blake3::Hash::from_hex(&saved.hash).context(|| format!("'{}' is no hash", saved.hash))?;
                    let Part { path, metadata, tensors } = &part;
                    Some(GgufWriter::go_on(path, &draft, metadata, tensors.clone(), saved.tensors, &hash)?)
                }
            };
            writers.push((part.path, writer));
        }
        Ok(Writer { writers, current, drafts: true })
    }
}

/// How far one file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Its complete tensors.
    pub tensors: usize,
    /// Of all of its bytes up to there, in hexadecimal digits.
    pub hash: String,
}

fn draft(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.file_name().unwrap_or_default())
}

/// `1234567890` as `2G`: what someone can type.
fn rounded_up(bytes: u64) -> String {
    if bytes > 2_000_000_000 {
        format!("{}G", bytes.div_ceil(1_000_000_000))
    } else {
        format!("{}M", bytes.div_ceil(1_000_000))
    }
}

/// Files under construction; dropped before [`Writer::finish`], they leave nothing behind.
#[derive(Debug)]
pub struct Writer {
    /// None: it has appeared already.
    writers: Vec<(PathBuf, Option<GgufWriter>)>,
    current: usize,
    /// They can be continued.
    drafts: bool,
}

impl Writer {
    /// Writes a whole tensor, the next of the plan.
    ///
    /// # Errors
    /// As [`GgufWriter::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.current()?.write(name, bytes)
    }

    /// Writes the next part of a tensor that is made in parts.
    ///
    /// # Errors
    /// As [`GgufWriter::append`].
    pub fn append(&mut self, name: &str, part: &[u8]) -> Result<()> {
        self.current()?.append(name, part)
    }

    fn current(&mut self) -> Result<&mut GgufWriter> {
        let full = |(_, writer): &(PathBuf, Option<GgufWriter>)| writer.as_ref().is_none_or(GgufWriter::is_full);
        if full(&self.writers[self.current]) && self.current + 1 < self.writers.len() {
            self.current += 1;
        }
        let (path, writer) = &mut self.writers[self.current];
        writer.as_mut().ok_or_else(|| Error::new(format!("{} is finished already", path.display())))
    }

    /// Whether every file is still a draft: none has appeared at its place.
    pub fn is_in_drafts(&self) -> bool {
        self.drafts && self.writers.iter().all(|(_, writer)| writer.is_some())
    }

    /// Makes all that has been written durable, and says how far each file is. To be called between two tensors.
    ///
    /// # Errors
    /// The system refused.
    pub fn sync(&mut self) -> Result<Vec<Saved>> {
        let saved = self.writers.iter_mut().filter_map(|(_, writer)| writer.as_mut()).map(|writer| {
            let hash = writer.sync()?.map_or(String::new(), |hash| hash.to_hex().to_string());
            Ok(Saved { tensors: writer.finished(), hash })
        });
        saved.collect()
    }

    /// Makes the files durable and lets them appear; returns the bytes of all of them. The first shard appears last, so
    /// that a reader never finds an incomplete set; on an error, those that had appeared are removed again, unless the rest can
    /// still follow.
    ///
    /// # Errors
    /// As [`GgufWriter::finish`].
    pub fn finish(self) -> Result<u64> {
        let mut total = 0;
        let mut appeared = Vec::new();
        for (path, writer) in self.writers.into_iter().rev() {
            let finished = match writer {
                Some(writer) => writer.finish(),
                None => std::fs::metadata(&path).map(|found| found.len()).context(|| path.display().to_string()),
            };
            match finished {
                Ok(bytes) => total += bytes,
                Err(error) => {
                    for path in appeared.into_iter().filter(|_| !self.drafts) {
                        // What cannot be removed stays; the error that is returned is the one that matters.
                        let _ = std::fs::remove_file(path);
                    }
                    return Err(error);
                }
            }
            appeared.push(path);
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::gguf::{Gguf, TypeLayout};
    use crate::source::value::Value;

    fn tensors() -> Vec<TensorPlan> {
        let plan = |i: u64| TensorPlan { name: format!("t{i}"), dims: vec![8 * i], type_id: 0, bytes: 32 * i };
        (1..=4).map(plan).collect()
    }

    fn open(path: &Path) -> Result<Gguf> {
        Gguf::open(path, |id| (id == 0).then_some(TypeLayout { name: "F32", block: 1, bytes: 4 }))
    }

    #[test]
    fn shards_are_filled_in_turn_and_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = vec![("general.name".to_owned(), Value::from("m"))];
        let files = Files::new(&folder.path().join("m.gguf"), &metadata, tensors(), Some(130)).unwrap();
        let paths: Vec<PathBuf> = files.paths().map(Path::to_path_buf).collect();
        let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
        let wanted = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
        assert_eq!(names, wanted);
        let size = files.size().unwrap();
        let mut writer = files.create(None).unwrap();
        for plan in tensors() {
            writer.append(&plan.name, &[1; 7]).unwrap();
            writer.append(&plan.name, &vec![2; plan.bytes as usize - 7]).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), size);
        let gguf = open(&paths[0]).unwrap();
        assert_eq!(
            gguf.tensors.iter().map(|t| (t.name.as_str(), t.shard)).collect::<Vec<_>>(),
            [("t1", 0), ("t2", 0), ("t3", 1), ("t4", 2)]
        );
        assert_eq!(gguf.get("general.name").and_then(Value::as_str), Some("m"));
        assert_eq!(gguf.get("split.count"), Some(&Value::U16(3)));
        assert_eq!(gguf.get("split.tensors.count"), Some(&Value::I32(4)));
        assert_eq!(gguf.data(gguf.tensor("t4").unwrap())[6..8], [1, 2]);
        assert_eq!(gguf.files().count(), 3);

        let second = open(&paths[1]).unwrap_err();
        assert!(second.to_string().contains("is shard 2 of 3") && second.hint_text().unwrap().contains(wanted[0]));
        std::fs::rename(&paths[2], folder.path().join("elsewhere.gguf")).unwrap();
        assert!(open(&paths[0]).unwrap_err().chain().join(": ").contains("shard 3 of 3 is missing"));
        std::fs::copy(&paths[1], &paths[2]).unwrap();
        assert!(open(&paths[0]).unwrap_err().chain().join(": ").contains("does not say that it is shard 3 of 3"));
        std::fs::rename(&paths[0], folder.path().join("other.gguf")).unwrap();
        assert!(open(&folder.path().join("other.gguf")).unwrap_err().hint_text().unwrap().contains("-00001-of-00003"));
    }

    #[test]
    fn what_fits_stays_one_file_and_what_cannot_fit_is_refused() {
        let path = Path::new("m.gguf");
        for most in [None, Some(320)] {
            let files = Files::new(path, &Metadata::new(), tensors(), most).unwrap();
            assert_eq!(files.paths().collect::<Vec<_>>(), [path]);
        }
        let error = Files::new(path, &Metadata::new(), tensors(), Some(100)).unwrap_err();
        assert!(error.to_string().contains("'t4' has 128 bytes, more than the 100"), "{error}");
    }
}
