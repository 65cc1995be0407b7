//! Folders that hold more or something else than a checkpoint's files.

mod common;

use common::checkpoint::{Checkpoint, Shape};
use common::{folder, llmq, refused};
use std::fs;
use std::path::Path;

const HINT: &str = "\nhint: ";
const INDEX: &str = "model.safetensors.index.json";

fn small(shards: usize) -> Checkpoint {
    let mut checkpoint = Shape { blocks: 1, ..Shape::default() }.checkpoint();
    checkpoint.shards = shards;
    checkpoint
}

/// What becomes of a folder called `model`, whose name is in the file.
fn quantized(prepare: impl Fn(&Path)) -> Vec<u8> {
    let root = folder();
    let (model, file) = (root.path().join("model"), root.path().join("model.gguf"));
    prepare(&model);
    llmq!["quantize", &model, "-o", &file, "--type", "Q8_0", "-m", "rtn"].ok();
    fs::read(file).unwrap()
}

#[test]
fn what_other_saves_left_behind_does_not_count() {
    let whole = quantized(|model| small(1).write(model));
    let beside_older_shards = |model: &Path| {
        let mut older = small(2);
        older.numbers("model.embed_tokens.weight").fill(0.5);
        older.write(model);
        small(1).write(model);
    };
    let without_the_older_shards = |model: &Path| {
        beside_older_shards(model);
        (0..2).for_each(|i| fs::remove_file(model.join(small(2).file(i))).unwrap());
        assert!(model.join(INDEX).exists());
    };
    let shards_without_an_index = |model: &Path| {
        small(3).write(model);
        fs::remove_file(model.join(INDEX)).unwrap();
    };
    for prepare in [&beside_older_shards as &dyn Fn(&Path), &without_the_older_shards, &shards_without_an_index] {
        assert_eq!(quantized(prepare), whole);
    }
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let root = folder();
    let model = root.path().join("model");
    small(1).write(&model);
    let weights = model.join("model.safetensors");
    refused(&weights, &[], 1, &["model.safetensors", HINT, "give the folder that it is in", model.to_str().unwrap()]);
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5775872\n";
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let path = model.join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, POINTER).unwrap();
        refused(&model, &[], 1, &[path.to_str().unwrap(), "Git LFS pointer", HINT, "git lfs pull"]);
        fs::write(&path, bytes).unwrap();
    }
    fs::rename(&weights, model.join("llama.safetensors")).unwrap();
    refused(&model, &[], 1, &["llama.safetensors", HINT, "model.safetensors"]);
    fs::write(model.join("adapter_config.json"), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
    refused(&model, &[], 1, &["adapter", HINT, "merge it into \"org/base\" first"]);
    let cache = root.path().join("models--org--name");
    fs::create_dir_all(cache.join("snapshots/0123abcd")).unwrap();
    refused(&cache, &[], 1, &["hub cache", HINT, "snapshots/0123abcd"]);
}
