//! Image sizes that a graph may be meant for: what its metadata say, and what its tables fit.

use crate::graph::Attributes;
use crate::metadata::{IMAGE_SIZE, PREPROCESS};
use crate::onnx::Model;

/// Image sizes that are tried where nothing says one.
pub(super) const USUAL_SIZES: [usize; 14] = [224, 384, 518, 336, 256, 448, 512, 192, 160, 128, 96, 64, 32, 28];
/// Sizes that are tried because of tables.
pub(super) const MAX_SIZES: usize = 32;

/// The image size that the metadata name. A transform that was supplied says nothing new: its size is the one that was
/// found for the graph.
pub(super) fn named_size(model: &Model) -> Option<[usize; 2]> {
    let of_size = |text: &str| {
        let (height, width) = text.split_once('x')?;
        Some([height.parse().ok()?, width.parse().ok()?])
    };
    let of_transform = |text: &str| {
        let transform: serde_json::Value = serde_json::from_str(text).ok()?;
        serde_json::from_value::<[usize; 2]>(transform.get("size")?.clone()).ok()
    };
    let named = model.metadata(IMAGE_SIZE).and_then(of_size);
    let own = || model.metadata(PREPROCESS).filter(|_| model.suppliers(PREPROCESS).is_empty());
    let named = named.or_else(|| own().and_then(of_transform));
    named.filter(|size: &[usize; 2]| size.iter().all(|n| (1..=1 << 16).contains(n)))
}

/// Image sizes that would agree with a square grid of a table: one of patches, or one of the offsets between them.
pub(super) fn sizes_of_grid(model: &Model, side: usize) -> Vec<usize> {
    let Some(patch) = patch_stride(model) else { return Vec::new() };
    let offsets = (side % 2 == 1 && side > 1).then(|| side.div_ceil(2));
    [Some(side), offsets].into_iter().flatten().map(|n| n.saturating_mul(patch)).collect()
}

/// Pixels from one patch to the next, as the first convolution with a stride has them.
pub(super) fn patch_stride(model: &Model) -> Option<usize> {
    let strides = model.graph().node.iter().filter(|n| n.op_type() == "Conv").filter_map(|n| n.ints("strides"));
    strides.filter_map(|s| usize::try_from(*s.first()?).ok()).find(|&s| s > 1)
}

/// Image sizes that would agree with a position embedding of the graph: its tokens less a few prefix tokens are a
/// square grid of patches.
pub(super) fn image_sizes(model: &Model) -> Vec<usize> {
    let graph = model.graph();
    let mut sizes = Vec::new();
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant").filter_map(|n| n.tensor("value"));
    for t in graph.initializer.iter().chain(constants) {
        let dims = t.shape();
        let tokens = match dims[..] {
            [1, n, _] => n,
            // A table that stands there as a grid, to be resampled.
            [1, _, h, w] | [1, h, w, _] if h == w && h > 1 => {
                sizes.extend(sizes_of_grid(model, h));
                continue;
            }
            _ => continue,
        };
        for prefix in 0..=8 {
            let grid = (tokens.saturating_sub(prefix) as f64).sqrt() as usize;
            if grid > 1 && grid * grid + prefix == tokens {
                sizes.extend(sizes_of_grid(model, grid).first());
            }
        }
    }
    sizes.truncate(MAX_SIZES);
    sizes
}
