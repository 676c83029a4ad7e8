//! What the kernels compute, as plain code with the same indexing: what they are tested against, and
//! what is itself tested against candle's operations.

use std::ops::Range;

use crate::kernels::Heads;
use crate::kernels::kv::PAGE_TOKENS;

/// A text's rows in a chunk, and its pages, `[layers, 2, key_value, PAGE_TOKENS, dim]` each.
pub(super) struct Text {
    pub(super) rows: Range<usize>,
    pub(super) position: usize,
    pub(super) layer_stride: usize,
    pub(super) pages: Vec<Vec<f32>>,
}

impl Text {
    /// Where a token's keys (`part` 0) or values (1) of one head begin.
    fn at(
        &self,
        token: usize,
        layer: usize,
        part: usize,
        head: usize,
        heads: Heads,
    ) -> (usize, usize) {
        let head = part * heads.key_value + head;
        let at = layer * self.layer_stride + (head * PAGE_TOKENS + token % PAGE_TOKENS) * heads.dim;
        (token / PAGE_TOKENS, at)
    }
}

pub(super) fn embed(table: &[f32], width: usize, tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|&t| table[t as usize * width..][..width].to_vec()).collect()
}

/// Adds `y`, where there is one, to `x`, and returns the norm; `round` is what storing does.
pub(super) fn norm(
    x: &mut [f32],
    y: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
    round: fn(f32) -> f32,
) -> Vec<f32> {
    if let Some(y) = y {
        add(x, y, round);
    }
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| round(v * scale * w)).collect::<Vec<_>>()
        })
        .collect()
}

/// Rows, or one that is added to each.
pub(super) fn add(x: &mut [f32], y: &[f32], round: fn(f32) -> f32) {
    for (i, x) in x.iter_mut().enumerate() {
        *x = round(*x + y[i % y.len()]);
    }
}

pub(super) fn gate(gate_up: &[f32], width: usize, round: fn(f32) -> f32) -> Vec<f32> {
    gate_up
        .chunks_exact(2 * width)
        .flat_map(|row| {
            let (gate, up) = row.split_at(width);
            gate.iter().zip(up).map(|(g, u)| round(g / (1.0 + (-g).exp()) * u)).collect::<Vec<_>>()
        })
        .collect()
}

/// Queries in their place, keys and values into the texts' pages.
pub(super) fn rotate(
    qkv: &mut [f32],
    texts: &mut [Text],
    layer: usize,
    (cos, sin): (&[f32], &[f32]),
    norms: Option<(&[f32], &[f32], f32)>,
    heads: Heads,
    round: fn(f32) -> f32,
) {
    let Heads { query, key_value, dim } = heads;
    let half = dim / 2;
    for text in texts {
        for row in text.rows.clone() {
            for head in 0..query + 2 * key_value {
                let mut x = qkv[row * heads.qkv() + head * dim..][..dim].to_vec();
                if head < query + key_value {
                    if let Some((query_norm, key_norm, eps)) = norms {
                        let weight = if head < query { query_norm } else { key_norm };
                        x = norm(&mut x, None, weight, eps, |v| v);
                    }
                    for i in 0..half {
                        let (a, b) = (x[i], x[i + half]);
                        let (cos, sin) = (cos[row * half + i], sin[row * half + i]);
                        x[i] = round(a * cos - b * sin);
                        x[i + half] = round(b * cos + a * sin);
                    }
                }
                if head < query {
                    qkv[row * heads.qkv() + head * dim..][..dim].copy_from_slice(&x);
                } else {
                    let (part, head) = ((head - query) / key_value, (head - query) % key_value);
                    let token = text.position + row - text.rows.start;
                    let (page, at) = text.at(token, layer, part, head, heads);
                    text.pages[page][at..at + dim].copy_from_slice(&x);
                }
            }
        }
    }
}

/// Causal attention of the queries of `qkv` over the texts' pages.
pub(super) fn attention(
    qkv: &[f32],
    texts: &[Text],
    layer: usize,
    heads: Heads,
    round: fn(f32) -> f32,
) -> Vec<f32> {
    let Heads { query, key_value, dim } = heads;
    let mut out = vec![0.0; qkv.len() / heads.qkv() * query * dim];
    for text in texts {
        for row in text.rows.clone() {
            let keys = text.position + row - text.rows.start + 1;
            for head in 0..query {
                let kv_head = head / (query / key_value);
                let q = &qkv[row * heads.qkv() + head * dim..][..dim];
                let scores: Vec<f32> = (0..keys)
                    .map(|token| {
                        let (page, at) = text.at(token, layer, 0, kv_head, heads);
                        let key = &text.pages[page][at..at + dim];
                        q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() / (dim as f32).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f32 = weights.iter().sum();
                let out = &mut out[(row * query + head) * dim..][..dim];
                for (token, weight) in weights.iter().enumerate() {
                    let (page, at) = text.at(token, layer, 1, kv_head, heads);
                    for (out, v) in out.iter_mut().zip(&text.pages[page][at..at + dim]) {
                        *out += weight / sum * v;
                    }
                }
                out.iter_mut().for_each(|v| *v = round(*v));
            }
        }
    }
    out
}
