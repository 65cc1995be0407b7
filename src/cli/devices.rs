//! `llmq devices`: what there is to compute on, and what it is worth.

use super::output::{self, bytes};
use crate::compute::choice::{auto_takes, open};
use crate::compute::gpu::identity;
use crate::error::Result;
use llmq_gpu::adapters;
use serde_json::json;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let found = adapters();
    for (i, adapter) in found.iter().enumerate() {
        let started = Instant::now();
        let tested = open(adapter, None).map(|_| started.elapsed().as_secs_f64());
        let auto = auto_takes(adapter.kind, adapter.interface);
        if args.json {
            output::json(
                "device",
                json!({
                    "number": i,
                    "name": adapter.name,
                    "kind": adapter.kind.name(),
                    "interface": adapter.interface,
                    "driver": adapter.driver,
                    "buffer": adapter.buffer,
                    "binding": adapter.binding,
                    "shared": adapter.shared,
                    "threads": adapter.threads,
                    "identity": identity(adapter),
                    "self_test_seconds": tested.as_ref().ok(),
                    "self_test_error": tested.as_ref().err().map(ToString::to_string),
                    "auto": auto.is_ok() && tested.is_ok(),
                }),
            );
            continue;
        }
        output::line(format!(
            "gpu:{i}  {} ({}), {} {}",
            adapter.name,
            adapter.kind.name(),
            adapter.interface,
            adapter.driver
        ));
        output::line(format!(
            "       buffers up to {}, of which a kernel sees {}; {} and {} threads a workgroup",
            bytes(adapter.buffer),
            bytes(adapter.binding),
            bytes(adapter.shared.into()),
            adapter.threads
        ));
        match &tested {
            Ok(seconds) => output::line(format!("       self-test: passed in {seconds:.1} s")),
            Err(error) => output::line(format!("       self-test: {error}")),
        }
        match auto {
            Err(why) => output::line(format!("       not taken by --device auto: it {why}")),
            Ok(()) => output::line("       taken by --device auto if its self-test passes"),
        }
    }
    if args.json {
        output::json("summary", json!({ "devices": found.len() }));
    } else {
        if found.is_empty() {
            output::line("no GPU with a driver for Vulkan or Metal was found");
        }
        output::line("cpu    always there; --device cpu is what all results are compared by");
    }
    Ok(())
}
