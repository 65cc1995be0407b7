//! `llmq plan`: what quantizing would take and give, from headers alone.

mod show;

use super::effort::{Effort, Preset};
use super::quantize::corpus::{What, named};
use super::{hub, output, quantize};
use crate::calib::text;
use crate::error::{Context, Error, Result};
use crate::format::Type;
use crate::method;
use crate::pipeline::KEEP;
use crate::pipeline::forecast::advice::{Advice, Situation, advice};
use crate::pipeline::forecast::fit::{self, GpuMemory, is_in_order, largest_that_fits};
use crate::pipeline::forecast::memory_advice::{self, MemoryAdvice};
use crate::pipeline::forecast::shape::BlockShape;
use crate::pipeline::forecast::sizes::{Size, quantized_already, sizes, source_type};
use crate::pipeline::forecast::speed::Speed;
use crate::pipeline::forecast::time::Times;
use crate::pipeline::forecast::{Job, Peak, Text};
use crate::pipeline::plan::{Plan, Planned, Request};
use crate::pipeline::report::anonymous_memory;
use crate::source::config::Config;
use crate::source::hub::Need;
use crate::source::imatrix::Imatrix;
use clap::ValueEnum;
use std::path::Path;

/// Says what `llmq quantize` with the same options would take and give; reads headers only, and writes nothing.
///
/// Takes every option of `llmq quantize`, so that a command can be tried by changing this word; those that are about the file to be
/// written change nothing.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(
    mut_arg("list_types", |arg| arg.hide(true)),
    mut_arg("output", |arg| arg.hide(true)),
    mut_arg("target_bpw", |arg| arg.hide(true)),
    mut_arg("target_size", |arg| arg.hide(true)),
    mut_arg("save_imatrix", |arg| arg.hide(true)),
    mut_arg("types", |arg| arg.hide(true)),
    mut_arg("max_shard_size", |arg| arg.hide(true)),
    mut_arg("dry_run", |arg| arg.hide(true)),
    mut_arg("force", |arg| arg.hide(true)),
    mut_arg("verbose", |arg| arg.hide(true)),
    mut_arg("vram", |arg| arg.help("The memory of the GPU that is to run the file, for example 8G: what is free of it")),
    mut_arg("json", |arg| arg.help("One JSON object a line on standard output: each type, then a summary")),
)]
#[cfg_attr(
    feature = "hub",
    command(mut_arg("publish", |arg| arg.hide(true)), mut_arg("yes", |arg| arg.hide(true)))
)]
pub struct Args {
    /// Every type and every part of the memory, not only the nearest and the largest
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    run: quantize::Args,
}

/// Everything that is shown.
struct Report<'a> {
    args: &'a Args,
    plan: &'a Plan,
    sizes: Vec<Size>,
    /// The one that was asked for, in `sizes`.
    chosen: usize,
    /// The largest that fits the GPU, in `sizes`.
    largest: Option<usize>,
    needs: Option<GpuMemory>,
    /// What contexts of other lengths would take, and the largest type that fits beside them, in `sizes`.
    contexts: Vec<(GpuMemory, Option<usize>)>,
    /// The free memory of the GPU.
    vram: Option<u64>,
    speed: Speed,
    /// What was asked for first.
    forecasts: Vec<Forecast>,
    /// Windows and their length, where they are used.
    windows: Option<(usize, usize)>,
    memory: Option<MemoryAdvice>,
    advice: Vec<Advice>,
}

/// What one way to quantize would take.
struct Forecast {
    /// The options that ask for it.
    name: String,
    method: &'static str,
    /// Windows of calibration text.
    samples: usize,
    times: Times,
    /// Of everything, and of linear layers in forward passes alone.
    multiplications: [f64; 2],
    peak: Peak,
    /// Bytes on the disk beside the output, while it is at work.
    scratch: u64,
}

/// What the program holds where the system does not say: more or less a vocabulary.
pub(super) const OWN: u64 = 64 << 20;

pub fn run(args: &Args) -> Result<()> {
    let asked = &args.run;
    if asked.list_types {
        return quantize::list_types();
    }
    if asked.target.budget()?.is_some() {
        return Err(Error::usage("which types a target asks for has to be measured, and a plan reads headers only")
            .hint("`llmq quantize --dry-run` with the same options measures it; or plan for a --type"));
    }
    asked.check_plan()?;
    if asked.outputs()?.beside().is_some() {
        return Err(Error::usage("--format is for `llmq quantize`: a plan is made for a GGUF")
            .hint("plan for --type Q4_0: a folder takes about as much time and memory"));
    }
    super::use_threads(asked.threads)?;
    let given = asked.model.as_deref().unwrap_or(Path::new(""));
    let timed = asked.how.time.map(|limit| quantize::deadline::within(asked, given, limit)).transpose()?;
    let asked = timed.as_ref().unwrap_or(asked);
    asked.how.samples()?;
    let (mut method, options) = (asked.how.method()?, asked.how.options()?);
    let imatrix = asked.imatrix.as_deref().map(Imatrix::read).transpose()?;
    // What is quantized already is planned all the same: the advice is about that.
    let request =
        |method| -> Result<Request> { Ok(Request { requantize: true, ..asked.request(method, imatrix.as_ref())? }) };
    let first = request(method)?;
    let found = hub::find(given, Need::Headers)?;
    let model = found.path();
    let mut plan = Plan::new(model, first).map_err(|cause| quantized_folder(model, cause))?;
    if plan.model().is_err() && method.calibrated() {
        method = method::by_name("rtn")?;
        plan = Plan::new(model, request(method)?)?;
    }
    asked.compute(&plan, method.calibrated())?;
    let own = anonymous_memory().unwrap_or(OWN);
    let positions =
        plan.model().ok().filter(|_| method.calibrated()).map(|model| asked.positions(model)).transpose()?;
    let shapes = BlockShape::all(&plan);
    let speed = speed(&plan, &options);
    let job = Job {
        plan: &plan,
        method,
        options,
        asymmetric: asked.how.asymmetric(method),
        samples: asked.how.samples()?,
        positions: positions.unwrap_or(1),
        threads: rayon::current_num_threads(),
        text: text(asked, positions.unwrap_or(1))?,
        keep: KEEP,
    };
    let sizes = sizes(&plan, |mix| asked.recipe(mix))?;
    let chosen = sizes.iter().position(|size| size.mix.name == plan.mix).expect("every mix has a size");
    let source = source_bytes(&plan);
    let forecast = |name: String, job: Job| {
        let work = job.work(&shapes, source, sizes[chosen].bytes);
        Forecast {
            name,
            method: job.method.name(),
            samples: job.samples,
            times: work.at(&speed),
            multiplications: [work.multiplications(), work.linear],
            peak: job.peak(&shapes, own),
            scratch: job.scratch(&shapes),
        }
    };
    let mut forecasts = vec![forecast("as asked for".into(), job)];
    if method.calibrated() {
        for effort in Effort::value_variants().iter().filter(|effort| !asked.how.is(**effort)) {
            let Preset { method, samples, sweeps } = effort.preset();
            let options = method::Options { sweeps, ..options };
            let of_effort = Job { method: method::by_name(method)?, options, samples, asymmetric: true, ..job };
            forecasts.push(forecast(format!("--effort {}", effort.name()), of_effort));
        }
        forecasts.push(forecast("--method rtn".into(), Job { method: method::by_name("rtn")?, ..job }));
    }
    let known = fit::Sizes::of(&plan);
    if let (Some(most), Some(n)) = (known.as_ref().map(|known| known.context), asked.fit.context)
        && n > most
    {
        output::note(&format!("note: --context {n} is longer than the model's context of {most}"));
    }
    let needs = known.as_ref().map(|sizes| asked.fit.needs(sizes));
    let vram = asked.fit.free()?.or(asked.on.vram);
    let fits = |size: &Size| Some(needs?.fit(size.on_gpu, vram?));
    let source_type = source_type(&plan);
    let largest = |of: &dyn Fn(&Size) -> bool| {
        needs.zip(vram).and_then(|(needs, vram)| largest_that_fits(&sizes, &needs, vram, source_type, of))
    };
    let better = largest(&is_in_order);
    let contexts = match (&known, asked.fit.free()?) {
        (Some(known), Some(vram)) => {
            let lengths = (12..32).map(|n| 1 << n).take_while(|n| *n <= known.context);
            let all = lengths.chain([known.context]).map(|n| known.needs(Some(n), asked.fit.kv()));
            let mut all: Vec<GpuMemory> = all.collect();
            all.dedup();
            all.iter().map(|needs| (*needs, largest_that_fits(&sizes, needs, vram, source_type, is_in_order))).collect()
        }
        _ => Vec::new(),
    };
    let largest = largest(&|_| true);
    let over = asked.ram.filter(|ram| forecasts[0].peak.bytes() > *ram);
    let half = sizes.iter().find(|size| size.mix.name == "F16").expect("F16 is a mix");
    let bits = |size: &Size| (size.mix.name, size.bits_per_weight);
    let careful = sizes.iter().filter(|size| ["Q8_0", "Q6_K"].contains(&size.mix.name));
    let already = quantized_already(&plan).map(|(kind, count): (&str, usize)| format!("{count} tensors, {kind}"));
    let advice = advice(&Situation {
        half: half.bytes,
        half_fits: fits(half),
        quantized: already.as_deref(),
        can_run: plan.model().is_ok(),
        asked: bits(&sizes[chosen]),
        asked_fits: fits(&sizes[chosen]),
        largest: better.map(|i| bits(&sizes[i])),
        careful: careful.filter(|size| fits(size) != Some(false)).map(|size| size.mix.name).next(),
    });
    let report = Report {
        args,
        plan: &plan,
        chosen,
        largest,
        needs,
        contexts,
        vram,
        speed,
        windows: job.model().map(|_| (job.samples, job.positions)),
        memory: over.map(|ram| memory_advice::advise(&job, &shapes, own, ram)),
        forecasts,
        sizes,
        advice,
    };
    if asked.json {
        report.json()
    } else {
        report.text()
    }
    Ok(())
}

/// How fast this machine is at the type that most of a plan's rounded weights get.
pub(super) fn speed(plan: &Plan, options: &method::Options) -> Speed {
    let mut sums: Vec<(Type, u64)> = Vec::new();
    let any = plan.tensors.iter().any(Planned::is_rounded);
    for tensor in plan.tensors.iter().filter(|tensor| tensor.is_rounded() || !any) {
        let more = tensor.spec.elements() as u64;
        match sums.iter_mut().find(|(kind, _)| *kind == tensor.kind) {
            Some((_, sum)) => *sum += more,
            None => sums.push((tensor.kind, more)),
        }
    }
    let (kind, _) = sums.into_iter().max_by_key(|(_, sum)| *sum).expect("a model has tensors");
    let (hidden, ffn) = plan.model().map_or((1024, 1024), |model| {
        let widest = model.blocks.iter().flat_map(|block| block.mixers()).map(|mixer| mixer.cost().inner).max();
        (model.hidden, widest.unwrap_or(model.hidden))
    });
    Speed::measure(hidden, ffn, kind, options)
}

/// Bytes of the model's tensors in their files.
pub(super) fn source_bytes(plan: &Plan) -> u64 {
    let of = |name: &str, elements: u64| match crate::format::by_name(name) {
        Ok(kind) => kind.size(elements),
        Err(_) => elements * 2,
    };
    plan.tensors.iter().map(|t| of(&t.from, t.spec.elements() as u64)).sum()
}

/// The calibration text, as far as its files say without being read.
pub(super) fn text(asked: &quantize::Args, positions: usize) -> Result<Text> {
    // What text packed with gzip is larger than its file by, and a document of many in a file.
    const PACKED: u64 = 3;
    const USUAL: u64 = 20_000;
    if asked.calib.is_empty() {
        let documents = text::sample();
        let lengths = || documents.iter().map(|document| document.len() as u64);
        return Ok(Text { bytes: lengths().sum(), longest: lengths().max().unwrap_or_default() });
    }
    let mut all = Text::default();
    for named in named(&asked.calib)? {
        let path = match named.what {
            What::File(path) => path,
            What::Set(set) => {
                let (bytes, longest) = set.expected(asked.how.samples()?, positions);
                all = Text { bytes: all.bytes + bytes, longest: all.longest.max(longest) };
                continue;
            }
        };
        let bytes = std::fs::metadata(&path).context(|| format!("cannot read {}", path.display()))?.len();
        let ends = |end: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(end));
        let bytes = if ends("gz") { bytes * PACKED } else { bytes };
        all.bytes += bytes;
        all.longest = all.longest.max(if ends("txt") { bytes } else { bytes.min(USUAL) });
    }
    Ok(all)
}

/// Says of a folder that cannot be planned that it is quantized already, where its configuration says so.
fn quantized_folder(folder: &Path, cause: Error) -> Error {
    let config = Config::open(&folder.join("config.json")).ok();
    let Some(found) = config.as_ref().and_then(|config| config.get("quantization_config")) else { return cause };
    let how = found.get("quant_method").and_then(|value| value.as_str()).unwrap_or("an unnamed method");
    Error::new(format!("{} is quantized already, with {how}", folder.display())).because(cause).hint(
        "quantizing it again would add a second error to the first: start from the original checkpoint in 16 bits",
    )
}
