//! Commands as a shell takes them. The crate shlex quotes more than is needed (`ffn_down=Q6_K`, `c4:0.7`, umlauts), and takes operators
//! for words.

use std::ffi::OsStr;
use std::sync::OnceLock;

/// A word of a command, quoted where a shell would take it for something else.
pub fn word(text: impl AsRef<OsStr>) -> String {
    let text = text.as_ref().to_string_lossy().into_owned();
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

static OWN: OnceLock<String> = OnceLock::new();

/// Lets [`own_command`] be one that this process runs as a part of its own.
#[cfg(feature = "hub")]
pub fn stand_for(words: &[String]) {
    OWN.get_or_init(|| ["llmq".to_owned()].into_iter().chain(words.iter().map(word)).collect::<Vec<_>>().join(" "));
}

/// The command that this process runs.
pub fn own_command() -> String {
    if let Some(command) = OWN.get() {
        return command.clone();
    }
    let words = std::env::args_os().skip(1).filter(|word| word != "--force").map(word);
    ["llmq".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// Whether a text is nothing but words, each plain or in single quotes, as [`word`] writes them: a command that a file brings
/// along must not do anything else when it is typed.
pub fn is_words(text: &str) -> bool {
    let parts: Vec<&str> = text.split('\'').collect();
    let outside = |part: &&str| part.chars().all(|c| c == ' ' || is_plain(c));
    parts.len() % 2 == 1 && parts.iter().step_by(2).all(outside) && !text.contains(char::is_control)
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "/._-+@:,=%".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_needed() {
        assert_eq!(word("a/b-1.Q4_0.gguf"), "a/b-1.Q4_0.gguf");
        assert_eq!(word("my model"), "'my model'");
        assert_eq!(word("it's"), r"'it'\''s'");
    }
    #[test]
    fn only_words_are_words() {
        assert!(is_words("--method rtn --tensor-type '^blk|x$=Q2_K' --pure"));
        for bad in ["a; b", "a\nb", "$(a)", "a 'b", "`a`", "a > b", "'a' & b", "'a\tb'"] {
            assert!(!is_words(bad), "{bad}");
        }
    }
}
