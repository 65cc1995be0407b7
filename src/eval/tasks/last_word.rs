//! LAMBADA (Paperno et al. 2016): does the model say the last word of a passage itself? A JSON object with `"text"` a line.
//! A passage counts as solved if each token of the word, behind the space before it, is the likeliest.

use super::{Continuation, Task, tokens};
use crate::error::{Context, Error, Result};
use crate::source::tokenizer::Tokenizer;

/// A passage without its last word, and the word.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    number: usize,
    passage: String,
    word: String,
}

/// The tasks of texts.
///
/// # Errors
/// A text of a single word; its number is named.
pub fn read(texts: &[String]) -> Result<Vec<Question>> {
    let question = |(i, text): (usize, &String)| match text.trim().rsplit_once(char::is_whitespace) {
        Some((passage, word)) => Ok(Question { number: i + 1, passage: passage.trim_end().into(), word: word.into() }),
        None => Err(Error::new(format!("text {} has no last word behind others", i + 1))
            .hint("each line should look like {\"text\": \"a passage and its last word\"}")),
    };
    texts.iter().enumerate().map(question).collect()
}

/// A task as a model reads it.
///
/// # Errors
/// A text that the tokenizer refuses.
pub fn task(question: &Question, tokenizer: &Tokenizer) -> Result<Task> {
    let Question { number, passage, word } = question;
    let of = || format!("text {number}");
    let whole = tokens(tokenizer, &format!("{passage} {word}")).context(of)?;
    // A token may hold the end of the passage and the start of the word; it counts to the word.
    let before = tokens(tokenizer, passage).context(of)?;
    let same = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    if same == 0 || same == whole.len() {
        return Err(Error::new("nothing is before its last word")).context(of);
    }
    Ok(Task { choices: vec![Continuation { scored: same..whole.len(), tokens: whole }], right: vec![true] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_what_follows_the_last_space() {
        let texts = ["one two  three\n", "a\nb"].map(String::from);
        let questions = read(&texts).unwrap();
        assert_eq!((questions[0].passage.as_str(), questions[0].word.as_str()), ("one two", "three"));
        assert_eq!((questions[1].passage.as_str(), questions[1].word.as_str()), ("a", "b"));
        let error = read(&["two words", "one"].map(String::from)).unwrap_err();
        assert!(error.to_string().contains("text 2") && error.hint_text().is_some());
    }
}
