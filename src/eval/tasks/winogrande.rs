//! Winogrande (Sakaguchi et al. 2019): which of two words belongs into a gap? In llama.cpp's format, a CSV line a task: a
//! number, the sentence with `_` for the gap, both words, and 1 or 2 for the right one.
//!
//! As in llama-perplexity, what follows the gap is scored, without its last token, where it is long enough (more than three
//! tokens behind what both sentences begin with); otherwise the word, too.

use super::{Continuation, Task, common_prefix, tokens};
use crate::error::{Context, Error, Result};
use crate::source::tokenizer::Tokenizer;

/// So many tokens that differ are too few for the word itself to be left out.
const FEW: usize = 3;

/// A task as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    line: usize,
    before: String,
    after: String,
    words: [String; 2],
    /// 0 or 1.
    right: usize,
}

/// The tasks of a file.
///
/// # Errors
/// A line without five fields, a gap, or an answer that is 1 or 2; the line is named.
pub fn read(text: &str) -> Result<Vec<Question>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let questions: Vec<Question> = lines.map(|(i, line)| question(i + 1, line)).collect::<Result<_>>()?;
    if questions.is_empty() { Err(bad("there are no Winogrande tasks".into())) } else { Ok(questions) }
}

fn bad(what: String) -> Error {
    Error::new(what)
        .hint("a line looks like 0,Sarah was a better surgeon than Maria so _ got the easier cases.,Sarah,Maria,2")
}

fn question(line: usize, text: &str) -> Result<Question> {
    let fields = fields(text);
    let [_, sentence, first, second, answer] = &fields[..] else {
        return Err(bad(format!("line {line} has {} fields, not 5", fields.len())));
    };
    let Some((before, after)) = sentence.split_once('_') else {
        return Err(bad(format!("line {line} has no gap '_' in its sentence")));
    };
    let right = match answer.trim() {
        "1" => 0,
        "2" => 1,
        _ => return Err(bad(format!("line {line} has an answer that is neither 1 nor 2"))),
    };
    let words = [first.clone(), second.clone()];
    Ok(Question { line, before: before.into(), after: after.into(), words, right })
}

/// The fields of a CSV line: between quotation marks, commas count as text, and two quotation marks as one.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        let last = fields.len() - 1;
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[last].push('"');
            }
            '"' if quoted || fields[last].is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields[last].push(c),
        }
    }
    fields
}

/// A task as a model reads it.
///
/// # Errors
/// Words that are the same, or a text that the tokenizer refuses.
pub fn task(question: &Question, tokenizer: &Tokenizer) -> Result<Task> {
    let of = || format!("the Winogrande task of line {}", question.line);
    let Question { before, after, words, .. } = question;
    let read = |text: String| tokens(tokenizer, &text).context(of);
    let texts = [read(format!("{before}{}{after}", words[0]))?, read(format!("{before}{}{after}", words[1]))?];
    let until_word = [read(format!("{before}{}", words[0]))?.len(), read(format!("{before}{}", words[1]))?.len()];
    let prefix = common_prefix(&texts);
    let without_word = texts.iter().all(|text| text.len() - prefix > FEW);
    let choice = |(text, until): (Vec<u32>, usize)| {
        let start = if without_word { until } else { prefix };
        if start == 0 || start >= text.len() {
            return Err(Error::new("nothing in it tells its two words apart")).context(of);
        }
        let end = if text.len() - start > 1 { text.len() - 1 } else { text.len() };
        Ok(Continuation { scored: start..end, tokens: text })
    };
    let choices: Vec<Continuation> = texts.into_iter().zip(until_word).map(choice).collect::<Result<_>>()?;
    Ok(Task { choices, right: (0..2).map(|i| i == question.right).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_comma_separated_values() {
        let text = "0,Sarah was a better surgeon than Maria so _ got the easier cases.,Sarah,Maria,2\n\n\
                    1,\"He said \"\"no\"\", but _ stayed, again.\",Jim,Bob,1\n";
        let questions = read(text).unwrap();
        assert_eq!(questions.len(), 2);
        assert_eq!(
            (questions[0].before.as_str(), questions[0].right),
            ("Sarah was a better surgeon than Maria so ", 1)
        );
        assert_eq!(questions[1].before, "He said \"no\", but ");
        assert_eq!((questions[1].after.as_str(), questions[1].line), (" stayed, again.", 3));
        assert_eq!(questions[1].words, ["Jim", "Bob"]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, wanted) in [
            ("", "no Winogrande tasks"),
            ("0,a _ b,x,y", "line 1 has 4 fields"),
            ("0,a _ b,x,y,1\n1,a b,x,y,1", "line 2 has no gap"),
            ("0,a _ b,x,y,3", "line 1 has an answer"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains(wanted) && error.hint_text().is_some(), "{error}");
        }
    }
}
