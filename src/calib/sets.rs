//! The texts of the papers, by name: from the Hugging Face Hub, and from its cache ever after.

use super::corpus::{Cut, Source};
use super::text::Line;
use crate::error::{Context, Error, Result};
use crate::guard::guarded;
use crate::source::hub::{Part, Repository, Watch, whole};
use crate::source::tokenizer::Tokenizer;
use flate2::bufread::MultiGzDecoder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::convert::Infallible;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A set of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// The first file of C4's English training texts, as the GPTQ and AWQ papers use it; only as much of it is fetched as is needed.
    C4,
    /// WikiText-2, raw.
    WikiText2,
}

/// Every set with its name on the command line.
pub const SETS: [(&str, Set); 2] = [("c4", Set::C4), ("wikitext2", Set::WikiText2)];

/// The set of a name.
pub fn by_name(name: &str) -> Option<Set> {
    SETS.iter().find(|(known, _)| *known == name).map(|(_, set)| *set)
}

/// What calibration wants of a set.
pub struct Demand<'a> {
    /// How many windows.
    pub count: usize,
    /// Tokens per window.
    pub length: usize,
    /// Windows may reach across documents.
    pub packed: bool,
    /// What counts tokens.
    pub tokenizer: &'a Tokenizer,
}

/// Texts are read until there are this many times as many windows as are wanted, so that the seed has a choice.
const CHOICE: usize = 2;

/// Documents with fewer bytes than this times the tokens of a window are not even tokenized. English text has more than four.
const BYTES: usize = 3;

/// The documents of C4's validation texts that are judged on, as in GPTQ's own code.
const JUDGED: usize = 1100;

/// No line of C4 comes near so many bytes; compressed, one without end could have a few kilobytes.
const LONGEST_LINE: u64 = 64 << 20;

/// The most bytes that a column of text may have: WikiText-2's has 11 MB. A dictionary lets each row repeat a long one.
const LARGEST_COLUMN: usize = 1 << 30;

impl Set {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        SETS.iter().find(|(_, set)| *set == self).map_or("", |(name, _)| name)
    }

    fn repository(self) -> Repository {
        Repository::dataset(match self {
            Set::C4 => "allenai/c4",
            Set::WikiText2 => "Salesforce/wikitext",
        })
    }

    /// About how many bytes of text calibration reads, and the longest document among them.
    pub fn expected(self, count: usize, length: usize) -> (u64, u64) {
        match self {
            // A document that is long enough for a window of 2048 tokens has about twice as many; 4.4 bytes a token.
            Set::C4 => ((CHOICE * count * length * 9) as u64, (length * 90) as u64),
            Set::WikiText2 => (10_900_000, 10_900_000),
        }
    }

    /// What calibration is done on. Of C4, the documents that are long enough, in their order, up to twice as many as there are windows;
    /// of WikiText-2, the lines of the training split joined by empty lines, which is one long document.
    ///
    /// # Errors
    /// The set is neither in the cache nor can it be fetched, or it is not what it should be.
    pub fn calibration(self, weight: f64, demand: &Demand, watch: &dyn Watch) -> Result<Source> {
        let names = vec![self.name().to_owned()];
        match self {
            Set::C4 => {
                let mut tokens = 0;
                let file = "en/c4-train.00000-of-01024.json.gz";
                let documents = c4(file, watch, &mut |texts| demand.met(texts, &mut tokens))?;
                if documents.is_empty() {
                    let length = demand.length;
                    return Err(Error::new(format!(
                        "cannot use c4: no document is long enough for a window of {length} tokens"
                    ))
                    .hint("let windows reach across documents with --pack, or make them shorter with --seq-len"));
                }
                let cut = if demand.packed { Cut::Packed } else { Cut::Within };
                Ok(Source { names, documents, weight, cut })
            }
            Set::WikiText2 => {
                let text = self.wikitext("train", watch)?;
                Ok(Source { names, documents: vec![text], weight, cut: Cut::Packed })
            }
        }
    }

    /// What a model is judged on: of WikiText-2, the lines of the test split joined by empty lines; of C4, the first 1100
    /// validation texts joined by spaces. Both as in GPTQ's own code.
    ///
    /// # Errors
    /// As [`Set::calibration`].
    pub fn evaluation(self, watch: &dyn Watch) -> Result<String> {
        match self {
            Set::C4 => {
                let file = "en/c4-validation.00000-of-00008.json.gz";
                let mut all = 0;
                let mut enough = |_: &mut Vec<String>| {
                    all += 1;
                    Ok(all == JUDGED)
                };
                Ok(c4(file, watch, &mut enough)?.join(" "))
            }
            Set::WikiText2 => self.wikitext("test", watch),
        }
    }

    fn wikitext(self, split: &str, watch: &dyn Watch) -> Result<String> {
        let file = format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet");
        let path = whole(&self.repository(), &file, watch)?;
        Ok(column(&path, "text")?.join("\n\n"))
    }
}

impl Demand<'_> {
    /// Looks at the last of some documents, takes it out if it is of no use, and says whether there are enough. `tokens`: those of the
    /// documents before it.
    fn met(&self, texts: &mut Vec<String>, tokens: &mut usize) -> Result<bool> {
        let Some(last) = texts.last() else { return Ok(false) };
        if self.packed {
            *tokens += self.tokenizer.encode(last)?.len();
            return Ok(*tokens >= CHOICE * self.count * self.length);
        }
        let long = last.len() >= BYTES * self.length && self.tokenizer.encode(last)?.len() >= self.length;
        if !long {
            texts.pop();
        }
        Ok(texts.len() >= CHOICE * self.count)
    }
}

/// Reads documents of a file of C4 until there are enough.
fn c4(name: &str, watch: &dyn Watch, enough: &mut dyn FnMut(&mut Vec<String>) -> Result<bool>) -> Result<Vec<String>> {
    let part = Part::open(&Set::C4.repository(), name, watch)?;
    let path = part.path().to_path_buf();
    let damaged = |line: usize| {
        Error::new(format!("{}: line {line} cannot be read", path.display()))
            .hint(format!("what is kept of it is damaged: rm {}", path.display()))
    };
    let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, part)));
    let (mut documents, mut line, mut number) = (Vec::new(), String::new(), 0);
    loop {
        number += 1;
        line.clear();
        match lines.by_ref().take(LONGEST_LINE).read_line(&mut line) {
            Ok(0) => return Ok(documents),
            Ok(n) if n as u64 == LONGEST_LINE => return Err(damaged(number)),
            Ok(_) => {}
            // An error of ours that came up through the readers.
            Err(cause) => return Err(cause.downcast::<Error>().unwrap_or_else(|cause| damaged(number).because(cause))),
        }
        let parsed: Line = serde_json::from_str(&line).map_err(|cause| damaged(number).because(cause))?;
        documents.extend(parsed.text);
        if enough(&mut documents)? {
            return Ok(documents);
        }
    }
}

/// A column of text in a parquet file, row by row.
fn column(path: &Path, name: &str) -> Result<Vec<String>> {
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
    use super::*;
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
            column(file.path(), "text")
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
