//! What a checkpoint's own tensors decide, where its configuration says too little, or something else.

use super::mapping::ExpertLayout;
use super::mixer::experts::Experts;
use super::{ARCHITECTURES, Model, Part, config_keys, nextn, pooling};
use crate::error::{Error, Result};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::value::Value;
use std::collections::{BTreeMap, HashSet};

/// No model has more blocks.
const MOST_BLOCKS: u64 = 65_536;

/// What prefixes of names may be in a checkpoint: from what they usually are to what they are there.
const RENAMED: [(&str, &str); 8] = [
    ("", ""),
    ("transformer.", ""),
    ("gpt_neox.", ""),
    ("", "language_model."),
    ("model.", "model.language_model."),
    ("model.", ""),
    ("model.", "language_model."),
    ("", "model."),
];

/// Parts of the names of tensors that belong to what a text model does not have, with what that is.
const OTHERS: [(&str, &[&str]); 2] = [
    (
        "vision and audio",
        &[
            "visual.",
            "vision_tower.",
            "vision_model.",
            "vision_embedder.",
            "vision_encoder.",
            "multi_modal_projector.",
            "audio_tower.",
            "embed_vision.",
            "embed_audio.",
            "patch_merger.",
            "pre_mm_projector_norm.",
            "vision_language_adapter.",
            "mlp1.",
            "sound_encoder.",
            "sound_projection.",
        ],
    ),
    ("multi-token prediction", &["mtp."]),
];

/// Ends of the names of buffers that old checkpoints store and nobody reads, and of scales beside weights.
const BUFFERS: [&str; 9] = [
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "_scale",
    "_scale_inv",
    "_zero_point",
    "_shape",
];

impl Model {
    /// Reads `config.json`, whose text part may be inside that of a model that sees or hears, too.
    ///
    /// # Errors
    /// An unsupported `model_type` (the message lists the supported ones), or what the architecture refuses.
    pub fn read(config: &Config) -> Result<Model> {
        let text = super::config::text(config)?;
        let found = config.string("model_type")?;
        let of = |kind: &str| ARCHITECTURES.iter().find(|a| a.model_types().contains(&kind));
        let inside = text.maybe_string("model_type")?;
        // Before there is a list of them.
        for key in ["num_hidden_layers", "n_layer"] {
            if let Some(blocks) = text.json().get(key).and_then(serde_json::Value::as_u64).filter(|&n| n > MOST_BLOCKS)
            {
                return Err(text.unsupported(&format!("{key} {blocks} is beyond {MOST_BLOCKS}")));
            }
        }
        match of(&found).or_else(|| inside.as_deref().and_then(of)) {
            Some(architecture) => {
                let model = architecture.read(&text)?;
                config_keys::check(&text)?;
                model.check_limits(&text)?;
                Ok(model)
            }
            None => {
                let known: Vec<_> = ARCHITECTURES.iter().flat_map(|a| a.model_types()).copied().collect();
                let what = format!("{}: model_type '{found}' is not supported", config.path().display());
                let named = |kind: &str| [Some(found.as_str()), inside.as_deref()].contains(&Some(kind));
                let hint = match UNLOADABLE.into_iter().find(|kind| named(kind)) {
                    Some(_) => "llama.cpp cannot load models of this type yet".into(),
                    _ if ["qwen4_exp", "qwen4_exp_text"].into_iter().any(named) => qwen4_exp(&text)?,
                    None => match COMPUTED_OTHERWISE.iter().find(|(kind, _)| named(kind)) {
                        Some((_, why)) => format!("llama.cpp computes something else with models of this type: {why}"),
                        None => format!("the supported ones are: {}; encoders are for llmq int8", known.join(", ")),
                    },
                };
                Err(Error::new(what).hint(hint))
            }
        }
    }

    /// The model of a checkpoint, by its configuration and by the tensors that it has, and what should be said of these. `extra`:
    /// blocks behind the others are kept, if there are some.
    ///
    /// # Errors
    /// As [`Model::read`], or a tensor that cannot be read.
    pub fn of_checkpoint(config: &Config, checkpoint: &Checkpoint, extra: bool) -> Result<(Model, Vec<String>)> {
        let mut model = Model::read(config)?;
        let text = super::config::text(config)?;
        let has = |name: &str| checkpoint.contains(name);
        model.settle(has);
        let mut notes = checkpoint.notes().to_vec();
        notes.extend(config_keys::note(&text));
        notes.extend(model.differences());
        let taken = model.architecture.settle(&mut model, checkpoint)?;
        pooling::settle(&mut model, checkpoint)?;
        notes.extend(model.settle_output(config, checkpoint)?);
        notes.extend(model.settle_output_place(config)?);
        model.settle_experts(checkpoint)?;
        notes.extend(model.settle_extra_blocks(&has, extra));
        notes.extend(model.left_out(checkpoint, taken));
        Ok((model, notes))
    }

    /// Finds out by which names a checkpoint has its tensors: some are saved without the prefix of their class, some with that of a
    /// model that sees, too. `has`: whether there is a tensor of a name.
    fn settle(&mut self, has: impl Fn(&str) -> bool) {
        self.renamed = ("", "");
        // The embedding may be somewhere else.
        let inside = self.output_norm().pop().unwrap_or_else(|| self.embedding()).source;
        let fits =
            |&(from, to): &(&str, &str)| inside.strip_prefix(from).is_some_and(|rest| has(&format!("{to}{rest}")));
        self.renamed = RENAMED.into_iter().find(fits).unwrap_or(("", ""));
        let complete = |model: &Model| model.block(0).iter().all(|spec| has(&spec.first_source()));
        self.joined = false;
        if !complete(self) {
            self.joined = true;
            // What is missing is said under the usual name.
            self.joined = complete(self);
        }
    }

    /// Whether the output matrix is the embedding: transformers reads one that is stored, whatever the configuration says.
    fn settle_output(&mut self, config: &Config, checkpoint: &Checkpoint) -> Result<Option<String>> {
        let embedding = self.embedding();
        let Some(stored) = self.output_names().into_iter().find(|name| checkpoint.contains(name)) else {
            if self.tied || self.output_source.is_some() || !checkpoint.contains(&embedding.source) {
                return Ok(None);
            }
            // A model without its head, as those that embed text are saved.
            if self.is_base(&embedding.source) {
                self.tied = true;
                return Ok(Some("the checkpoint has no output matrix: the embedding stands in for it".into()));
            }
            let output = self.output().source;
            return Err(Error::new(format!("{}: there is no tensor '{output}'", checkpoint.folder().display())).hint(
                format!(
                    "if the embedding is the output matrix, too, set \"tie_word_embeddings\": true in {}",
                    config.path().display()
                ),
            ));
        };
        self.output_source = Some(stored.clone());
        if !self.tied {
            return Ok(None);
        }
        if !checkpoint.contains(&embedding.source) {
            self.embedding_source = Some(stored);
            return Ok(Some("the checkpoint stores its tied embedding under the output matrix's name".into()));
        }
        if same(checkpoint, &embedding.source, &stored, &embedding.shape)? {
            return Ok(None);
        }
        self.tied = false;
        Ok(Some(format!(
            "'{stored}' is stored and differs from the embedding, though tie_word_embeddings is true: it becomes output.weight"
        )))
    }

    /// Whether a checkpoint has the names of a model without its head. `embedding`: the name of its embedding.
    fn is_base(&self, embedding: &str) -> bool {
        !embedding.contains(self.architecture.outside().embedding)
    }

    /// How the checkpoint has its experts.
    fn settle_experts(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let with_experts = self.blocks.iter().position(|block| block.mixers().any(|mixer| mixer.experts().is_some()));
        let Some(block) = with_experts else { return Ok(()) };
        let experts: Option<Experts> = self.blocks[block].mixers().find_map(|mixer| mixer.experts()).copied();
        let Some(Experts { width, .. }) = experts else { return Ok(()) };
        let find =
            |model: &Model, part: Part| model.block(block).into_iter().find(|spec| spec.weight_of() == Some(part));
        let Some(usual) = find(self, Part::EXPERT_DOWNS).filter(|spec| spec.source.contains(".{}")) else {
            return Ok(());
        };
        if checkpoint.contains(&usual.first_source()) {
            return Ok(());
        }
        self.expert_layout = ExpertLayout::Fused;
        let Some((gate_up, down)) = find(self, Part::EXPERT_GATES).zip(find(self, Part::EXPERT_DOWNS)) else {
            return Ok(());
        };
        let shape =
            |name: &str| checkpoint.tensors().find(|tensor| tensor.name == name).map(|tensor| tensor.shape.to_vec());
        let Some((gate_up_shape, down_shape)) = shape(&gate_up.source).zip(shape(&down.source)) else {
            // What is missing is said under the usual name.
            self.expert_layout = ExpertLayout::Usual;
            return Ok(());
        };
        let hidden = self.hidden;
        let fits =
            |rows: usize, columns: usize, shape: &[usize]| shape[shape.len().saturating_sub(2)..] == [rows, columns];
        // Gate and up together, and down, cannot both be square, so that one of the two tells.
        if fits(hidden, 2 * width, &gate_up_shape) && fits(width, hidden, &down_shape) {
            self.expert_layout = ExpertLayout::FusedTransposed;
        }
        Ok(())
    }

    fn settle_extra_blocks(&mut self, has: &dyn Fn(&str) -> bool, wanted: bool) -> Option<String> {
        let extra = self.architecture.extra_blocks(self, has)?;
        let (count, n) = (extra.count, extra.tensors.len());
        if !wanted {
            return Some(nextn::note_left_out(count));
        }
        self.set_key("block_count", Value::U32((self.blocks.len() + count) as u32));
        for (key, value) in extra.keys {
            self.set_key(key, value);
        }
        self.tail = extra.tensors;
        Some(nextn::note_kept(count, n))
    }

    /// What is said of the checkpoint's tensors that the model has no place for. `taken`: names of those that are no tensors of it.
    fn left_out(&self, checkpoint: &Checkpoint, taken: Vec<String>) -> Vec<String> {
        let mut used: HashSet<String> = taken.into_iter().collect();
        for spec in self.tensors() {
            used.extend(spec.sources());
        }
        if self.tied {
            used.extend(self.output_names());
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut unknown = Vec::new();
        for tensor in checkpoint.tensors().filter(|tensor| !used.contains(tensor.name)) {
            let name = tensor.name;
            if BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
                continue;
            }
            match OTHERS.iter().find(|(_, parts)| parts.iter().any(|part| name.contains(part))) {
                Some((what, _)) => *counts.entry(what).or_default() += 1,
                None => unknown.push(name.to_owned()),
            }
        }
        let mut notes = Vec::new();
        if let Some(n) = counts.get(OTHERS[0].0) {
            notes.push(format!(
                "{n} tensors of vision and audio are left out: llama.cpp takes them from an mmproj file, which is published beside most models"
            ));
        }
        let has = |name: &str| checkpoint.contains(name);
        if let Some(n) = counts.get(OTHERS[1].0).filter(|_| self.architecture.extra_blocks(self, &has).is_none()) {
            notes.push(format!("{n} tensors of multi-token prediction are left out: their blocks are not complete, or llama.cpp has no place for them"));
        }
        if !unknown.is_empty() {
            let shown = unknown.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if unknown.len() > 3 { ", …" } else { "" };
            notes.push(format!(
                "{} tensors have no place in this architecture and are left out: {shown}{more}",
                unknown.len()
            ));
        }
        notes
    }

    /// Names that the output matrix may have: with the prefix of the other tensors, and without.
    fn output_names(&self) -> Vec<String> {
        let plain = format!("{}.weight", self.architecture.outside().output);
        vec![self.named(plain.clone()), plain.clone(), format!("{}{plain}", self.renamed.1)]
    }
}

/// Types of models that people look for and that llama.cpp cannot load.
const UNLOADABLE: [&str; 12] = [
    "glm5_next",
    "lfm3",
    "embedding_gemma2",
    "mistral_large4",
    "inkling",
    "zaya",
    "olmo_hybrid",
    "xing4",
    "k2_horizon",
    "deepseek_v41",
    "muse_spark",
    "kolibri1",
];

/// Types of models that llama.cpp loads, and with which it does not compute what they were trained to; with what is different.
const COMPUTED_OTHERWISE: [(&str, &str); 1] = [(
    "phimoe",
    "their routers give each of a token's two experts a softmax over those alone that come within 2 % of it, nearly always 1, and llama.cpp \
     makes the two weights add up to 1",
)];

/// Why Qwen3.8-Flash-Next and its like are refused: llama.cpp's graph has no key for the gate, and takes the one that is published.
fn qwen4_exp(text: &Config) -> Result<String> {
    let gate = match text.maybe_string("output_gate_type")? {
        None => text.maybe_string("hidden_act")?.unwrap_or_else(|| "silu".into()),
        Some(gate) => gate,
    };
    Ok(match gate.as_str() {
        "sigmoid" => "llama.cpp loads models of this type, and its own converter makes files of them; hyper-connections, attention to \
                      chosen blocks and a table of n-grams are not supported here"
            .into(),
        other => format!(
            "llama.cpp computes something else with this model: the output gate of its gated delta nets is a sigmoid, and \
             output_gate_type, or hidden_act where there is none, says {other}"
        ),
    })
}

/// Whether two matrices hold the same numbers.
fn same(checkpoint: &Checkpoint, a: &str, b: &str, shape: &[usize]) -> Result<bool> {
    const ROWS: usize = 1024;
    let rows = shape[0];
    checkpoint.check(b, shape)?;
    for first in (0..rows).step_by(ROWS) {
        let part = first..(first + ROWS).min(rows);
        if checkpoint.read_rows(a, shape, part.clone())? != checkpoint.read_rows(b, shape, part)? {
            return Ok(false);
        }
    }
    Ok(true)
}
