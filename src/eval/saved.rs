//! Saved logits: the base file of llama-perplexity (`--kl-divergence-base`), read and written.
//!
//! All little-endian: `_logits_`; i32 tokens per window `n`, tokens in the vocabulary `V`, windows `w`; i32 tokens
//! `[w · n]`, each window with the first token that the text gives it; then for each scored token, those behind position
//! `n/2` of a window, a row of `2·⌈V/2⌉ + 4` u16: f32 scale, f32 least log-probability, and `V` codes. The logarithm of a
//! token's probability is `scale · code + least`. Logits more than 16 below the largest are clipped to that.

use super::logits::whole_rows;
use crate::error::{Context, Error, Result};
use crate::pipeline::loaded_model::LoadedModel;
use crate::writer::atomic::AtomicFile;
use candle_core::Tensor;
use llmq_kernels::elementwise::log_sum_exp;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What such a file begins with.
const MAGIC: &[u8; 8] = b"_logits_";

/// Bytes before the tokens.
const HEADER: u64 = 20;

/// Bytes of a row before its codes: scale and least log-probability.
const ROW_HEADER: usize = 8;

/// How far below the largest a logit is told apart from others.
const RANGE: f32 = 16.0;

/// The largest code.
const LARGEST: f32 = 65535.0;

/// The sizes that a file's header gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    context: usize,
    vocab: usize,
    windows: usize,
}

impl Sizes {
    /// Scored tokens of a window.
    fn scored(&self) -> usize {
        self.context - 1 - self.context / 2
    }

    /// Bytes of a row.
    fn row(&self) -> u64 {
        4 * (self.vocab as u64).div_ceil(2) + ROW_HEADER as u64
    }

    /// Bytes before the rows.
    fn rows_at(&self) -> u64 {
        HEADER + 4 * self.context as u64 * self.windows as u64
    }

    /// Bytes of the file; sizes of 31 bits cannot overflow `u128`.
    fn bytes(&self) -> u128 {
        let rows = self.windows as u128 * self.scored() as u128;
        u128::from(HEADER) + 4 * self.context as u128 * self.windows as u128 + rows * u128::from(self.row())
    }
}

/// A file of log-probabilities.
#[derive(Debug)]
pub struct SavedLogits {
    path: PathBuf,
    file: File,
    sizes: Sizes,
    windows: Vec<Vec<u32>>,
}

impl SavedLogits {
    /// Whether a file begins like one.
    pub fn is_one(path: &Path) -> bool {
        let mut start = [0; MAGIC.len()];
        path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *MAGIC
    }

    /// Opens a file and reads its tokens.
    ///
    /// # Errors
    /// A file that is none, has another length than its header says, or holds tokens beyond its vocabulary.
    pub fn open(path: &Path) -> Result<SavedLogits> {
        let what = || format!("cannot read {}", path.display());
        let file = File::open(path).context(what)?;
        let found = file.metadata().context(what)?.len();
        let mut reader = BufReader::new(&file);
        let mut header = [0; HEADER as usize];
        match reader.read_exact(&mut header) {
            Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => {
                return Err(bad(path, format!("has {found} bytes, but its header alone has {HEADER}")));
            }
            result => result.context(what)?,
        }
        if header[..8] != *MAGIC {
            return Err(bad(path, "does not begin with \"_logits_\"".into()));
        }
        let [context, vocab, windows] = [8, 12, 16].map(|at| i32_at(&header, at));
        if context < 3 || vocab < 1 || windows < 1 {
            let sizes = format!("{windows} windows of {context} tokens and a vocabulary of {vocab}");
            return Err(bad(path, format!("claims {sizes}, which is impossible")));
        }
        let sizes = Sizes { context: context as usize, vocab: vocab as usize, windows: windows as usize };
        if u128::from(found) != sizes.bytes() {
            let wanted = sizes.bytes();
            let of = format!("{windows} windows of {context} tokens and a vocabulary of {vocab}");
            return Err(bad(path, format!("has {found} bytes, but {of} take {wanted}")));
        }
        let mut bytes = vec![0; 4 * sizes.context * sizes.windows];
        reader.read_exact(&mut bytes).context(what)?;
        let tokens: Vec<i32> = (0..bytes.len()).step_by(4).map(|at| i32_at(&bytes, at)).collect();
        if let Some(at) = tokens.iter().position(|&token| token < 0 || token >= vocab) {
            return Err(bad(path, format!("has token {} at place {at}, but a vocabulary of {vocab}", tokens[at])));
        }
        let windows = tokens.chunks_exact(sizes.context).map(|w| w.iter().map(|&t| t as u32).collect()).collect();
        Ok(SavedLogits { path: path.to_owned(), file, sizes, windows })
    }

    /// Tokens per window.
    pub fn context(&self) -> usize {
        self.sizes.context
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.sizes.vocab
    }

    /// The windows, each with the first token that the text gives it: `[windows][context]`.
    pub fn windows(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// Log-probabilities of some of the vocabulary, at `n` scored tokens from the `from`-th on: `[n, columns]`.
    ///
    /// # Errors
    /// A file that cannot be read, or a row that is none of log-probabilities.
    pub fn rows(&self, from: usize, n: usize, columns: Range<usize>) -> Result<Vec<f32>> {
        let what = || format!("cannot read {}", self.path.display());
        let mut file = &self.file;
        let (width, part) = (columns.len(), ROW_HEADER + 2 * columns.len());
        let mut bytes = vec![0; n * part];
        for (i, row) in bytes.chunks_exact_mut(part).enumerate() {
            let at = self.sizes.rows_at() + self.sizes.row() * (from + i) as u64;
            let (header, codes) = row.split_at_mut(ROW_HEADER);
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(header)).context(what)?;
            file.seek_relative(2 * columns.start as i64).and_then(|()| file.read_exact(codes)).context(what)?;
        }
        for (i, row) in bytes.chunks_exact(part).enumerate() {
            let (scale, least) = row_header(row);
            // No probability is above 1; rounding may make a certain one a little more.
            if !(scale >= 0.0 && least.is_finite() && scale * LARGEST + least < 0.01) {
                let token = from + i;
                let what =
                    format!("gives scored token {token} the scale {scale} and the least log-probability {least}");
                return Err(bad(&self.path, what));
            }
        }
        let mut decoded = vec![0.0; n * width];
        decoded.par_chunks_mut(width).zip(bytes.par_chunks(part)).for_each(|(out, row)| {
            let (scale, least) = row_header(row);
            for (out, code) in out.iter_mut().zip(row[ROW_HEADER..].chunks_exact(2)) {
                *out = scale * f32::from(u16::from_le_bytes([code[0], code[1]])) + least;
            }
        });
        Ok(decoded)
    }

    /// Checks that the probabilities of a scored token's row add up to about one: what is clipped is missing.
    ///
    /// # Errors
    /// They do not.
    pub fn check_total(&self, token: usize, total: f64) -> Result<()> {
        if (0.5..1.01).contains(&total) {
            return Ok(());
        }
        Err(bad(&self.path, format!("gives scored token {token} probabilities that add up to {total:.4}")))
    }
}

fn bad(path: &Path, what: String) -> Error {
    Error::new(format!("{} {what}", path.display())).hint(
        "make it anew: llmq eval MODEL --perplexity --save-logits FILE, or llama-perplexity --kl-divergence-base FILE",
    )
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Scale and least log-probability.
fn row_header(row: &[u8]) -> (f32, f32) {
    let number = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    (number(0), number(4))
}

/// A file in the making.
pub struct Saving {
    file: AtomicFile,
    sizes: Sizes,
}

impl Saving {
    /// Begins the file that will appear at `path`, with windows as [`SavedLogits::windows`] gives them.
    ///
    /// # Errors
    /// Sizes beyond the format's 31 bits, or a file that cannot be written.
    pub fn create(path: &Path, vocab: usize, windows: &[Vec<u32>]) -> Result<Saving> {
        let sizes = Sizes { context: windows.first().map_or(0, Vec::len), vocab, windows: windows.len() };
        let mut bytes = MAGIC.to_vec();
        for n in [sizes.context, vocab, sizes.windows] {
            let n = i32::try_from(n).context(|| format!("{} cannot hold the number {n}", path.display()))?;
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(windows.iter().flatten().flat_map(|token| token.to_le_bytes()));
        let mut file = AtomicFile::create(path)?;
        file.preallocate(u64::try_from(sizes.bytes()).context(|| format!("{} is too large", path.display()))?)?;
        file.write(&bytes)?;
        Ok(Saving { file, sizes })
    }

    /// Appends what a model gives for its last hidden states, `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Saving::append`], or a matrix that cannot be read.
    pub fn append_states(&mut self, loaded: &LoadedModel, hidden: &Tensor) -> Result<()> {
        whole_rows(loaded, hidden, &mut |logits| self.append(logits))
    }

    /// Appends the logits of scored tokens, `[tokens, vocab]`.
    ///
    /// # Errors
    /// Logits that are no numbers, or a file that cannot be written.
    pub fn append(&mut self, logits: &[f32]) -> Result<()> {
        let row = self.sizes.row() as usize;
        let mut bytes = vec![0; logits.len() / self.sizes.vocab * row];
        bytes
            .par_chunks_mut(row)
            .zip(logits.par_chunks(self.sizes.vocab))
            .try_for_each(|(row, logits)| encode(logits, row))?;
        self.file.write(&bytes)
    }

    /// Lets the file appear.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn commit(self) -> Result<()> {
        self.file.commit()
    }
}

/// A row of the file from a row of logits, in the arithmetic of llama-perplexity.
fn encode(logits: &[f32], row: &mut [u8]) -> Result<()> {
    let sum = log_sum_exp(logits);
    if !sum.is_finite() {
        return Err(Error::new(format!("cannot save logits whose exponentials add up to exp({sum})"))
            .hint("the model overflows in its own forward pass; the file is probably damaged"));
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let smallest = logits.iter().copied().fold(f32::INFINITY, f32::min).max(largest - RANGE);
    let least = smallest - largest - (sum - f64::from(largest)) as f32;
    let scale = (largest - smallest) / LARGEST;
    row[..4].copy_from_slice(&scale.to_le_bytes());
    row[4..ROW_HEADER].copy_from_slice(&least.to_le_bytes());
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (code, &logit) in row[ROW_HEADER..].chunks_exact_mut(2).zip(logits) {
        // What is clipped would be below zero; the conversion stops at the ends of the range.
        let nearest = (inverse * (logit - smallest)).round_ties_even() as u16;
        code.copy_from_slice(&nearest.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as its description has it, byte by byte: 2 windows of 5 tokens, 3 tokens in the vocabulary.
    fn golden() -> Vec<u8> {
        let mut bytes = b"_logits_".to_vec();
        for n in [5i32, 3, 2, /* tokens */ 0, 1, 2, 1, 0, 2, 2, 1, 0, 1] {
            bytes.extend(n.to_le_bytes());
        }
        // Behind position 2 of each window: 2 rows each, of 4 + 4 u16.
        for (scale, least, codes) in [
            (0.5f32.powi(14), -4.0f32, [32768u16, 65535, 0]),
            (0.0, -1.0986123, [0, 0, 0]),
            (0.5f32.powi(13), -8.0, [8192, 16384, 65535]),
            (2.441_406e-4, -16.0, [0, 65535, 3]),
        ] {
            bytes.extend(scale.to_le_bytes());
            bytes.extend(least.to_le_bytes());
            codes.iter().chain(&[0]).for_each(|code| bytes.extend(code.to_le_bytes()));
        }
        bytes
    }

    fn opened(bytes: &[u8]) -> Result<SavedLogits> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.kld");
        std::fs::write(&path, bytes).unwrap();
        SavedLogits::open(&path)
    }

    #[test]
    fn the_format_is_read_as_described() {
        let saved = opened(&golden()).unwrap();
        assert_eq!((saved.context(), saved.vocab()), (5, 3));
        assert_eq!(saved.windows(), [[0, 1, 2, 1, 0], [2, 2, 1, 0, 1]]);
        let rows = saved.rows(0, 4, 0..3).unwrap();
        let (even, step) = (-1.0986123, 0.5f32.powi(14));
        assert_eq!(rows[..9], [-2.0, -step, -4.0, even, even, even, -7.0, -6.0, -2.0 * step]);
        assert!((rows[10] - 0.0).abs() < 1e-3 && rows[9] == -16.0, "{rows:?}");
        assert_eq!(saved.rows(1, 2, 1..3).unwrap(), [even, even, -6.0, -2.0 * step]);
    }

    #[test]
    fn what_is_written_is_read_again_as_near_as_codes_allow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.kld");
        let windows = vec![vec![4, 3, 2, 1, 0], vec![1; 5]];
        let logits: Vec<f32> = (0..20).map(|i| (i as f32 * 1.7).sin() * 12.0).collect();
        let mut saving = Saving::create(&path, 5, &windows).unwrap();
        saving.append(&logits[..5]).unwrap();
        saving.append(&logits[5..]).unwrap();
        saving.commit().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 20 + 40 + 4 * 2 * (2 * 3 + 4));
        assert!(SavedLogits::is_one(&path) && !SavedLogits::is_one(folder.path()));
        let saved = SavedLogits::open(&path).unwrap();
        assert_eq!(saved.windows(), windows);
        for (row, logits) in saved.rows(0, 4, 0..5).unwrap().chunks(5).zip(logits.chunks(5)) {
            let sum = log_sum_exp(logits) as f32;
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (saved, logit) in row.iter().zip(logits) {
                let wanted = logit.max(largest - 16.0) - sum;
                assert!((saved - wanted).abs() < 0.51 * 16.0 / 65535.0 + 2e-6, "{saved} {wanted}");
            }
        }
    }

    #[test]
    fn the_codes_are_those_of_llama_perplexity() {
        // Logits 0, ln 3, −20 and 1.1e-4: clipped at ln 3 − 16, a step of 16/65535.
        let logits = [0.0, 3f32.ln(), -20.0, 1.1e-4];
        let mut row = [0xff; 16];
        encode(&logits, &mut row).unwrap();
        let (scale, least) = row_header(&row);
        assert_eq!(scale, 16.0 / 65535.0);
        assert!((least - (-16.0 - (5.0f32 / 3.0).ln())).abs() < 1e-4, "{least}");
        let codes: Vec<u16> = row[8..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        // (16 − ln 3) / step = 61035.1…, and 0.45 of a step more.
        assert_eq!(codes, [61035, 65535, 0, 61036]);
        let mut flat = [0xff; 14];
        encode(&[2.0; 3], &mut flat).unwrap();
        assert_eq!(row_header(&flat), (0.0, -(3f32.ln())));
        assert_eq!(flat[8..], [0; 6]);
        assert!(encode(&[1.0, f32::NAN], &mut [0; 12]).unwrap_err().hint_text().is_some());
    }

    #[test]
    fn damaged_and_hostile_files_are_errors_with_names_and_numbers() {
        let refused = |change: &dyn Fn(&mut Vec<u8>), wanted: &[&str]| {
            let mut bytes = golden();
            change(&mut bytes);
            let error = opened(&bytes).and_then(|saved| saved.rows(0, 4, 0..3)).unwrap_err();
            let (text, hint) = (error.to_string(), error.hint_text());
            assert!(text.contains("base.kld") && hint.is_some(), "{text}");
            assert!(wanted.iter().all(|wanted| text.contains(wanted)), "{text}");
        };
        let put = |at: usize, n: i32| move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
        let number = |at: usize, x: f32| move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&x.to_le_bytes());
        refused(&|bytes| bytes.clear(), &["has 0 bytes", "20"]);
        refused(&|bytes| bytes[0] = b'x', &["does not begin"]);
        refused(&|bytes| bytes.truncate(100), &["has 100 bytes", "2 windows of 5 tokens", "vocabulary of 3", "124"]);
        refused(&|bytes| bytes.push(0), &["has 125 bytes", "124"]);
        refused(&put(8, 2), &["windows of 2 tokens", "impossible"]);
        refused(&put(12, -1), &["vocabulary of -1", "impossible"]);
        refused(&put(16, 0), &["0 windows", "impossible"]);
        // Sizes whose product overflows 64 bits, and would never be allocated.
        refused(&|bytes| [8, 12, 16].iter().for_each(|&at| put(at, i32::MAX)(bytes)), &["has 124 bytes", "2147483647"]);
        refused(&put(24, 3), &["token 3 at place 1", "vocabulary of 3"]);
        refused(&put(24, -7), &["token -7 at place 1"]);
        for (at, x) in [(60, f32::NAN), (60, -1.0), (60, f32::INFINITY), (64, f32::NEG_INFINITY), (64, 1.0)] {
            refused(&number(at, x), &["scored token 0", &x.to_string()]);
        }
    }
}
