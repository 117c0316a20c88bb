//! Images: how they are prepared, and where labelled ones are.

use std::path::PathBuf;

use clap::Args;

use crate::data::{ChannelOrder, DatasetOptions, Interpolation, PreprocessFlags, Resize};

/// What a model is run on.
#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = false)]
pub struct SampleFlags {
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// Arrays instead, one for each input by its name: an .npz archive, a folder of .npy files, or a .safetensors file
    ///
    /// The first axis of each is the sample; the others and the type are those that the input declares. Tokens at the
    /// zeros of an input that is called `attention_mask` are padding and count nowhere. An array
    /// `special_tokens_mask`, ones for tokens that stand for no content, keeps these out of densities.
    #[arg(long, value_name = "PATH")]
    pub inputs: Option<PathBuf>,
}

/// How images are prepared.
#[derive(Args, Clone, Debug, Default)]
pub struct TransformFlags {
    /// Mean of each channel after scaling to [0, 1], or one for all
    #[arg(
        long,
        value_name = "M,M,M",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, or one for all
    #[arg(
        long,
        value_name = "S,S,S",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub std: Option<Vec<f32>>,
    /// Share of the resized image that the centre crop keeps
    #[arg(long, value_name = "R", help_heading = "Preprocessing", allow_negative_numbers = true)]
    pub crop_ratio: Option<f32>,
    /// Interpolation of the resize: bicubic, bilinear, lanczos or nearest
    #[arg(long, value_name = "KIND", help_heading = "Preprocessing")]
    pub interpolation: Option<Interpolation>,
    /// What is resized: short-side (aspect ratio kept) or square
    #[arg(long, value_name = "RULE", help_heading = "Preprocessing")]
    pub resize: Option<Resize>,
    /// Order in which the model takes colours: rgb or bgr; --mean and --std are in the same
    #[arg(long, value_name = "ORDER", help_heading = "Preprocessing")]
    pub channel_order: Option<ChannelOrder>,
    /// Use the first N images, or samples of arrays, only
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

impl TransformFlags {
    /// As options of the library.
    pub fn preprocess(&self) -> PreprocessFlags {
        PreprocessFlags {
            mean: self.mean.clone(),
            std: self.std.clone(),
            crop_ratio: self.crop_ratio,
            interpolation: self.interpolation,
            resize: self.resize,
            channel_order: self.channel_order,
        }
    }

    /// The most images that are used.
    pub fn limit(&self) -> Option<usize> {
        self.limit.map(|n| n as usize)
    }
}

/// Labelled images.
#[derive(Args, Clone, Debug, Default)]
pub struct DataFlags {
    /// Data set: a folder with a folder per class, IDX files, an .npz with x and y, CIFAR binaries, WebDataset tars, or
    /// Parquet
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Parquet's column of images [default: image or img], or the field of a tar's samples [default: a bare extension]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub image_column: Option<String>,
    /// Parquet's column of labels [default: label, labels or fine_label]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub label_column: Option<String>,
    /// Stop at an image that cannot be read, instead of leaving it out
    #[arg(long, help_heading = "Data")]
    pub strict: bool,
}

impl DataFlags {
    /// As options of the library.
    pub fn options(&self, ignore_labels: bool) -> DatasetOptions {
        let (image_column, label_column) = (self.image_column.clone(), self.label_column.clone());
        DatasetOptions { ignore_labels, image_column, label_column }
    }
}
