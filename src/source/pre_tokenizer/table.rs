//! The ways of cutting text that llama.cpp knows, and its names for them.

use super::PreTokenizer;
use super::Step::{Bytes, Split as Cut};

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::source) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
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
pub(super) const PUNCTUATION: &str = r"[\p{P}$+<=>^`|~]";
pub(super) const PUNCTUATION_RUN: &str = r"[\p{P}$+<=>^`|~]+";
pub(super) const DIGIT: &str = r"\p{N}";
pub(super) const DIGIT_RUN: &str = r"\p{N}+";
pub(super) const DIGIT_TRIPLES: &str = r"\p{N}{1,3}";
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_LLM_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DEEPSEEK_V3_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
pub(super) const DEEPSEEK_V3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Parts of the regexes above that published tokenizers also write in another way, and how they stand above.
/// The possessive forms match the same text, because what follows cannot begin with what they refuse to give back.
pub(super) const SPELLINGS: &[(&str, &str)] = &[
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+|", r"[^\r\n\p{L}\p{N}]?\p{L}+|"),
    (r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
    (r"[^(\s|.,!?\x{2026}", r"[^(\s|[.,!?\x{2026}"),
    (r"\x{6D4}\x{60C})]+", r"\x{6D4}\x{60C}])]+"),
];

const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    young: false,
    nfc: false,
    ignore_merges: false,
    add_bos: false,
    escape_spaces: false,
    gemma4: false,
    steps: &[],
    caveat: None,
};

/// Everything known. Where several rows have the same steps, the one that also agrees in `ignore_merges` and `nfc` is
/// the answer. Names of one row differ for llama.cpp only in how it tidies spaces when it prints, and in the BOS it
/// assumes of a file that names none.
pub(super) static TABLE: &[PreTokenizer] = &[
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
        caveat: Some(
            "llama.cpp's gpt-4o cuts words at combining marks, as those of Hindi or Thai; \
             --pre granite-embed-multi-97m does not, but only young releases know it",
        ),
        ..PLAIN
    },
    PreTokenizer {
        names: &["tekken"],
        ignore_merges: true,
        add_bos: true,
        steps: &[Cut(TEKKEN), Bytes],
        caveat: Some("llama.cpp's tekken cuts words at combining marks, as those of Hindi or Thai"),
        ..PLAIN
    },
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
    // As gpt-4o, but in llama.cpp too words keep their combining marks.
    PreTokenizer {
        names: &["granite-embed-multi-97m"],
        young: true,
        ignore_merges: true,
        steps: &[Cut(GPT4O), Bytes],
        ..PLAIN
    },
    PreTokenizer { names: &["youtu"], ignore_merges: true, steps: &[Cut(YOUTU_CJK), Cut(YOUTU_WORDS), Bytes], ..PLAIN },
    PreTokenizer {
        names: &["kimi-k2"],
        steps: &[Cut(KIMI), Bytes],
        caveat: Some("llama.cpp's kimi-k2 cuts words at combining marks, as those of Hindi or Thai"),
        ..PLAIN
    },
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
    // Merges of characters, as SentencePiece's, over whole lines. Gemma 4's own kind of vocabulary goes without a name.
    PreTokenizer {
        names: &["gemma4", "granite-embed-multi-311m"],
        young: true,
        add_bos: true,
        escape_spaces: true,
        gemma4: true,
        steps: &[Cut(LINES)],
        ..PLAIN
    },
    PreTokenizer { names: &["sarvam-moe"], young: true, escape_spaces: true, steps: &[Cut(LINES)], ..PLAIN },
    PreTokenizer { names: &["whitespace"], young: true, steps: &[Cut(r"\S+")], ..PLAIN },
    // What llama.cpp does with files that name none, or were made before there were names.
    PreTokenizer {
        names: &["default"],
        steps: &[Cut(r"[\p{P}$+<=>^~|]+"), Cut(GPT2), Cut(DIGIT_RUN), Cut("[0-9][0-9][0-9]"), Bytes],
        ..PLAIN
    },
];
