//! AWQ's format for its GEMM kernel, as AutoAWQ stores it.

use super::{Described, Matrix, Packing, plan};
use crate::format::integer::Content;
use crate::source::checkpoint::awq::{BITS, LAYOUT};
use crate::writer::safetensors::TensorPlan;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

/// The format.
pub struct Awq;

impl Packing for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn usual(&self) -> &'static str {
        "W4A16_ASYM"
    }

    fn misfit(&self, content: Content) -> Option<String> {
        (content.bits != BITS).then(|| format!("its codes have {BITS} bits, not {}", content.bits))
    }

    fn parts(&self, stem: &str, rows: usize, columns: usize, content: Content) -> Vec<TensorPlan> {
        let groups = columns / content.group;
        vec![
            plan(stem, ".qweight", Dtype::I32, &LAYOUT.shape(rows, columns)),
            plan(stem, ".qzeros", Dtype::I32, &LAYOUT.shape(rows, groups)),
            plan(stem, ".scales", Dtype::F16, &[groups, rows]),
        ]
    }

    fn pack(&self, matrix: &Matrix) -> Vec<Vec<u8>> {
        let Matrix { rows, columns, .. } = *matrix;
        vec![
            LAYOUT.pack(&matrix.codes, rows, columns),
            LAYOUT.pack(&matrix.zeros, rows, matrix.groups()),
            matrix.transposed_scales(),
        ]
    }

    fn description(&self, described: &Described) -> Value {
        // Loaders look for these anywhere in a layer's name, so that one that is part of another would leave out both.
        let apart = |name: &&String| !described.packed.iter().any(|other| other.contains(name.as_str()));
        let left_out: Vec<&String> = described.kept.iter().filter(apart).collect();
        json!({
            "quant_method": "awq",
            "bits": BITS,
            "group_size": described.content.group,
            // Stored in any case, the middle code where all groups have that.
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": if left_out.is_empty() { Value::Null } else { json!(left_out) },
        })
    }
}
