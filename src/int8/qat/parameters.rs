//! What is trained: weights and biases of layers in integers, gains and shifts of norms, and the ends of activations' ranges.

use super::fake;
use super::program::Program;
use crate::error::{Error, Result};
use crate::int8::onnx::proto::{ModelProto, NodeProto, TensorProto};
use crate::int8::onnx::{Graph, Tensor as Array};
use crate::int8::qdq::plan::{Plan, Role};
use crate::int8::qdq::rewrite::Integers;
use crate::int8::qdq::weights::{bias_codes, quantize};
use crate::int8::ranges::Range;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// The least size of a parameter's numbers that steps are made for.
const LEAST: f64 = 0.01;

/// How much faster the ends of ranges move than weights: calibration may be wrong by whole factors.
const ENDS_FASTER: f64 = 10.0;

/// Numbers to train.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Their shape and what they are now.
    pub values: Array<f32>,
    /// What a learning rate of 1 changes a number by in a step.
    pub unit: f64,
    /// Something outside of training reads them, too: they stay.
    fixed: bool,
}

/// A layer in integers.
#[derive(Debug, Clone)]
struct Layer {
    at: usize,
    weights: usize,
    bias: Option<usize>,
    axis: usize,
    /// The value whose range the input has.
    input: String,
}

/// All that is trained.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// In a fixed order.
    pub all: Vec<Parameter>,
    layers: Vec<Layer>,
    /// Constants of the graph, by the name under which the model holds them.
    constants: BTreeMap<String, usize>,
    /// Constants that are no weights of layers, by the names under which nodes read them.
    vectors: BTreeMap<String, usize>,
    /// By value: what calibration found, and the parameter with the logarithms of two factors.
    ranges: BTreeMap<String, (Range, usize)>,
    integers: Integers,
}

impl Parameters {
    /// Everything that a program can train.
    ///
    /// # Errors
    /// A range is missing, or a tensor is damaged.
    pub fn of(
        graph: &Graph,
        plan: &Plan,
        program: &Program,
        ranges: &HashMap<String, Range>,
        integers: Integers,
    ) -> Result<Parameters> {
        let (all, layers) = (Vec::new(), Vec::new());
        let (constants, vectors) = Default::default();
        let mut found = Parameters { all, layers, constants, vectors, ranges: BTreeMap::new(), integers };
        for value in program.ranged() {
            let range =
                *ranges.get(value).ok_or_else(|| Error::new(format!("no range is known for value '{value}'")))?;
            found.ranges.insert(value.to_owned(), (range, found.all.len()));
            found.all.push(Parameter { values: Array::vector(vec![0.0; 2]), unit: ENDS_FASTER, fixed: false });
        }
        let inside: Vec<usize> = program.steps.iter().map(|step| step.at).collect();
        for step in &program.steps {
            let node = &step.node;
            if let Some(role @ (Role::Conv | Role::Product { .. })) = step.role {
                let axis = if let Role::Product { axis } = role { axis } else { 0 };
                let weights = found.constant(graph, &inside, &node.input[1])?;
                let bias = node.input_at(2).map(|name| found.constant(graph, &inside, name)).transpose()?;
                let root = plan.shares.get(&node.input[0]).unwrap_or(&node.input[0]).clone();
                found.layers.push(Layer { at: step.at, weights, bias, axis, input: root });
                continue;
            }
            for name in vectors_of(graph, node) {
                let index = found.constant(graph, &inside, name)?;
                found.vectors.insert(name.to_owned(), index);
            }
        }
        Ok(found)
    }

    /// The parameter behind a constant; a new one the first time.
    fn constant(&mut self, graph: &Graph, inside: &[usize], name: &str) -> Result<usize> {
        let root = root(graph, name);
        if let Some(&index) = self.constants.get(root) {
            return Ok(index);
        }
        let tensor = graph.constant(root).ok_or_else(|| Error::new(format!("'{root}' is no constant")))?;
        let values = Array::<f32>::read(tensor)?;
        let size = values.data.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.data.len().max(1) as f64;
        let fixed = graph.is_output(root)
            || graph
                .consumers(root)
                .iter()
                .any(|reader| !inside.contains(reader) && !graph.nodes()[*reader].is("Identity"));
        self.constants.insert(root.to_owned(), self.all.len());
        self.all.push(Parameter { values, unit: size.sqrt().max(LEAST), fixed });
        Ok(self.all.len() - 1)
    }

    /// The range of a value as it is now.
    fn range(&self, value: &str) -> Option<(Range, usize)> {
        let (range, index) = self.ranges.get(value)?;
        let ends = &self.all[*index].values.data;
        Some((fake::moved(*range, [ends[0], ends[1]]), *index))
    }

    /// All ranges as they are now.
    pub fn ranges(&self) -> HashMap<String, Range> {
        self.ranges.keys().filter_map(|value| Some((value.clone(), self.range(value)?.0))).collect()
    }

    /// How many numbers are trained.
    pub fn count(&self) -> usize {
        self.all.iter().filter(|parameter| !parameter.fixed).map(|parameter| parameter.values.data.len()).sum()
    }

    /// The tensors of a step: weights as the quantized file would have them, so that gradients pass straight through the
    /// rounding to the weights behind them.
    ///
    /// # Errors
    /// The tensor library refused.
    pub fn leaves(&self, trained: bool) -> Result<Leaves> {
        let mut leaves = Leaves::default();
        let rounded = self.layers.par_iter().map(|layer| self.rounded(layer)).collect::<Vec<_>>();
        for (layer, (weights, bias)) in self.layers.iter().zip(rounded) {
            let tensor = leaves.add(layer.weights, weights, trained)?;
            leaves.layers.insert((layer.at, 1), tensor);
            if let (Some(index), Some(bias)) = (layer.bias, bias) {
                let tensor = leaves.add(index, bias, trained)?;
                leaves.layers.insert((layer.at, 2), tensor);
            }
        }
        for (name, &index) in &self.vectors {
            let tensor = leaves.add(index, self.all[index].values.clone(), trained)?;
            leaves.vectors.insert(name.clone(), tensor);
        }
        for value in self.ranges.keys() {
            let Some((range, index)) = self.range(value) else { continue };
            let tensor = leaves.add(index, self.all[index].values.clone(), trained)?;
            leaves.ends.insert(value.clone(), (tensor, range));
        }
        Ok(leaves)
    }

    /// The same without rounding.
    ///
    /// # Errors
    /// The tensor library refused.
    pub fn float_leaves(&self) -> Result<Leaves> {
        let mut leaves = Leaves::default();
        for layer in &self.layers {
            for (input, index) in [(1, Some(layer.weights)), (2, layer.bias)] {
                let Some(index) = index else { continue };
                let tensor = leaves.add(index, self.all[index].values.clone(), false)?;
                leaves.layers.insert((layer.at, input), tensor);
            }
        }
        Ok(leaves)
    }

    /// Weights and bias of a layer as the quantized file would have them.
    fn rounded(&self, layer: &Layer) -> (Array<f32>, Option<Array<f32>>) {
        let (w, b) = (&self.all[layer.weights].values, layer.bias.map(|bias| &self.all[bias].values));
        let scale = self.range(&layer.input).map_or(1.0, |(range, _)| range.grid().0);
        let quantized = quantize(w, layer.axis, self.integers.levels, b.map(|b| &b.data[..]), scale);
        let inner: usize = w.dims[layer.axis + 1..].iter().product();
        let channel = |at: usize| at / inner.max(1) % w.dims[layer.axis];
        let back = quantized.codes.data.iter().enumerate();
        let back = back.map(|(at, &code)| f32::from(code) * quantized.scales[channel(at)]).collect();
        let bias = b.map(|b| {
            let (codes, scales) = bias_codes(&b.data, &quantized.scales, scale);
            Array::vector(codes.iter().zip(&scales).map(|(&code, &scale)| code as f32 * scale).collect())
        });
        (Array::new(w.dims.clone(), back), bias)
    }

    /// Moves numbers: `steps` has for each parameter what is taken off, or nothing.
    pub fn take_off(&mut self, steps: &[Vec<f32>]) {
        for (parameter, step) in self.all.iter_mut().zip(steps).filter(|(parameter, _)| !parameter.fixed) {
            parameter.values.data.iter_mut().zip(step).for_each(|(x, step)| *x -= step);
        }
    }

    /// Puts what was trained into a model that has the same constants.
    ///
    /// # Errors
    /// It has not.
    pub fn store(&self, model: &mut ModelProto) -> Result<()> {
        let graph = model.graph.as_mut().ok_or_else(|| Error::new("the model holds no graph"))?;
        let mut constants: HashMap<String, &mut TensorProto> = HashMap::new();
        for node in graph.node.iter_mut().filter(|node| node.is("Constant")) {
            let name = node.output[0].clone();
            if let Some(tensor) = node.attribute.iter_mut().find_map(|attribute| attribute.t.as_mut()) {
                constants.insert(name, tensor);
            }
        }
        constants.extend(graph.initializer.iter_mut().map(|tensor| (tensor.name().to_owned(), tensor)));
        for (name, &index) in &self.constants {
            let found = constants.get_mut(name).ok_or_else(|| Error::new(format!("there is no constant '{name}'")))?;
            **found = self.all[index].values.proto(found.name());
        }
        Ok(())
    }
}

/// The name under which the model holds a constant.
fn root<'a>(graph: &'a Graph, name: &'a str) -> &'a str {
    match graph.producer(name).map(|at| &graph.nodes()[at]) {
        Some(node) if node.is("Identity") => node.input_at(0).map_or(name, |before| root(graph, before)),
        _ => name,
    }
}

/// The constants of a node without integers that are trained: gains and shifts of norms, and vectors that are added to or
/// multiplied with activations, such as the biases that exporters write as a sum of their own.
fn vectors_of<'a>(graph: &'a Graph, node: &'a NodeProto) -> Vec<&'a str> {
    use crate::int8::onnx::proto::tensor_proto::DataType;
    let norm = node.is("LayerNormalization") || node.is("BatchNormalization");
    if !(norm || node.is("Add") || node.is("Mul")) {
        return Vec::new();
    }
    let vector = |tensor: &TensorProto| {
        tensor.data_type() == DataType::Float as i32 && tensor.dims.len() == 1 && tensor.dims[0] > 1
    };
    let inputs = if norm { 1..3 } else { 0..2 };
    let names = inputs.filter_map(|at| node.input_at(at));
    names.filter(|name| graph.constant(name).is_some_and(vector)).collect()
}

/// The tensors of a run that stand for parameters.
#[derive(Debug, Default)]
pub struct Leaves {
    /// By node and input.
    layers: HashMap<(usize, usize), Tensor>,
    vectors: HashMap<String, Tensor>,
    ends: HashMap<String, (Tensor, Range)>,
    /// Which parameter each is.
    owners: Vec<(usize, Tensor)>,
}

impl Leaves {
    fn add(&mut self, owner: usize, values: Array<f32>, trained: bool) -> Result<Tensor> {
        let tensor = Tensor::from_vec(values.data, values.dims, &Device::Cpu)?;
        if !trained {
            return Ok(tensor);
        }
        let tensor = Var::from_tensor(&tensor)?.into_inner();
        self.owners.push((owner, tensor.clone()));
        Ok(tensor)
    }

    /// The tensor that a node reads in the place of a constant.
    pub fn constant(&self, node: usize, input: usize, name: &str) -> Option<&Tensor> {
        self.layers.get(&(node, input)).or_else(|| self.vectors.get(name))
    }

    /// A value in its 8 bits.
    ///
    /// # Errors
    /// It has no range.
    pub fn rounded(&self, value: &str, x: &Tensor) -> Result<Tensor> {
        let (ends, range) =
            self.ends.get(value).ok_or_else(|| Error::new(format!("no range is known for value '{value}'")))?;
        Ok(fake::quantized(x, ends, *range)?)
    }

    /// Adds up what a sample's gradients say about each parameter.
    ///
    /// # Errors
    /// The tensor library refused.
    pub fn collect(&self, gradients: &GradStore, sums: &mut [Vec<f32>]) -> Result<()> {
        for (owner, tensor) in &self.owners {
            let Some(gradient) = gradients.get(tensor) else { continue };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            sums[*owner].resize(gradient.len(), 0.0);
            sums[*owner].iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += g);
        }
        Ok(())
    }
}
