//! Measuring an importance matrix: how large the inputs of every layer are, with the model's own weights.

use super::subject::Subject;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame, Half};
use crate::model::ends::LastNorm;
use crate::model::{Model, Part, Role, Site, TensorSpec};
use crate::source::imatrix::{Entry, Imatrix};
use candle_core::{Device, Tensor};

/// Runs windows of text, `[windows][tokens]`, through a model, block by block, and sums the squares of what each layer reads.
/// `output`: also of what the output matrix reads. `progress` is told the done and the whole work, in blocks.
///
/// # Errors
/// A tensor that cannot be read, or a forward pass that overflows.
pub fn measure(
    subject: &Subject,
    windows: &[Vec<u32>],
    output: bool,
    progress: &dyn Fn(usize, usize),
) -> Result<Imatrix> {
    let (model, device) = (&subject.model, Device::Cpu);
    let positions = windows.first().map_or(0, Vec::len);
    let frame = Frame::new(model, subject.pairing(), positions, &device)?;
    let mut batches = subject.embed(windows, &device)?;
    let mut imatrix = Imatrix { chunks: windows.len() as u32, chunk_size: positions as u32, ..Imatrix::default() };
    for i in 0..model.blocks {
        let specs = model.block(i);
        let mut block = Block::new(&frame, i);
        for spec in &specs {
            block.set(spec, subject.read(spec)?)?;
        }
        let before = batches.clone();
        for half in Half::ALL {
            let mut sums = [half.input(), half.inner()].map(|site| (site, Squares::new(width(&specs, site))));
            let mut experts = Experts::new(model, half, i);
            for (h, before) in batches.iter_mut().zip(&before) {
                interrupt::check()?;
                let input = block.input(half, h, before)?;
                let inner = if sums[1].1.columns() > 0 { Some(block.inner(half, &input)?) } else { None };
                for ((_, squares), x) in sums.iter_mut().zip([Some(&input), inner.as_ref()]) {
                    x.map_or(Ok(()), |x| squares.add(x)).context(|| format!("block {i}"))?;
                }
                experts.iter_mut().try_for_each(|experts| experts.add(&block, &input))?;
                *h = match (&experts, &inner) {
                    (None, Some(inner)) => block.output(half, h, inner)?,
                    _ => block.half(half, h, before)?,
                };
            }
            experts.into_iter().for_each(|experts| experts.finish(&specs, &mut imatrix));
            for (site, squares) in sums {
                for spec in specs.iter().filter(|spec| spec.site() == Some(site)) {
                    imatrix.entries.insert(spec.gguf.clone(), entry(&squares));
                }
            }
        }
        progress(i + 1, model.blocks);
    }
    if output {
        let norm = LastNorm::new(model, |spec| subject.read(spec))?;
        let mut squares = Squares::new(model.hidden);
        for h in &batches {
            squares.add(&norm.apply(h)?).context(|| "the last norm".into())?;
        }
        imatrix.entries.insert(model.output().gguf, entry(&squares));
    }
    Ok(imatrix)
}

/// The sums of each expert of a block.
struct Experts {
    inputs: Vec<Squares>,
    inners: Vec<Squares>,
}

impl Experts {
    /// None where the half has no experts.
    fn new(model: &Model, half: Half, block: usize) -> Option<Experts> {
        let experts = model.experts(block).filter(|_| half == Half::Mlp)?;
        let all = |columns: usize| (0..experts.count).map(|_| Squares::new(columns)).collect();
        Some(Experts { inputs: all(model.hidden), inners: all(experts.ffn) })
    }

    /// Adds what the router sends where. `x`: `[tokens, hidden]`.
    fn add(&mut self, block: &Block<'_>, x: &Tensor) -> Result<()> {
        for (expert, route) in block.routes(x)?.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
            let index = Tensor::from_slice(&route.tokens, route.tokens.len(), x.device())?;
            let own = x.index_select(&index, 0)?;
            self.inputs[expert].add(&own)?;
            self.inners[expert].add(&block.expert_inner(expert, &own, &|part| block.expert(part, expert))?)?;
        }
        Ok(())
    }

    fn finish(self, specs: &[TensorSpec], imatrix: &mut Imatrix) {
        for spec in specs.iter().filter(|spec| spec.is_of_experts()) {
            let inside = matches!(spec.role, Role::Block(Part::ExpertDowns, _));
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
