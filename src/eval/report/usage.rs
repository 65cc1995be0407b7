//! How to run a file: the lines of a model card for llama.cpp, Ollama and LM Studio.

use super::Judged;
use super::escape::code;
use super::words::grouped;
use std::fmt::Write;

/// Tokens of context that the commands ask memory for: enough for a talk, and little beside the weights.
const CONTEXT: usize = 8192;

/// What a file says about how it wants to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Whether it has a chat template.
    pub chat: bool,
    /// Tokens of context that it was made for.
    pub context: usize,
    /// Whether it is in several files.
    pub shards: bool,
}

/// One parameter of sampling: its name in `generation_config.json`, and its value.
pub type Sampling = (&'static str, f64);

/// Parameters that all three have: as `generation_config.json` calls them, llama.cpp's option, and Ollama's parameter.
const PARAMETERS: [(&str, &str, &str); 5] = [
    ("temperature", "--temp", "temperature"),
    ("top_k", "--top-k", "top_k"),
    ("top_p", "--top-p", "top_p"),
    ("min_p", "--min-p", "min_p"),
    ("repetition_penalty", "--repeat-penalty", "repeat_penalty"),
];

/// What a `generation_config.json` recommends. Without `do_sample` transformers uses only the penalty.
pub fn sampling(config: &serde_json::Value) -> Vec<Sampling> {
    let applies = |key: &str| config["do_sample"] == true || key == "repetition_penalty";
    let value = |key: &'static str| Some((key, config[key].as_f64().filter(|x| x.is_finite() && applies(key))?));
    PARAMETERS.iter().filter_map(|(key, ..)| value(key)).collect()
}

/// The section of a card. Nothing for what is no GGUF.
pub fn section(file: &Judged, sampling: &[Sampling]) -> String {
    let Some(Usage { chat, context, shards }) = file.usage.clone() else { return String::new() };
    let name = shell(&file.name);
    let size = context.min(CONTEXT);
    let of = |key: &str| sampling.iter().find(|(own, _)| *own == key).map(|(_, value)| *value);
    let mut options = format!(" -c {size}");
    let mut parameters = format!("PARAMETER num_ctx {size}\n");
    let mut words = Vec::new();
    for (key, option, parameter) in PARAMETERS {
        if let Some(value) = of(key) {
            let _ = write!(options, " {option} {value}");
            let _ = writeln!(parameters, "PARAMETER {parameter} {value}");
            words.push(format!("{} {value}", key.replace('_', " ")));
        }
    }
    let recommended = match words.is_empty() {
        true => "The original recommends no sampling.".into(),
        false => format!("The original recommends {}.", words.join(", ")),
    };
    let talk = match chat {
        true => "Its chat template is in the file.",
        false => "It has no chat template: it goes on with a text.",
    };
    let run = match chat {
        true => format!("llama-cli -m {name} --jinja{options}"),
        false => format!("llama-completion -m {name} -no-cnv{options} -p \"Once upon a time\" -n 128"),
    };
    let jinja = if chat { " --jinja" } else { "" };
    let mut text = format!(
        "## Use\n\n{talk} It was made for {} tokens of context; of these the commands ask memory for {}. {recommended}\n\n\
         [llama.cpp](https://github.com/ggml-org/llama.cpp), in a terminal or as a server:\n\n```sh\n{run}\n\
         llama-server -m {name}{jinja}{options} --port 8080\n```\n",
        grouped(context),
        grouped(size),
    );
    if !shards {
        let own = own_name(&file.name);
        let _ = write!(
            text,
            "\n[Ollama](https://ollama.com):\n\n```sh\ncat > Modelfile << 'END'\nFROM ./{}\n{parameters}END\n\
             ollama create {own} -f Modelfile\nollama run {own}\n```\n\n\
             [LM Studio](https://lmstudio.ai), where context and sampling are in the settings of the model:\n\n```sh\n\
             lms import {name}\nlms chat\n```\n",
            code(&file.name),
        );
    }
    text
}

/// A name as Ollama takes it.
fn own_name(file: &str) -> String {
    let stem = file.strip_suffix(".gguf").unwrap_or(file).to_lowercase();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.', '_']);
    if name.is_empty() { "model".into() } else { name.to_owned() }
}

/// A name as a shell takes it.
fn shell(name: &str) -> String {
    let name = code(name);
    let plain = name.chars().all(|c| c.is_alphanumeric() || "/._-+@:,=%".contains(c));
    if plain { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sampling_is_what_transformers_would_use() {
        let config =
            json!({ "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05 });
        let wanted = [("temperature", 0.6), ("top_k", 20.0), ("top_p", 0.95), ("repetition_penalty", 1.05)];
        assert_eq!(sampling(&config), wanted);
        let greedy = json!({ "temperature": 0.6, "repetition_penalty": 1.1, "top_p": "x" });
        assert_eq!(sampling(&greedy), [("repetition_penalty", 1.1)]);
        assert_eq!(sampling(&json!(null)), []);
    }

    #[test]
    fn names_are_what_ollama_takes() {
        assert_eq!(own_name("Qwen3-0.6B.Q4_K_M.gguf"), "qwen3-0.6b.q4_k_m");
        assert_eq!(own_name("a \"'<b>.gguf"), "a----b");
        assert_eq!(own_name("ü.gguf"), "model");
    }
}
