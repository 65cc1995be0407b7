//! `--device` and `--vram`: where products are computed.

use super::output;
use super::quantize::ram;
use crate::compute::Compute;
use crate::compute::choice::{Wanted, choose};
use crate::error::Result;
use std::sync::Arc;

/// The options.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct OnDevice {
    /// Where layers and statistics are computed: auto (a GPU with memory of its own if it passes a self-test, otherwise the CPU), cpu, or gpu;
    /// gpu:NAME and gpu:NUMBER are of `llmq devices`
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = Wanted::parse)]
    pub device: Wanted,

    /// The memory of the GPU that may be taken, for example 8G
    #[arg(long, value_name = "SIZE", value_parser = ram::size)]
    pub vram: Option<u64>,
}

impl OnDevice {
    /// Opens and tests what was asked for, and says what was chosen and why. `need`: bytes that the run holds on a GPU at least.
    ///
    /// # Errors
    /// As [`choose`].
    pub fn choose(&self, need: u64) -> Result<Arc<dyn Compute>> {
        let chosen = choose(&self.device, self.vram, need)?;
        chosen.said.iter().for_each(|said| output::note(said));
        Ok(chosen.compute)
    }
}
