//! What a `tokenizer.json` of SentencePiece's kind does to text before it merges, or looks for unigrams.

use serde_json::Value;

use super::spm::SPACE;
use crate::error::{Error, Result};
use crate::source::value::shortened;

/// How text is prepared: every space becomes U+2581, and perhaps one is put in front.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spaces {
    /// Spaces become U+2581.
    pub escaped: bool,
    /// Text gets one in front.
    pub prefix: bool,
    /// Words are cut apart, each with the space in front of it, so that no merge reaches over a space.
    pub split: bool,
    /// Runs of spaces become one.
    pub collapsed: bool,
    /// Text is cut at whitespace, of which nothing remains.
    pub words: bool,
    /// Spaces at the ends are taken off.
    pub stripped: bool,
    /// SentencePiece's table of characters that are replaced, in base64.
    pub charsmap: Option<String>,
    /// Other changes of the text.
    pub ignored: Vec<String>,
}

impl Spaces {
    /// Reads the normalizer and the pre-tokenizer.
    ///
    /// # Errors
    /// A pre-tokenizer that cuts text otherwise than at spaces, which llama.cpp never does for these kinds.
    pub fn read(tokenizer: &Value) -> Result<Spaces> {
        let mut spaces = Spaces::default();
        spaces.normalizer(&tokenizer["normalizer"]);
        spaces.pre_tokenizer(&tokenizer["pre_tokenizer"])?;
        Ok(spaces)
    }

    /// Changes of the text that llama.cpp does not make before it merges.
    pub fn notes(&self) -> Vec<String> {
        let others = [
            ("Precompiled", self.charsmap.is_some()),
            ("Strip", self.stripped),
            ("runs of spaces become one", self.collapsed),
        ];
        let others = others.into_iter().filter(|(_, does)| *does).map(|(what, _)| what);
        others.chain(self.ignored.iter().map(String::as_str)).map(not_done).collect()
    }

    fn normalizer(&mut self, step: &Value) {
        let space = SPACE.to_string();
        let (pattern, content) = (&step["pattern"], step["content"].as_str());
        match step["type"].as_str() {
            Some("Sequence") => {
                step["normalizers"].as_array().into_iter().flatten().for_each(|step| self.normalizer(step));
            }
            Some("Prepend") if step["prepend"] == *space => self.prefix = true,
            Some("Replace") if pattern["String"] == " " && content == Some(&space) => self.escaped = true,
            Some("Replace") if pattern["Regex"] == " {2,}" && [Some(" "), Some(&*space)].contains(&content) => {
                self.collapsed = true;
            }
            Some("Precompiled") => self.charsmap = step["precompiled_charsmap"].as_str().map(str::to_owned),
            Some("Strip") => self.stripped = true,
            Some(kind) => self.ignored.push(kind.to_owned()),
            None => {}
        }
    }

    fn pre_tokenizer(&mut self, step: &Value) -> Result<()> {
        match step["type"].as_str() {
            Some("Sequence") => {
                let steps = step["pretokenizers"].as_array().into_iter().flatten();
                steps.into_iter().try_for_each(|step| self.pre_tokenizer(step))
            }
            Some("Metaspace") if step["replacement"] == *SPACE.to_string() => {
                // Older files say only whether there is a prefix. "first" leaves out what follows a special token,
                // for which GGUF has no word.
                let scheme = step["prepend_scheme"].as_str();
                self.prefix |= scheme.map_or(step["add_prefix_space"] != false, |scheme| scheme != "never");
                self.split = step["split"] != false;
                self.escaped = true;
                Ok(())
            }
            // Gemma cuts at spaces after all spaces have been replaced, so never.
            Some("Split") if self.escaped && step["pattern"]["String"] == " " => Ok(()),
            Some("WhitespaceSplit") => {
                self.words = true;
                Ok(())
            }
            None => Ok(()),
            Some(_) => Err(Error::new(format!(
                "llama.cpp does not cut text like this before it merges: {}",
                shortened(&step.to_string())
            ))
            .hint("put the tokenizer.model of the checkpoint beside it, if there is one")),
        }
    }
}

/// Says that llama.cpp does not change text in a way in which `tokenizer.json` does.
pub(super) fn not_done(what: &str) -> String {
    format!("tokenizer.json changes text first ({}), which llama.cpp does not", shortened(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(normalizer: Value, pre_tokenizer: Value) -> Result<Spaces> {
        Spaces::read(&json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}))
    }

    #[test]
    fn the_published_ways_are_known() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
        let llama = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        let prefixed = Spaces { escaped: true, prefix: true, ..Spaces::default() };
        assert_eq!(read(llama, Value::Null).unwrap(), prefixed);
        let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"});
        let plain = Spaces { escaped: true, ..Spaces::default() };
        assert_eq!(read(replace, gemma).unwrap(), plain);
        let metaspace = |more: Value| {
            let mut step = json!({"type": "Metaspace", "replacement": "\u{2581}"});
            step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(Value::Null, step).unwrap()
        };
        assert_eq!(metaspace(json!({"prepend_scheme": "first", "split": false})), prefixed);
        assert_eq!(metaspace(json!({"prepend_scheme": "never", "split": false})), plain);
        assert_eq!(metaspace(json!({"add_prefix_space": false, "split": false})), plain);
        assert!(metaspace(json!({"add_prefix_space": true})).split);
    }

    #[test]
    fn what_llama_cpp_does_not_do_is_told() {
        let found = read(json!({"type": "NFKC"}), Value::Null).unwrap();
        assert_eq!(found.ignored, ["NFKC"]);
        let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
        let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        let found = read(json!({"type": "Sequence", "normalizers": [table, runs]}), Value::Null).unwrap();
        assert!(found.collapsed && found.charsmap.as_deref() == Some("AAAA"));
        assert!(found.notes().concat().contains("runs of spaces"));
        assert!(read(Value::Null, json!({"type": "WhitespaceSplit"})).unwrap().words);
        let error = read(Value::Null, json!({"type": "Digits", "individual_digits": true})).unwrap_err();
        assert!(error.to_string().contains("Digits"), "{error}");
        assert!(error.hint_text().unwrap().contains("tokenizer.model"));
    }
}
