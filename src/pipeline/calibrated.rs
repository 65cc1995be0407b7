//! One block of a calibrated run: statistics, rounding, and the quantized outputs that feed what comes next.

use super::plan::Planned;
use super::{Finished, Run};
use crate::calib::hessian::Hessian;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame, Half};
use crate::model::{Model, Site};
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::Pairing;
use std::collections::HashMap;

/// Tokens that go through a block at once.
const BATCH: usize = 2048;

/// Inner activations up to this many bytes are kept from the statistics to the output of a half; larger ones are computed
/// twice. The results are the same.
const KEEP: usize = 512 << 20;

/// The residual stream of all calibration windows: what lives from block to block.
pub struct Stream {
    frame: Frame,
    /// `[windows · positions, hidden]` each.
    batches: Vec<Tensor>,
    tokens: usize,
}

impl Stream {
    /// Starts with the embedded tokens. `rows`: the embedding's rows of the `known` tokens (sorted), one after the other.
    pub fn new(model: &Model, windows: &[Vec<u32>], positions: usize, known: &[u32], rows: &[f32]) -> Result<Stream> {
        let device = Device::Cpu;
        let hidden = model.hidden;
        let frame = Frame::new(model, Pairing::Halves, positions, &device)?;
        let batches = windows
            .chunks((BATCH / positions).max(1))
            .map(|windows| {
                let mut x = Vec::with_capacity(windows.len() * positions * hidden);
                for token in windows.iter().flatten() {
                    let at = known.binary_search(token).expect("every token's row was kept") * hidden;
                    x.extend_from_slice(&rows[at..at + hidden]);
                }
                Ok(Tensor::from_vec(x, (windows.len() * positions, hidden), &device)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Stream { frame, batches, tokens: windows.len() * positions })
    }
}

impl Run<'_> {
    /// Quantizes and writes block `i`; afterwards the stream is that behind the quantized block.
    pub(super) fn calibrated_block(&mut self, i: usize, tensors: &[Planned], stream: &mut Stream) -> Result<()> {
        let Stream { frame, batches, tokens } = stream;
        let mut finished: HashMap<&str, Finished> = HashMap::new();
        let mut block = Block::new(frame);
        for tensor in tensors {
            if is_grid(tensor) {
                block.set(&tensor.spec, self.read(&tensor.spec)?)?;
            } else {
                let done = self.plain(tensor)?;
                block.set(&tensor.spec, tensor.kind.decode_all(&done.bytes))?;
                finished.insert(&tensor.spec.gguf, done);
            }
        }
        let last = i + 1 == self.plan.model.blocks;
        for half in Half::ALL {
            let work = work(tensors, half) * *tokens as u64;
            let mut done = 0;
            let place = |site: Site| format!("block {i}, input of {}", readers(tensors, site).join(", "));
            if has_grids(tensors, half.input()) {
                let mut hessian = Hessian::new(width(tensors, half.input()));
                for h in batches.iter() {
                    interrupt::check()?;
                    let x = self.forward(|| block.input(half, h))?;
                    self.accumulate(&mut hessian, &x).context(|| place(half.input()))?;
                }
                self.site(half.input(), hessian, tensors, &mut block, &mut finished)?;
            }
            let count = batches.len() as u64;
            let keep = *tokens * width(tensors, half.inner()) * 4 <= KEEP;
            let mut kept = Vec::new();
            if has_grids(tensors, half.inner()) {
                let mut hessian = Hessian::new(width(tensors, half.inner()));
                for h in batches.iter() {
                    interrupt::check()?;
                    let x = self.forward(|| block.inner(half, &block.input(half, h)?))?;
                    self.accumulate(&mut hessian, &x).context(|| place(half.inner()))?;
                    if keep {
                        kept.push(x);
                    }
                    done += self.progress(work / 2 / count);
                }
                self.site(half.inner(), hessian, tensors, &mut block, &mut finished)?;
            }
            // Nothing reads the stream behind the last block.
            if !(last && half == Half::Mlp) {
                let mut kept = kept.into_iter();
                for h in batches.iter_mut() {
                    interrupt::check()?;
                    *h = self.forward(|| {
                        let inner = match kept.next() {
                            Some(inner) => inner,
                            None => block.inner(half, &block.input(half, h)?)?,
                        };
                        block.output(half, h, &inner)
                    })?;
                    done += self.progress(work / 2 / count);
                }
            }
            self.observer.advance(work - done);
        }
        for tensor in tensors {
            let done = finished.remove(tensor.spec.gguf.as_str()).expect("every tensor of the block was quantized");
            self.write(tensor, done)?;
        }
        Ok(())
    }

    /// Quantizes every layer that reads a site and puts what the file will hold in its place.
    fn site<'t>(
        &mut self,
        site: Site,
        hessian: Hessian,
        tensors: &'t [Planned],
        block: &mut Block<'_>,
        finished: &mut HashMap<&'t str, Finished>,
    ) -> Result<()> {
        let columns = hessian.columns();
        let h = hessian.finish();
        let started = self.clock.start();
        let prepared = self.method.prepare(&h, columns, self.options)?;
        self.clock.method += started.elapsed();
        for tensor in tensors.iter().filter(|t| t.spec.site() == Some(site) && is_grid(t)) {
            interrupt::check()?;
            let w = block.numbers(&tensor.spec)?;
            let (bytes, values) = self.encode(tensor, &w, Some(prepared.as_ref()))?;
            let error = self.error(&tensor.spec, &w, &values, Some(&h));
            if let Some(note) = prepared.note() {
                self.note(format!("{}: {note}", tensor.spec.gguf));
            }
            self.observer.advance(w.len() as u64 * super::report::PER_WEIGHT);
            block.set(&tensor.spec, values)?;
            finished.insert(&tensor.spec.gguf, Finished { bytes, report: tensor.report(Some(error)) });
        }
        Ok(())
    }

    fn progress(&self, work: u64) -> u64 {
        self.observer.advance(work);
        work
    }

    fn forward<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = self.clock.start();
        let result = work();
        self.clock.forward += started.elapsed();
        result
    }

    fn accumulate(&mut self, hessian: &mut Hessian, x: &Tensor) -> Result<()> {
        let started = self.clock.start();
        let result = hessian.add(x);
        self.clock.hessian += started.elapsed();
        result
    }
}

/// Whether a method chooses this tensor's codes from statistics.
fn is_grid(tensor: &Planned) -> bool {
    tensor.spec.site().is_some() && tensor.kind.is_quantized()
}

fn readers(tensors: &[Planned], site: Site) -> Vec<&str> {
    tensors.iter().filter(|t| t.spec.site() == Some(site)).map(|t| t.spec.source.as_str()).collect()
}

fn has_grids(tensors: &[Planned], site: Site) -> bool {
    tensors.iter().any(|t| t.spec.site() == Some(site) && is_grid(t))
}

/// Multiplications per token in the linear layers of a half.
fn work(tensors: &[Planned], half: Half) -> u64 {
    let sites = [half.input(), half.inner()];
    let layers = tensors.iter().filter(|t| t.spec.site().is_some_and(|s| sites.contains(&s)));
    layers.map(|t| t.spec.elements() as u64).sum()
}

fn width(tensors: &[Planned], site: Site) -> usize {
    tensors.iter().find(|t| t.spec.site() == Some(site)).map_or(0, |t| t.spec.shape[1])
}
