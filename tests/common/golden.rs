//! The golden files of tests/architectures: small models, and what transformers makes of them.

use super::checkpoint::{Checkpoint, Weights};
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A small model of one architecture.
pub struct Golden {
    /// The name of its file.
    pub name: String,
    pub checkpoint: Checkpoint,
    /// The keys of the model itself in GGUF: a whole number stands for a `u32`, one with a point for an `f32`.
    pub keys: serde_json::Map<String, Value>,
    pub windows: Vec<Vec<u32>>,
    /// Of each token but the first of a window, one window behind the other.
    pub logprobs: Vec<f64>,
    /// Of a model that sees both ways, the mean of the last states of each window; it is none that predicts tokens.
    pub means: Option<Vec<Vec<f64>>>,
}

/// All of them.
pub fn all() -> Vec<Golden> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/architectures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).expect("a folder").map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 20, "golden files are missing");
    files.iter().map(|path| read(path.file_stem().unwrap().to_str().unwrap())).collect()
}

/// One of them.
pub fn read(name: &str) -> Golden {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/architectures/{name}.json"));
    let json: Value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    let tensors: BTreeMap<String, (Vec<usize>, f32, f32)> =
        serde_json::from_value(json["tensors"].clone()).expect("shapes");
    let tensors = tensors.into_iter().map(|(name, (shape, middle, around))| {
        let numbers = numbers(&name, shape.iter().product(), middle, around);
        (name, Weights { shape, numbers })
    });
    let checkpoint =
        Checkpoint { config: json["config"].clone(), tensors: tensors.collect(), dtype: Dtype::F32, shards: 1 };
    let logprobs: Vec<Vec<f64>> = serde_json::from_value(json["logprobs"].clone()).expect("numbers");
    let windows = serde_json::from_value(json["windows"].clone()).expect("tokens");
    let keys = json["keys"].as_object().expect("keys").clone();
    let means = serde_json::from_value(json["means"].clone()).expect("numbers");
    Golden { name: name.into(), checkpoint, keys, windows, logprobs: logprobs.concat(), means }
}

impl Golden {
    /// The same with a layer that predicts a second token, as Qwen's have it: like block 1, with other numbers.
    pub fn with_mtp(mut self) -> Golden {
        let all = &mut self.checkpoint.tensors;
        let norm = all.keys().find(|name| name.ends_with("layers.0.input_layernorm.weight")).expect("a norm").clone();
        let block = norm.replace("0.input_layernorm.weight", "1.");
        let like: Vec<(String, Weights)> = all
            .iter()
            .filter_map(|(name, weights)| Some((name.strip_prefix(&block)?.to_owned(), weights.clone())))
            .collect();
        for (rest, Weights { shape, mut numbers }) in like {
            numbers.reverse();
            all.insert(format!("mtp.layers.0.{rest}"), Weights { shape, numbers });
        }
        let hidden = all[&norm].numbers.len();
        for (part, shape) in [
            ("fc", vec![hidden, 2 * hidden]),
            ("pre_fc_norm_embedding", vec![hidden]),
            ("pre_fc_norm_hidden", vec![hidden]),
            ("norm", vec![hidden]),
        ] {
            let name = format!("mtp.{part}.weight");
            let numbers = numbers(&name, shape.iter().product(), 0.0, 0.2);
            all.insert(name, Weights { shape, numbers });
        }
        self.claim_mtp();
        self
    }

    /// Lets the configuration say that there is such a layer.
    pub fn claim_mtp(&mut self) {
        let config = &mut self.checkpoint.config;
        let text = if config.get("text_config").is_some() { &mut config["text_config"] } else { config };
        text["mtp_num_hidden_layers"] = 1.into();
    }
}

/// The numbers of a tensor, as scripts/golden_architectures.py makes them.
fn numbers(name: &str, count: usize, middle: f32, around: f32) -> Vec<f32> {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let number = |place: u64| {
        let mut z = seed.wrapping_add(place).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let u = ((z ^ z >> 31) >> 40) as f32 / (1 << 24) as f32;
        middle + around * (2.0 * u - 1.0)
    };
    (0..count as u64).map(number).collect()
}
