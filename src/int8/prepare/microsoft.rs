//! ONNX Runtime's own operators that hide weights, as the nodes that they were made from: `EmbedLayerNormalization` hides tables, and
//! `Attention` a product. What has no weights stays as it is, for ONNX Runtime runs it faster.

use crate::error::Result;
use crate::int8::onnx::node::{float, int, ints, node};
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{AttributeProto, ModelProto, NodeProto};
use crate::int8::onnx::rank::ranks;
use crate::int8::onnx::{Graph, Tensor};
use std::collections::HashMap;

/// ONNX Runtime's domain.
pub const MICROSOFT: &str = "com.microsoft";

/// Lists became inputs with this opset.
const LISTS_ARE_INPUTS: i64 = 13;

/// Expands both in the main graph.
///
/// # Errors
/// The graph cannot run.
pub fn expand(model: &mut ModelProto, opset: i64) -> Result<()> {
    let theirs = |node: &NodeProto| node.domain() == MICROSOFT;
    if !model.graph.iter().any(|graph| graph.node.iter().any(theirs)) {
        return Ok(());
    }
    let mut graph = Graph::take(model)?;
    let mut ranks = ranks(&graph);
    let lengths =
        |node: &NodeProto| node.output.get(1).cloned().filter(|_| node.op_type() == "EmbedLayerNormalization");
    ranks.extend(graph.nodes().iter().filter_map(lengths).map(|name| (name, 1)));
    for at in 0..graph.nodes().len() {
        let old = graph.nodes()[at].clone();
        let mut new =
            Expansion { label: old.label().to_owned(), graph: &mut graph, ranks: &ranks, opset, nodes: vec![] };
        let known = match old.op_type() {
            "EmbedLayerNormalization" if theirs(&old) => new.embedding(&old),
            "Attention" if theirs(&old) => new.attention(&old),
            _ => None,
        };
        let nodes = new.nodes;
        if known.is_some() {
            graph.replace(at, nodes);
        }
    }
    graph.finish(model)
}

struct Expansion<'a> {
    label: String,
    graph: &'a mut Graph,
    ranks: &'a HashMap<String, usize>,
    opset: i64,
    nodes: Vec<NodeProto>,
}

impl Expansion<'_> {
    /// Adds a node and gives its only output.
    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.graph.fresh(&format!("{}_{op}", self.label));
        self.to(op, inputs, &output, attributes);
        output
    }

    fn to(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        let name = self.graph.fresh(&format!("{}_{op}_node", self.label));
        self.nodes.push(node(op, name, inputs, &[output], attributes));
    }

    fn constant(&mut self, value: Tensor<i64>) -> String {
        self.graph.add(&format!("{}_constant", self.label), |name| value.proto(name))
    }

    /// A list of an operator that is an input or an attribute, by opset.
    fn list(&mut self, name: &str, values: &[i64]) -> (Option<String>, Vec<AttributeProto>) {
        match self.opset >= LISTS_ARE_INPUTS {
            true => (Some(self.constant(Tensor::vector(values.to_vec()))), vec![]),
            false => (None, vec![ints(name, values)]),
        }
    }

    /// From 0 to below the length of the second axis of a value.
    fn positions(&mut self, of: &str) -> String {
        let shape = self.op("Shape", &[of], vec![]);
        let [zero, one] = [0, 1].map(|n| self.constant(Tensor::scalar(n)));
        let length = self.op("Gather", &[&shape, &one], vec![int("axis", 0)]);
        self.op("Range", &[&zero, &length, &one], vec![])
    }

    fn embedding(&mut self, old: &NodeProto) -> Option<()> {
        let (ids, words, positions) = (old.input_at(0)?, old.input_at(2)?, old.input_at(3)?);
        let (scale, shift) = (old.input_at(5)?, old.input_at(6)?);
        let given = |place: usize| old.output.get(place).filter(|name| !name.is_empty());
        // The number of tokens of each row, by the mask.
        if let Some(lengths) = given(1) {
            let (axes, mut attributes) = self.list("axes", &[1]);
            attributes.push(int("keepdims", 0));
            let inputs: Vec<&str> = [old.input_at(7)?].into_iter().chain(axes.as_deref()).collect();
            self.to("ReduceSum", &inputs, lengths, attributes);
        }
        let words = self.op("Gather", &[words, ids], vec![]);
        let places = match old.input_at(8) {
            Some(places) => places.to_owned(),
            None => self.positions(ids),
        };
        let positions = self.op("Gather", &[positions, &places], vec![]);
        let mut sum = self.op("Add", &[&words, &positions], vec![]);
        if let (Some(segments), Some(table)) = (old.input_at(1), old.input_at(4)) {
            let segments = self.op("Gather", &[table, segments], vec![]);
            sum = self.op("Add", &[&sum, &segments], vec![]);
        }
        if let Some(output) = given(2) {
            self.to("Identity", &[&sum], output, vec![]);
        }
        let epsilon = float("epsilon", old.float_or("epsilon", 1e-12));
        self.to("LayerNormalization", &[&sum, scale, shift], given(0)?, vec![int("axis", -1), epsilon]);
        Some(())
    }

    fn attention(&mut self, old: &NodeProto) -> Option<()> {
        let (x, weights, bias) = (old.input_at(0)?, old.input_at(1)?, old.input_at(2).unwrap_or_default());
        let cached = old.input_at(4).is_some() || old.output.iter().skip(1).any(|output| !output.is_empty());
        if cached || old.int_or("do_rotary", 0) != 0 {
            return None;
        }
        let [_, columns] = self.graph.constant(weights)?.dims[..] else { return None };
        let sizes = old.ints_of("qkv_hidden_sizes").map_or_else(|| vec![columns / 3; 3], <[i64]>::to_vec);
        let all = self.op("MatMul", &[x, weights], vec![]);
        let parts: [String; 3] =
            ["query", "key", "value"].map(|part| self.graph.fresh(&format!("{}_{part}", self.label)));
        let (list, mut attributes) = self.list("split", &sizes);
        attributes.push(int("axis", -1));
        let name = self.graph.fresh(&format!("{}_Split", self.label));
        let inputs: Vec<&str> = [all.as_str()].into_iter().chain(list.as_deref()).collect();
        let [query, key, value] = parts.each_ref().map(String::as_str);
        self.nodes.push(node("Split", name, &inputs, &[query, key, value], attributes));
        let mask = match old.input_at(3) {
            Some(lengths) if self.ranks.get(lengths) == Some(&1) => self.mask(x, lengths),
            mask => mask.unwrap_or_default().to_owned(),
        };
        let added = old.input_at(5).unwrap_or_default();
        let attributes = old.attribute.iter().filter(|attribute| {
            ["num_heads", "unidirectional", "scale", "mask_filter_value"].contains(&attribute.name())
        });
        let mut new = node("MultiHeadAttention", old.name(), &[query, key, value, bias, &mask, added], &[], vec![]);
        while new.input.last().is_some_and(String::is_empty) {
            new.input.pop();
        }
        new.output = vec![old.output.first()?.clone()];
        new.attribute = attributes.cloned().collect();
        new.domain = Some(MICROSOFT.into());
        self.nodes.push(new);
        Some(())
    }

    /// Which tokens of each row there are, by their number.
    fn mask(&mut self, x: &str, lengths: &str) -> String {
        let positions = self.positions(x);
        let lengths = self.op("Cast", &[lengths], vec![int("to", DataType::Int64 as i64)]);
        let (axes, attributes) = self.list("axes", &[1]);
        let inputs: Vec<&str> = [lengths.as_str()].into_iter().chain(axes.as_deref()).collect();
        let column = self.op("Unsqueeze", &inputs, attributes);
        let there = self.op("Less", &[&positions, &column], vec![]);
        self.op("Cast", &[&there], vec![int("to", DataType::Int32 as i64)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::proto::{GraphProto, OperatorSetIdProto};
    use crate::int8::onnx::shape::{Dim, declare};

    fn theirs(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto { domain: Some(MICROSOFT.into()), ..node(op, op, inputs, outputs, attributes) }
    }

    /// Two sentences of three tokens, of which the second has two.
    fn model() -> ModelProto {
        let numbers = |dims: [usize; 2], seed: f32| {
            let data = (0..dims[0] * dims[1]).map(|i| (i as f32 * seed).sin()).collect();
            Tensor::<f32>::new(dims, data)
        };
        let row = |n: usize, x: f32| Tensor::<f32>::vector(vec![x; n]);
        let open = [2, 3].map(Dim::Fixed);
        let graph = GraphProto {
            node: vec![
                theirs(
                    "EmbedLayerNormalization",
                    &["ids", "", "words", "positions", "", "scale", "shift", "mask"],
                    &["x", "lengths"],
                    vec![],
                ),
                theirs("Attention", &["x", "w", "b", "lengths"], &["y"], vec![int("num_heads", 2)]),
            ],
            initializer: vec![
                numbers([7, 4], 0.7).proto("words"),
                numbers([5, 4], 1.1).proto("positions"),
                row(4, 1.5).proto("scale"),
                row(4, 0.25).proto("shift"),
                numbers([4, 12], 0.4).proto("w"),
                row(12, 0.1).proto("b"),
            ],
            input: ["ids", "mask"].map(|name| declare(name, DataType::Int32, &open)).to_vec(),
            output: vec![declare("y", DataType::Float, &[2, 3, 4].map(Dim::Fixed))],
            ..Default::default()
        };
        let set = |domain: &str, n| OperatorSetIdProto { domain: Some(domain.into()), version: Some(n) };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![set("", 17), set(MICROSOFT, 1)],
            graph: Some(graph),
            ..Default::default()
        }
    }

    #[test]
    fn tables_and_products_come_out_and_a_masked_token_is_not_attended_to() {
        let mut model = model();
        expand(&mut model, 17).unwrap();
        let graph = model.graph.as_ref().unwrap();
        let count = |op: &str| graph.node.iter().filter(|node| node.op_type() == op).count();
        assert_eq!(
            ["Gather", "MatMul", "MultiHeadAttention", "Attention", "EmbedLayerNormalization"].map(count),
            [4, 1, 1, 0, 0]
        );
        let run = |last: i32| {
            let ids = Value::I32(Tensor::new([2, 3], vec![1, 2, 3, 4, 5, last]));
            let mask = Value::I32(Tensor::new([2, 3], vec![1, 1, 1, 1, 1, 0]));
            let outputs = Engine::new(&model).unwrap().run(&[("ids", ids), ("mask", mask)]).unwrap();
            outputs[0].floats().unwrap().data.clone()
        };
        let (a, b) = (run(0), run(6));
        assert!(a.iter().zip(&b).take(5 * 4).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
        assert!(a.iter().zip(&b).skip(5 * 4).any(|(a, b)| (a - b).abs() > 1e-3), "{a:?} {b:?}");
    }
}
