//! Image sizes that a graph may be meant for: what its metadata say, and what its tables fit.

use std::collections::HashSet;

use super::factors::{Dim, ImageAxis};
use super::typing::{Assumption, SizeFrom, Typing, channels_last};
use crate::error::Result;
use crate::graph::{Attributes, data_inputs, declared_dims};
use crate::metadata::{IMAGE_SIZE, PREPROCESS};
use crate::onnx::Model;
use crate::onnx::proto::NodeProto;

impl<'m> Typing<'m> {
    /// Types a model. Where the graph leaves the image size open, it is the one that the metadata name, else the one
    /// that position and bias tables fit as they are, else a usual one: [`Typing::size_from`] says which.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) for what a rule cannot type,
    /// [`ErrorKind::Typing`](crate::error::ErrorKind::Typing) where dimensions contradict each other; both name the
    /// node.
    pub fn new(model: &'m Model) -> Result<Self> {
        let typing = Self::with_image_size(model, Assumption::default().batch)?;
        typing.check_consistent()?;
        Ok(typing)
    }

    /// Types with the image size that [`Typing::new`] promises.
    pub(super) fn with_image_size(model: &'m Model, batch: usize) -> Result<Self> {
        let is_open = |dims: Vec<Option<usize>>| {
            let sides = if channels_last(&dims) { 1..3 } else { 2..4 };
            dims.len() == 4 && dims[sides].contains(&None)
        };
        let open = data_inputs(model.graph()).into_iter().filter_map(declared_dims).any(is_open);
        let typed = |image| Self::with(model, Assumption { batch, image });
        let from = |typing, size_from| Ok(Typing { size_from, ..typing });
        let default = Assumption::default().image;
        if !open {
            return from(typed(default)?, SizeFrom::Graph);
        }
        let sound = |image| typed(image).ok().filter(|typing| typing.conflicts.is_empty());
        if let Some(typing) = named_size(model).and_then(sound) {
            return from(typing, SizeFrom::Metadata);
        }
        let mut tried = HashSet::new();
        let mut fitting = |sizes: Vec<usize>| {
            let new: Vec<usize> = sizes.into_iter().filter(|&n| tried.insert(n)).collect();
            let mut fit = new.into_iter().filter_map(|n| sound([n, n]).filter(|typing| typing.tables_fit(model)));
            let first = fit.next()?;
            match first.tables_agree(model) {
                true => Some(first),
                false => Some(fit.find(|typing| typing.tables_agree(model)).unwrap_or(first)),
            }
        };
        if let Some(typing) = fitting(image_sizes(model)) {
            return from(typing, SizeFrom::Tables);
        }
        let Some(guess) = USUAL_SIZES.into_iter().find_map(|n| sound([n, n])) else {
            return from(typed(default)?, SizeFrom::Guess);
        };
        if guess.tables_fit(model) {
            return from(guess, SizeFrom::Tables);
        }
        // Tables that no shape gave away: what is resampled shows its own grid in the typed graph.
        let grids = guess.resampled_tables().into_iter().flat_map(|(own, _)| own);
        match fitting(grids.flat_map(|side| sizes_of_grid(model, side)).take(MAX_SIZES).collect()) {
            Some(typing) => from(typing, SizeFrom::Tables),
            None => from(guess, SizeFrom::Guess),
        }
    }

    /// Tables of positions or biases that the graph resamples: each before and after.
    pub(super) fn resizes_of_tables(&self) -> Vec<(&'m str, &'m str)> {
        let resizes = |n: &&NodeProto| matches!(n.op_type(), "Resize" | "Upsample");
        if !self.graph.node.iter().any(|n| resizes(&n)) {
            return Vec::new();
        }
        let ends = |node: &'m NodeProto| {
            let table = node.input.first().filter(|x| self.is_constant(x))?;
            Some((table.as_str(), node.output.first()?.as_str()))
        };
        self.graph.node.iter().filter(resizes).filter_map(ends).collect()
    }

    /// The sides of these tables before and after.
    pub(super) fn resampled_tables(&self) -> Vec<(Vec<usize>, Vec<usize>)> {
        let sides = |value: &str| Some(self.shape(value)?.get(2..)?.to_vec());
        let tables = self.resizes_of_tables();
        tables.into_iter().filter_map(|(before, after)| Some((sides(before)?, sides(after)?))).collect()
    }

    /// True where every table that the graph resamples is what it is used as: one of places runs over the image, and
    /// one of the offsets between n patches has 2 n - 1 of them. An exporter that knows the size writes it down, so
    /// that a table stays as it is for any image.
    pub(super) fn tables_agree(&self, model: &Model) -> bool {
        let (image, Some(patch)) = (self.image_size(), patch_stride(model)) else { return true };
        self.resizes_of_tables().into_iter().all(|(_, after)| {
            let Some([_, _, rows, columns]) = self.dims.get(after).map(Vec::as_slice) else { return true };
            let offsets = image.map(|n| 2 * (n / patch).max(1) - 1);
            self.covers(image, rows) || [rows, columns].map(|d| self.factors.size(d)) == offsets
        })
    }

    /// True where tables decide the image size: all that the graph resamples have the size that they come to, and where
    /// none is resampled, one covers the image and has no place at twice its size. Tokens that no patch makes
    /// (registers) do not mind the size, even where they happen to be as many as the patches.
    pub(super) fn tables_fit(&self, model: &Model) -> bool {
        let (resampled, image) = (self.resampled_tables(), self.image_size());
        let covers = || self.uses.iter().any(|u| u.dims.iter().any(|d| self.covers(image, d)));
        let contradicts = || {
            let twice = Assumption { image: image.map(|n| 2 * n), ..self.assumption.clone() };
            Typing::with(model, twice).map_or(true, |typing| !typing.conflicts.is_empty())
        };
        match resampled.is_empty() {
            true => covers() && contradicts(),
            false => resampled.iter().all(|(before, after)| before == after),
        }
    }

    /// True where a dimension, or a segment of it, runs over a whole image of this height and width, in one axis or in
    /// both.
    pub(super) fn covers(&self, image: [usize; 2], dim: &Dim) -> bool {
        let segments = self.factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        let covers = |segment: &Dim, axis: ImageAxis, side: usize| {
            let (mut count, mut stride) = (1, f64::INFINITY);
            for f in self.factors.leaves(segment) {
                if let Some(s) = self.factors.spatial(f).filter(|s| s.axis == axis) {
                    count *= self.factors.factor_size(f);
                    stride = stride.min(s.stride);
                }
            }
            // Patches without padding may leave a part of one at the border.
            count > 1 && (count + 1) as f64 * stride > side as f64
        };
        segments.iter().any(|s| {
            let [rows, columns] = [covers(s, ImageAxis::Height, image[0]), covers(s, ImageAxis::Width, image[1])];
            let both = self
                .factors
                .leaves(s)
                .iter()
                .any(|&f| self.factors.spatial(f).is_some_and(|s| s.axis == ImageAxis::Width));
            rows && (columns || !both)
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, ints_attribute, node};
    use crate::onnx::proto::{GraphProto, ModelProto};
    use crate::onnx::{DataType, tensor_from_f32, tensor_from_i64, tensor_info};

    /// A network of patches of 8 pixels with four registers, and with a table that is added, resampled, or neither.
    fn open_model(table: &[usize], how: &str) -> Model {
        let dims = [None, Some(3), None, None];
        let weights = |name: &str, dims: &[usize]| {
            tensor_from_f32(name.to_string(), DataType::Float, dims, &vec![0.0; dims.iter().product()])
        };
        let mut nodes = vec![
            node("Conv", &["x", "w"], &["patches"], vec![ints_attribute("strides", &[8, 8])]),
            node("Shape", &["patches"], &["shape"], vec![]),
            node("Slice", &["shape", "two", "four"], &["grid"], vec![]),
            node("Reshape", &["patches", "flat"], &["rows"], vec![]),
            node("Transpose", &["rows"], &["tokens"], vec![ints_attribute("perm", &[0, 2, 1])]),
        ];
        nodes.extend(match how {
            "added" => vec![node("Add", &["tokens", "table"], &["placed"], vec![])],
            // Offsets from one patch to the other, of which there are 2 n - 1.
            "offsets" => vec![
                node("Add", &["grid", "grid"], &["twice"], vec![]),
                node("Sub", &["twice", "one"], &["offsets"], vec![]),
                node("Concat", &["ones", "offsets"], &["sizes"], vec![int_attribute("axis", 0)]),
                node("Resize", &["table", "", "", "sizes"], &["resampled"], vec![]),
                node("Identity", &["tokens"], &["placed"], vec![]),
            ],
            _ => vec![node("Identity", &["tokens"], &["placed"], vec![])],
        });
        nodes.push(node("Expand", &["registers", "batch"], &["all_registers"], vec![]));
        nodes.push(node("Concat", &["all_registers", "placed"], &["y"], vec![int_attribute("axis", 1)]));
        let int = |name: &str, values: &[i64]| tensor_from_i64(name.to_string(), &[values.len()], values);
        Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![tensor_info("x", DataType::Float, &dims)],
                output: vec![tensor_info("y", DataType::Float, &[None; 3])],
                initializer: vec![
                    weights("w", &[6, 3, 8, 8]),
                    weights("registers", &[1, 4, 6]),
                    weights("table", table),
                    int("flat", &[0, 6, -1]),
                    int("two", &[2]),
                    int("four", &[4]),
                    int("one", &[1]),
                    int("ones", &[1, 2]),
                    int("batch", &[2, 4, 6]),
                ],
                node: nodes,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn tables_decide_the_image_size_where_they_fit() {
        let found = |model: &Model| {
            let typing = Typing::new(model).unwrap();
            (typing.image_size(), typing.size_from)
        };
        assert_eq!(found(&open_model(&[1, 36, 6], "added")), ([48, 48], SizeFrom::Tables));
        // Seven offsets are those of four patches, not seven patches.
        assert_eq!(found(&open_model(&[1, 2, 7, 7], "offsets")), ([32, 32], SizeFrom::Tables));
        // A table of whatever else, and the registers, are no grid.
        let mut open = open_model(&[1, 25, 6], "no table");
        assert_eq!(found(&open), ([224, 224], SizeFrom::Guess));
        open.set_metadata(PREPROCESS, r#"{"size": [40, 72]}"#);
        assert_eq!(found(&open), ([40, 72], SizeFrom::Metadata));
        open.set_metadata(IMAGE_SIZE, "64x56");
        assert_eq!(found(&open), ([64, 56], SizeFrom::Metadata));
        // Tables have more to say than metadata of another size.
        let mut added = open_model(&[1, 36, 6], "added");
        added.set_metadata(IMAGE_SIZE, "64x64");
        assert_eq!(found(&added), ([48, 48], SizeFrom::Tables));
    }
}
