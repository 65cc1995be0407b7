//! The vocabulary as GGUF stores it: tokens, merges, special tokens and chat templates.
//!
//! It has two sources, the files of a checkpoint ([`Vocabulary::from_files`]) and the metadata of a GGUF
//! ([`Vocabulary::from_metadata`]), and two uses: to be written ([`Vocabulary::to_metadata`]) and to encode text
//! ([`Vocabulary::tokenizer`], [`Vocabulary::spm_encoder`]). [`Kind`] lists the kinds. One of them, the word pieces of
//! encoders, is only written ([`Vocabulary::of_word_pieces`]).

mod added;
mod charsmap;
mod encoder;
mod files;
mod merges;
mod metadata;
mod sentencepiece;
mod slots;
mod spaces;
mod special;
mod spm;
mod spm_files;
pub(super) mod tekken;
mod templates;
mod unigram;
mod vocab_and_merges;
mod word_pieces;

use super::pre_tokenizer::{self, PreTokenizer};
use crate::error::Result;

pub(super) use charsmap::check_base64;
pub(super) use files::read_text;
pub use spm::SpmEncoder;
pub(super) use unigram::LONGEST as LONGEST_UNIGRAM;
pub use unigram::UnigramNormalizer;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words, cut by a regex, are merged in the order of a list of merges: byte by byte, or, where the pre-tokenizer
    /// leaves bytes alone ([`PreTokenizer::is_raw`]), character by character.
    Bpe,
    /// Whole texts are merged character by character, the pair of the highest score first.
    SentencePiece,
    /// Whole lines are merged character by character, in the order of a list of merges (Gemma 4).
    Gemma4,
    /// Of all ways to cut a text into tokens, the one with the highest sum of scores.
    Unigram,
    /// Words are cut into the longest pieces that are there, from the left. Only written, never read back.
    WordPiece,
}

impl Kind {
    /// Those that text is encoded with here.
    const READ: [Kind; 4] = [Kind::Bpe, Kind::SentencePiece, Kind::Gemma4, Kind::Unigram];

    /// GGUF's name (`tokenizer.ggml.model`).
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bpe => "gpt2",
            Kind::SentencePiece => "llama",
            Kind::Gemma4 => "gemma4",
            Kind::Unigram => "t5",
            Kind::WordPiece => "bert",
        }
    }

    fn has_merges(self) -> bool {
        matches!(self, Kind::Bpe | Kind::Gemma4)
    }

    /// llama.cpp's converter writes scores for Gemma 4 too, all of them the same.
    fn has_scores(self) -> bool {
        matches!(self, Kind::SentencePiece | Kind::Gemma4 | Kind::Unigram)
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
    /// character, those of the other kinds with U+2581 for each space.
    pub tokens: Vec<String>,
    /// What each token is for, one of [`token_type`].
    pub token_type: Vec<i32>,
    /// One score a token, empty for kinds without: SentencePiece first merges what makes the token of the highest score,
    /// and for unigrams it is the logarithm of how likely the token is.
    pub scores: Vec<f32>,
    /// The merges, best first, as `left right`; empty for kinds without.
    pub merges: Vec<String>,
    /// The ids of the special tokens, in the order of [`SPECIAL`].
    pub special: [Option<u32>; SPECIAL.len()],
    /// Whether BOS goes in front of every text; when absent, llama.cpp decides by `kind` and `pre`.
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
    /// Tokens that are never generated; kept for llama.cpp, of no effect here.
    pub suppress_tokens: Vec<i32>,
    /// What happens to a text before its words are cut into pieces; none for other kinds.
    pub normalizer: Option<Normalizer>,
    /// What happens to a text before it is cut into unigrams; none for other kinds.
    pub unigram: Option<UnigramNormalizer>,
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
    /// One without tokens.
    fn empty(kind: Kind) -> Vocabulary {
        Vocabulary {
            kind,
            pre: String::new(),
            tokens: Vec::new(),
            token_type: Vec::new(),
            scores: Vec::new(),
            merges: Vec::new(),
            special: Default::default(),
            add_bos: None,
            add_eos: None,
            add_sep: None,
            add_space_prefix: None,
            chat_template: None,
            named_templates: Vec::new(),
            suppress_tokens: Vec::new(),
            normalizer: None,
            unigram: None,
            notes: Vec::new(),
        }
    }

    /// The id of a special token by its name in [`SPECIAL`].
    pub fn special(&self, name: &str) -> Option<u32> {
        SPECIAL.iter().zip(self.special).find(|((known, _), _)| *known == name).and_then(|(_, id)| id)
    }

    /// How text is cut before merges, if the vocabulary has merges and its pre-tokenizer is known.
    pub fn pre_tokenizer(&self) -> Option<&'static PreTokenizer> {
        match self.kind {
            Kind::Bpe => pre_tokenizer::by_name(&self.pre),
            Kind::Gemma4 => pre_tokenizer::by_name(Kind::Gemma4.name()),
            _ => None,
        }
    }

    /// The token that llama.cpp puts in front of every text, if there is one. A file that does not say whether it does
    /// leaves it to the kind, or to the pre-tokenizer.
    pub fn bos(&self) -> Option<u32> {
        let pre = self.pre_tokenizer();
        let (implied, usual) = match self.kind {
            Kind::Bpe | Kind::Gemma4 => (pre.is_some_and(|pre| pre.add_bos), None),
            Kind::SentencePiece => (true, Some(1).filter(|id| (*id as usize) < self.tokens.len())),
            Kind::Unigram => (false, None),
            Kind::WordPiece => (true, None),
        };
        let add = pre.is_some_and(|pre| pre.gemma4) || self.add_bos.unwrap_or(implied);
        self.special("bos").or(usual).filter(|_| add)
    }

    /// What encodes text with a vocabulary of pieces that mark spaces, as llama.cpp does it.
    ///
    /// # Errors
    /// Merges, but no pre-tokenizer that leaves bytes alone.
    pub fn spm_encoder(&self) -> Result<SpmEncoder> {
        SpmEncoder::new(self)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_that_does_not_say_starts_texts_as_llama_cpp_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let mut vocabulary = Vocabulary::from_files(&folder, 2048, &serde_json::json!({}), None).unwrap();
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
        vocabulary.special[0] = Some(7);
        vocabulary.kind = Kind::Unigram;
        assert_eq!(vocabulary.bos(), None);
        vocabulary.kind = Kind::Gemma4;
        assert_eq!(vocabulary.bos(), Some(7), "whatever the file says");
        (vocabulary.kind, vocabulary.pre) = (Kind::Bpe, "gemma4".into());
        assert_eq!(vocabulary.bos(), Some(7));
    }
}
