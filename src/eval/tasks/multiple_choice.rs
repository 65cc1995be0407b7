//! Multiple choice (ARC, MMLU, TruthfulQA …) in llama.cpp's binary format, little-endian: u32 tasks; u32 place of each; then
//! for each the question and twice a list of answers, of which only the first is used, one of its answers being right. A
//! string is u32 bytes and the bytes; a list is u32 answers, the strings, and i32 1 or 0 for each.

use super::{Task, differing};
use crate::error::{Error, Result};
use crate::source::tokenizer::Tokenizer;

/// More answers than llama.cpp takes.
const TOO_MANY: u32 = 101;

/// A task as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    number: usize,
    question: String,
    answers: Vec<String>,
    right: Vec<bool>,
}

/// The tasks of a file.
///
/// # Errors
/// A file that ends too early, holds no task, too many or no answers, or text that is not UTF-8; the task is named.
pub fn read(bytes: &[u8]) -> Result<Vec<Question>> {
    let mut rest = Reader { bytes, at: 0 };
    let tasks = rest.u32("the number of tasks")?;
    if tasks == 0 {
        return Err(bad("it holds no tasks".into()));
    }
    rest.take(4 * tasks as usize, "the places of the tasks")?;
    let mut questions = Vec::new();
    for number in 1..=tasks as usize {
        let question = rest.string(&format!("the question of task {number} of {tasks}"))?;
        let (answers, right) = rest.answers(number)?;
        rest.answers(number)?;
        if question.is_empty() || answers.len() < 2 || answers.iter().any(String::is_empty) {
            return Err(bad(format!(
                "task {number} of {tasks} has no question, fewer than two answers or an empty one"
            )));
        }
        questions.push(Question { number, question, answers, right });
    }
    Ok(questions)
}

fn bad(what: String) -> Error {
    Error::new(what)
        .hint("files of this format are in the dataset ikawrakow/validation-datasets-for-llama.cpp on the hub")
}

/// A task as a model reads it.
///
/// # Errors
/// Answers that are the same, or one that begins another.
pub fn task(question: &Question, tokenizer: &Tokenizer) -> Result<Task> {
    let texts: Vec<String> = question.answers.iter().map(|answer| format!("{} {answer}", question.question)).collect();
    let choices = differing(tokenizer, &texts, &|| format!("multiple-choice task {}", question.number))?;
    Ok(Task { choices, right: question.right.clone() })
}

/// What is left of a file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let found = self.bytes.get(self.at..).and_then(|rest| rest.get(..n));
        let Some(found) = found else {
            let (at, len) = (self.at, self.bytes.len());
            return Err(bad(format!("the file ends in {what}: {n} bytes at {at} are needed, but it has {len}")));
        };
        self.at += n;
        Ok(found)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let n = self.u32(what)?;
        let bytes = self.take(n as usize, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|cause| bad(format!("{what} is not UTF-8")).because(cause))
    }

    fn answers(&mut self, number: usize) -> Result<(Vec<String>, Vec<bool>)> {
        let what = format!("the answers of task {number}");
        let n = self.u32(&what)?;
        if n >= TOO_MANY {
            return Err(bad(format!("task {number} claims {n} answers, but 100 are the most")));
        }
        let answers = (0..n).map(|_| self.string(&what)).collect::<Result<_>>()?;
        let right = (0..n).map(|_| Ok(self.u32(&what)? == 1)).collect::<Result<_>>()?;
        Ok((answers, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn list(answers: &[(&str, u32)]) -> Vec<u8> {
        let mut bytes = (answers.len() as u32).to_le_bytes().to_vec();
        answers.iter().for_each(|(text, _)| bytes.extend(string(text)));
        answers.iter().for_each(|(_, right)| bytes.extend(right.to_le_bytes()));
        bytes
    }

    fn golden() -> Vec<u8> {
        let first = [string("Sky?"), list(&[("blue", 1), ("red", 0)]), list(&[])].concat();
        let second = [string("Sum?"), list(&[("1", 0), ("2", 0), ("3", 1)]), list(&[("2", 1), ("3", 1)])].concat();
        let places = [12u32, 12 + first.len() as u32].map(u32::to_le_bytes).concat();
        [&2u32.to_le_bytes()[..], &places, &first, &second].concat()
    }

    #[test]
    fn the_format_is_read_as_described() {
        let questions = read(&golden()).unwrap();
        assert_eq!(questions.len(), 2);
        assert_eq!((questions[0].question.as_str(), &questions[0].right[..]), ("Sky?", &[true, false][..]));
        assert_eq!((questions[1].number, &questions[1].answers[..]), (2, &["1", "2", "3"].map(String::from)[..]));
    }

    #[test]
    fn whatever_is_cut_off_is_named() {
        let whole = golden();
        for n in 0..whole.len() {
            let error = read(&whole[..n]).unwrap_err();
            assert!(error.to_string().contains("the file ends in"), "{n}: {error}");
        }
        let mut hostile = whole.clone();
        hostile[..4].fill(0xff);
        assert!(read(&hostile).unwrap_err().to_string().contains("the places of the tasks"));
        assert!(read(&[0; 4]).unwrap_err().to_string().contains("no tasks"));
        let many = [&1u32.to_le_bytes()[..], &[0; 4], &string("Q"), &1_000_000u32.to_le_bytes()].concat();
        assert!(read(&many).unwrap_err().to_string().contains("task 1 claims 1000000 answers"));
        let empty = [&1u32.to_le_bytes()[..], &[0; 4], &string(""), &list(&[("a", 1), ("b", 0)]), &list(&[])].concat();
        assert!(read(&empty).unwrap_err().to_string().contains("task 1 of 1 has no question"));
    }
}
