//! Destinations that cannot be written or must not be: inputs under any name, existing files, folders that are missing
//! or refuse, disks that are full from the start or fill up in the middle. What was there stays as it was, and no
//! temporary is left behind.
#![cfg(target_os = "linux")]

mod common;

use common::{BINARY, Run, folder, llmq, names, run, tiny};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const HINT: &str = "\nhint: ";
const LITTLE: [&str; 4] = ["--samples", "2", "--seq-len", "64"];

/// A copy of eval/tiny that may be overwritten.
fn copy(to: &Path) {
    fs::create_dir(to).unwrap();
    for name in names(&tiny()) {
        fs::copy(tiny().join(&name), to.join(name)).unwrap();
    }
}

#[test]
fn a_file_of_the_model_is_never_overwritten() {
    let root = folder();
    let model = root.path().join("model");
    copy(&model);
    let link = root.path().join("link.gguf");
    symlink(model.join("model.safetensors"), &link).unwrap();
    for output in [model.join("model.safetensors"), model.join("tokenizer.json"), model.join("README.md"), link] {
        let before = fs::read(&output).unwrap();
        let run = llmq!["quantize", &model, "-o", &output, "--force"; LITTLE];
        run.failed(2, &[output.to_str().unwrap(), "is the input", HINT, "-o"]);
        assert!(before == fs::read(&output).unwrap());
    }
    assert_eq!(names(&model), names(&tiny()));
    assert_eq!(names(root.path()), ["link.gguf", "model"]);
}

#[test]
fn the_calibration_text_is_never_overwritten() {
    let root = folder();
    let [text, link] = ["text.txt", "link.gguf"].map(|name| root.path().join(name));
    fs::write(&text, "A sentence for calibration. ".repeat(100)).unwrap();
    symlink(&text, &link).unwrap();
    for output in [&text, &link] {
        let run = llmq!["quantize", tiny(), "-o", output, "--force", "--calib", &text; LITTLE];
        run.failed(2, &[output.to_str().unwrap(), "is the input", "text.txt", HINT]);
    }
    assert!(fs::read_to_string(&text).unwrap().starts_with("A sentence"));
    assert_eq!(names(root.path()), ["link.gguf", "text.txt"]);
}

#[test]
fn an_existing_file_is_replaced_only_by_force() {
    let root = folder();
    let output = root.path().join("out.gguf");
    fs::write(&output, "precious").unwrap();
    let told = [output.to_str().unwrap(), "already exists", HINT, "--force"];
    llmq!["quantize", tiny(), "-o", &output; LITTLE].failed(2, &told);
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    llmq!["quantize", tiny(), "-o", &output, "--force"; LITTLE].ok();
    llmq!["inspect", &output].ok();
    assert_eq!(names(root.path()), ["out.gguf"]);
}

#[test]
fn folders_that_are_missing_or_no_folders_or_refuse() {
    let root = folder();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    for (output, told) in [
        (root.path().to_owned(), ["is a folder", HINT, "model.gguf"]),
        (root.path().join("missing/out.gguf"), ["does not exist", HINT, "mkdir -p"]),
        (file.join("out.gguf"), ["is not a folder", HINT, "-o"]),
        // Nobody can make a file there, not even root.
        ("/proc/out.gguf".into(), ["no file can be made in /proc", HINT, "-o"]),
    ] {
        let run = llmq!["quantize", tiny(), "-o", &output; LITTLE];
        run.failed(2, &[&told[..], &[output.to_str().unwrap()]].concat());
    }
    assert_eq!(names(root.path()), ["file"]);
}

/// What the errors about a lack of space have to say.
fn needed() -> String {
    let dry = llmq!["quantize", tiny(), "--dry-run", "--json"].ok();
    format!("out.gguf: it needs {} bytes", dry.summary()["bytes"])
}

/// Runs a shell script with a small disk mounted on `$1`, seen by it alone, and llmq as `$2`.
fn with_small_disk(script: &str) -> Run {
    let disk = folder();
    // A user who is not root may mount in a namespace of its own; root in a container perhaps only the other way.
    let namespaces: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];
    let inside = |options: &[&str], script: &str| {
        let script = format!("mount -t tmpfs -o size=1m none \"$1\" || exit 99\n{script}");
        run(Command::new("unshare").args(options).args(["sh", "-c", &script, "sh"]).arg(disk.path()).arg(BINARY))
    };
    let tried = namespaces.map(|options| (options, inside(options, "")));
    match tried.iter().find(|(_, run)| run.code == Some(0)) {
        Some((options, _)) => inside(options, script),
        None => {
            panic!("this test needs a small disk, so it must be allowed to mount a tmpfs in a namespace: {tried:?}")
        }
    }
}

#[test]
fn a_full_disk_is_found_at_the_start() {
    let script = format!("\"$2\" quantize {} -o \"$1/out.gguf\"; code=$?; ls -A \"$1\"; exit $code", tiny().display());
    let run = with_small_disk(&script);
    let run = run.failed(1, &[&needed(), "bytes, 1048576 are available", HINT, "-o"]);
    assert_eq!(run.stdout, "", "left behind");
}

#[test]
fn a_file_that_may_not_grow_so_large_is_found_at_the_start() {
    let root = folder();
    let output = root.path().join("out.gguf");
    let limited = "ulimit -f 1000; exec \"$0\" \"$@\"";
    let run = run(Command::new("sh").args(["-c", limited, BINARY, "quantize"]).arg(tiny()).arg("-o").arg(&output));
    run.failed(1, &[&needed(), HINT, "ulimit -f"]);
    assert_eq!(names(root.path()), [""; 0], "left behind");
}
