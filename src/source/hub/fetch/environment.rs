//! The variables that Hugging Face's own tools read, with the same meaning.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that is asked where no other is named.
const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, what it is asked with, and where its files are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what is in the file `HF_TOKEN_PATH`, or `HF_HOME/token`.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`: nothing is fetched.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: how long a server may be silent.
    pub patience: Duration,
}

impl Environment {
    /// What the variables of this process say.
    ///
    /// # Errors
    /// A value that makes no sense, or no home folder to keep files in.
    pub fn read() -> Result<Environment> {
        Self::from(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from(variable: &dyn Fn(&str) -> Option<String>, user: Option<PathBuf>) -> Result<Environment> {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let folder = |name: &str| set(name).map(|path| expanded(&path, user.as_deref()));
        let home = match (folder("HF_HOME"), folder("XDG_CACHE_HOME"), &user) {
            (Some(home), _, _) => home,
            (None, Some(cache), _) => cache.join("huggingface"),
            (None, None, Some(user)) => user.join(".cache/huggingface"),
            (None, None, None) => {
                return Err(Error::new("there is no home folder to keep downloads in")
                    .hint("set HF_HOME to a folder with room for them"));
            }
        };
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let endpoint = set("HF_ENDPOINT").unwrap_or(ENDPOINT.into());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::usage(format!("HF_ENDPOINT is '{endpoint}', which is no address"))
                .hint(format!("an address begins with https:// as in {ENDPOINT}; unset it to use that one")));
        }
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        let file = || folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let kept = || Some(std::fs::read_to_string(file()).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
        let named = || set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let token = if implicit { named().or_else(kept) } else { None };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::usage("the token for the hub holds characters that no token has")
                .hint("set HF_TOKEN to a token from https://huggingface.co/settings/tokens"));
        }
        let patience =
            match set("HF_HUB_DOWNLOAD_TIMEOUT") {
                None => 30,
                Some(text) => text.parse().ok().filter(|&seconds| seconds > 0).ok_or_else(|| {
                    Error::usage(format!("HF_HUB_DOWNLOAD_TIMEOUT is '{text}', not a number of seconds"))
                })?,
            };
        Ok(Environment {
            endpoint: endpoint.trim_end_matches('/').into(),
            token,
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().filter_map(|n| set(n)).any(|v| is_true(&v)),
            patience: Duration::from_secs(patience),
        })
    }
}

/// What huggingface_hub takes for yes.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// A path, `~` at its beginning being the user's folder.
fn expanded(path: &str, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), user) {
        (Some(""), Some(user)) => user.into(),
        (Some(rest), Some(user)) if rest.starts_with('/') => user.join(&rest[1..]),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment> {
        let of = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Environment::from(&of, Some("/home/me".into()))
    }

    #[test]
    fn folders_are_found_as_huggingface_hub_finds_them() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/hf")]), Path::new("/home/me/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")]), Path::new("/hub"));
        assert_eq!(cache(&[("HF_HOME", ""), ("HUGGINGFACE_HUB_CACHE", "~")]), Path::new("/home/me"));
    }

    #[test]
    fn the_token_is_named_or_kept_in_a_file() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().to_str().unwrap();
        let other = root.path().join("other");
        std::fs::write(root.path().join("token"), "hf_kept\n").unwrap();
        std::fs::write(&other, "hf_other").unwrap();
        let token = |variables: &[(&str, &str)]| {
            read(&[variables, &[("HF_HOME", home)]].concat()).unwrap().token.unwrap_or_default()
        };
        assert_eq!(token(&[]), "hf_kept");
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]), "hf_other");
        assert_eq!(token(&[("HF_TOKEN", " hf_named ")]), "hf_named");
        assert_eq!(token(&[("HF_TOKEN", "hf_named"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), "");
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), "");
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (name, value) in [("HF_ENDPOINT", "hub.local"), ("HF_TOKEN", "a b"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")] {
            let error = read(&[(name, value)]).unwrap_err();
            let told = error.to_string() + error.hint_text().unwrap_or_default();
            assert!(told.contains(name), "{told}");
        }
        let offline = |value| read(&[("HF_HUB_OFFLINE", value)]).unwrap().offline;
        assert!(offline("1") && offline("true") && !offline("0") && !offline(""));
        assert_eq!(read(&[("HF_ENDPOINT", "http://hub.local/")]).unwrap().endpoint, "http://hub.local");
    }
}
