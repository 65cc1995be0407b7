//! What there is to compute on.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::Kernel;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A part of a GPU that a virtual machine sees.
    Virtual,
    /// The CPU, by a driver that computes there.
    Cpu,
    /// It does not say.
    Other,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Discrete => "discrete GPU",
            Kind::Integrated => "integrated GPU",
            Kind::Virtual => "virtual GPU",
            Kind::Cpu => "CPU",
            Kind::Other => "unknown kind",
        }
    }
}

/// Something to compute on, by what its driver says.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// What the driver calls it.
    pub name: String,
    /// The driver, with its version where it says one.
    pub driver: String,
    /// Vulkan or Metal.
    pub interface: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a buffer, at most.
    pub buffer: u64,
    /// Bytes of a buffer that a kernel sees at once, at most.
    pub binding: u64,
    /// Bytes that the threads of a workgroup share, at most.
    pub shared: u32,
    /// Threads of a workgroup, at most.
    pub threads: u32,
    adapter: wgpu::Adapter,
}

/// How a device is opened.
pub struct Setup<'a> {
    /// Bytes that may be taken of its memory, at most.
    pub memory: Option<u64>,
    /// Bytes that a kernel sees of a buffer at once, other than the adapter says.
    pub binding: Option<u64>,
    /// May change the text of a kernel, so that tests see what comes of wrong ones.
    pub edit: &'a dyn Fn(Kernel, String) -> String,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { memory: None, binding: None, edit: &|_, text| text }
    }
}

/// What this machine's drivers offer, in their order; nothing where there is no driver, nor anything that loads one.
pub fn adapters() -> Vec<Adapter> {
    let found = catch_unwind(|| {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL,
            // The layers that check what is asked of drivers are for those who write kernels.
            flags: wgpu::InstanceFlags::empty(),
            // Where the driver says how much is free, more than that is an error before anything is moved out.
            memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
                for_resource_creation: Some(97),
                for_device_loss: None,
            },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
    });
    // A driver that brings the loader down is none.
    found.unwrap_or_default().into_iter().map(Adapter::new).collect()
}

impl Adapter {
    fn new(adapter: wgpu::Adapter) -> Adapter {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        Adapter {
            name: info.name,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            interface: if info.backend == wgpu::Backend::Metal { "Metal" } else { "Vulkan" },
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
                wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
                wgpu::DeviceType::VirtualGpu => Kind::Virtual,
                wgpu::DeviceType::Cpu => Kind::Cpu,
                wgpu::DeviceType::Other => Kind::Other,
            },
            buffer: limits.max_buffer_size,
            binding: limits.max_storage_buffer_binding_size,
            shared: limits.max_compute_workgroup_storage_size,
            threads: limits.max_compute_invocations_per_workgroup,
            adapter,
        }
    }

    /// Makes it ready to compute. What it computes is not tested yet: see [`Gpu::self_test`].
    ///
    /// # Errors
    /// The driver refuses, or cannot compile the kernels.
    pub fn open(&self, setup: &Setup<'_>) -> Result<Gpu> {
        let mut limits = self.adapter.limits();
        limits.max_storage_buffer_binding_size = setup.binding.unwrap_or(self.binding);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("llmq"),
            required_features: wgpu::Features::empty(),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        // What compiles kernels panics on some of what drivers say.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let (device, queue) = pollster::block_on(self.adapter.request_device(&descriptor))
                .map_err(|cause| Error::Refused(cause.to_string()))?;
            Gpu::new(device, queue, setup)
        }));
        opened.unwrap_or_else(|panic| Err(Error::Refused(said(&*panic))))
    }
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a word").to_owned()
}
