//! `llmq eval --hellaswag`, `--winogrande`, `--multiple-choice`, `--last-word`: against likelihoods computed text by text.

mod common;

use common::{folder, llmq, rounded, tiny};
use llmq::eval::perplexity;
use llmq::pipeline::loaded_model::LoadedModel;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Beginnings and four endings each, of several lengths.
const TASKS: [(&str, [&str; 4]); 5] = [
    ("The old man went down to the", ["sea.", "sea and looked at the ships for a long time.", "seven", "of of of"]),
    ("She opened the door and", ["closed it again.", "the the the", "said nothing", "window green because"]),
    ("It was a dark night, and the", ["wind blew.", "rain fell upon the roof of the house", "x", "qwerty zxcv"]),
    ("He had never seen", ["such a thing.", "it", "never seen never", "before"]),
    ("In the year 1850 there", ["was a king.", "were", "is was be", "lived in the town a poor man who had a son"]),
];

struct Judge(LoadedModel);

impl Judge {
    fn new() -> Judge {
        Judge(LoadedModel::open(&tiny(), None).unwrap())
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        let tokenizer = &self.0.tokenizer;
        [tokenizer.bos().into_iter().collect(), tokenizer.encode_plain(text).unwrap()].concat()
    }

    /// `−ln p` of each token behind the first, alone in its window.
    fn losses(&self, tokens: &[u32]) -> Vec<f64> {
        perplexity::losses(&self.0, &[tokens.to_vec()], 0, &|_, _| ()).unwrap()
    }

    /// Which of several texts goes on likeliest behind what all begin with.
    fn likeliest(&self, texts: &[String]) -> usize {
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| self.tokens(text)).collect();
        let prefix = (0..).take_while(|&i| texts.iter().all(|t| t[i] == texts[0][i])).count();
        let mean = |tokens: &Vec<u32>| {
            let scored = &self.losses(tokens)[prefix - 1..];
            scored.iter().sum::<f64>() / scored.len() as f64
        };
        let means: Vec<f64> = texts.iter().map(mean).collect();
        (0..means.len()).min_by(|&a, &b| means[a].total_cmp(&means[b])).unwrap()
    }
}

fn solved(option: &str, file: &Path, more: &[&str]) -> Value {
    let run = llmq!["eval", tiny(), option, file, "--json"; more].ok();
    run.summary()["tasks"][option.trim_start_matches("--").replace('-', "_")].clone()
}

/// What the model holds to be right in all tasks but the last.
fn labels(judge: &Judge) -> Vec<usize> {
    let texts = |(begin, endings): &(&str, [&str; 4])| endings.map(|ending| format!("{begin} {ending}"));
    let mut labels: Vec<usize> = TASKS.iter().map(|task| judge.likeliest(&texts(task))).collect();
    *labels.last_mut().unwrap() = (labels[4] + 1) % 4;
    labels
}

#[test]
fn hellaswag_and_multiple_choice_pick_the_ending_that_is_likeliest_per_token() {
    let out = folder();
    let labels = labels(&Judge::new());
    let mut lines = String::new();
    let string = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let mut binary = [5u32, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    for ((begin, endings), right) in TASKS.iter().zip(&labels) {
        lines += &format!("{begin}\n{right}\n{}\n", endings.join("\n"));
        binary.extend(string(begin));
        for _ in 0..2 {
            binary.extend(4u32.to_le_bytes());
            endings.iter().for_each(|ending| binary.extend(string(ending)));
            (0..4).for_each(|i| binary.extend(u32::from(i == *right).to_le_bytes()));
        }
    }
    let [text, bin] = ["hellaswag.txt", "tasks.bin"].map(|name| out.path().join(name));
    fs::write(&text, &lines).unwrap();
    fs::write(&bin, &binary).unwrap();
    for (option, file) in [("--hellaswag", &text), ("--multiple-choice", &bin)] {
        let reached = solved(option, file, &[]);
        assert_eq!(
            (&reached["right"], &reached["tasks"], &reached["chance"]),
            (&4.into(), &5.into(), &0.25.into()),
            "{option}"
        );
        assert_eq!((&reached["accuracy"], &reached["perplexity"]), (&0.8.into(), &Value::Null));
        let (low, high) = (reached["interval"][0].as_f64().unwrap(), reached["interval"][1].as_f64().unwrap());
        assert!(0.3 < low && low < 0.8 && 0.8 < high && high < 1.0, "{reached}");
        assert_eq!(solved(option, file, &["--tasks", "2"])["tasks"], 2);
    }
    // The original is judged beside it, and the figures for people say the same.
    let file = rounded(out.path(), "Q8_0");
    let shown =
        llmq!["eval", &file, "--hellaswag", &text, "--reference", tiny(), "-c", "64", "--chunks", "2"].ok().stdout;
    let line = shown.lines().find(|line| line.starts_with("HellaSwag ")).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains("of the original 80.00% ± 20.00% (") && line.contains("by chance 25.00%"), "{line}");

    fs::write(&text, "one\n").unwrap();
    llmq!["eval", tiny(), "--hellaswag", &text].failed(1, &["hellaswag.txt", "1 lines", "hint: "]);
    fs::write(&text, "The old man saw the\n0\nsea\nsea and\nsea or\nsea but\n").unwrap();
    llmq!["eval", tiny(), "--hellaswag", &text].failed(1, &["the HellaSwag task of line 1", "begins another one"]);
    fs::write(&bin, &binary[..100]).unwrap();
    llmq!["eval", tiny(), "--multiple-choice", &bin].failed(1, &["tasks.bin", "task", "hint: "]);
}

#[test]
fn winogrande_scores_what_follows_the_gap() {
    let (out, judge) = (folder(), Judge::new());
    // What follows is long, so that the words are left out, and the last token is never scored.
    let sentence = "The cat did not catch the mouse because the _ was much too quick for it to follow";
    let words = ["cat", "mouse"];
    let mean = |word: &str| {
        let tokens = judge.tokens(&sentence.replace('_', word));
        let from = judge.tokens(sentence.split_once('_').unwrap().0).len();
        let until_word = judge.tokens(&format!("{}{word}", sentence.split_once('_').unwrap().0)).len();
        assert!(tokens.len() - from > 4);
        let losses = judge.losses(&tokens);
        let scored = &losses[until_word - 1..losses.len() - 1];
        scored.iter().sum::<f64>() / scored.len() as f64
    };
    let right = 1 + usize::from(mean(words[1]) < mean(words[0]));
    let file = out.path().join("winogrande.csv");
    for (answer, reached) in [(right, 1), (3 - right, 0)] {
        fs::write(&file, format!("0,{sentence},{},{},{answer}\n", words[0], words[1])).unwrap();
        let reached_here = solved("--winogrande", &file, &[]);
        assert_eq!((&reached_here["right"], &reached_here["chance"]), (&reached.into(), &0.5.into()));
    }
    fs::write(&file, "0,no gap here,a,b,1\n").unwrap();
    llmq!["eval", tiny(), "--winogrande", &file].failed(1, &["winogrande.csv", "line 1 has no gap", "hint: "]);
}

#[test]
fn the_last_word_has_to_be_the_likeliest_one() {
    let (out, judge) = (folder(), Judge::new());
    let texts: Vec<String> =
        TASKS.iter().flat_map(|(begin, endings)| endings.map(|ending| format!("{begin} {ending}"))).collect();
    let file = out.path().join("passages.jsonl");
    let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let reached = solved("--last-word", &file, &[]);

    let (mut losses, mut certain, mut impossible) = (Vec::new(), 0, 0);
    for text in &texts {
        let (whole, before) = (judge.tokens(text), judge.tokens(text.rsplit_once(' ').unwrap().0));
        let word = &judge.losses(&whole)[before.len() - 1..];
        certain += usize::from(word.iter().all(|&loss| loss < 2f64.ln()));
        // The likeliest of 2048 tokens has at least its share.
        impossible += usize::from(word.iter().any(|&loss| loss > 2048f64.ln()));
        losses.extend_from_slice(word);
    }
    let wanted = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    let perplexity = reached["perplexity"].as_f64().unwrap();
    assert!((perplexity / wanted - 1.0).abs() < 1e-4, "{perplexity}, {wanted}");
    let right = reached["right"].as_u64().unwrap() as usize;
    assert!(impossible > 3 && certain <= right && right <= texts.len() - impossible, "{certain} {right} {impossible}");
    assert_eq!(reached["chance"], Value::Null);
}
