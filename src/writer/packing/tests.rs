use super::*;
use crate::source::checkpoint::Checkpoint;
use crate::writer::safetensors::SafetensorsWriter;
use half::f16;
use proptest::prelude::*;
use serde_json::json;

/// A matrix of these groups whose numbers look random.
fn matrix(rows: usize, columns: usize, content: Content, seed: u64) -> Matrix {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (s >> 40) as u32
    };
    let top = (1u32 << content.bits) - 1;
    let groups = rows * columns / content.group;
    Matrix {
        rows,
        columns,
        content,
        codes: (0..rows * columns).map(|_| (next() % (top + 1)) as u8).collect(),
        scales: (0..groups).map(|_| f16::from_f32(next() as f32 / 1e9 - 0.007).to_bits()).collect(),
        zeros: (0..groups)
            .map(|_| if content.zeros { (1 + next() % top) as u8 } else { (top as u8).div_ceil(2) })
            .collect(),
    }
}

fn values(m: &Matrix) -> Vec<f32> {
    let value = |(i, &code): (usize, &u8)| {
        let group = i / m.columns * m.groups() + i % m.columns / m.content.group;
        (f32::from(code) - f32::from(m.zeros[group])) * f16::from_bits(m.scales[group]).to_f32()
    };
    m.codes.iter().enumerate().map(value).collect()
}

proptest! {
    /// What is packed is read back by the readers of other quantizers' folders: the same codes, scales, zero points and numbers.
    #[test]
    fn what_is_packed_is_read_back(
        rows in (1usize..6).prop_map(|n| 8 * n),
        groups in 1usize..4,
        content in (0..3usize, prop::sample::select(vec![32usize, 64, 128])),
        seed in any::<u64>(),
    ) {
        let (bits, zeros) = [(4, false), (4, true), (8, false)][content.0];
        let content = Content { bits, group: content.1, zeros };
        let m = matrix(rows, groups * content.group, content, seed);
        for packing in PACKINGS.iter().filter(|packing| packing.misfit(content).is_none()) {
            let folder = tempfile::tempdir().unwrap();
            let described = Described { content, kept: &[], packed: &["a.b".to_owned()] };
            let config = json!({ "quantization_config": packing.description(&described) });
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let parts = packing.parts("a.b", m.rows, m.columns, content);
            let path = folder.path().join("model.safetensors");
            let mut writer = SafetensorsWriter::create(&path, &path, &parts).unwrap();
            for (part, bytes) in parts.iter().zip(packing.pack(&m)) {
                writer.append(&part.name, &bytes).unwrap();
            }
            writer.finish().unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            prop_assert_eq!(checkpoint.tensors().count(), 1, "{}", packing.name());
            let grouped = checkpoint.grouped("a.b.weight").expect("a packed weight");
            prop_assert_eq!(&grouped.codes(0..rows), &m.codes, "{}", packing.name());
            let lines = grouped.lines(0..rows).unwrap();
            prop_assert!(lines.zeros.iter().map(|&zero| zero as u8).eq(m.zeros.iter().copied()), "{}", packing.name());
            prop_assert_eq!(checkpoint.read("a.b.weight", &[m.rows, m.columns]).unwrap(), values(&m));
        }
    }
}

#[test]
fn layers_that_are_left_out_are_named_as_each_format_names_them() {
    let content = Content { bits: 4, group: 128, zeros: false };
    let kept = ["m.0.router".to_owned(), "m.0.gate".to_owned()];
    let packed = ["m.0.gate_proj".to_owned()];
    let of = |name: &str| by_name(name).unwrap().description(&Described { content, kept: &kept, packed: &packed });
    assert_eq!(of("gptq")["dynamic"], json!({ "-:^m\\.0\\.router$": {}, "-:^m\\.0\\.gate$": {} }));
    // "m.0.gate" would leave out "m.0.gate_proj", too.
    assert_eq!(of("AWQ")["modules_to_not_convert"], json!(["m.0.router"]));
    assert_eq!(of("compressed-tensors")["ignore"], json!(["lm_head", "m.0.router", "m.0.gate"]));
    assert!(by_name("exl2").err().unwrap().hint_text().unwrap().contains("gptq, awq, compressed-tensors"));
    let eight = Content { bits: 8, ..content };
    assert!(by_name("awq").unwrap().misfit(eight).unwrap().contains("not 8"));
}
