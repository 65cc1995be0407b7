//! Shell completions and manual pages: each names every command, and a real shell and `man` read them.

mod common;

use common::{folder, llmq, names, run};
use std::fs;
use std::process::{Command, Stdio};

/// The commands that `llmq --help` lists.
fn commands() -> Vec<String> {
    let help = llmq!["--help"].ok().stdout;
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let entry = |line: &str| {
        line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')).map(|r| r.split(' ').next().unwrap().to_owned())
    };
    list.lines().filter_map(entry).filter(|name| name != "help").collect()
}

#[test]
fn every_shell_completes_every_command() {
    let commands = commands();
    assert!(commands.len() >= 8 && !commands.contains(&"man".to_owned()), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = llmq!["completions", shell].ok().stdout;
        let missing: Vec<_> = commands.iter().filter(|name| !script.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
        assert!(script.contains("tensor-type"), "{shell}");
    }
    llmq!["completions", "tcsh"].failed(2, &["tcsh", "possible values", "bash", "fish"]);
}

#[cfg(unix)]
#[test]
fn bash_completes_a_command_and_an_option() {
    let script = r#"source "$1"; complete_of() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=();
        _llmq llmq "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; echo "${COMPREPLY[*]}"; }
        complete_of llmq qua; complete_of llmq quantize --target-s"#;
    let root = folder();
    let path = root.path().join("llmq.bash");
    fs::write(&path, llmq!["completions", "bash"].ok().stdout).unwrap();
    let shown = run(Command::new("bash").args(["-c", script, "bash"]).arg(&path)).ok().stdout;
    assert_eq!(shown, "quantize\n--target-size\n");
}

#[test]
fn a_reader_that_has_gone_away_is_no_error() {
    let mut child = Command::new(common::BINARY).args(["completions", "zsh"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn every_command_has_a_manual_page() {
    let root = folder();
    let place = root.path().join("share/man1");
    llmq!["man", &place].ok();
    let found = names(&place);
    for name in commands() {
        let page = format!("llmq-{name}.1");
        assert!(found.contains(&page), "no {page} in {found:?}");
        assert!(fs::read_to_string(place.join(&page)).unwrap().starts_with(".ie"), "{page}");
    }
    let page = fs::read_to_string(place.join("llmq-quantize.1")).unwrap();
    assert!(page.contains(".TH llmq-quantize 1") && page.contains("\\-\\-target\\-size"), "{page}");
    // Again, over what is there; and not where there can be no folder.
    llmq!["man", &place].ok();
    assert_eq!(names(&place), found);
    llmq!["man", place.join("llmq.1")].failed(1, &["cannot create", "llmq.1"]);
}
