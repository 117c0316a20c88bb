//! Where tokens lie: on the image, by the factors of a token axis that run over pixels, or in a sequence; and the
//! tokens that do neither.

use crate::axes::{Dim, Factor, ImageAxis, Typing};
use crate::graph::{data_inputs, declared_type, is_integer};
use crate::onnx::DataType;
use crate::onnx::proto::ValueInfoProto;
use crate::ops::{self, Mark, Slot};

/// The patch grid of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Patches from top to bottom and from left to right.
    pub patches: [usize; 2],
    /// Pixels from one patch to the next.
    pub patch_size: [f64; 2],
}

/// The tokens of one attention, in order: the position of each on the image in pixels, or its place in a sequence, or
/// `None` for a token that has neither (class token, register).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPositions {
    /// (row, column) in pixels, of the patch's upper left corner; (0, place) in a sequence.
    pub positions: Vec<Option<(f64, f64)>>,
    /// The axis of token numbers whose sequence they are, in order and without others beside them.
    pub sequence: Option<Factor>,
    stride: Option<[f64; 2]>,
    extent: [usize; 2],
}

/// The axes along which an input has the numbers of tokens: those that an embedding looks up.
pub fn sequences(typing: &Typing) -> Vec<Factor> {
    let (links, graph) = (typing.links(), typing.graph);
    let node = |k: usize| &graph.node[k];
    let is_rounded = |k: usize| node(k).op_type() == "Round";
    // By their type, or since all that reads them rounds them first: networks that are run take floats.
    let holds_numbers = |v: &&ValueInfoProto| {
        let kind = declared_type(v).and_then(|t| DataType::try_from(t).ok());
        let users = links.users(v.name());
        kind.is_some_and(is_integer) || !users.is_empty() && users.iter().all(|&k| is_rounded(k))
    };
    let mut found = Vec::new();
    for info in data_inputs(graph).into_iter().filter(holds_numbers) {
        let Some([_, tokens]) = typing.dims.get(info.name()).map(Vec::as_slice) else { continue };
        // The numbers, cast or in another shape, are the places of rows of a table.
        let looks_up = |x: &str| {
            links.users(x).iter().map(|&k| &graph.node[k]).any(|n| {
                let by = |(j, own): (usize, &String)| own == x && ops::of(n).slot(j) == Slot::Indices;
                n.input.iter().enumerate().any(by) && n.input.first().is_some_and(|t| typing.is_constant(t))
            })
        };
        let forms = links.downstream([info.name()]).through(|k| ops::of(node(k)).is(Mark::Keeps) || is_rounded(k));
        let mut values = forms.flat_map(|k| links.outputs(k)).chain([info.name()]);
        if let ([factor], true) = (typing.factors.leaves(tokens).as_slice(), values.any(looks_up)) {
            found.push(*factor);
        }
    }
    found
}

/// The axis of tokens that an input [samples, tokens] speaks of, such as a mask.
///
/// Exporters look a mask up at places that they compute from its length, so that nothing ties its own axis to the token
/// numbers beside it: then the axis of the first of these that is as long is meant.
pub fn sequence_axis(typing: &Typing, input: &str) -> Option<Factor> {
    let own = token_axis(typing, input)?;
    let all = sequences(typing);
    let length = |f: Factor| typing.factors.factor_size(f);
    match all.contains(&own) {
        true => Some(own),
        false => Some(all.into_iter().find(|&f| length(f) == length(own)).unwrap_or(own)),
    }
}

/// The axis of tokens of a value [samples, tokens, ..].
pub fn token_axis(typing: &Typing, value: &str) -> Option<Factor> {
    match typing.factors.leaves(typing.dims.get(value)?.get(1)?)[..] {
        [factor] => Some(factor),
        _ => None,
    }
}

impl TokenPositions {
    /// Reads the tokens of a typed axis.
    pub fn new(typing: &Typing, axis: &Dim) -> TokenPositions {
        let segments = typing.factors.segments(axis).unwrap_or_else(|| vec![axis.clone()]);
        let mut tokens = TokenPositions { positions: Vec::new(), sequence: None, stride: None, extent: [1, 1] };
        for segment in &segments {
            tokens.push(typing, segment);
        }
        if let ([segment], None) = (&segments[..], tokens.stride)
            && let [factor] = typing.factors.leaves(segment)[..]
            && sequences(typing).contains(&factor)
        {
            tokens.sequence = Some(factor);
            tokens.positions = (0..typing.factors.factor_size(factor)).map(|i| Some((0.0, i as f64))).collect();
        }
        tokens
    }

    fn push(&mut self, typing: &Typing, segment: &Dim) {
        let leaves = typing.factors.leaves(segment);
        let count = typing.factors.size(segment);
        let tags: Option<Vec<_>> = leaves.iter().map(|&f| typing.factors.spatial(f)).collect();
        let Some(tags) = tags
            .filter(|t| t.iter().any(|s| s.axis == ImageAxis::Height) && t.iter().any(|s| s.axis == ImageAxis::Width))
        else {
            self.positions.extend(std::iter::repeat_n(None, count));
            return;
        };
        let sizes: Vec<usize> = leaves.iter().map(|&f| typing.factors.factor_size(f)).collect();
        for index in 0..count {
            let (mut rest, mut row, mut column) = (index, 0.0, 0.0);
            for (n, tag) in sizes.iter().zip(&tags).rev() {
                let offset = (rest % n) as f64 * tag.stride;
                rest /= n;
                match tag.axis {
                    ImageAxis::Height => row += offset,
                    ImageAxis::Width => column += offset,
                }
            }
            self.positions.push(Some((row, column)));
        }
        let least = |axis| tags.iter().filter(|t| t.axis == axis).map(|t| t.stride).fold(f64::INFINITY, f64::min);
        let extent = |axis| sizes.iter().zip(&tags).filter(|(_, t)| t.axis == axis).map(|(n, _)| *n).product();
        self.stride = Some([least(ImageAxis::Height), least(ImageAxis::Width)]);
        self.extent = [extent(ImageAxis::Height), extent(ImageAxis::Width)];
    }

    /// Tokens that are no patches.
    pub fn prefix(&self) -> usize {
        if self.stride.is_none() { 0 } else { self.positions.iter().filter(|p| p.is_none()).count() }
    }

    /// True where at least two tokens lie on the image, or in a sequence.
    pub fn are_placed(&self) -> bool {
        self.positions.iter().flatten().count() > 1
    }

    /// Pixels from one token to the next.
    pub fn stride(&self) -> Option<[f64; 2]> {
        self.stride
    }

    /// The longer side of what one attention sees, in pixels: the image, or a window.
    pub fn side(&self) -> Option<f64> {
        let stride = self.stride?;
        Some((self.extent[0] as f64 * stride[0]).max(self.extent[1] as f64 * stride[1]))
    }

    /// The grid of the whole image (for windows, that of all windows together).
    pub fn grid(&self, typing: &Typing) -> Option<Grid> {
        let patch_size = self.stride?;
        let image = typing.image_size();
        let patches = std::array::from_fn(|i| {
            let whole = (image[i] as f64 / patch_size[i]).round() as usize;
            // A grid without padding at the border may be a little smaller than image / stride; a window is much
            // smaller.
            if self.extent[i] * 2 > whole { self.extent[i] } else { whole }
        });
        Some(Grid { patches, patch_size })
    }
}
