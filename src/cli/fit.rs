//! `--fit`: the best file for the memory of a GPU, beside which its context and all else have to fit, too.

use super::budget::{SizeBudget, size};
use super::output::bytes;
use crate::error::{Error, Result};
use crate::format::{self, Type};
use crate::pipeline::choice::Target;
use crate::pipeline::forecast::fit::{GpuMemory, Sizes};
use crate::pipeline::plan::Plan;

/// The types that llama.cpp takes for keys and values (`-ctk`, `-ctv`).
const KEYS_VALUES: [&str; 9] = ["F16", "F32", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"];

/// The options.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct Fit {
    /// Give each tensor the type that its measured sensitivity asks for, so that the file and its context fit a GPU of that much
    /// memory, for example 16GiB
    #[arg(long, value_name = "SIZE", group = "target")]
    fit: Option<String>,

    /// Tokens of context that are to fit, too, for example 32k [default: 8192, or the model's context if that is shorter]
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub context: Option<u64>,

    /// The type in which llama.cpp keeps keys and values (its -ctk and -ctv)
    #[arg(long, value_name = "TYPE", default_value = "F16", value_parser = keys_values)]
    kv: Type,

    /// What the driver and a desktop take of a GPU for --fit
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = room)]
    device_overhead: u64,

    /// What else is to stay free of it, for example for a vision tower
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = room)]
    reserve: u64,
}

impl Fit {
    /// The memory of the GPU, if it was given.
    ///
    /// # Errors
    /// No size.
    fn gpu(&self) -> Result<Option<u64>> {
        let Some(text) = &self.fit else { return Ok(None) };
        let gpu = size(text).ok_or_else(|| {
            Error::usage(format!("--fit '{text}' is no size"))
                .hint("write a number with K, M, G or GiB behind it, for example 16GiB")
        })?;
        Ok(Some(gpu))
    }

    /// What is free of it for a model.
    ///
    /// # Errors
    /// As [`Fit::gpu`].
    pub fn free(&self) -> Result<Option<u64>> {
        let taken = self.device_overhead.saturating_add(self.reserve);
        Ok(self.gpu()?.map(|gpu| gpu.saturating_sub(taken)))
    }

    /// What the context of a model takes.
    pub fn needs(&self, sizes: &Sizes) -> GpuMemory {
        sizes.needs(self.context, self.kv)
    }

    /// The type of keys and values.
    pub fn kv(&self) -> Type {
        self.kv
    }

    /// What was asked for; [`Fit::limit`] gives the number once there is a plan.
    ///
    /// # Errors
    /// As [`Fit::gpu`].
    pub fn budget(&self) -> Result<Option<SizeBudget>> {
        let Some(gpu) = self.gpu()? else { return Ok(None) };
        let context = self.context.map(|n| n.to_string());
        let name = self.fit.iter().chain(&context).map(|word| word.to_ascii_uppercase());
        Ok(Some(SizeBudget { target: Target::Gpu(gpu), name: name.collect::<Vec<_>>().join("-") }))
    }

    /// The bytes of weights on the GPU for which there is room.
    ///
    /// # Errors
    /// There is none, or it is not known what the context takes.
    pub fn limit(&self, plan: &Plan) -> Result<u64> {
        let (gpu, free) = (self.gpu()?.unwrap_or_default(), self.free()?.unwrap_or_default());
        let sizes = Sizes::of(plan).ok_or_else(|| {
            Error::new("what the context of this model takes is not known, so neither is what fits")
                .hint("give --target-size instead")
        })?;
        let needs = self.needs(&sizes);
        free.checked_sub(needs.with(0)).filter(|limit| *limit > 0).ok_or_else(|| {
            let (context, cache, reserve) = (needs.context, bytes(needs.cache), bytes(needs.reserve));
            Error::usage(format!(
                "{} of {} are free, but a context of {context} tokens takes {cache}, and computing {reserve}",
                bytes(free),
                bytes(gpu)
            ))
            .hint("give a shorter --context, or --kv q8_0")
        })
    }

    /// The options as they are typed.
    pub fn words(&self) -> Vec<String> {
        let Some(fit) = &self.fit else { return Vec::new() };
        let mut words = vec!["--fit".to_owned(), fit.clone()];
        let mut pair = |option: &str, value: String| words.extend([option.to_owned(), value]);
        self.context.iter().for_each(|n| pair("--context", n.to_string()));
        if self.kv.name() != KEYS_VALUES[0] {
            pair("--kv", self.kv.name().into());
        }
        pair("--device-overhead", self.device_overhead.to_string());
        pair("--reserve", self.reserve.to_string());
        words
    }
}

/// A number of bytes, or none.
fn room(text: &str) -> std::result::Result<u64, String> {
    if text == "0" { Ok(0) } else { super::quantize::ram::size(text) }
}

/// A number of tokens; `k` stands for 1024 of them.
fn tokens(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1024),
        None => (text, 1),
    };
    let tokens = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    tokens.filter(|n| (1..1 << 32).contains(n)).ok_or_else(|| "a context is a number of tokens, for example 32k".into())
}

fn keys_values(text: &str) -> std::result::Result<Type, String> {
    let known = KEYS_VALUES.iter().find(|name| name.eq_ignore_ascii_case(text));
    let kind = known.and_then(|name| format::by_name(name).ok());
    kind.ok_or_else(|| format!("llama.cpp keeps keys and values in {}", KEYS_VALUES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_powers_of_two_with_a_k() {
        let all = ["32k", "8192", "1K"].map(|text| tokens(text).unwrap());
        assert_eq!(all, [32_768, 8192, 1024]);
        assert!(["", "k", "0", "-1", "4M", "9999999999k"].iter().all(|text| tokens(text).is_err()));
        assert_eq!([room("0"), room("1.5G")], [Ok(0), Ok(1_500_000_000)]);
        assert_eq!(keys_values("q8_0").unwrap().name(), "Q8_0");
        assert!(keys_values("Q4_K").is_err());
    }
}
