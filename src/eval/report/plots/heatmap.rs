//! The relative squared error of each matrix: blocks from left to right, kinds of matrices from top to bottom.

use super::{Anchor, Plot};
use crate::eval::report::{Judged, words};
use crate::eval::tensors::TensorError;

/// Pixels of a row, of the space between the cells, and of the axis.
const ROW: f64 = 26.0;
const AXIS: f64 = 42.0;

/// Steps of colour.
const STEPS: usize = 8;

/// With at most so many blocks, cells have room for their number.
const ROOMY: usize = 6;

/// Errors of one file. `number`: which of several files it is. None where nothing can be shown.
pub fn heatmap(file: &Judged, number: usize, range: (f64, f64)) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for tensor in file.tensors.iter().filter(|tensor| tensor.block.is_some()) {
        if !parts.contains(&tensor.part.as_str()) {
            parts.push(&tensor.part);
        }
    }
    let blocks = file.tensors.iter().filter_map(|tensor| tensor.block).max()? + 1;
    let bottom = ROW * parts.len() as f64;
    let title = format!("Error of the weights of {}", file.label);
    let description =
        "One cell for each matrix: darker is a larger relative squared error. Blocks go from left to right.";
    let mut plot = Plot::new(&format!("error-plot-{number}"), &title, description, "gutter", bottom + AXIS);
    for (row, part) in parts.iter().enumerate() {
        let y = ROW * row as f64;
        plot.text("row", (0.0, y + 0.5 * ROW + 4.0), -10.0, Anchor::End, part);
        for tensor in file.tensors.iter().filter(|tensor| tensor.part == *part) {
            let Some(block) = tensor.block else { continue };
            cell(&mut plot, file, tensor, (block, blocks), y, range);
        }
    }
    let every = blocks.div_ceil(8);
    for block in (0..blocks).step_by(every) {
        let x = 100.0 * (block as f64 + 0.5) / blocks as f64;
        plot.text("tick", (x, bottom + 17.0), 0.0, Anchor::Middle, &block.to_string());
    }
    plot.text("muted", (50.0, bottom + 36.0), 0.0, Anchor::Middle, "block");
    let outside: Vec<String> = file
        .tensors
        .iter()
        .filter(|tensor| tensor.block.is_none())
        .map(|tensor| format!("{} ({}) {}", tensor.part, tensor.kind, words::percent(tensor.error)))
        .collect();
    let mut caption = "‖W − Q‖² / ‖W‖² of each matrix.".to_owned();
    if !outside.is_empty() {
        caption += &format!(" Outside the blocks: {}.", outside.join(", "));
    }
    if file.tensors.iter().any(|tensor| tensor.rescaled) {
        caption += " Where scales were folded into a matrix and what comes before it, they are taken out first.";
    }
    Some(plot.figure(&caption))
}

fn cell(plot: &mut Plot, file: &Judged, tensor: &TensorError, at: (usize, usize), y: f64, range: (f64, f64)) {
    let (block, blocks) = at;
    let width = 100.0 / blocks as f64;
    let x = width * block as f64;
    let step = step(tensor.error, range);
    let label = format!("{} ({}): {}", tensor.name, tensor.kind, words::percent(tensor.error));
    let gap = if blocks > 24 { 0.05 } else { 0.15 };
    let mut shape = format!(
        r#"<rect class="h{step}" x="{:.2}%" y="{:.1}" width="{:.2}%" height="{:.1}" rx="2"/>"#,
        x + gap,
        y + 1.0,
        width - 2.0 * gap,
        ROW - 2.0
    );
    if blocks <= ROOMY {
        let contrast = if step * 2 > STEPS { "in dark" } else { "in" };
        shape += &format!(
            r#"<text class="{contrast}" x="{:.2}%" y="{:.1}" text-anchor="middle">{}</text>"#,
            x + 0.5 * width,
            y + 0.5 * ROW + 4.0,
            words::percent(tensor.error)
        );
    }
    let data: [super::Datum; 3] = [("file", &file.name), ("tensor", &tensor.name), ("error", &tensor.error)];
    plot.mark("cell", &label, &data, shape);
}

/// The step of colour of an error: equal steps are equal factors.
fn step(error: f64, (low, high): (f64, f64)) -> usize {
    if error <= 0.0 {
        return 0;
    }
    let part = super::Scale::logarithmic(low, high).at(error);
    1 + ((part * STEPS as f64) as usize).min(STEPS - 1)
}
