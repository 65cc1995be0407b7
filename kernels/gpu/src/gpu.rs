//! An open device: its memory, its errors, and how much it is asked for at once.

use crate::adapter::{Setup, said};
use crate::error::{Error, Result};
use crate::kernels::Pipelines;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Multiplications, each with its addition, that one submission asks for at most: Windows resets a device that is busy for two seconds.
const WORK: f64 = 25e9;

/// How long to wait for a device that fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are written at once, so that what the driver copies them through stays small.
const PIECE: usize = 64 << 20;

/// What buffers are for that kernels read and write.
const COMPUTED: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_DST).union(wgpu::BufferUsages::COPY_SRC);

/// A device that computes.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pub(crate) pipelines: Pipelines,
    binding: u64,
    groups: usize,
    faults: Arc<Faults>,
    taken: Arc<AtomicU64>,
    allowed: Option<u64>,
    pub(crate) scratch: Mutex<Scratch>,
}

/// What went wrong outside of any function's own errors.
#[derive(Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    other: Mutex<Option<String>>,
}

/// Buffers that products go through, kept from one to the next. Who holds them has the device for himself.
#[derive(Default)]
pub(crate) struct Scratch {
    pub left: Slot,
    pub right: Slot,
    pub out: Slot,
    staging: Slot,
    /// The last submission, which the next one waits for.
    last: Last,
}

/// The submission that the next one waits for.
pub(crate) type Last = Option<wgpu::SubmissionIndex>;

/// A buffer that grows.
#[derive(Default)]
pub(crate) struct Slot(Option<Held>);

/// A buffer on the device, counted while it is there.
pub(crate) struct Held {
    buffer: wgpu::Buffer,
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.buffer.destroy();
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl std::ops::Deref for Held {
    type Target = wgpu::Buffer;
    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {} bytes taken)", self.device.adapter_info().name, self.taken())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue, setup: &Setup<'_>) -> Result<Gpu> {
        let faults = Arc::new(Faults::default());
        let own = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&own.lost) = Some(if message.is_empty() { format!("{reason:?}") } else { message });
        });
        let own = faults.clone();
        // Without this wgpu panics.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&own.other).get_or_insert(error.to_string());
        }));
        let limits = device.limits();
        let (taken, scratch) = (Arc::default(), Mutex::default());
        let pipelines = guarded(&device, &faults, (0, 0), || Ok(Pipelines::new(&device, setup.edit)))?;
        Ok(Gpu {
            pipelines,
            binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            groups: limits.max_compute_workgroups_per_dimension as usize,
            device,
            queue,
            faults,
            taken,
            allowed: setup.memory,
            scratch,
        })
    }

    /// Bytes of its memory that are taken now.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes of its memory that may be taken, where that was said.
    pub fn allowed(&self) -> Option<u64> {
        self.allowed
    }

    /// Ends the device as a fault would, for tests of what comes of that.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.device.destroy();
    }

    /// Has the device for one piece of work; its errors are those of what was asked for, or of the driver.
    pub(crate) fn work<T>(&self, work: impl FnOnce(&mut Scratch) -> Result<T>) -> Result<T> {
        let mut scratch = lock(&self.scratch);
        let result = guarded(&self.device, &self.faults, (0, self.taken()), || work(&mut scratch));
        if result.is_err() {
            // Whatever went wrong, none of it is worth keeping.
            *scratch = Scratch::default();
        }
        result
    }

    /// Rows of so many numbers that a kernel sees at once: whole vec4, and whole tiles where there are several.
    pub(crate) fn rows_of(&self, numbers: usize) -> Result<usize> {
        let rows =
            (self.binding / (4 * numbers.max(1) as u64)).min(u64::from(u32::MAX) / numbers.max(1) as u64) as usize;
        match rows {
            0..4 => Err(Error::Refused(format!(
                "four rows of {numbers} numbers do not fit into the {} bytes that a kernel sees at once",
                self.binding
            ))),
            4..128 => Ok(rows / 4 * 4),
            _ => Ok(rows / 128 * 128),
        }
    }

    /// Workgroups of a dispatch in one direction, at most.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// A buffer that kernels read and write, zeros at first.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<Held> {
        self.allocate(bytes, COMPUTED)
    }

    fn allocate(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<Held> {
        // Nothing of no bytes can be bound.
        let bytes = bytes.max(16);
        let taken = self.taken();
        if self.allowed.is_some_and(|allowed| taken + bytes > allowed) {
            return Err(Error::Memory { wanted: bytes, taken, allowed: self.allowed });
        }
        let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        let buffer =
            guarded(&self.device, &self.faults, (bytes, taken), || Ok(self.device.create_buffer(&descriptor)))?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(Held { buffer, bytes, taken: self.taken.clone() })
    }

    /// The buffer of a slot, of at least so many bytes.
    pub(crate) fn room<'s>(&self, slot: &'s mut Slot, bytes: u64) -> Result<&'s Held> {
        self.grown(slot, bytes, COMPUTED)
    }

    fn grown<'s>(&self, slot: &'s mut Slot, bytes: u64, usage: wgpu::BufferUsages) -> Result<&'s Held> {
        if slot.0.as_ref().is_none_or(|held| held.bytes < bytes) {
            slot.0 = None;
            slot.0 = Some(self.allocate(bytes, usage)?);
        }
        slot.0.as_ref().ok_or_else(|| Error::Refused("a buffer vanished".into()))
    }

    /// Writes rows of `columns` numbers to rows of `stride`, a multiple of four, with zeros behind each. `numbers`: `[rows, columns]`.
    pub(crate) fn write(&self, to: &wgpu::Buffer, numbers: &[f32], columns: usize, stride: usize) {
        if columns == stride {
            return self.write_bytes(to, bytemuck::cast_slice(numbers));
        }
        let mut padded = vec![0.0f32; numbers.len() / columns.max(1) * stride]; // [rows, stride]
        for (to, from) in padded.chunks_mut(stride).zip(numbers.chunks(columns.max(1))) {
            to[..columns].copy_from_slice(from);
        }
        self.write_bytes(to, bytemuck::cast_slice(&padded));
    }

    pub(crate) fn write_bytes(&self, to: &wgpu::Buffer, bytes: &[u8]) {
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            self.queue.write_buffer(to, (i * PIECE) as u64, piece);
            if bytes.len() > PIECE {
                self.queue.submit([]);
            }
        }
    }

    /// Submits one dispatch of a kernel on its buffers. `params`: what its `Params` has; `last`: the submission before.
    pub(crate) fn dispatch(
        &self,
        last: &mut Last,
        pipeline: &wgpu::ComputePipeline,
        buffers: &[&wgpu::Buffer],
        params: &[u32],
        groups: (usize, usize),
    ) -> Result<()> {
        // Uniforms come in multiples of 16 bytes.
        let mut uniform = params.to_vec();
        uniform.resize(params.len().next_multiple_of(4), 0);
        let size = 4 * uniform.len() as u64;
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let held = self.allocate(size, usage)?;
        self.write_bytes(&held, bytemuck::cast_slice(&uniform));
        let entries: Vec<wgpu::BindGroupEntry<'_>> = buffers
            .iter()
            .copied()
            .chain([&held.buffer])
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        let group = self.device.create_bind_group(&descriptor);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(groups.0 as u32, groups.1 as u32, 1);
        }
        let submitted = self.queue.submit([encoder.finish()]);
        // One is at work while the next is being made, and no more.
        match last.replace(submitted) {
            Some(before) => self.wait(Some(before)),
            None => Ok(()),
        }
    }

    fn wait(&self, submission_index: Last) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        waited.map(|_| ()).map_err(|cause| Error::Refused(cause.to_string()))
    }

    /// Reads ranges of a buffer, each of whole numbers: `(first byte, bytes)`, and shows them one behind the other.
    pub(crate) fn read<T>(
        &self,
        staging: &mut Slot,
        from: &wgpu::Buffer,
        ranges: &[(u64, u64)],
        show: impl FnOnce(&[f32]) -> T,
    ) -> Result<T> {
        let bytes = ranges.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let held = self.grown(staging, bytes, wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST))?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut at = 0;
        for &(first, bytes) in ranges {
            encoder.copy_buffer_to_buffer(from, first, held, at, bytes);
            at += bytes;
        }
        self.queue.submit([encoder.finish()]);
        let (done, told) = std::sync::mpsc::channel();
        let part = held.slice(0..bytes);
        part.map_async(wgpu::MapMode::Read, move |result| {
            // Nobody listens any more where the wait has failed.
            done.send(result).ok();
        });
        self.wait(None)?;
        let mapped = told.recv().map_err(|_| Error::Refused("a buffer was never mapped".into()))?;
        mapped.map_err(|cause| Error::Refused(cause.to_string()))?;
        let view = part.get_mapped_range().map_err(|cause| Error::Refused(cause.to_string()))?;
        let shown = show(bytemuck::cast_slice(&view));
        drop(view);
        held.unmap();
        Ok(shown)
    }
}

impl Scratch {
    /// All of it apart, for who needs several at once.
    pub fn parts(&mut self) -> (&mut Slot, &mut Slot, &mut Slot, &mut Slot, &mut Last) {
        (&mut self.left, &mut self.right, &mut self.out, &mut self.staging, &mut self.last)
    }
}

/// Rows or columns, in whole tiles, whose products with `depth` numbers and `others` are one submission.
pub(crate) fn at_once(others: usize, depth: usize, tile: usize) -> usize {
    let each = (others.max(1) * depth.max(1) * tile) as f64;
    ((WORK / each) as usize).max(1) * tile
}

/// Runs something, and makes errors of whatever the driver says meanwhile. `wanted`, `taken`: bytes, for the error.
fn guarded<T>(
    device: &wgpu::Device,
    faults: &Faults,
    (wanted, taken): (u64, u64),
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [Validation, Internal, OutOfMemory].map(|filter| device.push_error_scope(filter));
    // wgpu itself panics on some of what it is told by a device that is no more.
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::Refused(said(&*panic))));
    let [validation, internal, memory] = scopes;
    // The last that was opened is closed first.
    let memory = pollster::block_on(memory.pop());
    let found = [pollster::block_on(internal.pop()), pollster::block_on(validation.pop())].into_iter().flatten().next();
    if result.is_err() || found.is_some() || memory.is_some() {
        // That a device is lost is told when nothing is left of what it was doing, which may be after the errors that come of it.
        device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) }).ok();
    }
    if let Some(why) = lock(&faults.lost).clone() {
        return Err(Error::Lost(why));
    }
    if memory.is_some() {
        return Err(Error::Memory { wanted, taken, allowed: None });
    }
    if let Some(error) = found {
        return Err(Error::Refused(error.to_string()));
    }
    if let Some(error) = lock(&faults.other).take() {
        return Err(Error::Refused(error));
    }
    result
}
