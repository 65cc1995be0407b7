//! Models that are cut into several files, as llama.cpp's gguf-split names and marks them.

use super::super::value::{Metadata, Value, get};
use crate::error::{Error, Result};
use std::path::Path;

/// The place of a shard among the others, from zero (u16).
pub const SPLIT_NO: &str = "split.no";
/// How many shards there are (u16).
pub const SPLIT_COUNT: &str = "split.count";
/// How many tensors all shards have together (i32).
pub const SPLIT_TENSORS: &str = "split.tensors.count";

/// The most shards that a number of type u16 can count.
const MOST: u64 = 65535;

/// The file name of shard `no`, counted from zero.
pub fn shard_name(prefix: &str, no: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1)
}

/// What a first shard says about the others.
pub struct Split {
    /// What all file names start with.
    pub prefix: String,
    /// How many files there are, two or more.
    pub count: usize,
}

impl Split {
    /// What the metadata of the file at `path` says; `None` if the file stands alone.
    ///
    /// # Errors
    /// It is not the first shard, or its name does not follow the pattern from which the others' names would follow.
    pub fn of(metadata: &Metadata, path: &Path) -> Result<Option<Split>> {
        let number = |key: &str| match get(metadata, key) {
            None => Ok(0),
            Some(value) => value.as_u64().filter(|&n| n <= MOST).ok_or_else(|| {
                Error::new(format!("{}: {key} is {value} ({}), not a u16", path.display(), value.type_name()))
            }),
        };
        let (no, count) = (number(SPLIT_NO)?, number(SPLIT_COUNT)? as usize);
        if count < 2 {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ending = |no: usize| shard_name("", no, count);
        if no > 0 {
            let hint = match name.strip_suffix(&ending(no as usize)) {
                Some(prefix) => {
                    format!("give the first one: {}", path.with_file_name(shard_name(prefix, 0, count)).display())
                }
                None => "give the first one".into(),
            };
            return Err(Error::new(format!("{} is shard {} of {count}", path.display(), no + 1)).hint(hint));
        }
        match name.strip_suffix(&ending(0)) {
            Some(prefix) => Ok(Some(Split { prefix: prefix.to_owned(), count })),
            None => Err(Error::new(format!("{} is the first of {count} shards", path.display()))
                .hint(format!("its name has to end in {}, so that the names of the others follow from it", ending(0)))),
        }
    }
}

/// The keys that mark a shard.
pub fn keys(no: usize, count: usize, tensors: usize) -> Metadata {
    vec![
        (SPLIT_NO.into(), Value::U16(no as u16)),
        (SPLIT_COUNT.into(), Value::U16(count as u16)),
        (SPLIT_TENSORS.into(), Value::I32(tensors as i32)),
    ]
}
