//! The command line: one file per command, and the only place that prints.

mod archs;
mod budget;
mod compare;
mod completions;
mod device;
#[cfg(feature = "gpu")]
mod devices;
mod effort;
mod eval;
mod eval_progress;
mod fallbacks;
mod fit;
mod hub;
mod imatrix;
mod inspect;
#[cfg(feature = "int8")]
mod int8;
mod output;
mod override_kv;
mod plan;
#[cfg(feature = "hub")]
mod publish;
mod quantize;
mod report_files;
mod rounding;
mod scoring;
mod shell;
mod summary;

use crate::error::{Error, Kind, Result};
use crate::{interrupt, writer};
use clap::{Parser, Subcommand, ValueEnum};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first commands to type.
const BEGIN: &str = "\
To begin:
  llmq plan Qwen/Qwen3-0.6B --vram 8G                      what it takes, and what fits
  llmq quantize Qwen/Qwen3-0.6B                            a Q4_K_M in this folder
  llmq eval Qwen3-0.6B.Q4_K_M.gguf --perplexity --reference Qwen/Qwen3-0.6B";

/// What a command is told that was given nothing to do.
const NOTHING: &str = "\
llmq turns a Hugging Face checkpoint into the best GGUF of its size, and proves it. The first command to type:
  llmq quantize Qwen/Qwen3-0.6B                            a Q4_K_M in this folder
Then, or instead:
  llmq plan Qwen/Qwen3-0.6B --vram 8G                      what it takes, and what fits
  llmq eval FILE --reference MODEL --perplexity            how near the file is to its original
  llmq compare FILE FILE... --reference MODEL              which of several files is best
  llmq publish FILE... ORG/NAME                            files and their model card on the hub
  llmq inspect FILE                                        what is in a file
llmq --help lists all commands, and llmq COMMAND --help what one of them can do.";

/// Turns a Hugging Face checkpoint into the best GGUF of its size, and proves it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, propagate_version = true, after_help = BEGIN)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantize a checkpoint into a GGUF that llama.cpp loads
    Quantize(Box<quantize::Args>),
    /// Say what quantizing would take and give: time, memory, sizes, and what fits
    Plan(Box<plan::Args>),
    /// Measure how much each column of each layer matters
    Imatrix(imatrix::Args),
    /// Judge a GGUF or a checkpoint on a text
    Eval(eval::Args),
    /// Rank several files by how near they are to their original
    Compare(compare::Args),
    /// Put files with their model card on the Hugging Face Hub
    #[cfg(feature = "hub")]
    Publish(publish::Args),
    /// Show what is in a GGUF or a checkpoint
    Inspect(inspect::Args),
    /// Show the GPUs that can be computed on, and test them
    #[cfg(feature = "gpu")]
    Devices(devices::Args),
    /// List the architectures that can be quantized, and what applies to each
    Archs(archs::Args),
    /// Quantize models that are no LLMs to INT8: BERT, ResNet, ViT and the like
    #[cfg(feature = "int8")]
    Int8(Box<int8::Args>),
    /// Print what completes llmq's commands in a shell
    Completions(completions::Args),
    /// Write a manual page for each command
    #[command(hide = true)]
    Man(completions::ManArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Runs a command and says how it ended: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
pub fn run(cli: Cli) -> ExitCode {
    output::set_color(cli.color);
    let Some(command) = &cli.command else {
        output::note(NOTHING);
        return ExitCode::from(2);
    };
    fail_at_file_size_limits();
    let handler = ctrlc::set_handler(|| {
        if interrupt::request() {
            writer::atomic::discard_all();
            std::process::exit(130);
        }
        output::note("stopping; press Ctrl-C again to stop at once");
    });
    let handler = handler.map_err(|cause| Error::new("cannot listen for Ctrl-C").because(cause));
    let result = handler.and_then(|()| dispatch(command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            match error.kind() {
                Kind::Failed => ExitCode::from(1),
                Kind::Usage => ExitCode::from(2),
                Kind::Interrupted => ExitCode::from(130),
            }
        }
    }
}

fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Quantize(args) => quantize::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Imatrix(args) => imatrix::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Compare(args) => compare::run(args),
        #[cfg(feature = "hub")]
        Command::Publish(args) => publish::run(args),
        Command::Inspect(args) => inspect::run(args),
        #[cfg(feature = "gpu")]
        Command::Devices(args) => devices::run(args),
        Command::Archs(args) => archs::run(args),
        #[cfg(feature = "int8")]
        Command::Int8(args) => int8::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => completions::man(args),
    }
}

/// A command that another one runs as a part of its own.
#[cfg(feature = "hub")]
fn parse(words: &[String]) -> Result<Command> {
    let words = ["llmq"].into_iter().chain(words.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|cause| Error::new("cannot go on").because(cause))?;
    cli.command.ok_or_else(|| Error::new("cannot go on without a command"))
}

/// Sets the number of threads for everything that follows. Where one command runs others, the first one's holds.
fn use_threads(threads: Option<usize>) -> Result<()> {
    static SET: AtomicBool = AtomicBool::new(false);
    let threads = match threads {
        Some(0) => return Err(Error::usage("--threads must be at least 1")),
        Some(n) => n,
        None => 0,
    };
    if SET.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|cause| Error::new("cannot start threads").because(cause))
}

/// Lets a write beyond `ulimit -f` fail like any other, instead of ending the program before it can tidy up.
fn fail_at_file_size_limits() {
    #[cfg(unix)]
    {
        // A handler that only sets a flag nobody reads. Should it be refused, the program merely keeps the usual behaviour.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Default::default());
    }
}
