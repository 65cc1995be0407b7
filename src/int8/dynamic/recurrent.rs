//! Recurrent layers. ONNX Runtime runs an LSTM with INT8 weights as one node of its own, `DynamicQuantizeLSTM`. It has none for a GRU or
//! an RNN; their weights are stored in 8 bits, and become floats once, when ONNX Runtime folds constants as it loads the graph.

use super::{Levels, Recipe};
use crate::error::Result;
use crate::int8::onnx::Tensor;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{ModelProto, NodeProto, OperatorSetIdProto};
use crate::int8::onnx::tensor::type_of;
use crate::int8::prepare::microsoft::MICROSOFT;
use crate::int8::stored::decoded;
use crate::int8::weights::{Channels, Quantized, quantize, transpose};

/// How many inputs an LSTM has before those that a quantized one adds.
const INPUTS: usize = 8;

/// Says that a model uses ONNX Runtime's own operators.
pub fn use_microsoft(model: &mut ModelProto) {
    if model.opset_import.iter().all(|set| set.domain() != MICROSOFT) {
        let set = OperatorSetIdProto { domain: Some(MICROSOFT.into()), version: Some(1) };
        model.opset_import.push(set);
    }
}

/// Whether ONNX Runtime runs a recurrent layer with INT8 weights as a node of its own.
pub fn is_dynamic(node: &NodeProto) -> bool {
    node.is("LSTM") && node.int_or("layout", 0) == 0
}

impl Recipe<'_> {
    /// A recurrent layer with constant weights. Gives the name of those for its input, or why it stays as it is.
    pub(super) fn recurrent(&mut self, at: usize, old: &NodeProto) -> Result<Result<String, &'static str>> {
        let (Some(input), Some(hidden)) = (old.input_at(1), old.input_at(2)) else {
            return Ok(Err("an input is missing"));
        };
        let (input, hidden) = (input.to_owned(), hidden.to_owned());
        for name in [&input, &hidden] {
            let Some(weight) = self.graph.constant(name) else { return Ok(Err("its weights are computed")) };
            if type_of(weight) != Some(DataType::Float) || weight.dims.len() != 3 {
                return Ok(Err("its weights are not of type FLOAT with three dimensions"));
            }
        }
        let mut new = old.clone();
        if is_dynamic(old) {
            new.op_type = Some("DynamicQuantizeLSTM".into());
            new.domain = Some(MICROSOFT.into());
            new.attribute.retain(|attribute| attribute.name() != "layout");
            new.input.resize(INPUTS, String::new());
            for (place, name) in [(1, &input), (2, &hidden)] {
                let [directions, gates, width] = self.dims(name);
                let Quantized { codes, scales } = self.codes(name, self.options.levels)?;
                let turned = codes.data.chunks((gates * width).max(1)).flat_map(|codes| transpose(codes, gates, width));
                let codes = Tensor::new([directions, width, gates], turned.collect());
                let zeros = Tensor::new([directions, gates], vec![0i8; directions * gates]);
                let scales = Tensor::new([directions, gates], scales);
                new.input[place] = self.graph.add(&format!("{name}_int8"), |name| codes.proto(name));
                new.input.push(self.graph.add(&format!("{name}_scales"), |name| scales.proto(name)));
                new.input.push(self.graph.add(&format!("{name}_zero_points"), |name| zeros.proto(name)));
            }
        } else {
            for (place, name) in [(1, &input), (2, &hidden)] {
                let [directions, gates, _] = self.dims(name);
                // Nothing is added up in integers here.
                let Quantized { codes, scales } = self.codes(name, Levels::Full)?;
                let codes = Tensor::new(self.dims(name), codes.data);
                let scales = Tensor::new([directions, gates, 1], scales);
                new.input[place] = decoded(&mut self.graph, at, name, &codes, &scales);
            }
        }
        self.graph.replace(at, vec![new]);
        Ok(Ok(input))
    }

    /// The dimensions of weights: directions, gates times hidden units, and inputs.
    fn dims(&self, name: &str) -> [usize; 3] {
        let dims = self.graph.constant(name).map_or(&[][..], |weight| &weight.dims);
        std::array::from_fn(|axis| dims.get(axis).map_or(0, |&n| n.max(0) as usize))
    }

    /// Codes with a scale for each gate of each hidden unit of each direction.
    fn codes(&self, name: &str, levels: Levels) -> Result<Quantized> {
        let [directions, gates, width] = self.dims(name);
        let mut matrix = self.graph.constant(name).cloned().unwrap_or_default();
        matrix.dims = vec![(directions * gates) as i64, width as i64];
        quantize(name, &matrix, Channels::Rows, levels)
    }
}
