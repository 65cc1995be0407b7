//! What a layer multiplies its weights with, as the rows of a matrix: a product's input as it is, a convolution's by im2col.

use crate::error::{Error, Result};
use crate::int8::onnx::Tensor;
use crate::int8::onnx::proto::NodeProto;

/// The most rows that one run of the graph gives: those of neighbours in an image are alike.
const MOST_ROWS: usize = 512;

/// How a layer reads its input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Columns {
    /// The last axis, of this length.
    Last(usize),
    /// Windows.
    Windows(Windows),
}

/// The windows of a convolution over one or two axes; one axis is the second of two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Windows {
    groups: usize,
    /// Input channels of a group.
    channels: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    padding: Padding,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Padding {
    /// In front and behind, for each axis.
    Explicit([usize; 2], [usize; 2]),
    /// As much as makes the output as large as the input over the stride; where that is odd, one more `behind`.
    Same { behind: bool },
}

impl Columns {
    /// Of a product with weights of `inputs` rows.
    pub fn product(inputs: usize) -> Columns {
        Columns::Last(inputs)
    }

    /// Of a convolution with weights `[outputs, inputs / groups, kernel…]`; none if its attributes are not understood.
    pub fn convolution(node: &NodeProto, weights: &[usize]) -> Option<Columns> {
        let axes = weights.len().checked_sub(2).filter(|axes| (1..=2).contains(axes))?;
        let pair = |name: &str, default: usize| -> Option<[usize; 2]> {
            match node.ints_of(name) {
                None | Some([]) => Some([default; 2]),
                Some(&[one]) if axes == 1 => Some([default, usize::try_from(one).ok()?]),
                Some(&[a, b]) if axes == 2 => Some([usize::try_from(a).ok()?, usize::try_from(b).ok()?]),
                Some(_) => None,
            }
        };
        let text = node.attribute("auto_pad").and_then(|attribute| attribute.s.as_deref()).unwrap_or(b"NOTSET");
        let padding = match text {
            b"SAME_UPPER" => Padding::Same { behind: true },
            b"SAME_LOWER" => Padding::Same { behind: false },
            b"VALID" => Padding::Explicit([0; 2], [0; 2]),
            _ => {
                let pads: Vec<i64> = node.ints_of("pads").map_or(vec![0; 2 * axes], <[i64]>::to_vec);
                let pads: Vec<usize> = pads.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
                match pads[..] {
                    [a, b] if axes == 1 => Padding::Explicit([0, a], [0, b]),
                    [a, b, c, d] if axes == 2 => Padding::Explicit([a, b], [c, d]),
                    _ => return None,
                }
            }
        };
        let kernel = if axes == 1 { [1, weights[2]] } else { [weights[2], weights[3]] };
        let groups = usize::try_from(node.int_or("group", 1)).ok().filter(|&n| n > 0)?;
        let (strides, dilations) = (pair("strides", 1)?, pair("dilations", 1)?);
        let sound = strides.iter().chain(&dilations).all(|&n| n > 0) && weights[0].is_multiple_of(groups);
        let windows = Windows { groups, channels: weights[1], kernel, strides, dilations, padding };
        sound.then_some(Columns::Windows(windows))
    }

    /// Groups of outputs, each of which reads inputs of its own.
    pub fn groups(&self) -> usize {
        match self {
            Columns::Last(_) => 1,
            Columns::Windows(windows) => windows.groups,
        }
    }

    /// Columns of a group: as many as an output has weights.
    pub fn width(&self) -> usize {
        match self {
            Columns::Last(width) => *width,
            Columns::Windows(Windows { channels, kernel, .. }) => channels * kernel[0] * kernel[1],
        }
    }

    /// Rows that a group reads of an input, spread evenly if there are many: `[rows, width]`.
    ///
    /// # Errors
    /// The input has another shape than the layer reads.
    pub fn rows(&self, x: &Tensor<f32>, group: usize) -> Result<Vec<f32>> {
        match self {
            Columns::Last(width) if x.dims.last() == Some(width) && *width > 0 => {
                let chosen = chosen(x.data.len() / width);
                Ok(chosen.flat_map(|row| &x.data[row * width..(row + 1) * width]).copied().collect())
            }
            Columns::Windows(windows) => windows.rows(x, group),
            Columns::Last(width) => {
                Err(Error::new(format!("a layer that reads {width} numbers was given {:?}", x.dims)))
            }
        }
    }
}

/// Up to [`MOST_ROWS`] of so many rows, spread evenly.
fn chosen(rows: usize) -> impl Iterator<Item = usize> {
    let count = rows.min(MOST_ROWS);
    (0..count).map(move |i| i * rows / count)
}

impl Windows {
    fn rows(&self, x: &Tensor<f32>, group: usize) -> Result<Vec<f32>> {
        let (batch, size) = match x.dims[..] {
            [n, c, w] if c == self.groups * self.channels => (n, [1, w]),
            [n, c, h, w] if c == self.groups * self.channels => (n, [h, w]),
            _ => {
                let channels = self.groups * self.channels;
                return Err(Error::new(format!(
                    "a convolution of {channels} channels was given an input of shape {:?}",
                    x.dims
                )));
            }
        };
        let (before, out) = self.extent(size);
        let [height, width] = size;
        let mut rows = Vec::new();
        for at in chosen(batch * out[0] * out[1]) {
            let (n, y, z) = (at / (out[0] * out[1]), at / out[1] % out[0], at % out[1]);
            for c in 0..self.channels {
                let plane = ((n * self.groups + group) * self.channels + c) * height * width;
                for i in 0..self.kernel[0] {
                    for j in 0..self.kernel[1] {
                        // Where the padding is, this wraps around and is out of range as well.
                        let row = (y * self.strides[0] + i * self.dilations[0]).wrapping_sub(before[0]);
                        let column = (z * self.strides[1] + j * self.dilations[1]).wrapping_sub(before[1]);
                        let inside = row < height && column < width;
                        rows.push(if inside { x.data[plane + row * width + column] } else { 0.0 });
                    }
                }
            }
        }
        Ok(rows)
    }

    /// The padding in front of each axis, and the output's size.
    fn extent(&self, size: [usize; 2]) -> ([usize; 2], [usize; 2]) {
        let span = |axis: usize| self.dilations[axis] * (self.kernel[axis] - 1) + 1;
        let one = |axis: usize| match &self.padding {
            Padding::Explicit(before, behind) => {
                let room = (size[axis] + before[axis] + behind[axis]).checked_sub(span(axis));
                (before[axis], room.map_or(0, |room| room / self.strides[axis] + 1))
            }
            Padding::Same { behind } => {
                let out = size[axis].div_ceil(self.strides[axis]);
                let padding = ((out.max(1) - 1) * self.strides[axis] + span(axis)).saturating_sub(size[axis]);
                (if *behind { padding / 2 } else { padding.div_ceil(2) }, out)
            }
        };
        let (a, b) = (one(0), one(1));
        ([a.0, b.0], [a.1, b.1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::node::{int, ints, node};
    use crate::int8::onnx::proto::tensor_proto::DataType;
    use crate::int8::onnx::proto::{
        AttributeProto, GraphProto, ModelProto, OperatorSetIdProto, attribute_proto::AttributeType,
    };
    use crate::int8::onnx::shape::{Dim, declare};

    fn text(name: &str, value: &str) -> AttributeProto {
        let kind = Some(AttributeType::String as i32);
        let s = Some(value.as_bytes().to_vec());
        AttributeProto { name: Some(name.into()), r#type: kind, s, ..Default::default() }
    }

    /// The engine's convolution, and that of the rows with the weights: `[outputs, positions]` each.
    fn both(attributes: Vec<AttributeProto>, x: &[usize], w: &[usize]) -> [Vec<f32>; 2] {
        let numbers = |dims: &[usize], step: f32| {
            let data = (0..dims.iter().product()).map(|i| (i as f32 * step).sin()).collect();
            Tensor::new(dims.to_vec(), data)
        };
        let (input, weights) = (numbers(x, 0.7), numbers(w, 1.3));
        // The engine takes the number of axes from this attribute.
        let kernel: Vec<i64> = w[2..].iter().map(|&n| n as i64).collect();
        let attributes = [attributes, vec![ints("kernel_shape", &kernel)]].concat();
        let conv = node("Conv", "conv", &["x", "w"], &["y"], attributes);
        let open = |n: usize| vec![Dim::Dynamic(String::new()); n];
        let model = ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(GraphProto {
                node: vec![conv.clone()],
                initializer: vec![weights.proto("w")],
                input: vec![declare("x", DataType::Float, &open(x.len()))],
                output: vec![declare("y", DataType::Float, &open(x.len()))],
                ..Default::default()
            }),
            ..Default::default()
        };
        let found = Engine::new(&model).unwrap().run(&[("x", Value::F32(input.clone()))]).unwrap();
        let columns = Columns::convolution(&conv, w).unwrap();
        let (width, outputs) = (columns.width(), w[0] / columns.groups());
        let mut own = Vec::new();
        for group in 0..columns.groups() {
            let rows = columns.rows(&input, group).unwrap();
            for row in weights.data[group * outputs * width..][..outputs * width].chunks(width) {
                own.extend(rows.chunks(width).map(|x| x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>()));
            }
        }
        [found[0].floats().unwrap().data.clone(), own]
    }

    #[test]
    fn rows_times_weights_are_the_convolution() {
        let cases: [(Vec<AttributeProto>, &[usize], &[usize]); 7] = [
            (vec![], &[1, 2, 5, 6], &[3, 2, 3, 2]),
            (vec![ints("pads", &[1, 2, 0, 1]), ints("strides", &[2, 1])], &[1, 2, 5, 6], &[3, 2, 3, 3]),
            (vec![ints("pads", &[2; 4]), ints("dilations", &[2, 2]), int("group", 2)], &[1, 4, 6, 7], &[6, 2, 3, 3]),
            (vec![int("group", 4), ints("pads", &[1; 4])], &[1, 4, 5, 5], &[4, 1, 3, 3]),
            (vec![text("auto_pad", "SAME_UPPER"), ints("strides", &[2, 2])], &[1, 2, 7, 6], &[2, 2, 4, 3]),
            (vec![ints("pads", &[1, 1]), ints("strides", &[2])], &[1, 3, 9], &[2, 3, 3]),
            (vec![text("auto_pad", "VALID")], &[1, 1, 20, 20], &[1, 1, 1, 1]),
        ];
        for (at, (attributes, x, w)) in cases.into_iter().enumerate() {
            let [wanted, own] = both(attributes, x, w);
            assert_eq!(wanted.len(), own.len(), "case {at}");
            for (a, b) in wanted.iter().zip(&own) {
                assert!((a - b).abs() < 1e-4, "case {at}: {a} {b}");
            }
        }
    }

    #[test]
    fn many_rows_are_thinned_out_and_other_shapes_refused() {
        let x = Tensor::new([2, 600, 3], (0..3600).map(|i| i as f32).collect());
        let rows = Columns::product(3).rows(&x, 0).unwrap();
        assert_eq!(rows.len(), 3 * MOST_ROWS);
        assert!(
            rows.starts_with(&[0.0, 1.0, 2.0])
                && rows.chunks(3).all(|row| row[0] % 3.0 == 0.0 && row[2] == row[0] + 2.0)
        );
        assert!(rows[rows.len() - 3] > 3580.0);
        assert!(Columns::product(4).rows(&x, 0).unwrap_err().to_string().contains("[2, 600, 3]"));
        let conv = Columns::convolution(&node("Conv", "c", &[], &[], vec![]), &[1, 5, 1]).unwrap();
        assert!(conv.rows(&x, 0).unwrap_err().to_string().contains("5 channels"));
        assert!(Columns::convolution(&node("Conv", "c", &[], &[], vec![ints("pads", &[-1, 0])]), &[1, 5, 1]).is_none());
    }
}
