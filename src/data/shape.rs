//! The shape of a model's image input.

use ndarray::{Array4, ArrayBase, Ix3, RawData};

use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{data_inputs, declared_dims, declared_type};
use crate::onnx::DataType;

/// The order of the axes of a model's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageLayout {
    /// `[images, channels, height, width]`.
    #[default]
    Nchw,
    /// `[images, height, width, channels]`.
    Nhwc,
}

impl ImageLayout {
    /// Values `[channels, height, width]` in this order.
    pub(super) fn arrange<S: RawData>(self, values: ArrayBase<S, Ix3>) -> ArrayBase<S, Ix3> {
        match self {
            ImageLayout::Nchw => values,
            ImageLayout::Nhwc => values.permuted_axes([1, 2, 0]),
        }
    }

    /// Height and width of images in this order.
    pub(super) fn size(self, images: &Array4<f32>) -> [usize; 2] {
        match (self, images.dim()) {
            (ImageLayout::Nchw, (_, _, height, width)) | (ImageLayout::Nhwc, (_, height, width, _)) => [height, width],
        }
    }
}

/// The shape of one image of a model's input, and the order of its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// The number of channels.
    pub channels: usize,
    /// The height in pixels.
    pub height: usize,
    /// The width in pixels.
    pub width: usize,
    /// The order of the axes.
    pub layout: ImageLayout,
}

impl InputShape {
    /// The shape of a model's image input: its first input of four dimensions. Channels that it leaves open are three.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the model has no such input.
    pub fn of(typing: &Typing) -> Result<Self> {
        match typing.image_input() {
            Some(([_, height, width, channels], true)) => {
                Ok(InputShape { channels, height, width, layout: ImageLayout::Nhwc })
            }
            Some(([_, channels, height, width], false)) => {
                Ok(InputShape { channels, height, width, layout: ImageLayout::Nchw })
            }
            None => Err(no_images(typing)),
        }
    }
}

/// Why a model takes no images: its input is a tensor of another kind, or text.
fn no_images(typing: &Typing) -> Error {
    let error = |why: String| Error::new(ErrorKind::Unsupported, format!("{why}, so it takes no images"));
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double].map(|t| Some(t as i32));
    match data_inputs(typing.graph).into_iter().find(|v| floats.contains(&declared_type(v))) {
        Some(input) => {
            let rank = declared_dims(input).map_or(0, |d| d.len());
            error(format!("the model's input `{}` has {rank} dimensions and not four", input.name())).hint(
                "images are fed as [batch, channels, height, width] or [batch, height, width, channels]; `inspect` and \
                 `grow ⟦no-images⟧` need none",
            )
        }
        None => error("the model has no input of four dimensions".into()).hint(
            "give texts (⟦texts⟧ FILE) where it takes tokens, or arrays for its inputs (⟦inputs⟧ FILE.npz); `inspect` \
             and `grow ⟦no-images⟧` need none",
        ),
    }
}
