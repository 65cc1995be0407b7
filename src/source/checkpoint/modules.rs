//! The modules of sentence-transformers beside a checkpoint: what makes one vector of those of a text's tokens, and layers behind that.

use crate::error::{Error, Result};
use crate::source::json;
use serde_json::Value;
use std::path::{Component, Path};

/// The list of modules.
const LIST: &str = "modules.json";

/// One module, which has a folder of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// The last part of its type: `Pooling`, `Dense`, `Normalize`.
    pub kind: String,
    /// Its folder inside that of the checkpoint.
    pub path: String,
    /// Its `config.json`; `null` if it has none.
    pub config: Value,
}

/// The modules that `modules.json` lists, in their order; none if there is no such file.
///
/// # Errors
/// A list that is damaged, or that names something outside the folder.
pub fn read(folder: &Path) -> Result<Vec<Module>> {
    let list = folder.join(LIST);
    if !list.is_file() {
        return Ok(Vec::new());
    }
    let json = json::read(&list)?;
    let wrong = || Error::new(format!("{} is not a list of modules, with a type and a path each", list.display()));
    let mut modules = Vec::new();
    for module in json.as_array().ok_or_else(wrong)? {
        let of = |key: &str| module.get(key).and_then(Value::as_str).ok_or_else(wrong);
        let (kind, path) = (of("type")?, of("path")?);
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(Error::new(format!("{}: '{path}' is outside of the checkpoint's folder", list.display())));
        }
        let config = folder.join(path).join("config.json");
        modules.push(Module {
            kind: kind.rsplit('.').next().unwrap_or(kind).to_owned(),
            path: path.to_owned(),
            // The first module is the checkpoint itself.
            config: if !path.is_empty() && config.is_file() { json::read(&config)? } else { Value::Null },
        });
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_and_stay_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), []);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
        let list = |path: &str| {
            let first = r#"{"type": "sentence_transformers.models.Transformer", "path": ""}"#;
            format!(r#"[{first}, {{"type": "sentence_transformers.models.Pooling", "path": "{path}"}}]"#)
        };
        write(LIST, &list("1_Pooling"));
        let modules = read(folder.path()).unwrap();
        assert_eq!((modules[0].kind.as_str(), &modules[0].config), ("Transformer", &Value::Null));
        assert_eq!((modules[1].kind.as_str(), modules[1].path.as_str()), ("Pooling", "1_Pooling"));
        assert_eq!(modules[1].config["pooling_mode_mean_tokens"], true);
        for path in ["../elsewhere", "/etc"] {
            write(LIST, &list(path));
            assert!(read(folder.path()).unwrap_err().to_string().contains("outside of the checkpoint's folder"));
        }
        write(LIST, "[1]");
        assert!(read(folder.path()).unwrap_err().to_string().contains("is not a list of modules"));
    }
}
