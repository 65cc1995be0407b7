//! Nodes that are to stay float: by name, by regular expression, or from a file with one of these a line.

use super::Layer;
use crate::error::{Context, Error, Result};
use regex::Regex;
use std::path::Path;

/// What `--exclude` and `--exclude-file` say.
#[derive(Debug, Default)]
pub struct Exclusions {
    patterns: Vec<(String, Option<Regex>)>,
}

impl Exclusions {
    /// Takes names and regular expressions; the latter have to match a whole name.
    ///
    /// # Errors
    /// One is neither a name nor a regular expression, or matches no layer: it would be silently without effect.
    pub fn new(patterns: &[String], layers: &[Layer]) -> Result<Exclusions> {
        let mut found = Exclusions::default();
        for pattern in patterns {
            let named = layers.iter().any(|layer| layer.name == *pattern);
            let regex =
                if named {
                    None
                } else {
                    let regex = Regex::new(&format!("^(?:{pattern})$"));
                    Some(regex.map_err(|cause| {
                        Error::usage(format!("'{pattern}' is no regular expression")).because(cause)
                    })?)
                };
            let one = (pattern.clone(), regex);
            if !layers.iter().any(|layer| matches(&one, &layer.name)) {
                return Err(Error::usage(format!("there is no layer '{pattern}' to exclude"))
                    .hint("--list shows the layers that can be quantized"));
            }
            found.patterns.push(one);
        }
        Ok(found)
    }

    /// Whether a node is to stay float.
    pub fn contains(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, name))
    }
}

fn matches((text, regex): &(String, Option<Regex>), name: &str) -> bool {
    regex.as_ref().map_or(text == name, |regex| regex.is_match(name))
}

/// The lines of a file, those that are empty or begin with `#` left out.
///
/// # Errors
/// It cannot be read.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_literally_and_others_as_patterns_of_whole_names() {
        let layer = |name: &str| Layer { name: name.into(), op: "Conv".into(), weights: 1 };
        let layers = [layer("/a/conv[1]"), layer("/a/conv2"), layer("/b/fc")];
        let of = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            Exclusions::new(&patterns, &layers)
        };
        let excluded = |patterns: &[&str]| {
            let found = of(patterns).unwrap();
            layers.iter().map(|layer| found.contains(&layer.name)).collect::<Vec<_>>()
        };
        assert_eq!(excluded(&["/a/conv[1]"]), [true, false, false]);
        assert_eq!(excluded(&["/a/.*", "/b/fc"]), [true; 3]);
        assert_eq!(excluded(&[]), [false; 3]);
        assert!(of(&["conv"]).unwrap_err().to_string().contains("no layer 'conv'"));
        assert!(of(&["("]).unwrap_err().to_string().contains("no regular expression"));
    }
}
