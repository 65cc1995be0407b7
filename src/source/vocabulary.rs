//! The vocabulary as GGUF stores it: tokens, merges, special tokens and chat templates.
//!
//! It has two sources, the files of a checkpoint ([`Vocabulary::from_files`]) and the metadata of a GGUF
//! ([`Vocabulary::from_metadata`]), and two uses: to be written ([`Vocabulary::to_metadata`]) and to encode text
//! ([`Vocabulary::tokenizer`], [`Vocabulary::spm_encoder`]). Two kinds are supported: byte-level BPE, which GGUF calls
//! `gpt2`, and SentencePiece, which it calls `llama`. A third, the word pieces of encoders, is only written
//! ([`Vocabulary::of_word_pieces`]).

mod encoder;
mod files;
mod merges;
mod sentencepiece;
mod slots;
mod spaces;
mod special;
mod spm;
mod spm_files;
pub(super) mod tekken;
mod templates;
mod word_pieces;

use super::pre_tokenizer;
use super::value::{self, Metadata, Value};
use crate::error::{Error, Result};

pub use spm::SpmEncoder;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words, cut by a regex, are merged byte by byte, in the order of a list of merges.
    ByteLevel,
    /// Whole texts are merged character by character, the pair of the highest score first.
    SentencePiece,
    /// Words are cut into the longest pieces that are there, from the left. Only written, never read back.
    WordPiece,
}

impl Kind {
    /// Those that text is encoded with here.
    const READ: [Kind; 2] = [Kind::ByteLevel, Kind::SentencePiece];

    /// GGUF's name (`tokenizer.ggml.model`).
    pub fn name(self) -> &'static str {
        match self {
            Kind::ByteLevel => "gpt2",
            Kind::SentencePiece => "llama",
            Kind::WordPiece => "bert",
        }
    }
}

/// What a token is for, with the numbers of `tokenizer.ggml.token_type`.
#[allow(missing_docs)]
pub mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The special tokens GGUF can name, in the order in which llama.cpp's converter writes them: the name Hugging Face's
/// files use, and GGUF's key (where "separator" is misspelt for ever).
pub const SPECIAL: [(&str, &str); 14] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
    ("eom", "tokenizer.ggml.eom_token_id"),
    ("fim_pre", "tokenizer.ggml.fim_pre_token_id"),
    ("fim_suf", "tokenizer.ggml.fim_suf_token_id"),
    ("fim_mid", "tokenizer.ggml.fim_mid_token_id"),
    ("fim_pad", "tokenizer.ggml.fim_pad_token_id"),
    ("fim_rep", "tokenizer.ggml.fim_rep_token_id"),
    ("fim_sep", "tokenizer.ggml.fim_sep_token_id"),
];

/// A vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// How text becomes tokens.
    pub kind: Kind,
    /// llama.cpp's name for the pre-tokenizer, one of [`super::pre_tokenizer::names`] if it came from a checkpoint; empty
    /// if a file has none.
    pub pre: String,
    /// The text of every token: that of an added token as it is; others of byte-level BPE with each byte as one printable
    /// character, those of SentencePiece with U+2581 for each space.
    pub tokens: Vec<String>,
    /// What each token is for, one of [`token_type`].
    pub token_type: Vec<i32>,
    /// What SentencePiece merges first is what makes the token of the highest score; empty for byte-level BPE.
    pub scores: Vec<f32>,
    /// The merges, best first, as `left right`; empty for SentencePiece.
    pub merges: Vec<String>,
    /// The ids of the special tokens, in the order of [`SPECIAL`].
    pub special: [Option<u32>; SPECIAL.len()],
    /// Whether BOS goes in front of every text; when absent, llama.cpp decides by `pre`.
    pub add_bos: Option<bool>,
    /// Whether EOS goes behind every text.
    pub add_eos: Option<bool>,
    /// Whether a separator goes between two texts; kept for llama.cpp, of no effect here.
    pub add_sep: Option<bool>,
    /// Whether SentencePiece puts a space in front of text; when absent, llama.cpp does.
    pub add_space_prefix: Option<bool>,
    /// The chat template.
    pub chat_template: Option<String>,
    /// Further chat templates with their names.
    pub named_templates: Vec<(String, String)>,
    /// What happens to a text before its words are cut into pieces; none for other kinds.
    pub normalizer: Option<Normalizer>,
    /// Where llama.cpp will not do what the checkpoint's own tokenizer does; no part of the metadata.
    pub notes: Vec<String>,
}

/// What happens to a text before its words are cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normalizer {
    /// Capitals become small letters.
    pub lowercase: bool,
    /// Accents are taken off.
    pub strip_accents: bool,
}

impl Vocabulary {
    /// The id of a special token by its name in [`SPECIAL`].
    pub fn special(&self, name: &str) -> Option<u32> {
        SPECIAL.iter().zip(self.special).find(|((known, _), _)| *known == name).and_then(|(_, id)| id)
    }

    /// The token that llama.cpp puts in front of every text, if there is one. A file that does not say whether it does
    /// leaves it to the kind, or to the pre-tokenizer.
    pub fn bos(&self) -> Option<u32> {
        let (implied, usual) = match self.kind {
            Kind::ByteLevel => (pre_tokenizer::by_name(&self.pre).is_some_and(|pre| pre.add_bos), None),
            Kind::SentencePiece => (true, Some(1).filter(|id| (*id as usize) < self.tokens.len())),
            Kind::WordPiece => (true, None),
        };
        self.special("bos").or(usual).filter(|_| self.add_bos.unwrap_or(implied))
    }

    /// The keys of GGUF, in the order in which llama.cpp's converter writes them.
    pub fn to_metadata(&self) -> Metadata {
        let mut metadata: Metadata = vec![
            ("tokenizer.ggml.model".into(), self.kind.name().into()),
            ("tokenizer.ggml.pre".into(), self.pre.as_str().into()),
            ("tokenizer.ggml.tokens".into(), self.tokens.clone().into()),
        ];
        if self.kind == Kind::SentencePiece {
            metadata.push((SCORES.into(), self.scores.clone().into()));
        }
        metadata.push(("tokenizer.ggml.token_type".into(), self.token_type.clone().into()));
        if self.kind == Kind::ByteLevel {
            metadata.push((MERGES.into(), self.merges.clone().into()));
        }
        for ((_, key), id) in SPECIAL.iter().zip(self.special) {
            metadata.extend(id.map(|id| ((*key).to_owned(), id.into())));
        }
        for (key, flag) in FLAGS.iter().zip([self.add_bos, self.add_eos, self.add_sep, self.add_space_prefix]) {
            metadata.extend(flag.map(|flag| ((*key).to_owned(), flag.into())));
        }
        if let Some(Normalizer { lowercase, strip_accents }) = self.normalizer {
            metadata.push(("tokenizer.ggml.normalizer.lowercase".into(), lowercase.into()));
            metadata.push(("tokenizer.ggml.normalizer.strip_accents".into(), strip_accents.into()));
        }
        for (name, template) in &self.named_templates {
            metadata.push((format!("{TEMPLATE}.{name}"), template.as_str().into()));
        }
        if !self.named_templates.is_empty() {
            let names: Vec<_> = self.named_templates.iter().map(|(name, _)| name.clone()).collect();
            metadata.push((TEMPLATE_NAMES.into(), names.into()));
        }
        metadata.extend(self.chat_template.as_deref().map(|text| (TEMPLATE.to_owned(), text.into())));
        metadata
    }

    /// Reads the keys back; those of other parts of the file are ignored.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let text = |key: &str| optional(metadata, key, "str", Value::as_str);
        let flag = |key: &str| optional(metadata, key, "bool", Value::as_bool);
        let strings = |key: &str| optional(metadata, key, "[str]", Value::as_strs);

        let model = required("tokenizer.ggml.model", text("tokenizer.ggml.model")?)?;
        let kind = Kind::READ.into_iter().find(|kind| kind.name() == model).ok_or_else(|| {
            Error::new(format!("the GGUF's vocabulary is of kind `{model}` (tokenizer.ggml.model)"))
                .hint("only byte-level BPE and SentencePiece are supported, which GGUF calls `gpt2` and `llama`")
        })?;
        let tokens = required("tokenizer.ggml.tokens", strings("tokenizer.ggml.tokens")?)?.to_vec();
        let token_type = match value::get(metadata, "tokenizer.ggml.token_type") {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(Value::Array(value::Array::I32(types))) if types.len() == tokens.len() => types.clone(),
            Some(other) => {
                let (kind, count) = (other.type_name(), other.as_array().map_or(0, value::Array::len));
                let wanted = tokens.len();
                return Err(Error::new(format!(
                    "tokenizer.ggml.token_type is {kind} of {count} elements, not [i32] of {wanted}"
                )));
            }
        };
        let scores = match value::get(metadata, SCORES) {
            _ if kind != Kind::SentencePiece => Vec::new(),
            None => vec![0.0; tokens.len()],
            Some(Value::Array(value::Array::F32(scores))) if scores.len() == tokens.len() => scores.clone(),
            Some(other) => {
                let (found, count) = (other.type_name(), other.as_array().map_or(0, value::Array::len));
                let wanted = tokens.len();
                return Err(Error::new(format!("{SCORES} is {found} of {count} elements, not [f32] of {wanted}")));
            }
        };
        let mut special = [None; SPECIAL.len()];
        for (slot, (_, key)) in special.iter_mut().zip(SPECIAL) {
            *slot = match optional(metadata, key, "u32", Value::as_u64)? {
                Some(id) if id < tokens.len() as u64 => Some(id as u32),
                Some(id) => return Err(Error::new(format!("{key} is {id}, but there are {} tokens", tokens.len()))),
                None => None,
            };
        }
        let names = strings(TEMPLATE_NAMES)?.unwrap_or_default();
        let named = |name: &String| {
            let key = format!("{TEMPLATE}.{name}");
            Ok((name.clone(), required(&key, text(&key)?)?.to_owned()))
        };
        let [add_bos, add_eos, add_sep, add_space_prefix] = FLAGS.map(flag);
        let merges = match kind {
            Kind::ByteLevel => required(MERGES, strings(MERGES)?)?.to_vec(),
            Kind::SentencePiece | Kind::WordPiece => Vec::new(),
        };
        Ok(Self {
            kind,
            pre: text("tokenizer.ggml.pre")?.unwrap_or_default().to_owned(),
            scores,
            merges,
            tokens,
            token_type,
            special,
            add_bos: add_bos?,
            add_eos: add_eos?,
            add_sep: add_sep?,
            add_space_prefix: add_space_prefix?,
            chat_template: text(TEMPLATE)?.map(str::to_owned),
            named_templates: names.iter().map(named).collect::<Result<_>>()?,
            normalizer: None,
            notes: Vec::new(),
        })
    }

    /// What encodes text with a vocabulary of SentencePiece's kind, as llama.cpp does it.
    pub fn spm_encoder(&self) -> SpmEncoder {
        SpmEncoder::new(self)
    }
}

const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const FLAGS: [&str; 4] = [
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix",
];
const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATE_NAMES: &str = "tokenizer.chat_templates";

fn optional<'a, T>(
    metadata: &'a Metadata,
    key: &str,
    kind: &str,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>> {
    let wrong = |value: &Value| Error::new(format!("{key} is {}, not {kind}", value.type_name()));
    value::get(metadata, key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(format!("the GGUF has no key {key}")).hint("without a vocabulary, it cannot encode text")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tiny() -> Vocabulary {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        Vocabulary::from_files(&folder, 2048, &serde_json::from_str(&config).unwrap(), None).unwrap()
    }

    #[test]
    fn the_tiny_checkpoint_is_read_as_llama_cpp_reads_it() {
        let vocabulary = tiny();
        let metadata = vocabulary.to_metadata();
        let keys: Vec<_> = metadata.iter().map(|(key, _)| key.as_str()).collect();
        let expected = [
            "tokenizer.ggml.model",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_sep_token",
        ];
        assert_eq!(keys, expected);
        assert_eq!(vocabulary.pre, "llama-bpe");
        assert_eq!((vocabulary.special("bos"), vocabulary.special("eos")), (Some(2046), Some(2047)));
        assert_eq!((vocabulary.add_bos, vocabulary.add_sep), (Some(true), Some(false)));
        assert_eq!(vocabulary.tokens.len(), 2048);
        assert_eq!(vocabulary.token_type[2045..], [token_type::NORMAL, token_type::CONTROL, token_type::CONTROL]);
    }

    #[test]
    fn metadata_round_trips() {
        let mut vocabulary = tiny();
        assert_eq!(Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap(), vocabulary);
        vocabulary.special = std::array::from_fn(|i| Some(i as u32 + 7));
        vocabulary.add_eos = Some(true);
        vocabulary.chat_template = Some("{{ messages }}".into());
        vocabulary.named_templates = vec![("rag".into(), "r".into()), ("tool_use".into(), "t".into())];
        assert_eq!(Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap(), vocabulary);
    }

    #[test]
    fn a_file_that_does_not_say_starts_texts_as_llama_cpp_does() {
        let mut vocabulary = tiny();
        assert_eq!(vocabulary.bos(), Some(2046));
        vocabulary.add_bos = None;
        assert_eq!(vocabulary.bos(), Some(2046), "llama-bpe implies it");
        vocabulary.pre = "qwen2".into();
        assert_eq!(vocabulary.bos(), None);
        vocabulary.kind = Kind::SentencePiece;
        assert_eq!(vocabulary.bos(), Some(2046));
        vocabulary.special = Default::default();
        assert_eq!(vocabulary.bos(), Some(1));
        vocabulary.add_bos = Some(false);
        assert_eq!(vocabulary.bos(), None);
    }

    #[test]
    fn broken_metadata_is_refused_by_key() {
        let whole = tiny().to_metadata();
        let error = |change: &dyn Fn(&mut Metadata)| {
            let mut metadata = whole.clone();
            change(&mut metadata);
            Vocabulary::from_metadata(&metadata).unwrap_err().to_string()
        };
        assert!(error(&|m| m[0].1 = "bert".into()).contains("`bert`"));
        assert!(error(&|m| m[2].1 = 3u32.into()).contains("tokenizer.ggml.tokens is u32, not [str]"));
        assert!(error(&|m| m[3].1 = vec![1i32].into()).contains("[i32] of 1 elements, not [i32] of 2048"));
        assert!(error(&|m| m[5].1 = 2048u32.into()).contains("bos_token_id is 2048, but there are 2048 tokens"));
        assert!(error(&|m| drop(m.remove(4))).contains("no key tokenizer.ggml.merges"));
        assert!(error(&|m| drop(m.drain(..))).contains("no key tokenizer.ggml.model"));
    }
}
