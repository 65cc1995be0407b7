use super::*;
use crate::int8::npy::npy;
use crate::int8::onnx::shape::Dim;
use std::io::Write;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

fn floats(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn longs(x: &[i64]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Writes arrays as `np.savez` does.
fn npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in arrays {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

fn open(name: &str) -> Dim {
    Dim::Dynamic(name.into())
}

fn image() -> Vec<InputSpec> {
    vec![InputSpec { name: "x".into(), float: true, shape: Some(vec![open("n"), Dim::Fixed(2)]) }]
}

fn read(paths: &[PathBuf], wanted: Vec<InputSpec>) -> Result<Vec<Sample>> {
    Samples::open(paths, wanted)?.iter().collect()
}

fn message(paths: &[PathBuf], wanted: Vec<InputSpec>) -> String {
    read(paths, wanted).unwrap_err().to_string()
}

#[test]
fn samples_come_one_at_a_time_with_their_labels() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.npz"), dir.path().join("b.npz"));
    let x = npy(&[3, 2], "<f4", &floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    npz(&a, &[("extra", npy(&[1], "|u1", &[0])), ("labels", npy(&[3], "<i8", &longs(&[7, 8, 9]))), ("x", x)]);
    npz(&b, &[("x", npy(&[1, 2], "<f4", &floats(&[6.0, 7.0]))), ("labels", npy(&[1, 1], "<i8", &longs(&[1])))]);
    let samples = Samples::open(&[dir.path().into()], image()).unwrap();
    assert_eq!((samples.len(), samples.labelled(), &samples.unused[..]), (4, true, &["extra".to_owned()][..]));
    let all: Vec<Sample> = samples.iter().collect::<Result<_>>().unwrap();
    for (i, sample) in all.iter().enumerate() {
        let wanted = Values::Float(vec![2.0 * i as f32, 2.0 * i as f32 + 1.0]);
        assert_eq!(sample.inputs, [Array { shape: vec![1, 2], values: wanted }]);
        assert_eq!(sample.labels, [[7, 8, 9, 1][i]]);
    }
}

#[test]
fn a_fixed_batch_takes_as_many_rows_and_an_array_without_batch_is_one_sample() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, npy(&[5, 2], "<f4", &floats(&[0.0; 10]))).unwrap();
    let batched = vec![InputSpec { shape: Some(vec![Dim::Fixed(2), Dim::Fixed(2)]), ..image().remove(0) }];
    let samples = Samples::open(std::slice::from_ref(&path), batched).unwrap();
    assert_eq!((samples.len(), samples.left_over(), samples.batch()), (2, 1, 2));
    assert_eq!(samples.iter().next().unwrap().unwrap().inputs[0].shape, [2, 2]);
    std::fs::write(&path, npy(&[2], "<f4", &floats(&[3.0, 4.0]))).unwrap();
    let all = read(&[path], image()).unwrap();
    assert_eq!(all[0].inputs, [Array { shape: vec![1, 2], values: Values::Float(vec![3.0, 4.0]) }]);
}

#[test]
fn numbers_and_tables_stand_beside_a_batch() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.npz");
    let input = |name: &str, dims: &[Dim]| InputSpec { name: name.into(), float: true, shape: Some(dims.to_vec()) };
    let array = |shape: &[usize]| {
        let count = shape.iter().product();
        npy(shape, "<f4", &floats(&(0..count).map(|i: usize| i as f32).collect::<Vec<f32>>()))
    };
    // An input beside 'x', the array for it, and what two of three samples get.
    let tables: [(Vec<Dim>, &[usize], bool); 7] = [
        (vec![], &[], true),
        (vec![], &[3], false),
        (vec![open("length")], &[2], true),
        (vec![open("length")], &[3, 2], false),
        (vec![Dim::Fixed(2), open("n")], &[2, 1], true),
        (vec![Dim::Fixed(1), Dim::Fixed(4)], &[1, 4], true),
        (vec![open("other"), Dim::Fixed(4)], &[5, 4], true),
    ];
    for (dims, shape, whole) in tables {
        let graph = vec![input("x", &[open("n"), open("length")]), input("p", &dims)];
        npz(&path, &[("x", array(&[3, 2])), ("p", array(shape))]);
        let samples = Samples::open(std::slice::from_ref(&path), graph).unwrap();
        assert_eq!((samples.len(), samples.whole()), (3, vec![false, whole]), "{dims:?} {shape:?}");
        let all: Vec<Sample> = samples.iter().collect::<Result<_>>().unwrap();
        let row = if whole { shape } else { &shape[1..] };
        for (at, sample) in all.iter().enumerate() {
            let count = row.iter().product::<usize>();
            let first = if whole { 0 } else { at * count };
            let wanted = Values::Float((first..first + count).map(|i| i as f32).collect());
            assert_eq!(sample.inputs[0].shape, [1, 2]);
            assert_eq!(sample.inputs[1], Array { shape: row.to_vec(), values: wanted }, "{dims:?} {shape:?}");
        }
    }
    // The same axis by its name, but not the same length.
    let graph = vec![input("x", &[open("n"), open("length")]), input("p", &[open("n"), Dim::Fixed(4)])];
    npz(&path, &[("x", array(&[3, 2])), ("p", array(&[5, 4]))]);
    assert!(message(std::slice::from_ref(&path), graph).contains("'x' has 3 samples, but 'p' [5, 4] has 5"));
}

#[test]
fn what_does_not_fit_the_graph_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.npz");
    let x = |shape: &[usize]| npy(shape, "<f4", &floats(&vec![0.0; shape.iter().product()]));
    let two = vec![image().remove(0), InputSpec { name: "mask".into(), float: false, shape: None }];
    let mask = npy(&[3], "|b1", &[0; 3]);
    for (arrays, graph, wanted) in [
        (vec![("y", x(&[1, 2]))], image(), "no array 'x': it holds 'y', but the graph's inputs are 'x' (float [n, 2])"),
        (vec![("x", x(&[1, 3]))], image(), "'x' has the shape [1, 3], but the graph wants 'x' (float [n, 2])"),
        (vec![("x", npy(&[1, 2], "|u1", &[0; 2]))], image(), "'x' holds uint8, but the graph wants floating"),
        (vec![("x", x(&[2, 2])), ("mask", mask.clone())], two.clone(), "'x' has 2 samples, but 'mask' [3] has 3"),
        (vec![("x", x(&[2, 2])), ("label", mask)], image(), "there are 2 samples, but 3 labels [3]"),
        (vec![("x", x(&[0, 2]))], image(), "0 samples were found"),
        (vec![("x", npy(&[3, 2], "<f4", &[0; 20]))], image(), "c.npz, sample 2: 'x' ends before its last sample"),
        (
            vec![("x", npy(&[2, 2], "<f4", &floats(&[0.0, 0.0, 0.0, f32::NAN])))],
            image(),
            "c.npz, sample 1: 'x' holds NaN at [1, 1]",
        ),
    ] {
        npz(&path, &arrays);
        let message = message(std::slice::from_ref(&path), graph);
        assert!(message.contains(wanted), "{wanted}: {message}");
    }
    std::fs::write(&path, "no zip").unwrap();
    assert!(message(std::slice::from_ref(&path), image()).contains("is no whole zip"));
    std::fs::write(dir.path().join("x.npy"), x(&[1, 2])).unwrap();
    assert!(message(&[dir.path().join("x.npy")], two).contains("one array, but the graph has 2 inputs"));
    assert!(message(&[TempDir::new().unwrap().path().into()], image()).contains("there are no .npz or .npy"));
}

#[test]
fn an_open_dimension_has_one_size_for_all_inputs() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.npz");
    let graph = |dims: [&str; 3]| {
        let [batch, a, b] = dims.map(open);
        let x = |name: &str, dim: &Dim| InputSpec {
            name: name.into(),
            shape: Some(vec![batch.clone(), dim.clone()]),
            float: true,
        };
        vec![x("ids", &a), x("mask", &b)]
    };
    let x = |shape: &[usize]| npy(shape, "<f4", &floats(&vec![0.0; shape.iter().product()]));
    npz(&path, &[("ids", x(&[2, 4])), ("mask", x(&[2, 3]))]);
    let open = |dims| Samples::open(std::slice::from_ref(&path), graph(dims)).map(|_| ()).map_err(|e| e.to_string());
    let error = open(["batch", "length", "length"]).unwrap_err();
    assert!(error.ends_with("the graph's dimension 'length' would be 4 in 'ids', but 3 in 'mask'"), "{error}");
    // Others are not said to be the same, and the first counts rows whatever its name.
    assert_eq!(open(["batch", "length", "width"]), Ok(()));
    assert_eq!(open(["length", "length", ""]), Ok(()));
    assert_eq!(open(["", "", ""]), Ok(()));
}

#[test]
fn samples_that_headers_claim_without_numbers_are_not_counted() {
    let dir = TempDir::new().unwrap();
    let paths = ["a.npz", "b.npz", "c.npz"].map(|name| dir.path().join(name));
    let graph = || vec![InputSpec { name: "x".into(), float: false, shape: None }];
    npz(&paths[0], &[("x", npy(&[1 << 60, 0], "|u1", &[]))]);
    let message = message(&paths[..1], graph());
    assert!(message.contains("no numbers for the 1152921504606846976 samples"), "{message}");
    // A cache that is still empty, beside something that is not.
    let two = vec![graph().remove(0), InputSpec { name: "cache".into(), float: true, shape: None }];
    npz(&paths[0], &[("x", npy(&[2, 1], "|u1", &[3, 4])), ("cache", npy(&[2, 0, 4], "<f4", &[]))]);
    assert_eq!(read(&paths[..1], two).unwrap().len(), 2);
    paths.iter().for_each(|path| npz(path, &[("x", npy(&[1 << 63], "|u1", &[1]))]));
    let samples = Samples::open(&paths, graph()).unwrap();
    assert_eq!((samples.len(), samples.iter().nth(1).unwrap().is_err()), (usize::MAX, true));
}

#[test]
fn compressed_arrays_are_read_as_streams() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.npz");
    // As np.savez_compressed writes it: x = [[0 .. 63], [64 .. 127]] in single precision.
    let numbers: Vec<f32> = (0..128).map(|i| i as f32).collect();
    deflated(&path, "x.npy", &npy(&[2, 64], "<f4", &floats(&numbers)));
    let graph = vec![InputSpec { name: "x".into(), float: true, shape: None }];
    let all = read(&[path], graph).unwrap();
    assert_eq!(all[1].inputs[0].values, Values::Float(numbers[64..].to_vec()));
}

/// A zip of one deflated entry, by hand: the `zip` crate is built without compression.
fn deflated(path: &Path, name: &str, bytes: &[u8]) {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    let data = encoder.finish().unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    let mut fields = [20u16, 0, 8, 0, 0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    fields.extend([crc.sum(), data.len() as u32, bytes.len() as u32].iter().flat_map(|x| x.to_le_bytes()));
    fields.extend([name.len() as u16, 0].iter().flat_map(|x| x.to_le_bytes()));
    let local = [b"PK\x03\x04", &fields[..], name.as_bytes(), &data].concat();
    let central = [b"PK\x01\x02\x14\x00", &fields[..], &[0; 14], name.as_bytes()].concat();
    let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
    end.extend([central.len() as u32, local.len() as u32].iter().flat_map(|x| x.to_le_bytes()));
    end.extend([0, 0]);
    std::fs::write(path, [local, central, end].concat()).unwrap();
}
