//! Measuring an importance matrix: how large the inputs of every layer are, with the model's own weights.

use super::subject::Subject;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame, Half};
use crate::model::ends::LastNorm;
use crate::model::{Site, TensorSpec};
use crate::source::imatrix::{Entry, Imatrix};
use candle_core::Device;

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
            for (h, before) in batches.iter_mut().zip(&before) {
                interrupt::check()?;
                let input = block.input(half, h, before)?;
                let inner = block.inner(half, &input)?;
                for ((_, squares), x) in sums.iter_mut().zip([&input, &inner]) {
                    squares.add(x).context(|| format!("block {i}"))?;
                }
                *h = block.output(half, h, &inner)?;
            }
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

fn entry(squares: &Squares) -> Entry {
    Entry { sums: squares.sums(), counts: vec![squares.tokens() as f32] }
}

fn width(specs: &[TensorSpec], site: Site) -> usize {
    specs.iter().find(|spec| spec.site() == Some(site)).map_or(0, TensorSpec::columns)
}
