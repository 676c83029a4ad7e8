//! What the kernels are called.

use super::gpu::Element;

/// A kernel that there is for numbers of either kind.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    f32: &'static str,
    bf16: &'static str,
}

impl Kernel {
    /// The one for numbers of this kind.
    pub(super) fn of(self, element: Element) -> &'static str {
        match element {
            Element::F32 => self.f32,
            Element::Bf16 => self.bf16,
        }
    }
}

macro_rules! kernels {
    ($($kernel:ident: $name:literal),* $(,)?) => {
        $(pub(super) const $kernel: Kernel =
            Kernel { f32: concat!($name, "_f32"), bf16: concat!($name, "_bf16") };)*

        /// All of those.
        #[cfg(any(test, feature = "cuda"))]
        const KERNELS: &[Kernel] = &[$($kernel),*];
    };
}

kernels! {
    EMBED: "embed",
    NORM: "norm",
    ADD: "add",
    GATE: "gate",
    ROTATE: "rotate",
    ATTENTION: "attention",
    MERGE: "merge",
    GATHER: "gather",
    SUM: "sum",
    SUM_PAGES: "sum_pages",
}

/// Attention on tensor cores, which takes bf16, by the numbers of a head.
const TILED_ATTENTION: [(usize, &str); 2] = [(64, "attention_64"), (128, "attention_128")];

/// The attention on tensor cores for heads of `dim` numbers of this kind, if there is one.
pub(super) fn tiled_attention(element: Element, dim: usize) -> Option<&'static str> {
    let of_dim = TILED_ATTENTION.into_iter().find(|(served, _)| *served == dim);
    of_dim.filter(|_| element == Element::Bf16).map(|(_, name)| name)
}

/// Everything that is launched: a GPU is only opened with all of them.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    let by_element = KERNELS.iter().flat_map(|kernel| [kernel.f32, kernel.bf16]);
    by_element.chain(TILED_ATTENTION.map(|(_, name)| name))
}
