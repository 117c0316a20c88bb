//! What was drawn for a picture, and how it is applied.

use ndarray::{Array3, s};

use super::super::decode::Pixels;
use super::super::shape::ImageLayout;
use super::ops::{Operation, flip, pad};
use super::preprocess::{ChannelOrder, Preprocess, resample};
use crate::error::Result;

/// What was drawn for a picture. It can be applied for a model of another size and normalisation than the one that it
/// was drawn for, which then sees the same.
#[derive(Debug)]
pub(crate) struct Draw {
    pub(super) cut: DrawnCrop,
    pub(super) flip: bool,
    pub(super) operations: Vec<Operation>,
    pub(super) erased: Option<Erased>,
    /// The transform that it was drawn for.
    pub(super) of: Preprocess,
}

/// Where the crop lies.
#[derive(Debug)]
pub(super) enum DrawnCrop {
    /// Where that of the evaluation transform does.
    Evaluation,
    /// There, moved to a corner in a border of so many black pixels.
    Padded { border: usize, corner: [usize; 2] },
    /// Top, left, rows and columns in the picture.
    Part([usize; 4]),
}

/// A rectangle in the input of a model, top, left, rows and columns, and normalised values `[channels, rows, columns]`
/// to fill it with.
#[derive(Debug)]
pub(super) struct Erased {
    pub rectangle: [usize; 4],
    pub values: Array3<f32>,
}

impl Draw {
    /// Transforms the pixels of the picture, in as many channels as `preprocess` says, into values `[channels, height,
    /// width]`, or `[height, width, channels]` for [`ImageLayout::Nhwc`].
    ///
    /// # Errors
    ///
    /// As [`Preprocess::apply`].
    pub(crate) fn apply(&self, pixels: &Pixels, preprocess: &Preprocess, layout: ImageLayout) -> Result<Array3<f32>> {
        let mut pixels = self.cropped(pixels, preprocess)?;
        if self.flip {
            pixels = flip(pixels);
        }
        // As timm, which fills with the mean colour.
        let mut fill: Vec<u8> = self.of.mean.iter().map(|mean| (255.0 * mean).round_ties_even() as u8).collect();
        if self.of.channel_order == ChannelOrder::Bgr {
            fill.reverse();
        }
        let fill: Vec<u8> = fill.into_iter().cycle().take(preprocess.channels).collect();
        for operation in &self.operations {
            pixels = operation.apply(pixels, preprocess.interpolation, &fill);
        }
        let mut values = preprocess.normalise(pixels.view(), layout);
        if let Some(erased) = &self.erased {
            self.erase(erased, &mut values, preprocess, layout);
        }
        Ok(values)
    }

    pub(super) fn cropped(&self, pixels: &Pixels, preprocess: &Preprocess) -> Result<Pixels> {
        let [height, width] = preprocess.size;
        match self.cut {
            DrawnCrop::Evaluation => preprocess.centre_crop(pixels),
            DrawnCrop::Padded { border, corner } => {
                let [down, right] = [0, 1].map(|axis| {
                    let moved = corner[axis] as f64 - border as f64;
                    (moved * self.scale(preprocess)[axis]).round() as isize
                });
                let around = down.unsigned_abs().max(right.unsigned_abs());
                let [top, left] = [down, right].map(|moved| around.saturating_add_signed(moved));
                let padded = pad(&preprocess.centre_crop(pixels)?, around);
                Ok(padded.slice_move(s![top..top + height, left..left + width, ..]))
            }
            DrawnCrop::Part([top, left, rows, columns]) => {
                let part = pixels.slice(s![top..top + rows, left..left + columns, ..]).to_owned();
                resample(&part, preprocess.size, preprocess.interpolation)
            }
        }
    }

    /// How many times larger an input is, in height and in width, than the one that this was drawn for.
    fn scale(&self, preprocess: &Preprocess) -> [f64; 2] {
        [0, 1].map(|axis| preprocess.size[axis] as f64 / self.of.size[axis] as f64)
    }

    /// Fills the rectangle with the colours that the values stand for in the model that they were drawn for.
    pub(super) fn erase(
        &self,
        erased: &Erased,
        values: &mut Array3<f32>,
        preprocess: &Preprocess,
        layout: ImageLayout,
    ) {
        let planes = match layout {
            ImageLayout::Nchw => values.view_mut(),
            ImageLayout::Nhwc => values.view_mut().permuted_axes([2, 0, 1]),
        };
        let (scale, [top, left, rows, columns]) = (self.scale(preprocess), erased.rectangle);
        let place = |at: usize, axis: usize| (at as f64 * scale[axis]).round() as usize;
        let range = |from: usize, count: usize, axis: usize| place(from, axis)..place(from + count, axis);
        let [down, right] = [range(top, rows, 0), range(left, columns, 1)];
        // The element that lies where one of the other size does.
        let from = |at: usize, axis: usize, first: usize, count: usize| {
            (((at as f64 + 0.5) / scale[axis]) as usize).saturating_sub(first).min(count - 1)
        };
        let reversed = preprocess.channel_order != self.of.channel_order;
        let is_own = !reversed && preprocess.mean == self.of.mean && preprocess.std == self.of.std;
        let (corner, mut part) =
            ([down.start, right.start], planes.slice_move(s![.., down.start..down.end, right.start..right.end]));
        for ((c, y, x), value) in part.indexed_iter_mut() {
            let colour = c % self.of.channels;
            let own = if reversed { self.of.channels - 1 - colour } else { colour };
            let [y, x] = [from(corner[0] + y, 0, top, rows), from(corner[1] + x, 1, left, columns)];
            let filling = erased.values[[own, y, x]];
            *value = match is_own {
                true => filling,
                false => (filling * self.of.std[own] + self.of.mean[own] - preprocess.mean[c]) / preprocess.std[c],
            };
        }
    }
}
