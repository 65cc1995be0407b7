//! How text is cut into words before byte-pair merges, and the name GGUF (`tokenizer.ggml.pre`) has for each way.
//!
//! llama.cpp's converter recognises a pre-tokenizer by a hash of what it makes of one text, which fails as soon as the
//! vocabulary differs. The rules themselves stand in `tokenizer.json`, so here they are looked up as they are written.
//! llama.cpp never normalises text for byte-level BPE; where it has several names for the same rules, `nfc` keeps those
//! apart whose Hugging Face tokenizer normalises, so that a tokenizer rebuilt from GGUF does what the original did.

use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{Context, Error, Result};

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
    /// The Hugging Face tokenizer first brings text into normal form C.
    pub nfc: bool,
    /// A piece that is a token is never built by merges.
    pub ignore_merges: bool,
    /// Whether text starts with BOS when the file does not say.
    pub add_bos: bool,
    /// The steps, in order.
    pub steps: &'static [Step],
}

use Step::{Bytes, Split as Cut};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU_CJK: &str = r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const YOUTU_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Groups of three from the right.
const AFMOE_DIGITS: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const AFMOE_ASIAN: &str = r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+";
const SPARK_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const LINES: &str = r"[^\n]+|[\n]+";
const BLOOM: &str = r" ?[^(\s|[.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C}])]+";
const PUNCTUATION: &str = r"[\p{P}$+<=>^`|~]";
const PUNCTUATION_RUN: &str = r"[\p{P}$+<=>^`|~]+";
const DIGIT: &str = r"\p{N}";
const DIGIT_RUN: &str = r"\p{N}+";
const DIGIT_TRIPLES: &str = r"\p{N}{1,3}";
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_LLM_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DEEPSEEK_V3_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK_V3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Parts of the regexes above that published tokenizers also write in another way, and how they stand above.
/// The possessive forms match the same text, because what follows cannot begin with what they refuse to give back.
const SPELLINGS: &[(&str, &str)] = &[
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+|", r"[^\r\n\p{L}\p{N}]?\p{L}+|"),
    (r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
    (r"[^(\s|.,!?\x{2026}", r"[^(\s|[.,!?\x{2026}"),
    (r"\x{6D4}\x{60C})]+", r"\x{6D4}\x{60C}])]+"),
];

const PLAIN: PreTokenizer = PreTokenizer { names: &[], nfc: false, ignore_merges: false, add_bos: false, steps: &[] };

/// Everything known. Where several rows have the same steps, the one that also agrees in `ignore_merges` and `nfc` is
/// the answer. Names of one row differ for llama.cpp only in how it tidies spaces when it prints, and in the BOS it
/// assumes of a file that names none.
static TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        ignore_merges: true,
        add_bos: true,
        steps: &[Cut(LLAMA3), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["glm4", "chatglm-bpe", "dbrx", "smaug-bpe"], steps: &[Cut(LLAMA3), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2"],
        nfc: true,
        steps: &[Cut(QWEN2), Bytes],
        ..PLAIN
    },
    PreTokenizer {
        names: &["hunyuan", "solar-open", "grok-2", "bailingmoe", "bailingmoe2", "llada-moe", "stablelm2", "megrez"],
        steps: &[Cut(QWEN2), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["qwen35"], nfc: true, steps: &[Cut(QWEN35), Bytes], ..PLAIN },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        steps: &[Cut(GPT2), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["olmo", "mpt"], nfc: true, steps: &[Cut(GPT2), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[Cut(DIGIT), Cut(GPT2), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["command-r"], nfc: true, steps: &[Cut(DIGIT), Cut(GPT2), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"],
        steps: &[Cut(GPT4O), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["tekken"], ignore_merges: true, add_bos: true, steps: &[Cut(TEKKEN), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[Cut(DIGIT_TRIPLES), Cut(DEEPSEEK_V3_CJK), Cut(DEEPSEEK_V3_WORDS), Bytes],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Cut(r"[\r\n]"),
            Cut(DEEPSEEK_LLM_LETTERS),
            Cut(DEEPSEEK_LLM_PUNCTUATION),
            Cut(r"\s+$"),
            Cut(DEEPSEEK_CJK),
            Cut(DIGIT),
            Bytes,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[Cut(r"[\r\n]"), Cut(r"\s?\p{L}+"), Cut(r"\s?\p{P}+"), Cut(DEEPSEEK_CJK), Cut(DIGIT), Bytes],
        ..PLAIN
    },
    PreTokenizer {
        names: &["falcon"],
        steps: &[Cut(PUNCTUATION_RUN), Cut(GPT2), Bytes, Cut(DIGIT_RUN), Cut("[0-9][0-9][0-9]")],
        ..PLAIN
    },
    PreTokenizer { names: &["bloom", "poro-chat", "gpt3-finnish"], steps: &[Cut(BLOOM), Bytes], ..PLAIN },
    PreTokenizer { names: &["viking"], steps: &[Cut(BLOOM), Cut(DIGIT), Bytes], ..PLAIN },
    PreTokenizer { names: &["superbpe"], steps: &[Cut(DIGIT_RUN), Cut(r"(?=(\d{3})+(?!\d))"), Bytes], ..PLAIN },
    PreTokenizer { names: &["seed-coder"], steps: &[Cut(SEED_CODER), Bytes], ..PLAIN },
    PreTokenizer { names: &["exaone-moe"], steps: &[Cut(EXAONE_MOE), Bytes], ..PLAIN },
    PreTokenizer { names: &["jais-2"], steps: &[Cut(JAIS2), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["minicpm5"],
        ignore_merges: true,
        steps: &[Cut(DIGIT_TRIPLES), Cut(MINICPM5), Bytes],
        ..PLAIN
    },
    PreTokenizer {
        names: &["tiny_aya", "cohere2moe"],
        steps: &[Cut(r"\d{1,3}(?=(?:\d{3})*\b)"), Cut(GPT4O), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["granite-embed-multi-97m"], ignore_merges: true, steps: &[Cut(GPT4O), Bytes], ..PLAIN },
    PreTokenizer { names: &["youtu"], ignore_merges: true, steps: &[Cut(YOUTU_CJK), Cut(YOUTU_WORDS), Bytes], ..PLAIN },
    PreTokenizer { names: &["kimi-k2"], steps: &[Cut(KIMI), Bytes], ..PLAIN },
    PreTokenizer { names: &["ufakzeka"], steps: &[Cut(UFAKZEKA), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["afmoe"],
        steps: &[Cut(AFMOE_DIGITS), Cut(AFMOE_ASIAN), Cut(DEEPSEEK_V3_WORDS), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["laguna"], steps: &[Cut(LINES), Cut(QWEN2), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["spark2_5"],
        steps: &[Cut(DIGIT_TRIPLES), Cut(DEEPSEEK_V3_CJK), Cut(SPARK_WORDS), Cut(DIGIT), Bytes],
        ..PLAIN
    },
    PreTokenizer {
        names: &["chameleon"],
        add_bos: true,
        steps: &[
            Cut("<sentinel:[0-9]+>"),
            Cut("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Cut(r"([\t\n]|    |  )"),
            Cut(DIGIT),
            Cut(PUNCTUATION),
            Cut(GPT2),
            Bytes,
        ],
        ..PLAIN
    },
    // What llama.cpp does with files that name none, or were made before there were names.
    PreTokenizer {
        names: &["default"],
        steps: &[Cut(r"[\p{P}$+<=>^~|]+"), Cut(GPT2), Cut(DIGIT_RUN), Cut("[0-9][0-9][0-9]"), Bytes],
        ..PLAIN
    },
];

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
        .filter(|row| row.steps.iter().map(Step::describe).eq(found.iter().cloned()))
        .min_by_key(|row| (row.ignore_merges != ignore_merges, row.nfc != nfc))
        .and_then(|row| row.names.first().copied())
        .ok_or_else(|| {
            let found = if found.is_empty() { "no pre-tokenizer".into() } else { found.join(", then ") };
            Error::new(format!("llama.cpp has no name for this pre-tokenizer: {found}")).hint(advice())
        })
}

/// What to do when a pre-tokenizer cannot be derived.
pub fn advice() -> String {
    let names: Vec<_> = names().collect();
    format!("if the model behaves like a known one, say which: --pre NAME, with NAME one of {}", names.join(", "))
}

impl PreTokenizer {
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
        _ => Err(Error::new(format!("llama.cpp does not apply this normalizer to byte-level BPE: {normalizer}"))
            .hint(advice())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

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
        for row in TABLE {
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
