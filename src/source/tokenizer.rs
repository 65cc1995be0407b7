//! Text into tokens.

mod own;

use super::vocabulary::{Kind, SpmEncoder, Vocabulary, token_type};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// A tokenizer and the token that its texts start with.
pub struct Tokenizer {
    inner: Inner,
    /// What each id stands for; none for fillers.
    texts: Vec<Option<String>>,
    bos: Option<u32>,
}

enum Inner {
    HuggingFace(Box<tokenizers::Tokenizer>),
    Spm(SpmEncoder),
}

impl Tokenizer {
    /// The checkpoint's own `tokenizer.json`, or the vocabulary where there is none or where it has other added tokens; the
    /// vocabulary says whether texts start with BOS.
    ///
    /// # Errors
    /// A file that the tokenizers crate cannot read.
    pub fn open(folder: &Path, vocabulary: &Vocabulary) -> Result<Tokenizer> {
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
            Kind::Bpe | Kind::Gemma4 | Kind::SentencePiece => Inner::Spm(vocabulary.spm_encoder()?),
            Kind::WordPiece => return Err(Error::new("text is not encoded with a GGUF's word pieces")),
        };
        Ok(Self::new(inner, vocabulary))
    }

    fn new(inner: Inner, vocabulary: &Vocabulary) -> Tokenizer {
        let texts = vocabulary.tokens.iter().zip(&vocabulary.token_type);
        let texts = texts.map(|(text, kind)| (*kind != token_type::UNUSED).then(|| text.clone())).collect();
        Tokenizer { inner, texts, bos: vocabulary.bos() }
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
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::HuggingFace(inner) => {
                let encoding =
                    inner.encode_fast(text, false).map_err(|cause| Error::new("cannot tokenize").because(cause))?;
                Ok(encoding.get_ids().to_vec())
            }
            Inner::Spm(inner) => Ok(inner.encode(text)),
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
                let encodings = inner.encode_batch_fast(texts(), false);
                let encodings =
                    encodings.map_err(|cause| Error::new("cannot tokenize the calibration text").because(cause))?;
                encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect()
            }
            Inner::Spm(inner) => texts().into_par_iter().map(|text| inner.encode(text)).collect(),
        };
        let mut tokens = Vec::new();
        for encoding in encoded {
            tokens.extend(self.bos);
            tokens.extend(encoding);
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests;
