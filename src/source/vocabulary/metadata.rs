//! A vocabulary as keys and values of a GGUF.

use super::unigram::UnigramNormalizer;
use super::{Kind, Normalizer, SPECIAL, Vocabulary, token_type};
use crate::error::{Error, Result};
use crate::source::value::{self, Array, Metadata, Value};

const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const FLAGS: [&str; 4] = [
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix",
];
const SUPPRESS: &str = "tokenizer.ggml.suppress_tokens";
const REMOVE_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATE_NAMES: &str = "tokenizer.chat_templates";

impl Vocabulary {
    /// The keys of GGUF, in the order in which llama.cpp's converter writes them.
    pub fn to_metadata(&self) -> Metadata {
        let mut metadata: Metadata = vec![("tokenizer.ggml.model".into(), self.kind.name().into())];
        // Gemma 4's kind is its own pre-tokenizer.
        if self.kind != Kind::Gemma4 {
            metadata.push(("tokenizer.ggml.pre".into(), self.pre.as_str().into()));
        }
        metadata.push(("tokenizer.ggml.tokens".into(), self.tokens.clone().into()));
        if self.kind.has_scores() {
            metadata.push((SCORES.into(), self.scores.clone().into()));
        }
        metadata.push((TYPES.into(), self.token_type.clone().into()));
        if self.kind.has_merges() {
            metadata.push((MERGES.into(), self.merges.clone().into()));
        }
        for ((_, key), id) in SPECIAL.iter().zip(self.special) {
            metadata.extend(id.map(|id| ((*key).to_owned(), id.into())));
        }
        for (key, flag) in FLAGS.iter().zip([self.add_bos, self.add_eos, self.add_sep, self.add_space_prefix]) {
            metadata.extend(flag.map(|flag| ((*key).to_owned(), flag.into())));
        }
        if !self.suppress_tokens.is_empty() {
            metadata.push((SUPPRESS.into(), self.suppress_tokens.clone().into()));
        }
        if let Some(UnigramNormalizer { remove_extra_whitespaces, charsmap }) = &self.unigram {
            metadata.push((REMOVE_SPACES.into(), (*remove_extra_whitespaces).into()));
            if !charsmap.is_empty() {
                metadata.push((CHARSMAP.into(), charsmap.clone().into()));
            }
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
                .hint(format!("supported are {}", Kind::READ.map(Kind::name).join(", ")))
        })?;
        let tokens = required("tokenizer.ggml.tokens", strings("tokenizer.ggml.tokens")?)?.to_vec();
        let token_type = match value::get(metadata, TYPES) {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(Value::Array(Array::I32(types))) if types.len() == tokens.len() => types.clone(),
            Some(other) => return Err(not_one_each(TYPES, other, "[i32]", tokens.len())),
        };
        let scores = match value::get(metadata, SCORES) {
            _ if !kind.has_scores() => Vec::new(),
            None => vec![0.0; tokens.len()],
            Some(Value::Array(Array::F32(scores))) if scores.len() == tokens.len() => scores.clone(),
            Some(other) => return Err(not_one_each(SCORES, other, "[f32]", tokens.len())),
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
        let mut vocabulary = Self {
            pre: text("tokenizer.ggml.pre")?.filter(|_| kind != Kind::Gemma4).unwrap_or_default().to_owned(),
            scores,
            tokens,
            token_type,
            special,
            add_bos: add_bos?,
            add_eos: add_eos?,
            add_sep: add_sep?,
            add_space_prefix: add_space_prefix?,
            chat_template: text(TEMPLATE)?.map(str::to_owned),
            named_templates: names.iter().map(named).collect::<Result<_>>()?,
            ..Self::empty(kind)
        };
        if kind.has_merges() {
            vocabulary.merges = required(MERGES, strings(MERGES)?)?.to_vec();
        }
        if let Some(Value::Array(Array::I32(ids))) = value::get(metadata, SUPPRESS) {
            vocabulary.suppress_tokens = ids.clone();
        }
        if kind == Kind::Unigram {
            vocabulary.unigram = Some(UnigramNormalizer {
                remove_extra_whitespaces: flag(REMOVE_SPACES)?.unwrap_or(false),
                charsmap: match value::get(metadata, CHARSMAP) {
                    None => Vec::new(),
                    Some(Value::Array(Array::U8(bytes))) => bytes.clone(),
                    Some(Value::Array(Array::I8(bytes))) => bytes.iter().map(|byte| *byte as u8).collect(),
                    Some(other) => return Err(Error::new(format!("{CHARSMAP} is {}, not [u8]", other.type_name()))),
                },
            });
        }
        Ok(vocabulary)
    }
}

fn not_one_each(key: &str, found: &Value, kind: &str, wanted: usize) -> Error {
    let (found, count) = (found.type_name(), found.as_array().map_or(0, Array::len));
    Error::new(format!("{key} is {found} of {count} elements, not {kind} of {wanted}"))
}

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
        vocabulary.suppress_tokens = vec![5, 7];
        assert_eq!(Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap(), vocabulary);
        vocabulary.scores = vec![-1000.0; vocabulary.tokens.len()];
        let gemma = Vocabulary { kind: Kind::Gemma4, pre: String::new(), ..vocabulary.clone() };
        assert_eq!(Vocabulary::from_metadata(&gemma.to_metadata()).unwrap(), gemma);
        let unigram = Some(UnigramNormalizer { remove_extra_whitespaces: true, charsmap: vec![0, 200] });
        let unigram = Vocabulary { kind: Kind::Unigram, merges: Vec::new(), unigram, ..vocabulary };
        assert_eq!(Vocabulary::from_metadata(&unigram.to_metadata()).unwrap(), unigram);
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
