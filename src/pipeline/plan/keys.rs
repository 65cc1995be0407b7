//! What a file says about itself.

use super::Request;
use crate::model::Model;
use crate::source::hub::name_of;
use crate::source::value::{Metadata, Value};
use std::path::Path;

impl Request<'_> {
    /// Writes what the file is into its keys.
    pub(super) fn stamp(&self, metadata: &mut Metadata) {
        metadata.push(("general.file_type".into(), Value::U32(self.recipe.mix().file_type)));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        if let Some((path, imatrix)) = self.imatrix {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            metadata.push(("quantize.imatrix.file".into(), name.into()));
            if let Some(dataset) = imatrix.datasets.first() {
                metadata.push(("quantize.imatrix.dataset".into(), dataset.as_str().into()));
            }
            metadata.push(("quantize.imatrix.entries_count".into(), Value::U32(imatrix.entries.len() as u32)));
            metadata.push(("quantize.imatrix.chunks_count".into(), Value::U32(imatrix.chunks)));
        }
    }
}

/// Whether a key of a GGUF holds for a file that is made from it.
pub(super) fn is_kept(key: &str) -> bool {
    let own = ["general.file_type", "general.quantization_version"];
    !own.contains(&key) && !["split.", "quantize.imatrix.", "llmq."].iter().any(|start| key.starts_with(start))
}

/// A model with one of these in its name is Phi-3 to llama.cpp (`llama_vocab::impl::load`), which then does not load without these
/// tokens.
const PHI_3: [&str; 2] = ["phi-3", "phi3"];
const PHI_3_TOKENS: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/// A name under which llama.cpp loads a model of these tokens, and what to say if that is another one.
fn safe_name(name: &str, tokens: &[String]) -> (String, Option<String>) {
    let missing = PHI_3_TOKENS.iter().find(|wanted| !tokens.iter().any(|token| token == *wanted));
    let mut safe = name.to_owned();
    if missing.is_some() {
        for word in PHI_3 {
            while let Some(at) = safe.to_ascii_lowercase().find(word) {
                safe.replace_range(at + 3..at + word.len(), "_3");
            }
        }
    }
    let note = missing.filter(|_| safe != name).map(|token| {
        format!("general.name is '{safe}', not '{name}': llama.cpp takes that for Phi-3, and does not load it without a token '{token}'")
    });
    (safe, note)
}

/// Keys about the model as a whole, and what to say about them. `elements`: its weights; `tokens`: its vocabulary.
pub(super) fn general(folder: &Path, model: &Model, elements: u64, tokens: &[String]) -> (Metadata, Option<String>) {
    let snapshot = name_of(folder);
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.into());
    let own = || folder.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    let (name, note) = safe_name(&snapshot.unwrap_or_else(own), tokens);
    let text = |s: &str| Value::Str(s.into());
    // Of the vectors beside the tensors, the one that checkpoints have as well.
    let elements = elements + model.output_bias().map_or(0, |bias| bias.len() as u64);
    let keys = vec![
        ("general.architecture".into(), text(model.architecture.gguf())),
        ("general.type".into(), text("model")),
        ("general.name".into(), Value::Str(name)),
        ("general.size_label".into(), Value::Str(size_label(elements))),
    ];
    (keys, note)
}

/// A number of weights as people write it: `22M`, `1.2B`, `70B`.
pub fn size_label(elements: u64) -> String {
    let n = elements as f64;
    let (scaled, unit) = match n {
        n if n >= 1e12 => (n / 1e12, "T"),
        n if n >= 1e9 => (n / 1e9, "B"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    if scaled < 9.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_phi_3_is_called_phi_3() {
        let all: Vec<String> = PHI_3_TOKENS.map(Into::into).into();
        for (name, safe) in [("my-Phi3-tune", "my-Phi_3-tune"), ("phi-3-phi3", "phi_3-phi_3"), ("Llama", "Llama")] {
            let (found, note) = safe_name(name, &all[1..]);
            assert_eq!((found.as_str(), note.is_some_and(|n| n.contains("</s>"))), (safe, name != safe));
            assert_eq!(safe_name(name, &all), (name.into(), None));
        }
    }

    #[test]
    fn sizes_are_labelled_as_people_write_them() {
        for (n, label) in [(20_715_008, "21M"), (1_235_814_400, "1.2B"), (70_553_706_496, "71B"), (512, "0.5K")] {
            assert_eq!(size_label(n), label);
        }
    }
}
