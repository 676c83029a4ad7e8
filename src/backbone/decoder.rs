//! The decoder's blocks, on packed rows: no padding, and no block past the last observed one.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::config::{Config, Family};
use super::embedding::Embedding;
use super::pass::{self, Pass, Segment};
use super::rope::Rope;
use crate::checkpoint::{Checkpoint, Values};
use crate::error::{Error, Result, Status};
use crate::kernels::{
    self, Arena, AtOnce, Backend, Form, HeadNorms, Heads, Inputs, KvShape, Linear, LinearLoader,
    Meter, Piece, Pieces, Places, Precision, Rows, TextRows, Vector,
};

/// Where in a block the hidden states are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// The residual stream after the block; after the final norm when the block is the last one,
    /// as in the transformers library's `hidden_states`.
    Residual,
    /// The MLP's output before it is added to the residual stream.
    Mlp,
}

/// Which hidden states an observer is shown.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) site: Site,
    /// Ascending block numbers.
    pub(crate) layers: Vec<usize>,
}

/// Turns joined queries, keys and values into the attention's output, `[rows, query * dim]`, in the form
/// that is asked for; the norms are those of the queries and keys.
pub(super) type Attend<'a> = dyn FnMut(Rows, Option<&HeadNorms>, Form) -> Result<Inputs> + 'a;

/// What a decoder is made from, and how.
pub(crate) struct Plan<'a> {
    pub(crate) checkpoint: &'a Arc<Checkpoint>,
    pub(crate) config: &'a Config,
    pub(crate) observed: &'a Observed,
    pub(crate) backend: &'a Backend,
    pub(crate) precision: Precision,
    /// With [`Precision::Int8`], the tokens that run through each block before its weights are
    /// rounded; nothing else looks at them.
    pub(crate) calibration: &'a [u32],
}

/// A frozen backbone, cut after its last observed block. Immutable and shared by threads.
pub(crate) struct Decoder {
    config: Config,
    observed: Observed,
    embedding: Embedding,
    rope: Rope,
    blocks: Vec<Arc<Block>>,
    /// The final norm, present when it stands before an observed state.
    norm: Option<Vector>,
    backend: Backend,
    precision: Precision,
    chunk_rows: usize,
    arena: Arena,
    at_once: Option<AtOnce>,
}

struct Block {
    input_norm: Vector,
    qkv: Linear,
    head_norms: Option<HeadNorms>,
    output: Linear,
    post_attention_norm: Vector,
    gate_up: Linear,
    down: Linear,
}

impl Decoder {
    /// Loads the blocks up to the last observed one, on the current rayon pool. With `packed`, the
    /// linear layers' weights are all of these pieces of a file, in the order of [`Self::pieces`].
    ///
    /// # Errors
    /// `InvalidModel` for a tensor that is missing or has another shape or dtype than `config`
    /// asks for; `OutOfMemory`; `Internal` where the pieces are not those of this decoder.
    pub(crate) fn load(plan: &Plan<'_>, packed: Option<Pieces>) -> Result<Self> {
        let &Plan { checkpoint, backend, precision, .. } = plan;
        let (config, observed) = (plan.config.clone(), plan.observed.clone());
        let is_calibrated = packed.is_some() || precision != Precision::Int8;
        let (device, dtype) = match backend {
            // Nothing is read through it.
            Backend::Cpu | Backend::Cuda(_) => (Device::Cpu, DType::F32),
            Backend::Candle { device, dtype } => (device.clone(), *dtype),
        };
        // Checkpoints of the bare model lack the prefix.
        let prefix = if checkpoint.contains("model.embed_tokens.weight") { "model" } else { "" };
        let tensors: Box<dyn candle_nn::var_builder::SimpleBackend> = Box::new(&**checkpoint);
        let root = VarBuilder::from_backend(tensors, dtype, device);
        let root = if prefix.is_empty() { root } else { root.pp(prefix) };
        let mut loader = Loader { checkpoint, backend, precision, packed };

        backend.check_heads(config.heads())?;
        let shape = Embedding::shape(&config);
        let name = full_name(&root, "embed_tokens.weight");
        let table = checkpoint.tensor(&name, &shape)?;
        let embedding = match backend {
            Backend::Cpu => Embedding::InFile { checkpoint: checkpoint.clone(), name, shape },
            Backend::Cuda(gpu) => {
                let parts = [(&table.values, shape[0] * shape[1])];
                let table = Arc::new(gpu.weights(parts.into_iter())?);
                Embedding::OnGpu { table, shape }
            }
            Backend::Candle { .. } => {
                Embedding::OnDevice(root.get((shape[0], shape[1]), "embed_tokens.weight")?)
            }
        };
        let last = *observed.layers.last().ok_or_else(|| Error::internal("nothing observed"))?;
        let norm = (observed.site == Site::Residual && last + 1 == config.num_hidden_layers)
            .then(|| loader.vector(&root, "norm.weight", config.hidden_size))
            .transpose()?;
        let rope = Rope::new(&config);
        let chunk_rows = pass::chunk_rows(row_flops(&config), backend, precision);
        let arena = Arena::new(arena_floats(chunk_rows, &config));
        let mut decoder = Self {
            config,
            observed,
            embedding,
            rope,
            blocks: Vec::with_capacity(last + 1),
            norm,
            backend: backend.clone(),
            precision,
            chunk_rows,
            arena,
            at_once: AtOnce::new(backend),
        };
        let mut calibration = (!is_calibrated).then(|| {
            let tokens = plan.calibration.into();
            let text = Segment::new(&decoder, tokens, false, &Meter::default());
            Pass::new(&decoder, vec![text])
        });
        for layer in 0..=last {
            let block = loader.block(&decoder.config, &root.pp("layers").pp(layer))?;
            // Else the mapped file would stand in memory beside its packed copy at the end.
            checkpoint.release_pages();
            decoder.blocks.push(Arc::new(block));
            if let Some(pass) = &mut calibration {
                // As far as there are blocks: through this one.
                while !pass.advance(&decoder, |_| true, &mut |_, _, _, _| Ok(()))? {}
                let block = decoder.blocks.pop().and_then(Arc::into_inner);
                let block = block.ok_or_else(|| Error::internal("a block in use"))?;
                decoder.blocks.push(Arc::new(block.calibrated()?));
            }
        }
        if loader.packed.is_some_and(|mut rest| rest.next().is_some()) {
            return Err(other_pieces());
        }
        Ok(decoder)
    }

    /// Its first block alone, of the same weights, after which the residual stream is observed.
    pub(crate) fn first_block(&self) -> Self {
        Self {
            config: self.config.clone(),
            observed: Observed { site: Site::Residual, layers: vec![0] },
            embedding: self.embedding.clone(),
            rope: self.rope.clone(),
            blocks: self.blocks[..1].to_vec(),
            norm: None,
            backend: self.backend.clone(),
            precision: self.precision,
            chunk_rows: self.chunk_rows,
            arena: self.arena.clone(),
            // What the whole decoder records runs all of its blocks.
            at_once: AtOnce::new(&self.backend),
        }
    }

    /// What a file holds of the linear layers' packed weights, so that [`Self::load`] can take them
    /// up again.
    pub(super) fn pieces(&self) -> Vec<Piece<Cow<'_, [u8]>>> {
        self.blocks.iter().flat_map(|block| block.linears()).flat_map(Linear::pieces).collect()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Blocks that are loaded and run.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of the linear layers' weights in memory; the embedding table is not among them.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes()).sum()
    }

    /// The most rows that run side by side.
    pub(crate) fn chunk_rows(&self) -> usize {
        self.chunk_rows
    }

    /// What activations on the CPU lie in.
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What it runs on.
    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// What the keys and values of all its blocks look like.
    pub(crate) fn kv_shape(&self) -> KvShape {
        let (layers, heads) = (self.blocks.len(), self.config.heads());
        KvShape { layers, heads, precision: self.precision }
    }

    /// Hidden states of `tokens`, which are those of `places`, before the first block, `[tokens,
    /// hidden_size]`.
    pub(super) fn embed(&self, tokens: &[u32], places: &Places) -> Result<Rows> {
        self.embedding.rows(tokens, places, &self.arena)
    }

    /// What runs a few rows at once, where that is done.
    pub(super) fn at_once(&self) -> Option<&AtOnce> {
        self.at_once.as_ref()
    }

    /// Does `layers`, all of them, at once, for rows of `texts` whose tokens are `tokens`.
    pub(super) fn run_at_once<'a>(
        &self,
        texts: impl Iterator<Item = TextRows<'a>> + Clone,
        tokens: &[u32],
        layers: &mut dyn FnMut(&Places) -> Result<()>,
    ) -> Result<()> {
        let at_once = self.at_once().ok_or_else(|| Error::internal("nothing runs at once"))?;
        let (cos, sin) = self.rotations(texts.clone());
        let (tokens, heads) = ((tokens, self.config.vocab_size), self.config.heads());
        at_once.run(texts, tokens, (&cos, &sin), heads, layers)
    }

    fn rotations<'a>(&self, texts: impl Iterator<Item = TextRows<'a>>) -> (Vec<f32>, Vec<f32>) {
        self.rope.rows(texts.flat_map(|text| (text.position..).take(text.rows.len())))
    }

    /// What rows of `texts` are whose tokens are `tokens`.
    pub(super) fn places<'a>(
        &self,
        texts: impl Iterator<Item = TextRows<'a>> + Clone,
        tokens: &[u32],
    ) -> Result<Places> {
        let rotations = self.rotations(texts.clone());
        let tokens = (tokens, self.config.vocab_size);
        Places::new(&self.backend, &self.arena, texts, tokens, rotations, self.config.heads())
    }

    /// Runs one block on packed rows, `[rows, hidden_size]`, in their place, and shows what is
    /// observed of it.
    ///
    /// # Errors
    /// Those of `attend` and `observe`; `OutOfMemory`; `Internal` when the device fails.
    pub(super) fn block(
        &self,
        layer: usize,
        x: &mut Rows,
        attend: &mut Attend<'_>,
        observe: &mut dyn FnMut(&Rows) -> Result<()>,
    ) -> Result<()> {
        let block = &self.blocks[layer];
        let eps = self.config.rms_norm_eps;
        let normed = kernels::rms_norm(x, &block.input_norm, eps, block.qkv.form())?;
        let qkv = block.qkv.forward(&normed)?;
        let attended = attend(qkv, block.head_norms.as_ref(), block.output.form())?;
        let attended = block.output.forward(&attended)?;
        let (norm, form) = (&block.post_attention_norm, block.gate_up.form());
        let normed = kernels::add_and_norm(x, &attended, norm, eps, form)?;
        let gated = block.gate_up.forward_swiglu(&normed, block.down.form())?;
        let mlp = block.down.forward(&gated)?;
        let is_observed = self.observed.layers.binary_search(&layer).is_ok();
        if is_observed && self.observed.site == Site::Mlp {
            observe(&mlp)?;
        }
        kernels::add(x, &mlp)?;
        if is_observed && self.observed.site == Site::Residual {
            match &self.norm {
                Some(norm) if layer + 1 == self.config.num_hidden_layers => {
                    observe(&kernels::rms_norm(x, norm, eps, Form::Rows)?.into_rows()?)?;
                }
                _ => observe(x)?,
            }
        }
        Ok(())
    }
}

impl Block {
    fn calibrated(self) -> Result<Self> {
        Ok(Self {
            qkv: self.qkv.calibrated()?,
            output: self.output.calibrated()?,
            gate_up: self.gate_up.calibrated()?,
            down: self.down.calibrated()?,
            ..self
        })
    }

    /// In the order in which they are loaded.
    fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }

    fn bytes(&self) -> usize {
        self.linears().iter().map(|l| l.bytes()).sum()
    }
}

/// Numbers that are kept between operations: what a block holds, twice, since buffers of one size are
/// not those of another, and what tasks of attention take for themselves.
fn arena_floats(chunk_rows: usize, config: &Config) -> usize {
    const TASK: usize = 1 << 20;
    2 * chunk_rows * activations(config) + TASK * rayon::current_num_threads()
}

/// Numbers that a row takes while a block runs.
fn activations(config: &Config) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let Heads { query, dim, .. } = config.heads();
    3 * hidden + config.heads().qkv() + query * dim + 3 * inner + dim
}

/// Floating-point operations of a block's linear layers for a row.
fn row_flops(config: &Config) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let heads = config.heads();
    2 * hidden * (heads.qkv() + heads.query * heads.dim + 3 * inner)
}

fn full_name(vb: &VarBuilder<'_>, name: &str) -> String {
    let prefix = vb.prefix();
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn other_pieces() -> Error {
    Error::internal("a file of packed weights that are not this backbone's")
}

/// Reads a block's tensors by their names in the checkpoint, packed ones from a file if there is one.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    backend: &'a Backend,
    precision: Precision,
    packed: Option<Pieces>,
}

impl<'a> Loader<'a> {
    fn vector(&self, vb: &VarBuilder<'_>, name: &str, length: usize) -> Result<Vector> {
        let values = self.checkpoint.tensor(&full_name(vb, name), &[length])?.to_f32()?;
        Vector::new(values, self.backend)
    }

    /// Layers that read the same input, joined into one; each is `(name, outputs)`.
    fn linear(
        &mut self,
        vb: &VarBuilder<'_>,
        parts: &[(&str, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Linear> {
        let mut loader = LinearLoader::new(inputs, self.precision);
        for (name, outputs) in parts {
            let part = vb.pp(name);
            if self.packed.is_none() {
                loader.add(self.weight(&part, [*outputs, inputs])?, *outputs);
            }
            if bias {
                let bias = self.checkpoint.tensor(&full_name(&part, "bias"), &[*outputs])?;
                loader.add_bias(&bias.to_f32()?);
            }
        }
        match &mut self.packed {
            Some(pieces) => {
                let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
                loader.mapped(outputs, pieces).ok_or_else(other_pieces)
            }
            None => loader.finish(self.backend),
        }
    }

    /// The weight of a linear layer.
    fn weight(&self, vb: &VarBuilder<'_>, shape: [usize; 2]) -> Result<Values<'a>> {
        let weight = self.checkpoint.tensor(&full_name(vb, "weight"), &shape)?;
        if let Values::Blocks(of, _) = &weight.values
            && (self.precision == Precision::Bf16 || !matches!(self.backend, Backend::Cpu))
        {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "{}: tensor {:?} is quantised ({}): use dtype f32 (auto on a CPU) or int8, on a CPU",
                    weight.file,
                    weight.name,
                    of.name()
                ),
            ));
        }
        Ok(weight.values)
    }

    fn block(&mut self, config: &Config, vb: &VarBuilder<'_>) -> Result<Block> {
        let hidden = config.hidden_size;
        let heads = config.heads();
        let (query, key_value) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let attention = vb.pp("self_attn");
        let mlp = vb.pp("mlp");
        let head_norms = match config.family {
            Family::Qwen3 => Some(HeadNorms {
                query: self.vector(&attention, "q_norm.weight", heads.dim)?,
                key: self.vector(&attention, "k_norm.weight", heads.dim)?,
                eps: config.rms_norm_eps,
            }),
            Family::Llama => None,
        };
        Ok(Block {
            input_norm: self.vector(vb, "input_layernorm.weight", hidden)?,
            qkv: self.linear(
                &attention,
                &[("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)],
                hidden,
                config.attention_bias,
            )?,
            head_norms,
            output: self.linear(&attention, &[("o_proj", hidden)], query, config.attention_bias)?,
            post_attention_norm: self.vector(vb, "post_attention_layernorm.weight", hidden)?,
            gate_up: self.linear(
                &mlp,
                &[("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)],
                hidden,
                config.mlp_bias,
            )?,
            down: self.linear(
                &mlp,
                &[("down_proj", hidden)],
                config.intermediate_size,
                config.mlp_bias,
            )?,
        })
    }
}
