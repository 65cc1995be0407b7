use crate::error::Result;
use crate::source::checkpoint::{Checkpoint, Lines};
use half::f16;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A tensor of a file.
struct Part(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn words(name: &'static str, shape: &[usize], words: &[u32]) -> Part {
    Part(name, Dtype::I32, shape.into(), words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn halves(name: &'static str, shape: &[usize], numbers: &[f32]) -> Part {
    Part(name, Dtype::F16, shape.into(), numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect())
}

fn floats(name: &'static str, shape: &[usize], numbers: &[f32]) -> Part {
    Part(name, Dtype::F32, shape.into(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// A checkpoint of these tensors that describes itself so. It is mapped, so its folder may go.
fn open(description: Value, parts: &[Part]) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "quantization_config": description });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tensors = parts.iter().map(|Part(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
    Checkpoint::open(folder.path())
}

#[track_caller]
fn complains<T>(result: Result<T>, told: &[&str]) {
    let error = result.err().expect("an error");
    let message = format!("{}; {}", error.chain().join(": "), error.hint_text().expect("a hint"));
    told.iter().for_each(|told| assert!(message.contains(told), "no {told:?} in {message}"));
}

const SCALES: [f32; 8] = [1.0, 2.0, 0.5, 0.25, 4.0, 1.5, 3.0, 8.0];

fn gptq(format: &str) -> Value {
    json!({ "quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": format })
}

/// Eight outputs of sixteen inputs in two groups. The first output's codes are 0 to 15, the last one's all nine.
fn gptq_parts() -> Vec<Part> {
    let codes = [[0x7654_3210, 0, 0, 0, 0, 0, 0, 0x9999_9999], [0xfedc_ba98, 0, 0, 0, 0, 0, 0, 0x9999_9999u32]];
    vec![
        words("x.qweight", &[2, 8], &codes.concat()),
        // In the first group the zero points are 0 to 7, in the second all 7, before one is added.
        words("x.qzeros", &[2, 1], &[0x7654_3210, 0x7777_7777]),
        halves("x.scales", &[2, 8], &[SCALES, [0.125; 8]].concat()),
        words("x.g_idx", &[16], &[[0; 8], [1; 8]].concat()),
    ]
}

#[test]
fn gptq_is_read_as_both_of_its_versions_mean_it() {
    for (format, more) in [("gptq", 1.0), ("gptq_v2", 0.0)] {
        let checkpoint = open(gptq(format), &gptq_parts()).unwrap();
        let info: Vec<_> =
            checkpoint.tensors().map(|t| (t.name.to_owned(), t.dtype, t.shape.to_vec(), t.bytes)).collect();
        assert_eq!(info, [("x.weight".to_owned(), "GPTQ4".to_owned(), vec![8, 16], 64 + 8 + 32 + 64)]);
        let first: Vec<f32> =
            (0..16).map(|q| if q < 8 { q as f32 - more } else { (q as f32 - 7.0 - more) / 8.0 }).collect();
        let last = [[(9.0 - 7.0 - more) * 8.0; 8], [(9.0 - 7.0 - more) / 8.0; 8]].concat();
        let all = checkpoint.read("x.weight", &[8, 16]).unwrap();
        assert_eq!((&all[..16], &all[7 * 16..]), (&first[..], &last[..]));
        // Rows from the middle of a word are the same rows.
        for rows in [0..1, 3..7, 7..8, 2..2] {
            let part = checkpoint.read_rows("x.weight", &[8, 16], rows.clone()).unwrap();
            assert_eq!(part, all[rows.start * 16..rows.end * 16]);
        }
    }
}

#[test]
fn gptq_in_another_order_takes_each_column_to_its_group() {
    let mut parts = gptq_parts();
    parts[3] = words("x.g_idx", &[16], &[1, 0].repeat(8));
    let checkpoint = open(gptq("gptq"), &parts).unwrap();
    let row = checkpoint.read_rows("x.weight", &[8, 16], 0..1).unwrap();
    let wanted: Vec<f32> = (0..16).map(|q| if q % 2 == 1 { q as f32 - 1.0 } else { (q as f32 - 8.0) / 8.0 }).collect();
    assert_eq!(row, wanted);
    parts.remove(3);
    let in_order = open(gptq("gptq"), &parts).unwrap();
    assert_eq!(in_order.grouped("x.weight").unwrap().lines(0..1).unwrap().groups, [[0; 8], [1; 8]].concat());
}

#[test]
fn two_and_eight_bits_of_gptq_are_read() {
    // Sixteen outputs of sixteen inputs in two bits, four of four in eight.
    for (bits, n) in [(2usize, 16usize), (8, 4)] {
        let per = 32 / bits;
        let word = if bits == 2 { 0b11_10_01_00_11_10_01_00_11_10_01_00_11_10_01_00 } else { 0xff80_0100u32 };
        let zero = if bits == 2 { 0x5555_5555 } else { 0x7f7f_7f7f };
        let description = json!({ "quant_method": "gptq", "bits": bits, "group_size": -1 });
        let parts = [
            words("x.qweight", &[n / per, n], &vec![word; n]),
            words("x.qzeros", &[1, n / per], &[zero]),
            halves("x.scales", &[1, n], &vec![0.5; n]),
        ];
        let checkpoint = open(description, &parts).unwrap();
        let row = checkpoint.read_rows("x.weight", &[n, n], n - 1..n).unwrap();
        let wanted = if bits == 2 { [-1.0, -0.5, 0.0, 0.5].repeat(4) } else { vec![-64.0, -63.5, 0.0, 63.5] };
        assert_eq!(row, wanted, "{bits} bits");
    }
}

#[test]
fn awq_is_read_in_the_order_of_its_kernel() {
    let description = json!({ "quant_method": "awq", "bits": 4, "group_size": 2, "version": "gemm" });
    // The nibbles are, from the lowest on, outputs 0, 2, 4, 6, 1, 3, 5, 7: here output i has code i, then 15 − i.
    let (up, down) = (0x7531_6420, 0x8ace_9bdf);
    let parts = [
        words("x.qweight", &[4, 1], &[up, down, up, up]),
        words("x.qzeros", &[2, 1], &[0, down]),
        halves("x.scales", &[2, 8], &[SCALES, [0.125; 8]].concat()),
    ];
    let checkpoint = open(description, &parts).unwrap();
    let all = checkpoint.read("x.weight", &[8, 4]).unwrap();
    for (i, row) in all.chunks(4).enumerate() {
        let (x, s) = (i as f32, SCALES[i]);
        let second = (x - (15.0 - x)) / 8.0;
        assert_eq!(row, [x * s, (15.0 - x) * s, second, second], "{i}");
    }
    assert_eq!(checkpoint.read_rows("x.weight", &[8, 4], 5..8).unwrap(), all[20..]);
    assert_eq!(checkpoint.grouped("x.weight").unwrap().kind(), "AWQ4");
}

fn compressed() -> Value {
    json!({ "quant_method": "compressed-tensors", "format": "pack-quantized" })
}

/// Two outputs of sixteen inputs in two groups, symmetric.
fn compressed_parts() -> Vec<Part> {
    vec![
        words("x.weight_packed", &[2, 2], &[0x7654_3210, 0xfedc_ba98, 0x8888_8888, 0x0000_000f]),
        halves("x.weight_scale", &[2, 2], &[1.0, 0.5, 2.0, 0.25]),
        Part("x.weight_shape", Dtype::I64, vec![2], [2u64, 16].iter().flat_map(|n| n.to_le_bytes()).collect()),
    ]
}

#[test]
fn compressed_tensors_are_read_with_every_kind_of_zero_point() {
    let row = |zeros: [f32; 2], scales: [f32; 2], codes: [f32; 16]| -> Vec<f32> {
        (0..16).map(|j| (codes[j] - 8.0 - zeros[j / 8]) * scales[j / 8]).collect()
    };
    let up: [f32; 16] = std::array::from_fn(|j| j as f32);
    let other: [f32; 16] = std::array::from_fn(|j| {
        if j < 8 {
            8.0
        } else if j == 8 {
            15.0
        } else {
            0.0
        }
    });
    let bytes = Part("x.weight_zero_point", Dtype::I8, vec![2, 2], [1i8, -8, 7, 0].map(|x| x as u8).to_vec());
    // The same, packed along the outputs.
    let packed = words("x.weight_zero_point", &[1, 2], &[0xf9, 0x80]);
    for (zero, zeros) in
        [(None, [[0.0; 2]; 2]), (Some(bytes), [[1.0, -8.0], [7.0, 0.0]]), (Some(packed), [[1.0, -8.0], [7.0, 0.0]])]
    {
        let mut parts = compressed_parts();
        parts.extend(zero);
        let checkpoint = open(compressed(), &parts).unwrap();
        let wanted = [row(zeros[0], [1.0, 0.5], up), row(zeros[1], [2.0, 0.25], other)];
        assert_eq!(checkpoint.read("x.weight", &[2, 16]).unwrap(), wanted.concat());
        assert_eq!(checkpoint.read_rows("x.weight", &[2, 16], 1..2).unwrap(), wanted[1]);
        assert_eq!(checkpoint.tensors().map(|t| t.dtype).collect::<Vec<_>>(), ["INT4"]);
    }
}

#[test]
fn compressed_tensors_have_groups_of_any_order_and_one_scale_per_row() {
    let groups = |checkpoint: &Checkpoint| checkpoint.grouped("x.weight").unwrap().lines(0..2).unwrap().groups;
    let in_order = [[0u32; 8], [1; 8]].concat();
    for (indices, wanted) in [(vec![u32::MAX; 16], in_order), ([1, 0].repeat(8), [1, 0].repeat(8))] {
        let parts = compressed_parts().into_iter().chain([words("x.weight_g_idx", &[16], &indices)]);
        let checkpoint = open(compressed(), &parts.collect::<Vec<_>>()).unwrap();
        assert_eq!(groups(&checkpoint), wanted);
    }
    let mut parts = compressed_parts();
    parts[1] = floats("x.weight_scale", &[2, 1], &[1.0, 0.1]);
    let checkpoint = open(compressed(), &parts).unwrap();
    let lines = checkpoint.grouped("x.weight").unwrap().lines(0..2).unwrap();
    assert_eq!(lines, Lines { groups: vec![0; 16], count: 1, scales: vec![1.0, 0.1], zeros: vec![8, 8] });
}

#[test]
fn fp8_is_read_with_one_scale_one_per_row_and_one_per_block() {
    // 1, −2, 448, 2⁻⁹.
    let bytes = [0x38, 0xc0, 0x7e, 0x01u8];
    let values = [1.0, -2.0, 448.0, 1.0 / 512.0f32];
    let weight = |rows: usize| Part("x.weight", Dtype::F8_E4M3, vec![rows, 4], bytes.repeat(rows));
    let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [2, 3] });
    let times = |scales: &[[f32; 4]]| -> Vec<f32> {
        scales.iter().flat_map(|row| values.iter().zip(row).map(|(x, s)| x * s)).collect()
    };
    for (scale, wanted) in [
        (floats("x.weight_scale", &[], &[0.1]), times(&[[0.1; 4]; 3])),
        (floats("x.weight_scale", &[1], &[0.1]), times(&[[0.1; 4]; 3])),
        (halves("x.weight_scale", &[3, 1], &[1.0, 2.0, 4.0]), times(&[[1.0; 4], [2.0; 4], [4.0; 4]])),
        (
            floats("x.weight_scale_inv", &[2, 2], &[1.0, 2.0, 4.0, 0.3]),
            times(&[[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0], [4.0, 4.0, 4.0, 0.3]]),
        ),
    ] {
        let checkpoint = open(fp8.clone(), &[weight(3), scale]).unwrap();
        assert_eq!(checkpoint.read("x.weight", &[3, 4]).unwrap(), wanted);
        assert_eq!(checkpoint.read_rows("x.weight", &[3, 4], 1..3).unwrap(), wanted[4..]);
        let seen: Vec<_> = checkpoint.tensors().map(|t| (t.name.to_owned(), t.dtype)).collect();
        assert_eq!(seen, [("x.weight".to_owned(), "F8_E4M3".to_owned())]);
        assert!(checkpoint.grouped("x.weight").is_none(), "its numbers are no codes");
    }
    // Blocks that are not described are 128 wide; 16-bit numbers may have such scales, too.
    let ones = |dtype, n: usize, one: &[u8]| Part("x.weight", dtype, vec![1, n], one.repeat(n));
    for weight in [ones(Dtype::F8_E4M3, 129, &[0x38]), ones(Dtype::BF16, 129, &[0x80, 0x3f])] {
        let checkpoint =
            open(json!({ "quant_method": "fp8" }), &[weight, floats("x.weight_scale_inv", &[1, 2], &[3.0, 5.0])]);
        let wanted = [vec![3.0; 128], vec![5.0]].concat();
        assert_eq!(checkpoint.unwrap().read("x.weight", &[1, 129]).unwrap(), wanted);
    }
    // A weight that is fake-quantized has its scale in it.
    let dense = json!({ "quant_method": "compressed-tensors", "format": "dense" });
    let checkpoint = open(dense, &[ones(Dtype::BF16, 4, &[0x80, 0x3f]), floats("x.weight_scale", &[1], &[3.0])]);
    assert_eq!(checkpoint.unwrap().read("x.weight", &[1, 4]).unwrap(), [1.0; 4]);
}

#[test]
fn scales_of_eight_bits_have_many_kinds() {
    let bytes = |name, dtype, shape: &[usize], bytes: &[u8]| Part(name, dtype, shape.into(), bytes.into());
    // 1, −2, 2, 1 in E4M3; 1, −2, 4, 1 in E5M2.
    let e4m3 = |shape: &[usize]| bytes("x.weight", Dtype::F8_E4M3, shape, &[0x38, 0xc0, 0x40, 0x38]);
    let fp8 = json!({ "quant_method": "fp8" });
    let int8 = json!({ "quant_method": "compressed-tensors", "format": "int-quantized" });
    let codes = || bytes("x.weight", Dtype::I8, &[2, 2], &[1, 0xfe, 127, 0x80]);
    for (description, parts, wanted) in [
        // Powers of two as their own type, and as bytes in groups.
        (
            &fp8,
            vec![e4m3(&[2, 2]), bytes("x.weight_scale_inv", Dtype::F8_E8M0, &[1, 1], &[128])],
            [2.0, -4.0, 4.0, 2.0],
        ),
        (&fp8, vec![e4m3(&[1, 4]), bytes("x.weight_scale", Dtype::U8, &[1, 2], &[126, 129])], [0.5, -1.0, 8.0, 4.0]),
        (
            &fp8,
            vec![
                bytes("x.weight", Dtype::F8_E5M2, &[2, 2], &[0x3c, 0xc0, 0x44, 0x3c]),
                floats("x.weight_scale", &[], &[3.0]),
            ],
            [3.0, -6.0, 12.0, 3.0],
        ),
        // Mistral's own names, with the scale of activations.
        (
            &fp8,
            vec![e4m3(&[2, 2]), floats("x.qscale_weight", &[], &[3.0]), floats("x.qscale_act", &[], &[9.0])],
            [3.0, -6.0, 6.0, 3.0],
        ),
        // Stacks of matrices.
        (&fp8, vec![e4m3(&[2, 1, 2]), floats("x.weight_scale_inv", &[2, 1, 1], &[3.0, 5.0])], [3.0, -6.0, 10.0, 5.0]),
        (&int8, vec![codes(), floats("x.weight_scale", &[2, 1], &[0.5, 2.0])], [0.5, -1.0, 254.0, -256.0]),
        (&int8, vec![codes(), halves("x.weight_scale", &[1], &[0.5])], [0.5, -1.0, 63.5, -64.0]),
        (
            &int8,
            vec![
                codes(),
                floats("x.weight_scale", &[2, 1], &[0.5, 2.0]),
                bytes("x.weight_zero_point", Dtype::I8, &[2, 1], &[1, 0xff]),
            ],
            [0.0, -1.5, 256.0, -254.0],
        ),
    ] {
        let shape = parts[0].2.clone();
        let checkpoint = open(description.clone(), &parts).unwrap();
        assert_eq!(checkpoint.read("x.weight", &shape).unwrap(), wanted);
        let from = shape[0] - 1;
        assert_eq!(checkpoint.read_rows("x.weight", &shape, from..shape[0]).unwrap(), wanted[4 * from / shape[0]..]);
        assert_eq!(checkpoint.tensors().count(), 1, "the others are parts of it");
        assert!(checkpoint.quantized("x.weight").is_none());
    }
}

#[test]
fn fp8_without_a_scale_is_a_plain_cast_unless_there_are_scales_elsewhere() {
    let cast = || Part("x.weight", Dtype::F8_E4M3, vec![1, 2], vec![0x38, 0xc0]);
    let other = Part("y.weight", Dtype::F8_E4M3, vec![1, 2], vec![0x38, 0xc0]);
    let undescribed = |parts: &[Part]| open(Value::Null, parts);
    let checkpoint = undescribed(&[cast()]).unwrap();
    assert_eq!(checkpoint.read("x.weight", &[1, 2]).unwrap(), [1.0, -2.0]);
    assert!(checkpoint.notes()[0].contains("FP8 tensors without scales (1)"), "{:?}", checkpoint.notes());
    // Scales may be FP8 themselves, as NVFP4's are.
    let scale = Part("z.weight_scale", Dtype::F8_E4M3, vec![1, 2], vec![0x38, 0xc0]);
    assert_eq!(undescribed(&[scale]).unwrap().notes(), [""; 0]);
    let scale = floats("y.weight_scale", &[1], &[3.0]);
    complains(undescribed(&[cast(), other, scale]), &["'x.weight' is FP8, but there is no 'x.weight_scale(_inv)'"]);
}

#[test]
fn parts_that_do_not_belong_together_are_named() {
    let with = |at: usize, part: Part| {
        let mut parts = gptq_parts();
        parts[at] = part;
        open(gptq("gptq"), &parts)
    };
    let own = "model.safetensors: tensor 'x.";
    complains(with(2, halves("x.scales", &[1, 8], &[1.0; 8])), &[own, "scales' has shape [1, 8], not [2, 8]"]);
    complains(with(1, words("x.qzeros", &[2, 2], &[0; 4])), &[own, "qzeros' has shape [2, 2], not [2, 1]"]);
    complains(with(3, words("x.g_idx", &[8], &[0; 8])), &[own, "g_idx' has shape [8], not [16]"]);
    complains(with(0, words("x.qweight", &[16], &[0; 16])), &[own, "qweight' has shape [16], but has to be a matrix"]);
    complains(with(0, floats("x.qweight", &[2, 8], &[0.0; 16])), &[own, "qweight' is of type F32, not [I32]"]);
    let mut parts = gptq_parts();
    parts.remove(1);
    complains(open(gptq("gptq"), &parts), &["there is no tensor 'x.qzeros'"]);
    let mut parts = gptq_parts();
    parts.push(floats("x.weight", &[1], &[0.0]));
    complains(open(gptq("gptq"), &parts).map_err(|error| error.hint("none")), &["'x.weight' is there twice"]);

    let with = |at: usize, part: Part| {
        let mut parts = compressed_parts();
        parts[at] = part;
        open(compressed(), &parts)
    };
    let shape = |rows: i64, columns: i64| {
        let bytes = [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect();
        Part("x.weight_shape", Dtype::I64, vec![2], bytes)
    };
    for (rows, columns) in [(2, 160), (-2, 16), (2, i64::MAX), (i64::MAX, i64::MAX)] {
        complains(with(2, shape(rows, columns)), &["'x.weight_packed' has shape [2, 2], which holds no codes"]);
    }
    complains(
        with(1, halves("x.weight_scale", &[2, 3], &[1.0; 6])),
        &["'x.weight_scale' has shape [2, 3], which divides no 2 x 16"],
    );

    let weight = || Part("x.weight", Dtype::F8_E4M3, vec![2, 4], vec![0; 8]);
    complains(
        open(json!({ "quant_method": "fp8" }), &[weight()]),
        &["'x.weight' is FP8, but there is no 'x.weight_scale(_inv)'"],
    );
    let scale = floats("x.weight_scale", &[3], &[1.0; 3]);
    complains(
        open(json!({ "quant_method": "fp8" }), &[weight(), scale]),
        &["'x.weight_scale' has shape [3]", "one per 128 x 128"],
    );
}

#[test]
fn values_that_make_no_sense_are_named() {
    let read = |at: usize, part: Part| {
        let mut parts = gptq_parts();
        parts[at] = part;
        open(gptq("gptq"), &parts)?.read("x.weight", &[8, 16])
    };
    let mut indices = [0; 16];
    indices[5] = 2;
    complains(read(3, words("x.g_idx", &[16], &indices)), &["'x.g_idx' puts column 5 into group 2, but there are 2"]);
    indices[5] = u32::MAX;
    complains(read(3, words("x.g_idx", &[16], &indices)), &["puts column 5 into group -1"]);
    let mut scales = [1.0; 16];
    scales[8 + 3] = f32::NAN;
    complains(
        read(2, halves("x.scales", &[2, 8], &scales)),
        &["'x.scales' holds NaN as the scale of output 3, group 1"],
    );
    let zeros = words("x.qzeros", &[2, 1], &[0, 0x00f0_0000]);
    complains(
        read(1, zeros),
        &["'x.qzeros' holds zero point 16 for output 5, group 1, beyond the codes' 15", "gptq_v2"],
    );

    let read = |part: Part| {
        let mut parts = compressed_parts();
        parts.retain(|own| own.0 != part.0);
        parts.push(part);
        open(compressed(), &parts)?.read("x.weight", &[2, 16])
    };
    let zeros = Part("x.weight_zero_point", Dtype::I8, vec![2, 2], vec![0, 0, 0, 8]);
    complains(read(zeros), &["'x.weight_zero_point' holds zero point 8 for output 1, group 1, beyond -8 to 7"]);
    let scales = halves("x.weight_scale", &[2, 2], &[1.0, f32::INFINITY, 1.0, 1.0]);
    complains(read(scales), &["'x.weight_scale' holds inf as the scale of output 0, group 1"]);

    let weight = |byte| Part("x.weight", Dtype::F8_E4M3, vec![2, 4], vec![0, 0, 0, 0, 0, byte, 0, 0]);
    let read = |byte, scale: f32| {
        let scale = floats("x.weight_scale_inv", &[1, 1], &[scale]);
        open(json!({ "quant_method": "fp8" }), &[weight(byte), scale])?.read("x.weight", &[2, 4])
    };
    complains(read(0xff, 1.0), &["'x.weight' holds NaN at element 5 of 8"]);
    complains(read(0x7e, f32::NAN), &["'x.weight_scale_inv' holds NaN at element 0"]);
    complains(read(0x7e, 1e37), &["'x.weight' holds inf at element 5 of 8"]);
}

#[test]
fn methods_that_are_not_read_are_refused_by_name() {
    for (description, name) in [
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "bitsandbytes"),
        (json!({ "quant_method": "HQQ" }), "hqq"),
        (json!({ "quant_method": "exl2", "version": "0.1" }), "exl2 (0.1)"),
        (json!({ "quant_method": "gptq", "bits": 3 }), "gptq"),
        (json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" }), "gptq (marlin)"),
        (json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }), "awq (gemv)"),
        (json!({ "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized" }), "(nvfp4-pack-quantized)"),
        (json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" }), "modelopt"),
    ] {
        let checkpoint = open(description, &[Part("x.weight", Dtype::U8, vec![2, 2], vec![0; 4])]).unwrap();
        let told = ["config.json: the checkpoint is quantized with ", name, "which llmq does not read", "original"];
        complains(checkpoint.check("x.weight", &[2, 4]), &told);
        complains(checkpoint.check("y.weight", &[2, 4]), &told);
    }
    let checkpoint = open(gptq("gptq"), &gptq_parts()).unwrap();
    complains(checkpoint.check("y.weight", &[2, 4]), &["there is no tensor 'y.weight'"]);
    complains(
        checkpoint.check("x.weight", &[16, 8]),
        &["'x.weight' has shape [8, 16], but config.json makes it [16, 8]"],
    );
}

/// Such tensors take no bytes, so a file can claim any shape for them.
#[test]
fn shapes_beyond_counting_are_refused_where_there_are_no_numbers() {
    let huge = usize::MAX / 4;
    let refused =
        |description: Value, part: Part| complains(open(description, &[part]), &["more than can be unpacked"]);
    refused(gptq("gptq"), words("x.qweight", &[huge, 0], &[]));
    let awq = json!({ "quant_method": "awq", "bits": 4, "group_size": 8 });
    refused(awq, words("x.qweight", &[0, huge], &[]));
    let shape = [0, 1, huge, 16];
    let [blocks, scales] = [("x_blocks", &shape[..]), ("x_scales", &shape[..3])]
        .map(|(name, shape)| Part(name, Dtype::U8, shape.to_vec(), Vec::new()));
    complains(open(json!({ "quant_method": "mxfp4" }), &[blocks, scales]), &["more than can be unpacked"]);
}

#[test]
fn scales_without_dimensions_are_refused() {
    let description = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized" });
    let shape = Part("x.weight_shape", Dtype::I64, vec![2], [1i64, 8].map(i64::to_le_bytes).concat());
    let parts = [words("x.weight_packed", &[1, 1], &[0]), shape, halves("x.weight_scale", &[], &[1.0])];
    complains(open(description, &parts), &["'x.weight_scale' has shape []", "divides no 1 x 8"]);
}
