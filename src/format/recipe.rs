//! Which tensor gets which type.

use super::{Type, by_name};
use crate::error::{Error, Result};
use crate::model::{Role, TensorSpec};
use regex::{Regex, RegexBuilder};

/// The user's wishes: a base type and what overrides it, first match first.
pub struct Recipe {
    base: Type,
    output: Option<Type>,
    embedding: Option<Type>,
    overrides: Vec<Override>,
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
}

impl Recipe {
    /// A recipe around a base type. `output` and `embedding` win over everything, then the first of `overrides`
    /// (`REGEX=TYPE`, searched for in GGUF's tensor names) that matches.
    ///
    /// # Errors
    /// An override that is no `REGEX=TYPE`.
    pub fn new(base: Type, output: Option<Type>, embedding: Option<Type>, overrides: &[String]) -> Result<Self> {
        let overrides = overrides.iter().map(|text| parse(text)).collect::<Result<_>>()?;
        Ok(Self { base, output, embedding, overrides })
    }

    /// The base type.
    pub fn base(&self) -> Type {
        self.base
    }

    /// The type of one tensor. `tied`: the embedding is the output matrix, too.
    pub fn choose(&mut self, tensor: &TensorSpec, tied: bool) -> Choice {
        if tensor.shape.len() < 2 {
            return Choice { kind: &super::f32::F32, instead_of: None };
        }
        let matched = self.overrides.iter_mut().find(|o| o.pattern.is_match(&tensor.gguf)).map(|o| {
            o.used = true;
            o.kind
        });
        let is_output = tensor.role == Role::Output || tensor.role == Role::Embedding && tied;
        // Errors of the output matrix reach the logits undamped, so it keeps eight bits.
        let usual: Type = if is_output && self.base.is_quantized() { &super::q8_0::Q8_0 } else { self.base };
        let named = match tensor.role {
            Role::Embedding => self.embedding.or(self.output.filter(|_| tied)),
            Role::Output => self.output,
            _ => None,
        };
        let wanted = named.or(matched).unwrap_or(usual);
        if tensor.shape[1].is_multiple_of(wanted.width()) {
            Choice { kind: wanted, instead_of: None }
        } else {
            Choice { kind: &super::f16::F16, instead_of: Some(wanted) }
        }
    }

    /// To be called once every tensor has its type.
    ///
    /// # Errors
    /// An override that matched no tensor.
    pub fn check_all_used(&self) -> Result<()> {
        match self.overrides.iter().find(|o| !o.used) {
            None => Ok(()),
            Some(o) => {
                let what = format!("--tensor-type {}={} matches no tensor", o.pattern, o.kind.name());
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
mod tests {
    use super::*;
    use crate::model::RowOrder;

    fn tensor(gguf: &str, role: Role, shape: &[usize]) -> TensorSpec {
        let source = gguf.to_string();
        TensorSpec { source, gguf: gguf.into(), shape: shape.to_vec(), role, order: RowOrder::AsIs }
    }

    fn name(recipe: &mut Recipe, gguf: &str, role: Role, tied: bool) -> &'static str {
        recipe.choose(&tensor(gguf, role, &[64, 64]), tied).kind.name()
    }

    #[test]
    fn output_and_tied_embedding_keep_eight_bits_and_norms_stay_single() {
        let q4 = by_name("q4_0").unwrap();
        let mut recipe = Recipe::new(q4, None, None, &[]).unwrap();
        assert_eq!(name(&mut recipe, "output.weight", Role::Output, false), "Q8_0");
        assert_eq!(name(&mut recipe, "token_embd.weight", Role::Embedding, true), "Q8_0");
        assert_eq!(name(&mut recipe, "token_embd.weight", Role::Embedding, false), "Q4_0");
        assert_eq!(recipe.choose(&tensor("output_norm.weight", Role::Norm, &[64]), true).kind.name(), "F32");
        let mut half = Recipe::new(by_name("F16").unwrap(), None, None, &[]).unwrap();
        assert_eq!(name(&mut half, "output.weight", Role::Output, false), "F16");
    }

    #[test]
    fn the_first_override_wins_one_equal_to_the_base_is_honoured_and_an_unused_one_is_an_error() {
        let overrides = ["ATTN_V=q8_0".to_string(), "output=Q4_0".to_string(), "nothing=F16".to_string()];
        let mut recipe = Recipe::new(by_name("Q4_0").unwrap(), None, None, &overrides).unwrap();
        assert_eq!(name(&mut recipe, "blk.3.attn_v.weight", Role::Norm, false), "Q8_0");
        assert_eq!(name(&mut recipe, "output.weight", Role::Output, false), "Q4_0");
        let error = recipe.check_all_used().unwrap_err();
        assert!(error.to_string().contains("nothing=F16"), "{error}");
    }

    #[test]
    fn rows_that_do_not_divide_fall_back_and_say_so() {
        let mut recipe = Recipe::new(by_name("Q4_0").unwrap(), None, None, &[]).unwrap();
        let choice = recipe.choose(&tensor("blk.0.attn_q.weight", Role::Norm, &[64, 40]), false);
        assert_eq!((choice.kind.name(), choice.instead_of.map(|t| t.name())), ("F16", Some("Q4_0")));
    }

    #[test]
    fn bad_overrides_are_usage_errors() {
        for text in ["attn_v", "attn_v=Q9_9", "(=Q8_0"] {
            assert!(Recipe::new(by_name("Q4_0").unwrap(), None, None, &[text.into()]).is_err(), "{text}");
        }
    }
}
