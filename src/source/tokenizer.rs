//! Text into tokens.

use super::vocabulary::Vocabulary;
use crate::error::{Context, Error, Result};
use std::path::Path;

/// A tokenizer and the token that its texts start with.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
}

impl Tokenizer {
    /// The checkpoint's own `tokenizer.json`; the vocabulary says whether texts start with BOS.
    ///
    /// # Errors
    /// A file that the tokenizers crate cannot read.
    pub fn open(folder: &Path, vocabulary: &Vocabulary) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let inner = tokenizers::Tokenizer::from_file(&path).context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::new(inner, vocabulary))
    }

    /// The tokenizer that a GGUF's vocabulary describes.
    ///
    /// # Errors
    /// A vocabulary that makes no tokenizer.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Tokenizer> {
        Ok(Self::new(vocabulary.tokenizer()?, vocabulary))
    }

    fn new(inner: tokenizers::Tokenizer, vocabulary: &Vocabulary) -> Tokenizer {
        let bos = if vocabulary.add_bos == Some(true) { vocabulary.special("bos") } else { None };
        Tokenizer { inner, bos }
    }

    /// The token that every text starts with, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What a token stands for, in the form that GGUF stores; none for an id that no text becomes.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// A text's tokens, without any BOS or EOS.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|cause| Error::new("cannot tokenize").because(cause))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of several documents in one row, each with its BOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_documents(&self, documents: &[String]) -> Result<Vec<u32>> {
        let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
        let encodings = self
            .inner
            .encode_batch_fast(texts, false)
            .map_err(|cause| Error::new("cannot tokenize the calibration text").because(cause))?;
        let mut tokens = Vec::new();
        for encoding in encodings {
            tokens.extend(self.bos);
            tokens.extend_from_slice(encoding.get_ids());
        }
        Ok(tokens)
    }
}
