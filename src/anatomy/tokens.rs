//! Where tokens lie on the image: the factors of a token axis that run over pixels, and the tokens that do not.

use crate::axes::{Dim, ImageAxis, Typing};

/// The patch grid of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Patches from top to bottom and from left to right.
    pub patches: [usize; 2],
    /// Pixels from one patch to the next.
    pub patch_size: [f64; 2],
}

/// The tokens of one attention, in order: the position of each on the image in pixels, or `None` for a token that is no
/// patch (class token, register).
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// (row, column) in pixels, of the patch's upper left corner.
    pub positions: Vec<Option<(f64, f64)>>,
    stride: Option<[f64; 2]>,
    extent: [usize; 2],
}

impl Tokens {
    /// Reads the tokens of a typed axis.
    pub fn new(typing: &Typing, axis: &Dim) -> Tokens {
        let segments = typing.factors.segments(axis).unwrap_or_else(|| vec![axis.clone()]);
        let mut tokens = Tokens { positions: Vec::new(), stride: None, extent: [1, 1] };
        for segment in &segments {
            tokens.push(typing, segment);
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

    /// True where at least two tokens lie on the image.
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
