//! Calibration text: files of plain text or of JSON lines, or the sample that is built in.

use super::chat::Chat;
use crate::error::{Context, Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A varied sample of prose, technical text, dialogue, code, lists and several languages, written for llmq. Documents
/// are separated by two empty lines.
const SAMPLE: &str = include_str!("../../eval/calibration.txt");

/// The most bytes that a compressed file may become: a file of C4 has 0.8 GB, and a megabyte of gzip can be a gigabyte of zeros.
const MOST_UNPACKED: u64 = 4 << 30;

/// The documents of the built-in sample.
pub fn sample() -> Vec<String> {
    SAMPLE.split("\n\n\n").map(|d| d.trim_end_matches('\n').to_string()).collect()
}

/// The documents of several files and what the files are called; of the built-in sample where there are none. `chat`: as for
/// [`read`].
///
/// # Errors
/// As [`read`].
pub fn read_all(paths: &[PathBuf], chat: Option<&Chat>) -> Result<(Vec<String>, Vec<String>)> {
    if paths.is_empty() {
        return Ok((sample(), vec!["the sample built into llmq".into()]));
    }
    let (mut documents, mut names) = (Vec::new(), Vec::new());
    for path in paths {
        documents.extend(read(path, chat)?);
        names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    Ok((documents, names))
}

/// The documents of a file: the whole of a `.txt`, or those of every line of a `.jsonl`, `.json` or either with `.gz` behind it: its
/// `"text"` (C4's own format), or its `"messages"`, written with the chat template of the model.
///
/// # Errors
/// A file that cannot be read, is empty, is not UTF-8 (the byte is named), or a line that is no such JSON or cannot be written with
/// the template (the line is named).
pub fn read(path: &Path, chat: Option<&Chat>) -> Result<Vec<String>> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_lowercase();
    let (stem, packed) = match name.strip_suffix(".gz") {
        Some(stem) => (stem, true),
        None => (name.as_str(), false),
    };
    let file = File::open(path).map_err(|cause| {
        Error::new(format!("cannot open {}", path.display()))
            .because(cause)
            .hint("check the path; sets that need no file are c4 and wikitext2")
    })?;
    let text = utf8(path, if packed { unpacked(path, file, MOST_UNPACKED)? } else { whole(path, file)? })?;
    let documents =
        if stem.ends_with(".json") || stem.ends_with(".jsonl") { lines(path, &text, chat)? } else { vec![text] };
    if documents.iter().all(|d| d.trim().is_empty()) {
        return Err(Error::new(format!("{} holds no text", path.display())));
    }
    Ok(documents)
}

fn whole(path: &Path, mut from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// The bytes behind gzip's compression, `most` of them.
fn unpacked(path: &Path, file: File, most: u64) -> Result<Vec<u8>> {
    let bytes = whole(path, MultiGzDecoder::new(file).take(most + 1))?;
    if bytes.len() as u64 > most {
        return Err(Error::new(format!("{} unpacks to more than {most} bytes", path.display())).hint(
            "calibration needs a few megabytes: take the beginning, for example with `zcat FILE | head -n 10000 > part.jsonl`",
        ));
    }
    Ok(bytes)
}

/// The text of a file's bytes.
///
/// # Errors
/// It is not UTF-8; the byte is named.
pub fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|cause| {
        let at = cause.utf8_error().valid_up_to();
        Error::new(format!("{} is not UTF-8: byte {at} is {:#04x}", path.display(), cause.as_bytes()[at]))
            .hint("convert it first, for example with `iconv -t utf-8`")
    })
}

/// A line of a file of documents.
#[derive(serde::Deserialize)]
pub(super) struct Line {
    /// A document.
    pub text: Option<String>,
    /// A conversation.
    messages: Option<serde_json::Value>,
    /// What the model may call in it.
    tools: Option<serde_json::Value>,
}

fn lines(path: &Path, text: &str, chat: Option<&Chat>) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let at = || format!("{}: line {}", path.display(), i + 1);
            let none = || Error::new(format!("{} is not a JSON object with a \"text\" or \"messages\"", at())).hint(EXAMPLES);
            let line: Line = serde_json::from_str(line).map_err(|cause| none().because(cause))?;
            match (line.text, line.messages, chat) {
                (Some(text), _, _) => Ok(text),
                (None, Some(messages), Some(chat)) => {
                    chat.render(&messages, line.tools.as_ref()).context(|| format!("{} cannot be used", at()))
                }
                (None, Some(_), None) => Err(Error::new(format!(
                    "{} holds \"messages\", and there is no chat template to write them with",
                    at()
                ))
                .hint("take a checkpoint that has one (in tokenizer_config.json or chat_template.jinja), or lines of {\"text\": \"…\"}")),
                (None, None, _) => Err(none()),
            }
        })
        .collect()
}

const EXAMPLES: &str = "each line should look like {\"text\": \"…\"}, as in C4, or {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}]}; \
                        plain text belongs in a .txt file";

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn written(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path, None)
    }

    #[test]
    fn the_sample_has_many_documents() {
        let documents = sample();
        assert!(documents.len() > 20 && documents.iter().all(|d| d.len() > 40));
        assert!(SAMPLE.len() > 60_000);
    }

    #[test]
    fn json_lines_and_their_packed_form_are_read() {
        let lines = b"{\"text\": \"one\", \"url\": \"x\"}\n\n{\"text\": \"two\"}\n";
        assert_eq!(written("a.jsonl", lines).unwrap(), ["one", "two"]);
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(lines).unwrap();
        assert_eq!(written("a.json.gz", &packer.finish().unwrap()).unwrap(), ["one", "two"]);
        assert_eq!(written("a.txt", b"{plain}").unwrap(), ["{plain}"]);
    }

    #[test]
    fn what_unpacks_without_end_is_refused() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&[b'a'; 1 << 20]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt.gz");
        std::fs::write(&path, packer.finish().unwrap()).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 10_000);
        let unpacked = |most| super::unpacked(&path, File::open(&path).unwrap(), most);
        assert_eq!(unpacked(1 << 20).unwrap().len(), 1 << 20);
        let error = unpacked((1 << 20) - 1).unwrap_err();
        assert!(
            error.to_string().contains("a.txt.gz unpacks to more than 1048575 bytes") && error.hint_text().is_some()
        );
    }

    #[test]
    fn bad_text_is_an_error_that_says_where() {
        assert!(written("a.txt", b"ab\xff").unwrap_err().to_string().contains("byte 2 is 0xff"));
        assert!(written("a.json", b"{\"text\": \"a\"}\n{\"body\": 1}").unwrap_err().to_string().contains("line 2"));
        assert!(written("a.txt", b" \n").unwrap_err().to_string().contains("no text"));
        assert!(written("a.json.gz", b"not gzip").is_err());
        assert!(read(Path::new("/nowhere/a.txt"), None).unwrap_err().hint_text().is_some());
    }
}
