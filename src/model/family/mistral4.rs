//! Mistral Small 4: DeepSeek's narrow vectors and experts inside a model that sees.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::Temperature;
use crate::model::rope::Scaling;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, QueryRows, TensorMapping, config};
use crate::source::config::Config;
use crate::source::value::Value;

/// Weights of experts by a softmax, and scores that grow beyond the context of the first training.
pub struct Mistral4;

const BETA: &str = "attention.temperature_scale";
const ORIGINAL: &str = "attention.temperature_length";

fn build(decoder: Decoder, temperature: Option<Temperature>, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::LatentAttention(attention) = &mut half.mixer {
            attention.temperature = temperature;
        }
    }
    model
}

impl Architecture for Mistral4 {
    fn gguf(&self) -> &'static str {
        "mistral4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mistral4"]
    }

    fn examples(&self) -> &'static str {
        "Mistral Small 4 119B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn sample(&'static self) -> Model {
        deepseek2::small().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let Some(parameters) = config.object("rope_parameters")? else {
            return Err(config.unsupported("there is no key 'rope_parameters'"));
        };
        // The part of a head that is turned is said by sizes, too.
        let mut scaling = parameters.json().clone();
        if let Some(own) = scaling.as_object_mut() {
            own.remove("partial_rotary_factor");
        }
        let config = &config.clone().with("rope_parameters", scaling);
        if config.get("rope_interleave").is_some() && !config.flag("rope_interleave")? {
            return Err(config::refused(config, "rope_interleave false is not supported"));
        }
        if config.maybe_size("n_group")?.is_some_and(|groups| groups > 1) {
            return Err(config::refused(config, "n_group above 1 is not supported"));
        }
        let mut model = deepseek2::read(self, config)?;
        let yarn = matches!(model.rope.as_ref().map(|rope| &rope.scaling), Some(Scaling::Yarn(_)));
        if yarn && parameters.maybe_positive("mscale")?.zip(parameters.maybe_positive("mscale_all_dim")?).is_none() {
            return Err(config::refused(config, "YaRN without mscale and mscale_all_dim is not supported"));
        }
        let Some(experts) = &mut model.experts else {
            return Err(config.unsupported("there is no key 'n_routed_experts'"));
        };
        experts.normed = config.get("norm_topk_prob").is_none() || config.flag("norm_topk_prob")?;
        deepseek2::put_keys(&mut model);
        let mut temperature = None;
        if let Some(beta) = parameters.maybe_positive("llama_4_scaling_beta")? {
            let original = parameters.size("original_max_position_embeddings")?;
            model.key(BETA, Value::F32(beta as f32));
            model.size_key(ORIGINAL, original);
            temperature = Some(Temperature { beta: beta as f32, original, offset: 0 });
        }
        Ok(build(model, temperature, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let temperature = match keys.maybe_number(BETA)? {
            Some(beta) => Some(Temperature { beta: beta as f32, original: keys.size(ORIGINAL)?, offset: 0 }),
            None => None,
        };
        Ok(build(deepseek2::read_gguf(keys, decoder)?, temperature, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        deepseek2::source(tensor)
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        deepseek2::mapping(block, tensor)
    }
}
