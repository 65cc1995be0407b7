//! What a run holds on a GPU at least.

use crate::model::mixer::Place;
use crate::model::{Model, Site};
use crate::pipeline::experts;
use crate::pipeline::loaded_model::BATCH;

/// Numbers of the output matrix, and logits, that are there at once.
const PIECE: usize = 1 << 24;

/// Bytes of the largest matrix with the activations of a batch on either side of it, and, where they are `calibrated`, of the sums of the
/// site that has the most. `asymmetric`: with drifts.
pub fn device_memory(model: &Model, calibrated: bool, asymmetric: bool) -> u64 {
    let single = |numbers: usize| 4 * numbers as u64;
    let (mut layer, mut sums) = (0, 0);
    // Outputs are there twice: where they are computed, and where they are read from.
    let batch = |rows: usize, columns: usize| single(BATCH * (columns + 2 * rows));
    for i in 0..model.blocks.len() {
        let specs = model.block(i);
        for spec in specs.iter().filter(|spec| spec.reads.is_some()) {
            let (rows, columns) = (spec.shape[spec.shape.len() - 2], spec.columns());
            layer = layer.max(2 * single(rows * columns) + batch(rows, columns));
        }
        for (half, place) in (0..model.blocks[i].halves.len()).flat_map(|half| Place::ALL.map(|place| (half, place))) {
            let site = Site { half, place };
            let columns = specs.iter().find(|spec| spec.site() == Some(site)).map_or(0, |spec| spec.columns());
            let off = if site.is_inner() { model.hidden } else { columns };
            // Those of windows that are held out, too.
            let all = 2 * (columns + if asymmetric { off } else { 0 }) * columns;
            sums = sums.max(single(all) + single(BATCH * (columns + off)));
        }
        if specs.iter().any(|spec| spec.is_of_experts()) {
            sums = sums.max(experts::MEMORY as u64);
        }
    }
    let rows = model.vocab.min(PIECE / model.hidden.max(BATCH));
    layer.max(2 * single(rows * model.hidden) + batch(rows, model.hidden)) + if calibrated { sums } else { 0 }
}
