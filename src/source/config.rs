//! `config.json`, read with errors that name the key.

use super::{folder, json, mistral};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A JSON object and the file that it came from. It remembers which keys were asked for, together with its clones and the objects
/// inside it.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    /// Where inside the file this object is, as a prefix of its keys.
    within: String,
    json: Value,
    class: Option<&'static Class>,
    keys_read: Arc<Mutex<KeysRead>>,
}

/// What a class of transformers knows of a configuration.
#[derive(Debug, Deserialize)]
pub struct Class {
    /// The keys that it reads, with what it takes where they are missing; `null` where it makes something of others.
    pub keys: Map<String, Value>,
    /// Further names of keys, and whose.
    #[serde(default)]
    pub other_names: Map<String, Value>,
    /// The model type of the text inside, where it is not said.
    #[serde(default)]
    pub text: Option<String>,
}

impl Class {
    /// The name under which it reads a key.
    pub fn name<'k>(&'k self, key: &'k str) -> &'k str {
        self.other_names.get(key).and_then(Value::as_str).unwrap_or(key)
    }
}

/// What was read of a file. Keys have the names of the objects around them in front.
#[derive(Debug, Default)]
struct KeysRead {
    keys: BTreeSet<String>,
    /// Those that the file does not have, and the class has a value for.
    assumed: BTreeSet<String>,
}

impl Config {
    /// Reads a file. Of a folder in Mistral's own layout, `config.json` is what its `params.json` amounts to.
    ///
    /// # Errors
    /// A missing file, or one that is no JSON object; parameters of Mistral's that are not supported.
    pub fn open(path: &Path) -> Result<Config> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if path.file_name().is_some_and(|name| name == "config.json") {
            if mistral::is_native(folder) {
                return mistral::config(folder);
            }
            if let Some(other) = Some(folder).filter(|_| !path.exists()).and_then(folder::recognized) {
                return Err(other);
            }
        }
        Config::of(path.into(), json::read(path)?)
    }

    /// What stands in a file.
    ///
    /// # Errors
    /// No object.
    pub(super) fn of(path: PathBuf, json: Value) -> Result<Config> {
        if !json.is_object() {
            return Err(Error::new(format!("{} is not a JSON object", path.display())));
        }
        Ok(Config { path, within: String::new(), json, class: None, keys_read: Arc::default() })
    }

    /// The same with what a class of transformers takes where the file does not say.
    #[must_use]
    pub fn of_class(self, class: Option<&'static Class>) -> Config {
        Config { class, ..self }
    }

    /// The key of the object around it that this object is under; nothing for the file's own.
    pub fn name(&self) -> &str {
        self.within.trim_end_matches('.').rsplit('.').next().unwrap_or_default()
    }

    /// The class that it was read for.
    pub fn class(&self) -> Option<&'static Class> {
        self.class
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The JSON itself.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The value of a key: the file's own, or what the class takes where the file does not have the key. `null` counts as missing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let value = match self.own(key) {
            Some(value) => Some(value),
            None => {
                let usual = self.class.and_then(|class| class.keys.get(class.name(key)));
                if usual.is_some() {
                    self.keys_read().assumed.insert(self.named(key));
                }
                usual
            }
        };
        value.filter(|v| !v.is_null())
    }

    /// Whether the file itself has a value for a key.
    pub fn says(&self, key: &str) -> bool {
        self.own(key).is_some_and(|v| !v.is_null())
    }

    /// Marks keys as understood that mean nothing here.
    pub fn ignore(&self, keys: &[&str]) {
        self.keys_read().keys.extend(keys.iter().map(|key| self.named(key)));
    }

    /// Whether a key was asked for.
    pub fn was_asked(&self, key: &str) -> bool {
        self.keys_read().keys.contains(&self.named(key))
    }

    /// The keys for which the class's value was taken.
    pub fn assumed(&self) -> Vec<String> {
        self.keys_read().assumed.iter().filter_map(|key| key.strip_prefix(&self.within)).map(str::to_owned).collect()
    }

    /// The file's value, `null` included, under the key or another of its names.
    fn own(&self, key: &str) -> Option<&Value> {
        self.keys_read().keys.insert(self.named(key));
        if let Some(value) = self.json.get(key) {
            return Some(value);
        }
        let class = self.class.filter(|class| !class.other_names.is_empty())?;
        let name = class.name(key);
        let others =
            class.other_names.iter().filter(|(_, own)| own.as_str() == Some(name)).map(|(other, _)| other.as_str());
        others.chain([name]).find_map(|other| {
            let value = self.json.get(other)?;
            self.keys_read().keys.insert(self.named(other));
            Some(value)
        })
    }

    fn named(&self, key: &str) -> String {
        format!("{}{key}", self.within)
    }

    fn keys_read(&self) -> MutexGuard<'_, KeysRead> {
        self.keys_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object under a key.
    ///
    /// # Errors
    /// Something else is there.
    pub fn object(&self, key: &str) -> Result<Option<Config>> {
        match self.get(key) {
            None => Ok(None),
            Some(json @ Value::Object(_)) => Ok(Some(Config {
                within: format!("{}{key}.", self.within),
                json: json.clone(),
                class: None,
                ..self.clone()
            })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// The same with values for keys that are missing; `null` is none.
    pub fn with_defaults(mut self, defaults: Value) -> Config {
        if let (Some(own), Value::Object(defaults)) = (self.json.as_object_mut(), defaults) {
            for (key, value) in defaults.into_iter().filter(|(_, value)| !value.is_null()) {
                own.entry(key).or_insert(value);
            }
        }
        self
    }

    /// The same with another value for a key.
    pub fn with(mut self, key: &str, value: Value) -> Config {
        if let Some(own) = self.json.as_object_mut() {
            own.insert(key.to_owned(), value);
        }
        self
    }

    /// A whole number above zero.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.maybe_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number above zero, if the key is there.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        const LARGEST: u64 = 1 << 32;
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n @ 1..LARGEST) => Ok(Some(n as usize)),
                _ => Err(self.wrong(key, v, "a whole number between 1 and 2^32")),
            },
        }
    }

    /// A finite number above zero, if the key is there.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_positive(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match json::number(v) {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.wrong(key, v, "a number above zero")),
            },
        }
    }

    /// The same where zero means that there is none.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_nonzero(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            Some(zero) if zero.as_f64() == Some(0.0) => Ok(None),
            _ => self.maybe_positive(key),
        }
    }

    /// A finite number above zero.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.maybe_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A string.
    ///
    /// # Errors
    /// Missing or something else.
    pub fn string(&self, key: &str) -> Result<String> {
        self.maybe_string(key)?.ok_or_else(|| self.missing(key))
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_string(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A truth value, `false` if the key is missing.
    ///
    /// # Errors
    /// Something else is there.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A truth value, if the key is there, or the class has one: `null` is none of those that it takes for granted, but `false`.
    ///
    /// # Errors
    /// Something else is there.
    pub fn maybe_flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            Some(_) => self.flag(key).map(Some),
            None if self.class.is_some_and(|class| class.keys.get(class.name(key)).is_some_and(Value::is_boolean)) => {
                Ok(Some(false))
            }
            None => Ok(None),
        }
    }

    /// A list of so many finite numbers.
    ///
    /// # Errors
    /// Missing, or something else.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Vec<f32>> {
        let found = self.get(key).ok_or_else(|| self.missing(key))?;
        let list = found.as_array().map(|list| list.iter().filter_map(json::number).map(|x| x as f32).collect());
        match list {
            Some(list) if Vec::len(&list) == count && list.iter().all(|x: &f32| x.is_finite()) => Ok(list),
            _ => Err(self.wrong(key, found, &format!("a list of {count} numbers"))),
        }
    }

    /// An error about this file: something it asks for is not supported.
    pub fn unsupported(&self, what: &str) -> Error {
        Error::new(format!("{}: {what}", self.path.display()))
    }

    fn missing(&self, key: &str) -> Error {
        Error::new(format!("{} has no key '{}{key}'", self.path.display(), self.within))
            .hint("the file should be the checkpoint's own config.json, as the model's authors published it")
    }

    fn wrong(&self, key: &str, found: &Value, wanted: &str) -> Error {
        Error::new(format!("{}: '{}{key}' is {found}, not {wanted}", self.path.display(), self.within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_infinity_is_a_number_that_most_keys_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::open(&path)
        };
        let config = open(r#"{"hidden_size": 8, "limit": [0.0, Infinity], "eps": NaN, "sizes": [1, 2]}"#).unwrap();
        assert_eq!((config.size("hidden_size").unwrap(), config.numbers("sizes", 2).unwrap()), (8, vec![1.0, 2.0]));
        let message = config.numbers("limit", 2).unwrap_err().to_string();
        assert!(message.contains("'limit'") && message.contains("Infinity"), "{message}");
        assert!(config.positive("eps").unwrap_err().to_string().contains("'eps'"));
        assert!(open("[]").unwrap_err().to_string().contains("not a JSON object"));
    }

    #[test]
    fn a_folder_without_a_configuration_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        let open = || Config::open(&folder.path().join("config.json"));
        assert!(open().unwrap_err().to_string().contains("adapter"));
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert!(open().is_ok());
    }
}
