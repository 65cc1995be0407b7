//! Perplexity, under the two protocols in use.
//!
//! - `llama.cpp`: windows of 512 tokens, the first replaced by BOS, the second half scored. Comparable with
//!   llama-perplexity.
//! - `hf`: non-overlapping windows of 2048 tokens, every target scored. Comparable with the GPTQ and AWQ papers.
//!
//! Windows go through the blocks together, some after the others. Matrices stay as they are in their file and are decoded on
//! the way, so that memory is a function of the residual stream of some windows, not of the model.

use super::logits::{Likelihood, each_row};
use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::BlockConfig;
use crate::model::block::Block;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::states::States;
use crate::pipeline::loaded_model::{BATCH, LoadedModel};
use candle_core::{Device, Tensor};

/// Bytes of residual stream that go through the model together.
pub(super) const STREAM: usize = 1 << 30;

/// Tokens of windows that go through the model together: a part of a long evaluation, which is told and kept when it is done.
/// Each part reads the model anew, which these are enough to make up for.
const PART: usize = 4 * BATCH;

/// What becomes of the parts of a long evaluation. `()` does nothing with them.
pub trait Parts {
    /// What is known of a part already.
    fn known(&mut self, part: usize) -> Option<Vec<f64>>;

    /// Takes the numbers of a part of so many: a loss for each scored token, or for each file and token its loss, the reference's,
    /// the divergence, and 1 if both have the same likeliest token.
    ///
    /// # Errors
    /// They cannot be kept.
    fn add(&mut self, part: usize, parts: usize, numbers: &[f64]) -> Result<()>;
}

impl Parts for () {
    fn known(&mut self, _: usize) -> Option<Vec<f64>> {
        None
    }
    fn add(&mut self, _: usize, _: usize, _: &[f64]) -> Result<()> {
        Ok(())
    }
}

/// How many windows make a part. `hidden`: the numbers of a position of the residual streams that are there at once.
pub(super) fn windows_of_a_part(context: usize, hidden: usize) -> usize {
    (PART / context.max(1)).min(STREAM / (4 * context * hidden).max(1)).max(1)
}

/// Which tokens are scored, and after which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// llama-perplexity's.
    LlamaCpp,
    /// The one of the GPTQ and AWQ papers.
    Hf,
}

impl Protocol {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::LlamaCpp => "llama.cpp",
            Protocol::Hf => "hf",
        }
    }

    /// The usual tokens per window.
    pub fn usual_context(self) -> usize {
        match self {
            Protocol::LlamaCpp => 512,
            Protocol::Hf => 2048,
        }
    }

    /// The first position of a window whose successor is scored.
    pub fn first(self, context: usize) -> usize {
        match self {
            Protocol::LlamaCpp => context / 2,
            Protocol::Hf => 0,
        }
    }
}

/// What came out.
#[derive(Debug, Clone, Copy)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub value: f64,
    /// Its standard error, as llama-perplexity computes it.
    pub error: f64,
    /// Windows evaluated.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: usize,
}

impl Perplexity {
    /// From the negative log-likelihoods of the scored tokens.
    pub fn from_losses(losses: &[f64], windows: usize) -> Perplexity {
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let square = losses.iter().map(|x| x * x).sum::<f64>() / n;
        let value = mean.exp();
        let deviation = ((square - mean * mean).max(0.0) / (n - 1.0).max(1.0)).sqrt();
        Perplexity { value, error: value * deviation, windows, tokens: losses.len() }
    }
}

/// The windows of a text: `[windows][context]`. One final newline of the text is ignored; what does not fill the last
/// window is dropped. llama.cpp's protocol reads the text of special tokens as plain text, the other one as those tokens.
///
/// # Errors
/// A text that is too short: llama.cpp's protocol wants two windows, the other one.
pub fn windows(
    loaded: &LoadedModel,
    text: &str,
    protocol: Protocol,
    context: usize,
    chunks: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    Ok(begun(cut(loaded, text, protocol, context, chunks)?, loaded, protocol))
}

/// [`windows`] of which each still has the first token that the text gives it.
///
/// # Errors
/// As [`windows`].
pub fn cut(
    loaded: &LoadedModel,
    text: &str,
    protocol: Protocol,
    context: usize,
    chunks: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    let mut tokens = Vec::new();
    tokens.extend(loaded.tokenizer.bos().filter(|_| protocol == Protocol::LlamaCpp));
    let text = text.strip_suffix('\n').unwrap_or(text);
    tokens.extend(match protocol {
        Protocol::LlamaCpp => loaded.tokenizer.encode_plain(text)?,
        Protocol::Hf => loaded.tokenizer.encode(text)?,
    });
    cut_tokens(&tokens, protocol, context, chunks)
}

/// [`cut`] of tokens.
///
/// # Errors
/// As [`windows`].
pub fn cut_tokens(tokens: &[u32], protocol: Protocol, context: usize, chunks: Option<usize>) -> Result<Vec<Vec<u32>>> {
    let needed = if protocol == Protocol::LlamaCpp { context.saturating_mul(2) } else { context };
    if tokens.len() < needed {
        let n = tokens.len();
        return Err(Error::new(format!(
            "the text is too short: {n} tokens, but {needed} are needed for windows of {context}"
        ))
        .hint("give a longer text with -f, or a smaller window with -c"));
    }
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(context).map(<[u32]>::to_vec).collect();
    windows.truncate(chunks.unwrap_or(usize::MAX));
    Ok(windows)
}

/// Windows that begin as the protocol wants them to: under llama.cpp's, BOS takes the place of the first token.
pub fn begun(mut windows: Vec<Vec<u32>>, loaded: &LoadedModel, protocol: Protocol) -> Vec<Vec<u32>> {
    if let Some(bos) = loaded.tokenizer.bos().filter(|_| protocol == Protocol::LlamaCpp) {
        windows.iter_mut().for_each(|window| window[0] = bos);
    }
    windows
}

/// Perplexity over windows. `progress` is told the done and the whole work, in blocks of windows; `states` gets the last
/// hidden states of the scored tokens, `[tokens, hidden]`, some windows at a time.
///
/// # Errors
/// A tensor that cannot be read, or a forward pass that overflows.
pub fn perplexity(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    protocol: Protocol,
    states: &mut dyn FnMut(&LoadedModel, &Tensor) -> Result<()>,
    progress: &dyn Fn(usize, usize),
) -> Result<Perplexity> {
    perplexity_in_parts(loaded, windows, protocol, states, &mut (), progress)
}

/// The same, some windows after the others; those that `parts` knows already are left out.
///
/// # Errors
/// As [`perplexity`], or those of `parts`.
pub fn perplexity_in_parts(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    protocol: Protocol,
    states: &mut dyn FnMut(&LoadedModel, &Tensor) -> Result<()>,
    parts: &mut dyn Parts,
    progress: &dyn Fn(usize, usize),
) -> Result<Perplexity> {
    let first = protocol.first(windows.first().map_or(0, Vec::len));
    let losses = losses_and_states(loaded, windows, first, states, parts, progress)?;
    Ok(Perplexity::from_losses(&losses, windows.len()))
}

/// The negative log-likelihoods of tokens `first + 1 ..` of every window, each after all tokens before it, one window
/// behind the other.
///
/// # Errors
/// As [`perplexity`].
pub fn losses(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    first: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<f64>> {
    losses_and_states(loaded, windows, first, &mut |_, _| Ok(()), &mut (), progress)
}

fn losses_and_states(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    first: usize,
    states: &mut dyn FnMut(&LoadedModel, &Tensor) -> Result<()>,
    parts: &mut dyn Parts,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<f64>> {
    let context = windows.first().map_or(0, Vec::len);
    let group = windows_of_a_part(context, loaded.model.hidden);
    let groups = windows.len().div_ceil(group);
    let steps = loaded.model.blocks.len() + 1;
    let mut losses = Vec::new();
    for (g, windows) in windows.chunks(group).enumerate() {
        let own = match parts.known(g) {
            Some(known) => known,
            None => {
                let tell = |block| progress(g * steps + block, groups * steps);
                let hidden = final_states(loaded, windows, first, &tell)?;
                states(loaded, &hidden)?;
                let own = negative_log_likelihoods(loaded, &hidden, &targets(windows, first))?;
                check("likelihood", &own, losses.len())?;
                parts.add(g, groups, &own)?;
                own
            }
        };
        losses.extend(own);
        progress((g + 1) * steps, groups * steps);
    }
    Ok(losses)
}

/// Checks that what was measured of every scored token is a number; the first of these is the `before`-th of all.
///
/// # Errors
/// One of them is NaN or infinite.
pub(super) fn check(what: &str, tokens: &[f64], before: usize) -> Result<()> {
    match tokens.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::new(format!("the {what} of scored token {} is {}", before + at, tokens[at]))
            .hint("the model overflows in its own forward pass; the file is probably damaged")),
    }
}

/// The tokens whose likelihoods are asked for, where those after position `first` of every window are scored.
pub(super) fn targets(windows: &[Vec<u32>], first: usize) -> Vec<u32> {
    windows.iter().flat_map(|w| w[first + 1..].iter().copied()).collect()
}

/// The normed last hidden states of positions `first .. context − 1` of every window: `[windows · scored, hidden]`.
pub(super) fn final_states(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    first: usize,
    done: &dyn Fn(usize),
) -> Result<Tensor> {
    let (model, device) = (&loaded.model, Device::Cpu);
    let context = windows[0].len();
    let frame = Frame::new(model, loaded.pairing(), context, &device)?.on(&loaded.compute);
    let mut batches = loaded.embed(windows, &device)?;
    let blocks = model.blocks.len();
    for i in 0..blocks {
        let place = || format!("block {i}");
        let block = loaded.block(&frame, i).context(place)?;
        let last = i + 1 == blocks;
        for states in &mut batches {
            interrupt::check()?;
            *states = match last {
                false => block.forward(states).context(place)?,
                true => behind_last(&block, &model.blocks[i], states, context, first).context(place)?,
            };
        }
        done(i + 1);
    }
    let norm = LastNorm::new(model, |spec| loaded.read(spec))?;
    let states = batches.iter().map(|states| norm.apply(states)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&states, 0)?)
}

/// What is behind the last block for positions `first .. context − 1` of every window: behind the last half that mixes positions, those
/// that are not scored count for nothing.
fn behind_last(block: &Block, config: &BlockConfig, before: &States, context: usize, first: usize) -> Result<States> {
    let alone = config.halves.iter().rposition(|half| half.mixer.mixes_positions()).map_or(0, |half| half + 1);
    let scored = |states: &States| states.narrow(context, first, context - 1 - first);
    let mut states = before.clone();
    for half in 0..alone {
        states = block.half(half, &states, before)?;
    }
    let (mut states, before) = (scored(&states)?, scored(before)?);
    for half in alone..config.halves.len() {
        states = block.half(half, &states, &before)?;
    }
    Ok(states)
}

/// `−ln p(target)` for each row of `hidden`, the output matrix in pieces.
fn negative_log_likelihoods(loaded: &LoadedModel, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let mut seen = vec![Likelihood::UNSEEN; targets.len()];
    each_row(loaded, hidden, &mut seen, |seen, i, logits, sum, first| seen.add(logits, sum, first, targets[i]))?;
    Ok(seen.iter().map(Likelihood::loss).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_llama_perplexity() {
        // Losses 1, 2, 3: mean 2, variance 2/3, standard error √(2/3/2).
        let p = Perplexity::from_losses(&[1.0, 2.0, 3.0], 1);
        assert!((p.value - 2f64.exp()).abs() < 1e-12);
        assert!((p.error - 2f64.exp() * (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(p.tokens, 3);
    }

    #[test]
    fn the_protocols_score_what_they_should() {
        assert_eq!(512 - 1 - Protocol::LlamaCpp.first(512), 255);
        assert_eq!(2048 - 1 - Protocol::Hf.first(2048), 2047);
    }
}
