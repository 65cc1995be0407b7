//! Rotary embedding: base, scaling, and the tables that the forward pass uses.

use crate::error::Result;
use crate::source::config::Config;

/// Rotary embedding of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies, θ.
    pub base: f64,
    /// How many numbers of each head are turned; the others stay.
    pub rotary: usize,
    /// How it is stretched for contexts longer than those of the first training.
    pub scaling: Scaling,
}

/// How frequencies are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Positions are divided by this.
    Linear(f64),
    /// Frequencies are divided by these, one per pair, as Llama 3 does.
    Factors(Vec<f32>),
    /// Low frequencies are interpolated, high ones are not.
    Yarn(Yarn),
    /// Frequencies are divided by one list in short contexts, by another in long ones, as Phi-3 does.
    Long {
        /// For contexts up to `original`, one per pair.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
        /// Tokens of the first training.
        original: usize,
        /// By what queries and keys grow.
        magnitude: f32,
    },
}

/// YaRN (Peng et al. 2023, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// By how much contexts grow.
    pub factor: f64,
    /// Tokens of the first training.
    pub original: f64,
    /// Turns in the original context from which on a frequency stays as it is.
    pub fast: f64,
    /// Turns below which it is interpolated in full.
    pub slow: f64,
    /// By what queries and keys grow, if not by what the paper says.
    pub magnitude: Option<f64>,
    /// The pairs where interpolation begins and ends are whole ones.
    pub truncate: bool,
}

/// `0.1 · mscale · ln(factor) + 1` where contexts grow.
pub fn growth(factor: f64, mscale: f64) -> f64 {
    if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 }
}

impl Yarn {
    /// Turns that the paper takes for models like Llama.
    pub const FAST: f64 = 32.0;
    /// The same at the other end.
    pub const SLOW: f64 = 1.0;

    /// By what queries and keys grow in the paper (equation 22).
    pub fn usual_magnitude(&self) -> f64 {
        growth(self.factor, 1.0)
    }

    /// By what queries and keys grow.
    pub fn magnitude(&self) -> f64 {
        self.magnitude.unwrap_or(self.usual_magnitude())
    }

    /// What frequency `i` of `half` is divided by.
    fn divisor(&self, i: usize, base: f64, rotary: usize) -> f64 {
        // The pair that makes so many turns in the original context.
        let pair =
            |turns: f64| rotary as f64 * (self.original / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
        let (low, high) = match self.truncate {
            true => (pair(self.fast).floor(), pair(self.slow).ceil()),
            false => (pair(self.fast), pair(self.slow)),
        };
        let (low, high) = (low.max(0.0), high.min(rotary as f64 - 1.0));
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        1.0 / (ramp / self.factor + (1.0 - ramp))
    }
}

/// The object of parameters: `rope_scaling` where it says something, as transformers has it, and else `rope_parameters`.
///
/// # Errors
/// Something else is there.
pub fn parameters(config: &Config) -> Result<Option<Config>> {
    let said = |key: &str| -> Result<Option<Config>> {
        let object = config.object(key)?;
        Ok(object.filter(|object| object.json().as_object().is_some_and(|map| !map.is_empty())))
    };
    let (older, newer) = (said("rope_scaling")?, said("rope_parameters")?);
    Ok(older.or(newer))
}

impl Rope {
    /// Plain rotary embedding of the first `rotary` numbers of each head.
    pub fn plain(base: f64, rotary: usize) -> Rope {
        Rope { base, rotary, scaling: Scaling::None }
    }

    /// Reads `rope_theta`, `rope_scaling`, `partial_rotary_factor` and, as newer checkpoints have them, `rope_parameters`.
    ///
    /// # Errors
    /// A type of scaling that is not known, or a missing parameter of one.
    pub fn read(config: &Config, head_dim: usize) -> Result<Rope> {
        Ok(Rope::kinds(config, head_dim)?.0)
    }

    /// The same of blocks that see everything, and of those with a window, where newer configurations have parameters for each kind.
    ///
    /// # Errors
    /// As [`Rope::read`].
    pub fn kinds(config: &Config, head_dim: usize) -> Result<(Rope, Option<Rope>)> {
        let parameters = parameters(config)?;
        let kind = |name: &str| parameters.as_ref().map(|all| all.object(name)).transpose().map(Option::flatten);
        match (kind("full_attention")?, kind("sliding_attention")?) {
            (None, None) => Ok((Rope::of(config, parameters, head_dim)?, None)),
            (Some(full), None) => Ok((Rope::of(config, Some(full), head_dim)?, None)),
            (None, Some(local)) => Ok((Rope::of(config, Some(local), head_dim)?, None)),
            (Some(full), Some(local)) => {
                // Gemma 4 has a kind that only its own file knows.
                let known = |own: &Config| {
                    own.maybe_string("rope_type").is_ok_and(|kind| kind.as_deref() != Some("proportional"))
                };
                let full = Rope::of(config, Some(full).filter(known), head_dim)?;
                Ok((full, Some(Rope::of(config, Some(local), head_dim)?)))
            }
        }
    }

    /// Those of blocks that see everything and of those with a window, as Gemma 3 and OLMo 3 have them: what older configurations say
    /// is about the former. `bases`: where none is said.
    ///
    /// # Errors
    /// As [`Rope::read`].
    pub fn by_kind(config: &Config, head_dim: usize, bases: [f64; 2]) -> Result<[Rope; 2]> {
        let newer = config.object("rope_parameters")?;
        let of = |kind: &str| newer.as_ref().map(|all| all.object(kind)).transpose().map(Option::flatten);
        let (full, local) = (of("full_attention")?, of("sliding_attention")?);
        let full = match config.object("rope_scaling")? {
            Some(older) => Some(match full {
                Some(full) => older.with_defaults(full.json().clone()),
                None => older,
            }),
            None => full,
        };
        let read = |own: Option<Config>, base: f64| match own {
            Some(own) => Rope::of(config, Some(own.with_defaults(serde_json::json!({ "rope_theta": base }))), head_dim),
            None => Ok(Rope::plain(base, head_dim)),
        };
        Ok([read(full, bases[0])?, read(local, bases[1])?])
    }

    /// The same with an object of parameters that has been found already.
    ///
    /// # Errors
    /// As [`Rope::read`].
    pub fn of(config: &Config, scaling: Option<Config>, head_dim: usize) -> Result<Rope> {
        let inside = |key: &str| scaling.as_ref().map(|s| s.maybe_positive(key)).transpose().map(Option::flatten);
        let base = inside("rope_theta")?.or(config.maybe_positive("rope_theta")?).unwrap_or(10_000.0);
        let part = inside("partial_rotary_factor")?.or(config.maybe_positive("partial_rotary_factor")?).unwrap_or(1.0);
        let rotary = (head_dim as f64 * part) as usize;
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head_dim {
            return Err(config.unsupported(&format!(
                "{part} of head_dim {head_dim} are to be turned, {rotary} numbers, and rotary embedding needs pairs"
            )));
        }
        let mut rope = Rope::plain(base, rotary);
        let Some(scaling) = scaling else { return Ok(rope) };
        let kind = match scaling.maybe_string("rope_type")? {
            Some(kind) => Some(kind),
            None => scaling.maybe_string("type")?,
        };
        // What is said of all blocks goes first, but not where each kind has its own.
        const ORIGINAL: &str = "original_max_position_embeddings";
        let of_all = config.maybe_positive(ORIGINAL)?.filter(|_| !scaling.name().ends_with("_attention"));
        let original = || -> Result<f64> {
            match of_all.or(scaling.maybe_positive(ORIGINAL)?) {
                Some(n) => Ok(n),
                None => config.positive("max_position_embeddings"),
            }
        };
        // Where it is not said, the growth of the context.
        let factor = |original: f64| -> Result<f64> {
            match scaling.maybe_positive("factor")? {
                Some(factor) => Ok(factor),
                None => Ok(config.positive("max_position_embeddings")? / original),
            }
        };
        rope.scaling = match kind.as_deref().unwrap_or("default") {
            // Positions of text are the same along all axes; and what is dynamic only begins beyond the trained length.
            "default" | "mrope" | "dynamic" => Scaling::None,
            "linear" => Scaling::Linear(scaling.positive("factor")?),
            "llama3" => Scaling::Factors(llama3_factors(
                base,
                rotary,
                scaling.positive("factor")?,
                scaling.maybe_positive("low_freq_factor")?.unwrap_or(1.0),
                scaling.maybe_positive("high_freq_factor")?.unwrap_or(4.0),
                original()?,
            )),
            // Phi-3 once had this name for what has two lists.
            "yarn" if scaling.get("short_factor").is_none() => {
                let original = original()?;
                let factor = factor(original)?;
                Scaling::Yarn(Yarn {
                    factor,
                    original,
                    fast: scaling.maybe_nonzero("beta_fast")?.unwrap_or(Yarn::FAST),
                    slow: scaling.maybe_nonzero("beta_slow")?.unwrap_or(Yarn::SLOW),
                    magnitude: match scaling.maybe_positive("attention_factor")? {
                        Some(own) => Some(own),
                        // As transformers does it.
                        None => scaling
                            .maybe_nonzero("mscale")?
                            .zip(scaling.maybe_nonzero("mscale_all_dim")?)
                            .map(|(own, all)| growth(factor, own) / growth(factor, all)),
                    },
                    truncate: scaling.maybe_flag("truncate")?.unwrap_or(true),
                })
            }
            "longrope" | "su" | "yarn" => {
                let original = original()?;
                let factor = factor(original)?;
                // Phi-3's own rule for what the scaling does to the length of queries and keys.
                let usual = if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 };
                Scaling::Long {
                    short: scaling.numbers("short_factor", rotary / 2)?,
                    long: scaling.numbers("long_factor", rotary / 2)?,
                    original: original as usize,
                    magnitude: scaling.maybe_positive("attention_factor")?.unwrap_or(usual) as f32,
                }
            }
            other => {
                return Err(config
                    .unsupported(&format!("rope scaling of type '{other}' is not supported"))
                    .hint("the supported ones are: default, dynamic, linear, llama3, yarn, longrope"));
            }
        };
        Ok(rope)
    }

    /// Cosines and sines, `[positions, rotary / 2]` each.
    pub fn tables(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let half = self.rotary / 2;
        let (base, scaling) = (self.base, &self.scaling);
        let divisor = |i: usize| match scaling {
            Scaling::None => 1.0,
            Scaling::Linear(factor) => *factor,
            Scaling::Factors(factors) => f64::from(factors[i]),
            Scaling::Yarn(yarn) => yarn.divisor(i, base, self.rotary),
            Scaling::Long { short, long, original, .. } => {
                f64::from(if positions > *original { long[i] } else { short[i] })
            }
        };
        let magnitude = match scaling {
            Scaling::Yarn(yarn) => yarn.magnitude(),
            Scaling::Long { magnitude, .. } => f64::from(*magnitude),
            _ => 1.0,
        };
        let frequencies: Vec<f64> =
            (0..half).map(|i| base.powf(-2.0 * i as f64 / self.rotary as f64) / divisor(i)).collect();
        let angles = || (0..positions).flat_map(|t| frequencies.iter().map(move |f| t as f64 * f));
        let table = |of: fn(f64) -> f64| angles().map(|a| (magnitude * of(a)) as f32).collect();
        (table(f64::cos), table(f64::sin))
    }
}

/// By how much Llama 3's scaling divides each frequency: long wavelengths by `factor`, short ones not at all, and a
/// smooth transition between (Llama 3.1's reference code; transformers' `_compute_llama3_parameters`).
fn llama3_factors(base: f64, rotary: usize, factor: f64, low: f64, high: f64, original: f64) -> Vec<f32> {
    (0..rotary / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / rotary as f64);
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor as f32
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_scaling_keeps_short_wavelengths_and_stretches_long_ones() {
        // Llama-3.1-8B's parameters; the converter of llama.cpp writes these divisors to rope_freqs.weight.
        let f = llama3_factors(500_000.0, 128, 8.0, 1.0, 4.0, 8192.0);
        assert_eq!((f[0], f[28], f[63]), (1.0, 1.0, 8.0));
        assert!(f[30] > 1.0 && f[30] < f[33] && f[33] < 8.0, "{f:?}");
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let plain = Rope::plain(10_000.0, 8);
        let scaled = Rope { scaling: Scaling::Linear(4.0), ..plain.clone() };
        let (cos, _) = plain.tables(2);
        let (stretched, _) = scaled.tables(5);
        assert_eq!(cos[4..8], stretched[16..20]);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        let yarn = Yarn { factor: 4.0, original: 4096.0, fast: 32.0, slow: 1.0, magnitude: None, truncate: true };
        let divisors: Vec<f64> = (0..64).map(|i| yarn.divisor(i, 10_000.0, 128)).collect();
        assert_eq!((divisors[0], divisors[20], divisors[63]), (1.0, 1.0, 4.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12));
        assert!((yarn.magnitude() - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    }
}
