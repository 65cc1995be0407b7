//! What `config.json` says about a checkpoint in compressed-tensors' layout.
//!
//! <https://github.com/vllm-project/compressed-tensors>: a scheme for the modules that `targets` match and `ignore` does not.
//! The layers whose codes are there are named, by patterns; `Linear` would also stand for layers that the checkpoint does not
//! have but the class it is loaded into does (a pooler, an output layer tied to the embedding), which then fails.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How activations are handled, and how codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// INT8 weights, and activations rounded to INT8 token by token while the model runs.
    W8A8,
    /// INT8 weights, decoded before use; activations stay as they are.
    WeightOnly,
}

impl Scheme {
    /// compressed-tensors' name of the layout.
    pub fn format(self) -> &'static str {
        match self {
            Scheme::W8A8 => "int-quantized",
            // vLLM reads no other one with weights alone in INT8. Four codes to a word, shifted to be above zero.
            Scheme::WeightOnly => "pack-quantized",
        }
    }

    /// The value of `quantization_config`. `quantized`, `kept`: the names of linear layers with and without codes.
    pub fn config(self, quantized: &[&str], kept: &[&str]) -> Value {
        let of_activations = json!({
            "num_bits": 8,
            "type": "int",
            "symmetric": true,
            "strategy": "token",
            "dynamic": true,
        });
        let group = json!({
            "targets": patterns(quantized, kept),
            // Here, too: without it, readers fall back to their own guess from the numbers below.
            "format": self.format(),
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": true,
                "strategy": "channel",
                "dynamic": false,
            },
            "input_activations": if self == Scheme::W8A8 { of_activations } else { Value::Null },
            "output_activations": null,
        });
        json!({
            "quant_method": "compressed-tensors",
            "format": self.format(),
            "quantization_status": "compressed",
            "config_groups": { "group_0": group },
            "ignore": kept,
            "kv_cache_scheme": null,
        })
    }
}

/// Patterns that match the names of `quantized`, none of `kept`, whatever stands in front: transformers drops or adds a prefix
/// when the checkpoint of one class is loaded into another.
fn patterns(quantized: &[&str], kept: &[&str]) -> Vec<String> {
    let kept: BTreeSet<String> = kept.iter().map(|name| tail(name)).collect();
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in quantized {
        groups.entry(tail(name)).or_default().push(name);
    }
    let mut patterns = Vec::new();
    for (tail, names) in groups {
        if kept.contains(&tail) {
            patterns.extend(names.iter().map(|name| (*name).to_owned()));
        } else {
            patterns.push(format!("re:(.*\\.)?{tail}$"));
        }
    }
    patterns
}

/// A name from the part before its first number on, or its last two parts where there is no number, as a regular
/// expression in which any number may stand for another.
fn tail(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let first = match parts.iter().position(is_number) {
        Some(number) => number.saturating_sub(1),
        None => parts.len().saturating_sub(2),
    };
    let shown = parts[first..].iter().map(|part| if is_number(part) { r"\d+".into() } else { regex::escape(part) });
    shown.collect::<Vec<_>>().join(r"\.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn patterns_match_what_has_codes_and_nothing_else() {
        let quantized = [
            "bert.encoder.layer.0.output.dense",
            "bert.encoder.layer.11.output.dense",
            "bert.pooler.dense",
            "blocks.0.fc",
            "classifier",
        ];
        let found = patterns(&quantized, &["cls.predictions.decoder", "blocks.1.fc"]);
        let wanted = [
            "blocks.0.fc",
            r"re:(.*\.)?classifier$",
            r"re:(.*\.)?layer\.\d+\.output\.dense$",
            r"re:(.*\.)?pooler\.dense$",
        ];
        // A layer whose like is kept is named as it is.
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), wanted.map(String::from).iter().collect());
        let matches = |name: &str| {
            found.iter().any(|pattern| match pattern.strip_prefix("re:") {
                // As Python's `re.match` does it: from the start.
                Some(pattern) => Regex::new(&format!("^(?:{pattern})")).unwrap().is_match(name),
                None => pattern == name,
            })
        };
        assert!(quantized.iter().all(|name| matches(name)));
        assert!(matches("encoder.layer.3.output.dense") && matches("pooler.dense") && matches("bert.classifier"));
        for other in [
            "cls.predictions.decoder",
            "blocks.1.fc",
            "encoder.layer.0.output.dense_2",
            "output.dense",
            "my_classifier",
        ] {
            assert!(!matches(other), "{other}");
        }
    }
}
