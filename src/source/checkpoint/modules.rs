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
    /// The last part of its type, or of its folder's name: `Pooling`, `Dense`, `Normalize`.
    pub kind: String,
    /// Its folder inside that of the checkpoint.
    pub path: String,
    /// Its `config.json`; `null` if it has none, or is outside.
    pub config: Value,
}

/// Whether a module's path stays in the folder of the checkpoint.
pub fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The modules that `modules.json` lists, in their order; none if there is no such file.
///
/// # Errors
/// A file that is damaged.
pub fn read(folder: &Path) -> Result<Vec<Module>> {
    let list = folder.join(LIST);
    if !list.is_file() {
        return Ok(Vec::new());
    }
    let json = json::read(&list)?;
    let wrong = || Error::new(format!("{} is not a list of modules", list.display()));
    let mut modules = Vec::new();
    for module in json.as_array().ok_or_else(wrong)? {
        let of = |key: &str| module.get(key).map(|text| text.as_str().ok_or_else(wrong)).transpose();
        let path = of("path")?.unwrap_or_default();
        // Without a type, a folder is named after it: `1_Pooling`.
        let kind = of("type")?.or(path.split('_').nth(1)).unwrap_or_default();
        let config = folder.join(path).join("config.json");
        modules.push(Module {
            kind: kind.rsplit('.').next().unwrap_or(kind).to_owned(),
            path: path.to_owned(),
            // The first module is the checkpoint itself.
            config: match !path.is_empty() && is_inside(path) && config.is_file() {
                true => json::read(&config)?,
                false => Value::Null,
            },
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
        write("config.json", r#"{"pooling_mode_mean_tokens": true}"#);
        std::fs::create_dir(folder.path().join("inside")).unwrap();
        for path in ["inside/..", "/etc", &folder.path().display().to_string()] {
            write(LIST, &list(path));
            assert_eq!(read(folder.path()).unwrap()[1].config, Value::Null, "{path}");
            assert!(!is_inside(path));
        }
        write(LIST, r#"[{"path": "1_Pooling"}, {}]"#);
        assert_eq!(read(folder.path()).unwrap()[0], modules[1]);
        for wrong in ["{}", r#"[{"type": 1}]"#] {
            write(LIST, wrong);
            assert!(read(folder.path()).unwrap_err().to_string().contains("is not a list of modules"));
        }
    }
}
