//! `llmq quantize --target-bpw`, `--target-size` and `--fit`: types that fill a budget.

use super::output::{self, Progress, time};
use crate::error::{Error, Result};
use crate::format::Type;
use crate::model::Model;
use crate::pipeline::choice::{self, Choice};
use crate::pipeline::plan::Plan;
use crate::pipeline::{Calibration, Rounding, sensitivity};
use serde_json::json;
use std::time::Instant;

/// The options.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "target", multiple = false)]
pub struct Target {
    /// Give each tensor the type that its measured sensitivity asks for, within X bits per weight
    #[arg(long, value_name = "X")]
    target_bpw: Option<f64>,

    /// The same within the size of the file, for example 5.2GB or 700M
    #[arg(long, value_name = "SIZE")]
    target_size: Option<String>,
}

/// What one of them asks for.
pub struct SizeBudget {
    /// The limit.
    pub target: choice::Target,
    /// What a file made for it is called after.
    pub name: String,
}

impl Target {
    /// What was asked for, if anything was.
    ///
    /// # Errors
    /// No number, or none that a file could have.
    pub fn budget(&self) -> Result<Option<SizeBudget>> {
        if let Some(bits) = self.target_bpw {
            if !(bits.is_finite() && bits > 0.0) {
                return Err(Error::usage(format!("--target-bpw must be above zero, not {bits}")));
            }
            return Ok(Some(SizeBudget { target: choice::Target::Bits(bits), name: format!("{bits:.2}bpw") }));
        }
        let Some(text) = &self.target_size else { return Ok(None) };
        let bytes = size(text).ok_or_else(|| {
            Error::usage(format!("--target-size '{text}' is no size"))
                .hint("write a number with K, M or G behind it, for example 5.2GB or 700M")
        })?;
        Ok(Some(SizeBudget { target: choice::Target::Size(bytes), name: text.to_ascii_uppercase() }))
    }

    /// The options as they are typed.
    pub fn words(&self) -> Vec<String> {
        let bits = self.target_bpw.map(|bits| ["--target-bpw".to_owned(), bits.to_string()]);
        let size = self.target_size.clone().map(|size| ["--target-size".to_owned(), size]);
        bits.into_iter().chain(size).flatten().collect()
    }
}

/// A number of bytes: decimal, with K, M or G behind it or nothing, binary with KiB, MiB or GiB; fractions allowed.
pub fn size(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_suffix('B').unwrap_or(&upper);
    let (number, base) = number.strip_suffix('I').map_or((number, 1e3), |number| (number, 1024.0));
    let (number, unit) = match number.chars().last()? {
        'K' => (&number[..number.len() - 1], base),
        'M' => (&number[..number.len() - 1], base * base),
        'G' => (&number[..number.len() - 1], base * base * base),
        _ if base == 1e3 => (number, 1.0),
        _ => return None,
    };
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bytes = number.parse::<f64>().ok().filter(|_| plain)? * unit;
    // A fraction of a byte is not to be had; the tolerance is for fractions that binary numbers do not have.
    (1.0..1e18).contains(&bytes).then(|| (bytes + 1e-6).floor() as u64)
}

/// The model, which has to be run.
///
/// # Errors
/// There is no forward pass for it.
pub fn model(plan: &Plan) -> Result<&Model> {
    plan.model().map_err(|cause| {
        Error::new("types can be chosen only for a model that llmq can run: what each costs is measured")
            .because(cause)
            .hint("choose a mix of types instead, for example --type Q4_K_M --method rtn")
    })
}

/// Measures what types cost and gives the plan's tensors those that are worth it. `size`: the bytes of a plan's files.
///
/// # Errors
/// Whatever stops the measurement, or a target that is too small.
pub fn spend(
    plan: &mut Plan,
    rounding: &Rounding,
    text: &Calibration,
    budget: &SizeBudget,
    requantize: bool,
    size: &dyn Fn(&Plan) -> Result<u64>,
    json: bool,
) -> Result<Choice> {
    let started = Instant::now();
    for tensor in plan.tensors.iter().filter(|tensor| tensor.free && !requantize) {
        if let Some(kind) = plan.source.quantized(&tensor.spec) {
            let name = &tensor.spec.gguf;
            return Err(Error::new(format!(
                "tensor '{name}' is {kind} already, and another type would add its own error"
            ))
            .hint("start from the original checkpoint, or accept the loss with --allow-requantize"));
        }
    }
    output::note("measuring what each type costs at each tensor");
    let progress = Progress::new(false, json);
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    let measured = sensitivity::measure(plan, rounding, text, &|tensor| tensor.free, &show)?;
    progress.finish();
    let choice = choice::decide(plan, &measured, budget.target, size)?;
    let took = started.elapsed();
    let mut counts: Vec<(Type, usize)> = Vec::new();
    for (tensor, _) in &choice.losses {
        let kind = plan.tensors[*tensor].kind;
        match counts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    counts.sort_by(|a, b| b.0.bits().total_cmp(&a.0.bits()).then(a.0.id().cmp(&b.0.id())));
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} of {}", kind.name())).collect();
    output::note(&format!("measured in {}, chosen: {}", time(took), kinds.join(", ")));
    output::note(&format!("estimated Kullback-Leibler divergence from the original: {:.6}", choice.total()));
    if json {
        let counts: serde_json::Map<_, _> = counts.iter().map(|(k, n)| (k.name().to_owned(), (*n).into())).collect();
        let fields = json!({
            "types": counts,
            "estimated_divergence": choice.total(),
            "seconds": took.as_secs_f64(),
        });
        output::json("choice", fields);
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_and_may_have_fractions() {
        for (text, bytes) in [
            ("5.2GB", 5_200_000_000),
            ("5200M", 5_200_000_000),
            ("0.3k", 300),
            ("17", 17),
            ("1.1g", 1_100_000_000),
            ("16GiB", 1 << 34),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "B", "G", "0", "-1G", "1e9", "5.2.1G", "inf", "nan", "5 GB", "1T", "5i", "5iB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
