//! Initializers that are listed as inputs, too. Since version 4 of the format that says that a caller may replace them, but exporters
//! list all of them out of habit (`keep_initializers_as_inputs`), and no caller ever does.

use crate::int8::onnx::proto::{ModelProto, TensorProto};
use crate::int8::onnx::tensor::type_of;
use crate::int8::operators::FLOATS;
use std::collections::{HashMap, HashSet};

/// Takes such initializers off the list of inputs and says how many: all where all are listed, which is that habit. Of fewer, only
/// arrays of floats: a number, such as a threshold, may be meant to be replaced.
pub fn fix_initializers(model: &mut ModelProto) -> usize {
    let habit_of_the_format = model.ir_version() < 4;
    let Some(graph) = &mut model.graph else { return 0 };
    let inputs: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
    let all = graph.initializer.iter().all(|tensor| inputs.contains(tensor.name()));
    let weight =
        |tensor: &TensorProto| !tensor.dims.is_empty() && type_of(tensor).is_some_and(|kind| FLOATS.contains(&kind));
    let fixed: HashMap<String, bool> =
        graph.initializer.iter().map(|tensor| (tensor.name().to_owned(), all || weight(tensor))).collect();
    let before = graph.input.len();
    graph.input.retain(|input| fixed.get(input.name()).is_none_or(|fixed| !fixed));
    if habit_of_the_format { 0 } else { before - graph.input.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::Tensor;
    use crate::int8::onnx::proto::tensor_proto::DataType;
    use crate::int8::onnx::proto::{GraphProto, ValueInfoProto};
    use crate::int8::onnx::shape::declare;

    fn left(listed: &[&str], version: i64) -> (usize, Vec<String>) {
        let input = |name: &&str| declare(*name, DataType::Float, &[]);
        let graph = GraphProto {
            input: listed.iter().map(input).collect::<Vec<ValueInfoProto>>(),
            initializer: vec![
                Tensor::vector(vec![1.0f32]).proto("w"),
                Tensor::scalar(0.5f32).proto("threshold"),
                Tensor::vector(vec![1i64]).proto("shape"),
            ],
            ..Default::default()
        };
        let mut model = ModelProto { ir_version: Some(version), graph: Some(graph), ..Default::default() };
        let fixed = fix_initializers(&mut model);
        (fixed, model.graph.unwrap().input.iter().map(|input| input.name().to_owned()).collect())
    }

    #[test]
    fn weights_are_constants_and_a_single_threshold_stays_an_input() {
        assert_eq!(left(&["x", "w", "threshold", "shape"], 8), (3, vec!["x".into()]));
        assert_eq!(left(&["x", "w", "threshold"], 8), (1, vec!["x".into(), "threshold".into()]));
        assert_eq!(left(&["x", "shape"], 8), (0, vec!["x".into(), "shape".into()]));
        // The oldest format has them all there, which says nothing.
        assert_eq!(left(&["x", "w", "threshold", "shape"], 3), (0, vec!["x".into()]));
    }
}
