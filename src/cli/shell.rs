//! Commands as a shell takes them.

use std::ffi::OsStr;

/// A word of a command, quoted where a shell would take it for something else.
pub fn word(text: impl AsRef<OsStr>) -> String {
    let text = text.as_ref().to_string_lossy().into_owned();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:,=%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The command that this process runs.
pub fn own_command() -> String {
    let words = std::env::args_os().skip(1).filter(|word| word != "--force").map(word);
    ["llmq".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
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
}
