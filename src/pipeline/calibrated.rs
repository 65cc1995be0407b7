//! One block of a calibrated run: statistics, rounding, and the quantized outputs that feed what comes next.

use super::plan::{Plan, Planned};
use super::subject::{BATCH, pairing};
use super::{Finished, Run};
use crate::calib::hessian::Hessian;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::method::diagonal;
use crate::model::block::{Block, Frame, Half};
use crate::model::{Role, Site};
use crate::source::imatrix::Entry;
use candle_core::{Device, Tensor};
use std::collections::HashMap;

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
    pub fn new(plan: &Plan, windows: &[Vec<u32>], positions: usize, known: &[u32], rows: &[f32]) -> Result<Stream> {
        let (device, model) = (Device::Cpu, plan.model()?);
        let hidden = model.hidden;
        let frame = Frame::new(model, pairing(&plan.source, model), positions, &device)?;
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
                let done = self.whole(tensor)?;
                if tensor.spec.role != Role::Other {
                    block.set(&tensor.spec, tensor.kind.decode_all(&done.bytes))?;
                }
                finished.insert(&tensor.spec.gguf, done);
            }
        }
        let last = i + 1 == self.plan.blocks().len();
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
            } else if self.rounding.keep_statistics {
                let mut squares = Squares::new(width(tensors, half.input()));
                for h in batches.iter() {
                    interrupt::check()?;
                    let x = self.forward(|| block.input(half, h))?;
                    squares.add(&x).context(|| place(half.input()))?;
                }
                self.keep(tensors, half.input(), squares.sums(), *tokens);
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
            } else if self.rounding.keep_statistics {
                let mut squares = Squares::new(width(tensors, half.inner()));
                for h in batches.iter() {
                    interrupt::check()?;
                    let x = self.forward(|| block.inner(half, &block.input(half, h)?))?;
                    squares.add(&x).context(|| place(half.inner()))?;
                }
                self.keep(tensors, half.inner(), squares.sums(), *tokens);
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
        let (columns, tokens) = (hessian.columns(), hessian.tokens());
        let h = hessian.finish();
        if self.rounding.keep_statistics {
            let sums = diagonal(&h, columns).iter().map(|x| x * tokens as f32).collect();
            self.keep(tensors, site, sums, tokens);
        }
        let started = self.clock.start();
        let prepared = self.rounding.method.prepare(&h, columns, &self.rounding.options)?;
        self.clock.method += started.elapsed();
        for tensor in tensors.iter().filter(|t| t.spec.site() == Some(site) && is_grid(t)) {
            interrupt::check()?;
            let w = block.numbers(&tensor.spec)?;
            let (bytes, values) = self.encode(tensor, &w, prepared.as_ref())?;
            let error = self.error(&tensor.spec, &w, &values, &h);
            if let Some(note) = prepared.note() {
                self.note(format!("{}: {note}", tensor.spec.gguf));
            }
            self.observer.advance(w.len() as u64 * super::report::PER_WEIGHT);
            block.set(&tensor.spec, values)?;
            finished.insert(&tensor.spec.gguf, Finished { bytes, report: tensor.report(Some(error)) });
        }
        Ok(())
    }

    /// Keeps what a site saw, for every layer that reads it.
    fn keep(&mut self, tensors: &[Planned], site: Site, sums: Vec<f32>, tokens: usize) {
        for tensor in tensors.iter().filter(|t| t.spec.site() == Some(site)) {
            let entry = Entry { sums: sums.clone(), counts: vec![tokens as f32] };
            self.statistics.entries.insert(tensor.spec.gguf.clone(), entry);
        }
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
    tensor.spec.site().is_some() && tensor.is_rounded()
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
