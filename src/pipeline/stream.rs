//! The residual stream of all calibration windows: what lives from block to block.
//!
//! It is in a file, not in memory, so that memory does not grow with the text, and a run can go on after a crash. There are two
//! files: the first half of a block reads one and writes the other, the second half replaces what it reads there, and the
//! first stays as it was before the block, until the journal says that the second is complete.

use super::kept::Kept;
use super::loaded_model::{BATCH, pairing};
use super::plan::Plan;
use super::scratch::{Scratch, WIDTH, from_bf16, hash, to_bf16};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::embedding::Embedding;
use crate::model::frame::Frame;
use crate::model::per_layer::{FileRows, PerLayerInputs};
use crate::model::states::States;
use candle_core::{Device, Tensor};
use llmq_kernels::gemm::Precision;
use llmq_kernels::memory::unwritten;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One window in so many is kept out of every Hessian, where a method has to choose.
const HELD: usize = 8;

/// How exact the layers and statistics of calibration are. They are means over many tokens, and the stream between the blocks is rounded
/// to bfloat16 anyway.
pub const PRECISION: Precision = Precision::Bf16;

/// One batch in so many, of those that are not held out, also goes through the original model: how activations drift is a
/// smooth thing, and running two models is twice the work.
const COMPARED: usize = 4;

/// What the two files are called, and that of the inner activations of a half.
const NAMES: [&str; 3] = ["stream-0", "stream-1", "inner"];

/// The residual stream.
pub struct Stream {
    frame: Frame,
    batches: Vec<Batch>,
    files: [Scratch; 2],
    /// Which of them is read, and which is written.
    read: usize,
    write: usize,
    /// Where inner activations go that are too many for memory.
    inner: PathBuf,
    /// Halves of some blocks read what was in front of the block.
    looks_back: bool,
    /// Numbers of a token of the other streams, where the model has several.
    others: usize,
    /// Numbers of a token that earlier blocks keep for later ones, in what is read and in what is written.
    kept: [usize; 2],
    /// What each block adds for each token, where the model has that: as the file has it, and as the source does.
    per_layer: [Option<Arc<PerLayerInputs>>; 2],
}

/// Some windows.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Kept out of every Hessian.
    pub held: bool,
    /// It goes through the original model, too.
    pub compared: bool,
    windows: usize,
    tokens: Arc<Vec<u32>>,
    /// Numbers of a token: those of all streams, and those that blocks keep.
    columns: usize,
    offset: u64,
}

/// Where a batch is in the model.
pub struct Position {
    /// What is behind the blocks as the file has them.
    pub states: States,
    /// The same in the original model, where a method compares the two.
    pub original: Option<States>,
    /// Both in front of the block, where a later half reads that, too.
    pub before: Option<(States, Option<States>)>,
}

impl Position {
    /// What is in front of the block.
    pub fn before(&self) -> &States {
        self.before.as_ref().map_or(&self.states, |(states, _)| states)
    }

    /// The same in the original model, where that is `original` here.
    pub fn original_before<'a>(&'a self, original: &'a States) -> &'a States {
        self.before.as_ref().and_then(|(_, before)| before.as_ref()).unwrap_or(original)
    }
}

/// What a method asks for.
#[derive(Debug, Clone, Copy)]
pub struct RunNeeds {
    /// Keep some windows out of every Hessian.
    pub hold: bool,
    /// Run the original model, too.
    pub compare: bool,
}

/// The windows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub windows: usize,
    /// They are kept out of every Hessian.
    pub held: bool,
    /// The original model runs on them, too.
    pub compared: bool,
}

impl RunNeeds {
    /// How many of so many windows are held out.
    fn held(self, windows: usize) -> usize {
        if self.hold { windows / HELD } else { 0 }
    }

    /// How windows of `positions` tokens go into batches, those that are held out last.
    pub fn shares(self, windows: usize, positions: usize) -> impl Iterator<Item = Share> {
        let (held, each) = (self.held(windows), (BATCH / positions.max(1)).max(1));
        [(windows - held, false), (held, true)].into_iter().flat_map(move |(count, held)| {
            (0..count.div_ceil(each)).map(move |i| Share {
                windows: each.min(count - i * each),
                held,
                compared: self.compare && (held || i % COMPARED == 0),
            })
        })
    }
}

/// A stream that can be opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its file.
    pub path: PathBuf,
    /// Of each batch, in hexadecimal digits.
    pub hashes: Vec<String>,
    /// Numbers of a token that blocks have kept for later ones.
    #[serde(default)]
    pub kept: usize,
}

/// Rows of the embedding.
#[derive(Default)]
pub struct EmbeddedRows {
    /// As the source has them.
    pub original: Vec<f32>,
    /// As the file has them.
    pub quantized: Vec<f32>,
}

/// Removes the files of a stream. `shared`: the folder that goes away as a whole.
pub(super) fn remove(folder: &Path, shared: &Path) {
    if folder != shared {
        NAMES.iter().for_each(|name| drop(fs::remove_file(named(folder, shared, name))));
    }
}

/// A folder of the user's may hold the streams of several runs.
fn named(folder: &Path, shared: &Path, name: &str) -> PathBuf {
    match folder == shared {
        true => folder.join(name),
        false => folder.join(format!("{}.{name}", shared.file_name().unwrap_or_default().to_string_lossy())),
    }
}

/// Where something may be kept that is gone before inner activations come: in their place. `folder`: that of the streams; `shared`: the
/// run's own.
pub(super) fn spare(folder: &Path, shared: &Path) -> PathBuf {
    named(folder, shared, NAMES[2])
}

impl Stream {
    /// Starts with the embedded tokens. `windows`: `[windows, positions]`; `rows`: the embedding's rows of the `known` tokens
    /// (sorted), as the source and as the file has them, one after the other; `in_file`: those of other tensors. `folder`: where its
    /// files will be, and the run's own folder.
    ///
    /// # Errors
    /// The disk has no room.
    pub fn new(
        plan: &Plan,
        windows: &[Vec<u32>],
        wants: RunNeeds,
        known: &[u32],
        rows: &EmbeddedRows,
        in_file: &FileRows,
        folder: (&Path, &Path),
    ) -> Result<Stream> {
        let (model, positions) = (plan.model()?, windows.first().map_or(1, Vec::len).max(1));
        let hidden = model.hidden;
        let start = Embedding::new(model, positions, &|spec, rows| plan.source.rows(spec, rows))?;
        let mut stream = Stream::laid_out(plan, windows, wants, in_file, folder)?;
        let size = stream.batches.iter().map(|batch| batch.bytes() as u64).sum();
        for file in &stream.files {
            file.reserve(size)?;
        }
        let order = in_order(windows, wants);
        let mut first = 0;
        for i in 0..stream.batches.len() {
            let batch = stream.batches[i].clone();
            let windows = &order[first..first + batch.windows];
            first += batch.windows;
            let embed = |rows: &[f32]| -> Result<States> {
                let mut x = Vec::with_capacity(batch.tokens.len() * hidden);
                for window in windows {
                    let first = x.len();
                    for token in *window {
                        let at = known.binary_search(token).expect("every token's row was kept") * hidden;
                        x.extend_from_slice(&rows[at..at + hidden]);
                    }
                    start.apply(&mut x[first..]);
                }
                start.states(Tensor::from_vec(x, (batch.tokens.len(), hidden), &Device::Cpu)?)
            };
            let original = if batch.compared { Some(embed(&rows.original)?) } else { None };
            let states = embed(&rows.quantized)?;
            stream.put(i, &Position { states, original, before: None })?;
        }
        stream.end_of_block();
        Ok(stream)
    }

    /// Opens a stream that was left behind.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn reopen(
        plan: &Plan,
        windows: &[Vec<u32>],
        wants: RunNeeds,
        place: &Place,
        in_file: &FileRows,
        folder: (&Path, &Path),
    ) -> Result<Stream> {
        let shown = place.path.display();
        let lost = |error: Error| error.hint(format!("start over: rm -r {}", folder.1.display()));
        let mut stream = Stream::laid_out(plan, windows, wants, in_file, folder)?;
        let at = stream.files.iter().position(|file| file.path == place.path);
        let at = at.ok_or_else(|| lost(Error::new(format!("cannot resume: {shown} is no file of this run"))))?;
        (stream.read, stream.write, stream.kept) = (at, 1 - at, [place.kept; 2]);
        for (i, wanted) in place.hashes.iter().enumerate() {
            let batch = stream.batches.get(i).cloned();
            let bytes = batch.map(|batch| stream.files[at].read(batch.offset, batch.bytes())).transpose();
            let bytes = bytes.map_err(|error| lost(Error::new("cannot resume").because(error)))?;
            let hash = bytes.map(|bytes| hash(&bytes));
            if hash.is_none_or(|hash| *wanted != *hash.to_hex()) {
                return Err(lost(Error::new(format!("cannot resume: {shown} is damaged in batch {i}"))));
            }
            stream.files[at].hashes[i] = hash;
        }
        Ok(stream)
    }

    fn laid_out(
        plan: &Plan,
        windows: &[Vec<u32>],
        wants: RunNeeds,
        in_file: &FileRows,
        folder: (&Path, &Path),
    ) -> Result<Stream> {
        let (device, model) = (Device::Cpu, plan.model()?);
        let positions = windows.first().map_or(1, Vec::len).max(1);
        let frame = Frame::new(model, pairing(&plan.source, model), positions, &device)?.with_precision(PRECISION);
        let order = in_order(windows, wants);
        let mut batches: Vec<Batch> = Vec::new();
        for Share { windows, held, compared } in wants.shares(windows.len(), positions) {
            let offset = batches.last().map_or(0, |batch| batch.offset + batch.bytes() as u64);
            let first: usize = batches.iter().map(|batch| batch.windows).sum();
            let tokens = order[first..first + windows].iter().flat_map(|window| window.iter()).copied().collect();
            let (tokens, columns) = (Arc::new(tokens), model.state_columns());
            batches.push(Batch { held, compared, windows, tokens, columns, offset });
        }
        let [a, b, inner] = NAMES.map(|name| named(folder.0, folder.1, name));
        let files = [Scratch::open(&a, batches.len())?, Scratch::open(&b, batches.len())?];
        let looks_back = model.blocks.iter().flat_map(|block| &block.halves).any(|half| half.looks_back());
        let tokens = || windows.iter().flatten().copied();
        let own = PerLayerInputs::new(model, tokens(), in_file)?;
        let original = match wants.compare {
            true => PerLayerInputs::new(model, tokens(), &|spec, rows| plan.source.rows(spec, rows))?,
            false => None,
        };
        let (per_layer, others) = ([own, original], model.other_columns());
        Ok(Stream { frame, batches, files, read: 1, write: 0, inner, looks_back, others, kept: [0; 2], per_layer })
    }

    /// The same with linear layers that are computed there.
    #[must_use]
    pub fn on(self, compute: &Arc<dyn Compute>) -> Stream {
        Stream { frame: self.frame.on(compute), ..self }
    }

    /// What its blocks share.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Its batches, those that are held out last.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Room for inner activations of `columns` numbers of all batches, in memory up to `most` bytes.
    ///
    /// # Errors
    /// The disk has no room.
    pub(super) fn keep(&self, columns: usize, most: usize) -> Result<Kept> {
        let of = |batch: &Batch| (batch.tokens.len(), if batch.compared { batch.tokens.len() } else { 0 });
        Kept::new(columns, self.batches.iter().map(of), most, || Scratch::open(&self.inner, 0))
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.tokens.len()).sum()
    }

    /// Where a batch is.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn get(&self, i: usize) -> Result<Position> {
        let (states, original) = self.in_file(self.read, i)?;
        // Behind the first half of a block, what is written is what is read, and the other file has what was before.
        let second = self.read == self.write;
        let before = (second && self.looks_back).then(|| self.in_file(1 - self.read, i)).transpose()?;
        Ok(Position { states, original, before })
    }

    fn in_file(&self, file: usize, i: usize) -> Result<(States, Option<States>)> {
        let (batch, hidden, others, kept) = (&self.batches[i], self.frame.hidden(), self.others, self.kept[0]);
        let bytes = self.files[file].read(batch.offset, batch.bytes())?;
        let (own, original) = bytes.split_at(batch.section());
        let tensor = |bytes: &[u8], columns: usize| from_bf16(bytes, batch.tokens.len(), columns);
        let states = |bytes: &[u8], per_layer: &Option<Arc<PerLayerInputs>>| -> Result<States> {
            // One behind the other.
            let mut rest = &bytes[batch.tokens.len() * hidden * WIDTH..];
            let mut next = |columns: usize| {
                let (own, behind) = rest.split_at(batch.tokens.len() * columns * WIDTH);
                rest = behind;
                (columns > 0).then(|| tensor(own, columns)).transpose()
            };
            Ok(States {
                h: tensor(bytes, hidden)?,
                others: next(others)?,
                kept: next(kept)?,
                per_layer: per_layer.as_ref().map(|inputs| (inputs.clone(), batch.tokens.clone())),
            })
        };
        let [in_file, in_source] = &self.per_layer;
        let original = if batch.compared { Some(states(original, in_source)?) } else { None };
        Ok((states(own, in_file)?, original))
    }

    /// Moves a batch on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn put(&mut self, i: usize, position: &Position) -> Result<()> {
        let batch = &self.batches[i];
        let mut bytes = unwritten(batch.bytes());
        let (own, original) = bytes.split_at_mut(batch.section());
        let states = |bytes: &mut [u8], states: &States| -> Result<()> {
            let mut rest = bytes;
            for x in [Some(&states.h), states.others.as_ref(), states.kept.as_ref()].into_iter().flatten() {
                let (own, behind) = rest.split_at_mut(x.elem_count() * WIDTH);
                to_bf16(own, x)?;
                rest = behind;
            }
            Ok(())
        };
        states(own, &position.states)?;
        if let Some(other) = &position.original {
            states(original, other)?;
        }
        self.kept[1] = position.states.kept.as_ref().map_or(0, |kept| kept.dims()[1]);
        let file = &mut self.files[self.write];
        file.write(batch.offset, &bytes)?;
        file.hashes[i] = Some(hash(&bytes));
        Ok(())
    }

    /// All batches have been moved by a half of a block that is not its last; the next one goes on from there.
    pub fn end_of_half(&mut self) {
        self.read = self.write;
        self.kept[0] = self.kept[1];
    }

    /// All batches are behind a block.
    pub fn end_of_block(&mut self) {
        self.end_of_half();
        self.write = 1 - self.read;
    }

    /// Makes the stream durable, and says what it takes to open it again.
    ///
    /// # Errors
    /// The disk refuses, or the file has vanished.
    pub fn save(&self) -> Result<Place> {
        let Scratch { path, hashes, .. } = &self.files[self.read];
        self.files[self.read].save()?;
        let hashes = hashes.iter().flatten().map(|hash| hash.to_hex().to_string()).collect();
        Ok(Place { path: path.clone(), hashes, kept: self.kept[0] })
    }
}

impl Batch {
    /// Its bytes in the file.
    fn bytes(&self) -> usize {
        let each = self.section();
        if self.compared { 2 * each } else { each }
    }

    /// Bytes of what one model has.
    fn section(&self) -> usize {
        self.tokens.len() * self.columns * WIDTH
    }
}

/// The windows in the order of the stream: those that are held out come last, and are the first of the text.
fn in_order(windows: &[Vec<u32>], wants: RunNeeds) -> Vec<&Vec<u32>> {
    let held = wants.held(windows.len());
    windows[held..].iter().chain(&windows[..held]).collect()
}
