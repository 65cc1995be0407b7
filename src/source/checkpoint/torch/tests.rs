use super::*;
use std::io::Write;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A string as a pickle has it.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(n: u32) -> Vec<u8> {
    [b"J", &n.to_le_bytes()[..]].concat()
}

fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &parts.concat()[..], b"t"].concat()
}

fn numbers(parts: &[u32]) -> Vec<u8> {
    tuple(&parts.iter().map(|&n| number(n)).collect::<Vec<_>>())
}

/// A tensor as `torch.save` pickles it, in the storage called `key`.
fn tensor(class: &str, key: &str, offset: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let storage = tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), number(99)]);
    let arguments = [
        [storage, b"Q".to_vec()].concat(),
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89".to_vec(),
        b"ccollections\nOrderedDict\n)R".to_vec(),
    ];
    [global("torch._utils", "_rebuild_tensor_v2"), tuple(&arguments), b"R".to_vec()].concat()
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// A dictionary of tensors with an attribute, as models' state dictionaries have one.
fn dictionary(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pairs: Vec<u8> = tensors.iter().flat_map(|(name, tensor)| [text(name), tensor.clone()].concat()).collect();
    let attribute = [b"}", &text("_metadata")[..], b"}s"].concat();
    [b"\x80\x02ccollections\nOrderedDict\n)R(", &pairs[..], b"u", &attribute, b"b."].concat()
}

fn file(pickle: &[u8], storages: &[(&str, Vec<u8>)], more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let own = storages.iter().map(|(name, bytes)| (format!("model/data/{name}"), &bytes[..]));
    let more = more.iter().map(|&(name, bytes)| (format!("model/{name}"), bytes));
    for (name, bytes) in [("model/data.pkl".to_owned(), pickle)].into_iter().chain(own).chain(more) {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The tensors of these bytes as `pytorch_model.bin`, and the file.
fn read(bytes: &[u8]) -> Result<(Shard, HashMap<String, Place>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).unwrap();
    let shard = Shard::open(&path, String::new()).unwrap();
    let tensors = tensors(&shard, 0)?.into_iter().collect();
    Ok((shard, tensors))
}

#[track_caller]
fn refused(bytes: &[u8], told: &[&str]) {
    let error = read(bytes).err().expect("an error");
    let message = format!("{}; {}", error.chain().join(": "), error.hint_text().expect("a hint"));
    for told in [&["pytorch_model.bin"], told].concat() {
        assert!(message.contains(told), "no {told:?} in {message}");
    }
}

#[test]
fn tensors_are_read_where_they_are_whatever_their_strides() {
    let halves: Vec<u8> = [1.0f32, -2.0, 0.5].iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let pickle = dictionary(&[
        ("plain", tensor("FloatStorage", "0", 0, &[2, 3], &[3, 1])),
        ("turned", tensor("FloatStorage", "0", 0, &[3, 2], &[1, 3])),
        ("part", tensor("FloatStorage", "0", 1, &[2, 2], &[3, 1])),
        ("one row", tensor("FloatStorage", "0", 3, &[1, 3], &[77, 1])),
        ("repeated", tensor("FloatStorage", "0", 4, &[2, 2], &[0, 0])),
        ("empty", tensor("FloatStorage", "0", 6, &[0, 3], &[3, 1])),
        ("halves", tensor("HalfStorage", "1", 0, &[3], &[1])),
        ("buffer", tensor("LongStorage", "2", 0, &[1], &[1])),
    ]);
    let storages = [("0", floats((0..6).map(|i| i as f32))), ("1", halves), ("2", vec![0; 8])];
    let (shard, tensors) = read(&file(&pickle, &storages, &[("byteorder", b"little"), ("version", b"3\n")])).unwrap();
    let shards = [shard];
    for (name, shape, numbers) in [
        ("plain", &[2, 3][..], &[0., 1., 2., 3., 4., 5.][..]),
        ("turned", &[3, 2], &[0., 3., 1., 4., 2., 5.]),
        ("part", &[2, 2], &[1., 2., 4., 5.]),
        ("one row", &[1, 3], &[3., 4., 5.]),
        ("repeated", &[2, 2], &[4.; 4]),
        ("empty", &[0, 3], &[]),
        ("halves", &[3], &[1., -2., 0.5]),
    ] {
        let place = &tensors[name];
        assert_eq!((&place.shape[..], place.numbers(&shards, 0..shape[0])), (shape, numbers.to_vec()), "{name}");
        if name == "turned" {
            assert_eq!(place.numbers(&shards, 1..3), numbers[2..]);
        }
    }
    assert_eq!((tensors["buffer"].dtype, tensors.len()), (Dtype::I64, 8));
    assert_eq!(tensors["one row"].strides, None);
}

#[test]
fn parameters_and_newer_types_are_read() {
    let inner = tensor("FloatStorage", "0", 0, &[2], &[1]);
    let parameter = [global("torch._utils", "_rebuild_parameter"), tuple(&[inner, b"\x88".to_vec()]), b"R".to_vec()];
    let storage =
        tuple(&[text("storage"), global("torch.storage", "UntypedStorage"), text("1"), text("cpu"), number(2)]);
    let newer = tuple(&[
        [storage, b"Q".to_vec()].concat(),
        number(0),
        numbers(&[2]),
        numbers(&[1]),
        b"\x89".to_vec(),
        b"}".to_vec(),
        global("torch", "float8_e4m3fn"),
    ]);
    let newer = [global("torch._utils", "_rebuild_tensor_v3"), newer, b"R".to_vec()].concat();
    let pickle = dictionary(&[("parameter", parameter.concat()), ("newer", newer)]);
    let (shard, tensors) = read(&file(&pickle, &[("0", floats([3.0, 4.0])), ("1", vec![1, 2])], &[])).unwrap();
    assert_eq!(tensors["parameter"].numbers(&[shard], 0..2), [3.0, 4.0]);
    assert_eq!((tensors["newer"].dtype, tensors["newer"].bytes.len()), (Dtype::F8_E4M3, 2));
}

#[test]
fn other_files_are_refused_with_the_way_to_convert_them() {
    let convert = "python -c";
    refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", &["before PyTorch 1.6", convert, "model.safetensors"]);
    refused(b"version https://git-lfs", &["23 bytes that do not begin", convert]);
    let pickle = dictionary(&[("a", tensor("FloatStorage", "0", 0, &[2], &[1]))]);
    let whole = file(&pickle, &[("0", floats([3.0, 4.0]))], &[]);
    for length in [5, whole.len() / 2, whole.len() - 10] {
        refused(&whole[..length], &[&format!("its {length} bytes are no whole zip")]);
    }
    refused(&file(&pickle, &[], &[("byteorder", b"big")]), &["big-endian", convert]);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("model/other", SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
    refused(&zip.finish().unwrap().into_inner(), &["no data.pkl"]);
    // The method of compression, in both places where a zip names it.
    let mut compressed = whole.clone();
    for (signature, at) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let first = compressed.windows(4).position(|bytes| bytes == signature).unwrap();
        compressed[first + at] = 8;
    }
    refused(&compressed, &["'model/data.pkl' in it is compressed", convert]);
}

/// A tensor in so many wrappings of a parameter.
fn wrapped(times: usize) -> Vec<u8> {
    (0..times).fold(tensor("FloatStorage", "0", 0, &[2], &[1]), |inner, _| {
        let arguments = tuple(&[inner, b"\x88".to_vec()]);
        [global("torch._utils", "_rebuild_parameter"), arguments, b"R".to_vec()].concat()
    })
}

#[test]
fn tensors_that_make_no_sense_are_named() {
    for (tensor, told) in [
        (
            tensor("FloatStorage", "0", 0, &[3], &[1]),
            "shape [3] and strides [1] from number 0 on, but storage '0' has 2",
        ),
        (tensor("FloatStorage", "0", 2, &[1], &[1]), "from number 2 on"),
        (tensor("FloatStorage", "0", 0, &[2, 2], &[2, 1]), "shape [2, 2]"),
        (tensor("FloatStorage", "0", 0, &[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0]), "shape [1073741824"),
        (tensor("FloatStorage", "0", 0, &[1 << 30], &[0]), "shape [1073741824] and strides [0]"),
        (tensor("FloatStorage", "0", 0, &[1; 17], &[1; 17]), "has a shape that is none"),
        (wrapped(17), "made in a way that is not known"),
        (tensor("FloatStorage", "0", 0, &[2], &[1 << 30]), "strides [1073741824]"),
        (tensor("FloatStorage", "7", 0, &[2], &[1]), "storage '7', which is not there"),
        (tensor("QInt8Storage", "0", 0, &[2], &[1]), "type QInt8Storage"),
        (tensor("FloatStorage", "0", 0, &[2], &[1, 1]), "strides that are none"),
        (tensor("FloatStorage", "0", u32::MAX, &[2], &[1]), "offset that is none"),
        ([global("os", "system"), tuple(&[text("rm")]), b"R".to_vec()].concat(), "made in a way that is not known"),
        ([global("torch._utils", "_rebuild_tensor_v2"), tuple(&[]), b"R".to_vec()].concat(), "too few parts"),
    ] {
        let pickle = dictionary(&[("good", self::tensor("FloatStorage", "0", 0, &[2], &[1])), ("bad", tensor)]);
        refused(&file(&pickle, &[("0", floats([3.0, 4.0]))], &[]), &["tensor 'bad'", told]);
    }
    refused(&file(b"K\x01.", &[], &[]), &["no dictionary"]);
    refused(&file(&dictionary(&[]), &[], &[]), &["names no tensors"]);
    refused(&file(b"\x80\x02}", &[], &[]), &["fewer than 1 bytes left"]);
}
