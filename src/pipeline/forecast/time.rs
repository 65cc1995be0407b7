//! How long a run will take: its multiplications, counted from headers, at the speed of this machine.

use super::shape::{BlockShape, SiteShape};
use super::speed::{Speed, WALK, factorization, lower_triangle, polish_products};
use super::{Job, Tokens};
use crate::calib::output_hessian::CHUNK;
use crate::method;
use crate::model::Model;
use crate::model::Site;
use crate::model::mixer::Place;
use crate::pipeline::output_side;

/// Bytes per second that are read from the disk and converted, and that are written and made durable. Not measured: a forecast
/// writes nothing.
const READ: f64 = 1e9;
const WRITTEN: f64 = 5e8;

/// What a durable file costs however small it is, in seconds.
const DURABLE: f64 = 0.05;

/// Bytes of calibration text per second that become tokens.
const TEXT: f64 = 1.5e6;

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Multiplications of linear layers.
    pub linear: f64,
    /// Multiplications of attention.
    pub attention: f64,
    /// Numbers that go through norms, gates and sums.
    pub elementwise: f64,
    /// Multiplications of sums of outer products.
    pub outer: f64,
    /// Multiplications of weights and Hessians.
    pub product: f64,
    /// Multiplications of tiles of a Hessian with what has moved there.
    pub tile: f64,
    /// Multiplications of factorizations.
    pub factor: f64,
    /// Weights that are rounded without calibration.
    pub quick: f64,
    /// Weights that are rounded to nearest with weighed columns.
    pub plain: f64,
    /// Weights that GPTQ walks over.
    pub walk: f64,
    /// Weights that are polished, once for each sweep.
    pub polish: f64,
    /// Bytes that are read.
    pub read: f64,
    /// Bytes that are written.
    pub written: f64,
    /// Bytes of text that become tokens.
    pub text: f64,
}

/// What a run will take, in seconds, by the names that its summary has.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    /// Tokenizing.
    pub tokenizing: f64,
    /// Reading and converting the checkpoint.
    pub reading: f64,
    /// Forward passes.
    pub forward: f64,
    /// Sums of outer products.
    pub hessians: f64,
    /// Factoring, scale searches, rounding.
    pub rounding: f64,
    /// Writing the file.
    pub writing: f64,
}

impl Times {
    /// Everything.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("tokenizing", self.tokenizing),
            ("reading", self.reading),
            ("forward passes", self.forward),
            ("Hessians", self.hessians),
            ("rounding", self.rounding),
            ("writing", self.writing),
        ]
    }
}

impl Work {
    /// Multiplications of all products and factorizations, each with its addition: what can be held against the machine's
    /// peak.
    pub fn multiplications(&self) -> f64 {
        self.linear + self.attention + self.outer + self.product + self.tile + self.factor
    }

    /// How long it takes.
    pub fn at(&self, speed: &Speed) -> Times {
        Times {
            tokenizing: self.text / TEXT,
            reading: self.read / READ,
            forward: self.linear / speed.linear
                + self.attention / speed.attention
                + self.elementwise / speed.elementwise,
            hessians: self.outer / speed.outer,
            rounding: self.product / speed.product
                + self.tile / speed.tile
                + self.factor / speed.factor
                + self.quick / speed.quick
                + self.plain / speed.plain
                + self.walk * speed.walk
                + self.polish * speed.polish,
            writing: self.written / WRITTEN + DURABLE,
        }
    }
}

impl Job<'_> {
    /// Everything that the run has to do. `shapes`: the plan's blocks; `source`, `output`: bytes of the model and of the
    /// file.
    pub fn work(&self, shapes: &[BlockShape], source: u64, output: u64) -> Work {
        let mut work = Work { read: source as f64, written: output as f64, ..Work::default() };
        let weights = |block: bool| -> f64 {
            let tensors = self.plan.tensors.iter().filter(|t| t.spec.block.is_some() == block);
            tensors.map(|t| t.spec.elements() as f64).sum()
        };
        let Some(model) = self.model() else {
            work.quick = weights(true) + weights(false);
            return work;
        };
        work.text = self.text.bytes as f64;
        let tokens = self.tokens();
        let last = shapes.len().saturating_sub(1);
        for (i, block) in shapes.iter().enumerate() {
            let mut one = Work::default();
            for half in 0..block.costs.len() {
                self.passes(&mut one, model, block, half, tokens);
                for site in block.sites(half) {
                    self.statistics(&mut one, model, site, tokens);
                    self.solve(&mut one, site);
                }
            }
            self.experts(&mut one, block, tokens);
            work.add(&one, block.count as f64);
            // Nothing reads the stream behind the last block, unless an output matrix does.
            if i == last && !self.calibrates_untied() {
                let down = Site { half: block.costs.len().saturating_sub(1), place: Place::Inner };
                let down = block.site(down).map_or(0, SiteShape::all_elements);
                work.linear -= down as f64 * (tokens.all + tokens.compared) as f64;
            }
        }
        self.outputs(&mut work, model, shapes, tokens, source);
        if self.options.outputs {
            self.output_side(&mut work, model, shapes, source);
        }
        work
    }

    /// The gradients at the outputs of layers; see `pipeline/output_side.rs`.
    fn output_side(&self, work: &mut Work, model: &Model, shapes: &[BlockShape], source: u64) {
        let (windows, length) = output_side::extent(self.samples, self.positions);
        let tokens = (windows * length) as f64;
        for block in shapes {
            let tokens = tokens * block.count as f64;
            // Forward, forward once more, and back; of attention's two products each leads to three, or is one of them again.
            let rows: usize = block.sites.iter().flat_map(|site| &site.layers).map(|layer| layer.rows).sum();
            let (mixed, numbers) = block.mixing(length);
            work.linear += 3.0 * tokens * block.elements() as f64;
            work.attention += 4.5 * tokens * mixed;
            work.elementwise += 5.0 * tokens * (3.0 * model.hidden as f64 + numbers);
            work.outer += tokens * (rows * CHUNK) as f64;
        }
        // Logits, logits once more, and back.
        work.linear += 3.0 * tokens * (model.vocab * model.hidden) as f64;
        work.read += 2.0 * source as f64;
    }

    /// What experts take; see `pipeline/experts.rs`.
    fn experts(&self, work: &mut Work, block: &BlockShape, tokens: Tokens) {
        let Some(experts) = &block.experts else { return };
        let [input, inner] = &experts.sites;
        let (used, count) = (experts.used as f64, experts.count as f64);
        let (first, last) = (input.all_elements() as f64, inner.all_elements() as f64);
        // Once for what is inside, once for what comes out; the latter in the original model, too.
        work.linear += used * tokens.all as f64 * (2.0 * first + last) + used * tokens.compared as f64 * (first + last);
        for site in &experts.sites {
            work.outer += used * tokens.all as f64 * lower_triangle(site.columns);
            let mut one = Work::default();
            self.solve(&mut one, site);
            work.add(&one, count);
        }
    }

    /// The forward passes of a half: the norm for both of its sites, its first layers, and its last.
    fn passes(&self, work: &mut Work, model: &Model, block: &BlockShape, half: usize, tokens: Tokens) {
        let all = (tokens.all + tokens.compared) as f64;
        let elements = |site| block.site(site).map_or(0.0, |shape: &SiteShape| shape.all_elements() as f64);
        let [input, inner] = Place::ALL.map(|place| Site { half, place });
        let (first, last) = (elements(input), elements(inner));
        work.linear += all * (first + last);
        let cost = &block.costs[half];
        work.elementwise += all * (3.0 * model.hidden as f64 + cost.elementwise);
        // How much an error of each first layer counts: two passes of one window behind it, and its own product.
        let layers = block.site(input).map_or(0, |site| site.layers.len()) as f64;
        let probes = layers * self.positions as f64;
        work.linear += probes * (2.0 * (first + last) + first / layers.max(1.0));
        work.attention += (all + 2.0 * probes) * cost.mixing(self.positions);
    }

    /// The sums of outer products of a site.
    fn statistics(&self, work: &mut Work, model: &Model, site: &SiteShape, tokens: Tokens) {
        let n = site.columns as f64;
        let drifting = if site.is_inner() { model.hidden as f64 } else { n };
        let compared = tokens.compared as f64;
        work.outer += tokens.all as f64 * lower_triangle(site.columns) + compared * n * drifting;
        if site.is_inner() {
            // What the layer makes of its inputs' drift.
            work.linear += compared * site.elements() as f64;
        }
    }

    /// What a method does at a site; see `method/` and `pipeline/solve.rs`.
    fn solve(&self, work: &mut Work, site: &SiteShape) {
        let n = site.columns as f64;
        let weights: f64 = site.layers.iter().map(|layer| layer.elements() as f64 * self.idle(layer.rows)).sum();
        let of_rows =
            |most: usize| -> f64 { site.layers.iter().map(|layer| (layer.rows.min(most) * site.columns) as f64).sum() };
        let (sample, judged) = (of_rows(method::SAMPLE), of_rows(method::JUDGED));
        let compared = self.tokens().compared > 0;
        let chooses = self.method.chooses();
        if compared {
            // The step towards the target, with both halves of the inverse, whose triangles cost half; where what is off was not
            // collected directly, it is one for all layers, which each of them multiplies.
            work.product += weights * n + if site.is_inner() { 0.0 } else { n * n * n };
        }
        let fed = chooses || self.method.name().contains("gptq");
        let scales = site.scalable && self.method.scales();
        if fed || compared {
            work.factor += factorization(site.columns) * site.widths() as f64;
        }
        // All rows once; and a few of them for each of the ways that are compared, with feedback or without, as the weights are or
        // scaled, each held against the others by one product.
        let ways = f64::from(u8::from(chooses)) * if scales { 2.0 } else { 1.0 };
        let fed_back = f64::from(u8::from(fed)) * weights + ways * judged;
        let plain = f64::from(u8::from(!fed)) * weights + ways * judged * if compared { 2.0 } else { 1.0 };
        work.walk += fed_back;
        work.polish += fed_back * self.options.sweeps as f64;
        work.plain += plain;
        work.tile += fed_back * (WALK + polish_products(&self.options)) * n;
        work.product += 1.5 * ways * judged * n;
        // The error that is reported: two products with a symmetric matrix.
        work.product += of_rows(method::REPORTED) * n;
        if scales {
            let candidates = method::CANDIDATES as f64 * sample;
            if fed {
                work.walk += candidates;
                work.tile += WALK * candidates * n;
            } else {
                work.plain += candidates;
                work.product += candidates / 2.0 * n;
            }
        }
    }

    /// Matrices outside the blocks.
    fn outputs(&self, work: &mut Work, model: &Model, shapes: &[BlockShape], tokens: Tokens, source: u64) {
        let n = model.hidden as f64;
        for tensor in self.plan.tensors.iter().filter(|t| t.spec.block.is_none()) {
            let weights = tensor.spec.elements() as f64;
            if !super::head::calibrates_output(self.plan, tensor) {
                work.quick += weights;
                continue;
            }
            if tokens.ahead > 0 {
                // The original model, whole, for some windows.
                let ahead = tokens.ahead as f64;
                for block in shapes {
                    work.linear += ahead * (block.elements() * block.count as u64) as f64;
                    let (mixed, numbers) = block.mixing(self.positions);
                    work.attention += ahead * mixed * block.count as f64;
                    work.elementwise += ahead * (3.0 * n + numbers) * block.count as f64;
                }
                work.read += source as f64;
            }
            let seen = if tokens.ahead > 0 { tokens.ahead } else { tokens.all };
            work.outer += seen as f64 * lower_triangle(model.hidden);
            work.factor += factorization(model.hidden);
            if self.method.name() == "awq" {
                work.plain += weights;
            } else {
                work.walk += weights;
                work.polish += weights * self.options.sweeps as f64;
                work.tile += weights * n * (WALK + polish_products(&self.options));
            }
        }
    }

    /// By how much longer a layer takes than its weights say, because its rows come in parts that do not fill all threads.
    fn idle(&self, rows: usize) -> f64 {
        let each = method::rows_evenly(rows, self.threads);
        let rounds = rows.div_ceil(each).max(1).div_ceil(self.threads);
        (rounds * self.threads * each) as f64 / rows.max(1) as f64
    }
}

impl Work {
    fn add(&mut self, other: &Work, times: f64) {
        let fields: [(&mut f64, f64); 14] = [
            (&mut self.linear, other.linear),
            (&mut self.attention, other.attention),
            (&mut self.elementwise, other.elementwise),
            (&mut self.outer, other.outer),
            (&mut self.product, other.product),
            (&mut self.tile, other.tile),
            (&mut self.factor, other.factor),
            (&mut self.quick, other.quick),
            (&mut self.plain, other.plain),
            (&mut self.walk, other.walk),
            (&mut self.polish, other.polish),
            (&mut self.read, other.read),
            (&mut self.written, other.written),
            (&mut self.text, other.text),
        ];
        for (sum, more) in fields {
            *sum += more * times;
        }
    }
}
