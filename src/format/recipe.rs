//! Which tensor gets which type.

use super::mix::{Mix, fallback};
use super::{Type, by_name};
use crate::error::{Error, Result};
use crate::model::{Kind, Model, Role, TensorSpec};
use regex::{Regex, RegexBuilder};

/// The user's wishes: a mix and what overrides it, first match first.
pub struct Recipe {
    mix: Mix,
    pure: bool,
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
    /// A recipe around a mix; `pure`: its base type for everything. `output` and `embedding` win over everything, then the
    /// first of `overrides` (`REGEX=TYPE`, searched for in GGUF's tensor names) that matches.
    ///
    /// # Errors
    /// An override that is no `REGEX=TYPE`.
    pub fn new(
        mix: Mix,
        pure: bool,
        output: Option<Type>,
        embedding: Option<Type>,
        overrides: &[String],
    ) -> Result<Self> {
        let overrides = overrides.iter().map(|text| parse(text)).collect::<Result<_>>()?;
        Ok(Self { mix, pure, output, embedding, overrides })
    }

    /// The mix.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    /// The type of one tensor of a model.
    pub fn choose(&mut self, tensor: &TensorSpec, model: &Model) -> Choice {
        if tensor.shape.len() < 2 {
            return Choice { kind: &super::f32::F32, instead_of: None };
        }
        let matched = self.overrides.iter_mut().find(|o| o.pattern.is_match(&tensor.gguf)).map(|o| {
            o.used = true;
            o.kind
        });
        let usual = match (tensor.role, tensor.block) {
            _ if self.pure => self.mix.base,
            (Role::Block(part, Kind::Weight), Some(i)) => self.mix.layer(part, i, model),
            (Role::Output, _) => self.mix.output(),
            (Role::Embedding, _) if model.tied => self.mix.output(),
            _ => self.mix.base,
        };
        let named = match tensor.role {
            Role::Embedding => self.embedding.or(self.output.filter(|_| model.tied)),
            Role::Output => self.output,
            _ => None,
        };
        let wanted = named.or(matched).unwrap_or(usual);
        let mut kind = wanted;
        while !tensor.shape[1].is_multiple_of(kind.width()) {
            kind = fallback(kind);
        }
        Choice { kind, instead_of: (kind != wanted).then_some(wanted) }
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
    use crate::source::config::Config;

    use crate::format::mix::named;

    fn model(tied: bool) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
            "num_hidden_layers": 6, "intermediate_size": 1280, "max_position_embeddings": 1024, "vocab_size": 8192,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
        });
        let path = folder.path().join("config.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Model::read(&Config::open(&path).unwrap()).unwrap()
    }

    /// The type of the tensor of that name.
    fn kind(recipe: &mut Recipe, model: &Model, gguf: &str) -> &'static str {
        let tensor = model.tensors().find(|t| t.gguf == format!("{gguf}.weight")).unwrap();
        recipe.choose(&tensor, model).kind.name()
    }

    fn plain(name: &str) -> Recipe {
        Recipe::new(named(name).unwrap(), false, None, None, &[]).unwrap()
    }

    #[test]
    fn output_and_tied_embedding_get_six_bits_or_more_and_norms_stay_single() {
        let (tied, untied) = (model(true), model(false));
        let mut recipe = plain("q4_0");
        assert_eq!(kind(&mut recipe, &untied, "output"), "Q6_K");
        assert_eq!(kind(&mut recipe, &tied, "token_embd"), "Q6_K");
        assert_eq!(kind(&mut recipe, &untied, "token_embd"), "Q4_0");
        assert_eq!(kind(&mut recipe, &tied, "output_norm"), "F32");
        assert_eq!(kind(&mut plain("F16"), &untied, "output"), "F16");
        assert_eq!(kind(&mut plain("Q8_0"), &untied, "output"), "Q8_0");
        let mut pure = Recipe::new(named("Q4_K_M").unwrap(), true, None, None, &[]).unwrap();
        assert_eq!(kind(&mut pure, &tied, "token_embd"), "Q4_K");
        assert_eq!(kind(&mut pure, &tied, "blk.5.attn_v"), "Q4_K");
    }

    /// The types that llama.cpp's own files of a checkpoint with six blocks have (its GGUFs, May 2026).
    #[test]
    fn mixes_raise_what_llama_cpp_raises() {
        let model = model(true);
        for (name, part, types) in [
            ("Q4_K_M", "attn_v", ["Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]),
            ("Q4_K_M", "ffn_down", ["Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]),
            ("Q4_K_S", "attn_v", ["Q5_K", "Q5_K", "Q5_K", "Q5_K", "Q4_K", "Q4_K"]),
            ("Q4_K_S", "ffn_down", ["Q4_K"; 6]),
            ("Q3_K_M", "attn_v", ["Q5_K", "Q5_K", "Q4_K", "Q4_K", "Q4_K", "Q4_K"]),
            ("Q3_K_M", "attn_output", ["Q4_K"; 6]),
            ("Q3_K_M", "ffn_down", ["Q4_K"; 6]),
            ("Q2_K", "attn_v", ["Q3_K"; 6]),
            ("Q2_K", "attn_q", ["Q2_K"; 6]),
            ("IQ4_XS", "attn_v", ["IQ4_XS"; 6]),
        ] {
            let mut recipe = plain(name);
            for (i, wanted) in types.into_iter().enumerate() {
                assert_eq!(kind(&mut recipe, &model, &format!("blk.{i}.{part}")), wanted, "{name} {part} {i}");
            }
        }
    }

    #[test]
    fn the_first_override_wins_one_equal_to_the_base_is_honoured_and_an_unused_one_is_an_error() {
        let overrides = ["ATTN_V=q4_k", "output=Q4_0", "nothing=F16"].map(String::from);
        let mut recipe = Recipe::new(named("Q4_K_M").unwrap(), false, None, None, &overrides).unwrap();
        let model = model(false);
        assert_eq!(kind(&mut recipe, &model, "blk.5.attn_v"), "Q4_K");
        assert_eq!(kind(&mut recipe, &model, "output"), "Q4_0");
        let error = recipe.check_all_used().unwrap_err();
        assert!(error.to_string().contains("nothing=F16"), "{error}");
    }

    #[test]
    fn rows_that_do_not_divide_fall_back_and_say_so() {
        let model = model(true);
        for (columns, chosen) in [(512, "Q4_K"), (320, "Q5_0"), (40, "F16")] {
            let mut tensor = model.block(0).remove(1);
            tensor.shape[1] = columns;
            let choice = plain("Q4_K_S").choose(&tensor, &model);
            assert_eq!((choice.kind.name(), choice.instead_of.is_some()), (chosen, columns != 512));
        }
    }

    #[test]
    fn bad_overrides_are_usage_errors() {
        for text in ["attn_v", "attn_v=Q9_9", "(=Q8_0"] {
            assert!(Recipe::new(named("Q4_0").unwrap(), false, None, None, &[text.into()]).is_err(), "{text}");
        }
    }
}
