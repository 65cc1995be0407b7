//! Running a graph, with [rten], for calibration and for judging accuracy.
//!
//! Its results agree with ONNX Runtime's to about 1e-5; its speed is its own and says nothing about that of ONNX Runtime.
//!
//! [rten]: https://github.com/robertknight/rten

use super::onnx::file::{external, mapped};
use super::onnx::graph::order;
use super::onnx::proto::tensor_proto::DataType;
use super::onnx::proto::{ModelProto, ValueInfoProto};
use super::onnx::shape::{self, Dim, shown};
use super::onnx::tensor::Tensor;
use crate::error::{Context, Error, Result};
use crate::guard::guarded;
use constants::Constants;
use prost::Message;
use prost::bytes::Bytes;
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView};
use stages::{Run, Stages, unique};
use std::collections::HashMap;
use std::sync::Arc;

mod complete;
pub mod constants;
mod extremes;
mod stages;

/// What the engine knows the constants beside a graph by.
const CONSTANTS: &str = "values.data";

/// What to know about the engine where it cannot do something, and nothing more is known.
pub const LIMITS: &str = "the engine is rten, which knows most of ONNX's operators but not all";

/// What to do where the engine panics.
const ODD: &str = "the engine, rten, did not expect such a graph; onnx.checker may say what is odd about it";

/// The bytes of constants in a stage.
const LARGEST: usize = 8 << 20;

/// A value that goes into a graph or comes out of it. The engine knows no other types: 64-bit integers and truth values come out as
/// 32-bit integers, and half and double precision as floats.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Floats.
    F32(Tensor<f32>),
    /// Whole numbers, also those that the graph declares with 64 bits, and truth values.
    I32(Tensor<i32>),
    /// Signed bytes.
    I8(Tensor<i8>),
    /// Bytes.
    U8(Tensor<u8>),
}

impl Value {
    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::F32(tensor) => &tensor.dims,
            Self::I32(tensor) => &tensor.dims,
            Self::I8(tensor) => &tensor.dims,
            Self::U8(tensor) => &tensor.dims,
        }
    }

    /// The floats, if it is of that type.
    pub fn floats(&self) -> Option<&Tensor<f32>> {
        if let Self::F32(tensor) = self { Some(tensor) } else { None }
    }

    /// Whole numbers of 64 bits, which have to fit into 32.
    ///
    /// # Errors
    /// One does not fit.
    pub fn integers(dims: Vec<usize>, data: &[i64]) -> Result<Self> {
        let narrow = |&n: &i64| i32::try_from(n).map_err(|_| Error::new(format!("{n} does not fit into 32 bits")));
        Ok(Self::I32(Tensor::new(dims, data.iter().map(narrow).collect::<Result<_>>()?)))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) => "floats",
            Self::I32(_) => "integers",
            Self::I8(_) => "signed bytes",
            Self::U8(_) => "bytes",
        }
    }
}

/// An input that has to be given.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its element type; none if the graph does not tell.
    pub kind: Option<DataType>,
    /// Its shape; none if the graph does not tell.
    pub dims: Option<Vec<Dim>>,
}

impl Input {
    /// What a graph says about one of its inputs.
    pub fn of(info: &ValueInfoProto) -> Self {
        let (kind, dims) = shape::of(info);
        Self { name: info.name().into(), kind, dims }
    }

    /// Refuses a value that cannot go into this input.
    fn check(&self, value: &Value) -> Result<()> {
        let name = &self.name;
        let wanted = match self.kind {
            Some(DataType::Float | DataType::Float16 | DataType::Double) => Some("floats"),
            Some(DataType::Int32 | DataType::Int64 | DataType::Bool) => Some("integers"),
            Some(DataType::Int8) => Some("signed bytes"),
            Some(DataType::Uint8) => Some("bytes"),
            _ => None,
        };
        if let Some(wanted) = wanted
            && wanted != value.kind()
        {
            return Err(Error::new(format!("input '{name}' takes {wanted}, not {}", value.kind())));
        }
        let Some(dims) = &self.dims else { return Ok(()) };
        let fits = |(dim, &given): (&Dim, &usize)| dim.fixed().is_none_or(|n| n == given);
        if dims.len() != value.dims().len() || !dims.iter().zip(value.dims()).all(fits) {
            let (wanted, given) = (shown(dims), value.dims());
            return Err(Error::new(format!("input '{name}' has shape {wanted}, but was given {given:?}")));
        }
        Ok(())
    }
}

/// A graph that is ready to run.
pub struct Engine {
    model: Model,
    /// What the model reads; fields go in their order, so this goes after it.
    constants: Bytes,
    /// None where operators are fused, and values between them are not there.
    stages: Option<Stages>,
    inputs: Vec<Input>,
    outputs: Vec<String>,
    threads: Arc<ThreadPool>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("inputs", &self.inputs).field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl Engine {
    /// Prepares a graph to give its outputs as fast as can be.
    ///
    /// # Errors
    /// The graph uses what the engine does not know.
    pub fn new(model: &ModelProto) -> Result<Self> {
        Self::prepare(model, true, &[])
    }

    /// Prepares a graph to give any of its values: no two operators are fused.
    ///
    /// # Errors
    /// The graph uses what the engine does not know.
    pub fn with_intermediates(model: &ModelProto) -> Result<Self> {
        Self::prepare(model, false, &[])
    }

    /// The same with the [`extremes`](Self::extremes) of some of them.
    ///
    /// # Errors
    /// The graph uses what the engine does not know.
    pub fn with_extremes(model: &ModelProto, values: &[&str]) -> Result<Self> {
        Self::prepare(model, false, values)
    }

    fn prepare(model: &ModelProto, fuse: bool, values: &[&str]) -> Result<Self> {
        let graph = model.graph.as_ref().ok_or_else(|| Error::new("the model holds no graph"))?;
        let given = |input: &&ValueInfoProto| graph.initializer.iter().all(|tensor| tensor.name() != input.name());
        let inputs = graph.input.iter().filter(given).map(Input::of).collect();
        let outputs = graph.output.iter().map(|output| output.name().to_owned()).collect();
        let mut model = complete::with_kernel_shapes(model).into_owned();
        complete::known(&mut model)?;
        let mut stages = None;
        if let Some(graph) = model.graph.as_mut().filter(|_| !fuse) {
            order::sort(graph, false)?;
            extremes::add(graph, values);
            // What a graph says of values on the way need not be true; where these are given to the next stage it would be checked.
            graph.value_info.clear();
            stages = Some(Stages::of(graph, LARGEST));
        }
        // The engine reads constants where they lie beside the graph, but copies those inside it.
        let mut constants = Constants::create()?;
        external::move_out(&mut model, CONSTANTS, &mut constants)?;
        let constants = constants.map()?;
        // SAFETY: nothing but the model reads the constants; where it is dropped, they are dropped after it. Bytes do not move.
        let lent: &'static [u8] = unsafe { &*std::ptr::from_ref::<[u8]>(&constants) };
        let graph = model.encode_to_vec();
        let mut options = ModelOptions::with_all_ops();
        let loaded =
            guarded(ODD, || options.enable_optimization(fuse).external_data_static(CONSTANTS, lent).load(graph));
        let model = loaded.map_err(|cause| cannot("load", cause))?;
        let threads = Arc::new(ThreadPool::with_num_threads(rayon::current_num_threads()));
        Ok(Self { model, constants, stages, inputs, outputs, threads })
    }

    /// What has to be given.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The names of the outputs.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Runs the graph and gives all outputs.
    ///
    /// # Errors
    /// An input is missing, unknown, or does not fit, or an operator failed.
    pub fn run(&self, inputs: &[(&str, Value)]) -> Result<Vec<Value>> {
        let names: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        self.run_for(inputs, &names)
    }

    /// Runs the graph as far as `wanted` needs it, and gives those values.
    ///
    /// # Errors
    /// An input is missing, unknown, or does not fit; a wanted value does not exist; or an operator failed.
    pub fn run_for<'a>(&'a self, inputs: &[(&'a str, Value)], wanted: &[&'a str]) -> Result<Vec<Value>> {
        self.check(inputs)?;
        wanted.iter().try_for_each(|name| self.id(name).map(drop))?;
        let given = inputs.iter().map(|(name, value)| Ok((*name, into_rten(value.clone())?)));
        let mut there: HashMap<&str, rten::Value> = given.collect::<Result<_>>()?;
        for run in self.runs(inputs, wanted) {
            self.advance(&run, &mut there)?;
        }
        let found = there.into_iter().map(|(name, value)| Ok((name, from_rten(value)?)));
        let mut found: HashMap<&str, Value> = found.collect::<Result<_>>()?;
        // A value may be asked for twice, but is computed once.
        let give = |(at, name): (usize, &&'a str)| match wanted[at + 1..].contains(name) {
            true => found.get(name).cloned(),
            false => found.remove(name),
        };
        let given: Option<Vec<Value>> = wanted.iter().enumerate().map(give).collect();
        given.ok_or_else(|| Error::new("the engine gave fewer values than it was asked for"))
    }

    /// What to run, one after the other.
    fn runs<'a>(&'a self, inputs: &[(&'a str, Value)], wanted: &[&'a str]) -> Vec<Run<'a>> {
        let given = inputs.iter().map(|(name, _)| *name);
        match &self.stages {
            Some(stages) => stages.runs(given, wanted),
            None => {
                vec![Run { inputs: given.map(|name| (name, true)).collect(), outputs: unique(wanted.iter().copied()) }]
            }
        }
    }

    /// Runs a part of the graph: takes what it needs from the values that are there, and adds what it computes.
    fn advance<'a>(&self, run: &Run<'a>, there: &mut HashMap<&'a str, rten::Value>) -> Result<()> {
        let outputs = run.outputs.iter().map(|name| self.id(name)).collect::<Result<Vec<_>>>()?;
        // The engine may work in place on what it is given, and frees it as soon as it can.
        let mut taken = Vec::with_capacity(run.inputs.len());
        for (name, _) in run.inputs.iter().filter(|(_, last)| *last) {
            taken.extend(there.remove(name).map(|value| (*name, ValueOrView::from(value))));
        }
        let lent =
            run.inputs.iter().filter_map(|(name, _)| Some((*name, ValueOrView::from(there.get(name)?.as_view()))));
        let inputs = taken.into_iter().chain(lent).map(|(name, value)| Ok((self.id(name)?, value)));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let options = RunOptions::default().with_thread_pool(Some(self.threads.clone()));
        let found = guarded(ODD, || self.model.run(inputs, &outputs, Some(options)));
        let found = found.map_err(|cause| cannot("run", cause))?;
        there.extend(run.outputs.iter().copied().zip(found));
        if self.stages.as_ref().is_some_and(|stages| stages.count() > 1) {
            mapped::release(&self.constants);
        }
        Ok(())
    }

    /// The least and the largest number of each of some values, `[2]` each, without keeping the values themselves. None if the engine was
    /// not prepared for them or cannot compute one, or if a value is no number: asked for the values, it tells why.
    pub fn extremes(&self, inputs: &[(&str, Value)], values: &[&str]) -> Option<Vec<Value>> {
        let names: Vec<String> = values.iter().flat_map(|value| extremes::names(value)).collect();
        let known = names.iter().all(|name| self.model.find_node(name).is_some());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = known.then(|| self.run_for(inputs, &names).ok()).flatten()?;
        let number = |value: &Value| value.floats()?.data.first().copied().filter(|x| x.is_finite());
        let numbers = found.iter().map(number).collect::<Option<Vec<f32>>>()?;
        Some(numbers.chunks(2).map(|both| Value::F32(Tensor::vector(both.to_vec()))).collect())
    }

    fn check(&self, given: &[(&str, Value)]) -> Result<()> {
        let names = || self.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some((name, _)) = given.iter().find(|(name, _)| self.inputs.iter().all(|input| input.name != *name)) {
            return Err(Error::new(format!("the graph has no input '{name}'; its inputs are {}", names())));
        }
        for input in &self.inputs {
            match given.iter().find(|(name, _)| *name == input.name) {
                Some((_, value)) => input.check(value)?,
                None => {
                    let name = &input.name;
                    return Err(Error::new(format!("input '{name}' is missing; the graph's inputs are {}", names())));
                }
            }
        }
        Ok(())
    }

    fn id(&self, name: &str) -> Result<NodeId> {
        self.model.find_node(name).ok_or_else(|| Error::new(format!("the graph has no value '{name}'")))
    }
}

fn cannot(what: &str, cause: Error) -> Error {
    let hint = cause.hint_text().unwrap_or(LIMITS).to_owned();
    Error::new(format!("the built-in engine cannot {what} this graph")).because(cause).hint(hint)
}

fn into_rten(value: Value) -> Result<rten::Value> {
    fn convert<T>(tensor: Tensor<T>) -> Result<rten::Value>
    where
        rten::Value: From<rten_tensor::Tensor<T>>,
    {
        let Tensor { dims, data } = tensor;
        rten::Value::from_shape(dims, data).context(|| "a value does not fit its shape".into())
    }
    match value {
        Value::F32(tensor) => convert(tensor),
        Value::I32(tensor) => convert(tensor),
        Value::I8(tensor) => convert(tensor),
        Value::U8(tensor) => convert(tensor),
    }
}

fn from_rten(value: rten::Value) -> Result<Value> {
    use rten_tensor::Layout;
    fn convert<T: super::onnx::tensor::Element>(tensor: rten_tensor::Tensor<T>) -> Tensor<T> {
        Tensor::new(tensor.shape().to_vec(), tensor.into_data())
    }
    match value {
        rten::Value::FloatTensor(tensor) => Ok(Value::F32(convert(tensor))),
        rten::Value::Int32Tensor(tensor) => Ok(Value::I32(convert(tensor))),
        rten::Value::Int8Tensor(tensor) => Ok(Value::I8(convert(tensor))),
        rten::Value::UInt8Tensor(tensor) => Ok(Value::U8(convert(tensor))),
        _ => Err(Error::new("a value of the graph is a sequence, not a tensor")),
    }
}

#[cfg(test)]
mod tests;
