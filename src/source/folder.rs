//! What a folder is that holds no checkpoint, and where the checkpoint is.

use super::json;
use super::value::quoted;
use crate::error::Error;
use std::path::{Path, PathBuf};

/// The description of an adapter, as PEFT writes it.
pub const ADAPTER: &str = "adapter_config.json";

/// An error that says what a folder is instead of a checkpoint; none if there is nothing to say.
pub fn recognized(folder: &Path) -> Option<Error> {
    adapter(folder).or_else(|| hub_cache(folder))
}

fn adapter(folder: &Path) -> Option<Error> {
    let path = folder.join(ADAPTER);
    if !path.is_file() {
        return None;
    }
    let description = json::read(&path).unwrap_or_default();
    let base = description["base_model_name_or_path"].as_str().map_or("its base model".into(), |name| quoted(name, 80));
    let what = format!("{} holds an adapter ({ADAPTER}), not a whole model", folder.display());
    Some(Error::new(what).hint(format!(
        "merge it into {base} first, with PEFT: AutoPeftModelForCausalLM.from_pretrained('{}').merge_and_unload()\
         .save_pretrained('merged'), and its tokenizer",
        folder.display()
    )))
}

/// huggingface_hub's folder of a repository, one level above the files: `models--ORG--NAME/snapshots/COMMIT`.
fn hub_cache(folder: &Path) -> Option<Error> {
    let snapshots = folder.join("snapshots");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    let main = std::fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
    let main = found.iter().find(|path| path.file_name().is_some_and(|name| name == main.trim()));
    let one = main.or(found.first())?;
    let what = format!("{} is the hub cache's folder of a repository, not a checkpoint itself", folder.display());
    Some(Error::new(what).hint(format!("give the folder of the files: {}", one.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_adapter_names_its_base_model() {
        let folder = tempfile::tempdir().unwrap();
        assert!(recognized(folder.path()).is_none());
        fs::write(folder.path().join(ADAPTER), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
        let error = recognized(folder.path()).unwrap();
        assert!(error.to_string().contains("adapter"), "{error}");
        assert!(error.hint_text().unwrap().starts_with("merge it into \"org/base\" first"), "{error:?}");
    }

    #[test]
    fn a_folder_of_the_hub_cache_points_to_its_main_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("snapshots/aaa")).unwrap();
        fs::create_dir_all(at("snapshots/bbb")).unwrap();
        let hint = || recognized(folder.path()).unwrap().hint_text().unwrap().to_owned();
        assert!(hint().ends_with("snapshots/aaa"), "{}", hint());
        fs::create_dir(at("refs")).unwrap();
        fs::write(at("refs/main"), "bbb\n").unwrap();
        assert!(hint().ends_with("snapshots/bbb"), "{}", hint());
    }
}
