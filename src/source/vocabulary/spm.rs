//! Encoding with the kinds of vocabulary that mark spaces by U+2581, as llama.cpp does it: `llama`, which is SentencePiece's BPE
//! without its normalizer, and `gemma4`, which has a list of merges instead of scores.
//!
//! Text is cut at special tokens; what lies between is cut into characters, and of all neighbours that can be joined, the
//! best are joined first. With scores, neighbours can be joined whose text together is a token, the higher its score the
//! better; with a list, those in the list, the earlier the better, and never over the end of a line. A character that is no
//! token becomes one token a byte. One thing llama.cpp does besides: where `general.name` contains "phi-3", special tokens
//! swallow the spaces behind them.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use regex::Regex;

use super::{Vocabulary, token_type};
use crate::error::{Context, Error, Result};
use crate::source::pre_tokenizer::{self, PreTokenizer, Step};

/// What stands for a space in a token.
pub(super) const SPACE: char = '\u{2581}';

/// Encodes text as llama.cpp does it with the same vocabulary.
pub struct SpmEncoder {
    ids: HashMap<String, u32>,
    joins: Joins,
    /// Tokens that are matched in the text itself, the longest first.
    special: Vec<(String, u32)>,
    /// Those among them that users have added, and that are no special tokens of the model.
    user_defined: Vec<(String, u32)>,
    /// What each byte becomes where the character is no token.
    bytes: Vec<Option<u32>>,
    space_prefix: bool,
}

/// Which neighbours can be joined.
enum Joins {
    /// Those whose text together is a token; the scores of all tokens.
    Scores(Vec<f32>),
    /// Those in a list of `left right`, with their places in it.
    List { ranks: HashMap<String, usize>, pre: &'static PreTokenizer, pieces: Regex },
}

/// A part of a text.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

impl SpmEncoder {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<SpmEncoder> {
        let texts = || vocabulary.tokens.iter().zip(0u32..);
        let ids: HashMap<String, u32> = texts().map(|(text, id)| (text.clone(), id)).collect();
        let kind = |id: u32| vocabulary.token_type.get(id as usize).copied();
        let is_special = |id: u32| {
            use token_type::{CONTROL, UNKNOWN, USER_DEFINED};
            matches!(kind(id), Some(CONTROL | UNKNOWN | USER_DEFINED))
        };
        let special = texts().filter(|(text, id)| !text.is_empty() && is_special(*id));
        let mut special: Vec<(String, u32)> = special.map(|(text, id)| (text.clone(), id)).collect();
        special.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let joins = match vocabulary.kind.has_merges() {
            true => Joins::of_list(vocabulary)?,
            false => Joins::Scores(vocabulary.scores.clone()),
        };
        // Merges have no token for what is unknown: such bytes vanish.
        let unknown = vocabulary.special("unk").filter(|_| matches!(joins, Joins::Scores(_)));
        let is_user_defined = |id: u32| kind(id) == Some(token_type::USER_DEFINED);
        let user_defined = special.iter().filter(|(_, id)| is_user_defined(*id)).cloned().collect();
        let byte = |byte: u8| ids.get(&format!("<0x{byte:02X}>")).copied().or(unknown);
        Ok(SpmEncoder {
            bytes: (0..=u8::MAX).map(byte).collect(),
            ids,
            special,
            user_defined,
            space_prefix: !vocabulary.kind.has_merges() && vocabulary.add_space_prefix.unwrap_or(true),
            joins,
        })
    }

    /// A text's tokens, without any BOS or EOS; the text of special tokens becomes those tokens.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_between(text, &self.special)
    }

    /// A text's tokens, without any BOS or EOS; only the text of tokens that users have added becomes those tokens.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        self.encode_between(text, &self.user_defined)
    }

    fn encode_between(&self, text: &str, special: &[(String, u32)]) -> Vec<u32> {
        let mut tokens = Vec::new();
        // Not only the text itself, but also what follows a special token gets the space in front.
        let mut starts = true;
        for part in parts(text, special) {
            match part {
                Part::Token(id) => tokens.push(id),
                Part::Text(text) => {
                    let mut escaped = String::with_capacity(text.len() + 3);
                    if self.space_prefix && starts {
                        escaped.push(SPACE);
                    }
                    let escapes = !matches!(&self.joins, Joins::List { pre, .. } if !pre.escape_spaces);
                    escaped.extend(text.chars().map(|c| if c == ' ' && escapes { SPACE } else { c }));
                    self.pieces(&escaped, &mut tokens);
                }
            }
            starts = matches!(part, Part::Token(_));
        }
        tokens
    }

    /// Cuts a text, if need be, and merges its pieces.
    fn pieces(&self, text: &str, tokens: &mut Vec<u32>) {
        let Joins::List { pre, pieces, .. } = &self.joins else { return self.merge(text, tokens) };
        let mut piece = |piece: &str| match self.ids.get(piece) {
            _ if piece.is_empty() => {}
            Some(id) if pre.gemma4 && piece.bytes().all(|byte| byte == b'\n') => tokens.push(*id),
            _ => self.merge(piece, tokens),
        };
        let mut end = 0;
        for found in pieces.find_iter(text) {
            piece(&text[end..found.start()]);
            piece(found.as_str());
            end = found.end();
        }
        piece(&text[end..]);
    }

    fn merge(&self, text: &str, tokens: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .map(|(start, c)| Symbol { start, length: c.len_utf8(), left: NONE, right: NONE })
            .collect();
        let count = symbols.len();
        let mut pairs = BinaryHeap::new();
        for i in 0..count {
            symbols[i].left = i.wrapping_sub(1); // NONE for the first
            symbols[i].right = if i + 1 < count { i + 1 } else { NONE };
            self.propose(text, &symbols, i.wrapping_sub(1), i, &mut pairs);
        }
        while let Some(pair) = pairs.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            // One of them has become part of another symbol since, or has grown.
            if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
                continue;
            }
            let after = right.right;
            symbols[pair.right].length = 0;
            symbols[pair.left].length = pair.length;
            symbols[pair.left].right = after;
            if after != NONE {
                symbols[after].left = pair.left;
            }
            self.propose(text, &symbols, symbols[pair.left].left, pair.left, &mut pairs);
            self.propose(text, &symbols, pair.left, after, &mut pairs);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let text = &text[symbol.start..symbol.start + symbol.length];
            match self.ids.get(text) {
                Some(&id) => tokens.push(id),
                None => tokens.extend(text.bytes().filter_map(|byte| self.bytes[byte as usize])),
            }
        }
    }

    /// Adds two neighbours to those that can be joined, if they can.
    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, pairs: &mut BinaryHeap<Pair>) {
        let (Some(a), Some(b)) = (symbols.get(left), symbols.get(right)) else { return };
        let end = b.start + b.length;
        let score = match &self.joins {
            Joins::Scores(scores) => self.ids.get(&text[a.start..end]).map(|id| f64::from(scores[*id as usize])),
            Joins::List { ranks, .. } => {
                ranks.get(&format!("{} {}", &text[a.start..b.start], &text[b.start..end])).map(|rank| -(*rank as f64))
            }
        };
        pairs.extend(score.map(|score| Pair { score, left, right, length: a.length + b.length }));
    }
}

impl Joins {
    fn of_list(vocabulary: &Vocabulary) -> Result<Joins> {
        let pre = vocabulary.pre_tokenizer().ok_or_else(|| pre_tokenizer::unknown(&vocabulary.pre))?;
        let [Step::Split(regex)] = pre.steps else {
            return Err(Error::new(format!("the pre-tokenizer `{}` is for merges of bytes", vocabulary.pre)));
        };
        let pieces = Regex::new(regex).context(|| format!("the regex {regex} does not compile"))?;
        let mut ranks = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, merge) in vocabulary.merges.iter().enumerate() {
            ranks.entry(merge.clone()).or_insert(rank);
        }
        Ok(Joins::List { ranks, pre, pieces })
    }
}

/// Cuts a text at special tokens. The longest token has the first choice, not the one that comes first.
fn parts<'a>(text: &'a str, special: &[(String, u32)]) -> Vec<Part<'a>> {
    // Of thousands of special tokens hardly one begins as anything in the text does.
    let beginnings: HashSet<&[u8]> = text.as_bytes().windows(2).collect();
    let mut parts = if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] };
    for (special, id) in special {
        let occurs = special.as_bytes().get(..2).is_none_or(|two| beginnings.contains(two));
        if !occurs || !text.contains(special.as_str()) {
            continue;
        }
        let mut cut = Vec::with_capacity(parts.len());
        for part in parts {
            let Part::Text(mut text) = part else {
                cut.push(part);
                continue;
            };
            while let Some(at) = text.find(special.as_str()) {
                cut.extend((at > 0).then(|| Part::Text(&text[..at])));
                cut.push(Part::Token(*id));
                text = &text[at + special.len()..];
            }
            cut.extend((!text.is_empty()).then_some(Part::Text(text)));
        }
        parts = cut;
    }
    parts
}

/// No symbol.
const NONE: usize = usize::MAX;

/// A stretch of the text, with its neighbours; of length zero once it is part of another.
struct Symbol {
    start: usize,
    length: usize,
    left: usize,
    right: usize,
}

/// Two neighbours that can be joined: the higher score first, then the one further left.
struct Pair {
    score: f64,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Kind;
    use super::*;

    /// Tokens with their scores and kinds; the first is unknown, and a few bytes follow.
    fn encoder(tokens: &[(&str, f32, i32)], space_prefix: bool) -> (SpmEncoder, Vec<String>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let other = Vocabulary::from_files(&folder, 2048, &serde_json::json!({}), None).unwrap();
        let bytes = [("<unk>", 0.0, token_type::UNKNOWN), ("<0xC3>", 0.0, 6), ("<0xA9>", 0.0, 6)];
        let all = || bytes.iter().chain(tokens);
        let vocabulary = Vocabulary {
            kind: Kind::SentencePiece,
            tokens: all().map(|token| token.0.to_owned()).collect(),
            scores: all().map(|token| token.1).collect(),
            token_type: all().map(|token| token.2).collect(),
            special: std::array::from_fn(|place| (place == 2).then_some(0)),
            add_space_prefix: Some(space_prefix),
            ..other
        };
        (SpmEncoder::new(&vocabulary).unwrap(), vocabulary.tokens)
    }

    fn texts<'a>((encoder, tokens): &'a (SpmEncoder, Vec<String>), text: &str) -> Vec<&'a str> {
        encoder.encode(text).into_iter().map(|id| tokens[id as usize].as_str()).collect()
    }

    #[test]
    fn the_highest_score_comes_first_and_then_the_left() {
        let tokens =
            [("a", -9.0, 1), ("b", -9.0, 1), ("ab", -2.0, 1), ("ba", -1.0, 1), ("aa", -3.0, 1), ("aab", -4.0, 1)];
        let encoder = encoder(&tokens, false);
        assert_eq!(texts(&encoder, "aba"), ["a", "ba"]);
        assert_eq!(texts(&encoder, "aaa"), ["aa", "a"]);
        assert_eq!(texts(&encoder, "aaab"), ["aa", "ab"]);
        assert_eq!(texts(&encoder, "aab"), ["aab"], "a and ab make it, whichever way it was meant to be made");
        assert_eq!(texts(&encoder, ""), [""; 0]);
    }

    #[test]
    fn what_is_no_token_becomes_bytes() {
        let encoder = encoder(&[("a", 0.0, 1)], false);
        assert_eq!(texts(&encoder, "aéa"), ["a", "<0xC3>", "<0xA9>", "a"]);
        assert_eq!(texts(&encoder, "z"), ["<unk>"], "there is no byte for it");
    }

    #[test]
    fn special_tokens_are_cut_out_and_a_space_follows_them() {
        use token_type::{CONTROL, NORMAL, USER_DEFINED};
        let tokens = [
            ("\u{2581}", -5.0, NORMAL),
            ("\u{2581}a", -1.0, NORMAL),
            ("a", -9.0, NORMAL),
            ("<x>", 0.0, CONTROL),
            ("<x>a", 0.0, USER_DEFINED),
        ];
        let prefixed = encoder(&tokens, true);
        assert_eq!(texts(&prefixed, "a<x> a"), ["\u{2581}a", "<x>", "\u{2581}", "\u{2581}a"]);
        assert_eq!(texts(&prefixed, "<x>a<x><x>"), ["<x>a", "<x>", "<x>"]);
        assert_eq!(texts(&encoder(&tokens, false), "a<x> a"), ["a", "<x>", "\u{2581}a"]);
    }

    /// Tokens and merges; `<0xC3>` is the only byte that has a token.
    fn merging(pre: Option<&str>, tokens: &[&str], merges: &[&str]) -> (SpmEncoder, Vec<String>) {
        let kind = if pre.is_some() { Kind::Bpe } else { Kind::Gemma4 };
        let tokens: Vec<String> = ["<0xC3>", "<x>"].iter().chain(tokens).map(|text| (*text).to_owned()).collect();
        let mut token_type = vec![token_type::NORMAL; tokens.len()];
        token_type[1] = token_type::USER_DEFINED;
        let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
        let pre = pre.unwrap_or_default().to_owned();
        let vocabulary = Vocabulary { pre, tokens, token_type, merges, ..Vocabulary::empty(kind) };
        (SpmEncoder::new(&vocabulary).unwrap(), vocabulary.tokens)
    }

    #[test]
    fn a_list_of_merges_decides_by_pairs_and_their_places() {
        let encoder = merging(None, &["a", "b", "c", "ab", "bc", "abc"], &["b c", "a b", "ab c"]);
        assert_eq!(texts(&encoder, "abc"), ["a", "bc"], "a and bc are in no merge, though abc is a token");
        assert_eq!(texts(&encoder, "abab"), ["ab", "ab"]);
        assert_eq!(texts(&encoder, "aéb"), ["a", "<0xC3>", "b"], "a byte without a token vanishes");
        assert_eq!(texts(&encoder, ""), [""; 0]);
    }

    #[test]
    fn spaces_are_part_of_tokens_and_lines_are_not() {
        let tokens = ["\u{2581}", "a", "\n", "\n\n", "a\u{2581}a", "\u{2581}a", "a\n"];
        let merges = ["\u{2581} a", "a \u{2581}a", "a \n"];
        let gemma = merging(None, &tokens, &merges);
        assert_eq!(texts(&gemma, "a a a"), ["a\u{2581}a", "\u{2581}a"]);
        assert_eq!(texts(&gemma, "a\na"), ["a", "\n", "a"], "merges end where lines do");
        assert_eq!(texts(&gemma, "a\n\na"), ["a", "\n\n", "a"], "a run of line ends is a token without any merge");
        assert_eq!(texts(&gemma, "\n\n\n"), ["\n", "\n", "\n"], "where there is no token of that length");
        assert_eq!(texts(&gemma, " a<x> a"), ["\u{2581}a", "<x>", "\u{2581}a"], "no space is put in front");
        let sarvam = merging(Some("sarvam-moe"), &tokens, &merges);
        assert_eq!(texts(&sarvam, "a\n\na"), ["a", "\n", "\n", "a"], "only Gemma 4 takes runs as they are");
        let words = merging(Some("whitespace"), &tokens, &merges);
        assert_eq!(texts(&words, "a a\n"), ["a", "a", "\n"], "a space is no U+2581 here, and no token");
        let vocabulary = Vocabulary { pre: "gpt-2".into(), ..Vocabulary::empty(Kind::Bpe) };
        assert!(SpmEncoder::new(&vocabulary).err().unwrap().to_string().contains("merges of bytes"));
    }

    #[test]
    fn plain_reading_cuts_only_at_tokens_of_users() {
        use token_type::{CONTROL, NORMAL, USER_DEFINED};
        let letters = ["a", "<", "x", ">"].map(|letter| (letter, -9.0, NORMAL));
        let tokens = [&letters[..], &[("<x>", 0.0, CONTROL), ("<xx>", 0.0, USER_DEFINED)]].concat();
        let (encoder, tokens) = encoder(&tokens, false);
        let plain: Vec<&str> = encoder.encode_plain("a<x><xx>").into_iter().map(|id| &*tokens[id as usize]).collect();
        assert_eq!(plain, ["a", "<", "x", ">", "<xx>"]);
    }
}
