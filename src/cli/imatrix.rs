//! `llmq imatrix`: how much each column of each layer matters.

use super::device::OnDevice;
use super::hub::{self, Download};
use super::output::{self, Progress, bytes, time};
use crate::calib::sets::{self, Set, SetRequest};
use crate::calib::text;
use crate::error::{Context, Error, Result};
use crate::eval::perplexity::{Protocol, begun, cut_tokens};
use crate::pipeline::forecast::device_memory::device_memory;
use crate::pipeline::importance;
use crate::pipeline::loaded_model::LoadedModel;
use crate::source::hub::Need;
use crate::source::imatrix::Imatrix;
use crate::writer::atomic::check_destination;
use crate::writer::imatrix;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint folder, a .gguf, or org/name[@revision] on the Hugging Face Hub; needed to measure, while importance matrices
    /// that are only merged are held against it
    #[arg(required_unless_present = "in_file")]
    model: Option<PathBuf>,

    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,

    /// The text: .txt; or .jsonl, .json and .json.gz with one {"text": …} a line, or {"messages": […]} for the model's own chat
    /// template; or c4 or wikitext2, which are fetched; repeatable [default: a sample that is built in, or with --in-file none]
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,

    /// Importance matrices to be added up, by themselves, or with what is measured where there is a text (-f); repeatable
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    in_file: Vec<PathBuf>,

    /// Tokens per window
    #[arg(short = 'c', long = "ctx-size", value_name = "N", default_value_t = 512)]
    context: usize,

    /// How many windows at most
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,

    /// Also measure what the output matrix reads
    #[arg(long)]
    process_output: bool,

    /// The pre-tokenizer's name in llama.cpp, if the model's is not known
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    #[command(flatten)]
    on: OnDevice,

    /// How many threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Replace an existing file
    #[arg(long)]
    force: bool,

    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    /// As llama-imatrix: files and no text are added up, and nothing is measured.
    fn merges_only(&self) -> bool {
        !self.in_file.is_empty() && self.file.is_empty()
    }
}

pub fn run(args: &Args) -> Result<()> {
    super::use_threads(args.threads)?;
    let started = Instant::now();
    if args.context < 4 {
        return Err(Error::usage(format!("windows of {} tokens are too short: -c 4 is the least", args.context)));
    }
    if args.chunks == Some(0) {
        return Err(Error::usage("--chunks must be at least 1"));
    }
    if args.merges_only() && (args.chunks.is_some() || args.process_output) {
        let option = if args.process_output { "--process-output" } else { "--chunks" };
        return Err(Error::usage(format!(
            "{option} is about measuring, and --in-file without a text only adds files up"
        ))
        .hint("give the text to measure with -f, or leave the option out"));
    }
    let inputs: Vec<&Path> = args.model.iter().chain(&args.file).chain(&args.in_file).map(PathBuf::as_path).collect();
    check_destination(&args.output, &inputs, args.force)?;
    // Read first: a bad file should not cost a measurement.
    let others = args.in_file.iter().map(|path| Imatrix::read(path)).collect::<Result<Vec<_>>>()?;
    let mut sum = match &args.model {
        Some(model) if args.merges_only() => {
            let model = hub::find(model, Need::Headers)?;
            check(args, &others, model.path())?;
            Imatrix::default()
        }
        Some(model) => measure(args, model)?,
        None => Imatrix::default(),
    };
    let measured = sum.chunks;
    for other in others {
        sum.merge(other)?;
    }
    let size = imatrix::write(&args.output, &sum)?;
    let (layers, took) = (sum.entries.len(), started.elapsed());
    let text = format!("{}: {}, the inputs of {layers} layers", args.output.display(), bytes(size));
    output::note(&format!("{text} over {} windows, in {}", sum.chunks, time(took)));
    let added = args.in_file.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" + ");
    match (args.merges_only(), added.as_str()) {
        (true, _) => output::note(&format!("{added}: added up; nothing is measured beside them without a text (-f)")),
        (false, "") => {}
        (false, _) => output::note(&format!("{measured} windows measured + {added}")),
    }
    if args.json {
        output::json(
            "summary",
            json!({
                "output": args.output,
                "bytes": size,
                "entries": layers,
                "windows": sum.chunks,
                "measured_windows": measured,
                "added": args.in_file,
                "texts": sum.datasets,
                "seconds": took.as_secs_f64(),
            }),
        );
    }
    Ok(())
}

/// Holds importance matrices against a model.
fn check(args: &Args, all: &[Imatrix], model: &Path) -> Result<()> {
    let loaded = LoadedModel::open(model, args.pre.as_deref())?;
    let specs: Vec<_> = loaded.model.tensors().collect();
    for (path, imatrix) in args.in_file.iter().zip(all) {
        let known = specs.iter().map(|spec| Ok(imatrix.entry(&spec.gguf, &spec.shape)?.is_some()));
        let known = known.collect::<Result<Vec<bool>>>();
        let known = known.and_then(|known| if known.contains(&true) { Ok(()) } else { Err(imatrix.foreign()) });
        known.context(|| format!("{} does not fit {}", path.display(), model.display()))?;
    }
    Ok(())
}

fn measure(args: &Args, model: &Path) -> Result<Imatrix> {
    let model = hub::find(model, Need::Weights)?;
    let mut loaded = LoadedModel::open(model.path(), args.pre.as_deref())?;
    loaded.compute = args.on.choose(device_memory(&loaded.model, false, false))?;
    let (documents, names) = texts(args, &loaded)?;
    // As llama-imatrix: one text from the first token to the last, in windows that each start with BOS.
    let (tokenizer, protocol, text) = (&loaded.tokenizer, Protocol::LlamaCpp, documents.join("\n"));
    let mut tokens: Vec<u32> = tokenizer.bos().into_iter().collect();
    // Special tokens are read as such, which llama-imatrix does with --parse-special: conversations consist of them.
    tokens.extend(tokenizer.encode(text.strip_suffix('\n').unwrap_or(&text))?);
    let windows = begun(cut_tokens(&tokens, protocol, args.context, args.chunks)?, &loaded, protocol);
    let progress = Progress::new(false, args.json);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let mut measured = importance::measure(&loaded, &windows, args.process_output, &show)?;
    progress.finish();
    measured.datasets = names;
    Ok(measured)
}

/// The documents of all that `-f` names, and what they are called.
fn texts(args: &Args, loaded: &LoadedModel) -> Result<(Vec<String>, Vec<String>)> {
    let (chat, broken) = match loaded.chat() {
        Ok(chat) => (chat.as_ref(), None),
        // It is an error only where it is needed.
        Err(error) => (None, Some(error)),
    };
    let read = |files: &[PathBuf]| match (text::read_all(files, chat), broken) {
        (Err(error), Some(broken)) => Err(error.hint(broken.chain().join(": "))),
        (result, _) => result,
    };
    if args.file.is_empty() {
        return read(&[]);
    }
    let (mut documents, mut names) = (Vec::new(), Vec::new());
    for file in &args.file {
        let set = file.to_str().filter(|_| !file.exists()).and_then(sets::by_name);
        let (own, called) = match set {
            Some(set) => {
                let source = set.calibration(1.0, &demand(args, set, loaded)?, &Download::default())?;
                (source.documents, source.names)
            }
            None => read(std::slice::from_ref(file))?,
        };
        documents.extend(own);
        names.extend(called);
    }
    Ok((documents, names))
}

/// How much of a set is read.
fn demand<'a>(args: &Args, set: Set, loaded: &'a LoadedModel) -> Result<SetRequest<'a>> {
    let count = match (args.chunks, set) {
        (Some(chunks), _) => chunks,
        (None, Set::WikiText2) => 0,
        (None, Set::C4) => {
            return Err(
                Error::usage("c4 has no end: say how many windows are wanted").hint("for example, --chunks 256")
            );
        }
    };
    Ok(SetRequest { count, length: args.context, packed: true, tokenizer: &loaded.tokenizer })
}
