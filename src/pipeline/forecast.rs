//! What a run will cost, from headers alone: here the memory, in [`time`] the hours, in [`sizes`] the bytes of the file.
//!
//! Memory is written as it is used: [`Peak`] is a sum of named parts, one function for each moment of a run at which a lot
//! is held at once. Whoever changes what the pipeline holds changes the term of that name here.

pub mod advice;
pub mod device_memory;
pub mod fit;
pub mod memory_advice;
pub mod shape;
pub mod sizes;
pub mod speed;
pub mod time;

use super::experts::MEMORY;
use super::scratch::WIDTH;
use super::stream::{PRECISION, RunNeeds};
use super::{PIECE, head, output_side};
use crate::calib::output_hessian;
use crate::method::{self, Method, Options, PART};
use crate::model::Model;
use crate::model::mixer::Cost;
use crate::pipeline::plan::Plan;
use llmq_kernels::gemm;
use shape::{BlockShape, SiteShape};

/// A run that has not been started.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What would be made.
    pub plan: &'a Plan,
    /// How weights would be rounded.
    pub method: &'static dyn Method,
    /// What the method is told.
    pub options: Options,
    /// Whether the original model would run beside the quantized one.
    pub asymmetric: bool,
    /// Windows of calibration text.
    pub samples: usize,
    /// Tokens per window.
    pub positions: usize,
    /// Threads that would work.
    pub threads: usize,
    /// The text that windows would be cut from.
    pub text: Text,
    /// As [`super::Rounding::keep`].
    pub keep: usize,
}

/// Calibration text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Text {
    /// Bytes of all documents.
    pub bytes: u64,
    /// Bytes of the longest.
    pub longest: u64,
}

/// The calibration tokens of a run, by what is done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// All of them; each goes through the quantized model.
    pub all: u64,
    /// Kept out of every Hessian.
    pub held: u64,
    /// Those that go through the original model, too.
    pub compared: u64,
    /// Those that go through the original model ahead of everything else, for a tied output matrix.
    pub ahead: u64,
    /// How many go through a layer at once.
    pub batch: u64,
}

/// One thing that takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
}

/// What is held at one moment of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peak {
    /// What is being done then.
    pub moment: String,
    /// What is held.
    pub parts: Vec<Part>,
}

impl Peak {
    /// Everything together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    fn with(mut self, name: &'static str, bytes: u64) -> Peak {
        if bytes > 0 {
            self.parts.push(Part { name, bytes });
        }
        self
    }

    fn at(mut self, moment: &str) -> Peak {
        self.moment = moment.into();
        self
    }
}

/// Bytes of a number in single precision.
const SINGLE: u64 = 4;

/// What a thread's stack, its allocator's free lists and scratch for products take.
const PER_THREAD: u64 = 3 << 20;

/// Bytes that each byte of text leaves when it has become tokens, and those that each byte of a document leaves which is being
/// tokenized; measured. The allocator keeps most of it, in pieces too small for anything else.
const PER_TEXT: u64 = 33;
const PER_DOCUMENT: u64 = 60;

impl<'a> Job<'a> {
    /// The model, if it would be run.
    pub fn model(&self) -> Option<&'a Model> {
        self.plan.model().ok().filter(|_| self.method.calibrated() && self.plan.has_grids())
    }

    /// Its tokens.
    pub fn tokens(&self) -> Tokens {
        if self.model().is_none() {
            return Tokens::default();
        }
        let wants = RunNeeds { hold: self.method.chooses() || self.asymmetric, compare: self.asymmetric };
        let of = |windows: usize| windows as u64 * self.positions as u64;
        let mut tokens = Tokens::default();
        for share in wants.shares(self.samples, self.positions) {
            let own = of(share.windows);
            tokens.all += own;
            tokens.held += if share.held { own } else { 0 };
            tokens.compared += if share.compared { own } else { 0 };
            tokens.batch = tokens.batch.max(own);
        }
        tokens.ahead = if self.calibrates_tied() { of(self.samples.div_ceil(head::SHARE)) } else { 0 };
        tokens
    }

    /// Whether the first tensor is an output matrix, too, and calibrated.
    pub fn calibrates_tied(&self) -> bool {
        self.model().is_some() && self.plan.head().iter().any(|tensor| head::calibrates_output(self.plan, tensor))
    }

    /// Whether an output matrix behind the blocks is calibrated.
    pub fn calibrates_untied(&self) -> bool {
        self.model().is_some() && self.plan.tail().iter().any(|tensor| head::calibrates_output(self.plan, tensor))
    }

    /// Bytes of a site's inner activations, which are kept from its statistics to the output of its half: in memory and in a file.
    pub fn kept(&self, block: &BlockShape, site: &SiteShape) -> (u64, u64) {
        let routed = block.experts.as_ref().is_some_and(|experts| experts.half == site.site.half);
        let tokens = self.tokens();
        match (tokens.all + tokens.compared) * site.columns as u64 * WIDTH as u64 {
            _ if !site.is_inner() || routed => (0, 0),
            bytes if bytes <= self.keep as u64 => (bytes, 0),
            bytes => (0, bytes),
        }
    }

    /// The most memory that the run would hold at once, mapped files not counted. `shapes`: the plan's blocks; `own`: what the
    /// program holds before it starts, tokenizer and header included.
    pub fn peak(&self, shapes: &[BlockShape], own: u64) -> Peak {
        let base = Peak { moment: String::new(), parts: Vec::new() }.with("program, tokenizer and header", own);
        let mut moments = vec![self.streamed(base.clone())];
        if let Some(model) = self.model() {
            let documents = self.text.longest.saturating_mul(self.threads as u64).min(self.text.bytes);
            let base = base
                .with("threads", self.threads as u64 * PER_THREAD)
                .with("what tokenizing leaves", self.text.bytes * PER_TEXT + documents * PER_DOCUMENT);
            moments.extend(self.before_blocks(model, shapes, &base));
            if self.options.outputs {
                moments.push(self.gradients(model, shapes, &base));
            }
            for block in shapes {
                for half in 0..block.costs.len() {
                    self.half(model, block, half, &base, &mut moments);
                }
            }
            if self.calibrates_untied() {
                let (base, n) = (base.at("calibrating the output matrix"), model.hidden as u64);
                moments.push(factorization(base.with("Hessian of the output matrix", n * n * SINGLE), n, 1));
            }
        }
        moments.into_iter().max_by_key(Peak::bytes).expect("there is always one")
    }

    /// The backward pass in front of everything else; see `output_side.rs`.
    fn gradients(&self, model: &Model, shapes: &[BlockShape], base: &Peak) -> Peak {
        let (windows, length) = output_side::extent(self.samples, self.positions);
        let (tokens, n) = ((windows * length) as u64, model.hidden as u64);
        // Each half's norm and sum, what its layers give, and the same again for what is added to it and for its gradient.
        let numbers = |cost: &Cost| (cost.between + cost.inner) as u64 + 4 * n;
        let per_token = |block: &BlockShape| block.costs.iter().map(numbers).sum::<u64>() * 3;
        let held = shapes.iter().map(per_token).max().unwrap_or_default() * output_side::LENGTH as u64 * SINGLE;
        let block = shapes.iter().map(BlockShape::elements).max().unwrap_or_default() * SINGLE;
        let base = base.clone().at("the gradients at the layers' outputs");
        let base = base.with("three residual streams of some windows", 3 * tokens * n * SINGLE);
        base.with("a block in single precision", block).with("a window's activations and gradients", held)
    }

    /// Bytes on the disk that this takes: while it is at work, and behind it.
    fn gradients_scratch(&self, model: &Model) -> (u64, u64) {
        let (windows, length) = output_side::extent(self.samples, self.positions);
        let fronts = model.blocks.len() * windows * length * model.hidden * WIDTH;
        let layers = self.plan.tensors.iter().filter(|tensor| super::block_step::is_grid(tensor));
        let kept: usize = layers.map(|tensor| output_hessian::numbers(tensor.spec.rows())).sum();
        (fronts as u64, kept as u64 * SINGLE)
    }

    /// A tensor that no Hessian belongs to: a piece of it, or all of one whose rows are turned.
    fn streamed(&self, base: Peak) -> Peak {
        let piece = (PIECE * self.threads) as u64;
        let one = |tensor: &super::plan::Planned| {
            let turned = tensor.spec.order != crate::model::RowOrder::AsIs || !self.plan.source.is_original();
            let elements = tensor.spec.elements() as u64;
            let held = if turned { elements } else { elements.min(piece + (PART * tensor.spec.columns()) as u64) };
            (held * 2 * SINGLE, held * 2 * tensor.kind.bits().ceil() as u64 / 8)
        };
        let of_blocks = self.model().is_none();
        let tensors = self.plan.tensors.iter().filter(|tensor| of_blocks || tensor.spec.block.is_none());
        let (numbers, bytes) = tensors.map(one).max().unwrap_or_default();
        base.at("rounding a tensor in pieces").with("numbers of a piece", numbers).with("bytes of a piece", bytes)
    }

    /// Bytes on the disk, beside the output, while the run is at work: the streams of the calibration windows, twice, and inner
    /// activations that are not kept in memory. `shapes`: the plan's blocks.
    pub fn scratch(&self, shapes: &[BlockShape]) -> u64 {
        let tokens = self.tokens();
        let hidden = self.model().map_or(0, |model| model.state_columns() as u64);
        let inner = shapes.iter().flat_map(|block| block.sites.iter().map(|site| self.kept(block, site).1));
        let streams = 2 * (tokens.all + tokens.compared) * hidden * WIDTH as u64;
        let streams = streams + inner.max().unwrap_or_default();
        match self.model().filter(|_| self.options.outputs) {
            Some(model) => {
                let (fronts, kept) = self.gradients_scratch(model);
                streams.max(fronts) + kept
            }
            None => streams,
        }
    }

    /// A tied output matrix, which comes first, and the embedding of the windows.
    fn before_blocks(&self, model: &Model, shapes: &[BlockShape], base: &Peak) -> Vec<Peak> {
        let (tokens, n) = (self.tokens(), model.hidden as u64);
        // Each token that occurs has its row kept, as the source and as the file have it.
        let rows = tokens.all.min(model.vocab as u64) * n * 2 * SINGLE;
        let embedded = "embedding rows of the windows' tokens";
        let mut moments = vec![base.clone().at("embedding the windows").with(embedded, rows)];
        if tokens.ahead > 0 {
            let block = shapes.iter().map(BlockShape::elements).max().unwrap_or_default();
            let costs = shapes.iter().flat_map(|block| &block.costs);
            let activations = costs.map(|cost| self.activations(model, cost, false)).max();
            let ahead = base.clone().at("running the original model for the output matrix");
            moments.push(
                ahead
                    .with("residual stream of some windows", tokens.ahead * n * SINGLE)
                    .with("a block in single precision", block * SINGLE)
                    .with("activations of a batch", activations.unwrap_or_default()),
            );
            let hessian = base.clone().at("calibrating the output matrix").with("Hessian", n * n * SINGLE);
            moments.push(factorization(hessian.clone(), n, 1));
            let piece = (PIECE * self.threads) as u64;
            let rounding = hessian.at("rounding the output matrix").with("solver", solver(n, 1));
            moments.push(rounding.with(embedded, rows).with("numbers and codes of a piece", piece * 12));
        }
        moments
    }

    /// The moments of a half of a block.
    fn half(&self, model: &Model, block: &BlockShape, half: usize, base: &Peak, moments: &mut Vec<Peak>) {
        let tokens = self.tokens();
        let elements: u64 = block.sites(half).map(|site| site.all_elements()).sum();
        let mut without = base.clone();
        if half > 0 {
            let done = (0..half).flat_map(|half| block.sites(half)).map(|site| site.bytes()).sum();
            without = without.with("quantized layers of earlier halves", done);
        }
        let cost = &block.costs[half];
        let mut base = without.clone().with("half a block in single precision", elements * SINGLE);
        let compared = tokens.compared > 0;
        if let Some(experts) = block.experts.as_ref().filter(|experts| experts.half == half) {
            let each: u64 = experts.sites.iter().map(|site| (site.columns * site.columns) as u64 * 2 * SINGLE).sum();
            let at_once = (MEMORY as u64 / each.max(1)).clamp(1, experts.count as u64);
            let one = experts.elements() / experts.count as u64 * SINGLE;
            let moment = base.clone().at("the experts").with("Hessians of some experts, seen and held", at_once * each);
            moments.push(moment.with("finished experts", experts.bytes).with("an expert in single precision", 4 * one));
        }
        for site in block.sites(half) {
            let n = site.columns as u64;
            let place = |what: &str| format!("{what} of {}", site.name());
            let (kept, _) = self.kept(block, site);
            // The Hessian; and how the inputs drift, or the residual stream where the layer writes to it.
            let drifting = if site.is_inner() { model.hidden as u64 } else { n };
            let drift = if compared { drifting * n } else { 0 };
            let held = if tokens.held > 0 { n * n / 2 + drift } else { 0 };
            let sums = n * n + drift + held;
            let collected = |base: &Peak| {
                let base = base.clone().with("inner activations that are kept", kept);
                base.with("Hessians and drifts, seen and held", sums * SINGLE)
            };
            let activations = self.activations(model, cost, compared);
            moments.push(collected(&base).at(&place("the statistics")).with("activations of a batch", activations));
            let weights = site.elements();
            if site.is_inner() && block.experts.is_none() {
                // The matrices before the last one are done with; of the first site the codes and the bytes stay.
                let done: u64 = block.sites(half).filter(|s| !s.is_inner()).map(|s| s.codes() + s.bytes()).sum();
                base = without.clone().with("half a block in single precision", site.all_elements() * SINGLE);
                base = base.with("quantized layers of this half", done);
            }
            let mut solving = collected(&base)
                .with("copies of the site's weights", weights * SINGLE)
                .with("freed activations that the allocator keeps", self.unreturned(cost, activations));
            moments.push(factorization(solving.clone().at(&place("factoring")), n, site.widths()));
            if compared {
                // What is off is turned into what to do about it in place, and multiplied by each layer, where it is not that of one.
                let step = if site.is_inner() { 0 } else { site.largest().elements() };
                solving = solving.with("targets of the site's layers", (weights + step) * SINGLE);
            }
            let solving = solving.with("solver", solver(n, site.widths()));
            let (all, largest) = (site.codes(), site.largest());
            let targets = if self.options.outputs { largest.elements() * SINGLE } else { 0 };
            let solving = solving.with("targets of rows behind others", targets);
            let each = method::rows_at_once(largest.rows, self.threads);
            moments.push(
                solving
                    .at(&place("rounding"))
                    .with("codes and scales", all)
                    .with("numbers they stand for", largest.elements() * 2 * SINGLE)
                    .with("scratch of all threads", (self.threads * each) as u64 * n * 5 * SINGLE),
            );
            base = base
                .with("quantized layers of this half", weights * SINGLE + site.codes() + site.bytes())
                .with("inner activations that are kept", kept);
        }
        let activations = self.activations(model, cost, compared);
        moments.push(base.at("the outputs of a half").with("activations of a batch", activations));
    }

    /// How much of a batch's activations the allocator still holds when they are gone.
    fn unreturned(&self, cost: &Cost, activations: u64) -> u64 {
        if self.tokens().batch * cost.inner as u64 * SINGLE <= MAPPED { activations } else { 0 }
    }

    /// What a batch is on its way through a half, the original's inputs beside it if `compared`.
    fn activations(&self, model: &Model, cost: &Cost, compared: bool) -> u64 {
        // Input, then what the first layers give, before and behind the rotary embedding, and the inner activations.
        let (hidden, first, inner) = (model.hidden, model.hidden + cost.between, cost.inner);
        let per_token = first + inner * (1 + usize::from(compared));
        let batch = self.tokens().batch;
        let packed = gemm::workspace(PRECISION, batch as usize, hidden.max(inner), hidden.max(inner)) as u64;
        batch * per_token as u64 * SINGLE + packed
    }
}

/// glibc gives what is larger than this back to the system at once; what is smaller leaves holes.
const MAPPED: u64 = 32 << 20;

/// A Hessian while it is factored: the factor for each `walk`, and the triangle of the matrix that becomes its Cholesky factor, in single
/// precision; where damping is next to nothing it may become double.
fn factorization(base: Peak, n: u64, walks: u64) -> Peak {
    base.with("the solver's factors", solver(n, walks)).with("factorization workspace", n * n * SINGLE / 2)
}

/// A factor for each width of blocks; of each its triangle alone is ever written.
fn solver(n: u64, walks: u64) -> u64 {
    n * n * SINGLE / 2 * walks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::mix;
    use crate::format::recipe::{Recipe, TypeRequest};
    use crate::model::Site;
    use crate::model::mixer::Place;
    use crate::pipeline::plan::Request;
    use std::path::Path;

    fn plan(kind: &str) -> Plan {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let request = Request {
            recipe: Recipe::new(mix::named(kind).unwrap(), TypeRequest::default()).unwrap(),
            pre: None,
            calibrated: true,
            mtp: true,
            imatrix: None,
            requantize: false,
            rotate: None,
            keys: Vec::new(),
            folders: None,
        };
        Plan::new(&folder, request).unwrap()
    }

    fn job<'a>(plan: &'a Plan, method: &str, asymmetric: bool) -> Job<'a> {
        let (method, text) = (method::by_name(method).unwrap(), Text { bytes: 1000, longest: 10 });
        Job {
            plan,
            method,
            options: Options::default(),
            asymmetric,
            samples: 128,
            positions: 512,
            threads: 2,
            text,
            keep: crate::pipeline::KEEP,
        }
    }

    #[test]
    fn tokens_are_held_out_compared_and_run_ahead_as_in_a_run() {
        let plan = plan("Q4_K_M");
        // Four windows a batch; 16 are held out, and of the other 28 batches every fourth is compared.
        let all = Tokens { all: 128 * 512, held: 16 * 512, compared: 44 * 512, ahead: 16 * 512, batch: 2048 };
        assert_eq!(job(&plan, "auto", true).tokens(), all);
        assert_eq!(job(&plan, "auto", false).tokens(), Tokens { compared: 0, ..all });
        assert_eq!(job(&plan, "gptq", false).tokens(), Tokens { compared: 0, held: 0, ..all });
        let few = Job { samples: 7, positions: 4096, ..job(&plan, "auto", true) };
        // One window a batch: of seven the first and the fifth.
        assert_eq!(few.tokens(), Tokens { all: 7 * 4096, held: 0, compared: 2 * 4096, ahead: 4096, batch: 4096 });
        assert_eq!(job(&plan, "rtn", false).tokens(), Tokens::default());
    }

    #[test]
    fn the_streams_are_on_the_disk_and_what_is_kept_is_part_of_the_peak() {
        let plan = plan("Q4_0");
        let shapes = BlockShape::all(&plan);
        assert_eq!(shapes.iter().map(|shape| shape.count).sum::<usize>(), 4);
        let peak = job(&plan, "auto", true).peak(&shapes, 5_000_000);
        let part = |name: &str| peak.parts.iter().find(|part| part.name == name).map(|part| part.bytes);
        assert_eq!(part("program, tokenizer and header"), Some(5_000_000));
        assert_eq!(job(&plan, "auto", true).scratch(&shapes), 2 * (128 + 44) * 512 * 256 * 2);
        assert_eq!(part("inner activations that are kept"), Some((128 + 44) * 512 * 512 * 2));
        assert_eq!(peak.bytes(), peak.parts.iter().map(|part| part.bytes).sum::<u64>());
        let many = Job { samples: 1024, ..job(&plan, "auto", true) };
        let inner = shapes[0].site(Site { half: 1, place: Place::Inner }).unwrap();
        let tokens = many.tokens();
        let bytes = (tokens.all + tokens.compared) * 512 * 2;
        assert_eq!(many.kept(&shapes[0], inner), (0, bytes), "more than memory is for");
        assert_eq!(many.scratch(&shapes), 2 * (tokens.all + tokens.compared) * 256 * 2 + bytes);
        let plain = job(&plan, "rtn", false).peak(&shapes, 0);
        assert_eq!(plain.moment, "rounding a tensor in pieces");
        assert!(plain.bytes() < peak.bytes() / 10);
        assert_eq!(job(&plan, "rtn", false).scratch(&shapes), 0);
    }
}
