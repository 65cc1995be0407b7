//! Embeddings of tokens for each block (Gemma 3n; Gemma 4 E2B and E4B): they depend on the token alone, so they are made once for each token
//! that occurs, and lie in a file from which each block reads its own.

use super::part::{Part, TensorRole};
use super::{Model, Norm, TensorSpec, ops};
use crate::error::{Context, Error, Result};
use candle_core::{Device, Tensor};
use llmq_kernels::gemm::Precision;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex};

impl Part {
    /// An embedding of tokens for all blocks, `[vocab, blocks · width]`.
    pub const PER_LAYER_TOKEN_EMBD: Part = Part("per_layer_token_embd");
    /// From the usual embedding to those for all blocks, `[blocks · width, hidden]`.
    pub const PER_LAYER_MODEL_PROJ: Part = Part("per_layer_model_proj");
    /// The norm behind it, `[width]`.
    pub const PER_LAYER_PROJ_NORM: Part = Part("per_layer_proj_norm");
}

/// How a model makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerLayer {
    /// Numbers for each block.
    pub width: usize,
    /// So many tokens have one of their own; the others have that of token 0.
    pub rows: usize,
    /// The ε of the norm.
    pub eps: f32,
}

/// What is known of the tokens of some windows.
#[derive(Debug)]
pub struct PerLayerInputs {
    /// The tokens, sorted.
    tokens: Vec<u32>,
    width: usize,
    /// `[blocks, tokens, width]`, in single precision.
    file: Mutex<File>,
}

/// Rows of a tensor in a file, decoded.
pub type FileRows<'a> = dyn Fn(&TensorSpec, Range<usize>) -> Result<Vec<f32>> + 'a;

/// Tokens that are worked on at once.
const BATCH: usize = 512;

impl PerLayerInputs {
    /// Makes them for the tokens of some windows; none where the model has no such thing. `read`: rows of a tensor, decoded.
    ///
    /// # Errors
    /// A tensor that is missing or damaged, or a full disk.
    pub fn new(
        model: &Model,
        tokens: impl IntoIterator<Item = u32>,
        read: &FileRows<'_>,
    ) -> Result<Option<Arc<PerLayerInputs>>> {
        let Some(PerLayer { width, eps, .. }) = model.per_layer else { return Ok(None) };
        let mut tokens: Vec<u32> = tokens.into_iter().collect();
        tokens.sort_unstable();
        tokens.dedup();
        let blocks = model.blocks.len();
        let spec = |part: Part| {
            let own = model.per_layer_tensors().into_iter().find(|spec| spec.role == TensorRole::PerLayer(part));
            own.ok_or_else(|| Error::new(format!("the model has no '{}'", part.0)))
        };
        let (embedding, project) = (spec(Part::PER_LAYER_TOKEN_EMBD)?, spec(Part::PER_LAYER_MODEL_PROJ)?);
        let gain = Tensor::from_vec(read(&spec(Part::PER_LAYER_PROJ_NORM)?, 0..1)?, width, &Device::Cpu)?;
        let weight = Tensor::from_vec(read(&project, 0..project.rows())?, project.shape.as_slice(), &Device::Cpu)?;
        let failed = || "cannot keep the tokens' embeddings for each block in a temporary file".to_owned();
        let mut file = tempfile::tempfile().context(failed)?;
        let row_of = |spec: &TensorSpec, token: u32| read(spec, token as usize..token as usize + 1);
        for (batch, own) in tokens.chunks(BATCH).enumerate() {
            let n = own.len();
            let mut x = Vec::with_capacity(n * model.hidden);
            for &token in own {
                x.extend(row_of(&model.embedding(), token)?);
            }
            // Scaled by √hidden as the stream is, and by 1/√hidden behind the layer.
            let scale = model.embedding_scale / (model.hidden as f32).sqrt();
            x.iter_mut().for_each(|x| *x *= scale);
            let x = Tensor::from_vec(x, (n, model.hidden), &Device::Cpu)?;
            let projected = ops::linear(Precision::Single, &x, &weight)?.reshape((n * blocks, width))?;
            let normed = ops::norm(Norm::Rms, &projected, &gain, None, eps)?.flatten_all()?.to_vec1::<f32>()?;
            let factor = (width as f32).sqrt();
            let mut all = vec![0.0f32; n * blocks * width]; // [blocks, n, width]
            for (i, &token) in own.iter().enumerate() {
                let embedded = row_of(&embedding, token)?;
                for block in 0..blocks {
                    let (from, to) = ((i * blocks + block) * width, (block * n + i) * width);
                    for j in 0..width {
                        let sum = normed[from + j] + factor * embedded[block * width + j];
                        all[to + j] = sum * std::f32::consts::FRAC_1_SQRT_2;
                    }
                }
            }
            for (block, numbers) in all.chunks(n * width).enumerate() {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                let at = ((block * tokens.len() + batch * BATCH) * width * 4) as u64;
                file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&bytes)).context(failed)?;
            }
        }
        Ok(Some(Arc::new(PerLayerInputs { tokens, width, file: Mutex::new(file) })))
    }

    /// Those of a block for some tokens, `[tokens, width]`.
    ///
    /// # Errors
    /// A token that they were not made for, or a file that cannot be read.
    pub fn rows(&self, block: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.tokens.len() * self.width * 4];
        {
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let read =
                file.seek(SeekFrom::Start((block * bytes.len()) as u64)).and_then(|_| file.read_exact(&mut bytes));
            read.context(|| format!("cannot read the tokens' embeddings for block {block}"))?;
        }
        let mut rows = Vec::with_capacity(tokens.len() * self.width);
        for token in tokens {
            let at = self.tokens.binary_search(token);
            let at = at.map_err(|_| Error::new(format!("token {token} has no embedding for each block")))?;
            let own = &bytes[at * self.width * 4..(at + 1) * self.width * 4];
            rows.extend(own.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])));
        }
        Ok(rows)
    }
}
