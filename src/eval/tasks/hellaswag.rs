//! HellaSwag (Zellers et al. 2019): which of four endings follows? In llama.cpp's format, six lines a task: the beginning,
//! the number of the right ending from 0 to 3, and the four endings. Scored by the mean log-likelihood of an ending's tokens
//! (`acc_norm`).

use super::{Task, differing};
use crate::error::{Error, Result};
use crate::source::tokenizer::Tokenizer;

/// A task as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    line: usize,
    beginning: String,
    right: usize,
    endings: Vec<String>,
}

/// The tasks of a file.
///
/// # Errors
/// A number of lines that six does not divide, or a line that is no number from 0 to 3; the line is named.
pub fn read(text: &str) -> Result<Vec<Question>> {
    const HINT: &str = "six lines make a task: the beginning, the number of the right ending from 0 to 3, four endings";
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() || !lines.len().is_multiple_of(6) {
        return Err(Error::new(format!("{} lines are no whole number of HellaSwag tasks", lines.len())).hint(HINT));
    }
    let question = |(i, lines): (usize, &[&str])| match lines[1].trim().parse::<usize>() {
        Ok(right) if right < 4 => Ok(Question {
            line: 6 * i + 1,
            beginning: lines[0].into(),
            right,
            endings: lines[2..].iter().map(|line| line.to_string()).collect(),
        }),
        _ => Err(Error::new(format!("line {} is no number from 0 to 3", 6 * i + 2)).hint(HINT)),
    };
    lines.chunks_exact(6).enumerate().map(question).collect()
}

/// A task as a model reads it.
///
/// # Errors
/// Endings that are the same, or one that begins another.
pub fn task(question: &Question, tokenizer: &Tokenizer) -> Result<Task> {
    let texts: Vec<String> = question.endings.iter().map(|ending| format!("{} {ending}", question.beginning)).collect();
    let choices = differing(tokenizer, &texts, &|| format!("the HellaSwag task of line {}", question.line))?;
    Ok(Task { right: (0..choices.len()).map(|i| i == question.right).collect(), choices })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_lines_are_a_task() {
        let read = |text: &str| read(text);
        let text = "Baking: A man\n2\na\nb\nc\nd\nNext\n0\ne\nf\ng\nh\n";
        let questions = read(text).unwrap();
        assert_eq!(questions.len(), 2);
        let wanted = Question {
            line: 7,
            beginning: "Next".into(),
            right: 0,
            endings: ["e", "f", "g", "h"].map(String::from).into(),
        };
        assert_eq!(questions[1], wanted);
        assert!(read("a\n0\n").unwrap_err().to_string().contains("2 lines"));
        assert!(read("").unwrap_err().hint_text().is_some());
        assert!(read(&text.replace("\n0\n", "\n4\n")).unwrap_err().to_string().contains("line 8 is no number"));
    }
}
