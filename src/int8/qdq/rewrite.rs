//! A plan and ranges become a graph: QuantizeLinear and DequantizeLinear around what runs in integers.

use super::plan::{Place, Plan, Role, data_inputs};
use super::weights::{bias_codes, quantize};
use crate::error::{Error, Result};
use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::NodeProto;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::rank::ranks;
use crate::int8::onnx::{Graph, Tensor};
use crate::int8::ranges::Range;
use crate::int8::weights::Levels;
use std::collections::{BTreeMap, HashMap};

/// The integers that a machine is good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integers {
    /// Activations are signed. On x86 unsigned ones are faster; without, ONNX Runtime leaves some convolutions float.
    pub signed: bool,
    /// How large the codes of weights may get.
    pub levels: Levels,
}

/// The names of what a value's quantization needs.
#[derive(Debug, Clone)]
struct Names {
    scale: String,
    zero: String,
}

/// Edits in the making.
struct Rewriter<'a> {
    graph: &'a mut Graph,
    plan: &'a Plan,
    integers: Integers,
    /// What becomes of each node that changes, with what follows it.
    edited: BTreeMap<usize, (NodeProto, Vec<NodeProto>)>,
    /// By the value whose range it is.
    grids: HashMap<String, (Names, f32)>,
    /// How many axes values have.
    ranks: HashMap<String, usize>,
}

/// Edits a graph. `ranges`: of all values that the plan observes.
///
/// # Errors
/// A range is missing, or a tensor is damaged.
pub fn rewrite(graph: &mut Graph, plan: &Plan, ranges: &HashMap<String, Range>, integers: Integers) -> Result<()> {
    let ranks = ranks(graph);
    let mut rewriter = Rewriter { graph, plan, integers, edited: BTreeMap::new(), grids: HashMap::new(), ranks };
    for value in plan.places.keys() {
        rewriter.grid(value, ranges)?;
    }
    for (value, place) in &plan.places {
        rewriter.activation(value, place);
    }
    for (&at, &role) in &plan.roles {
        match role {
            Role::Conv => rewriter.weights(at, 0)?,
            Role::Product { axis } => rewriter.weights(at, axis)?,
            Role::Join | Role::Move => {}
        }
    }
    let Rewriter { graph, edited, .. } = rewriter;
    for (at, (node, behind)) in edited {
        graph.replace(at, [vec![node], behind].concat());
    }
    Ok(())
}

impl Rewriter<'_> {
    fn root<'v>(&'v self, value: &'v str) -> &'v str {
        self.plan.shares.get(value).map_or(value, String::as_str)
    }

    /// Makes the scale and the zero point of a value, once for all that share them.
    fn grid(&mut self, value: &str, ranges: &HashMap<String, Range>) -> Result<()> {
        let root = self.root(value).to_owned();
        if self.grids.contains_key(&root) {
            return Ok(());
        }
        let range = ranges.get(&root).ok_or_else(|| Error::new(format!("no range is known for value '{root}'")))?;
        let (scale, zero) = range.grid();
        let name = self.graph.add(&format!("{root}_scale"), |name| Tensor::scalar(scale).proto(name));
        let signed = self.integers.signed;
        let zero = self.graph.add(&format!("{root}_zero_point"), |name| match signed {
            // The same grid, its codes less 128.
            true => Tensor::scalar((i16::from(zero) - 128) as i8).proto(name),
            false => Tensor::scalar(zero).proto(name),
        });
        self.grids.insert(root, (Names { scale: name, zero }, scale));
        Ok(())
    }

    fn of(&self, value: &str) -> (Names, f32) {
        // Every place has been given one.
        self.grids[self.root(value)].clone()
    }

    fn edit(&mut self, at: usize) -> &mut (NodeProto, Vec<NodeProto>) {
        let node = &self.graph.nodes()[at];
        self.edited.entry(at).or_insert_with(|| (node.clone(), Vec::new()))
    }

    /// The pair that quantizes one value and gives another.
    fn pair(&mut self, value: &str, from: &str, to: &str) -> [NodeProto; 2] {
        let (Names { scale, zero }, _) = self.of(value);
        let code = self.graph.fresh(&format!("{value}_quantized"));
        let names = ["QuantizeLinear", "DequantizeLinear"].map(|op| self.graph.fresh(&format!("{value}_{op}")));
        let [quantize, dequantize] = names;
        [
            node("QuantizeLinear", quantize, &[from, &scale, &zero], &[&code], vec![]),
            node("DequantizeLinear", dequantize, &[&code, &scale, &zero], &[to], vec![]),
        ]
    }

    fn activation(&mut self, value: &str, place: &Place) {
        match place {
            Place::Provenance(maker) => {
                // The value keeps its name, so that all its readers, the graph's outputs among them, get the quantized one.
                let raw = self.graph.fresh(&format!("{value}_float"));
                let pair = self.pair(value, &raw, value);
                let (node, behind) = self.edit(*maker);
                node.output[0] = raw;
                behind.extend(pair);
            }
            Place::Read(readers) => {
                let back = self.graph.fresh(&format!("{value}_dequantized"));
                let pair = self.pair(value, value, &back);
                for (i, &reader) in readers.iter().enumerate() {
                    if i == 0 {
                        self.graph.insert_before(reader, pair.clone());
                    }
                    let role = self.plan.roles[&reader];
                    let (node, _) = self.edit(reader);
                    let inputs = data_inputs(node, role).len();
                    node.input[..inputs].iter_mut().filter(|input| *input == value).for_each(|i| i.clone_from(&back));
                }
            }
        }
    }

    fn weights(&mut self, at: usize, axis: usize) -> Result<()> {
        let old = &self.graph.nodes()[at];
        let (input, weights) = (old.input[0].clone(), old.input[1].clone());
        let bias = bias(self.graph, at);
        let read = |name: &str| self.graph.constant(name).map(Tensor::<f32>::read).transpose();
        let Some(w) = read(&weights)? else { return Ok(()) };
        let b = bias.as_ref().map(|(_, _, name)| read(name)).transpose()?.flatten();
        if let Some(x) = w.data.iter().chain(b.iter().flat_map(|b| &b.data)).find(|x| !x.is_finite()) {
            return Err(Error::new(format!("the weights of node '{}' hold {x}", old.label()))
                .hint("the float model is damaged: export it again"));
        }
        let (_, scale) = self.of(&input);
        let quantized = quantize(&w, axis, self.integers.levels, b.as_ref().map(|b| &b.data[..]), scale);
        let name = self.dequantized(at, &weights, axis, &quantized.codes, &quantized.scales, 0i8);
        self.edit(at).0.input[1] = name;
        if let (Some((reader, i, name)), Some(b)) = (bias, b) {
            let (codes, scales) = bias_codes(&b.data, &quantized.scales, scale);
            let name = self.dequantized(reader, &name, 0, &Tensor::vector(codes), &scales, 0i32);
            self.edit(reader).0.input[i] = name;
        } else if let Some(reader) = sum(self.graph, &self.ranks, at) {
            // The same number by number, but no part of that pattern.
            self.edit(reader).0.op_type = Some("Sum".into());
        }
        Ok(())
    }

    /// Puts constants and what makes floats of them in front of a node, and gives the floats' name.
    fn dequantized<T: crate::int8::onnx::tensor::Element>(
        &mut self,
        at: usize,
        base: &str,
        axis: usize,
        codes: &Tensor<T>,
        scales: &[f32],
        zero: T,
    ) -> String {
        let graph = &mut *self.graph;
        let q = graph.add(&format!("{base}_quantized"), |name| codes.proto(name));
        let s = graph.add(&format!("{base}_scale"), |name| Tensor::vector(scales.to_vec()).proto(name));
        let z = graph.add(&format!("{base}_zero_point"), |name| Tensor::vector(vec![zero; scales.len()]).proto(name));
        let (label, back) =
            (graph.fresh(&format!("{base}_DequantizeLinear")), graph.fresh(&format!("{base}_dequantized")));
        let dequantize = node("DequantizeLinear", label, &[&q, &s, &z], &[&back], vec![int("axis", axis as i64)]);
        graph.insert_before(at, [dequantize]);
        back
    }
}

/// What is added to the output of a node with weights: the node that reads it, at which input, and its name. For a `MatMul` that
/// is the constant of the `Add` behind it, if it is one number a column: where shapes are fixed, ONNX Runtime makes a `Gemm` of
/// both, which runs in integers only with a bias that does.
fn bias(graph: &Graph, at: usize) -> Option<(usize, usize, String)> {
    let node = &graph.nodes()[at];
    if !node.is("MatMul") {
        return Some((at, 2, node.input_at(2)?.to_owned()));
    }
    let output = node.output.first()?;
    let columns = *graph.constant(node.input_at(1)?)?.dims.last()?;
    let (reader, i) = graph.sum_behind(output)?;
    let name = &graph.nodes()[reader].input[i];
    let found = graph.constant(name)?;
    let row = matches!(found.dims[..], [n] | [1, n] if n == columns);
    (found.data_type() == DataType::Float as i32 && row).then(|| (reader, i, name.clone()))
}

/// The `Add` behind a `MatMul` that ONNX Runtime would make a `Gemm` of, and that would be one in floats: what is added is no constant
/// row. It leaves products of more than two axes alone, and where these are not known, a residual sum in front of a normalization is
/// more likely, which it fuses otherwise.
fn sum(graph: &Graph, ranks: &HashMap<String, usize>, at: usize) -> Option<usize> {
    let node = &graph.nodes()[at];
    let output = node.output.first().filter(|_| node.is("MatMul"))?;
    let (reader, _) = graph.sum_behind(output)?;
    let normalized = |value: &String| {
        graph
            .consumers(value)
            .iter()
            .any(|&at| ["LayerNormalization", "ReduceMean"].iter().any(|op| graph.nodes()[at].is(op)))
    };
    let flat = match ranks.get(output) {
        Some(&rank) => rank == 2,
        None => !graph.nodes()[reader].output.first().is_some_and(normalized),
    };
    flat.then_some(reader)
}
