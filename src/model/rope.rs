//! Rotary embedding: base, scaling, and the tables that the forward pass uses.

use crate::error::Result;
use crate::source::config::Config;

/// Rotary embedding of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies, θ.
    pub base: f64,
    /// Positions are divided by this (`rope_scaling` of type linear).
    pub linear: f64,
    /// Frequencies are divided by these, one per pair (`rope_scaling` of type llama3): `[head_dim / 2]`.
    pub factors: Option<Vec<f32>>,
}

impl Rope {
    /// Reads `rope_theta`, `rope_scaling` and, as newer checkpoints have them, `rope_parameters`.
    ///
    /// # Errors
    /// A type of scaling other than default, linear and llama3, or a missing parameter of these.
    pub fn read(config: &Config, head_dim: usize) -> Result<Rope> {
        let scaling = match config.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => config.object("rope_scaling")?,
        };
        let theta = match &scaling {
            Some(s) => s.maybe_positive("rope_theta")?,
            None => None,
        };
        let base = theta.or(config.maybe_positive("rope_theta")?).unwrap_or(10_000.0);
        let mut rope = Rope { base, linear: 1.0, factors: None };
        let Some(scaling) = scaling else { return Ok(rope) };
        let kind = match scaling.maybe_string("rope_type")? {
            Some(kind) => Some(kind),
            None => scaling.maybe_string("type")?,
        };
        match kind.as_deref().unwrap_or("default") {
            "default" => {}
            "linear" => rope.linear = scaling.positive("factor")?,
            "llama3" => {
                let original = match scaling.maybe_positive("original_max_position_embeddings")? {
                    Some(n) => Some(n),
                    None => config.maybe_positive("original_max_position_embeddings")?,
                };
                rope.factors = Some(llama3_factors(
                    base,
                    head_dim,
                    scaling.positive("factor")?,
                    scaling.maybe_positive("low_freq_factor")?.unwrap_or(1.0),
                    scaling.maybe_positive("high_freq_factor")?.unwrap_or(4.0),
                    original.unwrap_or(8192.0),
                ));
            }
            other => {
                return Err(config
                    .unsupported(&format!("rope scaling of type '{other}' is not supported"))
                    .hint("the supported ones are: default, linear, llama3"));
            }
        }
        Ok(rope)
    }

    /// Cosines and sines, `[positions, head_dim / 2]` each.
    pub fn tables(&self, positions: usize, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| {
                let factor = self.factors.as_ref().map_or(1.0, |f| f64::from(f[i]));
                self.base.powf(-2.0 * i as f64 / head_dim as f64) / factor / self.linear
            })
            .collect();
        let angles = || (0..positions).flat_map(|t| frequencies.iter().map(move |f| t as f64 * f));
        (angles().map(|a| a.cos() as f32).collect(), angles().map(|a| a.sin() as f32).collect())
    }
}

/// By how much Llama 3's scaling divides each frequency: long wavelengths by `factor`, short ones not at all, and a
/// smooth transition between (Llama 3.1's reference code; transformers' `_compute_llama3_parameters`).
fn llama3_factors(base: f64, head_dim: usize, factor: f64, low: f64, high: f64, original: f64) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / head_dim as f64);
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
        let plain = Rope { base: 10_000.0, linear: 1.0, factors: None };
        let scaled = Rope { linear: 4.0, ..plain.clone() };
        let (cos, _) = plain.tables(2, 8);
        let (stretched, _) = scaled.tables(5, 8);
        assert_eq!(cos[4..8], stretched[16..20]);
    }
}
