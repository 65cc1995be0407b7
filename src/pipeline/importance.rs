//! Measuring an importance matrix: how large the inputs of every layer are, with the model's own weights.

use super::loaded_model::LoadedModel;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::Block;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::mixer::Place;
use crate::model::mixer::experts::Routed;
use crate::model::states::States;
use crate::model::{Reads, Site, TensorSpec};
use crate::source::imatrix::{Entry, Imatrix};
use candle_core::{Device, Tensor};

/// Runs windows of text, `[windows][tokens]`, through a model, block by block, and sums the squares of what each layer reads.
/// `output`: also of what the output matrix reads. `progress` is told the done and the whole work, in blocks.
///
/// # Errors
/// A tensor that cannot be read, or a forward pass that overflows.
pub fn measure(
    loaded: &LoadedModel,
    windows: &[Vec<u32>],
    output: bool,
    progress: &dyn Fn(usize, usize),
) -> Result<Imatrix> {
    let (model, device) = (&loaded.model, Device::Cpu);
    let positions = windows.first().map_or(0, Vec::len);
    let frame = Frame::new(model, loaded.pairing(), positions, &device)?.on(&loaded.compute);
    let mut batches = loaded.embed(windows, &device)?;
    let mut imatrix = Imatrix { chunks: windows.len() as u32, chunk_size: positions as u32, ..Imatrix::default() };
    for i in 0..model.blocks.len() {
        let specs = model.block(i);
        let mut block = Block::new(&frame, i);
        for spec in &specs {
            block.set(spec, loaded.read(spec)?)?;
        }
        let before = batches.clone();
        for half in block.halves() {
            let sites = Place::ALL.map(|place| Site { half, place });
            let mut sums = sites.map(|site| (site, Squares::new(width(&specs, site))));
            let mut experts = Experts::new(half, &block, &specs);
            for (states, before) in batches.iter_mut().zip(&before) {
                interrupt::check()?;
                let input = block.input(half, states, before)?;
                let inner = if sums[1].1.columns() > 0 { Some(block.inner(half, &input, states)?) } else { None };
                for ((_, squares), x) in sums.iter_mut().zip([Some(&input), inner.as_ref()]) {
                    x.map_or(Ok(()), |x| squares.add(x)).context(|| format!("block {i}"))?;
                }
                experts.iter_mut().try_for_each(|experts| experts.add(&block, &input, states))?;
                *states = match (&experts, &inner) {
                    (None, Some(inner)) => block.output(half, states, before, inner)?,
                    _ => block.half(half, states, before)?,
                };
            }
            experts.into_iter().for_each(|experts| experts.finish(&specs, &mut imatrix));
            for (site, squares) in sums {
                for spec in specs.iter().filter(|spec| spec.site() == Some(site)) {
                    // A block that runs several times has seen something before.
                    let own = entry(&squares);
                    match imatrix.entries.get_mut(&spec.gguf) {
                        Some(entry) => entry.add(&own),
                        None => drop(imatrix.entries.insert(spec.gguf.clone(), own)),
                    }
                }
            }
        }
        progress(i + 1, model.blocks.len());
    }
    if output {
        let norm = LastNorm::new(model, |spec| loaded.read(spec))?;
        let mut squares = Squares::new(model.hidden);
        for states in &batches {
            squares.add(&norm.apply(states)?).context(|| "the last norm".into())?;
        }
        imatrix.entries.insert(model.output().gguf, entry(&squares));
    }
    Ok(imatrix)
}

/// The sums of each expert of a block.
struct Experts {
    half: usize,
    inputs: Vec<Squares>,
    inners: Vec<Squares>,
}

impl Experts {
    /// None where the half has no experts.
    fn new(half: usize, block: &Block<'_>, specs: &[TensorSpec]) -> Option<Experts> {
        let count = block.experts(half)?.count;
        let columns =
            |reads| specs.iter().find(|spec| spec.half == half && spec.reads == Some(reads)).map(TensorSpec::columns);
        let all = |columns: usize| (0..count).map(|_| Squares::new(columns)).collect();
        Some(Experts { half, inputs: all(columns(Reads::Routed)?), inners: all(columns(Reads::RoutedInner)?) })
    }

    /// Adds what the router sends where. `x`: `[tokens, hidden]`.
    fn add(&mut self, block: &Block<'_>, x: &Tensor, states: &States) -> Result<()> {
        let half = self.half;
        let Some(Routed { x, routes }) = block.routed(half, x, states)? else { return Ok(()) };
        for (expert, route) in routes.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
            let own = route.select(&x)?;
            self.inputs[expert].add(&own)?;
            let inner = block.expert_inner(half, expert, &own, &|part| block.expert(half, part, expert))?;
            self.inners[expert].add(&inner)?;
        }
        Ok(())
    }

    fn finish(self, specs: &[TensorSpec], imatrix: &mut Imatrix) {
        for spec in specs.iter().filter(|spec| spec.is_of_experts() && spec.half == self.half) {
            let inside = spec.reads == Some(Reads::RoutedInner);
            let all = if inside { &self.inners } else { &self.inputs };
            let sums = all.iter().flat_map(Squares::sums).collect();
            let counts = all.iter().map(|squares| squares.tokens() as f32).collect();
            imatrix.entries.insert(spec.gguf.clone(), Entry { sums, counts });
        }
    }
}

fn entry(squares: &Squares) -> Entry {
    Entry { sums: squares.sums(), counts: vec![squares.tokens() as f32] }
}

fn width(specs: &[TensorSpec], site: Site) -> usize {
    specs.iter().find(|spec| spec.site() == Some(site)).map_or(0, TensorSpec::columns)
}
