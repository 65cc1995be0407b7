//! Equal constants become one: whoever quantized a weight that several nodes share may have done it for each of them.

use super::file::mapped::each_part;
use super::proto::{GraphProto, ModelProto, TensorProto};
use crate::error::Result;
use std::collections::{HashMap, HashSet};

/// Constants of fewer bytes are not worth it.
const SMALLEST: usize = 64;

/// Type, dimensions and values.
type Key = (i32, Vec<i64>, [u8; 32]);

/// Merges the equal initializers of the main graph, but for those that a caller may replace or get.
///
/// # Errors
/// The values of a mapped file cannot be read.
pub fn merge_equal(model: &mut ModelProto) -> Result<()> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let outside: HashSet<&str> = graph.input.iter().chain(&graph.output).map(|info| info.name()).collect();
    let likely = |tensor: &TensorProto| (tensor.data_type(), tensor.dims.clone());
    let mut alike: HashMap<_, usize> = HashMap::new();
    for tensor in &graph.initializer {
        *alike.entry(likely(tensor)).or_default() += 1;
    }
    let mut first: HashMap<Key, String> = HashMap::new();
    let mut instead: HashMap<String, String> = HashMap::new();
    for tensor in &graph.initializer {
        let Some(raw) = tensor.raw_data.as_ref().filter(|raw| raw.len() >= SMALLEST) else { continue };
        if alike[&likely(tensor)] < 2 || outside.contains(tensor.name()) {
            continue;
        }
        let mut hash = blake3::Hasher::new();
        each_part(raw, |part| {
            hash.update(part);
            Ok(())
        })?;
        let key = (tensor.data_type(), tensor.dims.clone(), *hash.finalize().as_bytes());
        match first.get(&key) {
            Some(other) => drop(instead.insert(tensor.name().to_owned(), other.clone())),
            None => drop(first.insert(key, tensor.name().to_owned())),
        }
    }
    if !instead.is_empty() {
        graph.initializer.retain(|tensor| !instead.contains_key(tensor.name()));
        rename(graph, &instead);
    }
    Ok(())
}

fn rename(graph: &mut GraphProto, instead: &HashMap<String, String>) {
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(other) = instead.get(input) {
                input.clone_from(other);
            }
        }
        node.subgraphs_mut().for_each(|graph| rename(graph, instead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::Tensor;
    use crate::int8::onnx::node::node;
    use crate::int8::onnx::proto::{AttributeProto, ValueInfoProto};

    #[test]
    fn equal_constants_are_stored_once_wherever_they_are_read() {
        let info = |name: &str| ValueInfoProto { name: Some(name.into()), ..Default::default() };
        let large = |name: &str, x: f32| Tensor::vector(vec![x; 16]).proto(name);
        let inside = GraphProto { node: vec![node("Neg", "", &["b"], &["n"], vec![])], ..Default::default() };
        let branch = AttributeProto { name: Some("then_branch".into()), g: Some(inside), ..Default::default() };
        let graph = GraphProto {
            node: vec![
                node("Sum", "", &["a", "b", "c", "d", "small", "other"], &["y"], vec![]),
                node("If", "", &["x"], &["z"], vec![branch]),
            ],
            initializer: vec![
                large("a", 1.0),
                large("b", 1.0),
                large("c", 2.0),
                large("d", 1.0),
                Tensor::vector(vec![0.0f32]).proto("small"),
                Tensor::vector(vec![0.0f32]).proto("other"),
            ],
            input: vec![info("x"), info("d")],
            output: vec![info("y"), info("z")],
            ..Default::default()
        };
        let mut model = ModelProto { graph: Some(graph), ..Default::default() };
        merge_equal(&mut model).unwrap();
        let graph = model.graph.unwrap();
        let names: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["a", "c", "d", "small", "other"]);
        assert_eq!(graph.node[0].input, ["a", "a", "c", "d", "small", "other"]);
        assert_eq!(graph.node[1].attribute[0].g.as_ref().unwrap().node[0].input, ["a"]);
    }
}
