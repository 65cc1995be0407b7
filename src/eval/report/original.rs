//! What the card of an original says: the front matter of its `README.md`, of which cards made from it take some over.

use super::usage::{Sampling, sampling};
use crate::source::hub::Repository;
use serde_json::Value;
use std::path::Path;

/// Bytes of a card that are read.
const MOST: usize = 1 << 20;

/// Keys of the front matter that hold for a file made from a model, too.
const TAKEN: [&str; 5] = ["license", "license_name", "license_link", "language", "pipeline_tag"];

/// What is known of an original.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// `org/name` on the hub.
    pub repository: Option<String>,
    /// Front matter that is taken over: keys of `TAKEN`, and one value or several.
    pub matter: Vec<(String, Vec<String>)>,
    /// How its `generation_config.json` wants it to be sampled.
    pub sampling: Vec<Sampling>,
}

impl Facts {
    /// Of a model that was named so on the command line and lies at `path`.
    pub fn of(named: &Path, path: &Path) -> Facts {
        let folder = path.canonicalize().unwrap_or_else(|_| path.into());
        let text = |name: &str| std::fs::read(folder.join(name)).ok().filter(|bytes| bytes.len() <= MOST);
        let card = text("README.md").and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        let json = |name: &str| text(name).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let config = json("config.json");
        let hub = |text: &str| Repository::model(text).map(|repository| repository.id);
        let named = if named.exists() { None } else { named.to_str().and_then(hub) };
        let by_config = || hub(config.as_ref()?["_name_or_path"].as_str()?);
        Facts {
            repository: named.or_else(|| cached(&folder)).or_else(by_config),
            matter: matter(&card),
            sampling: json("generation_config.json").as_ref().map(sampling).unwrap_or_default(),
        }
    }

    /// The values of a key.
    pub fn get(&self, key: &str) -> Option<&[String]> {
        self.matter.iter().find(|(own, _)| own == key).map(|(_, values)| values.as_slice())
    }
}

/// The name of a snapshot in the cache: `models--org--name/snapshots/…`.
fn cached(folder: &Path) -> Option<String> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let name = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Repository::model(&name.replacen("--", "/", 1)).map(|repository| repository.id)
}

/// The keys that are taken over. Of YAML only what cards use for them is understood, a plain scalar or a list of such; anything
/// else is left out.
fn matter(card: &str) -> Vec<(String, Vec<String>)> {
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    // The key whose list is being read.
    let mut open = false;
    for line in lines.map(str::trim_end).take_while(|line| *line != "---") {
        let item = line.trim_start().strip_prefix("- ");
        if let (Some(item), true) = (item.and_then(scalar), open) {
            found.iter_mut().last().into_iter().for_each(|(_, values)| values.push(item.clone()));
            continue;
        }
        let entry = line.split_once(':').filter(|(key, _)| TAKEN.contains(key));
        open = entry.is_some_and(|(_, value)| value.trim().is_empty());
        if let Some((key, value)) = entry {
            let value = value.trim();
            let list = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let values = match list {
                Some(list) => list.split(',').filter_map(scalar).collect(),
                None => scalar(value).into_iter().collect(),
            };
            found.push((key.to_owned(), values));
        }
    }
    found.retain(|(_, values)| !values.is_empty());
    found
}

/// A plain word or address, perhaps in quotes.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    let quoted = ['"', '\''].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote));
    let text = quoted.unwrap_or(text);
    let plain = |c: char| c.is_alphanumeric() || " ._-/:+()@#?=%".contains(c);
    (!text.is_empty() && text.len() <= 200 && text.chars().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_both_is_taken_over() {
        let card = "---\nlicense: apache-2.0\nlanguage:\n- en\n  - \"no\"\ntags:\n- secret\nlicense_link: https://a.b/c\n\
                    pipeline_tag: text-generation\n---\nlicense: other\n";
        let own = |key: &str, values: &[&str]| (key.to_owned(), values.iter().map(|&v| v.to_owned()).collect());
        assert_eq!(
            matter(card),
            [
                own("license", &["apache-2.0"]),
                own("language", &["en", "no"]),
                own("license_link", &["https://a.b/c"]),
                own("pipeline_tag", &["text-generation"])
            ]
        );
        assert_eq!(matter("---\nlanguage: [en, de]\n---"), [own("language", &["en", "de"])]);
    }

    #[test]
    fn what_is_no_plain_scalar_is_left_out() {
        for card in
            ["", "license: x", "---\nlicense: |\n  a\n---", "---\nlicense: {a: b}\n---", "---\nlicense: \"a\\n\"\n"]
        {
            assert_eq!(matter(card), [], "{card}");
        }
    }

    #[test]
    fn a_snapshot_is_called_after_its_repository() {
        assert_eq!(cached(Path::new("/x/models--org--a-1.5/snapshots/0123")).as_deref(), Some("org/a-1.5"));
        assert_eq!(cached(Path::new("/x/models/snapshots/0123")), None);
    }
}
