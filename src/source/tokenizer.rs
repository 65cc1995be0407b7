//! Text into tokens.

mod own;

use super::value::quoted;
use super::vocabulary::{Kind, SpmEncoder, Vocabulary, tekken, token_type};
use crate::error::{Context, Error, Result};
use crate::guard::guarded;
use rayon::prelude::*;
use std::path::Path;
use tokenizers::AddedToken;

/// What to do where the tokenizers crate panics.
const ODD: &str = "tokenizer.json is damaged, or was edited by hand: fetch it again";

/// A tokenizer and the token that its texts start with.
pub struct Tokenizer {
    inner: Inner,
    /// What each id stands for; none for fillers.
    texts: Vec<Option<String>>,
    /// Added tokens that llama.cpp holds to be special, and `tokenizer.json` does not.
    control: Vec<AddedToken>,
    bos: Option<u32>,
}

enum Inner {
    HuggingFace(Box<tokenizers::Tokenizer>),
    Spm(Box<SpmEncoder>),
}

impl Tokenizer {
    /// The checkpoint's own `tokenizer.json`, or the vocabulary where there is none or where it has other added tokens; the
    /// vocabulary says whether texts start with BOS.
    ///
    /// # Errors
    /// A file that the tokenizers crate cannot read.
    pub fn open(folder: &Path, vocabulary: &Vocabulary) -> Result<Tokenizer> {
        if tekken::is_used(folder) {
            return Self::from_vocabulary(vocabulary);
        }
        match own::open(folder, vocabulary)? {
            Some(own) => Ok(Self::new(Inner::HuggingFace(own.into()), vocabulary)),
            None => Self::from_vocabulary(vocabulary),
        }
    }

    /// The tokenizer that a GGUF's vocabulary describes.
    ///
    /// # Errors
    /// A vocabulary that makes no tokenizer.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Tokenizer> {
        let raw = vocabulary.pre_tokenizer().is_some_and(|pre| pre.is_raw());
        let inner = match vocabulary.kind {
            Kind::Bpe if !raw => Inner::HuggingFace(vocabulary.tokenizer()?.into()),
            Kind::Unigram => Inner::HuggingFace(vocabulary.tokenizer()?.into()),
            Kind::Bpe | Kind::Gemma4 | Kind::SentencePiece => Inner::Spm(vocabulary.spm_encoder()?.into()),
            Kind::WordPiece => return Err(Error::new("text is not encoded with a GGUF's word pieces")),
        };
        Ok(Self::new(inner, vocabulary))
    }

    fn new(inner: Inner, vocabulary: &Vocabulary) -> Tokenizer {
        let texts = vocabulary.tokens.iter().zip(&vocabulary.token_type);
        let texts = texts.map(|(text, kind)| (*kind != token_type::UNUSED).then(|| text.clone())).collect();
        let is_control = |id: u32| vocabulary.token_type.get(id as usize) == Some(&token_type::CONTROL);
        let control = match &inner {
            Inner::HuggingFace(inner) => {
                let added = inner.get_added_tokens_decoder();
                let mut control: Vec<_> =
                    added.into_iter().filter(|(id, token)| !token.special && is_control(*id)).collect();
                control.sort_by_key(|(id, _)| *id);
                control.into_iter().map(|(_, token)| AddedToken { special: true, ..token }).collect()
            }
            Inner::Spm(_) => Vec::new(),
        };
        Tokenizer { inner, texts, control, bos: vocabulary.bos() }
    }

    /// The token that every text starts with, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What a token stands for, in the form that GGUF stores; none for an id that no text becomes.
    pub fn token(&self, id: u32) -> Option<String> {
        self.texts.get(id as usize).cloned().flatten()
    }

    /// A text's tokens, without any BOS or EOS.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, or that holds a token for which the model has no row.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::HuggingFace(inner) => {
                let encoding = guarded(ODD, || inner.encode_fast(text, false)).context(|| "cannot tokenize".into())?;
                self.check(encoding.get_ids())?;
                Ok(encoding.get_ids().to_vec())
            }
            Inner::Spm(inner) => Ok(inner.encode(text)),
        }
    }

    /// The same, but the text of special tokens is read like any other, as llama-perplexity does; that of added tokens that are not
    /// special becomes those tokens all the same.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::HuggingFace(inner) => {
                let mut inner = inner.clone();
                inner.set_encode_special_tokens(true);
                inner.add_tokens(self.control.clone()).context(|| "cannot tokenize".into())?;
                let encoding = guarded(ODD, || inner.encode_fast(text, false)).context(|| "cannot tokenize".into())?;
                self.check(encoding.get_ids())?;
                Ok(encoding.get_ids().to_vec())
            }
            Inner::Spm(inner) => Ok(inner.encode_plain(text)),
        }
    }

    /// Refuses ids beyond the vocabulary: a `tokenizer.json` may add tokens for which the embedding was never given rows.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let rows = self.texts.len();
        match ids.iter().find(|&&id| id as usize >= rows) {
            None => Ok(()),
            Some(id) => {
                let text = self.inner_text(*id).map_or_else(String::new, |text| format!(" {}", quoted(&text, 48)));
                Err(Error::new(format!("the text becomes token {id}{text}, but the embedding has only {rows} rows"))
                    .hint("take the token out of the text, or resize the model's embedding to its tokenizer"))
            }
        }
    }

    fn inner_text(&self, id: u32) -> Option<String> {
        match &self.inner {
            Inner::HuggingFace(inner) => inner.id_to_token(id),
            Inner::Spm(_) => None,
        }
    }

    /// The tokens of several documents in one row, each with its BOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_documents(&self, documents: &[String]) -> Result<Vec<u32>> {
        let texts = || documents.iter().map(String::as_str).collect::<Vec<&str>>();
        let encoded: Vec<Vec<u32>> = match &self.inner {
            Inner::HuggingFace(inner) => {
                let encodings = guarded(ODD, || inner.encode_batch_fast(texts(), false))
                    .context(|| "cannot tokenize the calibration text".into())?;
                encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect()
            }
            Inner::Spm(inner) => texts().into_par_iter().map(|text| inner.encode(text)).collect(),
        };
        let mut tokens = Vec::new();
        for encoding in encoded {
            self.check(&encoding)?;
            tokens.extend(self.bos);
            tokens.extend(encoding);
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests;
