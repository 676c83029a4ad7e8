//! Packed weights in a file: what is written of a layer, and the lines of one that is mapped.

use std::ops::Deref;

use super::pack::{Line, Storage};
use super::{Isa, int8};
use crate::sys::file::Mapped;

/// The version of what lies in lines and tables of packed layers, int8's rounding included. To be
/// raised with every change of it: a file of another version is not read.
pub(crate) const LAYOUT: u32 = 1;

/// The kernels that this CPU's layers are packed for, and that calibrate them.
pub(crate) fn kernels() -> String {
    format!("{:?}, int8 {:?}", Isa::detect(), int8::Isa::detect())
}

/// A part of a layer that lies in a file in one piece: an array of `n` output features over `k`
/// inputs, or what goes with one.
pub(crate) struct Piece<Bytes> {
    /// How it is stored.
    pub(crate) kind: String,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) bytes: Bytes,
}

/// The pieces of a file that have not been taken up yet.
pub(crate) type Pieces = std::vec::IntoIter<Piece<Mapped>>;

/// Lines in memory of our own, or in a file that processes share.
pub(super) enum Lines {
    Own(Vec<Line>),
    /// A whole number of them, on a line's boundary.
    Mapped(Mapped),
}

impl Lines {
    /// The bytes as `len` lines; `None` if they are no such.
    pub(super) fn mapped(bytes: Mapped, len: usize) -> Option<Self> {
        let lines: &[Line] = bytemuck::try_cast_slice(&bytes).ok()?;
        (lines.len() == len).then_some(Self::Mapped(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    /// The memory that they take.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Own(lines) => lines.capacity() * size_of::<Line>(),
            Self::Mapped(bytes) => bytes.len(),
        }
    }
}

impl Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            Self::Mapped(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl Storage {
    /// What a file calls it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Blocks(of) => of.name().to_owned(),
            plain => format!("{plain:?}"),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::borrow::Cow;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use half::{bf16, f16};

    use super::super::pack::Panels;
    use super::super::tests::{Rng, blocks, isas};
    use super::super::{Int8Linear, PackedLinear, Precision, Weights};
    use super::*;
    use crate::kernels::{Arena, BlockType, Inputs, Rows};

    /// As a file holds them, each piece from a page on.
    fn mapped<'a>(pieces: impl Iterator<Item = Piece<Cow<'a, [u8]>>>) -> Pieces {
        const PAGE: usize = 4096;
        let pieces: Vec<_> = pieces.collect();
        let mut bytes = vec![];
        for piece in &pieces {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
            bytes.extend_from_slice(&piece.bytes);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file.as_file().set_permissions(Permissions::from_mode(0o600)).unwrap();
        let map = Mapped::open_own(file.path()).unwrap();
        let mut start = 0usize;
        let parts = pieces.into_iter().map(|Piece { kind, n, k, bytes }| {
            start = start.next_multiple_of(PAGE);
            let end = start + bytes.len();
            let bytes = map.part(std::mem::replace(&mut start, end)..end).unwrap();
            Piece { kind, n, k, bytes }
        });
        parts.collect::<Vec<_>>().into_iter()
    }

    /// Weights of every type, `[n, k]`.
    struct Kinds {
        f32: Vec<f32>,
        bf16: Vec<bf16>,
        f16: Vec<f16>,
        blocks: Vec<(BlockType, Vec<u8>)>,
    }

    impl Kinds {
        fn new(n: usize, k: usize) -> Self {
            let mut rng = Rng(5);
            let f32 = rng.floats(n * k);
            Self {
                bf16: f32.iter().map(|v| bf16::from_f32(*v)).collect(),
                f16: f32.iter().map(|v| f16::from_f32(*v)).collect(),
                blocks: BlockType::ALL.map(|of| (of, blocks(&mut rng, of, n, k).0)).into(),
                f32,
            }
        }

        fn weights(&self) -> impl Iterator<Item = Weights<'_>> {
            let floats =
                [Weights::F32(&self.f32), Weights::Bf16(&self.bf16), Weights::F16(&self.f16)];
            floats.into_iter().chain(self.blocks.iter().map(|(of, b)| Weights::Blocks(*of, b)))
        }
    }

    fn inputs(m: usize, k: usize) -> Inputs {
        Rows::copied(&Arena::new(1 << 20), &Rng(6).floats(m * k), k).unwrap().into()
    }

    fn bits(y: Rows) -> Vec<u32> {
        y.cpu().unwrap().iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn mapped_layers_are_packed_ones_bit_for_bit() {
        let (m, n, k) = (19, 70, 768);
        let kinds = Kinds::new(n, k);
        let mut seen = std::collections::BTreeSet::new();
        for isa in isas() {
            for precision in [Precision::F32, Precision::Bf16] {
                for weights in kinds.weights() {
                    if precision == Precision::Bf16 && matches!(weights, Weights::Blocks(..)) {
                        continue;
                    }
                    // Two runs of other storage where weights are kept as they are.
                    let parts = [(weights, n), (Weights::F32(&kinds.f32), n)];
                    let packed = PackedLinear::pack_for(isa, &parts, k, precision).unwrap();
                    let mut pieces = mapped(packed.pieces());
                    seen.extend(pieces.as_slice().iter().map(|piece| piece.kind.clone()));
                    let mapped =
                        PackedLinear::mapped_for(isa, 2 * n, k, precision, &mut pieces).unwrap();
                    assert!(pieces.next().is_none());
                    assert_eq!(mapped.bytes(), packed.bytes());
                    let y =
                        [&packed, &mapped].map(|layer| bits(layer.matmul(&inputs(m, k)).unwrap()));
                    assert!(
                        y[0] == y[1],
                        "{isa:?} {precision:?} {:?}",
                        packed.pieces().next().map(|p| p.kind)
                    );
                }
            }
        }
        assert!(seen.len() >= 11, "{seen:?}");
    }

    #[test]
    fn mapped_int8_layers_are_rounded_ones_bit_for_bit() {
        let (m, n, k) = (19, 70, 300);
        let mut rng = Rng(7);
        let (w, x, largest) = (rng.floats(n * k), rng.floats(m * k), rng.floats(k));
        let floats = PackedLinear::pack(&[(Weights::F32(&w), n)], k, Precision::F32).unwrap();
        let own = Int8Linear::quantise(&floats, &largest).unwrap();
        let mut pieces = mapped(own.pieces().into_iter());
        let mapped = Int8Linear::mapped(n, k, &mut pieces).unwrap();
        assert!(pieces.next().is_none());
        let y = [&own, &mapped].map(|layer| {
            let mut y = vec![0.0; m * n];
            layer.matmul(&Arena::new(0), &x, &mut y).unwrap();
            y.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        });
        assert!(y[0] == y[1]);
    }

    /// Bytes of another length, kind or shape are no layer, whatever they hold.
    #[test]
    fn other_pieces_are_no_layer() {
        let (n, k) = (40, 256);
        let kinds = Kinds::new(n, k);
        let packed =
            PackedLinear::pack(&[(Weights::F32(&kinds.f32), n)], k, Precision::F32).unwrap();
        let rounded = Int8Linear::quantise(&packed, &vec![1.0; k]).unwrap();
        type Change = fn(&mut Piece<Cow<'static, [u8]>>);
        let changes: [Change; 6] = [
            |piece| piece.bytes.to_mut().truncate(64),
            |piece| piece.bytes.to_mut().extend([0; 64]),
            |piece| piece.bytes.to_mut().push(0),
            |piece| piece.kind.push('x'),
            |piece| piece.n += 1,
            |piece| piece.k += 1,
        ];
        let owned = |piece: Piece<Cow<'_, [u8]>>| -> Piece<Cow<'static, [u8]>> {
            let Piece { kind, n, k, bytes } = piece;
            Piece { kind, n, k, bytes: bytes.into_owned().into() }
        };
        let whole = || -> Vec<_> {
            packed.pieces().map(owned).chain(rounded.pieces().map(owned)).collect()
        };
        let taken_up = |pieces: Vec<_>| -> bool {
            let mut pieces = mapped(pieces.into_iter());
            PackedLinear::mapped(n, k, Precision::F32, &mut pieces).is_some()
                && Int8Linear::mapped(n, k, &mut pieces).is_some()
        };
        assert!(taken_up(whole()));
        for at in 0..whole().len() {
            for (i, change) in changes.iter().enumerate() {
                let mut pieces = whole();
                change(&mut pieces[at]);
                assert!(!taken_up(pieces), "piece {at}, change {i}");
            }
            let mut pieces = whole();
            pieces.remove(at);
            assert!(!taken_up(pieces), "without piece {at}");
        }
    }

    /// Where this fails, packed weights lie in another way than files of this [`LAYOUT`] say: raise
    /// it, and write down what lies there now.
    #[test]
    fn layouts_are_those_of_this_version() {
        let (n, k) = (70, 768);
        let kinds = Kinds::new(n, k);
        let mut found = vec![];
        let storages = [Storage::Bf16Columns, Storage::Bf16Tiles];
        let storages = storages.map(|storage| (storage, Weights::Bf16(&kinds.bf16)));
        let as_stored = kinds.weights().filter_map(|weights| match weights {
            Weights::F32(_) => Some((Storage::F32, weights)),
            Weights::F16(_) => Some((Storage::F16, weights)),
            Weights::Blocks(of, _) => Some((Storage::Blocks(of), weights)),
            Weights::Bf16(_) => None,
        });
        for (storage, weights) in storages.into_iter().chain(as_stored) {
            let panels = Panels::pack(&[(weights, n)], k, storage).unwrap();
            found.push((storage.name(), crc32fast::hash(panels.lines.as_bytes())));
        }
        // Calibrated by numbers, not by kernels, which differ in the last bits.
        let floats = [(Weights::F32(&kinds.f32), n)];
        let floats = PackedLinear::pack(&floats, k, Precision::F32).unwrap();
        let rounded = Int8Linear::quantise(&floats, &Rng(8).floats(k)).unwrap();
        found.extend(rounded.pieces().map(|piece| (piece.kind, crc32fast::hash(&piece.bytes))));
        let expected = [
            ("Bf16Columns", 1_675_249_788),
            ("Bf16Tiles", 843_003_363),
            ("F32", 697_220_470),
            ("F16", 3_176_450_435),
            ("Q4_0", 2_935_846_825),
            ("Q4_1", 3_702_808_853),
            ("Q5_0", 3_026_541_770),
            ("Q5_1", 2_628_879_430),
            ("Q8_0", 684_549_141),
            ("Q4_K", 1_878_721_790),
            ("Q5_K", 164_608_039),
            ("Q6_K", 2_766_475_409),
            ("Int8", 1_340_429_114),
            ("Int8 scales", 3_362_822_320),
        ];
        let found: Vec<_> = found.iter().map(|(kind, crc)| (kind.as_str(), *crc)).collect();
        assert_eq!((LAYOUT, &found[..]), (1, &expected[..]));
    }
}
