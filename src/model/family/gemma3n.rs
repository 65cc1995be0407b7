//! Google's Gemma 3n, text only: four residual streams, and embeddings of tokens for each block.

use super::gemma;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::half::{HalfConfig, Norm, NormConfig};
use crate::model::mixer::attention::KeysValues;
use crate::model::mixer::laurel::Laurel;
use crate::model::mixer::per_layer_gate::PerLayerGate;
use crate::model::mixer::{Attention, Mix, Mixer};
use crate::model::per_layer::PerLayer;
use crate::model::rope::Rope;
use crate::model::streams::{Destination, Streams};
use crate::model::{
    Architecture, BlockTensor, Decoder, Kind, Model, Part, TensorMapping, TensorRole, TensorSpec, config,
};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// A block sees one of four streams, and keys and values of earlier blocks in the last ones; only the largest numbers of a gate are left
/// in the first ones.
///
/// llama.cpp has fixed numbers for much of what a configuration says ([`FIXED`] and the constants below it), those of the two published
/// sizes.
pub struct Gemma3n;

/// Keys of the configuration, and the only value that llama.cpp computes with.
const FIXED: [(&str, u64); 4] =
    [("altup_num_inputs", 4), ("altup_active_idx", 0), ("laurel_rank", 64), ("hidden_size_per_layer_input", 256)];
/// The residual streams.
const STREAMS: usize = 4;
const LAUREL_RANK: usize = 64;
/// Numbers of a token's embedding for each block.
const PER_LAYER: usize = 256;
/// So many blocks, the first ones, have keys and values of their own.
const WITH_KEYS: usize = 20;
/// So many blocks, the first ones, leave one in twenty of the gate's numbers.
const SPARSE: usize = 10;
const SPARSITY: f64 = 0.95;
/// In units of the standard deviation, what one in twenty of normally distributed numbers is above: the quantile of [`SPARSITY`].
const CUTOFF: f32 = 1.644_853_4;
/// Logits stay below this.
const CAP: f32 = 30.0;
/// One block of five sees everything.
const PERIOD: usize = 5;

fn build(mut decoder: Decoder, rows: usize, architecture: &'static dyn Architecture) -> Model {
    decoder.embedding_scale = (decoder.hidden as f32).sqrt();
    let (eps, activation, n) = (decoder.norm_eps, decoder.activation, decoder.blocks);
    let norm = |part: Part, source: &'static str| NormConfig { part, source, kind: Norm::Rms, bias: false, eps };
    let mut model = decoder.build(architecture);
    for (i, block) in model.blocks.iter_mut().enumerate() {
        for half in &mut block.halves {
            match &mut half.mixer {
                Mixer::Attention(own) => {
                    own.value_norm = true;
                    // It reads what the half in front of it reads.
                    (half.parallel, half.stream_scale) = (true, std::f32::consts::FRAC_1_SQRT_2);
                }
                Mixer::Mlp(mlp) => {
                    mlp.cutoff = (i < SPARSE).then_some(CUTOFF);
                    half.destination = Destination::Corrected;
                }
                _ => {}
            }
        }
        let laurel = HalfConfig::new(block.halves[0].norm, Laurel { rank: LAUREL_RANK });
        let post_norm = Some(norm(Part::LAUREL_POST_NORM, "laurel.post_laurel_norm"));
        block.halves.insert(0, HalfConfig { post_norm, adds_input: true, ..laurel });
        let scale = NormConfig { kind: Norm::Gain, ..norm(Part::ALTUP_CORRECT_SCALE, "altup.correct_output_scale") };
        let gate = HalfConfig::new(Some(scale), PerLayerGate { block: i, width: PER_LAYER, activation });
        let post_norm = Some(norm(Part::PER_LAYER_POST_NORM, "post_per_layer_input_norm"));
        block.halves.push(HalfConfig { post_norm, destination: Destination::Others, ..gate });
    }
    model.share_keys_values(n.saturating_sub(WITH_KEYS));
    model.per_layer = Some(PerLayer { width: PER_LAYER, rows, eps });
    model.streams = Some(Streams { count: STREAMS, eps });
    model
}

/// Whether blocks leave few of the gate's numbers as llama.cpp has it.
fn check_sparsity(config: &Config, blocks: usize) -> Result<()> {
    let wanted = (0..blocks).map(|i| if i < SPARSE { SPARSITY } else { 0.0 });
    let own = match config.get("activation_sparsity_pattern") {
        Some(pattern) if pattern.is_array() => {
            pattern.as_array().into_iter().flatten().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect()
        }
        Some(pattern) if !pattern.is_null() => vec![pattern.as_f64().unwrap_or(f64::NAN); blocks],
        // What transformers takes.
        _ => (0..blocks).map(|i| if i < SPARSE && blocks > SPARSE { SPARSITY } else { 0.0 }).collect::<Vec<f64>>(),
    };
    match own.len() == blocks && wanted.eq(own.iter().copied()) {
        true => Ok(()),
        false => {
            let what = format!(
                "activation_sparsity_pattern {own:?} is not supported: llama.cpp takes {SPARSITY} in the first {SPARSE} blocks and 0 in the others"
            );
            Err(config::refused(config, &what))
        }
    }
}

/// The width of the MLP, which configurations say for each block.
fn with_one_width(config: &Config) -> Result<Config> {
    let widths = config.get("intermediate_size").and_then(|own| own.as_array()).cloned();
    let Some(widths) = widths else { return Ok(config.clone()) };
    match widths.first().filter(|first| widths.iter().all(|own| own == *first)) {
        Some(first) => Ok(config.clone().with("intermediate_size", first.clone())),
        None => Err(config::refused(config, "intermediate_size with several values is not supported")),
    }
}

impl Architecture for Gemma3n {
    fn gguf(&self) -> &'static str {
        "gemma3n"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gemma3n", "gemma3n_text"]
    }

    fn examples(&self) -> &'static str {
        "Gemma 3n E2B, E4B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { logit_cap: Some(CAP), ..super::gemma4::plain() }
    }

    fn sample(&'static self) -> Model {
        let decoder = self.decoder().sized();
        let rows = decoder.vocab;
        build(decoder, rows, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &with_one_width(config)?;
        config::check_activation(config, &["hidden_activation"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
        for (key, fixed) in FIXED {
            if let Some(own) = config.get(key).filter(|own| own.as_u64() != Some(fixed)) {
                let what = format!("{key} {own} is not supported: llama.cpp takes {fixed}, whatever a file says");
                return Err(config::refused(config, &what));
            }
        }
        let mut model = config::read(self, config, true)?;
        model.explicit_head_dim = true;
        let n = model.blocks;
        let shared = config::count(config, "num_kv_shared_layers")?.unwrap_or(0);
        if shared != n.saturating_sub(WITH_KEYS) {
            let what = format!(
                "num_kv_shared_layers {shared} of {n} is not supported: llama.cpp shares the keys and values of the first {WITH_KEYS} blocks with all behind them"
            );
            return Err(config::refused(config, &what));
        }
        check_sparsity(config, n)?;
        if config.flag("attention_bias")? {
            return Err(config::refused(config, "attention_bias is not supported"));
        }
        if config.maybe_positive("final_logit_softcapping")?.map(|cap| cap as f32) != Some(CAP) {
            return Err(config::refused(config, &format!("final_logit_softcapping other than {CAP} is not supported")));
        }
        let rows = config.size("vocab_size_per_layer_input")?;
        if rows > model.vocab {
            let what = format!("vocab_size_per_layer_input {rows} is more than vocab_size {}", model.vocab);
            return Err(config.unsupported(&what));
        }
        config::put_windows(config, &mut model, config.size("sliding_window")?, PERIOD)?;
        let window = model.window.as_ref();
        let sees = |i: usize| window.is_some_and(|window| window.holds(i));
        if shared > 0 && (!sees(WITH_KEYS - 2) || sees(WITH_KEYS - 1)) {
            let what =
                format!("layer_types: block {} must have a window and block {} none", WITH_KEYS - 2, WITH_KEYS - 1);
            return Err(config::refused(config, &what));
        }
        gemma::put_ropes(config, &mut model)?;
        for (key, fixed) in FIXED {
            let name = match key {
                "altup_num_inputs" => "altup.num_inputs",
                "altup_active_idx" => "altup.active_idx",
                "hidden_size_per_layer_input" => "embedding_length_per_layer_input",
                _ => continue,
            };
            model.size_key(name, fixed as usize);
        }
        model.size_key("attention.shared_kv_layers", shared);
        model.key("final_logit_softcapping", Value::F32(CAP));
        if config.maybe_flag("altup_correct_scale")? == Some(false) {
            return Err(config::refused(config, "altup_correct_scale false is not supported"));
        }
        // It bounds what training changes.
        config.ignore(&["altup_coef_clip"]);
        Ok(build(model, rows, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        model.logit_cap = Some(CAP);
        config::read_windows(keys, &mut model, keys.size("attention.sliding_window")?, PERIOD)?;
        let local = keys.maybe_number("rope.freq_base_swa")?.unwrap_or(1e4);
        model.local_rope = model.rope.as_ref().map(|rope| Rope::plain(local, rope.rotary));
        let rows = model.vocab;
        Ok(build(model, rows, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        gemma::source(tensor)
    }

    fn suffix(&self, tensor: &BlockTensor, kind: Kind) -> String {
        match tensor.part {
            Part::ALTUP_CORRECT_SCALE => String::new(),
            _ => format!(".{}", kind.suffix()),
        }
    }

    /// Adds what llama.cpp's loader asks for and nothing computes with: keys and values of the blocks that use those of others, which
    /// newer versions of transformers leave out of a checkpoint.
    fn settle(&self, model: &mut Model, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let sharing = model.attentions().filter(|(_, own)| own.keys_values != KeysValues::Own);
        let whole = sharing.map(|(i, own)| (i, Attention { keys_values: KeysValues::Own, ..own.clone() }));
        for (i, own) in whole.collect::<Vec<_>>() {
            let unused = [Part::K, Part::V, Part::K_NORM];
            for tensor in own.tensors(model.hidden).iter().filter(|tensor| unused.contains(&tensor.part)) {
                let spec = model.block_tensor(i, 0, tensor, Kind::Weight);
                let mapping = match checkpoint.contains(&spec.source) {
                    true => spec.mapping.clone(),
                    false => TensorMapping::filled(0.0),
                };
                model.tail.push(TensorSpec { role: TensorRole::Other, block: None, reads: None, mapping, ..spec });
            }
        }
        Ok(Vec::new())
    }
}
