//! The decoder's operations from candle's own: what runs on every device that has no fused code.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Heads, Kv, Span};

/// Queries whose scores are held at once, so that a long text needs no `[heads, n, n]` tensor.
const QUERY_CHUNK: usize = 256;

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
    wide.broadcast_div(&(mean + eps)?.sqrt()?)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

pub(super) fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let half = gate_up.dim(D::Minus1)? / 2;
    gate_up.narrow(D::Minus1, 0, half)?.silu()? * gate_up.narrow(D::Minus1, half, half)?
}

pub(super) fn norm_and_rotate(
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    // Weights of the query's and the key's norm, and epsilon.
    norms: Option<(&Tensor, &Tensor, f64)>,
    heads: Heads,
) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let cos = cos.to_dtype(qkv.dtype())?.unsqueeze(1)?;
    let sin = sin.to_dtype(qkv.dtype())?.unsqueeze(1)?;
    let part = |start: usize, count: usize, weight: Option<&Tensor>| -> Result<Tensor> {
        let x = qkv.narrow(1, start * heads.dim, count * heads.dim)?;
        let x = x.reshape((tokens, count, heads.dim))?;
        let x = match (weight, norms) {
            (Some(weight), Some((_, _, eps))) => rms_norm(&x, weight, eps)?,
            _ => x,
        };
        let half = heads.dim / 2;
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 2)?.reshape((tokens, count * heads.dim))
    };
    let query = part(0, heads.query, norms.map(|(query, _, _)| query))?;
    let key = part(heads.query, heads.key_value, norms.map(|(_, key, _)| key))?;
    let value_start = (heads.query + heads.key_value) * heads.dim;
    let value = qkv.narrow(1, value_start, heads.key_value * heads.dim)?;
    Tensor::cat(&[query, key, value], 1)
}

pub(super) fn attention(qkv: &Tensor, spans: &[Span<'_>], heads: Heads) -> Result<Tensor> {
    let mut rows = Vec::new();
    for Span { rows: span, position, kv, layer } in spans {
        let Kv::Tensors(kv) = kv else {
            candle_core::bail!("keys of the CPU for attention on another device")
        };
        let (keys, values) = kv.layer(*layer)?;
        rows.push(attend(&qkv.narrow(0, span.start, span.len())?, keys, values, *position, heads)?);
    }
    Tensor::cat(&rows, 0)
}

/// Causal attention of `n` tokens of one text, the first of which stands at `position`:
/// `[n, qkv]` to `[n, query * dim]`.
fn attend(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    position: usize,
    heads: Heads,
) -> Result<Tensor> {
    let n = qkv.dim(0)?;
    let split = |x: &Tensor, count: usize| -> Result<Tensor> {
        x.reshape((x.dim(0)?, count, heads.dim))?.transpose(0, 1)?.contiguous()
    };
    let group = heads.query / heads.key_value;
    // [key_value, group * n, dim]: the queries that share a key head side by side.
    let query = split(&qkv.narrow(1, 0, heads.query * heads.dim)?, heads.query)?;
    let key = split(keys, heads.key_value)?;
    let value = split(values, heads.key_value)?;
    let scale = 1.0 / (heads.dim as f64).sqrt();
    let mut chunks = Vec::new();
    for start in (0..n).step_by(QUERY_CHUNK) {
        let count = QUERY_CHUNK.min(n - start);
        let seen = position + start + count;
        let q = query.narrow(1, start, count)?.contiguous()?;
        let q = q.reshape((heads.key_value, group * count, heads.dim))?;
        let k = key.narrow(1, 0, seen)?.transpose(1, 2)?.contiguous()?;
        let scores = (q.matmul(&k)? * scale)?.to_dtype(DType::F32)?;
        let scores = scores.reshape((heads.query, count, seen))?;
        let mask = causal_mask(position + start, count, seen, qkv.device())?;
        let weights = candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)?;
        let weights = weights.to_dtype(qkv.dtype())?;
        let weights = weights.reshape((heads.key_value, group * count, seen))?;
        let out = weights.matmul(&value.narrow(1, 0, seen)?.contiguous()?)?;
        chunks.push(out.reshape((heads.query, count, heads.dim))?);
    }
    Tensor::cat(&chunks, 1)?.transpose(0, 1)?.reshape((n, heads.query * heads.dim))
}

/// 0 where query `start + i` may see key `j`, minus infinity elsewhere: `[count, seen]`.
fn causal_mask(start: usize, count: usize, seen: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..count)
        .flat_map(|i| (0..seen).map(move |j| if j > start + i { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (count, seen), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::kv::{PAGE_TOKENS, Tensors};
    use crate::kernels::{
        self, Arena, Backend, Form, HeadNorms, Inputs, Joined, KvShape, Meter, Places, Precision,
        Rows, Vector,
    };

    const HEADS: Heads = Heads { query: 6, key_value: 2, dim: 20 };
    /// Such as tiles take.
    const WHOLE_HEADS: [Heads; 2] =
        [Heads { query: 4, key_value: 2, dim: 64 }, Heads { query: 3, key_value: 3, dim: 32 }];

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// A copy for the fused code.
    fn fused(x: &Tensor) -> Rows {
        let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        Rows::copied(&Arena::new(1 << 20), &values, x.dim(1).unwrap()).unwrap()
    }

    fn on_device(x: &Tensor) -> Rows {
        Rows::on_device(x.clone()).unwrap()
    }

    /// What fused code computed.
    fn tensor(x: &Rows) -> Tensor {
        Tensor::from_slice(x.cpu().unwrap(), (x.rows(), x.width()), &Device::Cpu).unwrap()
    }

    fn plain_rows(x: crate::error::Result<Inputs>) -> Rows {
        x.unwrap().into_rows().unwrap()
    }

    fn vector(x: &Tensor) -> Vector {
        Vector::Cpu(x.flatten_all().unwrap().to_vec1().unwrap())
    }

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0f32, 1.5, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn fused_norm_and_swiglu_equal_candles_operations() {
        for (rows, columns) in [(1, 6), (5, 16), (40, 34), (33, 130)] {
            let x = random(rows, columns);
            let weight = random(1, columns).flatten_all().unwrap();
            let ours =
                plain_rows(kernels::rms_norm(&fused(&x), &vector(&weight), 1e-5, Form::Rows));
            assert!(worst(&tensor(&ours), &rms_norm(&x, &weight, 1e-5).unwrap()) < 1e-5);
            let (y, mut sum) = (random(rows, columns), fused(&x));
            let weights = vector(&weight);
            let ours = kernels::add_and_norm(&mut sum, &fused(&y), &weights, 1e-5, Form::Rows);
            let ours = plain_rows(ours);
            let plain = (&x + &y).unwrap();
            assert_eq!(worst(&tensor(&sum), &plain), 0.0);
            assert!(worst(&tensor(&ours), &rms_norm(&plain, &weight, 1e-5).unwrap()) < 1e-5);
            let ours = plain_rows(kernels::silu_mul(&fused(&x), Form::Rows));
            assert!(worst(&tensor(&ours), &silu_mul(&x).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn sums_and_relu_in_place_equal_candles_operations() {
        for rows in [1, 40, 600] {
            let (x, y) = (random(rows, 130), random(rows, 130));
            let plain = (&x + &y).unwrap();
            let mut ours = fused(&x);
            kernels::add(&mut ours, &fused(&y)).unwrap();
            assert_eq!(worst(&tensor(&ours), &plain), 0.0);
            let mut ours = fused(&x);
            kernels::relu(&mut ours).unwrap();
            assert_eq!(worst(&tensor(&ours), &x.relu().unwrap()), 0.0);
        }
        assert!(kernels::add(&mut fused(&random(2, 3)), &fused(&random(3, 3))).is_err());
        let weight = vector(&random(1, 4));
        assert!(kernels::rms_norm(&fused(&random(2, 3)), &weight, 1e-5, Form::Rows).is_err());
    }

    #[test]
    fn fused_rotation_equals_candles_operations() {
        let tokens = 37;
        let qkv = random(tokens, HEADS.qkv());
        let angles = random(tokens, HEADS.dim / 2);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let weights = random(2, HEADS.dim);
        let (query, key) = (weights.get(0).unwrap(), weights.get(1).unwrap());
        let norms = HeadNorms { query: vector(&query), key: vector(&key), eps: 1e-6 };
        for (norms, plain) in [(None, None), (Some(&norms), Some((&query, &key, 1e-6)))] {
            let plain = norm_and_rotate(&qkv, &cos, &sin, plain, HEADS).unwrap();
            let places = Places::Rotations(fused(&cos), fused(&sin));
            let joined = Joined::new(fused(&qkv), &places, norms, HEADS).unwrap();
            let view = joined.view().unwrap();
            let mut ours = vec![];
            let mut head = vec![0.0; HEADS.dim];
            for row in 0..tokens {
                for i in 0..HEADS.query {
                    view.query(row, i, &mut head);
                    ours.extend_from_slice(&head);
                }
                for i in 0..HEADS.key_value {
                    view.key(row, i, &mut head);
                    ours.extend_from_slice(&head);
                }
                (0..HEADS.key_value).for_each(|i| ours.extend_from_slice(view.value(row, i)));
            }
            let ours = Tensor::from_vec(ours, plain.shape(), &Device::Cpu).unwrap();
            assert!(worst(&ours, &plain) < 1e-5);
        }
    }

    /// Texts side by side, each run in two parts: `(length, length of the first part)`.
    #[test]
    fn fused_attention_equals_candles_operations() {
        let texts = [
            vec![(1, 0)],
            vec![(2, 1), (1, 0)],
            vec![(70, 64), (3, 0), (64, 17)],
            vec![(300, 130)],
            vec![(1, 0), (129, 128), (31, 16)],
            vec![(257, 0)],
        ];
        // Scores of 30 have units in the last place of 2e-6.
        let f32 = (Precision::F32, 5e-5);
        for texts in &texts {
            compare_attention(texts, HEADS, f32);
            for heads in WHOLE_HEADS {
                compare_attention(texts, heads, f32);
                compare_attention(texts, heads, (Precision::Bf16, 0.1));
            }
        }
    }

    /// Joined rows of a text whose keys from 128 on have scores well above those before.
    fn rising(length: usize, heads: Heads) -> Tensor {
        let mut rows = random(length, heads.qkv()).to_vec2::<f32>().unwrap();
        for (position, row) in rows.iter_mut().enumerate() {
            let (queries, others) = row.split_at_mut(heads.query * heads.dim);
            queries.iter_mut().step_by(heads.dim).for_each(|x| *x = 8.0);
            let keys = others[..heads.key_value * heads.dim].iter_mut().step_by(heads.dim);
            keys.for_each(|x| *x = (position / 128 * 8) as f32);
        }
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    fn compare_attention(
        texts: &[(usize, usize)],
        heads: Heads,
        (precision, most): (Precision, f32),
    ) {
        let shape = KvShape { layers: 2, heads, precision };
        let meter = Meter::default();
        let mut all: Vec<_> = texts
            .iter()
            .map(|&(length, first)| {
                let mut kvs = [
                    Kv::new(shape, &Backend::Cpu, &meter),
                    Kv::Tensors(Tensors::new(shape, 1, &meter)),
                ];
                let text = rising(length, heads);
                let known = first;
                let first = text.narrow(0, 0, known).unwrap();
                let rest = text.narrow(0, known, length - known).unwrap();
                for (kv, rows) in kvs.iter_mut().zip([fused, on_device]) {
                    let rows = |x: &Tensor| Joined::rotated(rows(x), heads);
                    kv.reserve(0, length).unwrap();
                    if known > 0 {
                        kv.store(1, 0, &rows(&first), 0..known).unwrap();
                    }
                    kv.store(1, known, &rows(&rest), 0..length - known).unwrap();
                }
                (kvs, known, rest)
            })
            .collect();
        let rows: Vec<&Tensor> = all.iter().map(|(_, _, rest)| rest).collect();
        let qkv = Tensor::cat(&rows, 0).unwrap();
        let spans = |which: usize| -> Vec<Span<'_>> {
            let mut at = 0;
            all.iter()
                .map(|(kvs, position, rest)| {
                    let rows = at..at + rest.dim(0).unwrap();
                    at = rows.end;
                    Span { rows, position: *position, kv: &kvs[which], layer: 1 }
                })
                .collect()
        };
        let plain = attention(&qkv, &spans(1), heads).unwrap();
        let ours = plain_rows(kernels::attention(
            &Joined::rotated(fused(&qkv), heads),
            &spans(0),
            Form::Rows,
        ));
        let worst = worst(&tensor(&ours), &plain);
        assert!(worst < most, "{texts:?} {heads:?} {precision:?}: {worst}");
        all.clear();
        assert_eq!(meter.bytes(), 0);
    }

    /// However a text is shared out to chunks, and whatever stands beside it.
    #[test]
    fn attention_of_a_row_has_the_same_bits_in_any_chunk() {
        let length = 203;
        for (heads, precision) in [HEADS, WHOLE_HEADS[0], WHOLE_HEADS[1]]
            .into_iter()
            .flat_map(|heads| [Precision::F32, Precision::Bf16].map(|p| (heads, p)))
        {
            let shape = KvShape { layers: 1, heads, precision };
            let text = random(length, heads.qkv());
            let run = |cuts: &[usize], threads: usize| -> Vec<f32> {
                let mut kv = Kv::new(shape, &Backend::Cpu, &Meter::default());
                kv.reserve(0, length).unwrap();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut out = vec![];
                for part in cuts.windows(2) {
                    let count = part[1] - part[0];
                    let qkv = fused(&text.narrow(0, part[0], count).unwrap());
                    let qkv = Joined::rotated(qkv, heads);
                    kv.store(0, part[0], &qkv, 0..count).unwrap();
                    let span = Span { rows: 0..count, position: part[0], kv: &kv, layer: 0 };
                    let rows = pool.install(|| kernels::attention(&qkv, &[span], Form::Rows));
                    out.extend_from_slice(plain_rows(rows).cpu().unwrap());
                }
                out
            };
            let whole = run(&[0, length], 1);
            for cuts in [&[0, 1, 2, 130, 147, 203][..], &[0, 16, 128, 129, 203], &[0, 100, 203]] {
                assert!(run(cuts, 3) == whole, "{heads:?} {precision:?} {cuts:?}");
            }
        }
    }

    /// Tokens that were forgotten leave their numbers in a page; they may be none.
    #[test]
    fn attention_reads_nothing_past_a_texts_end() {
        for (heads, precision) in [HEADS, WHOLE_HEADS[0]]
            .into_iter()
            .flat_map(|heads| [Precision::F32, Precision::Bf16].map(|p| (heads, p)))
        {
            let shape = KvShape { layers: 1, heads, precision };
            let nothing = (random(40, heads.qkv()) * f64::NAN).unwrap();
            for length in [1, 15, 16, 19, 33] {
                let text = Joined::rotated(fused(&random(length, heads.qkv())), heads);
                let run = |forgotten: bool| {
                    let mut kv = Kv::new(shape, &Backend::Cpu, &Meter::default());
                    kv.reserve(0, 40).unwrap();
                    if forgotten {
                        let nothing = Joined::rotated(fused(&nothing), heads);
                        kv.store(0, 0, &nothing, 0..40).unwrap();
                    }
                    kv.store(0, 0, &text, 0..length).unwrap();
                    let span = Span { rows: 0..length, position: 0, kv: &kv, layer: 0 };
                    plain_rows(kernels::attention(&text, &[span], Form::Rows))
                        .cpu()
                        .unwrap()
                        .to_vec()
                };
                let plain = run(false);
                assert!(plain.iter().all(|x| x.is_finite()));
                assert_eq!(run(true), plain, "{heads:?} {precision:?} {length}");
            }
        }
    }

    #[test]
    fn a_copy_of_a_texts_beginning_shares_its_pages_until_one_is_written() {
        let shape = KvShape { layers: 1, heads: HEADS, precision: Precision::F32 };
        let meter = Meter::default();
        let joined = |text: &Tensor| Joined::rotated(fused(text), HEADS);
        let attend = |text: &Tensor, span| {
            plain_rows(kernels::attention(&joined(text), &[span], Form::Rows))
        };
        let mut kv = Kv::new(shape, &Backend::Cpu, &meter);
        kv.reserve(0, 40).unwrap();
        let text = random(40, HEADS.qkv());
        kv.store(0, 0, &joined(&text), 0..40).unwrap();
        let three_pages = 3 * PAGE_TOKENS * shape.token_bytes(&Backend::Cpu);
        assert_eq!(meter.bytes(), three_pages);
        let span = Span { rows: 0..40, position: 0, kv: &kv, layer: 0 };
        let before = tensor(&attend(&text, span));

        let mut copy = kv.clone();
        copy.truncate(20);
        assert_eq!(meter.bytes(), three_pages);
        copy.reserve(20, 30).unwrap();
        assert_eq!(meter.bytes(), three_pages + PAGE_TOKENS * shape.token_bytes(&Backend::Cpu));
        copy.store(0, 20, &joined(&random(10, HEADS.qkv())), 0..10).unwrap();
        // The shared beginning gives the same bits; the original did not change.
        for (kv, count) in [(&copy, 20), (&kv, 40)] {
            let span = Span { rows: 0..count, position: 0, kv, layer: 0 };
            let text = text.narrow(0, 0, count).unwrap();
            let after = attend(&text, span);
            assert_eq!(worst(&tensor(&after), &before.narrow(0, 0, count).unwrap()), 0.0);
        }
    }
}
