//! The dynamic recipe: weights in INT8, activations quantized while the model runs.
//!
//! A product with a constant matrix becomes
//!
//! ```text
//! x -- DynamicQuantizeLinear -- MatMulInteger -- Cast -- Mul -- (Add bias)
//!               \ scale ------- Mul(weight's scales) ---/
//! ```
//!
//! in the form that ONNX Runtime fuses into one kernel; several products that read the same x share its quantized form. An embedding
//! becomes `Cast(Gather(codes)) * Gather(scales)`: a dequantized *table* would be computed as a whole on every run. Convolutions stay
//! float: `ConvInteger` is many times slower than a float convolution. Recurrent layers have a recipe of their own.

mod recurrent;
mod report;

use super::onnx::Graph;
use super::onnx::node::{int, node};
use super::onnx::proto::tensor_proto::DataType;
use super::onnx::proto::{ModelProto, NodeProto};
use super::onnx::tensor::{self, Tensor, type_of};
use super::operators::{FLOATS, Kind, check_is_float, count};
use super::prepare::{Prepared, gemm::is_plain, prepare};
use super::weights::{self, Channels, Levels};
use crate::error::{Error, Result};
use crate::interrupt;
use recurrent::use_microsoft;
use regex::Regex;
use std::collections::HashMap;

pub use report::{Done, Left, Report};

/// `DynamicQuantizeLinear` came with this opset.
pub const OPSET: i64 = 11;

/// A table of fewer numbers than this stays float: three more nodes would cost more than it saves.
const SMALLEST_TABLE: usize = 1 << 12;

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How large codes may get in products. Embeddings always use all 8 bits: nothing is added up there.
    pub levels: Levels,
    /// Nodes of these names stay float.
    pub exclude: &'a [Regex],
}

/// Quantizes a model, which should have at least [`OPSET`], and the graphs inside its nodes.
///
/// # Errors
/// The graph is quantized already or cannot run, a weight is damaged, nothing can be quantized, or Ctrl-C.
pub fn quantize(model: &mut ModelProto, options: &Options) -> Result<(Report, Prepared)> {
    check_is_float(model)?;
    let prepared = prepare(model)?;
    let report = Recipe::run(model, options, &|_, _, _| true)?;
    if report.done.is_empty() {
        return Err(report.nothing_done());
    }
    Ok((report, prepared))
}

/// Quantizes what has no static recipe, but for the nodes that `excluded` names: embeddings, recurrent layers, and all that is inside
/// other nodes, whose values calibration does not see.
///
/// # Errors
/// The graph cannot run, a weight is damaged, or Ctrl-C.
pub fn quantize_rest(model: &mut ModelProto, levels: Levels, excluded: &dyn Fn(&str) -> bool) -> Result<Report> {
    let options = Options { levels, exclude: &[] };
    Recipe::run(model, &options, &|node, kind, inside| {
        (inside || matches!(kind, Kind::Embedding | Kind::Recurrent)) && !excluded(node.label())
    })
}

/// Quantizes products alone, in a float graph of any exporter.
///
/// # Errors
/// As for [`quantize`].
pub fn quantize_products(model: &mut ModelProto, levels: Levels) -> Result<Report> {
    check_is_float(model)?;
    prepare(model)?;
    let report = Recipe::run(model, &Options { levels, exclude: &[] }, &|_, kind, _| kind == Kind::MatMul)?;
    if report.done.is_empty() {
        return Err(report.nothing_done());
    }
    Ok(report)
}

/// Quantizes embeddings alone.
///
/// # Errors
/// As for [`quantize_rest`].
pub fn quantize_embeddings(model: &mut ModelProto) -> Result<Report> {
    let options = Options { levels: Levels::Full, exclude: &[] };
    Recipe::run(model, &options, &|_, kind, _| kind == Kind::Embedding)
}

/// A weight in the graph that is being made.
#[derive(Debug, Clone)]
struct Weight {
    codes: String,
    scales: String,
}

/// An activation in the graph that is being made.
#[derive(Debug, Clone)]
struct Activation {
    codes: String,
    scale: String,
    zero: String,
}

/// What a weight is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    /// The right side of a product, `[inputs, outputs]`.
    Product,
    /// The same, but stored as `[outputs, inputs]`.
    Turned,
    /// A table of rows.
    Table,
}

/// Which nodes of what kind are quantized; the last says whether a node is inside another one.
type Chosen<'a> = &'a dyn Fn(&NodeProto, Kind, bool) -> bool;

struct Recipe<'a> {
    graph: Graph,
    options: &'a Options<'a>,
    chosen: Chosen<'a>,
    report: Report,
    /// By the name of the float weight and what it is for. Shared weights stay shared.
    weights: HashMap<(String, Use), Weight>,
    /// By the name of the float activation.
    activations: HashMap<String, Activation>,
    /// How deep the graph is inside others.
    depth: usize,
}

impl<'a> Recipe<'a> {
    fn run(model: &mut ModelProto, options: &'a Options<'a>, chosen: Chosen<'a>) -> Result<Report> {
        let (weights, activations) = Default::default();
        let (graph, report) = (Graph::take(model)?, Report::default());
        let mut recipe = Recipe { graph, options, chosen, report, weights, activations, depth: 0 };
        recipe.all()?;
        let Recipe { graph, report, .. } = recipe;
        graph.finish(model)?;
        if report.done.iter().any(|done| done.op == "LSTM") {
            use_microsoft(model);
        }
        Ok(report)
    }

    fn all(&mut self) -> Result<()> {
        for at in 0..self.graph.nodes().len() {
            interrupt::check()?;
            let runs_graphs = self.graph.nodes()[at].subgraphs().next().is_some();
            if runs_graphs { self.inside(at)? } else { self.visit(at)? }
        }
        Ok(())
    }

    /// The graphs that a node runs.
    fn inside(&mut self, at: usize) -> Result<()> {
        let mut node = self.graph.nodes()[at].clone();
        count(&mut self.report.others, &node);
        self.depth += 1;
        for graph in node.subgraphs_mut() {
            let inside = self.graph.inside(std::mem::take(graph))?;
            let around = std::mem::replace(&mut self.graph, inside);
            // Two branches may give two weights one name; equal ones are stored once all the same.
            let kept = (std::mem::take(&mut self.weights), std::mem::take(&mut self.activations));
            self.all()?;
            (self.weights, self.activations) = kept;
            let inside = std::mem::replace(&mut self.graph, around);
            *graph = self.graph.finish_inside(inside)?;
        }
        self.depth -= 1;
        self.graph.replace(at, vec![node]);
        Ok(())
    }

    fn visit(&mut self, at: usize) -> Result<()> {
        let node = self.graph.nodes()[at].clone();
        let Some(kind) = Kind::of(&node, &self.graph) else {
            count(&mut self.report.others, &node);
            return Ok(());
        };
        if !(self.chosen)(&node, kind, self.depth > 0) {
            return Ok(());
        }
        let done = match kind {
            _ if node.output.first().is_none_or(String::is_empty) && kind != Kind::Recurrent => Err("it has no output"),
            _ if self.options.exclude.iter().any(|name| name.is_match(node.label())) => Err("it was excluded"),
            Kind::MatMul => self.product(at, &node)?,
            Kind::Embedding => self.embedding(at, &node)?,
            Kind::Conv if self.depth > 0 => {
                Err("it is inside an If, a Loop or a Scan, which calibration does not see into")
            }
            Kind::Conv => {
                Err("ConvInteger is slower than a float convolution; quantize it statically: llmq int8 static")
            }
            Kind::Recurrent => self.recurrent(at, &node)?,
        };
        match done {
            Ok(name) => self.report.done.push(Done::new(&node, kind, name, &self.graph)),
            Err(reason) => self.report.leave(&node, reason),
        }
        Ok(())
    }

    /// A product with a constant matrix. Gives the name of the matrix, or why it stays as it is.
    fn product(&mut self, at: usize, node: &NodeProto) -> Result<Result<String, &'static str>> {
        let (Some(x), Some(matrix)) = (node.input_at(0), node.input_at(1)) else {
            return Ok(Err("an input is missing"));
        };
        if self.graph.constant(x).is_some() {
            return Ok(Err("its left side is constant"));
        }
        let gemm = node.is("Gemm");
        let source = matrix.to_owned();
        if let Err(reason) = self.check(&source) {
            return Ok(Err(reason));
        }
        if gemm && !is_plain(&self.graph, node) {
            return Ok(Err("it is scaled or transposed"));
        }
        let bias = node.input_at(2).filter(|_| gemm);
        let transposed = gemm && node.int_or("transB", 0) != 0;
        let weight = self.weight(&source, if transposed { Use::Turned } else { Use::Product })?;
        let x = self.activation(at, x);
        let label = node.label().to_owned();
        let mut name = |what: &str| self.graph.fresh(&format!("{label}_{what}"));
        let [sums, floats, factors, product] = ["sums", "float", "scales", "scaled"].map(&mut name);
        let names = ["MatMulInteger", "Cast", "Scales", "Scale"].map(&mut name);
        let output = &node.output[0];
        let result = if bias.is_some() { &product } else { output };
        let mut nodes = vec![
            self::node("MatMulInteger", &names[0], &[&x.codes, &weight.codes, &x.zero], &[&sums], vec![]),
            self::node("Cast", &names[1], &[&sums], &[&floats], vec![int("to", DataType::Float as i64)]),
            self::node("Mul", &names[2], &[&x.scale, &weight.scales], &[&factors], vec![]),
            self::node("Mul", &names[3], &[&floats, &factors], &[result], vec![]),
        ];
        if let Some(bias) = bias {
            let name = self.graph.fresh(&format!("{label}_Bias"));
            nodes.push(self::node("Add", name, &[&product, bias], &[output], vec![]));
        }
        self.graph.replace(at, nodes);
        Ok(Ok(source))
    }

    /// A row of a constant table for each index.
    fn embedding(&mut self, at: usize, node: &NodeProto) -> Result<Result<String, &'static str>> {
        let (Some(table), Some(ids)) = (node.input_at(0), node.input_at(1)) else {
            return Ok(Err("an input is missing"));
        };
        if let Err(reason) = self.check(table) {
            return Ok(Err(reason));
        }
        if !matches!(node.int_or("axis", 0), 0 | -2) {
            return Ok(Err("it does not pick rows"));
        }
        let small = |table: &_| tensor::shape(table).is_ok_and(|(_, elements)| elements < SMALLEST_TABLE);
        if self.graph.constant(table).is_some_and(small) {
            return Ok(Err("its table is small"));
        }
        let table = table.to_owned();
        let weight = self.weight(&table, Use::Table)?;
        let label = node.label().to_owned();
        let mut name = |what: &str| self.graph.fresh(&format!("{label}_{what}"));
        let [codes, floats, factors] = ["codes", "float", "scales"].map(&mut name);
        let names = ["Codes", "Cast", "Scales", "Scale"].map(&mut name);
        self.graph.replace(
            at,
            vec![
                self::node("Gather", &names[0], &[&weight.codes, ids], &[&codes], vec![int("axis", 0)]),
                self::node("Cast", &names[1], &[&codes], &[&floats], vec![int("to", DataType::Float as i64)]),
                self::node("Gather", &names[2], &[&weight.scales, ids], &[&factors], vec![int("axis", 0)]),
                self::node("Mul", &names[3], &[&floats, &factors], &[&node.output[0]], vec![]),
            ],
        );
        Ok(Ok(table))
    }

    /// Why a value cannot be quantized as a weight, if it cannot.
    fn check(&self, weight: &str) -> Result<(), &'static str> {
        let Some(tensor) = self.graph.constant(weight) else {
            return Err(match self.graph.kind(weight) {
                _ if self.graph.is_input(weight) => "its weight is an input of the graph, which a caller may replace",
                Some(kind) if !FLOATS.contains(&kind) => "it computes with integers",
                _ => "both sides are activations",
            });
        };
        match type_of(tensor) {
            Some(DataType::Float) if tensor.dims.len() == 2 => Ok(()),
            Some(DataType::Float) => Err("its weight is no matrix"),
            Some(DataType::Float16 | DataType::Bfloat16) => {
                Err("its weight is in half precision; export the model in FLOAT")
            }
            _ => Err("its weight is not of type FLOAT"),
        }
    }

    /// Quantizes a weight, unless it was before.
    fn weight(&mut self, name: &str, usage: Use) -> Result<Weight> {
        if let Some(weight) = self.weights.get(&(name.into(), usage)) {
            return Ok(weight.clone());
        }
        let tensor = self.graph.constant(name).ok_or_else(|| Error::new(format!("'{name}' is no constant")))?;
        let (channels, levels) = match usage {
            Use::Product => (Channels::Columns, self.options.levels),
            Use::Turned => (Channels::Rows, self.options.levels),
            Use::Table => (Channels::Rows, Levels::Full),
        };
        let quantized = weights::quantize(name, tensor, channels, levels)?;
        let quantized = if usage == Use::Turned { quantized.transposed() } else { quantized };
        let scales = match usage {
            Use::Table => Tensor::new([quantized.scales.len(), 1], quantized.scales),
            _ => Tensor::vector(quantized.scales),
        };
        let weight = Weight {
            codes: self.graph.add(&format!("{name}_int8"), |name| quantized.codes.proto(name)),
            scales: self.graph.add(&format!("{name}_scales"), |name| scales.proto(name)),
        };
        self.weights.insert((name.into(), usage), weight.clone());
        Ok(weight)
    }

    /// The quantized form of an activation, made in front of the first node that reads it.
    fn activation(&mut self, at: usize, name: &str) -> Activation {
        if let Some(activation) = self.activations.get(name) {
            return activation.clone();
        }
        let mut fresh = |what: &str| self.graph.fresh(&format!("{name}_{what}"));
        let activation = Activation { codes: fresh("codes"), scale: fresh("scale"), zero: fresh("zero_point") };
        let label = fresh("DynamicQuantizeLinear");
        let outputs = [activation.codes.as_str(), &activation.scale, &activation.zero];
        self.graph.insert_before(at, [node("DynamicQuantizeLinear", label, &[name], &outputs, vec![])]);
        self.activations.insert(name.into(), activation.clone());
        activation
    }
}
