//! Which device a run computes on, and why.

use super::{Compute, Cpu};
use crate::error::{Error, Result};
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A GPU that is clearly worth it, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU; by a part of its name, or its number among the adapters.
    Gpu(Option<String>),
}

impl Wanted {
    /// What `--device` is given.
    ///
    /// # Errors
    /// Something else.
    pub fn parse(text: &str) -> std::result::Result<Wanted, String> {
        let lower = text.to_lowercase();
        match lower.split_once(':') {
            None if lower == "auto" => Ok(Wanted::Auto),
            None if lower == "cpu" => Ok(Wanted::Cpu),
            None if lower == "gpu" => Ok(Wanted::Gpu(None)),
            Some(("gpu", which)) if !which.is_empty() => Ok(Wanted::Gpu(Some(which.to_owned()))),
            _ => Err("a device is auto, cpu, gpu, or gpu:NAME or gpu:NUMBER of `llmq devices`".into()),
        }
    }
}

/// A device to compute on.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// It.
    pub compute: Arc<dyn Compute>,
    /// What it is and why, in a line; none where nothing was to be chosen.
    pub said: Option<String>,
}

impl Chosen {
    fn cpu(said: Option<String>) -> Chosen {
        Chosen { compute: Arc::new(Cpu), said }
    }
}

/// Opens and tests a device. `need`: bytes that the run holds there at least; `vram`: bytes that it may hold there.
///
/// # Errors
/// There is no such GPU, or the one that was asked for is of no use.
#[cfg(not(feature = "gpu"))]
pub fn choose(wanted: &Wanted, _vram: Option<u64>, _need: u64) -> Result<Chosen> {
    match wanted {
        Wanted::Auto | Wanted::Cpu => Ok(Chosen::cpu(None)),
        Wanted::Gpu(_) => Err(Error::usage("this llmq was built without support for GPUs")
            .hint("build it with --features gpu, or use --device cpu")),
    }
}

#[cfg(feature = "gpu")]
pub use with_gpu::{auto_takes, choose, choose_among, open};

#[cfg(feature = "gpu")]
mod with_gpu {
    use super::*;
    use crate::compute::gpu::OnGpu;
    use llmq_gpu::{Adapter, Gpu, Kind, Setup, adapters};
    use std::time::Instant;

    /// Matrices are kept in so many times what a run needs at least, unless it is said how much there is.
    const SPARE: u64 = 4;

    /// Without an adapter at all.
    const NO_DRIVER: &str = "no GPU with a driver for Vulkan or Metal was found";

    /// Opens and tests a device. `need`: bytes that the run holds there at least; `vram`: bytes that it may hold there.
    ///
    /// # Errors
    /// There is no such GPU, or the one that was asked for is of no use.
    pub fn choose(wanted: &Wanted, vram: Option<u64>, need: u64) -> Result<Chosen> {
        match wanted {
            Wanted::Cpu => Ok(Chosen::cpu(None)),
            wanted => choose_among(wanted, vram, need, &adapters(), &|adapter| open(adapter, vram)),
        }
    }

    /// Opens an adapter, and tests what it computes.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn open(adapter: &Adapter, vram: Option<u64>) -> llmq_gpu::Result<Arc<Gpu>> {
        let gpu = Arc::new(adapter.open(&Setup { memory: vram, ..Setup::default() })?);
        gpu.self_test()?;
        Ok(gpu)
    }

    /// Whether a GPU of this kind is worth its way without being asked for; otherwise why not.
    ///
    /// # Errors
    /// Why it is not.
    pub fn auto_takes(kind: Kind, interface: &str) -> std::result::Result<(), &'static str> {
        match kind {
            Kind::Discrete => Ok(()),
            // Apple's share the CPU's memory, too.
            Kind::Integrated if interface == "Metal" => Ok(()),
            Kind::Integrated => Err("is an integrated GPU, not clearly faster than the CPU (--device gpu takes it)"),
            Kind::Cpu => Err("computes on the CPU itself"),
            Kind::Virtual | Kind::Other => Err("is not known to be faster than the CPU (--device gpu takes it)"),
        }
    }

    /// See [`choose`]; `open` opens and tests one of these adapters.
    ///
    /// # Errors
    /// As [`choose`].
    pub fn choose_among(
        wanted: &Wanted,
        vram: Option<u64>,
        need: u64,
        adapters: &[Adapter],
        open: &dyn Fn(&Adapter) -> llmq_gpu::Result<Arc<Gpu>>,
    ) -> Result<Chosen> {
        let mut reasons = Vec::new();
        let mut candidates: Vec<&Adapter> = Vec::new();
        for (i, adapter) in adapters.iter().enumerate() {
            let fits = match wanted {
                Wanted::Gpu(Some(which)) if which.parse() == Ok(i) => Ok(()),
                Wanted::Gpu(Some(which)) if adapter.name.to_lowercase().contains(which.as_str()) => Ok(()),
                Wanted::Gpu(Some(_)) => Err("is another one"),
                Wanted::Gpu(None) if adapter.kind != Kind::Cpu => Ok(()),
                _ => auto_takes(adapter.kind, adapter.interface),
            };
            match fits {
                Ok(()) => candidates.push(adapter),
                Err(why) => reasons.push(format!("{} {why}", adapter.name)),
            }
        }
        // The drivers' order decides among those that are alike.
        candidates.sort_by_key(|adapter| auto_takes(adapter.kind, adapter.interface).is_err());
        if adapters.is_empty() {
            reasons.push(NO_DRIVER.into());
        }
        for adapter in candidates {
            if let Some(vram) = vram.filter(|vram| *vram < need) {
                reasons
                    .push(format!("of {} {vram} bytes may be taken (--vram), and the run needs {need}", adapter.name));
                continue;
            }
            let started = Instant::now();
            match open(adapter) {
                Ok(gpu) => {
                    let Adapter { name, interface, driver, .. } = adapter;
                    let took = started.elapsed().as_secs_f64();
                    let said = format!(
                        "computing on {name} ({interface}, {driver}), which passed its self-test in {took:.1} s"
                    );
                    let room = vram.unwrap_or(SPARE * need);
                    return Ok(Chosen { compute: Arc::new(OnGpu::new(gpu, adapter, room)), said: Some(said) });
                }
                Err(error) => reasons.push(format!("{}: {error}", adapter.name)),
            }
        }
        let why = reasons.join("; ");
        match wanted {
            Wanted::Gpu(which) => {
                let which = which.as_ref().map_or(String::new(), |which| format!(":{which}"));
                Err(Error::new(format!("--device gpu{which} cannot be had: {why}")).hint(
                    "`llmq devices` shows what there is; in containers and under WSL2 a GPU may have no Vulkan; or use --device cpu",
                ))
            }
            _ => Ok(Chosen::cpu(Some(format!("computing on the CPU: {why}")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!(Wanted::parse("Auto"), Ok(Wanted::Auto));
        assert_eq!(Wanted::parse("gpu:RTX 4090"), Ok(Wanted::Gpu(Some("rtx 4090".into()))));
        assert!(["", "gpu:", "cuda", "cpu:0"].iter().all(|text| Wanted::parse(text).is_err()));
    }

    #[cfg(not(feature = "gpu"))]
    #[test]
    fn without_the_feature_a_gpu_is_refused() {
        assert!(choose(&Wanted::Auto, None, 0).unwrap().said.is_none());
        assert!(choose(&Wanted::Gpu(None), None, 0).unwrap_err().hint_text().unwrap().contains("--features gpu"));
    }

    #[cfg(feature = "gpu")]
    #[test]
    fn auto_takes_what_is_clearly_faster() {
        use llmq_gpu::Kind::{Cpu, Discrete, Integrated};
        assert!(auto_takes(Discrete, "Vulkan").is_ok() && auto_takes(Integrated, "Metal").is_ok());
        assert!(auto_takes(Integrated, "Vulkan").is_err() && auto_takes(Cpu, "Vulkan").is_err());
    }
}
