//! The JSON files of a checkpoint, as Python writes them.

use super::lfs;
use crate::error::{Context, Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More bytes than any such file has; the largest tokenizers have 40 million.
const LARGEST: u64 = 1 << 27;

/// The key under which transformers 5 writes a number that JSON has no word for: `{"__float__": "Infinity"}`.
const FLOAT: &str = "__float__";

/// Python's words for numbers that JSON does not have.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads a file. Python's `NaN`, `Infinity` and `-Infinity` become what transformers 5 writes for them, which [`number`]
/// reads; a byte order mark is passed over.
///
/// # Errors
/// It cannot be read, is larger than 128 MiB, a Git LFS pointer, or not JSON.
pub fn read(path: &Path) -> Result<Value> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).context(unreadable)?.take(LARGEST + 1).read_to_end(&mut bytes).context(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        let what = format!("{} has more than {LARGEST} bytes, which no JSON file of a checkpoint has", path.display());
        return Err(Error::new(what));
    }
    parse(path, &bytes)
}

/// The same of bytes that were read from `path`.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    lfs::refuse_pointer(path, bytes)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let value = serde_json::from_slice(bytes).or_else(|cause| match with_words_encoded(bytes) {
        // The first error counts where there are no such words, and the second where they were not all that is wrong.
        Cow::Borrowed(_) => Err(cause),
        Cow::Owned(bytes) => serde_json::from_slice(&bytes),
    });
    value.map_err(|cause| {
        let what = format!("{}, line {}, column {}: not valid JSON", path.display(), cause.line(), cause.column());
        Error::new(what).because(cause).hint("the download may be incomplete; fetch the file again")
    })
}

/// A number, an infinite one or NaN among them.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Object(map) if map.len() == 1 => {
            let word = map.get(FLOAT)?.as_str()?;
            WORDS.contains(&word).then(|| word.parse().ok()).flatten()
        }
        _ => value.as_f64(),
    }
}

/// The text of a value with Python's words in it, as every version of transformers reads them.
///
/// # Panics
/// Never: keys are strings.
pub fn text(value: &Value) -> String {
    let text = serde_json::to_string_pretty(&with_marks(value)).expect("keys are strings");
    WORDS.iter().fold(text, |text, word| text.replace(&format!("\"{MARK}{word}\""), word)) + "\n"
}

/// A character that no file has a use for.
const MARK: char = '\u{10ffff}';

fn with_marks(value: &Value) -> Value {
    match value {
        Value::Object(map) => match (number(value), map.get(FLOAT)) {
            (Some(_), Some(Value::String(word))) => format!("{MARK}{word}").into(),
            _ => Value::Object(map.iter().map(|(key, value)| (key.clone(), with_marks(value))).collect()),
        },
        Value::Array(list) => list.iter().map(with_marks).collect(),
        _ => value.clone(),
    }
}

/// The text with Python's words replaced, where there are any outside of strings.
fn with_words_encoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        let word = WORDS.iter().find(|word| !in_string && bytes[at..].starts_with(word.as_bytes()));
        if let Some(word) = word {
            out.extend_from_slice(&bytes[copied..at]);
            out.extend_from_slice(json!({ FLOAT: word }).to_string().as_bytes());
            at += word.len();
            copied = at;
            continue;
        }
        match bytes[at] {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Value> {
        parse(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn numbers_that_only_python_has_are_read() {
        let value =
            parsed("\u{feff}{\"a\": [0.0, Infinity], \"b\": -Infinity, \"c\":NaN, \"d\": \"\\\" NaN\"}").unwrap();
        assert_eq!(number(&value["a"][1]), Some(f64::INFINITY));
        assert_eq!(number(&value["b"]), Some(f64::NEG_INFINITY));
        assert!(number(&value["c"]).unwrap().is_nan());
        assert_eq!((&value["d"], number(&value["d"])), (&json!("\" NaN"), None));
        assert_eq!(parsed(r#"{"a": {"__float__": "Infinity"}}"#).unwrap()["a"], value["a"][1]);
        assert_eq!(number(&json!(1.5)), Some(1.5));
        assert_eq!(number(&json!({ FLOAT: "1" })), None);
    }

    #[test]
    fn what_is_written_has_pythons_words_again() {
        let written =
            text(&parsed(r#"{"limit": [0.0, Infinity], "name": "Infinity", "low": -Infinity, "n": 1}"#).unwrap());
        let lines: Vec<&str> = written.lines().map(str::trim).collect();
        let wanted = [
            "{",
            "\"limit\": [",
            "0.0,",
            "Infinity",
            "],",
            "\"name\": \"Infinity\",",
            "\"low\": -Infinity,",
            "\"n\": 1",
            "}",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn what_is_no_json_is_named_with_its_place() {
        for (text, place) in
            [("{\n\"a\": b}", "line 2, column 6"), ("{\"a\": Infinity\n", "line 2, column 0"), ("", "line 1")]
        {
            let error = parsed(text).unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
        }
        let deep = "[".repeat(1 << 20);
        assert!(parsed(&deep).unwrap_err().chain().join(": ").contains("recursion limit"));
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        assert!(parsed(pointer).unwrap_err().to_string().contains("Git LFS"));
    }
}
