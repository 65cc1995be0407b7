//! `llmq quantize`: checkpoint in, GGUF out.

pub(super) mod corpus;
pub(super) mod deadline;
mod decisions;
mod outputs;
mod provenance;
mod quantize_options;
pub(super) mod ram;
mod types;

use super::budget::{self, Target};
use super::device::OnDevice;
use super::fallbacks;
use super::fit::Fit;
use super::hub;
use super::output::{self, Progress, bytes};
use super::rounding::How;
use super::summary::{show, shown, summary_json, tensor_json, tensor_line};
use crate::compute::choice::Wanted;
use crate::compute::{Compute, Cpu};
use crate::error::{Error, Result};
use crate::format;
use crate::format::{integer, mix};
use crate::pipeline::choice::{self, Choice};
use crate::pipeline::forecast::device_memory::device_memory;
use crate::pipeline::journal::{self, Journal};
use crate::pipeline::plan::{Plan, Planned};
use crate::pipeline::{self, KEEP, Rounding};
use crate::source::hub::{Found, Need, name_of};
use crate::source::imatrix::Imatrix;
use crate::writer::imatrix;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A checkpoint folder (config.json, tokenizer.json, safetensors or pytorch_model.bin), a GGUF of F32, F16 or BF16, or
    /// org/name[@revision] on the Hugging Face Hub
    #[arg(required_unless_present = "list_types")]
    pub(super) model: Option<PathBuf>,

    /// Show the types and their bits per weight
    #[arg(long)]
    pub(super) list_types: bool,

    /// The file to write [default: NAME.TYPE.gguf in this folder]; with --format, the folder to make. Repeatable: one run makes a
    /// GGUF (a name that ends in .gguf) and folders with the same codes
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Vec<PathBuf>,

    /// The type, or mix of types, by llama.cpp's name [default: Q4_K_M]; --list-types shows them. With --format, W4A16,
    /// W4A16_ASYM (the default for awq) or W8A16, or Q4_0 or Q8_0 for the codes of a GGUF
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "target")]
    kind: Option<String>,

    /// Several types, with commas between them: a file of each, as one run after the other makes them
    #[arg(
        long,
        value_name = "TYPE,TYPE",
        value_delimiter = ',',
        conflicts_with_all = ["kind", "target", "output", "format", "save_imatrix", "resume"]
    )]
    types: Vec<String>,

    /// Judge the files against the model with what is built in, and put them on the hub with their model card and report
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "ORG/NAME", conflicts_with_all = ["target", "output", "format", "resume"])]
    publish: Option<String>,

    /// Publish without asking
    #[cfg(feature = "hub")]
    #[arg(long, requires = "publish")]
    yes: bool,

    /// Make a folder of safetensors instead, as transformers and vLLM load it: gptq, awq or compressed-tensors. Repeatable, each
    /// with its -o
    #[arg(long, value_name = "FORMAT")]
    format: Vec<String>,

    /// Columns that share a scale in such a folder: 32, 64 or 128 [default: 128; 32 for Q4_0 and Q8_0]
    #[arg(long, value_name = "N")]
    group_size: Option<usize>,

    #[command(flatten)]
    pub(super) target: Target,

    #[command(flatten)]
    pub(super) fit: Fit,

    #[command(flatten)]
    pub(super) how: How,

    #[command(flatten)]
    pub(super) on: OnDevice,

    /// Calibration text: .txt; .jsonl, .json and .json.gz with one {"text": …} or {"messages": […]} a line; or a set that is
    /// fetched, c4 or wikitext2. Repeatable, or with commas; NAME:WEIGHT gives each its share of the windows
    /// [default: a sample that is built in]
    #[arg(long, value_name = "FILE|SET")]
    pub(super) calib: Vec<PathBuf>,

    /// Let windows of c4 reach across documents, instead of one window in each of those that are long enough; windows of files do
    /// so always
    #[arg(long)]
    pub(super) pack: bool,

    /// Tokens per window [default: 2048, or the model's context if that is shorter]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,

    /// Decides which windows are drawn, and about the signs of --rotate
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Rotate the residual stream and the values first (QuaRot): helps some models with outlier channels, harms others, and
    /// unties the output matrix from the embedding; measure it
    #[arg(long)]
    rotate: bool,

    /// Leave out the blocks for multi-token prediction that some checkpoints have behind the others
    #[arg(long)]
    no_mtp: bool,

    /// The base type of the mix for every matrix
    #[arg(long, conflicts_with = "target")]
    pure: bool,

    /// The type of tensors whose GGUF name matches a regular expression; repeatable, the first match wins
    #[arg(long, value_name = "RE=TYPE")]
    tensor_type: Vec<String>,

    /// A file of RE=TYPE, separated by white space; comes after those of --tensor-type
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,

    /// The type of the output matrix (a tied embedding included)
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<String>,

    /// The type of the token embedding
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<String>,

    /// An importance matrix, as `llmq imatrix` or llama-imatrix makes it: weighs the columns of whatever a method does not
    /// calibrate itself
    #[arg(long, value_name = "FILE")]
    pub(super) imatrix: Option<PathBuf>,

    /// Write what the layers of a calibrated run saw as an importance matrix
    #[arg(long, value_name = "FILE")]
    save_imatrix: Option<PathBuf>,

    /// Quantize tensors that are quantized already, at the price of both errors
    #[arg(long)]
    allow_requantize: bool,

    /// Replace or add a key of the file: KEY=TYPE:VALUE with TYPE int, float, bool or str; repeatable
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    override_kv: Vec<String>,

    /// Write shards of at most this much data, for example 45G or 500M
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_shard_size: Option<u64>,

    /// The pre-tokenizer's name in llama.cpp, if the checkpoint's is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,

    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// The main memory that the run may take, for example 8G: what does not fit goes through the disk, and more than that is refused
    /// before anything is done; the file is the same
    #[arg(long, value_name = "SIZE", value_parser = ram::size)]
    pub(super) ram: Option<u64>,

    /// Replace an existing file, and start over where an unfinished run was left
    #[arg(long)]
    force: bool,

    /// Go on with an unfinished run of the same command, which is in OUTPUT.unfinished; the result has the same bytes
    #[arg(long, conflicts_with = "time")]
    resume: bool,

    /// Where the residual stream of the calibration windows is kept while a calibrated run is at work [default:
    /// OUTPUT.unfinished]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// One JSON object a line on standard output: each tensor, then a summary
    #[arg(long)]
    pub(super) json: bool,

    /// Show each tensor with its error
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(args: &Args) -> Result<()> {
    #[cfg(feature = "hub")]
    let published = args.publish.is_some();
    #[cfg(not(feature = "hub"))]
    let published = false;
    match args {
        _ if args.list_types => list_types(),
        _ if published || !args.types.is_empty() => types::run(args),
        _ => one(args).map(|_| ()),
    }
}

/// One run. Returns the files that it made.
fn one(args: &Args) -> Result<Vec<PathBuf>> {
    let given = args.model.as_deref().unwrap_or(Path::new(""));
    super::use_threads(args.threads)?;
    let started = Instant::now();
    let timed = args.how.time.map(|limit| deadline::within(args, given, limit)).transpose()?;
    let args = timed.as_ref().unwrap_or(args);
    let (method, options) = (args.how.method()?, args.how.options()?);
    corpus::named(&args.calib)?;
    if args.save_imatrix.is_some() && !method.calibrated() {
        return Err(Error::usage(format!("--save-imatrix needs a calibrated method, and {} is none", method.name()))
            .hint("add --method gptq, or make an importance matrix with `llmq imatrix`"));
    }
    if args.save_imatrix.is_some() && args.rotate {
        return Err(Error::usage(
            "--save-imatrix cannot be used with --rotate: what rotated layers see fits no other file",
        )
        .hint("leave one of them out, or measure the rotated file with `llmq imatrix`"));
    }
    let imatrix = args.imatrix.as_deref().map(Imatrix::read).transpose()?;
    let request = args.request(method, imatrix.as_ref())?;
    let mut target = args.target()?;
    let found = find(args, given, target.as_ref())?;
    let folder = found.path();
    let mut plan = Plan::new(folder, request)?;
    if let Some(choice::Target::Gpu(limit)) = target.as_mut().map(|given| &mut given.target) {
        *limit = args.fit.limit(&plan)?;
        output::note(&format!("the GPU has room for {} of weights", bytes(*limit)));
    }
    let name = target.as_ref().map_or(plan.mix.into(), |target| target.name.clone());
    let wanted = args.outputs()?;
    let own = default_output(folder, &name);
    let folders = wanted.folders(&own.with_extension("").to_string_lossy(), args.max_shard_size);
    // What an unfinished run is called after.
    let output = match (&wanted.gguf, folders.first()) {
        (Some(path), _) => path.clone().unwrap_or(own),
        (None, Some(folder)) => folder.path.clone(),
        (None, None) => own,
    };
    // Where there is to be no GGUF, it is only a draft, and in one piece.
    let (file, most) = match wanted.gguf {
        Some(_) => (output.clone(), args.max_shard_size),
        None => (journal::folder(&output).join("draft.gguf"), None),
    };
    let inputs: Vec<PathBuf> = inputs(args, folder, &plan);
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let check = |plan: &Plan, force: bool| {
        let files = plan.files(&file, most)?;
        let paths = files.paths().filter(|_| wanted.gguf.is_some()).chain(args.save_imatrix.as_deref());
        outputs::check(paths, &folders, &inputs, force)
    };
    let calibrated = method.calibrated() && plan.has_grids();
    let mut force = args.force;
    let mut journal = None;
    if !args.dry_run {
        check(&plan, force || args.resume)?;
        if calibrated || !folders.is_empty() {
            let journal = journal.insert(Journal::claim(&output, args.work_dir.as_deref(), args.resume, args.force)?);
            // The last thing that a run does before it is over is to let the output appear.
            force |= journal.is_complete();
        }
        check(&plan, force)?;
    }
    let calibration = match target.is_some() || calibrated && !args.dry_run {
        true => Some(corpus::read(args, &plan, if target.is_some() { budget::model(&plan)? } else { plan.model()? })?),
        false => None,
    };
    let compute = args.compute(&plan, calibration.is_some())?;
    provenance::computed(&mut plan.metadata, &*compute);
    calibration.iter().for_each(|text| provenance::calibrated(&mut plan.metadata, text));
    let decided = {
        let mix = target.is_none().then_some(plan.mix);
        decisions::line(args, method, mix, calibration.as_ref().filter(|_| calibrated))
    };
    let rounding = Rounding {
        method,
        options,
        asymmetric: args.how.asymmetric(method),
        calibration: calibration.as_ref(),
        imatrix: imatrix.as_ref(),
        keep_statistics: args.save_imatrix.is_some(),
        compute,
        keep: KEEP,
    };
    let chosen = match (target, &calibration) {
        (Some(target), Some(text)) => {
            let size = |plan: &Plan| plan.files(&file, most)?.size();
            Some(budget::spend(&mut plan, &rounding, text, &target, args.allow_requantize, &size, args.json)?)
        }
        _ => None,
    };
    let rounding = Rounding { keep: ram::keep(args.ram, &plan, &rounding)?, ..rounding };
    let files = plan.files(&file, most)?;
    let paths = files.paths().filter(|_| wanted.gguf.is_some());
    let paths: Vec<PathBuf> =
        paths.map(Path::to_path_buf).chain(folders.iter().map(|folder| folder.path.clone())).collect();
    if args.dry_run {
        dry_run(args, &plan, chosen.as_ref(), &paths, files.size()?)?;
        return Ok(paths);
    }
    // Other types may mean other shards.
    check(&plan, force)?;
    if calibration.is_none() && !args.calib.is_empty() {
        output::note("note: --calib is not used: nothing here is calibrated");
    }
    for line in decided.iter().chain(&fallbacks::planned(plan.tensors.iter())) {
        output::note(&format!("note: {line}"));
    }
    let progress = Progress::new(args.verbose, args.json);
    let outputs = pipeline::Outputs { files, gguf: wanted.gguf.is_some(), folders: &folders };
    let summary = pipeline::run(&plan, &rounding, outputs, journal, &progress)?;
    progress.finish();
    if let (Some(path), Some(statistics)) = (&args.save_imatrix, &summary.imatrix) {
        imatrix::write(path, statistics)?;
        output::note(&format!("{}: the inputs of {} layers", path.display(), statistics.entries.len()));
    }
    let took = started.elapsed();
    show(&summary, decided.as_deref(), &paths, took);
    if args.json {
        output::json("summary", summary_json(&summary, decided.as_deref(), &paths, took));
    }
    Ok(paths)
}

impl Args {
    /// Where a plan's layers are computed, if they are `calibrated`.
    ///
    /// # Errors
    /// The GPU that was asked for cannot be had.
    pub(super) fn compute(&self, plan: &Plan, calibrated: bool) -> Result<Arc<dyn Compute>> {
        let Some(model) = plan.model().ok().filter(|_| calibrated) else {
            if matches!(self.on.device, Wanted::Gpu(_)) {
                output::note("note: --device is not used: nothing here is calibrated");
            }
            return Ok(Arc::new(Cpu));
        };
        self.on.choose(device_memory(model, true, self.how.asymmetric(self.how.method()?)))
    }
}

/// The model, fetched if it is on the hub. An output that is in the way is better known before gigabytes have come.
fn find(args: &Args, given: &Path, target: Option<&budget::SizeBudget>) -> Result<Found> {
    let need = if args.dry_run && target.is_none() { Need::Headers } else { Need::Weights };
    if let (Some(repository), false, None) = (hub::named(given), args.dry_run, args.max_shard_size) {
        let wanted = args.outputs()?;
        let mix = wanted.mix(args.kind.as_deref(), args.group_size)?;
        let own = format!("{}.{}", repository.name(), target.map_or(mix.name, |target| &target.name));
        let gguf = wanted.gguf.as_ref().map(|path| path.clone().unwrap_or_else(|| format!("{own}.gguf").into()));
        outputs::check(gguf.as_deref().into_iter(), &wanted.folders(&own, None), &[], args.force || args.resume)?;
    }
    hub::find(given, need)
}

/// A number of bytes as llama.cpp's gguf-split takes it: decimal, with K, M or G behind it, or nothing.
pub(super) fn size(text: &str) -> std::result::Result<u64, String> {
    let (digits, unit) = match text.to_ascii_uppercase().trim_end_matches('B').chars().last() {
        Some('K') => (1, 1_000),
        Some('M') => (1, 1_000_000),
        Some('G') => (1, 1_000_000_000),
        _ => (0, 1),
    };
    let number = text.trim_end_matches(['b', 'B']);
    let number = &number[..number.len() - digits];
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0) {
        Some(bytes) => Ok(bytes),
        None => Err("a size is a whole number with K, M or G behind it, for example 45G".into()),
    }
}

pub(super) fn list_types() -> Result<()> {
    for mix in mix::all() {
        let (name, base) = (mix.name, mix.base);
        output::line(format!("{name:8} {:6} bits per weight where nothing is raised ({})", base.bits(), base.name()));
    }
    output::line(format!("for folders (--format): {}, and Q4_0 and Q8_0", integer::NAMES.join(", ")));
    Ok(())
}

fn default_output(model: &Path, mix: &str) -> PathBuf {
    let snapshot = name_of(model);
    let model = model.canonicalize().unwrap_or_else(|_| model.into());
    let name = if model.is_dir() { model.file_name() } else { model.file_stem() };
    let name = snapshot.unwrap_or_else(|| name.map_or("model".into(), |n| n.to_string_lossy().into_owned()));
    // A file is called after its own type, and a first shard after its place, too.
    let name = without_shard(&name);
    let own = format::TYPES.iter().map(|t| t.name().to_lowercase());
    let own = own.chain(mix::all().map(|m| m.name.to_lowercase()));
    let stem = own.filter_map(|kind| {
        let rest = name.len().checked_sub(kind.len() + 1)?;
        let tail = name.get(rest..)?;
        (tail[1..].eq_ignore_ascii_case(&kind) && tail.starts_with(['.', '-'])).then_some(&name[..rest])
    });
    let stem = if model.is_dir() { name } else { stem.min_by_key(|stem| stem.len()).unwrap_or(name) };
    format!("{stem}.{mix}.gguf").into()
}

/// A name without the ending of a first shard.
fn without_shard(name: &str) -> &str {
    match name.split_once("-00001-of-") {
        Some((stem, count)) if count.len() == 5 && count.bytes().all(|b| b.is_ascii_digit()) => stem,
        _ => name,
    }
}

/// Every file that is read and must not be overwritten.
fn inputs(args: &Args, folder: &Path, plan: &Plan) -> Vec<PathBuf> {
    let mut inputs: Vec<PathBuf> = plan.source.files();
    inputs.extend(corpus::files(&args.calib));
    inputs.extend(args.imatrix.iter().chain(&args.tensor_type_file).cloned());
    if !folder.is_dir() {
        return inputs;
    }
    let folder = std::fs::read_dir(folder).into_iter().flatten().flatten();
    inputs.extend(
        folder.map(|entry| entry.path()).filter(|path| path.is_file() && !inputs.contains(path)).collect::<Vec<_>>(),
    );
    inputs
}

fn dry_run(args: &Args, plan: &Plan, chosen: Option<&Choice>, paths: &[PathBuf], size: u64) -> Result<()> {
    let weights: u64 = plan.tensors.iter().map(Planned::bytes).sum();
    let bits = 8.0 * weights as f64 / plan.elements() as f64;
    for note in plan.notes.iter().chain(&fallbacks::planned(plan.tensors.iter())) {
        output::note(&format!("note: {note}"));
    }
    for (i, planned) in plan.tensors.iter().enumerate() {
        let report = planned.report(None);
        let share = chosen.and_then(|choice| choice.share(i));
        if args.json {
            let mut fields = tensor_json(&report);
            if chosen.is_some() {
                fields["loss_share"] = share.into();
            }
            output::json("tensor", fields);
        } else {
            let share = share.map_or(String::new(), |share| format!("  {:.1}% of the loss", 100.0 * share));
            output::line(tensor_line(&report) + &share);
        }
    }
    if args.json {
        let fields = json!({
            "output": paths[0],
            "files": paths,
            "bytes": size,
            "bits_per_weight": bits,
            "fallback_bytes": plan.tensors.iter().filter_map(Planned::fallback_cost).sum::<i64>(),
            "notes": plan.notes,
            "dry_run": true,
        });
        output::json("summary", fields);
    } else {
        output::line(format!("{} would have {} ({bits:.2} bits per weight)", shown(paths), bytes(size)));
    }
    Ok(())
}
