//! `Gemm` is `alpha·A'·B' + beta·C`. Integer kernels know `A·B'`, plus one number a column, and nothing else.

use crate::error::Result;
use crate::int8::onnx::node::{ints, node};
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{ModelProto, NodeProto, TensorProto};
use crate::int8::onnx::{Graph, Tensor};

/// Rewrites each `Gemm` with a constant B in that form: `alpha` goes into B, `beta` into C, a transposed A is transposed before, and a
/// C that is not one number a column is added behind.
///
/// # Errors
/// The graph cannot run, or a tensor is damaged.
pub fn plain(model: &mut ModelProto) -> Result<()> {
    Graph::edit_all(model, &mut |graph| {
        for at in 0..graph.nodes().len() {
            let old = &graph.nodes()[at];
            if old.is("Gemm") && constant(graph, old, 1).is_some() && old.output.len() == 1 && !is_plain(graph, old) {
                let old = old.clone();
                let new = rewritten(graph, &old)?;
                graph.replace(at, new);
            }
        }
        Ok(())
    })
}

fn constant<'a>(graph: &'a Graph, node: &NodeProto, place: usize) -> Option<&'a TensorProto> {
    let found = graph.constant(node.input_at(place)?)?;
    (found.data_type() == DataType::Float as i32 && (place != 1 || found.dims.len() == 2)).then_some(found)
}

fn columns(graph: &Graph, node: &NodeProto) -> i64 {
    let axis = usize::from(node.int_or("transB", 0) == 0);
    constant(graph, node, 1).map_or(0, |b| b.dims[axis])
}

/// Whether a `Gemm` is in that form.
pub fn is_plain(graph: &Graph, node: &NodeProto) -> bool {
    let vector = || constant(graph, node, 2).is_some_and(|c| c.dims == [columns(graph, node)]);
    node.float_or("alpha", 1.0) == 1.0
        && node.int_or("transA", 0) == 0
        && (node.input_at(2).is_none() || (node.float_or("beta", 1.0) == 1.0 && vector()))
}

fn rewritten(graph: &mut Graph, old: &NodeProto) -> Result<Vec<NodeProto>> {
    let [alpha, beta] = ["alpha", "beta"].map(|name| old.float_or(name, 1.0));
    let (label, columns) = (old.label().to_owned(), columns(graph, old));
    let (mut new, mut before, mut behind) = (old.clone(), Vec::new(), Vec::new());
    new.attribute.retain(|attribute| attribute.name() == "transB");
    if old.int_or("transA", 0) != 0 {
        let turned = graph.fresh(&format!("{}_turned", old.input[0]));
        let name = graph.fresh(&format!("{label}_Transpose"));
        before.push(node("Transpose", name, &[&old.input[0]], &[&turned], vec![ints("perm", &[1, 0])]));
        new.input[0] = turned;
    }
    if alpha != 1.0 {
        new.input[1] = scaled(graph, &old.input[1], alpha)?;
    }
    let Some(c) = old.input_at(2) else { return Ok([before, vec![new]].concat()) };
    let dims = constant(graph, old, 2).map(|c| c.dims.clone());
    let one = |dims: &[i64]| dims.iter().all(|&n| n == 1);
    match dims {
        Some(dims) if one(&dims) || (dims.last() == Some(&columns) && one(&dims[..dims.len() - 1])) => {
            let values = constant(graph, old, 2).map(Tensor::<f32>::read).transpose()?.map_or(vec![], |c| c.data);
            let row = (0..columns as usize).map(|i| beta * values[i % values.len()]).collect();
            new.input[2] = graph.add(&format!("{c}_row"), |name| Tensor::vector(row).proto(name));
        }
        _ => {
            let c = match (beta, dims) {
                (1.0, _) => c.to_owned(),
                (_, Some(_)) => scaled(graph, c, beta)?,
                (_, None) => {
                    let factor = graph.add(&format!("{label}_beta"), |name| Tensor::scalar(beta).proto(name));
                    let (scaled, name) = (graph.fresh(&format!("{c}_scaled")), graph.fresh(&format!("{label}_Mul")));
                    behind.push(node("Mul", name, &[c, &factor], &[&scaled], vec![]));
                    scaled
                }
            };
            let (product, name) = (graph.fresh(&format!("{label}_product")), graph.fresh(&format!("{label}_Add")));
            behind.push(node("Add", name, &[&product, &c], &[&old.output[0]], vec![]));
            new.output[0] = product;
            new.input.truncate(2);
        }
    }
    Ok([before, vec![new], behind].concat())
}

/// A constant times a number.
fn scaled(graph: &mut Graph, name: &str, by: f32) -> Result<String> {
    let Some(constant) = graph.constant(name).map(Tensor::<f32>::read).transpose()? else { return Ok(name.into()) };
    let scaled = Tensor::new(constant.dims, constant.data.iter().map(|x| x * by).collect());
    Ok(graph.add(&format!("{name}_scaled"), |name| scaled.proto(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::node::{float, int};
    use crate::int8::onnx::proto::{AttributeProto, GraphProto, OperatorSetIdProto};
    use crate::int8::onnx::shape::{Dim, declare};

    /// `x` is `[3, 2]` or, transposed, `[2, 3]`; 4 columns.
    fn model(attributes: Vec<AttributeProto>, c: Option<&[usize]>, computed: bool) -> ModelProto {
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 1.3).cos()).collect::<Vec<f32>>();
        let given: Vec<Dim> = if attributes.iter().any(|a| a.name() == "transA") { vec![2, 3] } else { vec![3, 2] }
            .into_iter()
            .map(Dim::Fixed)
            .collect();
        let mut nodes = vec![node("Neg", "neg", &["c"], &["d"], vec![])];
        let third = if computed { "d" } else { "c" };
        let inputs: &[&str] = if c.is_some() { &["x", "w", third] } else { &["x", "w"] };
        nodes.push(node("Gemm", "gemm", inputs, &["y"], attributes));
        if !computed {
            nodes.remove(0);
        }
        let c = c.map(|dims| Tensor::new(dims, numbers(dims.iter().product())).proto("c"));
        let graph = GraphProto {
            node: nodes,
            initializer: [Tensor::new([2, 4], numbers(8)).proto("w")].into_iter().chain(c).collect(),
            input: vec![declare("x", DataType::Float, &given)],
            output: vec![declare("y", DataType::Float, &[3, 4].map(Dim::Fixed))],
            ..Default::default()
        };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(graph),
            ..Default::default()
        }
    }

    fn run(model: &ModelProto) -> Vec<f32> {
        let engine = Engine::new(model).unwrap();
        let dims: Vec<usize> = engine.inputs()[0].dims.as_ref().unwrap().iter().filter_map(Dim::fixed).collect();
        let x = Value::F32(Tensor::new(dims, vec![1.0, -2.0, 3.0, 0.5, -0.25, 4.0]));
        engine.run(&[("x", x)]).unwrap()[0].floats().unwrap().data.clone()
    }

    #[test]
    fn each_kind_becomes_plain_and_computes_the_same() {
        let scales = || vec![float("alpha", 0.5), float("beta", 2.0)];
        let biases: [Option<&[usize]>; 7] =
            [None, Some(&[4]), Some(&[1, 4]), Some(&[1]), Some(&[]), Some(&[3, 1]), Some(&[3, 4])];
        for (at, c) in biases.into_iter().enumerate() {
            for (attributes, computed) in
                [(vec![], false), (scales(), false), (vec![int("transA", 1)], false), (scales(), c.is_some())]
            {
                let mut model = model(attributes, c, computed);
                let before = run(&model);
                plain(&mut model).unwrap();
                let graph = Graph::take(&mut model.clone()).unwrap();
                let gemm = graph.nodes().iter().find(|node| node.is("Gemm")).unwrap();
                assert!(is_plain(&graph, gemm), "{at} {gemm:?}");
                let split = graph.nodes().iter().any(|node| node.is("Add"));
                assert_eq!(split, computed || at >= 5, "{at} {:?}", graph.nodes());
                for (a, b) in before.iter().zip(run(&model)) {
                    assert!((a - b).abs() < 1e-5, "{at} {before:?}");
                }
            }
        }
    }
}
