//! Blocks of quantised weights, as GGUF files hold them (the `block_*` structs of ggml): what their
//! bytes mean, and the values they stand for.
//!
//! A value is computed in f32 in the order of ggml and of candle's `dequantize`, with the same
//! roundings, so that it is theirs bit for bit.

use std::array;

use half::f16;

/// The most elements of a block.
pub(crate) const MAX_ELEMENTS: usize = 256;

/// A type of block, in ggml's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockType {
    /// `(q - 8) d`
    Q4_0,
    /// `q d + m`
    Q4_1,
    /// `(q - 16) d`
    Q5_0,
    /// `q d + m`
    Q5_1,
    /// `q d`
    Q8_0,
    /// `(d scale) q - (m min)`, a scale and a min of 6 bits for 32 elements.
    Q4K,
    /// As `Q4K`, with a fifth bit.
    Q5K,
    /// `(d scale) (q - 32)`, a scale of 8 bits for 16 elements.
    Q6K,
}

impl BlockType {
    pub(crate) const ALL: [Self; 8] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of a block: consecutive ones of a row.
    pub(crate) const fn elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => MAX_ELEMENTS,
            _ => 32,
        }
    }

    /// Bytes of a block in a file.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Appends the values of whole blocks.
    pub(crate) fn widen_into(self, blocks: &[u8], out: &mut Vec<f32>) {
        for block in blocks.chunks_exact(self.bytes()) {
            let block = Block::read(self, block);
            out.extend((0..self.elements()).map(|i| block.value(self, i)));
        }
    }
}

/// The numbers of one block, taken apart.
pub(super) struct Block {
    /// What scales (or the quants themselves) are multiplied with.
    pub(super) d: f16,
    /// What mins are multiplied with, or what is added.
    pub(super) m: f16,
    /// Of `Q4K` and `Q5K` one for 32 elements; of `Q6K` one for 16, signed.
    pub(super) scales: [u8; 16],
    /// Of `Q4K` and `Q5K`, one for 32 elements.
    pub(super) mins: [u8; 8],
    /// Of `Q8_0` signed.
    pub(super) quants: [u8; MAX_ELEMENTS],
}

impl Block {
    /// Takes apart the bytes of one block of type `of`.
    pub(super) fn read(of: BlockType, bytes: &[u8]) -> Self {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut block = Self {
            d: half(0),
            m: f16::ZERO,
            scales: [0; 16],
            mins: [0; 8],
            quants: [0; MAX_ELEMENTS],
        };
        let quants = &mut block.quants;
        match of {
            BlockType::Q4_0 => nibbles(&bytes[2..], &mut quants[..32]),
            BlockType::Q4_1 => {
                block.m = half(2);
                nibbles(&bytes[4..], &mut quants[..32]);
            }
            BlockType::Q5_0 => {
                nibbles(&bytes[6..], &mut quants[..32]);
                fifth_bits(&bytes[2..6], &mut quants[..32]);
            }
            BlockType::Q5_1 => {
                block.m = half(2);
                nibbles(&bytes[8..], &mut quants[..32]);
                fifth_bits(&bytes[4..8], &mut quants[..32]);
            }
            BlockType::Q8_0 => quants[..32].copy_from_slice(&bytes[2..34]),
            BlockType::Q4K | BlockType::Q5K => {
                block.m = half(2);
                (block.scales, block.mins) = six_bit_scales(&bytes[4..16]);
                let (high, low) = bytes[16..].split_at(bytes.len() - 16 - 128);
                for (to, from) in quants.chunks_exact_mut(64).zip(low.chunks_exact(32)) {
                    nibbles(from, to);
                }
                // Bit i of byte j is of element j of the i-th 32.
                if of == BlockType::Q5K {
                    for (i, to) in quants.chunks_exact_mut(32).enumerate() {
                        for (q, high) in to.iter_mut().zip(high) {
                            *q |= (high >> i & 1) << 4;
                        }
                    }
                }
            }
            BlockType::Q6K => {
                block.d = half(208);
                block.scales.copy_from_slice(&bytes[192..208]);
                let (low, high) = bytes[..192].split_at(128);
                // Each 128 elements: 64 bytes hold four bits of two, 32 bytes two bits of four.
                for (i, to) in quants.chunks_exact_mut(128).enumerate() {
                    nibbles(&low[64 * i..][..64], to);
                    for (j, q) in to.iter_mut().enumerate() {
                        *q |= (high[32 * i + j % 32] >> (2 * (j / 32)) & 3) << 4;
                    }
                }
            }
        }
        block
    }

    /// The value of element `i`.
    fn value(&self, of: BlockType, i: usize) -> f32 {
        let (q, d, m) = (self.quants[i], self.d.to_f32(), self.m.to_f32());
        match of {
            BlockType::Q4_0 => (f32::from(q) - 8.0) * d,
            BlockType::Q5_0 => (f32::from(q) - 16.0) * d,
            BlockType::Q4_1 | BlockType::Q5_1 => f32::from(q) * d + m,
            BlockType::Q8_0 => f32::from(q as i8) * d,
            BlockType::Q4K | BlockType::Q5K => {
                let (scale, min) = (self.scales[i / 32], self.mins[i / 32]);
                d * f32::from(scale) * f32::from(q) - m * f32::from(min)
            }
            BlockType::Q6K => d * f32::from(self.scales[i / 16] as i8) * (f32::from(q) - 32.0),
        }
    }
}

/// The low halves of `bytes`, and behind them their high halves.
fn nibbles(bytes: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(out.len() / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Bit i of four bytes is the fifth of element i.
fn fifth_bits(bytes: &[u8], out: &mut [u8]) {
    for (i, q) in out.iter_mut().enumerate() {
        *q |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Eight scales and eight mins of 6 bits in twelve bytes: four of each below in the bytes 0 to 8,
/// whose two upper bits are those of the other four.
fn six_bit_scales(bytes: &[u8]) -> ([u8; 16], [u8; 8]) {
    let mut scales = [0; 16];
    for i in 0..4 {
        scales[i] = bytes[i] & 63;
        scales[i + 4] = bytes[i + 8] & 15 | bytes[i] >> 6 << 4;
    }
    let mins = array::from_fn(|i| match i {
        0..4 => bytes[i + 4] & 63,
        _ => bytes[i + 4] >> 4 | bytes[i] >> 6 << 4,
    });
    (scales, mins)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};

    use super::*;

    pub(crate) const ALL: [(BlockType, GgmlDType); 8] = [
        (BlockType::Q4_0, GgmlDType::Q4_0),
        (BlockType::Q4_1, GgmlDType::Q4_1),
        (BlockType::Q5_0, GgmlDType::Q5_0),
        (BlockType::Q5_1, GgmlDType::Q5_1),
        (BlockType::Q8_0, GgmlDType::Q8_0),
        (BlockType::Q4K, GgmlDType::Q4K),
        (BlockType::Q5K, GgmlDType::Q5K),
        (BlockType::Q6K, GgmlDType::Q6K),
    ];

    /// Any bytes are blocks: scales become subnormal, infinite and NaN.
    #[test]
    fn values_are_those_of_candle_bit_for_bit() {
        let mut state = 7u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for (of, candle) in ALL {
            assert_eq!(of.bytes(), candle.type_size());
            assert_eq!(of.elements(), candle.block_size());
            let bytes: Vec<u8> = (0..of.bytes() * 500).map(|_| byte()).collect();
            let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, candle).unwrap();
            let tensor = QTensor::new(storage, of.elements() * 500).unwrap();
            let theirs: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
            let mut ours = Vec::new();
            of.widen_into(&bytes, &mut ours);
            assert_eq!(ours.len(), theirs.len());
            for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
                assert!(same, "{} at {i}: {ours} for {theirs}", of.name());
            }
        }
    }
}
