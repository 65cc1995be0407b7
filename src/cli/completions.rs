//! `llmq completions`, `llmq man`: what packages bring along for shells and for `man`.

use super::{Cli, output};
use crate::error::{Context, Result};
use crate::writer::atomic::AtomicFile;
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
For example:
  llmq completions bash > ~/.local/share/bash-completion/completions/llmq
  llmq completions zsh > ~/.zfunc/_llmq                    a folder of $fpath
  llmq completions fish > ~/.config/fish/completions/llmq.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Where to; a folder that is made if it is missing
    folder: PathBuf,
}

/// Prints a shell's completions.
pub fn run(args: &Args) -> Result<()> {
    // Not straight to standard output: clap_complete panics where a reader has gone away.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "llmq", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Writes `llmq.1` and a page for each command below it, `llmq-quantize.1`. What is there is replaced.
///
/// # Errors
/// The folder cannot be written.
pub fn man(args: &ManArgs) -> Result<()> {
    std::fs::create_dir_all(&args.folder).context(|| format!("cannot create {}", args.folder.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &args.folder)
}

fn pages(command: &clap::Command, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(&name)
        .render(&mut page)
        .context(|| format!("cannot render {}", path.display()))?;
    let mut file = AtomicFile::create(&path)?;
    file.write(&page)?;
    file.commit()?;
    command.get_subcommands().filter(|inner| !inner.is_hide_set()).try_for_each(|inner| pages(inner, folder))
}
