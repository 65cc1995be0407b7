//! What stands behind an embedding model, as sentence-transformers says it: how one vector is made of those of a text's tokens, and
//! layers that it goes through then.

use super::mapping::Pick;
use super::part::TensorRole;
use super::{Model, TensorMapping, TensorSpec};
use crate::error::{Error, Result};
use crate::source::checkpoint::Checkpoint;
use crate::source::checkpoint::modules::{self, Module};
use crate::source::pooling::{self, LABELS, Pooling, Reranker};
use crate::source::value::Value;

/// Sets the key that says how one vector is made, if the checkpoint says it.
///
/// # Errors
/// A way that llama.cpp does not know.
pub fn settle(model: &mut Model, checkpoint: &Checkpoint) -> Result<()> {
    if let Some(pooling) = pooling::pooling_of(checkpoint.folder())? {
        model.set_key("pooling_type", Value::U32(pooling as u32));
    }
    Ok(())
}

/// The architectures for which llama.cpp reads a head of two rows.
const RERANKERS: [&str; 2] = ["qwen3", "qwen3vl"];

/// Whether llama.cpp knows rerankers of the model's architecture.
pub fn has_rerankers(model: &Model) -> bool {
    RERANKERS.contains(&model.architecture.gguf())
}

/// Makes the model one that scores a text by two rows of its output head, which are all that is left of that.
pub fn rank(model: &mut Model, reranker: &Reranker) {
    model.set_key("pooling_type", Value::U32(Pooling::Rank as u32));
    model.set_key("classifier.output_labels", LABELS.map(str::to_owned).to_vec().into());
    let (rows, of) = (reranker.rows.map(|row| row as usize).into(), model.vocab);
    let mapping = TensorMapping { pick: Pick::Rows { rows, of }, ..TensorMapping::AS_IS };
    let (source, shape) = (model.output().source, vec![LABELS.len(), model.hidden]);
    let spec = TensorSpec::plain(source, "cls.output.weight".into(), shape, TensorRole::Other);
    model.tail.push(TensorSpec { mapping, ..spec });
    (model.tied, model.output_source) = (true, None);
}

/// Adds the layers behind, which llama.cpp reads for some architectures.
///
/// # Errors
/// Layers that it has no place for.
pub fn settle_dense(model: &mut Model, checkpoint: &Checkpoint) -> Result<()> {
    let modules = modules::read(checkpoint.folder())?;
    for Module { path, config, .. } in modules.iter().filter(|module| module.kind == "Dense") {
        let place = checkpoint.folder().join(path).join("config.json");
        let refused = |what: &str| {
            Error::new(format!("{}: {what}", place.display()))
                .hint("llama.cpp has no such variation of this architecture")
        };
        let of = |key: &str| config[key].as_u64().filter(|n| (1..1 << 32).contains(n)).map(|n| n as usize);
        let (columns, rows) = of("in_features")
            .zip(of("out_features"))
            .ok_or_else(|| Error::new(format!("{}: there are no in_features and out_features", place.display())))?;
        let (name, outside) = match path.as_str() {
            "2_Dense" => ("dense_2", columns),
            "3_Dense" => ("dense_3", rows),
            _ => return Err(refused("layers in folders other than 2_Dense and 3_Dense are not supported")),
        };
        if config["bias"] == true {
            return Err(refused("a bias is not supported"));
        }
        if !config["activation_function"].as_str().is_none_or(|name| name.ends_with("Identity")) {
            return Err(refused("an activation is not supported"));
        }
        if outside != model.hidden {
            return Err(refused(&format!(
                "a layer between the model's {} numbers and {outside} is not supported",
                model.hidden
            )));
        }
        model.set_key(&format!("{name}_feat_in"), Value::U32(columns as u32));
        model.set_key(&format!("{name}_feat_out"), Value::U32(rows as u32));
        let (source, gguf) = (format!("{path}/linear.weight"), format!("{name}.weight"));
        model.tail.push(TensorSpec::plain(source, gguf, vec![rows, columns], TensorRole::Other));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reranker_keeps_two_rows_of_its_head() {
        let qwen3 = super::super::ARCHITECTURES.iter().find(|architecture| architecture.gguf() == "qwen3").unwrap();
        let mut model = Model { tied: false, ..qwen3.sample() };
        assert!(has_rerankers(&model) && !has_rerankers(&Model::sample()));
        rank(&mut model, &Reranker { rows: [9, 7] });
        let own = model.tail();
        let spec = own.iter().find(|spec| spec.gguf == "cls.output.weight").unwrap();
        assert_eq!((spec.source.as_str(), &spec.shape[..]), ("lm_head.weight", &[2, model.hidden][..]));
        assert!(own.iter().all(|spec| spec.gguf != "output.weight"));
        assert!(model.keys.contains(&("qwen3.pooling_type".into(), Value::U32(4))));
    }

    #[test]
    fn pooling_and_layers_behind_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let file = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        write("model.safetensors", &file("{}"));
        let module =
            |kind: &str, path: &str| format!(r#"{{"type": "sentence_transformers.models.{kind}", "path": "{path}"}}"#);
        let list = [module("Transformer", ""), module("Pooling", "1_Pooling"), module("Dense", "2_Dense")].join(",");
        write("modules.json", format!("[{list}]").as_bytes());
        let settled = |pooling: &str, dense: &str| -> Result<Model> {
            write("1_Pooling/config.json", pooling.as_bytes());
            write("2_Dense/config.json", dense.as_bytes());
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let mut model = Model::sample();
            settle(&mut model, &checkpoint)?;
            settle_dense(&mut model, &checkpoint)?;
            Ok(model)
        };
        let (last, dense) = (r#"{"pooling_mode_lasttoken": true}"#, r#"{"in_features": 8, "out_features": 12}"#);
        let model = settled(last, dense).unwrap();
        let key = |name: &str| model.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        assert_eq!(key("llama.pooling_type"), Some(Value::U32(3)));
        assert_eq!(key("llama.dense_2_feat_out"), Some(Value::U32(12)));
        let spec = &model.tail[0];
        assert_eq!((spec.source.as_str(), &spec.shape[..]), ("2_Dense/linear.weight", &[12, 8][..]));
        let wrong = |pooling: &str, dense: &str| settled(pooling, dense).err().unwrap().to_string();
        assert!(wrong(r#"{"pooling_mode": "max"}"#, dense).contains("1_Pooling/config.json"));
        assert!(wrong(last, r#"{"in_features": 9, "out_features": 12}"#).contains("8 numbers and 9"));
        assert!(wrong(last, r#"{"in_features": 8, "out_features": 12, "bias": true}"#).contains("a bias"));
    }
}
