//! The evaluation transform: resize, centre crop, normalise, as timm and torchvision do it.

use std::borrow::Cow;
use std::str::FromStr;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::DynamicImage;
use ndarray::{Array3, ArrayView3, Axis, s};
use serde::{Deserialize, Serialize};

use super::super::decode::{Pixels, pixels};
use super::super::limits::MAXIMAL_BYTES;
use super::super::shape::ImageLayout;
use crate::error::{Error, ErrorKind, Result};

/// How pictures become the input of a model; the default is what ImageNet models are evaluated with.
///
/// The JSON form is part of the file format of Offshoot's models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Height and width of the model's input, in pixels.
    pub size: [usize; 2],
    /// Channels of the model's input: 3 for RGB, 1 for grey.
    pub channels: usize,
    /// What is subtracted from each channel, whose values are between 0 and 1.
    pub mean: Vec<f32>,
    /// What each channel is then divided by.
    pub std: Vec<f32>,
    /// The side of the crop over the side of the resized picture, above 0 and at most 1.
    pub crop_ratio: f32,
    /// The filter of the resize.
    pub interpolation: Interpolation,
    /// What the resize does with the proportions of the picture.
    pub resize: Resize,
    /// The order in which the model takes colours; mean and standard deviation are in the same.
    #[serde(default, skip_serializing_if = "ChannelOrder::is_rgb")]
    pub channel_order: ChannelOrder,
}

/// The order of colours in a model's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelOrder {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red, as OpenCV and Caffe have it.
    Bgr,
}

impl ChannelOrder {
    fn is_rgb(&self) -> bool {
        *self == ChannelOrder::Rgb
    }
}

/// The filter that resizes pictures, antialiased as in Pillow, except for `Nearest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Cubic convolution with a = -0.5.
    Bicubic,
    /// The triangle filter.
    Bilinear,
    /// The windowed sinc with three lobes.
    Lanczos,
    /// The nearest pixel.
    Nearest,
}

/// What a resize does with the proportions of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Keeps them: the picture just covers the target.
    ShortSide,
    /// Gives them up: the picture is stretched to the target.
    Square,
}

/// How images are made ready for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct InputTransform {
    /// The transform of pictures; `None` for tensors.
    pub preprocess: Option<Preprocess>,
    /// The order of the axes.
    pub layout: ImageLayout,
}

/// What the command line says about preprocessing; what it does not say is taken from elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PreprocessFlags {
    /// See [`Preprocess::mean`]; a single entry stands for all channels.
    pub mean: Option<Vec<f32>>,
    /// See [`Preprocess::std`]; a single entry stands for all channels.
    pub std: Option<Vec<f32>>,
    /// See [`Preprocess::crop_ratio`].
    pub crop_ratio: Option<f32>,
    /// See [`Preprocess::interpolation`].
    pub interpolation: Option<Interpolation>,
    /// See [`Preprocess::resize`].
    pub resize: Option<Resize>,
    /// See [`Preprocess::channel_order`].
    pub channel_order: Option<ChannelOrder>,
}

impl PreprocessFlags {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == PreprocessFlags::default()
    }
}

/// Reads the name that the variant has in JSON, so that flags and files spell it alike.
fn from_name<T: for<'de> Deserialize<'de>>(name: &str, known: &str) -> Result<T> {
    serde_json::from_value(name.into())
        .map_err(|_| Error::new(ErrorKind::Usage, format!("`{name}` is not one of {known}")))
}

impl FromStr for Interpolation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        from_name(name, "bicubic, bilinear, lanczos, nearest")
    }
}

impl FromStr for Resize {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        from_name(name, "short-side, square")
    }
}

impl FromStr for ChannelOrder {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        from_name(name, "rgb, bgr")
    }
}

/// The standard deviation that leaves pixels what they are: 0 to 255.
pub(crate) const BYTES: f32 = 1.0 / 255.0;

impl Preprocess {
    /// What RGB models trained on ImageNet are evaluated with, for an input of the given height and width.
    pub fn imagenet(size: [usize; 2]) -> Self {
        Preprocess {
            size,
            channels: 3,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            crop_ratio: 0.875,
            interpolation: Interpolation::Bicubic,
            resize: Resize::ShortSide,
            channel_order: ChannelOrder::Rgb,
        }
    }

    /// The transform for a model whose input has `channels` channels and `size`, a height and a width: the flags win
    /// over the model's `metadata`, a transform in JSON, and that over the defaults of ImageNet, which only RGB models
    /// have.
    ///
    /// # Errors
    ///
    /// `Format` if the metadata is no transform; `Usage` if the flags make no sense, or if a model that is not RGB says
    /// nothing of its mean and standard deviation.
    pub fn resolve(flags: &PreprocessFlags, metadata: Option<&str>, channels: usize, size: [usize; 2]) -> Result<Self> {
        let known = metadata.map(serde_json::from_str::<Preprocess>).transpose().map_err(|error| {
            Error::new(ErrorKind::Format, format!("the model's metadata describes no preprocessing: {error}"))
                .caused_by(error)
                .hint("grow or tune the model again, or remove `offshoot.preprocess` from its metadata")
        })?;
        if known.is_none() && channels != 3 && (flags.mean.is_none() || flags.std.is_none()) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("how to normalise images is not known for a model of {channels} channels"),
            )
            .hint("give ⟦mean⟧ and ⟦std⟧, as they were in training"));
        }
        let mut preprocess = Preprocess { size, channels, ..known.unwrap_or_else(|| Preprocess::imagenet(size)) };
        let PreprocessFlags { mean, std, crop_ratio, interpolation, resize, channel_order } = flags.clone();
        preprocess.mean = mean.unwrap_or(preprocess.mean);
        preprocess.std = std.unwrap_or(preprocess.std);
        preprocess.crop_ratio = crop_ratio.unwrap_or(preprocess.crop_ratio);
        preprocess.interpolation = interpolation.unwrap_or(preprocess.interpolation);
        preprocess.resize = resize.unwrap_or(preprocess.resize);
        preprocess.channel_order = channel_order.unwrap_or(preprocess.channel_order);
        for list in [&mut preprocess.mean, &mut preprocess.std] {
            if let [value] = list[..] {
                *list = vec![value; channels];
            }
        }
        preprocess.check()?;
        Ok(preprocess)
    }

    /// Whether pixels are fed as they are decoded: 0 to 255.
    pub fn feeds_bytes(&self) -> bool {
        self.mean.iter().all(|&mean| mean == 0.0) && self.std.iter().all(|&std| std == BYTES)
    }

    /// Checks that the transform makes sense.
    ///
    /// # Errors
    ///
    /// `Usage`, naming the flag that puts it right.
    pub fn check(&self) -> Result<()> {
        let channels = self.channels;
        if channels != 1 && channels != 3 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("pictures have 1 or 3 channels, and the model takes {channels}"),
            )
            .hint("give preprocessed images in an .npy or .npz file"));
        }
        if self.size.contains(&0) {
            bail!(Usage, "the size of the model's input is 0");
        }
        for (flag, list) in [("⟦mean⟧", &self.mean), ("⟦std⟧", &self.std)] {
            if list.len() != channels {
                bail!(Usage, "{flag} has {} entries; a model of {channels} channels takes 1 or {channels}", list.len());
            }
            if !list.iter().all(|value| value.is_finite()) {
                bail!(Usage, "{flag} must be finite");
            }
        }
        if !self.std.iter().all(|&value| value > 0.0) {
            bail!(Usage, "⟦std⟧ must be above 0");
        }
        if !(self.crop_ratio > 0.0 && self.crop_ratio <= 1.0) {
            bail!(Usage, "⟦crop-ratio⟧ must be above 0 and at most 1, not {}", self.crop_ratio);
        }
        Ok(())
    }

    /// Transforms a picture into values `[channels, height, width]`, or `[height, width, channels]` for
    /// [`ImageLayout::Nhwc`].
    ///
    /// # Errors
    ///
    /// `Usage` if the transform fails its [check](Preprocess::check); `Images` if the picture is empty, or so elongated
    /// that it would fill the memory once its short side has the right size.
    pub fn apply(&self, image: DynamicImage, layout: ImageLayout) -> Result<Array3<f32>> {
        self.check()?;
        Ok(self.normalise(self.centre_crop(&pixels(image, self.channels))?.view(), layout))
    }

    /// The pixels that the model sees: resized, and cropped to the centre.
    pub(crate) fn centre_crop(&self, pixels: &Pixels) -> Result<Pixels> {
        let [height, width] = self.size;
        let (rows, columns, _) = pixels.dim();
        let resized = self.resized([rows, columns]);
        let [top, left] = [0, 1].map(|axis| crop_offset(resized[axis], self.size[axis]));
        let resized = resample(pixels, resized, self.interpolation)?;
        Ok(resized.slice_move(s![top..top + height, left..left + width, ..]))
    }

    /// The values that stand for pixels, in the order that the model takes.
    pub(crate) fn normalise(&self, pixels: ArrayView3<u8>, layout: ImageLayout) -> Array3<f32> {
        // A channel has only 256 different values: normalise those, rather than every pixel.
        let normalised: Vec<[f32; 256]> = self
            .mean
            .iter()
            .zip(&self.std)
            .map(|(&mean, &std)| std::array::from_fn(|byte| normal(byte as f32, mean, std)))
            .collect();
        let (height, width, channels) = pixels.dim();
        let pixels = match self.channel_order {
            ChannelOrder::Rgb => pixels,
            ChannelOrder::Bgr => pixels.slice_move(s![.., .., ..;-1]),
        };
        let value = |y, x, c: usize| normalised[c][usize::from(pixels[[y, x, c]])];
        match layout {
            ImageLayout::Nchw => Array3::from_shape_fn((channels, height, width), |(c, y, x)| value(y, x, c)),
            ImageLayout::Nhwc => Array3::from_shape_fn((height, width, channels), |(y, x, c)| value(y, x, c)),
        }
    }

    /// The height and width to which a picture of `rows` and `columns` is resized, before the crop. Neither is below
    /// that of the crop.
    fn resized(&self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        // A ratio such as 0.8 is not a float32, and the one next to it gives 279 pixels where timm gives 280. The
        // shortest decimal that stands for it is what the user or the timm configuration said.
        let ratio = self.crop_ratio.to_string().parse().unwrap_or(1.0f64);
        // A tiny ratio asks for more than any picture can be given, which `resample` refuses; here it must not
        // overflow.
        let [height, width] = self.size.map(|side| (side as f64 / ratio).floor().min(u32::MAX.into()) as usize);
        match self.resize {
            Resize::Square => [height, width],
            Resize::ShortSide if rows == 0 || columns == 0 => [height, width],
            Resize::ShortSide if rows * width <= columns * height => [height, height * columns / rows],
            Resize::ShortSide => [width * rows / columns, width],
        }
    }
}

/// The value that stands for a byte. Whole numbers stay whole where they are neither shifted nor scaled.
fn normal(byte: f32, mean: f32, std: f32) -> f32 {
    if mean == 0.0 && std == BYTES { byte } else { (byte / 255.0 - mean) / std }
}

/// Where the centre crop starts: as in torchvision, halves are rounded to even.
fn crop_offset(resized: usize, size: usize) -> usize {
    ((resized - size) as f64 / 2.0).round_ties_even() as usize
}

/// Resizes pixels to the given rows and columns.
pub(crate) fn resample(source: &Pixels, resized: [usize; 2], interpolation: Interpolation) -> Result<Pixels> {
    let (rows, columns, channels) = source.dim();
    let bytes = resized.iter().try_fold(3_u64, |product, &side| product.checked_mul(side as u64));
    if bytes.is_none_or(|bytes| bytes > MAXIMAL_BYTES) {
        bail!(
            Images,
            "a picture of {columns} x {rows} pixels cannot be used: it would be resized to {} x {}",
            resized[1],
            resized[0]
        );
    }
    if rows == 0 || columns == 0 {
        bail!(Images, "the picture has no pixels");
    }
    let filter = match interpolation {
        Interpolation::Bicubic => FilterType::CatmullRom,
        Interpolation::Bilinear => FilterType::Bilinear,
        Interpolation::Lanczos => FilterType::Lanczos3,
        Interpolation::Nearest => {
            let [rows_taken, columns_taken] = [nearest(rows, resized[0]), nearest(columns, resized[1])];
            return Ok(source.select(Axis(0), &rows_taken).select(Axis(1), &columns_taken));
        }
    };
    let source = source.as_standard_layout();
    let bytes = source.as_slice().unwrap_or_default();
    // Grey pictures are resized as coloured ones, so that the library's code is compiled for one pixel type.
    let bytes: Cow<[u8]> = match channels {
        1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
        _ => bytes.into(),
    };
    // One axis after the other, since Pillow starts with the columns, and this library, left alone, with the rows:
    // around hard edges, what the first pass cuts off at black and white makes a visible difference.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let narrow = resample_pass(&bytes, [rows, columns], [rows, resized[1]], &options)?;
    let mut bytes = resample_pass(&narrow, [rows, resized[1]], resized, &options)?;
    if channels == 1 {
        bytes = bytes.into_iter().step_by(3).collect();
    }
    Array3::from_shape_vec((resized[0], resized[1], channels), bytes)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// The positions, among `from`, of the pixels that stand for each of `to`. Summed up as Pillow does, for where the
/// middle of a pixel falls between two others, the rounding of the sum decides.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    std::iter::successors(Some(step * 0.5), |middle| Some(middle + step))
        .map(|middle| (middle as usize).min(from - 1))
        .take(to)
        .collect()
}

/// Resizes three channels. The pixel type is named, so that the library's code is compiled for it alone.
fn resample_pass(source: &[u8], from: [usize; 2], to: [usize; 2], options: &ResizeOptions) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::error::Error| Error::new(ErrorKind::Internal, error.to_string());
    let view =
        TypedImageRef::<U8x3>::from_buffer(from[1] as u32, from[0] as u32, source).map_err(|error| failed(&error))?;
    let mut bytes = vec![0; to[0] * to[1] * 3];
    let mut result =
        TypedImage::<U8x3>::from_buffer(to[1] as u32, to[0] as u32, &mut bytes).map_err(|error| failed(&error))?;
    Resizer::new().resize_typed(&view, &mut result, options).map_err(|error| failed(&error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};

    use super::super::super::testing::resize_fixture as fixture;
    use super::*;

    #[test]
    fn resizes_like_pillow() {
        use Interpolation::*;
        for (name, interpolation) in [
            ("down-bicubic", Bicubic),
            ("down-bilinear", Bilinear),
            ("down-lanczos", Lanczos),
            ("down-nearest", Nearest),
            ("up-bicubic", Bicubic),
            ("up-bilinear", Bilinear),
        ] {
            let expected = fixture(name);
            let source = pixels(fixture("source"), 3);
            let sides = [expected.height() as usize, expected.width() as usize];
            let actual = resample(&source, sides, interpolation).unwrap();
            assert_eq!(actual.len(), expected.as_bytes().len());
            let difference = actual.iter().zip(expected.as_bytes()).map(|(a, b)| a.abs_diff(*b)).max();
            println!("{name}: {difference:?}");
            assert!(difference <= Some(2), "{name}: {difference:?}");
        }
    }

    #[test]
    fn geometry_is_that_of_torchvision() {
        let imagenet = Preprocess::imagenet([224, 224]);
        // 256 * 500 / 375 = 341.3; (341 - 224) / 2 = 58.5, rounded to even.
        assert_eq!(imagenet.resized([375, 500]), [256, 341]);
        assert_eq!(imagenet.resized([500, 375]), [341, 256]);
        assert_eq!(crop_offset(256, 224), 16);
        assert_eq!(crop_offset(341, 224), 58);
        assert_eq!(crop_offset(343, 224), 60);
        assert_eq!(crop_offset(224, 224), 0);
        let decimal = Preprocess { crop_ratio: 0.8, ..imagenet.clone() };
        assert_eq!(decimal.resized([10, 10]), [280, 280]);
        let square = Preprocess { resize: Resize::Square, ..imagenet };
        assert_eq!(square.resized([375, 500]), [256, 256]);
        // A wide target: the picture must cover both sides.
        let wide = Preprocess { crop_ratio: 1.0, ..Preprocess::imagenet([100, 200]) };
        assert_eq!(wide.resized([300, 400]), [150, 200]);
        assert_eq!(wide.resized([100, 400]), [100, 400]);
    }

    #[test]
    fn crops_the_centre_and_normalises() {
        // Columns 0 to 5 hold 0, 10, .. 50; the crop of 2 x 2 from 2 x 6 keeps columns 2 and 3.
        let image = GrayImage::from_fn(6, 2, |x, _| Luma([x as u8 * 10]));
        let preprocess = Preprocess {
            channels: 1,
            mean: vec![0.5],
            std: vec![0.25],
            crop_ratio: 1.0,
            ..Preprocess::imagenet([2, 2])
        };
        let actual = preprocess.apply(image.into(), ImageLayout::Nchw).unwrap();
        let value = |byte: f32| (byte / 255.0 - 0.5) / 0.25;
        let (left, right) = (value(20.0), value(30.0));
        assert_eq!(actual, ndarray::array![[[left, right], [left, right]]]);
    }

    #[test]
    fn bytes_stay_whole_and_colours_change_places() {
        let bytes =
            Preprocess { mean: vec![0.0; 3], std: vec![BYTES; 3], crop_ratio: 1.0, ..Preprocess::imagenet([1, 1]) };
        let values = |preprocess: &Preprocess, colour| {
            let image = RgbImage::from_pixel(1, 1, Rgb(colour));
            preprocess.apply(image.into(), ImageLayout::Nchw).unwrap().into_raw_vec_and_offset().0
        };
        for byte in 0..=255u8 {
            assert_eq!(values(&bytes, [byte, 0, 255]), [f32::from(byte), 0.0, 255.0]);
        }
        // Read again from JSON, and given as a flag, it is the same number.
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), bytes);
        let reversed = Preprocess { mean: vec![0.0, 0.0, 1.0], channel_order: ChannelOrder::Bgr, ..bytes };
        assert_eq!(values(&reversed, [255, 20, 30]), [30.0, 20.0, 0.0]);
        let json = serde_json::to_string(&reversed).unwrap();
        assert!(json.ends_with(r#""channel_order":"bgr"}"#), "{json}");
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), reversed);
    }

    #[test]
    fn layouts_hold_the_same_values() {
        let preprocess = Preprocess::imagenet([32, 48]);
        let planar = preprocess.apply(fixture("source"), ImageLayout::Nchw).unwrap();
        let interleaved = preprocess.apply(fixture("source"), ImageLayout::Nhwc).unwrap();
        assert_eq!(planar.dim(), (3, 32, 48));
        assert_eq!(interleaved.dim(), (32, 48, 3));
        assert_eq!(planar.permuted_axes([1, 2, 0]), interleaved);
    }

    #[test]
    fn elongated_and_empty_pictures_are_image_errors() {
        let preprocess = Preprocess::imagenet([224, 224]);
        let tiny = Preprocess { crop_ratio: 1e-38, ..preprocess.clone() };
        assert!(tiny.apply(RgbImage::new(9, 7).into(), ImageLayout::Nchw).is_err());
        for (width, height) in [(65_535, 1), (0, 3), (3, 0)] {
            let error = preprocess.apply(RgbImage::new(width, height).into(), ImageLayout::Nchw).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Images);
        }
    }

    #[test]
    fn flags_win_over_metadata_and_metadata_over_defaults() {
        let size = [32, 32];
        let resolve = |flags: &PreprocessFlags, metadata| Preprocess::resolve(flags, metadata, 3, size).unwrap();
        let none = PreprocessFlags::default();
        assert!(none.is_empty());
        assert_eq!(resolve(&none, None), Preprocess::imagenet(size));
        let metadata = r#"{"size": [224, 224], "channels": 3, "mean": [0.5], "std": [0.25, 0.5, 0.75],
            "crop_ratio": 0.9, "interpolation": "bilinear", "resize": "square"}"#;
        let stored = Preprocess {
            size,
            channels: 3,
            mean: vec![0.5; 3],
            std: vec![0.25, 0.5, 0.75],
            crop_ratio: 0.9,
            interpolation: Interpolation::Bilinear,
            resize: Resize::Square,
            channel_order: ChannelOrder::Rgb,
        };
        assert_eq!(resolve(&none, Some(metadata)), stored);
        let flags = PreprocessFlags { mean: Some(vec![0.1, 0.2, 0.3]), resize: Some(Resize::ShortSide), ..none };
        assert!(!flags.is_empty());
        let both = Preprocess { mean: vec![0.1, 0.2, 0.3], resize: Resize::ShortSide, ..stored };
        assert_eq!(resolve(&flags, Some(metadata)), both);
    }

    #[test]
    fn senseless_flags_are_usage_errors() {
        let resolve = |flags, channels| {
            Preprocess::resolve(&flags, None, channels, [32, 32]).inspect_err(|error| {
                assert_eq!(error.kind(), ErrorKind::Usage);
            })
        };
        let flags = |mean: &[f32], std: &[f32], crop_ratio| PreprocessFlags {
            mean: Some(mean.to_vec()),
            std: Some(std.to_vec()),
            crop_ratio: Some(crop_ratio),
            ..PreprocessFlags::default()
        };
        let error = resolve(PreprocessFlags::default(), 1).unwrap_err();
        assert!(error.hint_text().unwrap().contains("`mean`"));
        assert!(resolve(flags(&[0.5], &[0.5], 1.0), 1).is_ok());
        assert!(resolve(flags(&[0.5], &[0.5], 1.0), 4).is_err());
        assert!(resolve(flags(&[0.5; 2], &[0.5], 1.0), 3).is_err());
        assert!(resolve(flags(&[0.5], &[], 1.0), 3).is_err());
        assert!(resolve(flags(&[0.5], &[0.5, 0.0, 0.5], 1.0), 3).is_err());
        assert!(resolve(flags(&[f32::NAN], &[0.5], 1.0), 3).is_err());
        for ratio in [0.0, -1.0, 1.1, f32::NAN] {
            assert!(resolve(flags(&[0.5], &[0.5], ratio), 3).is_err());
        }
        let error = Preprocess::resolve(&PreprocessFlags::default(), Some("{}"), 3, [32, 32]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
    }

    #[test]
    fn json_is_stable() {
        let json = serde_json::to_string(&Preprocess::imagenet([224, 224])).unwrap();
        assert_eq!(
            json,
            r#"{"size":[224,224],"channels":3,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"crop_ratio":0.875,"interpolation":"bicubic","resize":"short-side"}"#
        );
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), Preprocess::imagenet([224, 224]));
        assert_eq!("lanczos".parse::<Interpolation>().unwrap(), Interpolation::Lanczos);
        assert!("cubic".parse::<Interpolation>().is_err());
        assert_eq!("square".parse::<Resize>().unwrap(), Resize::Square);
    }
}
