//! A column of text in a parquet file.

use crate::error::{Context, Error, Result};
use crate::guard::guarded;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::convert::Infallible;
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
    let hint = format!("the file is damaged, or the dataset has changed; fetch it again: rm {}", path.display());
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
    // The parquet crate trusts much of what a file says.
    let read = guarded(&hint, || Ok::<_, Infallible>(read())).context(damaged).flatten();
    read.map_err(|error| error.hint(&hint))
}

#[cfg(test)]
mod tests {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    fn lines() -> Vec<u8> {
        let schema = Arc::new(parse_message_type("message schema { OPTIONAL BYTE_ARRAY text (STRING); }").unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values = ["one", "two", "three"].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 3]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.into_inner().unwrap()
    }

    /// Each byte of a file in turn, set to something else.
    #[test]
    fn a_damaged_file_is_an_error_even_where_the_parquet_crate_panics() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole = lines();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            super::read(file.path(), "text")
        };
        assert_eq!(read(&whole).unwrap(), ["one", "two", "three"]);
        let mut panics = 0;
        for at in 0..whole.len() {
            for other in [0x00, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = other;
                if let Err(error) = read(&bytes) {
                    assert!(error.hint_text().unwrap().contains("fetch it again"), "{error}");
                    panics += usize::from(error.chain().join(": ").contains("it broke off"));
                }
            }
        }
        assert!(panics > 0, "the guard has become needless");
        let error = read(&whole[..whole.len() / 2]).unwrap_err();
        assert!(error.to_string().contains("cannot read the column 'text'"), "{error}");
    }
}
