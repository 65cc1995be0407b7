//! How text is cut into words before byte-pair merges, and the name GGUF (`tokenizer.ggml.pre`) has for each way.
//!
//! llama.cpp's converter recognises a pre-tokenizer by a hash of what it makes of one text, which fails as soon as the
//! vocabulary differs. The rules themselves stand in `tokenizer.json`, so here they are looked up as they are written.
//! llama.cpp never normalises text for byte-level BPE; where it has several names for the same rules, `nfc` keeps those
//! apart whose Hugging Face tokenizer normalises, so that a tokenizer rebuilt from GGUF does what the original did.

mod table;

use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{Context, Error, Result};
use crate::source::value::shortened;
use table::{DIGIT, DIGIT_RUN, GPT2, PUNCTUATION, PUNCTUATION_RUN, SPELLINGS, TABLE};

pub(super) use table::QWEN2;

/// One step of a pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Every match becomes a piece of its own, and so does the text between two matches.
    Split(&'static str),
    /// Every byte becomes a printable character. Usually last; what follows sees those characters instead of the text.
    Bytes,
}

/// A way of cutting text, and what else llama.cpp infers from its name.
#[derive(Debug)]
pub struct PreTokenizer {
    /// The names llama.cpp has for it; a converted checkpoint gets the first.
    pub names: &'static [&'static str],
    /// Only asked for by name: llama.cpp's converter gives the name to one model alone, and only young releases know it.
    pub young: bool,
    /// The Hugging Face tokenizer first brings text into normal form C.
    pub nfc: bool,
    /// A piece that is a token is never built by merges.
    pub ignore_merges: bool,
    /// Whether text starts with BOS when the file does not say.
    pub add_bos: bool,
    /// Spaces become U+2581 first.
    pub escape_spaces: bool,
    /// What llama.cpp does for Gemma 4 alone: a run of line ends that is a token is not merged, and BOS starts every text,
    /// whatever the file says.
    pub gemma4: bool,
    /// The steps, in order.
    pub steps: &'static [Step],
    /// Where llama.cpp does something else for this name.
    pub caveat: Option<&'static str>,
}

/// All names that `--pre` accepts.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|row| row.names).copied()
}

/// The pre-tokenizer behind a value of `tokenizer.ggml.pre`.
pub fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// The name for what a `tokenizer.json` does before merging.
pub fn derive(tokenizer: &Value) -> Result<&'static str> {
    let nfc = normalises(&tokenizer["normalizer"])?;
    let ignore_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let mut found = Vec::new();
    collect(&tokenizer["pre_tokenizer"], &mut found);
    TABLE
        .iter()
        .filter(|row| !row.young && !row.is_raw() && row.steps.iter().map(Step::describe).eq(found.iter().cloned()))
        .min_by_key(|row| (row.ignore_merges != ignore_merges, row.nfc != nfc))
        .and_then(|row| row.names.first().copied())
        .ok_or_else(|| {
            let found = if found.is_empty() { "no pre-tokenizer".into() } else { found.join(", then ") };
            Error::new(format!("llama.cpp has no name for this pre-tokenizer: {}", shortened(&found))).hint(advice())
        })
}

/// The error for a file's pre-tokenizer that is not in the table.
pub(super) fn unknown(name: &str) -> Error {
    // llama.cpp would take "default" for none, which hardly any model was trained with.
    let what = match name {
        "" => "no pre-tokenizer is named (tokenizer.ggml.pre)".into(),
        name => format!("the pre-tokenizer {} (tokenizer.ggml.pre) is not known", shortened(&format!("`{name}`"))),
    };
    Error::new(what).hint(advice())
}

/// What to do when a pre-tokenizer cannot be derived.
pub fn advice() -> String {
    let names: Vec<_> = names().collect();
    format!("if the model behaves like a known one, say which: --pre NAME, with NAME one of {}", names.join(", "))
}

impl PreTokenizer {
    /// Whether merges see the characters of the text instead of its bytes. `tokenizer.json` does not tell such a
    /// pre-tokenizer from SentencePiece's kind, so it is not derived.
    pub fn is_raw(&self) -> bool {
        !self.steps.contains(&Step::Bytes)
    }

    /// The same as a part of a Hugging Face tokenizer.
    pub fn build(&self) -> Result<PreTokenizerWrapper> {
        let build = |step: &Step| match step {
            Step::Bytes => Ok(ByteLevel::new(false, true, false).into()),
            Step::Split(regex) => {
                Split::new(SplitPattern::Regex((*regex).into()), SplitDelimiterBehavior::Isolated, false)
                    .map(PreTokenizerWrapper::from)
                    .context(|| format!("the regex {regex} does not compile"))
            }
        };
        Ok(Sequence::new(self.steps.iter().map(build).collect::<Result<_>>()?).into())
    }
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Step::Split(regex) => split(regex),
            Step::Bytes => "ByteLevel".into(),
        }
    }
}

/// A split in the one spelling in which splits are compared and shown.
fn split(regex: &str) -> String {
    let mut text = String::new();
    for c in regex.chars() {
        match c {
            '\r' => text.push_str(r"\r"),
            '\n' => text.push_str(r"\n"),
            ' '..='~' => text.push(c),
            _ => text.push_str(&format!(r"\x{{{:X}}}", u32::from(c))),
        }
    }
    for (other, usual) in SPELLINGS {
        text = text.replace(other, usual);
    }
    format!("Split {text}")
}

/// Spells out the steps of a `pre_tokenizer` of `tokenizer.json`; what has no counterpart here stays as it is.
fn collect(step: &Value, steps: &mut Vec<String>) {
    let flag = |name: &str| step[name].as_bool();
    let pattern = &step["pattern"];
    match (step["type"].as_str(), step["behavior"].as_str()) {
        (Some("Sequence"), _) => {
            step["pretokenizers"].as_array().into_iter().flatten().for_each(|step| collect(step, steps));
        }
        (Some("Split"), Some(behavior)) => {
            let regex = pattern["Regex"].as_str().map(split);
            let regex = regex.or_else(|| pattern["String"].as_str().map(|text| split(&regex::escape(text))));
            // A regex that matches all text leaves nothing to remove between its matches.
            let all = behavior == "Removed" && flag("invert") == Some(true);
            steps.push(match regex {
                Some(regex) if behavior == "Isolated" || (all && regex.ends_with(r"|\s+")) => regex,
                _ => step.to_string(),
            });
        }
        (Some("Digits"), _) => {
            steps.push(split(if flag("individual_digits") == Some(true) { DIGIT } else { DIGIT_RUN }))
        }
        (Some("Punctuation"), Some("Contiguous")) => steps.push(split(PUNCTUATION_RUN)),
        (Some("Punctuation"), Some("Isolated") | None) => steps.push(split(PUNCTUATION)),
        (Some("ByteLevel"), _) if flag("add_prefix_space") != Some(true) => {
            if flag("use_regex") != Some(false) {
                steps.push(split(GPT2));
            }
            steps.push(Step::Bytes.describe());
        }
        (None, _) if step.is_null() => {}
        _ => steps.push(step.to_string()),
    }
}

/// Whether text is brought into normal form C. Any other change llama.cpp would silently not make.
fn normalises(normalizer: &Value) -> Result<bool> {
    match normalizer["type"].as_str() {
        Some("NFC") => Ok(true),
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array().into_iter().flatten();
            parts.map(normalises).try_fold(false, |any, one| Ok(any | one?))
        }
        None if normalizer.is_null() => Ok(false),
        _ => {
            let normalizer = shortened(&normalizer.to_string());
            Err(Error::new(format!("llama.cpp does not apply this normalizer to byte-level BPE: {normalizer}"))
                .hint(advice()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::table::{DEEPSEEK_V3_WORDS, DIGIT_TRIPLES, GPT4O, LLAMA3};
    use super::*;

    fn isolated(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    fn bytes(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    fn digits() -> Value {
        json!({"type": "Digits", "individual_digits": true})
    }

    fn tokenizer(steps: &[Value]) -> Value {
        let steps = json!({"type": "Sequence", "pretokenizers": steps});
        json!({"normalizer": null, "pre_tokenizer": steps, "model": {"type": "BPE"}})
    }

    #[test]
    fn every_row_is_found_again_under_its_first_name() {
        for row in TABLE.iter().filter(|row| !row.young && !row.is_raw()) {
            let steps: Vec<_> = row
                .steps
                .iter()
                .map(|step| if let Step::Split(regex) = step { isolated(regex) } else { bytes(false) })
                .collect();
            let mut json = tokenizer(&steps);
            json["model"]["ignore_merges"] = row.ignore_merges.into();
            if row.nfc {
                json["normalizer"] = json!({"type": "NFC"});
            }
            assert_eq!(derive(&json).unwrap(), row.names[0]);
        }
    }

    #[test]
    fn names_are_unique_and_every_row_compiles() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
        for name in all {
            by_name(name).unwrap().build().unwrap();
        }
    }

    #[test]
    fn published_spellings_are_known() {
        let llama = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
        let cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
        let ling =
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
        // DeepSeek-V3 has the line ends and the ranges as characters, not as escapes.
        let words = DEEPSEEK_V3_WORDS.replace(r"\r", "\r").replace(r"\n", "\n");
        let cjk = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";
        let bloom = " ?[^(\\s|[.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C}])]+";
        let xenova = json!({"type": "Split", "pattern": {"Regex": GPT4O}, "behavior": "Removed", "invert": true});
        let runs = json!({"type": "Punctuation", "behavior": "Contiguous"});
        let digit_runs = json!({"type": "Digits", "individual_digits": false});
        let cases: &[(&str, &[Value])] = &[
            ("glm4", &[isolated(llama), bytes(false)]),
            ("glm4", &[isolated(cl100k), bytes(false)]),
            ("hunyuan", &[isolated(ling), bytes(false)]),
            ("deepseek-v3", &[isolated(DIGIT_TRIPLES), isolated(cjk), isolated(&words), bytes(false)]),
            ("bloom", &[isolated(bloom), bytes(false)]),
            ("viking", &[isolated(bloom), digits(), bytes(false)]),
            ("gpt-4o", &[xenova, bytes(false)]),
            ("gpt-2", &[bytes(true)]),
            ("smollm", &[digits(), bytes(true)]),
            ("falcon", &[runs, bytes(true), digit_runs, isolated("[0-9][0-9][0-9]")]),
        ];
        for (name, steps) in cases {
            assert_eq!(derive(&tokenizer(steps)).unwrap(), *name);
        }
        // A lone step needs no sequence around it, and `use_regex` is on unless the file turns it off.
        let lone = json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {}});
        assert_eq!(derive(&lone).unwrap(), "gpt-2");
    }

    #[test]
    fn twins_are_told_apart_by_merges_and_normal_form() {
        let mut json = tokenizer(&[isolated(LLAMA3), bytes(false)]);
        assert_eq!(derive(&json).unwrap(), "glm4");
        json["model"]["ignore_merges"] = true.into();
        assert_eq!(derive(&json).unwrap(), "llama-bpe");
        let mut json = tokenizer(&[isolated(GPT4O), bytes(false)]);
        json["model"]["ignore_merges"] = true.into();
        assert_eq!(derive(&json).unwrap(), "gpt-4o", "as in gpt-oss, which old releases of llama.cpp run");
        let mut json = tokenizer(&[digits(), bytes(true)]);
        json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]});
        assert_eq!(derive(&json).unwrap(), "command-r");
    }

    #[test]
    fn an_unknown_one_is_shown_with_the_names_to_choose_from() {
        let error = derive(&tokenizer(&[isolated(r"\w+"), bytes(false)])).unwrap_err();
        assert!(error.to_string().contains(r"Split \w+, then ByteLevel"), "{error}");
        assert!(error.hint_text().unwrap().contains("--pre NAME"));
        assert!(error.hint_text().unwrap().contains("llama-bpe"));
        let mut json = tokenizer(&[bytes(true)]);
        json["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] = true.into();
        assert!(derive(&json).unwrap_err().to_string().contains("add_prefix_space"));
        let digits = json!({"type": "Split", "pattern": {"String": "7"}, "behavior": "Removed", "invert": true});
        assert!(derive(&tokenizer(&[digits, bytes(true)])).unwrap_err().to_string().contains("Removed"));
        json["normalizer"] = json!({"type": "Lowercase"});
        assert!(derive(&json).unwrap_err().to_string().contains("Lowercase"));
        assert!(derive(&json!({})).unwrap_err().to_string().contains("no pre-tokenizer"));
    }

    #[test]
    fn pieces_are_as_expected() {
        let pieces = |name: &str, text: &str| {
            let mut pieces = PreTokenizedString::from(text);
            by_name(name).unwrap().build().unwrap().pre_tokenize(&mut pieces).unwrap();
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.into_iter().map(|(piece, ..)| piece.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(pieces("llama-bpe", "I'LL see 12345 ok"), ["I", "'LL", "Ġsee", "Ġ", "123", "45", "Ġok"]);
        assert_eq!(pieces("qwen2", "in 99"), ["in", "Ġ", "9", "9"]);
        assert_eq!(pieces("gpt-2", "in 99"), ["in", "Ġ99"]);
        assert_eq!(pieces("smollm", "in 99"), ["in", "Ġ", "9", "9"]);
        assert_eq!(pieces("gpt-4o", "camelCase it's"), ["camel", "Case", "Ġit's"]);
        assert_eq!(pieces("tekken", "camelCase it's"), ["camel", "Case", "Ġit", "'s"]);
        assert_eq!(pieces("superbpe", "12345"), ["12", "345"]);
        assert_eq!(pieces("deepseek-v3", "12345"), ["123", "45"]);
        assert_eq!(pieces("bloom", "Hi, you"), ["Hi", ",", "Ġyou"]);
        assert_eq!(pieces("falcon", "a, 12345"), ["a", ",", "Ġ", "123", "45"]);
    }
}
