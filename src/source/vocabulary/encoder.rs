//! A vocabulary as a tokenizer that encodes text.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer};

use super::{Kind, Vocabulary, token_type, unigram};
use crate::error::{Context, Error, Result};
use crate::source::pre_tokenizer;

impl Vocabulary {
    /// The tokenizer that a vocabulary of byte-level BPE or of unigrams describes: it gives text the ids that the checkpoint's
    /// own tokenizer gives it.
    /// What GGUF does not store is lost: added tokens that swallow the spaces around them (`lstrip`, `rstrip`) do not.
    ///
    /// # Errors
    /// An unknown pre-tokenizer, or tokens that make no model.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let mut tokenizer = match self.kind {
            Kind::Unigram => unigram::tokenizer(self)?,
            _ => self.byte_level()?,
        };
        tokenizer.with_post_processor(self.template()?);
        use token_type::{CONTROL, UNKNOWN, USER_DEFINED};
        let added = self.tokens.iter().zip(&self.token_type);
        let added = added.filter(|(_, kind)| matches!(**kind, CONTROL | UNKNOWN | USER_DEFINED));
        let added = added.map(|(text, kind)| AddedToken::from(text.clone(), *kind != USER_DEFINED).normalized(false));
        tokenizer
            .add_tokens(added.collect::<Vec<_>>())
            .context(|| "the vocabulary's own tokens cannot be added".into())?;
        Ok(tokenizer)
    }

    fn byte_level(&self) -> Result<Tokenizer> {
        let pre = pre_tokenizer::by_name(&self.pre).ok_or_else(|| pre_tokenizer::unknown(&self.pre))?;
        // Fillers are left out, because no text may become one.
        let used =
            self.tokens.iter().zip(&self.token_type).zip(0u32..).filter(|((_, kind), _)| **kind != token_type::UNUSED);
        let vocab: HashMap<String, u32> = used.map(|((text, _), id)| (text.clone(), id)).collect();
        // Like llama.cpp, pass over a merge whose result is no token: it could never be applied.
        let merges = self.merges.iter().filter_map(|merge| merge.split_once(' ')).filter(|(left, right)| {
            vocab.contains_key(*left) && vocab.contains_key(*right) && vocab.contains_key(&format!("{left}{right}"))
        });
        let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned())).collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .ignore_merges(pre.ignore_merges)
            .build()
            .context(|| "the vocabulary makes no BPE model".into())?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(pre.nfc.then_some(NFC))
            .context(|| "the vocabulary's tokens cannot be normalized".into())?
            .with_pre_tokenizer(Some(pre.build()?))
            .with_decoder(Some(ByteLevel::default()));
        Ok(tokenizer)
    }

    /// What puts BOS in front of a text and EOS behind it.
    fn template(&self) -> Result<Option<TemplateProcessing>> {
        let implied = self.pre_tokenizer().is_some_and(|pre| pre.add_bos);
        let bos = self.add_bos.unwrap_or(implied).then_some("bos");
        let eos = self.add_eos.unwrap_or(false).then_some("eos");
        let special = |name: &str| {
            let id = self.special(name).ok_or_else(|| {
                Error::new(format!("the vocabulary wants {name} added to every text, but names no such token"))
                    .hint(format!("set tokenizer.ggml.{name}_token_id, or tokenizer.ggml.add_{name}_token to false"))
            })?;
            let text = self.tokens.get(id as usize).cloned().unwrap_or_default();
            SpecialToken::new(name.into(), vec![id], vec![text]).context(|| format!("token {id} cannot be {name}"))
        };
        let specials: Vec<_> = bos.into_iter().chain(eos).map(special).collect::<Result<_>>()?;
        if specials.is_empty() {
            return Ok(None);
        }
        let around = |sequence| [bos, Some(sequence), eos].into_iter().flatten();
        TemplateProcessing::builder()
            .try_single(around("$A").collect::<Vec<_>>())
            .and_then(|builder| builder.try_pair(around("$A").chain(around("$B:1")).collect::<Vec<_>>()))
            .and_then(|builder| builder.special_tokens(specials).build().map_err(|error| error.to_string()))
            .map(Some)
            .context(|| "the vocabulary makes no template".into())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXTS: [&str; 44] = [
        "",
        " ",
        "   ",
        "\n",
        "\r\n",
        "a\r\n\r\nb",
        "\t\ttabs\tand  spaces   here    ",
        "Hello, world!",
        " Hello  World",
        "I'll we've HE'D it'S don't 'tis y'all",
        "1 12 123 1234 12345 3.14159 1,000,000",
        "\u{661}\u{662}\u{663} \u{bd} \u{2163} \u{b2}",
        "naïve café Äpfel Ünïcödé",
        "cafe\u{301} e\u{301} a\u{30a}",
        "нещо на Български",
        "我想在apple工作1314151天～",
        "こんにちは世界 カタカナ",
        "안녕하세요 세계",
        "مرحبا بالعالم",
        "שלום עולם",
        "हिन्दी में लिखा",
        "កាន់តែពិសេសអាច",
        "Cửa Việt",
        "🚀 😶\u{200d}🌫\u{fe0f} 👩\u{200d}👩\u{200d}👧 ✅🦙🦙",
        "\u{0}\u{1}\u{7f}\u{80}\u{feff}\u{fffd}",
        "\u{a0}\u{2003}\u{3000}wide spaces",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "a <|begin_of_text|> b<|end_of_text|>c <|end_of_text",
        "<|begin_of_text|><|begin_of_text|>",
        "fn main() { println!(\"{}\", x + 1); }\n",
        "    indented\n        more\n\n\n  less\n",
        "x=1;y=2;//comment\n/* block */",
        "https://example.org/a_b-c?d=e&f=%20#g",
        "snake_case camelCase PascalCase SCREAMING_CASE",
        "------======= ''''''```````\"\"\"\"......!!!!!!??????",
        "a,b;c:d.e!f?g(h)i[j]k{l}m",
        "the quick brown fox jumps over the lazy dog",
        "THE QUICK BROWN FOX",
        "Therefore the morning was alone",
        "supercalifragilisticexpialidocious",
        "[PAD5] [PAD2046]",
        "trailing newline\n\n",
        "mixed\u{2028}line\u{2029}separators\u{85}end",
    ];

    fn tokenizers(folder: &Path, rows: usize) -> (Tokenizer, Tokenizer) {
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config = serde_json::from_str(&config).unwrap();
        let vocabulary = Vocabulary::from_files(folder, rows, &config, None).unwrap();
        let read_back = Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap();
        (Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(), read_back.tokenizer().unwrap())
    }

    #[test]
    fn the_rebuilt_tokenizer_is_the_original() {
        // More rows than tokens: fillers must not be reachable from text.
        for rows in [2048, 2100] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
            let (original, rebuilt) = tokenizers(&folder, rows);
            for text in TEXTS {
                for special in [true, false] {
                    let expected = original.encode(text, special).unwrap();
                    let found = rebuilt.encode(text, special).unwrap();
                    assert_eq!(found.get_ids(), expected.get_ids(), "{text:?}");
                    assert_eq!(found.get_offsets(), expected.get_offsets(), "{text:?}");
                    let ids = expected.get_ids();
                    assert_eq!(rebuilt.decode(ids, true).unwrap(), original.decode(ids, true).unwrap());
                }
            }
        }
    }

    #[test]
    fn every_pre_tokenizer_is_rebuilt() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let json = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for name in pre_tokenizer::names() {
            let pre = pre_tokenizer::by_name(name).unwrap();
            if pre.names[0] != name || pre.is_raw() {
                continue;
            }
            json["pre_tokenizer"] = serde_json::to_value(pre.build().unwrap()).unwrap();
            json["model"]["ignore_merges"] = pre.ignore_merges.into();
            json["normalizer"] = serde_json::to_value(pre.nfc.then_some(NFC)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
            std::fs::write(folder.path().join("config.json"), "{}").unwrap();
            let (original, rebuilt) = tokenizers(folder.path(), 2048);
            for text in TEXTS {
                let (expected, found) = (original.encode(text, true).unwrap(), rebuilt.encode(text, true).unwrap());
                assert_eq!(found.get_ids(), expected.get_ids(), "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn eos_is_added_where_the_file_says_so() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let config = serde_json::json!({});
        let mut vocabulary = Vocabulary::from_files(&folder, 2048, &config, None).unwrap();
        vocabulary.add_eos = Some(true);
        let ids = vocabulary.tokenizer().unwrap().encode("a", true).unwrap().get_ids().to_vec();
        assert_eq!((ids.first(), ids.last(), ids.len()), (Some(&2046), Some(&2047), 3));
        vocabulary.add_bos = Some(false);
        vocabulary.add_eos = None;
        assert_eq!(vocabulary.tokenizer().unwrap().encode("a", true).unwrap().len(), 1);
        vocabulary.add_bos = None; // llama-bpe adds BOS unless told otherwise
        assert_eq!(vocabulary.tokenizer().unwrap().encode("a", true).unwrap().len(), 2);
        vocabulary.special = Default::default();
        assert!(vocabulary.tokenizer().unwrap_err().to_string().contains("bos"));
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let mut vocabulary = Vocabulary::from_files(&folder, 2048, &serde_json::json!({}), None).unwrap();
        vocabulary.pre = "stardust".into();
        assert!(vocabulary.tokenizer().unwrap_err().to_string().contains("`stardust`"));
        let mut metadata = vocabulary.to_metadata();
        metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
        let unnamed = Vocabulary::from_metadata(&metadata).unwrap().tokenizer().unwrap_err();
        assert!(unnamed.to_string().contains("no pre-tokenizer is named"));
    }
}
