//! A model on the Hugging Face Hub: its name into a folder.

#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
pub mod upload;
#[cfg(not(feature = "hub"))]
mod without;

#[cfg(feature = "hub")]
pub use fetch::{Environment, Part, resolve, whole};
#[cfg(not(feature = "hub"))]
pub use without::{Part, resolve, whole};

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The branch that is meant where none is named.
const MAIN: &str = "main";

/// Is told how a download goes.
pub trait Watch: Sync {
    /// `text` says what begins, in words that a number of bytes may follow: so many are to come.
    fn begin(&self, text: &str, bytes: u64);
    /// So many more bytes have arrived.
    fn advance(&self, bytes: u64);
    /// Something the user should know.
    fn note(&self, text: &str);
}

/// How much of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All of it.
    Weights,
    /// All but the numbers of its tensors.
    Headers,
}

/// A repository of the hub at one of its revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `org/name`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    dataset: bool,
}

impl Repository {
    /// The model that `org/name` or `org/name@revision` names; none where a text cannot be such a name.
    pub fn model(text: &str) -> Option<Repository> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = id.split_once('/')?;
        let word = |word: &str, more: &str| {
            word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
                && !word.contains("..")
        };
        let file = [".gguf", ".safetensors", ".json"].iter().any(|end| name.to_lowercase().ends_with(end));
        let valid =
            word(org, "-_.") && word(name, "-_.") && !file && word(revision, "-_./") && !revision.ends_with('/');
        valid.then(|| Repository { id: id.into(), revision: revision.into(), dataset: false })
    }

    /// A dataset's main branch.
    pub fn dataset(id: &str) -> Repository {
        Repository { id: id.into(), revision: MAIN.into(), dataset: true }
    }

    /// Its name without the organisation's.
    pub fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }
}

/// A model's folder or file. What is temporary about it goes away with this.
pub struct Found {
    path: PathBuf,
    _temporary: Option<TempDir>,
}

impl Found {
    /// A folder or a file that is there.
    pub fn local(path: &Path) -> Found {
        Found { path: path.into(), _temporary: None }
    }

    /// The place.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The name of the model whose snapshot a folder is, as in `…/models--org--name/snapshots/commit`: that folder's own name says
/// nothing to people.
pub fn name_of(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let name = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(name.rsplit("--").next().unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_told_from_paths() {
        let parsed = |text: &str| Repository::model(text).map(|r| (r.id, r.revision));
        let named = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(parsed("org/name-1.5B_x"), named("org/name-1.5B_x", "main"));
        assert_eq!(parsed("org/name@v1.0"), named("org/name", "v1.0"));
        assert_eq!(parsed("org/name@refs/pr/3"), named("org/name", "refs/pr/3"));
        for path in [
            "name",
            "./org/name",
            "../name",
            "/org/name",
            "org/name/",
            "a/b/c",
            "org/name.gguf",
            "org/",
            "o g/name",
            "org/name@",
            "org/name@../x",
            "org/na..me",
            "org/name@a b",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn a_snapshot_is_called_after_its_model() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--org--name-1.5/snapshots/0123");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(name_of(&folder).as_deref(), Some("name-1.5"));
        assert_eq!(name_of(folder.parent().unwrap()), None);
        assert_eq!(name_of(root.path()), None);
    }
}
