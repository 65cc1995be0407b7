use super::*;

/// A safetensors file from its header and data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(std::iter::repeat_n(0u8, data));
    bytes
}

fn entry(name: &str, shape: usize, from: usize, to: usize) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
}

fn open(files: &[(&str, Vec<u8>)]) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    Checkpoint::open(folder.path())
}

fn complaint(files: &[(&str, Vec<u8>)]) -> String {
    open(files).err().expect("an error").chain().join(": ")
}

#[test]
fn damaged_files_are_named_with_tensor_and_numbers() {
    let two = |from: usize| format!("{{{},{}}}", entry("a", 2, 0, 8), entry("b", 2, from, from + 8));
    for (bytes, wanted) in [
        (vec![1, 2, 3], "it has 3 bytes"),
        (file("{}", 0)[..9].to_vec(), "its header should take 2 bytes, but the file has only 9"),
        (file(&two(8), 12), "tensor 'b' ends at byte 16 of the data, but only 12 bytes are there"),
        (file(&two(4), 12), "tensor 'b' starts at byte 4 of the data, inside tensor 'a', which ends at 8"),
        (file(&two(12), 20), "4 bytes between tensors 'a' and 'b' belong to none"),
        (file(&two(8), 20), "4 bytes after the last tensor, 'b', belong to none"),
        (file("{nonsense", 0), "not a valid safetensors file"),
    ] {
        let message = complaint(&[("model.safetensors", bytes)]);
        assert!(message.contains(wanted) && message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn a_tensor_in_two_files_is_that_of_the_last() {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let index = format!(r#"{{"weight_map":{{"a":"{}","b":"{}","gone":"{0}"}}}}"#, shards[0], shards[1]);
    let of = |tensors: &[(&str, f32)]| {
        let entries = tensors.iter().enumerate().map(|(i, (name, _))| entry(name, 1, 4 * i, 4 * i + 4));
        let mut bytes = file(&format!("{{{}}}", entries.collect::<Vec<_>>().join(",")), 0);
        bytes.extend(tensors.iter().flat_map(|(_, x)| x.to_le_bytes()));
        bytes
    };
    let mut files = vec![(shards[0], of(&[("a", 1.0)])), (shards[1], of(&[("a", 2.0), ("b", 3.0)]))];
    for indexed in [false, true] {
        if indexed {
            files.push(("model.safetensors.index.json", index.clone().into_bytes()));
        }
        let checkpoint = open(&files).unwrap();
        assert_eq!((checkpoint.read("a", &[1]).unwrap(), checkpoint.read("b", &[1]).unwrap()), (vec![2.0], vec![3.0]));
        let notes = checkpoint.notes().join("\n");
        assert!(notes.contains(&format!("'a' in {} and {}", shards[0], shards[1])), "{notes}");
        assert_eq!(notes.contains("lists tensors that are not there (1): 'gone'"), indexed, "{notes}");
    }
}

#[test]
fn numbers_of_all_floating_types_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},"b":{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[16,18]},
        "c":{"dtype":"F8_E5M2","shape":[2,1],"data_offsets":[18,20]},"d":{"dtype":"I8","shape":[1],"data_offsets":[20,21]}}"#;
    let doubles = [1.5f64, -1e-3].map(f64::to_le_bytes).concat();
    let bytes = [file(header, 0), doubles, vec![0x38, 0xb8, 0x3c, 0xbc, 1]].concat();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.read("a", &[2]).unwrap(), [1.5, -1e-3]);
    assert_eq!(checkpoint.read("b", &[1, 2]).unwrap(), [1.0, -1.0]);
    assert_eq!(checkpoint.read_rows("c", &[2, 1], 1..2).unwrap(), [-1.0]);
    assert!(checkpoint.read("d", &[1]).unwrap_err().to_string().contains("type I8"));
    assert!(checkpoint.notes()[0].contains("FP8 tensors without scales (2)"), "{:?}", checkpoint.notes());
}

#[test]
fn a_pointer_of_git_lfs_is_named() {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5775872\n".to_vec();
        let error = open(&[(name, pointer)]).err().unwrap();
        assert!(error.to_string().contains(name) && error.to_string().contains("Git LFS"), "{error}");
        assert!(error.hint_text().unwrap().contains("git lfs pull"));
    }
}

#[test]
fn a_tensor_that_is_missing_shows_the_nearest_names() {
    let of = |names: &[&str]| {
        let entries: Vec<_> = names.iter().map(|name| entry(name, 0, 0, 0)).collect();
        open(&[("model.safetensors", file(&format!("{{{}}}", entries.join(",")), 0))]).unwrap()
    };
    let hint =
        |names: &[&str], wanted: &str| of(names).check(wanted, &[2]).unwrap_err().hint_text().unwrap().to_owned();
    let wanted = "model.layers.0.self_attn.q_proj.weight";
    let others = ["a.weight", "lm_head.weight", "model.layers.0.self_attn.k_proj.bias", "z"];
    for prefix in ["_orig_mod.", "module.", "base_model.model."] {
        let wrapped = format!("{prefix}{wanted}");
        let hint = hint(&[&others[..], &[&wrapped]].concat(), wanted);
        assert!(hint.contains(&format!("of the 5 that are there, the nearest are \"{wrapped}\"")), "{hint}");
    }
    assert!(hint(&others, "lm_head.bias").contains("tie_word_embeddings"));
    let long = "x".repeat(5000);
    assert!(hint(&[&long], wanted).len() < 500);
}

#[test]
fn weights_of_other_quantizers_are_named_by_what_is_beside_them() {
    let tensor = |name: &str, dtype: &str, at: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[1],"data_offsets":[{at},{}]}}"#, at + 4)
    };
    for (dtype, weight, beside, told) in [
        ("U32", "a.weight", "a.scales", "MLX"),
        ("U8", "a.weight", "a.weight.absmax", "bitsandbytes in 4 bits"),
        ("I8", "a.weight", "a.SCB", "bitsandbytes in 8 bits"),
        ("I32", "a.qweight", "a.scales", "no description"),
        ("I32", "a.weight_packed", "a.weight_scale", "no description"),
    ] {
        let size = if dtype.ends_with("32") { 1 } else { 4 };
        let header = format!("{{{},{}}}", tensor(weight, dtype, 0), tensor(beside, "F32", 4)).replacen(
            "[1]",
            &format!("[{size}]"),
            1,
        );
        let checkpoint = open(&[("model.safetensors", file(&header, 8))]).unwrap();
        let message = checkpoint.check("a.weight", &[8, 8]).unwrap_err().to_string();
        assert!(message.contains(told) && message.contains("does not read"), "{message}");
    }
}

#[test]
fn tensors_are_read_and_checked() {
    let mut bytes = file(&format!("{{{}}}", entry("a", 2, 0, 8)), 0);
    bytes.extend_from_slice(&1.5f32.to_le_bytes());
    bytes.extend_from_slice(&f32::NAN.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let message = checkpoint.read("a", &[2]).unwrap_err().to_string();
    assert!(message.contains("tensor 'a' holds NaN at element 1 of 2"), "{message}");
    let message = checkpoint.read("a", &[1, 2]).unwrap_err().to_string();
    assert!(message.contains("shape [2], but config.json makes it [1, 2]"), "{message}");
    assert!(checkpoint.read("b", &[2]).unwrap_err().to_string().contains("no tensor 'b'"));
}
