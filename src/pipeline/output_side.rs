//! How errors at the outputs of each layer move the model's predictions: measured once, in front of all blocks.
//!
//! Some windows go through the original model, and what is in front of each block is kept in a file; then the gradients of
//! [`sampled_loss`] come back through the blocks in reverse order. What comes of them stays in a file, too: the layers are rounded in
//! the other order, and a run that goes on finds it there.

use super::block_step::is_grid;
use super::loaded_model::{embed, pairing};
use super::scratch::{Scratch, WIDTH, from_bf16, to_bf16};
use super::stream::{PRECISION, spare};
use super::{Calibration, Run};
use crate::calib::output_hessian::{OutputHessian, numbers};
use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::backward::gradients;
use crate::model::block::Block;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::states::States;
use crate::model::{Part, sampled_loss};
use crate::pipeline::plan::{Plan, Planned};
use candle_core::{Device, Tensor, Var};
use std::collections::HashMap;
use std::path::Path;

/// Tokens that gradients are taken at, at most: a hundred and more for each row of a chunk.
pub const TOKENS: usize = 1 << 13;

/// Tokens of a window that are looked at, at most; and tokens of a block's activations, all of which its backward pass holds.
pub const LENGTH: usize = 1 << 9;

/// What its file is called.
const NAME: &str = "output-hessians";

/// Bytes of a number.
const SINGLE: usize = 4;

/// Bytes of the hash in front of the numbers.
const HASH: usize = blake3::OUT_LEN;

/// The output-side Hessians of all layers that are rounded, in a file.
pub(super) struct OutputSide {
    file: Scratch,
    /// Where those of a layer begin, and how many bytes they have, by its name.
    places: HashMap<String, (u64, usize)>,
}

/// How much of the calibration text is looked at: windows, and tokens of each.
pub fn extent(samples: usize, positions: usize) -> (usize, usize) {
    let length = positions.clamp(1, LENGTH);
    (samples.min(TOKENS.div_ceil(length)), length)
}

/// The layers of a plan that have such a Hessian.
fn layers(tensors: &[Planned]) -> impl Iterator<Item = &Planned> {
    tensors.iter().filter(|t| is_grid(t) && t.spec.weight_of().is_some())
}

impl OutputSide {
    /// Opens the file in a run's folder, or makes it.
    fn open(plan: &Plan, folder: &Path) -> Result<OutputSide> {
        let (mut places, mut at) = (HashMap::new(), HASH as u64);
        for tensor in plan.blocks().flat_map(layers) {
            let bytes = numbers(tensor.spec.rows()) * SINGLE;
            places.insert(tensor.spec.gguf.clone(), (at, bytes));
            at += bytes as u64;
        }
        let file = Scratch::open(&folder.join(NAME), 0)?;
        file.reserve(at)?;
        Ok(OutputSide { file, places })
    }

    /// The hash of all numbers.
    fn hash(&self) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let mut places: Vec<(u64, usize)> = self.places.values().copied().collect();
        places.sort_unstable();
        for (at, bytes) in places {
            hasher.update(&self.file.read(at, bytes)?);
        }
        Ok(hasher.finalize())
    }

    /// Whether an earlier run has filled it.
    fn is_complete(&self) -> bool {
        let hashes = (self.file.read(0, HASH), self.hash());
        matches!(hashes, (Ok(written), Ok(hash)) if written == hash.as_bytes())
    }

    /// That of a layer, `[⌈rows / CHUNK⌉, CHUNK, CHUNK]`; none of one that has none.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn get(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(&(at, bytes)) = self.places.get(name) else { return Ok(None) };
        let bytes = self.file.read(at, bytes)?;
        Ok(Some(bytes.chunks_exact(SINGLE).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()))
    }

    fn put(&mut self, name: &str, g: &[f32]) -> Result<()> {
        let (at, _) = self.places[name];
        let bytes: Vec<u8> = g.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.file.write(at, &bytes)
    }
}

impl Run<'_> {
    /// The output-side Hessians of this run, measured where it does not go on with an earlier one that has left them.
    ///
    /// # Errors
    /// The model has no backward pass, or anything from the checkpoint to the disk.
    pub(super) fn output_side(&mut self, windows: &[Vec<u32>], c: &Calibration, resumed: bool) -> Result<OutputSide> {
        let model = self.plan.model()?;
        if let Some(obstacle) = model.obstacle_to_backward() {
            let name = model.architecture.gguf();
            return Err(Error::usage(format!("--output-feedback is not for this model ({name}): {obstacle}"))
                .hint("leave --output-feedback out"));
        }
        let (scratch, folder) = self.folders()?;
        let (mut all, spare) = (OutputSide::open(self.plan, folder)?, spare(scratch, folder));
        if resumed && all.is_complete() {
            self.observer.advance(self.work_of_gradients());
        } else {
            self.phase(None, "gradients at the layers' outputs");
            self.measure(windows, c, &mut all, &spare)?;
            std::fs::remove_file(&spare).context(|| format!("cannot remove {}", spare.display()))?;
            let hash = all.hash()?;
            all.file.write(0, hash.as_bytes())?;
        }
        Ok(all)
    }

    /// What the gradients of all blocks are worth among the rest of a run: about twice what is done with as many calibration tokens.
    pub(super) fn work_of_gradients(&self) -> u64 {
        let (tokens, blocks) = (self.tokens as u64, self.plan.blocks());
        let share = self.rounding.calibration.map_or(0, |c| {
            let (count, length) = extent(c.samples, c.positions);
            (count * length) as u64
        });
        2 * share.min(tokens) * blocks.map(|tensors| self.plan.work(tensors)).sum::<u64>()
    }

    /// Fills a file. `spare`: where the residual stream in front of each block is kept.
    fn measure(&mut self, windows: &[Vec<u32>], c: &Calibration, all: &mut OutputSide, spare: &Path) -> Result<()> {
        let (plan, model, device) = (self.plan, self.plan.model()?, Device::Cpu);
        let (count, length) = extent(windows.len(), c.positions);
        // The first of them may be held out.
        let windows: Vec<Vec<u32>> =
            windows[windows.len() - count..].iter().map(|window| window[..length].to_vec()).collect();
        let frame = Frame::new(model, pairing(&plan.source, model), length, &device)?;
        let frame = frame.with_precision(PRECISION).on(&self.rounding.compute);
        let mut batches = embed(&plan.source, model, &windows, &device)?;
        let sizes: Vec<usize> = batches.iter().map(|h| h.h.elem_count() * WIDTH).collect();
        let place = |block: usize, batch: usize| {
            (block * sizes.iter().sum::<usize>() + sizes[..batch].iter().sum::<usize>()) as u64
        };
        let mut fronts = Scratch::open(spare, 0)?;
        fronts.reserve(place(model.blocks.len(), 0))?;
        for (i, tensors) in plan.blocks().enumerate() {
            let block = self.original(&frame, i)?;
            let started = self.clock.start();
            for (b, h) in batches.iter_mut().enumerate() {
                interrupt::check()?;
                let mut bytes = vec![0; sizes[b]];
                to_bf16(&mut bytes, &h.h)?;
                fronts.write(place(i, b), &bytes)?;
                *h = block.forward(h)?;
                self.observer.advance(self.plan.work(tensors) * h.h.dim(0)? as u64 / 2);
            }
            self.clock.forward += started.elapsed();
        }
        let mut grads = self.behind_blocks(&batches, c.seed)?;
        drop(batches);
        for (i, tensors) in plan.blocks().enumerate().collect::<Vec<_>>().into_iter().rev() {
            let block = self.original(&frame, i)?;
            let started = self.clock.start();
            let parts: Vec<Part> = layers(tensors).filter_map(|t| t.spec.weight_of()).collect();
            let mut sums: Vec<OutputHessian> = layers(tensors).map(|t| OutputHessian::new(t.spec.rows())).collect();
            for (b, behind) in grads.iter_mut().enumerate() {
                let (tokens, hidden) = behind.dims2()?;
                let before = from_bf16(&fronts.read(place(i, b), sizes[b])?, tokens, hidden)?;
                let each = LENGTH / length * length;
                let mut parts_of_batch = Vec::new();
                for first in (0..tokens).step_by(each) {
                    interrupt::check()?;
                    let part = |x: &Tensor| x.narrow(0, first, each.min(tokens - first));
                    let own = States::new(part(&before)?);
                    let (grad, outputs) = block.backward(&own, &part(behind)?, &parts)?;
                    for (sum, grad) in sums.iter_mut().zip(&outputs) {
                        sum.add(PRECISION, grad).context(|| format!("gradients of block {i}"))?;
                    }
                    self.observer.advance(self.plan.work(tensors) * grad.dim(0)? as u64 * 3 / 2);
                    parts_of_batch.push(grad);
                }
                *behind = Tensor::cat(&parts_of_batch, 0)?;
            }
            self.clock.forward += started.elapsed();
            for (tensor, sum) in layers(tensors).zip(sums) {
                all.put(&tensor.spec.gguf, &sum.finish())?;
            }
        }
        Ok(())
    }

    /// The gradients behind the last block, `[tokens, hidden]` of each batch.
    fn behind_blocks(&mut self, batches: &[States], seed: u64) -> Result<Vec<Tensor>> {
        let (plan, model) = (self.plan, self.plan.model()?);
        let norm = LastNorm::new(model, |spec| self.read(spec))?;
        let normed = batches.iter().map(|h| norm.apply(h)).collect::<Result<Vec<Tensor>>>()?;
        let output = model.output();
        let started = self.clock.start();
        let rows = |rows| plan.source.rows(&output, rows);
        let grads = sampled_loss::gradients(model, PRECISION, &normed, seed, &rows)?;
        let through_norm = |(h, grad): (&States, &Tensor)| {
            let h = Var::from_tensor(&h.h)?;
            let y = norm.apply(&States::new(h.as_tensor().clone()))?;
            Ok(gradients(&y, grad)?.remove(&h).expect("the norm depends on what it reads"))
        };
        let grads = batches.iter().zip(&grads).map(through_norm).collect();
        self.clock.forward += started.elapsed();
        grads
    }

    /// A block of the original model.
    pub(super) fn original<'f>(&mut self, frame: &'f Frame, i: usize) -> Result<Block<'f>> {
        let mut block = Block::new(frame, i);
        for spec in self.plan.model()?.block(i) {
            block.set(&spec, self.read(&spec)?)?;
        }
        Ok(block)
    }
}
