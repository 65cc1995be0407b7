//! The keys of `config.json`: what classes of transformers read, and what they take where the file does not say.
//!
//! A value that changes a model's numbers and is not understood must not go unnoticed: once a family has read a configuration,
//! [`check`] refuses what transformers would have read and the family has not. The table is made by `scripts/config_keys.py`.

use crate::error::Result;
use crate::source::config::{Class, Config};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The classes, by `model_type`.
static CLASSES: LazyLock<BTreeMap<String, Class>> =
    LazyLock::new(|| serde_json::from_str(include_str!("config_keys.json")).expect("the table is made by a script"));

/// Sizes and constants that people expect a configuration to say.
const EXPECTED: [&str; 13] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_epsilon",
];

/// The class of a model type.
pub fn class(model_type: &str) -> Option<&'static Class> {
    CLASSES.get(model_type)
}

/// Refuses what transformers reads in a configuration, and nobody has asked for.
///
/// # Errors
/// There is such a key, and its value is another than the usual one.
pub fn check(config: &Config) -> Result<()> {
    let Some(class) = config.class() else { return Ok(()) };
    for (key, value) in config.json().as_object().into_iter().flatten() {
        let name = class.name(key);
        let Some(usual) = class.keys.get(name) else { continue };
        if !config.was_asked(key) && !config.was_asked(name) && !is_usual(value, usual) {
            return Err(config.unsupported(&format!("{key} {value} is not supported")).hint(
                "transformers computes something else with it, and llama.cpp has no such variation of this architecture",
            ));
        }
    }
    Ok(())
}

/// Whether a value says nothing that is not so anyway.
fn is_usual(value: &Value, usual: &Value) -> bool {
    let nothing = match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(_) => false,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    };
    // Where something is taken for granted, null says that it is not so.
    value.is_null() && *usual != Value::Bool(true) || same(value, usual) || usual.is_null() && nothing
}

/// Whether two values are the same, whole numbers being like others.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// What should be said of the keys that people expect, and that the file does not have.
pub fn note(config: &Config) -> Option<String> {
    let class = config.class()?;
    let missing = config.assumed().into_iter().filter(|key| EXPECTED.contains(&key.as_str()));
    let taken: Vec<String> = missing
        .filter_map(|key| {
            let value = class.keys.get(class.name(&key)).filter(|value| !value.is_null())?;
            Some(format!("{key} {value}"))
        })
        .collect();
    (!taken.is_empty())
        .then(|| format!("config.json does not say these, and transformers' values are taken: {}", taken.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ARCHITECTURES, Model};
    use crate::source::mistral;
    use serde_json::json;

    fn config(json: Value) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        Config::open(file.path()).unwrap()
    }

    /// Those of transformers: Mistral's own layout has no class there.
    fn types() -> impl Iterator<Item = &'static str> {
        let all = ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types()).copied();
        all.filter(|&kind| kind != mistral::MODEL_TYPE)
    }

    /// A configuration that says nothing but its type, and which blocks there are where llama.cpp has no place for the usual ones.
    fn bare(model_type: &str) -> Value {
        let mut bare = json!({ "model_type": model_type });
        let more = match model_type {
            "lfm2" | "lfm2_moe" => {
                json!({ "layer_types": vec!["conv"; 32], "num_hidden_layers": 32, "hidden_size": 2048 })
            }
            "granitemoehybrid" => json!({
                "layer_types": vec!["full_attention"; 32], "num_local_experts": 0, "position_embedding_type": "rope"
            }),
            "gemma4" | "gemma4_text" | "gemma4_unified" | "gemma4_unified_text" => {
                json!({ "vocab_size_per_layer_input": 262_144 })
            }
            "exaone4" => json!({ "sliding_window": null }),
            "deepseek_v2" => json!({ "num_experts_per_tok": 6 }),
            "dots1" => {
                json!({ "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1 })
            }
            "qwen2_vl" | "qwen2_5_vl" | "qwen2_vl_text" | "qwen2_5_vl_text" => {
                json!({ "rope_parameters": { "rope_type": "default", "mrope_section": [16, 24, 24] } })
            }
            "glm4_moe" => json!({ "head_dim": 128 }),
            "afmoe" => json!({ "mup_enabled": true }),
            "mistral4" => json!({ "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
            } }),
            "nemotron_h" => json!({ "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"] }),
            "qwen3_moe" | "qwen3_vl_moe" | "qwen3_vl_moe_text" => json!({ "norm_topk_prob": true }),
            _ => json!({}),
        };
        bare.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bare
    }

    #[test]
    fn every_type_that_is_supported_has_a_class() {
        let missing: Vec<&str> = types().filter(|kind| class(kind).is_none()).collect();
        assert!(missing.is_empty(), "scripts/config_keys.py adds them: {missing:?}");
    }

    #[test]
    fn what_the_class_takes_is_enough_to_read_every_type() {
        let wrong = |kind: &str| Some(format!("{kind}: {}", Model::read(&config(bare(kind))).err()?));
        let wrong: Vec<String> = types().filter_map(wrong).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Something else than is usual for a key.
    fn odd(usual: &Value) -> Value {
        match usual {
            Value::Bool(flag) => json!(!flag),
            Value::Number(n) => json!(n.as_f64().unwrap() + 1.0),
            Value::String(_) => json!("odd"),
            Value::Array(_) => json!(["odd"]),
            Value::Object(_) | Value::Null => json!(3),
        }
    }

    /// Each key of each class, set to something odd: it is refused, or somebody asked for it.
    #[test]
    fn every_key_that_transformers_reads_is_understood_or_refused() {
        let mut wrong = Vec::new();
        for kind in types() {
            let outer = class(kind).unwrap();
            let inner = outer.text.as_deref().map_or(outer, |text| class(text).unwrap());
            for (key, usual) in &inner.keys {
                let mut json = bare(kind);
                json[key] = odd(usual);
                let config = config(json);
                let refused = Model::read(&config).err().map(|error| error.to_string());
                if refused.is_none() && !config.was_asked(key) {
                    wrong.push(format!("{kind}: {key}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn keys_that_no_class_reads_and_usual_values_say_nothing() {
        let llama = |more: Value| {
            let mut json = bare("llama");
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Model::read(&config(json)).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(
            llama(json!({ "made_up": 3, "use_cache": false, "is_causal": true, "per_layer_config": {} })),
            Ok(())
        );
        let error = llama(json!({ "is_causal": false })).unwrap_err();
        assert!(error.contains("is_causal false"), "{error}");
    }

    #[test]
    fn a_size_that_is_taken_from_the_class_is_named() {
        let config = config(json!({ "model_type": "llama", "rms_norm_eps": 1e-5 }));
        let text = crate::model::config::text(&config).unwrap();
        ARCHITECTURES[0].read(&text).unwrap();
        let note = note(&text).unwrap();
        assert!(note.contains("max_position_embeddings 2048") && !note.contains("rms_norm_eps"), "{note}");
    }
}
