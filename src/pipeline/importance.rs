//! Measuring an importance matrix: how large the inputs of every layer are, with the model's own weights.

use super::subject::Subject;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame, Half};
use crate::model::{Site, TensorSpec, ops};
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
        let mut block = Block::new(&frame);
        for spec in &specs {
            block.set(spec, subject.read(spec)?)?;
        }
        for half in Half::ALL {
            let mut sums = [half.input(), half.inner()].map(|site| (site, Squares::new(width(&specs, site))));
            for h in &mut batches {
                interrupt::check()?;
                let input = block.input(half, h)?;
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
        let norm = model.output_norm();
        let gain = Tensor::from_vec(subject.read(&norm)?, norm.shape[0], &device)?;
        let mut squares = Squares::new(model.hidden);
        for h in &batches {
            squares.add(&ops::rms_norm(h, &gain, model.norm_eps)?).context(|| "the last norm".into())?;
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
