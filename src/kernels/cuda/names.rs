//! What the kernels are called.

use super::gpu::Element;
use super::places::TILED_DIMS;

/// Those that there are for numbers of either kind.
const BY_ELEMENT: [&str; 10] =
    ["embed", "norm", "add", "gate", "rotate", "attention", "merge", "gather", "sum", "sum_pages"];

/// Everything that is launched: a GPU is only opened with all of them.
pub(super) fn all() -> impl Iterator<Item = String> {
    let elements = [Element::F32, Element::Bf16].into_iter();
    let by_element = elements.flat_map(|element| BY_ELEMENT.map(|kernel| element.of(kernel)));
    by_element.chain(TILED_DIMS.map(|dim| format!("attention_{dim}")))
}
