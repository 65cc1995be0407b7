//! How fast this machine is, measured in a fraction of a second on numbers that are made up.

use crate::format::{self, Encoding, Type};
use crate::method::{self, Method, Options, Rows};
use crate::pipeline::loaded_model::BATCH;
use crate::pipeline::stream::PRECISION;
use llmq_kernels::attention::{self, Scores, Shape};
use llmq_kernels::elementwise::{self, Activation};
use llmq_kernels::gemm::{self, Old, Precision, View, product};
use llmq_kernels::syrk;
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Rates of the work that a run consists of. Products are counted in multiplications (each with its addition).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Linear layers, multiplications per second.
    pub linear: f64,
    /// Sums of outer products, multiplications per second.
    pub outer: f64,
    /// Attention, multiplications per second.
    pub attention: f64,
    /// Numbers per second through norms and gates.
    pub elementwise: f64,
    /// Products of weights and Hessians, multiplications per second.
    pub product: f64,
    /// Products of a tile of columns with what has moved in it, multiplications per second.
    pub tile: f64,
    /// Cholesky factorization and inverse of the factor, multiplications per second.
    pub factor: f64,
    /// Rounding without calibration, numbers to finished blocks, weights per second.
    pub quick: f64,
    /// Rounding to nearest with weighed columns, weights per second.
    pub plain: f64,
    /// Seconds per weight of GPTQ without polish, products aside.
    pub walk: f64,
    /// Seconds per weight of each sweep of the polish, products aside.
    pub polish: f64,
}

/// The whole measurement is repeated so often, and what counts is the mean: a machine that does other work, too, is fast and slow by
/// turns.
const ROUNDS: usize = 3;

/// How long each part of it takes at least, each time.
const LEAST: Duration = Duration::from_millis(4);

/// Widths beyond these tell little that is new: of layers, of sums of outer products and what is factored, and of Hessians that rows
/// are rounded with.
const WIDEST: usize = 4096;
const WIDEST_SQUARE: usize = 2048;
const WIDEST_SOLVED: usize = 512;

/// Positions of the windows that attention is measured on.
const POSITIONS: usize = 512;

impl Speed {
    /// Measures on all threads of the current pool. `hidden`, `ffn`: widths of the model; `kind`: the type of most weights;
    /// `options`: those of the run.
    pub fn measure(hidden: usize, ffn: usize, kind: Type, options: &Options) -> Speed {
        // A run without sweeps may be compared with one that has some.
        let options = &Options { sweeps: options.sweeps.max(2), ..*options };
        let threads = rayon::current_num_threads();
        let (k, m) = (hidden.clamp(1, WIDEST), ffn.clamp(1, WIDEST / 2));
        // As many tokens as go through a layer at once, so that there are as many tasks.
        let tokens = BATCH;
        let (x, w, gate) = (numbers(tokens * k), numbers(m * k), numbers(tokens * m));
        let square = k.min(WIDEST_SQUARE);
        let (mut y, mut sum) = (vec![0.0; tokens * m], vec![0.0; square * square]);
        let (heads, d) = (2, 64);
        let q = numbers(tokens * heads * d);
        let shape = Shape { positions: POSITIONS, past: 0, heads, kv_heads: heads, d };
        let mut rounding = Rounding::new(hidden, kind, *options, threads);
        let how = Scores { scale: 0.125, ..Scores::default() };
        let [mut linear, mut outer, mut attention, mut elementwise] = [Timer::default(); 4];
        for _ in 0..ROUNDS {
            linear.run(|| gemm::linear(PRECISION, &x, &w, k, &mut y));
            outer.run(|| syrk::syrk(PRECISION, &x[..tokens * square], square, &mut sum));
            attention.run(|| {
                let mut out = vec![0.0; q.len()];
                attention::causal(&q, &q, &q, shape, &how, &mut out);
                out
            });
            elementwise.run(|| {
                let mut out = vec![0.0; gate.len()];
                elementwise::gated(Activation::Silu, &gate, &gate, &mut out);
                out
            });
            rounding.round();
        }
        let weights = rounding.w.len() as f64;
        let Rounding { n, .. } = rounding;
        // Products are counted by themselves, because they grow with the columns.
        let product = rounding.product.seconds() / (2.0 * weights * n as f64);
        let tile = tile_products(rounding.wide, threads) / rounding.tile.seconds();
        let without = |seconds: f64, products: f64| (seconds / weights - products * n as f64 / tile).max(0.0);
        let (walk, polished) = (rounding.walk.seconds(), rounding.polished.seconds());
        Speed {
            linear: (tokens * k * m) as f64 / linear.seconds(),
            outer: tokens as f64 * lower_triangle(square) / outer.seconds(),
            attention: (tokens * POSITIONS * heads * d) as f64 / attention.seconds(),
            elementwise: gate.len() as f64 / elementwise.seconds(),
            product: 1.0 / product,
            tile,
            factor: factorization(rounding.factored.0) / rounding.factor.seconds(),
            quick: weights / rounding.quick.seconds(),
            plain: weights / rounding.plain.seconds(),
            walk: without(walk, WALK),
            polish: without((polished - walk).max(0.0), polish_products(options)) / options.sweeps as f64,
        }
    }
}

/// Multiplications of `XᵀX` per row of `X`, one triangle alone.
pub fn lower_triangle(k: usize) -> f64 {
    k as f64 * (k as f64 + 1.0) / 2.0
}

/// Columns that the sweeps move before the rest follows, for most types.
const TILE: usize = 256;

/// Multiplications that are measured for [`Speed::tile`].
fn tile_products(n: usize, threads: usize) -> f64 {
    (threads * n * TILE * rows(threads)) as f64
}

/// Rows of a thread, for matrices as high as those of a large model.
fn rows(threads: usize) -> usize {
    method::rows_at_once(4096, threads)
}

/// Multiplications of a Cholesky factorization and of the inverse of its factor.
pub fn factorization(n: usize) -> f64 {
    (n as f64).powi(3) / 3.0
}

/// Products per weight and column in GPTQ's walk: the errors of each tile reach the columns behind it.
pub const WALK: f64 = 0.5;

/// Measures what needs weights and a Hessian.
struct Rounding {
    kind: Type,
    options: Options,
    /// Columns; a multiple of every block's width.
    n: usize,
    w: Vec<f32>,
    h: Vec<f32>,
    /// Columns of the matrix that products of tiles are measured on.
    wide: usize,
    wide_h: Vec<f32>,
    /// Columns of the Hessian whose factorization is measured, and that Hessian.
    factored: (usize, Vec<f32>),
    /// GPTQ without polish, and with it; none for types without a grid.
    solvers: Option<[Rows; 2]>,
    product: Timer,
    tile: Timer,
    factor: Timer,
    quick: Timer,
    plain: Timer,
    walk: Timer,
    polished: Timer,
}

impl Rounding {
    fn new(hidden: usize, kind: Type, options: Options, threads: usize) -> Rounding {
        let n = (hidden.min(WIDEST_SOLVED) / 256 * 256).max(256);
        let wide = hidden.clamp(TILE, WIDEST / 4);
        let factored = (hidden / 256 * 256).clamp(256, WIDEST_SQUARE);
        let factored = (factored, spiked(factored));
        let [product, tile, factor, quick, plain, walk, polished] = [Timer::default(); 7];
        let (w, h, wide_h) = (numbers(rows(threads) * threads * n), hessian(n), numbers(wide * wide));
        let solvers = match kind.encoding() {
            Encoding::Grid(grid) => {
                let solver = |sweeps| gptq().rows(h.clone(), n, grid, &Options { sweeps, ..options }).0;
                Some([0, options.sweeps].map(solver))
            }
            _ => None,
        };
        Rounding {
            kind,
            options,
            n,
            w,
            h,
            wide,
            wide_h,
            factored,
            solvers,
            product,
            tile,
            factor,
            quick,
            plain,
            walk,
            polished,
        }
    }

    fn round(&mut self) {
        let Rounding { kind, options, n, w, h, wide, wide_h, factored, .. } = self;
        let options = *options;
        let n = *n;
        let Encoding::Grid(grid) = kind.encoding() else {
            // Numbers are stored one by one.
            self.quick.run(|| format::convert(*kind, w).map(|bytes| kind.decode_all(&bytes)));
            return;
        };
        // What becomes of weights that are not calibrated: rounded, stored, decoded and compared.
        self.quick.run(|| {
            let bytes = method::plain(n, None, false).quantize(w, grid);
            method::weight_error((0.0, 0.0), w, &kind.decode_all(&bytes), n, None)
        });
        let plain = method::plain(n, Some(&method::diagonal(h, n)), false);
        self.plain.run(|| plain.round(w, grid).values(grid));
        // The squared error and the whole: two products of a weight with a column each.
        self.product.run(|| method::output_error(w, w, n, h));
        // As in the sweeps: some columns of the Hessian, times what has moved there.
        let (wide, wide_h) = (*wide, &wide_h[..]);
        let threads = rayon::current_num_threads();
        let rows = rows(threads);
        let part = &w[..TILE * rows];
        self.tile.run(|| {
            (0..threads).into_par_iter().for_each(|_| {
                let mut g = vec![0.0; wide * rows];
                let (columns, moves) = (View::new(wide_h, wide, TILE, wide), View::new(part, TILE, rows, rows));
                product(options.feedback, &mut g, rows, Old::Kept, -1.0, columns, moves);
                std::hint::black_box(g);
            });
        });
        let (columns, hessian) = factored;
        self.factor.run(|| gptq().rows(hessian.clone(), *columns, grid, &options));
        let Some([drafts, polished]) = &self.solvers else { return };
        self.walk.run(|| drafts.round(w, grid).values(grid));
        self.polished.run(|| polished.round(w, grid).values(grid));
    }
}

fn gptq() -> &'static dyn Method {
    method::by_name("gptq").expect("it is one of the methods")
}

/// Products per weight and column in a polish: half of one for the gradient, another with each sweep, and half of that with the last.
pub fn polish_products(options: &Options) -> f64 {
    options.sweeps as f64
}

/// Adds up the time of calls that are alike.
#[derive(Debug, Clone, Copy, Default)]
struct Timer {
    spent: Duration,
    calls: u32,
}

impl Timer {
    /// Calls for [`LEAST`]; the very first call does not count, because it brings memory and threads up.
    fn run<T>(&mut self, mut call: impl FnMut() -> T) {
        if self.calls == 0 {
            std::hint::black_box(call());
        }
        let started = Instant::now();
        loop {
            std::hint::black_box(call());
            self.calls += 1;
            if started.elapsed() >= LEAST {
                break;
            }
        }
        self.spent += started.elapsed();
    }

    /// Of one call; nothing where there was none.
    fn seconds(&self) -> f64 {
        if self.calls == 0 { 0.0 } else { (self.spent.as_secs_f64() / f64::from(self.calls)).max(1e-9) }
    }
}

/// Numbers around zero that look like weights: no pattern that a search could use.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    // The sum of a few is nearly normal, as weights are.
    (0..n).map(|_| next() + next() + next()).collect()
}

/// A Hessian whose inputs have one direction in common, made without a sum: `I + vvᵀ/n`.
fn spiked(n: usize) -> Vec<f32> {
    let v = numbers(n);
    let mut h: Vec<f32> = v.iter().flat_map(|x| v.iter().map(move |y| x * y / n as f32)).collect();
    h.iter_mut().step_by(n + 1).for_each(|h| *h += 1.0);
    h
}

/// A Hessian of inputs that go together somewhat.
fn hessian(n: usize) -> Vec<f32> {
    let rows = 2 * n;
    let mut x = numbers(rows * n);
    for row in x.chunks_mut(n) {
        let common = row[0];
        row.iter_mut().enumerate().for_each(|(j, x)| *x += common * (j % 7) as f32 / 7.0);
    }
    let mut h = vec![0.0; n * n];
    syrk::syrk(Precision::Single, &x, n, &mut h);
    syrk::mirror(n, &mut h);
    h.iter_mut().for_each(|h| *h /= rows as f32);
    h
}
