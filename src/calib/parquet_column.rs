//! A column of text in a parquet file.

use crate::error::{Context, Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::fs::File;
use std::path::Path;

/// The most bytes that a column of text may have: WikiText-2's has 11 MB. A dictionary lets each row repeat a long one.
const LARGEST_COLUMN: usize = 1 << 30;

/// The column, row by row.
///
/// # Errors
/// A file that is damaged, or has no such column of text.
pub fn read(path: &Path, name: &str) -> Result<Vec<String>> {
    let damaged = || format!("cannot read the column '{name}' of {}", path.display());
    let hinted = |error: Error| {
        error.hint(format!("the file is damaged, or the dataset has changed; fetch it again: rm {}", path.display()))
    };
    let read = || -> Result<Vec<String>> {
        let file = File::open(path).context(damaged)?;
        let reader = SerializedFileReader::new(file).context(damaged)?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let at = schema.columns().iter().position(|column| column.name() == name);
        let at = at.ok_or_else(|| Error::new(damaged()))?;
        let (mut rows, mut bytes) = (Vec::<String>::new(), 0);
        for row in reader.get_row_iter(None).context(damaged)? {
            rows.push(row.and_then(|row| row.get_string(at).cloned()).context(damaged)?);
            bytes += rows.last().map_or(0, |row| row.len().max(size_of::<String>()));
            if bytes > LARGEST_COLUMN {
                return Err(Error::new(format!("it has more than {LARGEST_COLUMN} bytes"))).context(damaged);
            }
        }
        Ok(rows)
    };
    read().map_err(hinted)
}
