//! How fast a model runs on this machine: in llmq's own engine, on the CPU, in `f32` arithmetic on decoded weights.
//!
//! That is not how fast llama.cpp runs it. What carries over is how files compare in size and memory.

use super::generation::{Generation, likeliest};
use crate::error::{Error, Result};
use crate::model::frame::Frame;
use crate::pipeline::loaded_model::LoadedModel;
use crate::pipeline::report::{forget_peak_memory, peak_memory};
use candle_core::Device;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Tokens of the prompt, and tokens generated behind it, if the model's context has room.
const TOKENS: (usize, usize) = (512, 64);

/// How often it is measured, unless that takes longer than [`PATIENCE`].
const RUNS: usize = 5;

/// Fewer runs say nothing of the spread.
const LEAST_RUNS: usize = 2;

/// After this no further run begins.
const PATIENCE: Duration = Duration::from_secs(120);

/// Several measurements of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle; of an even number, the mean of the two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (n, last) = (sorted.len(), sorted.len() - 1);
        Spread { median: 0.5 * (sorted[last / 2] + sorted[n / 2]), least: sorted[0], most: sorted[last] }
    }
}

/// How fast one model runs here.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    /// What ran it: `llmq`, on the CPU.
    pub engine: &'static str,
    /// Threads.
    pub threads: usize,
    /// Bytes of its files.
    pub bytes: u64,
    /// The most memory that was resident at once while it ran, in bytes, what was read of mapped files included; where the
    /// system tells.
    pub peak_memory: Option<u64>,
    /// How often it was measured.
    pub runs: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were generated behind it.
    pub generated_tokens: usize,
    /// Seconds from the prompt's tokens to the first token behind them.
    pub first_token_seconds: Spread,
    /// Tokens of the prompt per second, up to that first token.
    pub prompt_rate: Spread,
    /// Tokens per second behind the first.
    pub generation_rate: Spread,
}

/// Measures a model on a text: its first tokens are the prompt, then it continues with whatever it holds to be the likeliest.
/// `progress` is told the done and the whole work, in runs.
///
/// # Errors
/// A text or a context of fewer than two tokens, or a tensor that cannot be read.
pub fn measure(loaded: &LoadedModel, text: &[u32], progress: &dyn Fn(usize, usize)) -> Result<Speed> {
    let prompt = TOKENS.0.min(text.len()).min(loaded.model.context / 2);
    let generated = TOKENS.1.min(loaded.model.context - prompt);
    if prompt == 0 || generated == 0 {
        let (n, context) = (text.len(), loaded.model.context);
        return Err(Error::new(format!("a text of {n} tokens in a context of {context} leaves no speed to measure")));
    }
    forget_peak_memory();
    let frame = Frame::new(&loaded.model, loaded.pairing(), prompt + generated, &Device::Cpu)?;
    let mut window = Generation::new(loaded, &frame)?;
    // What the disk takes to give the file is no speed of the model.
    window.read(&text[..1])?;
    let (mut first, mut rates) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while first.len() < LEAST_RUNS || (first.len() < RUNS && begun.elapsed() < PATIENCE) {
        progress(first.len(), RUNS);
        window.clear();
        let started = Instant::now();
        let mut token = likeliest(&window.read(&text[..prompt])?);
        first.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        for _ in 0..generated {
            token = likeliest(&window.read(&[token])?);
        }
        rates.push(generated as f64 / started.elapsed().as_secs_f64());
    }
    progress(RUNS, RUNS);
    let files = loaded.weights().files();
    let prompt_rates: Vec<f64> = first.iter().map(|seconds| prompt as f64 / seconds).collect();
    Ok(Speed {
        engine: "llmq, CPU",
        threads: rayon::current_num_threads(),
        bytes: files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum(),
        peak_memory: peak_memory(),
        runs: first.len(),
        prompt_tokens: prompt,
        generated_tokens: generated,
        first_token_seconds: Spread::of(&first),
        prompt_rate: Spread::of(&prompt_rates),
        generation_rate: Spread::of(&rates),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_two() {
        assert_eq!(Spread::of(&[3.0, 1.0, 7.0]), Spread { median: 3.0, least: 1.0, most: 7.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]), Spread { median: 3.0, least: 1.0, most: 9.0 });
        assert_eq!(Spread::of(&[5.0]).median, 5.0);
    }
}
