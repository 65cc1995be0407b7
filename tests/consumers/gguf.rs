//! The package gguf reads in every file what llmq itself reads there, to the bit.

use crate::ask::{self, Tensor};
use crate::common::{llmq, tiny};
use crate::quantize;
use llmq::format::{by_id, writable};
use llmq::pipeline::weights::open_gguf;
use serde_json::Value;

#[test]
fn every_type_rounded_to_nearest_reads_alike() {
    // The package knows only the names of two.
    for kind in writable().filter(|kind| !["Q1_0", "Q2_0"].contains(&kind.name())) {
        reads_alike(kind.name(), "rtn");
    }
}

#[test]
fn types_quantized_with_gptq_read_alike() {
    for kind in ["Q4_0", "Q5_1", "IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S", "IQ3_XXS"] {
        reads_alike(kind, "gptq");
    }
}

fn reads_alike(kind: &str, method: &str) {
    let (folder, file) = quantize(&tiny(), kind, method);
    let theirs = ask::gguf(&file, folder.path());

    let ours = open_gguf(&file).unwrap();
    let described = ours.tensors.iter().map(|t| Tensor {
        name: t.name.clone(),
        shape: t.dims.clone(),
        kind: by_id(t.type_id).unwrap().name().into(),
        n_bytes: t.bytes,
    });
    assert_eq!(theirs.tensors, described.collect::<Vec<_>>(), "{kind} {method}");
    let linears = theirs.tensors.iter().filter(|t| t.name.starts_with("blk.") && t.kind == kind);
    assert!(linears.count() >= 4 * 7, "{kind} {method}: the linear layers have another type");
    for info in &ours.tensors {
        let name = &info.name;
        let expected = std::fs::read(folder.path().join(format!("{name}.f32"))).unwrap();
        let found = by_id(info.type_id).unwrap().decode_all(ours.data(info));
        let found: Vec<u8> = found.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(found == expected, "{kind} {method}: the values of {name} differ");
    }

    // gguf puts three keys of its own in front.
    let inspected = llmq!["inspect", &file, "--json"].ok().lines("metadata");
    let inspected = inspected.iter().map(|line| (line["key"].as_str().unwrap(), line["value"].clone()));
    let counts = [("version", 3), ("tensor_count", ours.tensors.len()), ("kv_count", ours.metadata.len())];
    let counts = counts.map(|(key, n)| (format!("GGUF.{key}"), Value::from(n)));
    let expected = counts.into_iter().chain(inspected.map(|(key, value)| (key.to_owned(), value)));
    assert_eq!(theirs.metadata.into_iter().collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{kind} {method}");
}
