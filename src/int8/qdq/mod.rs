//! Static quantization of an ONNX graph: every activation that an integer kernel reads has one scale, found by calibration,
//! and QuantizeLinear and DequantizeLinear say so in the file (the QDQ form). An engine with integer kernels replaces what
//! stands between such a pair; one without computes the same in floats.
//!
//! ```text
//! prepare -> plan (which nodes) -> observe (ranges) -> rewrite (the pairs, weights, biases)
//! ```

pub mod exclude;
pub mod observe;
pub mod plan;
pub mod rewrite;
pub mod weights;

use super::dynamic::{self, Done};
use super::engine::{Engine, LIMITS};
use super::onnx::proto::ModelProto;
use super::onnx::{Graph, OnnxFile};
use super::operators::check_is_float;
use super::prepare::{self, Prepared, batch_norm, prepare_static};
use super::ranges::Range;
use super::samples::{Sample, Samples};
use crate::error::{Context, Error, Result};
use crate::interrupt;
use observe::{Calibrators, Observation, Seen};
use plan::{Plan, Role};
use rewrite::{Integers, rewrite};
use std::collections::HashMap;
use std::path::PathBuf;

/// A static quantization that is to become better.
#[derive(Clone, Copy)]
pub struct CalibratedGraph<'a> {
    /// The float model.
    pub float: &'a Float,
    /// The calibration samples.
    pub samples: &'a Samples,
    /// What calibration has found.
    pub ranges: &'a HashMap<String, Range>,
    /// How.
    pub calibrators: &'a Calibrators,
    /// The integers to run in.
    pub integers: Integers,
    /// The nodes that stay float.
    pub excluded: &'a dyn Fn(&str) -> bool,
}

/// A graph that is ready to be calibrated.
#[derive(Debug)]
pub struct Float {
    path: PathBuf,
    model: ModelProto,
    /// What exporters had written in another way.
    pub prepared: Prepared,
    /// How many normalizations were folded into convolutions.
    pub folded: usize,
    /// What could run in integers, nothing being excluded.
    pub plan: Plan,
    /// Those of its nodes that have weights.
    pub layers: Vec<Layer>,
}

/// A node with weights that can run in integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// How messages call it.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// How many weights it has.
    pub weights: usize,
}

/// A quantized graph.
#[derive(Debug)]
pub struct Quantized {
    /// The model.
    pub model: ModelProto,
    /// What runs in integers, and what does not.
    pub plan: Plan,
    /// What has no static recipe and is quantized as dynamic quantization does: embeddings, recurrent layers, what is inside other nodes.
    pub dynamic: Vec<Done>,
}

impl Float {
    /// Prepares a model.
    ///
    /// # Errors
    /// Its opset is too old, it is quantized already, damaged, or has nothing to quantize.
    pub fn new(file: &OnnxFile) -> Result<Float> {
        file.need_opset(prepare::OLDEST, "static quantization")?;
        let path = file.path.display();
        let mut model = file.model.clone();
        check_is_float(&model).context(|| format!("cannot quantize {path}"))?;
        let prepared = prepare_static(&mut model).context(|| format!("cannot quantize {path}"))?;
        let folded = batch_norm::fold(&mut model)?;
        let (plan, layers) = with_graph(&mut model, |graph| {
            let plan = Plan::of(graph, &|_| false);
            let layers = layers(graph, &plan);
            weights::check_finite(graph, &plan)?;
            Ok((plan, layers))
        })
        .context(|| format!("cannot quantize {path}"))?;
        if layers.is_empty() {
            let mut why: Vec<String> =
                plan.left.iter().take(5).map(|left| format!("'{}' ({}): {}", left.node, left.op, left.why)).collect();
            if why.is_empty() {
                why.push("it has no Conv, Gemm or MatMul".into());
            }
            return Err(Error::new(format!("nothing in {path} can run in integers: {}", why.join("; ")))
                .hint("llmq int8 dynamic also takes embeddings, recurrent layers, and products inside an If, a Loop or a Scan"));
        }
        Ok(Float { path: file.path.clone(), model, prepared, folded, plan, layers })
    }

    /// The float model, normalizations folded.
    pub fn model(&self) -> &ModelProto {
        &self.model
    }

    /// An engine that gives every value of it.
    ///
    /// # Errors
    /// It uses what the engine does not know.
    pub fn engine(&self) -> Result<Engine> {
        let values: Vec<&str> = self.plan.observed().collect();
        Engine::with_extremes(&self.model, &values).map_err(|cause| {
            let hint = match cause.hint_text() {
                Some(hint) if hint != LIMITS => hint.to_owned(),
                _ => format!("calibration runs the graph; {LIMITS}; llmq int8 dynamic does not run it"),
            };
            Error::new(format!("cannot calibrate {}", self.path.display())).because(cause).hint(hint)
        })
    }

    /// Finds the range of each value that may be quantized. `done` is told after each sample how many there have been.
    ///
    /// # Errors
    /// A sample cannot be read, the graph cannot be run on it, or a value is not finite.
    pub fn calibrate(
        &self,
        engine: &Engine,
        samples: &Samples,
        by: &Calibrators,
        done: &mut dyn FnMut(usize),
    ) -> Result<Seen> {
        let mut observation = Observation::new(engine, samples, self.plan.observed().collect(), by.counts());
        for (at, sample) in samples.iter().enumerate() {
            interrupt::check()?;
            self.observe(&mut observation, &sample?)?;
            done(at + 1);
        }
        let mut seen = observation.seen(by);
        self.share(&mut seen.ranges);
        Ok(seen)
    }

    /// Runs the graph on a sample, and takes in what its values are.
    ///
    /// # Errors
    /// It cannot be run, or a value is not finite.
    pub fn observe(&self, observation: &mut Observation<'_>, sample: &Sample) -> Result<()> {
        observation.add(sample).context(|| format!("cannot calibrate {}", self.path.display()))
    }

    /// A value that has another's scale when all is quantized may need its own when some is not: it has the same range.
    pub fn share(&self, ranges: &mut HashMap<String, Range>) {
        for (value, root) in &self.plan.shares {
            if let Some(&range) = ranges.get(root) {
                ranges.insert(value.clone(), range);
            }
        }
    }

    /// What has a static recipe in integers, but for the nodes that `excluded` names; all else as it is.
    ///
    /// # Errors
    /// A range is missing, or a tensor is damaged.
    pub fn in_integers(
        &self,
        mut model: ModelProto,
        ranges: &HashMap<String, Range>,
        integers: Integers,
        excluded: &dyn Fn(&str) -> bool,
    ) -> Result<(ModelProto, Plan)> {
        let mut graph = Graph::take(&mut model)?;
        let plan = Plan::of(&graph, &|node| excluded(node.label()));
        rewrite(&mut graph, &plan, ranges, integers)?;
        graph.finish(&mut model)?;
        Ok((model, plan))
    }

    /// Quantizes all but the nodes that `excluded` names; what has no static recipe gets the dynamic one.
    ///
    /// # Errors
    /// A range is missing, or a tensor is damaged.
    pub fn quantized(
        &self,
        ranges: &HashMap<String, Range>,
        integers: Integers,
        excluded: &dyn Fn(&str) -> bool,
    ) -> Result<Quantized> {
        self.quantized_from(self.model.clone(), ranges, integers, excluded)
    }

    /// The same with another model, whose constants have other values and which is the same otherwise.
    ///
    /// # Errors
    /// A range is missing, or a tensor is damaged.
    pub fn quantized_from(
        &self,
        model: ModelProto,
        ranges: &HashMap<String, Range>,
        integers: Integers,
        excluded: &dyn Fn(&str) -> bool,
    ) -> Result<Quantized> {
        let (mut model, mut plan) = self.in_integers(model, ranges, integers, excluded)?;
        let rest = dynamic::quantize_rest(&mut model, integers.levels, excluded)?;
        plan.left.retain(|left| rest.done.iter().all(|done| done.node != left.node));
        Ok(Quantized { model, plan, dynamic: rest.done })
    }
}

/// Reads a model's graph and puts it back as it was.
fn with_graph<T>(model: &mut ModelProto, read: impl FnOnce(&Graph) -> Result<T>) -> Result<T> {
    let graph = Graph::take(model)?;
    let found = read(&graph);
    graph.finish(model)?;
    found
}

fn layers(graph: &Graph, plan: &Plan) -> Vec<Layer> {
    let weighted = plan.roles.iter().filter(|(_, role)| role.weighted());
    let layer = |(&at, _): (&usize, &Role)| {
        let node = &graph.nodes()[at];
        let tensor = node.input_at(1).and_then(|name| graph.constant(name));
        let weights = tensor.map_or(0, |tensor| tensor.dims.iter().map(|&n| n.max(0) as usize).product());
        Layer { name: node.label().to_owned(), op: node.op_type().to_owned(), weights }
    };
    weighted.map(layer).collect()
}
