//! Files as `torch.save` writes them.

use super::packing::Raw;
use safetensors::tensor::Dtype;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A tensor by name; `turned`: a matrix that lies column by column.
pub struct Saved<'a> {
    pub name: &'a str,
    pub raw: &'a Raw,
    pub turned: bool,
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn numbers(all: &[usize]) -> Vec<u8> {
    let each = all.iter().flat_map(|&n| [b"J", &(n as i32).to_le_bytes()[..]].concat());
    [b"(".to_vec(), each.collect(), b"t".to_vec()].concat()
}

/// The bytes of a file of these tensors.
pub fn saved(tensors: &[Saved]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\0)Rq\x01(".to_vec();
    for (key, Saved { name, raw, turned }) in tensors.iter().enumerate() {
        let class = match raw.dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            Dtype::I32 => "IntStorage",
            other => panic!("no test needs {other:?}"),
        };
        let mut strides = vec![1; raw.shape.len()];
        for d in (1..raw.shape.len()).rev() {
            strides[d - 1] = strides[d] * raw.shape[d];
        }
        if *turned {
            strides = vec![1, raw.shape[0]];
        }
        pickle.extend(
            [
                text(name),
                b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
                text("storage"),
                format!("ctorch\n{class}\n").into_bytes(),
                text(&key.to_string()),
                text("cpu"),
                [b"J", &(raw.shape.iter().product::<usize>() as i32).to_le_bytes()[..], b"tQK\0"].concat(),
                numbers(&raw.shape),
                numbers(&strides),
                b"\x89h\0)RtR".to_vec(),
            ]
            .concat(),
        );
    }
    pickle.extend(b"u}X\x09\0\0\0_metadatah\x01sb.");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut put = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("pytorch_model/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    put("data.pkl", &pickle);
    for (key, Saved { raw, turned, .. }) in tensors.iter().enumerate() {
        let width = raw.bytes.len() / raw.shape.iter().product::<usize>();
        let number = |i: usize, j: usize| &raw.bytes[(i * raw.shape[1] + j) * width..][..width];
        let bytes = match turned {
            true => {
                (0..raw.shape[1]).flat_map(|j| (0..raw.shape[0]).flat_map(move |i| number(i, j))).copied().collect()
            }
            false => raw.bytes.clone(),
        };
        put(&format!("data/{key}"), &bytes);
    }
    put("version", b"3\n");
    zip.finish().unwrap().into_inner()
}
