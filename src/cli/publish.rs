//! `llmq publish`: files, their model card, report and importance matrix into a repository of the hub, in one commit.

use super::hub::Download;
use super::output::{self, Progress, bytes};
use crate::error::{Context, Error, Result};
use crate::eval::report::{Hash, judged};
use crate::interrupt;
use crate::source::hub::Repository;
use crate::source::hub::upload::{LocalFile, Remote, Status, Upload};
use crate::source::imatrix::Imatrix;
use serde_json::json;
use std::fs::Metadata;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Bytes of a text that may be a model card.
const MOST: u64 = 1 << 20;

/// How files end that hold weights.
const WEIGHTS: [&str; 7] = ["gguf", "safetensors", "onnx", "bin", "pt", "pth", "ckpt"];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The files: GGUFs, the model card (README.md) and the report that `llmq eval` or `llmq compare` wrote of them, importance
    /// matrices
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where to: org/name, or org/name@branch; a repository that is not there is made
    #[arg(required = true, value_name = "ORG/NAME")]
    repository: String,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Do it without asking
    #[arg(short, long)]
    yes: bool,

    /// Publish also weights that no model card among the files judges against their original
    #[arg(long)]
    unproven: bool,

    /// Where the repository has to be made, make a private one
    #[arg(long)]
    private: bool,

    /// What the commit says [default: the names of the files]
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// One JSON object a line on standard output: each file, then a summary
    #[arg(long)]
    json: bool,
}

/// Whether a run that ends in this command can end so.
///
/// # Errors
/// It could not publish anything: a name that is none, no token, or nobody to ask.
pub fn check(repository: &str, yes: bool) -> Result<()> {
    let repository = named(repository)?;
    Upload::new(&repository, &Download::default())?.check_token()?;
    if yes || can_ask() {
        return Ok(());
    }
    Err(Error::usage("there is no terminal to ask whether this shall be published")
        .hint("add --yes to do it, or --dry-run to see what would be done"))
}

/// Publishes files that were just judged.
///
/// # Errors
/// As of the command.
pub fn publish(files: Vec<PathBuf>, repository: String, yes: bool, json: bool) -> Result<()> {
    run(&Args { files, repository, yes, json, dry_run: false, unproven: false, private: false, message: None })
}

fn named(repository: &str) -> Result<Repository> {
    Repository::model(repository).ok_or_else(|| {
        Error::usage(format!("'{repository}' is not the name of a repository"))
            .hint("name it as the hub does, for example: llmq publish model.gguf README.md org/name")
    })
}

pub fn run(args: &Args) -> Result<()> {
    let repository = named(&args.repository)?;
    if !args.dry_run {
        check(&args.repository, args.yes)?;
    }
    let watch = Download::default();
    let upload = Upload::new(&repository, &watch)?;
    let files = local_files(&args.files)?;
    check_proof(&files, args.unproven)?;
    let found = upload.remote(&files)?;
    show(args, &upload.page(), &files, found.as_ref());
    let changed = found.as_ref().is_none_or(|remote| remote.files.iter().any(|status| *status != Status::Same));
    let mut summary = json!({ "repository": repository.id, "dry_run": args.dry_run, "commit": null, "sent": 0 });
    if !changed {
        output::note("all of it is there already");
    } else if args.dry_run {
        output::note("nothing was sent: --dry-run");
    } else if args.yes || confirmed(&repository.id)? {
        let remote = match found {
            Some(remote) => remote,
            None => {
                upload.create(args.private)?;
                let missing = || Error::new(format!("{} was made, and is not there", repository.id));
                upload.remote(&files)?.ok_or_else(missing)?
            }
        };
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let message = args.message.clone().unwrap_or_else(|| format!("Upload {} with llmq", names.join(", ")));
        let commit = upload.commit(&files, &remote, &message)?;
        output::note(&format!("published, and checked: {}", commit.url));
        summary["commit"] = commit.url.into();
        summary["sent"] = commit.sent.into();
    } else {
        output::note("nothing was sent");
    }
    if args.json {
        output::json("summary", summary);
    }
    Ok(())
}

/// The files with their hashes. A model card is called `README.md` there, for only so the hub shows it.
fn local_files(paths: &[PathBuf]) -> Result<Vec<LocalFile>> {
    let metadata = |path: &PathBuf| -> Result<Metadata> {
        let found = path.metadata().context(|| format!("cannot read {}", path.display()))?;
        match found.is_file() {
            true => Ok(found),
            false => Err(Error::usage(format!("{} is not a file", path.display()))
                .hint("name each file that is to be published")),
        }
    };
    let found = paths.iter().map(metadata).collect::<Result<Vec<Metadata>>>()?;
    let (progress, total) = (Progress::new(false, false), found.iter().map(Metadata::len).sum());
    let done = std::cell::Cell::new(0);
    let mut files: Vec<LocalFile> = Vec::new();
    for (path, found) in paths.iter().zip(found) {
        let (size, modified) = (found.len(), found.modified().ok());
        let Hash { name, sha256 } = Hash::of(path, &|n| {
            done.set(done.get() + n);
            progress.set(done.get(), total);
        })?;
        let name = if card(path, size).is_some() { "README.md".into() } else { name };
        if let Some(other) = files.iter().find(|file| file.name == name) {
            let what = format!("{} and {} would both be {name} there", other.path.display(), path.display());
            return Err(Error::usage(what).hint("leave one of them out; one model card can judge several files"));
        }
        files.push(LocalFile { path: path.clone(), name, size, sha256, modified });
    }
    progress.finish();
    Ok(files)
}

/// The files that a model card judges, if this is one.
fn card(path: &Path, size: u64) -> Option<Vec<Hash>> {
    let text = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("md")) && size <= MOST;
    judged(&text.then(|| std::fs::read_to_string(path).ok()).flatten()?)
}

/// Refuses weights that were not compared with their original, which shows in the model card: it names the SHA-256 of what it judges.
fn check_proof(files: &[LocalFile], unproven: bool) -> Result<()> {
    let proven: Vec<Hash> = files.iter().filter_map(|file| card(&file.path, file.size)).flatten().collect();
    let is_weights = |file: &&LocalFile| {
        let end = file.path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        WEIGHTS.contains(&&*end) && (end != "gguf" || Imatrix::read(&file.path).is_err())
    };
    for file in files.iter().filter(is_weights).filter(|file| proven.iter().all(|hash| hash.sha256 != file.sha256)) {
        let why = match proven.iter().find(|hash| hash.name == file.name) {
            Some(hash) => {
                format!("the model card judges another {}, with SHA-256 {}, and this has", file.name, hash.sha256)
            }
            None => "no model card among these files judges it against its original; its SHA-256 is".into(),
        };
        let what = format!("{}: {why} {}", file.path.display(), file.sha256);
        if !unproven {
            let hint = match file.name.to_lowercase().ends_with(".gguf") {
                true => format!(
                    "llmq eval {} --reference ORIGINAL --model-card README.md --report report.html, and publish these with it; or add \
                     --unproven",
                    super::shell::word(&file.path)
                ),
                false => "model cards judge GGUFs; add --unproven to publish it all the same".into(),
            };
            return Err(Error::usage(what).hint(hint));
        }
        output::note(&format!("note: {what}"));
    }
    Ok(())
}

/// Shows what there is to do.
fn show(args: &Args, page: &str, files: &[LocalFile], remote: Option<&Remote>) {
    let statuses = |i: usize| remote.and_then(|remote| remote.files.get(i).copied()).unwrap_or(Status::New);
    if !args.json {
        let made = match (remote, args.private) {
            (Some(_), _) => "",
            (None, false) => ", which is not there and would be made, public",
            (None, true) => ", which is not there and would be made, private",
        };
        output::line(format!("in one commit to {page}{made}:"));
    }
    let width = files.iter().map(|file| file.name.chars().count()).max().unwrap_or(0);
    for (i, file) in files.iter().enumerate() {
        let status = statuses(i);
        if args.json {
            let word = match status {
                Status::New => "new",
                Status::Differs(_) => "differs",
                Status::Same => "same",
            };
            let LocalFile { path, name, size, sha256, .. } = file;
            let fields = json!({ "path": path, "name": name, "bytes": size, "sha256": sha256, "status": word });
            output::json("file", fields);
            continue;
        }
        let word = match status {
            Status::New => "new".into(),
            Status::Differs(size) => format!("replaces {}", bytes(size)),
            Status::Same => "there already".into(),
        };
        output::line(format!("  {:width$}  {:>10}  {word}", file.name, bytes(file.size)));
    }
}

fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks whether to go on. The answer is read on a thread of its own, so that Ctrl-C need not wait for it.
fn confirmed(id: &str) -> Result<bool> {
    output::note(&format!("publish this to {id}? [y/N]"));
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut answer = String::new();
        send.send(std::io::stdin().read_line(&mut answer).map(|_| answer))
    });
    let answer = loop {
        interrupt::check()?;
        match receive.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break String::new(),
            Ok(answer) => break answer.context(|| "cannot read the answer".into())?,
        }
    };
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
