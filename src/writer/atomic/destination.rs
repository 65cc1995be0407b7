//! What may be written where.

use std::fs;
use std::path::Path;

use super::folder_of;
use crate::error::{Error, Result};

/// Refuses a destination that could not be written or whose replacement would lose something. `inputs` are the files
/// that will be read (not their folders); they are never overwritten, anything else only with `force`.
///
/// # Errors
///
/// The output is a folder, no regular file, an input under any name, or there already; or its folder is missing or
/// not writable.
pub fn check_destination(output: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    let shown = output.display();
    let ends_in_separator = output.as_os_str().to_string_lossy().ends_with(std::path::is_separator);
    if output.file_name().is_none() || ends_in_separator || output.is_dir() {
        let example = output.join("model.gguf");
        return Err(Error::usage(format!("the output {shown} is a folder"))
            .hint(format!("add the name of the file: -o {}", example.display())));
    }
    let folder = folder_of(output);
    if folder.exists() && !folder.is_dir() {
        return Err(Error::usage(format!("cannot write {shown}: {} is not a folder", folder.display()))
            .hint("choose another folder with -o"));
    }
    if !folder.is_dir() {
        return Err(Error::usage(format!("cannot write {shown}: the folder {} does not exist", folder.display()))
            .hint(format!("mkdir -p {}", folder.display())));
    }
    if let Some(input) = inputs.iter().find(|input| same_file(output, input)) {
        return Err(Error::usage(format!("the output {shown} is the input {}", input.display()))
            .hint("choose another name with -o"));
    }
    if fs::metadata(output).is_ok_and(|found| !found.is_file()) {
        return Err(
            Error::usage(format!("the output {shown} is a device or a pipe")).hint("name a regular file with -o")
        );
    }
    if !force && fs::symlink_metadata(output).is_ok() {
        return Err(Error::usage(format!("the output {shown} already exists"))
            .hint("add --force to replace it, or choose another name with -o"));
    }
    if let Err(cause) = tempfile::tempfile_in(folder) {
        return Err(Error::usage(format!("cannot write {shown}: no file can be made in {}", folder.display()))
            .hint("choose another folder with -o")
            .because(cause));
    }
    Ok(())
}

/// The same for a folder. An empty one may be there; with `force`, so may a quantized checkpoint: whatever else is in a folder
/// would be lost.
///
/// # Errors
/// The output is no folder, or one that holds something else or an input; or the folder around it is missing or not writable.
pub fn check_folder(output: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    let shown = output.display();
    let (Some(_), around) = (output.file_name(), folder_of(output)) else {
        return Err(Error::usage(format!("the output {shown} has no name")).hint("name a new folder with -o"));
    };
    if !around.is_dir() {
        return Err(Error::usage(format!("cannot write {shown}: the folder {} does not exist", around.display()))
            .hint(format!("mkdir -p {}", around.display())));
    }
    if let Ok(found) = fs::symlink_metadata(output) {
        let place = fs::canonicalize(output).unwrap_or_else(|_| output.into());
        let within = |input: &&&Path| {
            fs::canonicalize(input).is_ok_and(|path| path.starts_with(&place)) || input.starts_with(output)
        };
        if let Some(input) = inputs.iter().find(within) {
            return Err(Error::usage(format!("the output {shown} holds the input {}", input.display()))
                .hint("choose another name with -o"));
        }
        if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none()) {
            return Ok(());
        }
        if !force {
            return Err(Error::usage(format!("the output {shown} already exists"))
                .hint("add --force to replace it, or choose another name with -o"));
        }
        let config = fs::read_to_string(output.join("config.json")).unwrap_or_default();
        if !found.is_dir() || !config.contains("\"quantization_config\"") {
            return Err(Error::usage(format!("the output {shown} is there, and no quantized checkpoint"))
                .hint("remove it yourself if it can go, or choose another name with -o"));
        }
    }
    if let Err(cause) = tempfile::tempfile_in(around) {
        return Err(Error::usage(format!("cannot write {shown}: no file can be made in {}", around.display()))
            .hint("choose another folder with -o")
            .because(cause));
    }
    Ok(())
}

/// Whether both paths lead to one file, through links of any kind.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let [a, b] = [a, b].map(|path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino())));
        a.is_some() && a == b
    }
    #[cfg(not(unix))]
    {
        let [a, b] = [a, b].map(|path| fs::canonicalize(path).ok());
        a.is_some() && a == b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_that_lose_something_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [new, old, input, missing] = ["new", "old", "input", "missing/new"].map(|name| folder.path().join(name));
        fs::write(&old, "").unwrap();
        fs::write(&input, "").unwrap();
        let refusal = |output: &Path, force| match check_destination(output, &[&input], force) {
            Ok(()) => String::new(),
            Err(error) => format!("{error}; {}", error.hint_text().unwrap()),
        };
        assert_eq!(refusal(&new, false), "");
        assert_eq!(refusal(&old, true), "");
        assert!(refusal(&old, false).contains("--force"));
        assert!(refusal(&input, true).contains("is the input"));
        assert!(refusal(folder.path(), true).contains("is a folder"));
        assert!(refusal(Path::new("/"), true).contains("is a folder"));
        assert!(refusal(&folder.path().join("new/"), true).contains("is a folder"));
        assert!(refusal(&missing, false).contains("mkdir -p"));
        assert_eq!(check_destination(&old, &[], false).unwrap_err().kind(), crate::error::Kind::Usage);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn only_quantized_checkpoints_are_replaced_and_never_what_holds_an_input() {
        let root = tempfile::tempdir().unwrap();
        let [new, old, other, around, empty] =
            ["new", "old", "other", "around", "empty"].map(|name| root.path().join(name));
        [&old, &other, &around, &empty].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::write(other.join("precious"), "").unwrap();
        let input = around.join("input");
        fs::write(&input, "").unwrap();
        let quantized = "{ \"quantization_config\": {} }";
        [&old, &around].into_iter().for_each(|path| fs::write(path.join("config.json"), quantized).unwrap());
        let refusal = |output: &Path, force| match check_folder(output, &[&input], force) {
            Ok(()) => String::new(),
            Err(error) => format!("{error}; {}", error.hint_text().unwrap()),
        };
        assert_eq!([refusal(&new, false), refusal(&old, true), refusal(&empty, false)], [""; 3]);
        assert!(refusal(&old, false).contains("--force"));
        assert!(refusal(&other, true).contains("no quantized checkpoint"));
        assert!(refusal(&input, true).contains("holds the input"));
        assert!(refusal(&around, true).contains("holds the input"));
        assert!(refusal(&root.path().join("missing/new"), true).contains("mkdir -p"));
        assert!(refusal(Path::new("/"), true).contains("has no name"));
    }

    #[cfg(unix)]
    #[test]
    fn links_to_an_input_and_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [input, soft, hard, dangling] = ["input", "soft", "hard", "dangling"].map(|name| folder.path().join(name));
        fs::write(&input, "").unwrap();
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        fs::hard_link(&input, &hard).unwrap();
        for output in [&soft, &hard] {
            let error = check_destination(output, &[&input], true).unwrap_err();
            assert!(error.to_string().contains("is the input"), "{error}");
        }
        assert!(check_destination(&dangling, &[], false).unwrap_err().to_string().contains("already exists"));
        assert!(check_destination(Path::new("/dev/null"), &[], true).unwrap_err().to_string().contains("a device"));
    }
}
