//! Whether a file, its context and what computing takes fit the memory of a GPU.

use super::sizes::Size;
use crate::format::Type;
use crate::model::Model;
use crate::model::mixer::Memory;
use crate::pipeline::plan::Plan;
use crate::source::value::{Value, get};

/// Tokens of a prompt that llama.cpp computes at once.
const PROMPT: u64 = 512;

/// Numbers per token of a prompt that are held while it goes through a block, in units of the residual stream's width.
const HELD: u64 = 8;

/// llama.cpp rounds contexts up to a multiple of so many positions.
const PAD: u64 = 256;

/// What a GPU holds besides weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Tokens of context.
    pub context: u64,
    /// Bytes of their keys and values, and of the states of recurrent mixers.
    pub cache: u64,
    /// Bytes of the buffers that a prompt is computed in.
    pub reserve: u64,
}

/// The sizes that these depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// What each mixer keeps.
    pub mixers: Vec<Memory>,
    /// The longest context that the model was made for.
    pub context: u64,
}

/// Contexts longer than this are not what people mean by default.
const USUAL_CONTEXT: u64 = 8192;

impl Sizes {
    /// Of a plan's model; none where it has no forward pass here and the keys of the file do not say how much each token leaves.
    pub fn of(plan: &Plan) -> Option<Sizes> {
        match plan.model() {
            Ok(model) => Some(Sizes::of_model(model)),
            Err(_) => Sizes::of_keys(plan),
        }
    }

    /// Of a model.
    pub fn of_model(model: &Model) -> Sizes {
        let whole = !model.architecture.limits().windows;
        let memory = |memory: Memory| Memory { window: memory.window.filter(|_| !whole), ..memory };
        let mixers = model.blocks.iter().flat_map(|block| block.mixers()).map(|mixer| memory(mixer.memory()));
        Sizes {
            hidden: model.hidden as u64,
            vocab: model.vocab as u64,
            mixers: mixers.filter(|memory| *memory != Memory::default()).collect(),
            context: model.context as u64,
        }
    }

    fn of_keys(plan: &Plan) -> Option<Sizes> {
        let architecture = get(&plan.metadata, "general.architecture").and_then(Value::as_str)?;
        let key = |name: &str| get(&plan.metadata, &format!("{architecture}.{name}"));
        let number = |name: &str| key(name).and_then(Value::as_u64);
        // Latent attention and recurrent states cache something else.
        let other = ["attention.kv_lora_rank", "ssm.state_size", "wkv.head_size"];
        if other.iter().any(|name| key(name).is_some()) {
            return None;
        }
        let (hidden, blocks) = (number("embedding_length")?, number("block_count")?);
        // Some architectures have a number of heads for each block.
        let sum = |name: &str| match key(name) {
            Some(value) => match value.as_array() {
                Some(array) => (0..array.len()).map(|i| array.get(i)?.as_u64()).sum::<Option<u64>>(),
                None => value.as_u64()?.checked_mul(blocks),
            },
            None => None,
        };
        let heads = sum("attention.head_count")?.checked_div(blocks)?;
        let kv_heads = sum("attention.head_count_kv").or(heads.checked_mul(blocks))?;
        let each = hidden.checked_div(heads)?;
        let width = number("attention.key_length")
            .unwrap_or(each)
            .checked_add(number("attention.value_length").unwrap_or(each))?;
        let vocab = plan.tensors.iter().find(|t| t.spec.gguf == "token_embd.weight")?.spec.rows() as u64;
        let all = Memory { per_position: kv_heads.checked_mul(width)?.try_into().ok()?, ..Memory::default() };
        Some(Sizes { hidden, vocab, mixers: vec![all], context: number("context_length")? })
    }

    /// What a context of that many tokens needs; none: the model's own, or 8192 if that is shorter. `kind`: the type of keys and values.
    pub fn needs(&self, context: Option<u64>, kind: Type) -> GpuMemory {
        let context = context.unwrap_or(self.context.min(USUAL_CONTEXT));
        let all = context.next_multiple_of(PAD);
        let of = |memory: &Memory| {
            let positions = memory.window.map_or(all, |window| (window as u64 + PROMPT).next_multiple_of(PAD).min(all));
            let numbers = positions.saturating_mul(memory.per_position as u64);
            let bytes = u128::from(numbers) * kind.bytes() as u128 / kind.width() as u128;
            u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(4 * memory.states as u64)
        };
        GpuMemory {
            context,
            cache: self.mixers.iter().map(of).fold(0, u64::saturating_add),
            reserve: PROMPT * 4 * self.hidden.saturating_mul(HELD).saturating_add(self.vocab),
        }
    }
}

impl GpuMemory {
    /// What a GPU holds with weights of that many bytes.
    pub fn with(&self, weights: u64) -> u64 {
        weights.saturating_add(self.cache).saturating_add(self.reserve)
    }

    /// Whether that fits.
    pub fn fit(&self, weights: u64, vram: u64) -> bool {
        self.with(weights) <= vram
    }
}

/// The place of the largest size that fits, among those that `of` takes. Single precision is no choice for what has less; of equal
/// sizes the type that the source has is the one.
pub fn largest_that_fits(
    sizes: &[Size],
    needs: &GpuMemory,
    vram: u64,
    source: &str,
    of: impl Fn(&Size) -> bool,
) -> Option<usize> {
    let fits = |size: &Size| needs.fit(size.on_gpu, vram) && (size.mix.name != "F32" || source == "F32");
    let fitting = sizes.iter().enumerate().filter(|(_, size)| fits(size) && of(size));
    fitting.max_by_key(|(i, size)| (size.bytes, size.mix.name == source, usize::MAX - i)).map(|(i, _)| i)
}

/// Whether a mix loses as little as any of its size, so that more bytes of these always mean less loss: the older formats and
/// those with tables do not keep to that order.
pub fn is_in_order(size: &Size) -> bool {
    let name = size.mix.name;
    !size.mix.base.is_quantized() || name == "Q8_0" || name.contains("_K")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::mix;

    /// Llama-3-8B.
    fn llama() -> Sizes {
        let block = Memory { per_position: 8 * (128 + 128), ..Memory::default() };
        Sizes { hidden: 4096, vocab: 128_256, mixers: vec![block; 32], context: 131_072 }
    }

    fn half() -> Type {
        crate::format::by_name("F16").unwrap()
    }

    #[test]
    fn a_cache_has_keys_and_values_of_two_bytes_for_each_block_and_head() {
        let needs = llama().needs(Some(8192), half());
        assert_eq!(needs.cache, 2 * 32 * 8 * 128 * 8192 * 2);
        assert_eq!(needs.cache, 1 << 30);
        assert_eq!(needs.reserve, 512 * 4 * (8 * 4096 + 128_256));
        assert_eq!(llama().needs(Some(1), half()).cache, 256 * 131_072);
        let eight = crate::format::by_name("Q8_0").unwrap();
        assert_eq!(llama().needs(Some(8192), eight).cache, (1 << 29) / 32 * 34);
    }

    #[test]
    fn windows_and_states_do_not_grow_with_the_context() {
        let window = Memory { per_position: 100, window: Some(1024), states: 0 };
        let sizes = Sizes { mixers: vec![window, Memory::states(&[10, 20])], ..llama() };
        assert_eq!(sizes.needs(Some(512), half()).cache, 512 * 100 * 2 + 120);
        assert_eq!(sizes.needs(Some(1 << 20), half()).cache, 1536 * 100 * 2 + 120);
    }

    #[test]
    fn the_usual_context_is_the_models_but_no_more_than_8192() {
        assert_eq!(llama().needs(None, half()).context, 8192);
        assert_eq!(Sizes { context: 512, ..llama() }.needs(None, half()).context, 512);
        assert_eq!(Sizes { context: 512, ..llama() }.needs(Some(4096), half()).context, 4096);
    }

    #[test]
    fn what_fits_is_weights_cache_and_reserve_to_the_byte() {
        let needs = llama().needs(Some(8192), half());
        let all = needs.with(5_000_000_000);
        assert_eq!(all, 5_000_000_000 + needs.cache + needs.reserve);
        assert!(needs.fit(5_000_000_000, all) && !needs.fit(5_000_000_000, all - 1));
        assert!(!needs.fit(u64::MAX, u64::MAX - 1));
    }

    #[test]
    fn the_largest_that_fits_is_of_the_sources_type_and_never_single_precision_for_half() {
        let size = |name: &str, bytes: u64| {
            let mix = mix::named(name).unwrap();
            Size { mix, bytes, weights: bytes, on_gpu: bytes, bits_per_weight: 0.0 }
        };
        let sizes = [size("F32", 400), size("F16", 200), size("BF16", 200), size("Q8_0", 106), size("Q4_0", 56)];
        let needs = GpuMemory { context: 1, cache: 10, reserve: 5 };
        let best = |vram, source| largest_that_fits(&sizes, &needs, vram, source, |_| true).map(|i| sizes[i].mix.name);
        assert_eq!(best(1000, "BF16"), Some("BF16"));
        assert_eq!(best(1000, "F16"), Some("F16"));
        assert_eq!(best(1000, "F32"), Some("F32"));
        assert_eq!(best(214, "BF16"), Some("Q8_0"));
        assert_eq!(best(71, "BF16"), Some("Q4_0"));
        assert_eq!(best(70, "BF16"), None);
        let in_order = largest_that_fits(&sizes, &needs, 71, "BF16", is_in_order);
        assert_eq!(in_order, None, "Q4_0 alone would fit");
    }
}
