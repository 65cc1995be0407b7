//! Which tensor gets which type.

use super::mix::{Facts, Mix, fallback, is_eligible};
use super::{Type, by_name};
use crate::error::{Context, Error, Result};
use regex::{Regex, RegexBuilder};
use std::path::Path;

/// The user's wishes: a mix and what overrides it, first match first.
pub struct Recipe {
    mix: Mix,
    pure: bool,
    output: Option<Type>,
    embedding: Option<Type>,
    overrides: Vec<Override>,
}

/// What overrides a mix.
#[derive(Debug, Default)]
pub struct TypeRequest {
    /// The base type for every matrix.
    pub pure: bool,
    /// The type of the output matrix; wins over everything.
    pub output: Option<Type>,
    /// The type of the token embedding; wins over everything.
    pub embedding: Option<Type>,
    /// `REGEX=TYPE`, searched for in GGUF's tensor names; the first that matches wins.
    pub tensors: Vec<String>,
}

struct Override {
    pattern: Regex,
    kind: Type,
    used: bool,
}

/// The type of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The type it gets.
    pub kind: Type,
    /// The type it should have had, where its rows do not divide into blocks of it.
    pub instead_of: Option<Type>,
    /// The type that the mix has for it, where a layer that steers others gets a better one ([`Mix::better_for_steering`]).
    pub raised_from: Option<Type>,
    /// Nothing names a type for this tensor but the mix.
    pub free: bool,
}

impl Choice {
    /// No choice at all.
    pub fn fixed(kind: Type) -> Choice {
        Choice { kind, instead_of: None, raised_from: None, free: false }
    }
}

/// The overrides that a file holds, separated by white space: `--tensor-type-file`.
///
/// # Errors
/// A file that cannot be read, or holds none.
pub fn overrides_in(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    let overrides: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if overrides.is_empty() {
        return Err(Error::new(format!("{} holds no overrides", path.display()))
            .hint("write one REGEX=TYPE a line, for example attn_v=Q8_0"));
    }
    Ok(overrides)
}

impl Recipe {
    /// A recipe around a mix.
    ///
    /// # Errors
    /// An override that is no `REGEX=TYPE`.
    pub fn new(mix: Mix, wishes: TypeRequest) -> Result<Self> {
        let TypeRequest { pure, output, embedding, tensors } = wishes;
        let overrides = tensors.iter().map(|text| parse(text)).collect::<Result<_>>()?;
        Ok(Self { mix, pure, output, embedding, overrides })
    }

    /// The mix.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    /// The type of a tensor: of the user's wishes the first that matches, and the mix's otherwise, or `None` where it is to stay as it is. `shape`: slowest dimension first.
    pub fn choose(&mut self, name: &str, shape: &[usize], facts: &Facts) -> Option<Choice> {
        let matched = self.overrides.iter_mut().find(|o| o.pattern.is_match(name));
        if !is_eligible(name, shape) {
            return None;
        }
        let matched = matched.map(|o| {
            o.used = true;
            o.kind
        });
        let columns = shape[shape.len() - 1];
        let named = match name {
            "token_embd.weight" => self.embedding.or(self.output.filter(|_| facts.tied)),
            "output.weight" => self.output,
            _ => None,
        };
        let free = named.or(matched).is_none();
        let wanted = named.or(matched).unwrap_or_else(|| match self.pure {
            true => self.mix.base,
            false => self.mix.choose(name, columns, shape.len() > 2, facts),
        });
        let better = self.mix.better_for_steering(name, wanted).filter(|_| free && !self.pure);
        let (wanted, raised_from) = better.map_or((wanted, None), |better| (better, Some(wanted)));
        let mut kind = wanted;
        while !columns.is_multiple_of(kind.width()) {
            kind = fallback(kind);
        }
        let free = free && raised_from.is_none();
        Some(Choice { kind, instead_of: (kind != wanted).then_some(wanted), raised_from, free })
    }

    /// To be called once every tensor has its type.
    ///
    /// # Errors
    /// An override that matched no tensor.
    pub fn check_all_used(&self) -> Result<()> {
        match self.overrides.iter().find(|o| !o.used) {
            None => Ok(()),
            Some(o) => {
                let (pattern, kind) = (&o.pattern, o.kind.name());
                let what = format!("--tensor-type {pattern}={kind} matches no tensor that can be given a type");
                Err(Error::usage(what)
                    .hint("`llmq inspect` or --dry-run lists the tensors under the names that are matched"))
            }
        }
    }
}

fn parse(text: &str) -> Result<Override> {
    let (pattern, kind) = text.rsplit_once('=').ok_or_else(|| {
        Error::usage(format!("--tensor-type '{text}' has no '='")).hint("write it as --tensor-type 'attn_v=Q8_0'")
    })?;
    let regex = RegexBuilder::new(pattern).case_insensitive(true).build().map_err(|cause| {
        Error::usage(format!("--tensor-type '{text}': '{pattern}' is no regular expression")).because(cause)
    })?;
    Ok(Override { pattern: regex, kind: by_name(kind)?, used: false })
}

#[cfg(test)]
mod tests;
