//! Importance matrices: how large the inputs of each weight's columns are, as llama-imatrix measures it.
//!
//! llama.cpp reads two formats. Today's is a GGUF that holds, for each weight `W`, `W.in_sum2` (the sum of squares of each
//! input column) and `W.counts` (over how many tokens); the older one is a plain list of means.

use super::gguf::{Gguf, MAGIC, TypeLayout};
use super::value::{Array, Value};
use crate::error::{Context, Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// `general.type` of such a GGUF.
pub const TYPE: &str = "imatrix";
/// The texts that the activations came from.
pub const DATASETS: &str = "imatrix.datasets";
/// How many windows of text were seen.
pub const CHUNK_COUNT: &str = "imatrix.chunk_count";
/// Tokens per window.
pub const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// What the name of the sums ends in.
pub const SUMS: &str = ".in_sum2";
/// What the name of the counts ends in.
pub const COUNTS: &str = ".counts";

/// The inputs of many weights.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    /// The texts that the activations came from.
    pub datasets: Vec<String>,
    /// How many windows of text were seen.
    pub chunks: u32,
    /// Tokens per window.
    pub chunk_size: u32,
    /// By the weight's name in GGUF.
    pub entries: BTreeMap<String, Entry>,
}

/// The inputs of one weight, a matrix or a stack of them (one per expert).
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `Σx²` of each column: `[matrices, columns]`.
    pub sums: Vec<f32>,
    /// The tokens that each matrix saw: `[matrices]`.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Adds what the same matrices saw elsewhere.
    pub fn add(&mut self, other: &Entry) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
    }

    /// The mean square of each column of matrix `matrix`, or `None` where it saw no token: `[columns]`.
    pub fn means(&self, matrix: usize) -> Option<Vec<f32>> {
        let columns = self.sums.len() / self.counts.len();
        let count = self.counts[matrix];
        (count > 0.0).then(|| self.sums[matrix * columns..(matrix + 1) * columns].iter().map(|x| x / count).collect())
    }
}

impl Imatrix {
    /// What is known of a tensor's inputs; none where there is nothing under its name. `shape`: `[rows, columns]` of a matrix,
    /// `[matrices, rows, columns]` of a stack of them.
    ///
    /// # Errors
    /// An entry of another shape.
    pub fn entry(&self, name: &str, shape: &[usize]) -> Result<Option<&Entry>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let (matrices, columns) = (entry.counts.len(), entry.sums.len() / entry.counts.len());
        let stacked = if shape.len() > 2 { shape[0] } else { 1 };
        if shape.last() != Some(&columns) || ![1, stacked].contains(&matrices) {
            return Err(Error::new(format!(
                "it has {columns} columns of {matrices} matrices for '{name}', whose shape is {shape:?}"
            ))
            .hint("it was made from another model"));
        }
        Ok(Some(entry))
    }

    /// The error of an importance matrix that has nothing for any tensor of a model.
    pub fn foreign(&self) -> Error {
        let n = self.entries.len();
        Error::new(format!("none of its {n} entries has the name of a tensor of this model"))
            .hint("`llmq inspect` shows both names; it was probably made from another architecture")
    }

    /// Reads either format.
    ///
    /// # Errors
    /// A file that is neither, is damaged, or holds NaN, infinity or a negative number.
    pub fn read(path: &Path) -> Result<Imatrix> {
        let what = || format!("cannot read {} as an importance matrix", path.display());
        let mut start = [0; 4];
        {
            use std::io::Read;
            let mut file = std::fs::File::open(path).context(what)?;
            file.read_exact(&mut start).context(what)?;
        }
        let imatrix = if start == MAGIC { from_gguf(path) } else { from_list(&std::fs::read(path).context(what)?) };
        let imatrix = imatrix.context(what)?;
        imatrix.check().context(what)?;
        Ok(imatrix)
    }

    /// Refuses NaN, infinity and negative numbers.
    fn check(&self) -> Result<()> {
        let all = self
            .entries
            .iter()
            .flat_map(|(name, entry)| entry.sums.iter().chain(&entry.counts).map(move |x| (name, x)));
        match all.into_iter().find(|(_, x)| !(x.is_finite() && **x >= 0.0)) {
            None => Ok(()),
            Some((name, x)) => Err(Error::new(format!("the entry of '{name}' holds {x}"))
                .hint("the model overflowed while it was measured: make the importance matrix again")),
        }
    }

    /// Adds what another one saw.
    ///
    /// # Errors
    /// A weight has another shape there, or a sum is too large.
    pub fn merge(&mut self, mut other: Imatrix) -> Result<()> {
        // The older format counts windows where the newer one counts tokens: the other's windows are taken to be as long.
        match (self.chunk_size, other.chunk_size) {
            (1, n) if n > 1 => self.scale(n),
            (n, 1) if n > 1 => other.scale(n),
            _ => {}
        }
        for (name, entry) in other.entries {
            let Some(own) = self.entries.get_mut(&name) else {
                self.entries.insert(name, entry);
                continue;
            };
            if (own.sums.len(), own.counts.len()) != (entry.sums.len(), entry.counts.len()) {
                let [a, b] = [&*own, &entry].map(|e| format!("{} x {}", e.counts.len(), e.sums.len() / e.counts.len()));
                return Err(Error::new(format!(
                    "'{name}' has inputs of {a} in one importance matrix and of {b} in another"
                ))
                .hint("only importance matrices of the same model can be merged"));
            }
            own.sums.iter_mut().zip(&entry.sums).for_each(|(a, b)| *a += b);
            own.counts.iter_mut().zip(&entry.counts).for_each(|(a, b)| *a += b);
        }
        for dataset in other.datasets {
            if !self.datasets.contains(&dataset) {
                self.datasets.push(dataset);
            }
        }
        self.chunks = self.chunks.saturating_add(other.chunks);
        self.chunk_size = self.chunk_size.max(other.chunk_size);
        self.check()
    }

    fn scale(&mut self, by: u32) {
        for entry in self.entries.values_mut() {
            entry.sums.iter_mut().chain(&mut entry.counts).for_each(|x| *x *= by as f32);
        }
    }
}

fn from_gguf(path: &Path) -> Result<Imatrix> {
    // Other types are let through, so that some other GGUF is told by what it is; their data is never looked at.
    let layout = |id| TypeLayout { name: "F32", block: 1, bytes: if id == 0 { 4 } else { 0 } };
    let file = Gguf::open(path, |id| Some(layout(id)))?;
    let kind = file.get("general.type").and_then(Value::as_str).unwrap_or_default();
    if kind != TYPE {
        return Err(Error::new(format!("its general.type is '{kind}', not '{TYPE}'"))
            .hint("make an importance matrix with `llmq imatrix MODEL -o imatrix.gguf`"));
    }
    let number = |key: &str| match file.get(key).and_then(Value::as_u64) {
        Some(n) if n <= u64::from(u32::MAX) => Ok(n as u32),
        _ => Err(Error::new(format!("there is no number under the key {key}"))),
    };
    let datasets = match file.get(DATASETS).and_then(Value::as_array) {
        Some(Array::Str(names)) => names.clone(),
        _ => return Err(Error::new(format!("there is no list of texts under the key {DATASETS}"))),
    };
    let numbers = |name: &str| -> Option<Vec<f32>> {
        let bytes = file.data(file.tensor(name)?);
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
    };
    let mut entries = BTreeMap::new();
    for info in &file.tensors {
        let Some(name) = info.name.strip_suffix(SUMS) else { continue };
        let sums = numbers(&info.name).unwrap_or_default();
        let counts = numbers(&format!("{name}{COUNTS}"))
            .ok_or_else(|| Error::new(format!("'{name}{SUMS}' is there, but '{name}{COUNTS}' is not")))?;
        if info.type_id != 0 || counts.is_empty() || sums.is_empty() || sums.len() % counts.len() != 0 {
            let (sums, counts) = (sums.len(), counts.len());
            return Err(Error::new(format!("'{name}' has {sums} sums of type F32 for {counts} matrices")));
        }
        entries.insert(name.to_owned(), Entry { sums, counts });
    }
    Ok(Imatrix { datasets, chunks: number(CHUNK_COUNT)?, chunk_size: number(CHUNK_SIZE)?, entries })
}

/// The older format: `i32 n`, then n times `i32 length, name, i32 calls, i32 values, f32[values]`, where the values are means
/// times calls; behind that, where it is not too old, `i32 chunks` and the name of the text.
fn from_list(bytes: &[u8]) -> Result<Imatrix> {
    let mut rest = bytes;
    let mut take = |n: usize| -> Result<&[u8]> {
        let at = bytes.len() - rest.len();
        let (head, tail) = rest.split_at_checked(n).ok_or_else(|| {
            Error::new(format!("{n} bytes should follow byte {at}, but the file ends at byte {}", bytes.len()))
                .hint("it is neither a GGUF nor a complete file of the older format")
        })?;
        rest = tail;
        Ok(head)
    };
    let number = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let size = |n: i32, what: &str| {
        usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| Error::new(format!("it has {n} {what}")))
    };
    let count = size(number(take(4)?), "entries")?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let length = size(number(take(4)?), "bytes of a name")?;
        let name = String::from_utf8_lossy(take(length)?).into_owned();
        let calls = number(take(4)?).max(1) as f32;
        let values = size(number(take(4)?), "values")?;
        let values = take(values.checked_mul(4).ok_or_else(|| Error::new(format!("'{name}' has {values} values")))?)?;
        let sums = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
        entries.insert(name, Entry { sums, counts: vec![calls] });
    }
    let (mut chunks, mut datasets) = (0, Vec::new());
    if let Ok(tail) = take(4) {
        chunks = number(tail).max(0) as u32;
        if let Ok(length) = take(4) {
            let length = size(number(length), "bytes of a text's name")?;
            datasets.push(String::from_utf8_lossy(take(length)?).into_owned());
        }
    }
    // Counted in windows, which it does not know the length of: one token each keeps the means right.
    Ok(Imatrix { datasets, chunks, chunk_size: 1, entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, calls: i32, values: &[f32]) -> Vec<u8> {
        let mut bytes = (name.len() as i32).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Imatrix> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.dat");
        std::fs::write(&path, bytes).unwrap();
        Imatrix::read(&path)
    }

    #[test]
    fn the_older_format_is_read_and_every_cut_is_an_error() {
        let mut bytes = 2i32.to_le_bytes().to_vec();
        bytes.extend(entry("a", 4, &[8.0, 2.0]));
        bytes.extend(entry("b", 1, &[1.0]));
        let bare = bytes.len();
        bytes.extend(7i32.to_le_bytes());
        bytes.extend(5i32.to_le_bytes());
        bytes.extend(b"t.txt");
        let imatrix = read(&bytes).unwrap();
        assert_eq!(imatrix.entries["a"].means(0), Some(vec![2.0, 0.5]));
        assert_eq!((imatrix.chunks, imatrix.datasets), (7, vec!["t.txt".to_owned()]));
        assert_eq!(read(&bytes[..bare]).unwrap().chunks, 0);
        for length in 0..bare {
            assert!(read(&bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(read(&(-1i32).to_le_bytes()).is_err());
        let mut infinite = 1i32.to_le_bytes().to_vec();
        infinite.extend(entry("a", 1, &[f32::INFINITY]));
        assert!(read(&infinite).unwrap_err().chain().join(" ").contains("'a' holds inf"));
    }

    #[test]
    fn merging_adds_sums_and_refuses_other_shapes() {
        let one = |sums: &[f32]| Imatrix {
            datasets: vec!["t".into()],
            chunks: 2,
            chunk_size: 8,
            entries: [("w".to_owned(), Entry { sums: sums.to_vec(), counts: vec![16.0] })].into(),
        };
        let mut sum = one(&[16.0, 32.0]);
        sum.merge(one(&[0.0, 32.0])).unwrap();
        assert_eq!(sum.entries["w"].means(0), Some(vec![0.5, 2.0]));
        assert_eq!((sum.chunks, sum.datasets.len()), (4, 1));
        assert!(sum.merge(one(&[1.0])).unwrap_err().to_string().contains("1 x 2"));
        sum.chunks = u32::MAX;
        sum.merge(one(&[0.0, 0.0])).unwrap();
        assert_eq!(sum.chunks, u32::MAX);
        sum.merge(one(&[f32::MAX, 0.0])).unwrap();
        assert!(sum.merge(one(&[f32::MAX, 0.0])).unwrap_err().to_string().contains("'w' holds inf"));
    }

    #[test]
    fn a_matrix_that_saw_nothing_has_no_means() {
        let entry = Entry { sums: vec![1.0, 2.0, 0.0, 0.0], counts: vec![2.0, 0.0] };
        assert_eq!(entry.means(0), Some(vec![0.5, 1.0]));
        assert_eq!(entry.means(1), None);
    }
}
