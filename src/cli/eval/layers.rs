//! `--layers`: what each block costs.

use super::{Args, Setting};
use crate::cli::output::{Progress, line, tagged};
use crate::error::{Context, Error, Result};
use crate::eval::layers::{self, Layer, Place};
use crate::eval::saved::SavedLogits;
use crate::pipeline::loaded_model::LoadedModel;
use serde_json::{Value, json};

/// Columns of the longest bar.
const WIDE: f64 = 30.0;

/// # Errors
/// No window is asked for, or there is no model to take blocks from.
pub fn check(args: &Args) -> Result<()> {
    let hint = "add --reference MODEL, the model that the file was made from";
    match (args.layers, args.reference.as_deref()) {
        (None, _) => Ok(()),
        (Some(0), _) => Err(Error::usage("--layers needs at least one window: --layers=1")),
        (_, None) => Err(Error::usage("--layers compares blocks with those of a reference").hint(hint)),
        (_, Some(path)) if SavedLogits::is_one(path) => {
            Err(Error::usage(format!("--layers runs blocks of the reference, and {} has none", path.display()))
                .hint(hint))
        }
        _ => Ok(()),
    }
}

/// Measures it on all of these windows.
///
/// # Errors
/// As [`layers::layers`].
pub fn measure(
    loaded: &LoadedModel,
    original: &LoadedModel,
    windows: &[Vec<u32>],
    setting: Setting,
    progress: &Progress,
) -> Result<Vec<Layer>> {
    let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
    layers::layers(loaded, original, windows, setting.protocol.first(setting.context), &show)
        .context(|| "cannot take the blocks one by one".into())
}

/// Of a model with more parts than this, only those that cost most are shown, so that all of the result fits a screen.
const SHOWN: usize = 18;

/// For people: a table, with a bar for what each part costs alone. `all`: however many there are.
pub fn show(layers: &[Layer], all: bool) {
    let mut costs: Vec<f64> = layers.iter().map(|layer| layer.alone.value).collect();
    costs.sort_by(|a, b| b.total_cmp(a));
    let most = costs.first().copied().unwrap_or_default();
    // Parts that cost the same are shown together.
    let least = costs.get(SHOWN - 1).copied().filter(|_| !all && costs.len() > SHOWN).unwrap_or(f64::NEG_INFINITY);
    line("");
    line("part        error of the stream   KL divergence, only this part quantized");
    let (shown, left): (Vec<&Layer>, Vec<&Layer>) = layers.iter().partition(|layer| layer.alone.value >= least);
    for Layer { place, stream, alone } in shown {
        let stream = stream.map_or(String::new(), |error| format!("{:.4}%", 100.0 * error));
        line(format!(
            "{:11} {stream:>19}   {:.6} ± {:.6}  {}",
            place.to_string(),
            alone.value,
            alone.error,
            bar(alone.value / most)
        ));
    }
    if !left.is_empty() {
        line(format!("and {} other parts, each less than {least:.6}: -v", left.len()));
    }
}

/// A bar of eighths of a column; something of it, if it is above zero.
fn bar(part: f64) -> String {
    if part.is_nan() || part <= 0.0 {
        return String::new();
    }
    let eighths = (8.0 * WIDE * part).round().max(1.0) as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + rest
}

/// For programs: an object for each part.
pub fn lines(layers: &[Layer]) -> Vec<Value> {
    let one = |layer: &Layer| {
        let block = match layer.place {
            Place::Block(i) => Some(i),
            Place::Embedding | Place::Output => None,
        };
        let fields = json!({
            "layer": layer.place.to_string(),
            "block": block,
            "stream_error": layer.stream,
            "kl_divergence": layer.alone.value,
            "kl_error": layer.alone.error,
        });
        tagged("layer", fields)
    };
    layers.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_part() {
        assert_eq!(bar(1.0), "█".repeat(30));
        assert_eq!(bar(0.05), "█▌");
        assert_eq!((bar(1e-9).as_str(), bar(0.0).as_str(), bar(f64::NAN).as_str()), ("▏", "", ""));
    }
}
