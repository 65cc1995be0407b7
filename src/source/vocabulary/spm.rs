//! Encoding with a vocabulary of kind `llama` as llama.cpp does it: SentencePiece's BPE without its normalizer.
//!
//! Text is cut at special tokens; what lies between is cut into characters, and of all neighbours whose text together is
//! a token, those with the highest score are joined first. A character that is no token becomes one token a byte. One
//! thing llama.cpp does besides: where `general.name` contains "phi-3", special tokens swallow the spaces behind them.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::{Vocabulary, token_type};

/// What stands for a space in a token.
pub(super) const SPACE: char = '\u{2581}';

/// Encodes text as llama.cpp does it with the same vocabulary.
pub struct SpmEncoder {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// Tokens that are matched in the text itself, the longest first.
    special: Vec<(String, u32)>,
    /// Those among them that users have added, and that are no special tokens of the model.
    user_defined: Vec<(String, u32)>,
    /// What each byte becomes where the character is no token.
    bytes: Vec<Option<u32>>,
    space_prefix: bool,
}

/// A part of a text.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

impl SpmEncoder {
    pub(super) fn new(vocabulary: &Vocabulary) -> SpmEncoder {
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
        let is_user_defined = |id: u32| kind(id) == Some(token_type::USER_DEFINED);
        let user_defined = special.iter().filter(|(_, id)| is_user_defined(*id)).cloned().collect();
        let unknown = vocabulary.special("unk");
        let byte = |byte: u8| ids.get(&format!("<0x{byte:02X}>")).copied().or(unknown);
        SpmEncoder {
            bytes: (0..=u8::MAX).map(byte).collect(),
            ids,
            scores: vocabulary.scores.clone(),
            special,
            user_defined,
            space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
        }
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
                    escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
                    self.merge(&escaped, &mut tokens);
                }
            }
            starts = matches!(part, Part::Token(_));
        }
        tokens
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

    /// Adds two neighbours to those that can be joined, if their text together is a token.
    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, pairs: &mut BinaryHeap<Pair>) {
        let (Some(a), Some(b)) = (symbols.get(left), symbols.get(right)) else { return };
        if let Some(&id) = self.ids.get(&text[a.start..b.start + b.length]) {
            pairs.push(Pair { score: self.scores[id as usize], left, right, length: a.length + b.length });
        }
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
    score: f32,
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
        (SpmEncoder::new(&vocabulary), vocabulary.tokens)
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
