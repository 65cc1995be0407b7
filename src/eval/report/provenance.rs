//! What a file says about how it was made: its types, and the keys that quantizers leave in it.

use crate::format::{self, mix};
use crate::pipeline::loaded_model::LoadedModel;
use crate::pipeline::weights::Weights;
use crate::source::gguf::Gguf;
use crate::source::value::Value;
use std::collections::BTreeMap;

/// Who has made a file, as far as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maker {
    /// llmq.
    Llmq,
    /// llama-quantize with an importance matrix: it leaves `quantize.imatrix.*`, and nobody else's keys.
    LlamaCpp,
    /// Whom `general.quantized_by` names.
    Named(String),
    /// Nobody says.
    Unknown,
}

impl Maker {
    /// What a curve of such files is called.
    pub fn name(&self) -> &str {
        match self {
            Maker::Llmq => "llmq",
            Maker::LlamaCpp => "llama.cpp, imatrix",
            Maker::Named(name) => name,
            Maker::Unknown => "maker not stated",
        }
    }
}

/// A type, and how many of a file's weights have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// The type's name.
    pub kind: String,
    /// The part of all weights, 0 to 1.
    pub part: f64,
}

/// How a file was made.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// Who has made it.
    pub maker: Maker,
    /// The mix that `general.file_type` names: `Q4_K_M`.
    pub mix: Option<String>,
    /// The types of its tensors, the commonest first.
    pub types: Vec<Share>,
    /// Its architecture.
    pub architecture: Option<String>,
    /// What it calls itself.
    pub name: Option<String>,
    /// Keys that say how it was made, and what they say.
    pub keys: Vec<(String, String)>,
}

impl Provenance {
    /// Of a file. A checkpoint says nothing but its types.
    pub fn of(loaded: &LoadedModel) -> Provenance {
        let file = loaded.weights().gguf();
        let text = |key: &str| file.and_then(|file| file.get(key)?.as_str()).map(str::to_owned);
        let told = |key: &String| {
            ["llmq.", "quantize."].iter().any(|start| key.starts_with(start))
                || ["general.quantized_by", "general.license", "general.version"].contains(&key.as_str())
        };
        let keys = file.map_or(&[][..], |file| &file.metadata).iter().filter(|(key, _)| told(key));
        Provenance {
            maker: file.map_or(Maker::Unknown, maker),
            mix: file.and_then(mix_of),
            types: types(loaded.weights()),
            architecture: text("general.architecture"),
            name: text("general.name"),
            keys: keys.map(|(key, value)| (key.clone(), shown(value))).collect(),
        }
    }

    /// What a key says.
    pub fn key(&self, name: &str) -> Option<&str> {
        self.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn maker(file: &Gguf) -> Maker {
    let named = file.get("general.quantized_by").and_then(Value::as_str).filter(|name| !name.is_empty());
    match named {
        _ if file.get("llmq.version").is_some() => Maker::Llmq,
        Some(name) => Maker::Named(name.into()),
        None if file.get("quantize.imatrix.file").is_some() => Maker::LlamaCpp,
        None => Maker::Unknown,
    }
}

fn mix_of(file: &Gguf) -> Option<String> {
    let number = file.get("general.file_type")?.as_u64()?;
    mix::all().find(|mix| u64::from(mix.file_type) == number).map(|mix| mix.name.to_owned())
}

/// Strings without their quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn types(weights: &Weights) -> Vec<Share> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    match weights {
        Weights::Gguf(file) => {
            for tensor in &file.tensors {
                let kind = format::by_id(tensor.type_id).map_or("unknown", |kind| kind.name());
                *counts.entry(kind.into()).or_default() += tensor.elements();
            }
        }
        Weights::Checkpoint(checkpoint) => {
            for tensor in checkpoint.tensors() {
                let elements: u64 = tensor.shape.iter().map(|&n| n as u64).product();
                *counts.entry(tensor.dtype).or_default() += elements;
            }
        }
        Weights::Rotated(_) => {}
    }
    let all = counts.values().sum::<u64>().max(1) as f64;
    let mut types: Vec<Share> = counts.into_iter().map(|(kind, n)| Share { kind, part: n as f64 / all }).collect();
    types.sort_by(|a, b| b.part.total_cmp(&a.part));
    types
}
