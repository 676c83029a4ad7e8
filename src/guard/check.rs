//! What a GPU computes is held against the CPU before a guard opens on it: a kernel that is wrong there
//! gives an error, and never a score.

use std::ops::Range;

use crate::artifact::SelectedLayer;
use crate::backbone::{Decoder, Observed, Pass, Plan, Segment, Site};
use crate::error::{Error, Result};
use crate::kernels::{Backend, Meter, Precision};
use crate::readout::{Part, Reading, Readings, Selection};

/// Tokens that run: more than run at once.
pub(super) const TOKENS: usize = 144;
/// Parts of them that run as texts, so that each way of running and of reading is taken: also few tokens
/// after many, whose keys are shared out and the results merged.
const TEXTS: [Text; 3] = [
    Text { tokens: 0..TOKENS, before: TOKENS - 4, running_from: Some(0) },
    Text { tokens: 0..100, before: 0, running_from: None },
    Text { tokens: 20..35, before: 0, running_from: Some(7) },
];
/// How far states may be from the CPU's in f32, in relation to their length, on the average: a few times what
/// rounding does, and a fraction of what a mistake does. On an emulated GPU rounding makes 1e-6 to 3e-6 in f32; in
/// bf16 0.004 with SmolLM2-135M, 0.008 with random weights of Qwen3-0.6B's shape and 0.013 with the fixtures, and
/// 0.03 at the most for a state. Without one of the kernels some state is 1 from the CPU's, or more.
const MOST_F32: f64 = 1e-3;
const MOST_BF16: f64 = 0.03;
/// How many times that one of them may be.
const WORST: f64 = 8.0;

/// A part of the tokens that runs as a text.
struct Text {
    tokens: Range<usize>,
    /// How many of them run in a pass of their own, from which the others go on.
    before: usize,
    /// The first of them from which on each beginning's mean is compared; none for the whole one's alone.
    running_from: Option<usize>,
}

/// Runs parts of `tokens` through the first block of `decoder`, which was made from `plan`, and of one on
/// the CPU in f32, and compares the means of its states.
///
/// # Errors
/// `Internal` where they differ by more than rounding; those of loading and running.
pub(super) fn first_block(decoder: &Decoder, plan: &Plan<'_>, tokens: &[u32]) -> Result<()> {
    let part =
        |range: Range<usize>| &tokens[range.start.min(tokens.len())..range.end.min(tokens.len())];
    let texts = TEXTS.map(|text| (part(text.tokens.clone()), text));
    let texts: Vec<_> = texts.into_iter().filter(|(tokens, _)| !tokens.is_empty()).collect();
    let hidden = plan.config.hidden_size;
    let run = |decoder: &Decoder| -> Result<Vec<Vec<f32>>> {
        let decoder = decoder.first_block();
        let layer = SelectedLayer { index: 0, neurons: (0..hidden).collect(), weight: 1.0 };
        let selection = Selection::new(vec![layer], decoder.backend())?;
        texts.iter().map(|(tokens, text)| means(&decoder, &selection, tokens, text)).collect()
    };
    let ours = run(decoder)?;
    let first = Observed { site: Site::Residual, layers: vec![0] };
    let (backend, precision) = (&Backend::Cpu, Precision::F32);
    let plain = Plan { observed: &first, backend, precision, ..*plan };
    let plain = run(&Decoder::load(&plain, None)?)?;
    let most = match plan.precision {
        Precision::F32 => MOST_F32,
        Precision::Bf16 | Precision::Int8 => MOST_BF16,
    };
    let mut apart = vec![];
    for ((ours, plain), (tokens, _)) in ours.iter().zip(&plain).zip(&texts) {
        let [ours, plain] = [ours, plain].map(|means| states(means, hidden, tokens.len()));
        apart.extend(ours.zip(plain).map(|(a, b)| distance(&a, &b)));
    }
    let mean = apart.iter().sum::<f64>() / apart.len().max(1) as f64;
    let worst = apart.iter().copied().fold(0.0, f64::max);
    // What is not a number is as far apart as can be.
    if mean.is_finite() && mean <= most && worst <= WORST * most {
        return Ok(());
    }
    Err(Error::internal(format!(
        "the GPU's first block is {mean:.1e} from the CPU's, {worst:.1e} at the most, expected up to {most:.0e} \
         and {:.0e}: its scores would be wrong",
        WORST * most
    )))
}

/// What each of the means over a text's last beginnings adds to the sum of the one before it.
fn states(means: &[f32], hidden: usize, tokens: usize) -> impl Iterator<Item = Vec<f64>> + '_ {
    let means = means.chunks_exact(hidden);
    let first = tokens - means.len();
    let sums = means.zip(first + 1..).map(|(mean, tokens)| {
        mean.iter().map(|x| f64::from(*x) * tokens as f64).collect::<Vec<_>>()
    });
    sums.scan(vec![0.0; hidden], |before, sum| {
        let state = sum.iter().zip(&*before).map(|(sum, before)| sum - before).collect();
        *before = sum;
        Some(state)
    })
}

/// The length of `a - b` in relation to that of `b`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let length = |squares: f64| squares.sqrt();
    let apart = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    length(apart) / length(b.iter().map(|b| b * b).sum())
}

/// The means of the first block's states over a text and its beginnings, `[means, hidden_size]`.
fn means(
    decoder: &Decoder,
    selection: &Selection,
    tokens: &[u32],
    text: &Text,
) -> Result<Vec<f32>> {
    let meter = Meter::default();
    let last = tokens.len() - 1;
    let compared_from = text.running_from.map_or(last, |from| from.min(last));
    let before = text.before.min(tokens.len());
    let (mut means, mut ran) = (vec![], None);
    for (start, end) in [(0, before), (before, tokens.len())] {
        if start == end {
            continue;
        }
        let beginning = tokens[..end].into();
        let keep = end < tokens.len();
        let (segment, known) = match ran.take() {
            Some((kv, known)) => (Segment::resume(beginning, start, kv), Some(known)),
            None => (Segment::new(decoder, beginning, keep, &meter), None),
        };
        let running_from = text.running_from.map(|from| from.max(start));
        let reading = Reading::new(selection, known, keep, running_from, &meter);
        let mut readings = Readings::new(vec![reading]);
        let mut pass = Pass::new(decoder, vec![segment]);
        let lengths = || std::iter::once(end);
        readings.reserve(selection, lengths(), pass.is_at_once())?;
        while !pass.advance(decoder, |_| true, &mut |layer, states, parts, places| {
            readings.observe(selection, layer, states, parts.iter().map(Part::from), places)
        })? {}
        readings.complete(selection, lengths())?;
        for (mut reading, segment) in readings.into_texts().into_iter().zip(pass.into_segments()) {
            let compared = compared_from.max(start)..end;
            if !compared.is_empty() {
                reading.add_features(selection, compared, &mut means)?;
            }
            ran = segment.into_kv().zip(reading.into_kept());
        }
    }
    Ok(means)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::backbone::Files;
    use crate::error::Status;
    use crate::kernels::Emulation;

    /// Whatever happened to weights on their way to the GPU, the ones that will serve are checked.
    #[test]
    fn weights_that_are_not_the_checkpoints_are_found() {
        let backend = &Backend::emulated(Emulation::default(), Precision::F32).unwrap();
        let observed = &Observed { site: Site::Mlp, layers: vec![1] };
        let tokens: Vec<u32> = (100..).take(TOKENS).collect();
        let backbones = ["qwen3-residual-last", "qwen3-residual-inner"].map(|name| {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures");
            let files = Files::open(&fixtures.join(name).join("backbone"), true).unwrap();
            let config = files.config().unwrap();
            let checkpoint = Arc::new(files.checkpoint(&config, true).unwrap());
            (checkpoint, config)
        });
        let [plan, other] = backbones.each_ref().map(|(checkpoint, config)| {
            let precision = Precision::F32;
            Plan { checkpoint, config, observed, backend, precision, calibration: &[] }
        });
        let decoder = Decoder::load(&plan, None).unwrap();
        first_block(&decoder, &plan, &tokens).unwrap();
        let error = first_block(&decoder, &other, &tokens).unwrap_err();
        assert_eq!(error.status(), Status::Internal);
    }
}
