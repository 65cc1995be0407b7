//! What will be done, from headers alone.

mod keys;
mod planned;
mod unknown;

use super::loaded_model::{gguf_model, gguf_tokenizer};
use super::rotated::{self, Rotated};
use super::weights::{Weights, open_gguf};
use super::{folder, packed};
use crate::error::{Context, Error, Result};
use crate::format;
use crate::format::mix::Facts;
use crate::format::recipe::{Choice, Recipe};
use crate::model::mixer::experts::Experts;
use crate::model::rotation::Rotation;
use crate::model::{Model, TensorRole, TensorSpec, pooling};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::imatrix::Imatrix;
use crate::source::pooling::Reranker;
use crate::source::tokenizer::Tokenizer;
use crate::source::value::Metadata;
use crate::source::vocabulary::Vocabulary;
use crate::writer::gguf::TensorPlan;
use crate::writer::shards::Files;
pub use keys::size_label;
use keys::{general, is_kept};
pub use planned::{Extra, Planned};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use unknown::{facts_by_keys, leave_out_mtp, spec_by_name, specs_of_model};

/// A file that can be made: every tensor was found, has the right shape, and has its type.
pub struct Plan {
    /// Where the weights are.
    pub source: Weights,
    /// Every key of the file.
    pub metadata: Metadata,
    /// The model's tensors, in file order.
    pub tensors: Vec<Planned>,
    /// The name of the mix of types.
    pub mix: &'static str,
    /// Tensors that are no weights; they follow the first tensor.
    pub extra: Vec<Extra>,
    /// What the user should know before it is made.
    pub notes: Vec<String>,
    /// What mixes of types know of the model.
    pub facts: Facts,
    /// Sizes and variations, or why there is no forward pass for this model.
    model: Result<Model>,
    /// The checkpoint's tokenizer; that of a GGUF is made when it is asked for.
    tokenizer: Option<Tokenizer>,
    pre: Option<String>,
    /// The places in `tensors` of each block.
    blocks: Vec<Range<usize>>,
}

/// What a plan is made from, besides the model.
pub struct Request<'a> {
    /// Which tensor gets which type.
    pub recipe: Recipe,
    /// The pre-tokenizer, where its regular expression is not known.
    pub pre: Option<&'a str>,
    /// The method collects statistics.
    pub calibrated: bool,
    /// Blocks for multi-token prediction are kept.
    pub mtp: bool,
    /// An importance matrix and the file that it came from.
    pub imatrix: Option<(&'a Path, &'a Imatrix)>,
    /// Tensors that are quantized already may be quantized again.
    pub requantize: bool,
    /// The model is rotated with the random signs of this seed.
    pub rotate: Option<u64>,
    /// Keys of the file that are replaced or added at the end.
    pub keys: Metadata,
    /// Whether folders are to be made of what the layers become, and nothing else.
    pub folders: Option<Folders>,
}

/// What folders are made beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folders {
    /// A GGUF, whose embedding and output have their usual types.
    BesideGguf,
    /// Nothing: embedding and output stay what they are.
    Alone,
}

impl Plan {
    /// Reads the headers of a checkpoint folder or a GGUF and gives every tensor its type.
    ///
    /// # Errors
    /// A configuration, tokenizer or tensor that is missing, damaged or unsupported; an override that matches nothing; a
    /// tensor that would be quantized twice; an importance matrix of another model; a rotation of what cannot
    /// be rotated.
    pub fn new(path: &Path, request: Request) -> Result<Plan> {
        let (imatrix, calibrated) = (request.imatrix, request.calibrated);
        if request.folders.is_some() && !path.is_dir() {
            return Err(Error::usage(format!(
                "{} is no checkpoint folder, from which alone --format makes another",
                path.display()
            ))
            .hint("start from the original checkpoint, or leave out --format"));
        }
        if request.rotate.is_some() {
            rotated::check(path, imatrix.map(|(from, _)| from))?;
        }
        let mut plan = if path.is_dir() { Plan::of_folder(path, request)? } else { Plan::of_gguf(path, request)? };
        if let Some((from, imatrix)) = imatrix {
            let unknown = plan.check_imatrix(imatrix).context(|| format!("cannot use {}", from.display()))?;
            // Calibration knows its layers itself.
            plan.notes.extend(unknown.filter(|_| !calibrated).map(|unknown| format!("{}: {unknown}", from.display())));
        }
        Ok(plan)
    }

    fn of_folder(folder: &Path, mut request: Request) -> Result<Plan> {
        if request.folders.is_some() {
            folder::check_folder(folder)?;
        }
        let config = Config::open(&folder.join("config.json"))
            .context(|| format!("{} is not a checkpoint folder", folder.display()))?;
        let source = Checkpoint::open(folder)?;
        let (mut original, of_tensors) = Model::of_checkpoint(&config, &source, request.mtp)?;
        let mut vocabulary = Vocabulary::from_files(folder, original.vocab, config.json(), request.pre)?;
        if pooling::has_rerankers(&original)
            && let Some(reranker) = Reranker::of(folder, config.json(), &mut vocabulary)?
        {
            if request.rotate.is_some() {
                return Err(Error::usage("--rotate cannot be used with a reranker").hint("leave --rotate out"));
            }
            reranker.add_prompt(&mut vocabulary);
            pooling::rank(&mut original, &reranker);
        }
        let rotation = request.rotate.map(|seed| Rotation::new(&original, seed)).transpose()?;
        let model = rotation.as_ref().map_or_else(|| original.clone(), Rotation::model);
        let dtypes: HashMap<&str, String> = source.tensors().map(|t| (t.name, t.dtype)).collect();
        let facts = Facts::of(&model, request.knows_importance());
        let single = format::by_name("F32")?;
        let mut tensors = Vec::new();
        for spec in model.tensors() {
            let spec = rotation.as_ref().map_or(spec.clone(), |rotation| rotation.stored(&spec));
            spec.check(&source).map_err(|error| match spec.role {
                TensorRole::Other => error.hint("--no-mtp leaves out the blocks for multi-token prediction"),
                _ => error,
            })?;
            let from = dtypes.get(spec.first_source().as_str()).cloned().unwrap_or_default();
            let mut choice = request.recipe.choose(&spec.gguf, &spec.shape, &facts);
            if request.folders.is_some() && folder::is_layer(&spec) {
                folder::check(&source, &spec, request.recipe.mix().base)?;
            } else if request.folders == Some(Folders::Alone) && choice.is_some() {
                // Numbers that a folder takes from the checkpoint; the run has to see the same.
                choice = Some(Choice::fixed(format::by_name(&from).unwrap_or(single)));
            }
            let Choice { kind, instead_of, raised_from, free } = choice.unwrap_or(Choice::fixed(single));
            let lost = rotation.as_ref().map(|_| "rotated weights are on no grid any more");
            let copied = packed::is_kept(&source, &spec, kind, lost, request.requantize)?;
            tensors.push(Planned { spec, from, kind, instead_of, raised_from, copied, free });
        }
        let extra = model.vectors.iter().cloned().map(|(name, numbers)| Extra { gguf: name.into(), numbers }).collect();
        // Untying makes a file larger, but no other model of it.
        let twice = |spec: &TensorSpec| spec.role == TensorRole::Output && spec.source == original.embedding().source;
        let elements = original.tensors().filter(|spec| !twice(spec)).map(|spec| spec.elements() as u64).sum();
        let (mut metadata, of_keys) = general(folder, &model, elements, &vocabulary.tokens);
        metadata.extend(model.keys.iter().cloned());
        request.stamp(&mut metadata);
        metadata.extend(vocabulary.to_metadata());
        let tokenizer = Some(Tokenizer::open(folder, &vocabulary)?);
        let importance = request.knows_importance();
        let (source, notes) = match rotation {
            None => (Weights::Checkpoint(source), Vec::new()),
            Some(rotation) => {
                let notes = rotated::notes(&original, &tensors, &mut request.recipe, importance);
                (Weights::Rotated(Box::new(Rotated::new(source, rotation))), notes)
            }
        };
        let plan = Plan::finish(source, metadata, (tensors, extra), facts, Ok(model), tokenizer, request)?;
        let notes = [of_tensors, vocabulary.notes, of_keys.into_iter().collect(), notes, plan.notes].concat();
        Ok(Plan { notes, ..plan })
    }

    fn of_gguf(path: &Path, mut request: Request) -> Result<Plan> {
        let source = Weights::Gguf(open_gguf(path)?);
        let file = source.gguf().expect("it has just been opened");
        let model = gguf_model(file);
        let mut metadata: Metadata = file.metadata.iter().filter(|(key, _)| is_kept(key)).cloned().collect();
        let mut of_tensors = None;
        let specs = match &model {
            Ok(model) => {
                let mut specs = specs_of_model(&source, file, model)?;
                if !request.mtp {
                    of_tensors = leave_out_mtp(model, &mut specs, &mut metadata);
                }
                specs
            }
            Err(_) => {
                // As llama.cpp orders them: what belongs to no block first.
                let mut specs: Vec<TensorSpec> = file.tensors.iter().map(spec_by_name).collect();
                specs.sort_by_key(|spec| spec.block);
                specs
            }
        };
        let facts = match &model {
            Ok(model) => Facts::of(model, request.knows_importance()),
            Err(_) => facts_by_keys(file, request.knows_importance()),
        };
        let mut tensors = Vec::new();
        for spec in specs {
            let of = || Error::new(format!("{}: there is no tensor '{}'", path.display(), spec.gguf));
            let from = file.tensor(&spec.gguf).and_then(|info| format::by_id(info.type_id)).ok_or_else(of)?;
            let choice = request.recipe.choose(&spec.gguf, &spec.shape, &facts);
            // More bits would bring nothing back.
            let choice = choice.filter(|choice| choice.raised_from != Some(from));
            let Choice { kind, instead_of, raised_from, free } = choice.unwrap_or(Choice::fixed(from));
            let copied = kind == from;
            if from.is_quantized() && !copied && !request.requantize {
                let (name, from, to) = (&spec.gguf, from.name(), kind.name());
                return Err(Error::new(format!(
                    "{}: tensor '{name}' is {from} already, and {to} would add its own error to that",
                    path.display()
                ))
                .hint("start from the original checkpoint, or accept the loss with --allow-requantize"));
            }
            tensors.push(Planned { spec, from: from.name().into(), kind, instead_of, raised_from, copied, free });
        }
        request.stamp(&mut metadata);
        let plan = Plan::finish(source, metadata, (tensors, Vec::new()), facts, model, None, request)?;
        let notes = of_tensors.into_iter().chain(plan.notes).collect();
        Ok(Plan { notes, ..plan })
    }

    fn finish(
        source: Weights,
        mut metadata: Metadata,
        (tensors, extra): (Vec<Planned>, Vec<Extra>),
        facts: Facts,
        model: Result<Model>,
        tokenizer: Option<Tokenizer>,
        request: Request,
    ) -> Result<Plan> {
        request.recipe.check_all_used()?;
        for (key, value) in request.keys {
            match metadata.iter_mut().find(|(own, _)| *own == key) {
                Some((_, own)) => *own = value,
                None => metadata.push((key, value)),
            }
        }
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for (i, tensor) in tensors.iter().enumerate() {
            match (tensor.spec.block, blocks.last_mut()) {
                (Some(_), Some(last)) if last.end == i && tensors[i - 1].spec.block == tensor.spec.block => {
                    last.end += 1
                }
                (Some(_), _) => blocks.push(i..i + 1),
                (None, _) => {}
            }
        }
        if let Some(model) = model.as_ref().ok().filter(|model| model.looped.is_some()) {
            if request.calibrated && tensors.iter().any(|tensor| tensor.spec.block.is_some() && tensor.is_rounded()) {
                return Err(Error::new(
                    "this model runs its blocks several times, and calibrated methods would see the first run of a block alone",
                )
                .hint("measure all runs with llmq imatrix, and round with --method rtn --imatrix FILE"));
            }
            // Later runs of a block have no tensors of their own.
            let mut own = blocks.into_iter();
            let mut end = 0;
            blocks = Vec::new();
            for i in 0..model.blocks.len() {
                let range = if model.repeats(i).is_some() { None } else { own.next() };
                blocks.push(range.unwrap_or(end..end));
                end = blocks[i].end;
            }
        }
        let (mix, pre) = (request.recipe.mix().name, request.pre.map(str::to_owned));
        let notes = [planned::states_note(&tensors), planned::importance_note(&tensors, facts.importance)];
        let notes = notes.into_iter().flatten().collect();
        Ok(Plan { source, metadata, tensors, mix, extra, notes, facts, model, tokenizer, pre, blocks })
    }

    /// Holds an importance matrix against the tensors; says of which matrices in the blocks it knows nothing, if there are any.
    fn check_imatrix(&self, imatrix: &Imatrix) -> Result<Option<String>> {
        let (mut used, mut rounded, mut unknown) = (0, 0, Vec::new());
        for tensor in &self.tensors {
            let is_known = imatrix.entry(&tensor.spec.gguf, &tensor.spec.shape)?.is_some();
            used += usize::from(is_known);
            if let Some(block) = tensor.spec.block.filter(|_| tensor.is_rounded()) {
                rounded += 1;
                unknown.extend((!is_known).then_some(block));
            }
        }
        if used == 0 {
            return Err(imatrix.foreign());
        }
        let count = unknown.len();
        unknown.dedup();
        let runs = unknown.chunk_by(|block, next| block + 1 == *next).map(|run| match run {
            [only] => format!("blk.{only}"),
            [first, .., last] => format!("blk.{first} to blk.{last}"),
            [] => String::new(),
        });
        let blocks = runs.collect::<Vec<_>>().join(", ");
        Ok((count > 0).then(|| {
            format!("no data for {count} of {rounded} matrices, which are rounded without: those of {blocks}")
        }))
    }

    /// The model, for a method that has to run it.
    ///
    /// # Errors
    /// There is no forward pass for it.
    pub fn model(&self) -> Result<&Model> {
        self.model.as_ref().map_err(|cause| {
            Error::new("a calibrated method has to run the model, and llmq cannot run this one")
                .because(cause.chain().join(": "))
                .hint("round to nearest instead: --method rtn, best with --imatrix")
        })
    }

    /// Whether a tensor's numbers may lie on a type's grid already. Half-precision ones were rounded since they were decoded from
    /// one, if they ever were; rotated ones left it.
    pub fn may_be_on_a_grid(&self, tensor: &Planned) -> bool {
        self.source.is_original() && !["F16", "BF16"].contains(&tensor.from.as_str())
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// A GGUF's vocabulary of a kind that is not supported.
    pub fn with_tokenizer<T>(&self, work: impl FnOnce(&Tokenizer) -> Result<T>) -> Result<T> {
        match (&self.tokenizer, self.source.gguf()) {
            (Some(tokenizer), _) => work(tokenizer),
            (None, Some(file)) => work(&gguf_tokenizer(file, self.model()?, self.pre.as_deref())?),
            (None, None) => Err(Error::new("a checkpoint without a tokenizer")),
        }
    }

    /// The files that will be made. `most`: the largest that a shard may be, in bytes.
    ///
    /// # Errors
    /// Sizes that make no file.
    pub fn files(&self, path: &Path, most: Option<u64>) -> Result<Files> {
        Files::new(path, &self.metadata, self.headers(), most)
    }

    /// The entries of the file's header, in file order.
    fn headers(&self) -> Vec<TensorPlan> {
        let mut headers: Vec<TensorPlan> = self.tensors.iter().map(Planned::header).collect();
        let extra = self.extra.iter().map(|extra| TensorPlan {
            name: extra.gguf.clone(),
            dims: vec![extra.numbers.len() as u64],
            type_id: 0,
            bytes: 4 * extra.numbers.len() as u64,
        });
        headers.splice(1..1, extra);
        headers
    }

    /// Numbers in all tensors.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(|t| t.spec.elements() as u64).sum()
    }

    /// The tensors before the blocks; the embedding is the first.
    pub fn head(&self) -> &[Planned] {
        &self.tensors[..self.blocks.first().map_or(self.tensors.len(), |b| b.start)]
    }

    /// The tensors of each block; none where it repeats an earlier one.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &[Planned]> {
        self.blocks.iter().map(|range| &self.tensors[range.clone()])
    }

    /// The tensors behind the blocks.
    pub fn tail(&self) -> &[Planned] {
        &self.tensors[self.blocks.last().map_or(self.tensors.len(), |b| b.end)..]
    }

    /// Whether a layer of a block is rounded to codes, so that a method has something to do.
    pub fn has_grids(&self) -> bool {
        let is_layer = |t: &Planned| t.spec.site().is_some() || t.spec.is_of_experts();
        self.tensors.iter().any(|t| t.is_rounded() && (is_layer(t) || self.model.is_err()))
    }

    /// The experts of a block, if it has some.
    pub fn experts(&self, block: usize) -> Option<&Experts> {
        let block = self.model.as_ref().ok()?.blocks.get(block)?;
        block.mixers().find_map(|mixer| mixer.experts())
    }

    /// Multiplications per token in the layers among these tensors.
    pub fn work<'t>(&self, tensors: impl IntoIterator<Item = &'t Planned>) -> u64 {
        tensors.into_iter().map(|tensor| self.multiplications(&tensor.spec)).sum()
    }

    /// Multiplications of a layer for one token.
    pub fn multiplications(&self, spec: &TensorSpec) -> u64 {
        let elements = spec.elements() as u64;
        match spec.block.and_then(|block| self.experts(block)) {
            Some(experts) if spec.is_of_experts() => elements * experts.used as u64 / experts.count.max(1) as u64,
            _ if spec.site().is_some() => elements,
            _ => 0,
        }
    }
}

impl Request<'_> {
    fn knows_importance(&self) -> bool {
        self.calibrated || self.imatrix.is_some()
    }
}
