//! GPTQ's format in its first version, which every loader reads; the second one differs in the zero points alone, and here the
//! grid keeps to those that both can store.

use super::{Described, Matrix, Packing, plan};
use crate::format::integer::Content;
use crate::source::checkpoint::gptq::{LESS, codes, zeros};
use crate::writer::safetensors::TensorPlan;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

/// The format.
pub struct Gptq;

impl Packing for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn usual(&self) -> &'static str {
        "W4A16"
    }

    fn parts(&self, stem: &str, rows: usize, columns: usize, content: Content) -> Vec<TensorPlan> {
        let groups = columns / content.group;
        vec![
            plan(stem, ".qweight", Dtype::I32, &codes(content.bits).shape(rows, columns)),
            plan(stem, ".qzeros", Dtype::I32, &zeros(content.bits).shape(rows, groups)),
            plan(stem, ".scales", Dtype::F16, &[groups, rows]),
            plan(stem, ".g_idx", Dtype::I32, &[columns]),
        ]
    }

    fn pack(&self, matrix: &Matrix) -> Vec<Vec<u8>> {
        let Matrix { rows, columns, content, .. } = *matrix;
        let stored: Vec<u8> = matrix.zeros.iter().map(|zero| zero - LESS as u8).collect();
        vec![
            codes(content.bits).pack(&matrix.codes, rows, columns),
            zeros(content.bits).pack(&stored, rows, matrix.groups()),
            matrix.transposed_scales(),
            (0..columns).flat_map(|j| ((j / content.group) as i32).to_le_bytes()).collect(),
        ]
    }

    fn description(&self, described: &Described) -> Value {
        let Content { bits, group, zeros } = described.content;
        let mut description = json!({
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": false,
            "sym": !zeros,
            "lm_head": false,
            "pack_dtype": "int32",
            "meta": { "quantizer": [concat!("llmq:", env!("CARGO_PKG_VERSION"))] },
        });
        // GPTQModel's and vLLM's way to say which layers are left out: regular expressions behind "-:".
        let left_out: Map<String, Value> = described
            .kept
            .iter()
            .map(|name| (format!("-:^{}$", name.replace('.', "\\.")), Value::Object(Map::new())))
            .collect();
        if !left_out.is_empty() {
            description["dynamic"] = left_out.into();
        }
        description
    }

    fn own_file(&self) -> Option<&'static str> {
        Some("quantize_config.json")
    }
}
