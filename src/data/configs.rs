//! Configurations beside a model: what transformers calls `preprocessor_config.json`, and timm's `config.json`.
//!
//! Both say how pictures were prepared when the model was trained. Optimum puts a model into a folder `onnx/` of a
//! repository, whose configurations are then looked for, too. Nothing in such a file is believed before it is checked:
//! what is malformed, too large, or a transform that is not among ours is an error that names the file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::beside::{folders, json};
use super::transforms::{ChannelOrder, Interpolation, Preprocess, Resize};
use crate::error::{Error, ErrorKind, Result};

/// Far more bytes than any configuration of a transform has.
const MOST: u64 = 1 << 20;
/// What can be done where a configuration cannot be used.
const HINT: &str = "mend or remove the file, or give ⟦mean⟧ and ⟦std⟧, which decide without it";

/// What a configuration says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    /// Where it was read.
    pub path: PathBuf,
    /// Height and width of the model's input.
    pub size: Option<[usize; 2]>,
    /// Means of the channels, or one for all.
    mean: Vec<f32>,
    std: Vec<f32>,
    crop_ratio: f32,
    interpolation: Interpolation,
    resize: Resize,
    channel_order: ChannelOrder,
}

impl Config {
    /// The transform for a model of so many channels and images of this height and width.
    ///
    /// # Errors
    /// Those of [`Preprocess::check`], which name the file.
    pub fn preprocess(&self, size: [usize; 2], channels: usize) -> Result<Preprocess> {
        let each = |list: &Vec<f32>| if list.len() == 1 { vec![list[0]; channels] } else { list.clone() };
        let preprocess = Preprocess {
            size,
            channels,
            mean: each(&self.mean),
            std: each(&self.std),
            crop_ratio: self.crop_ratio,
            interpolation: self.interpolation,
            resize: self.resize,
            channel_order: self.channel_order,
        };
        for (what, list) in [("mean", &preprocess.mean), ("std", &preprocess.std)] {
            if list.len() != channels {
                let text = format!("its {what} has {} entries, and the model takes {channels} channels", list.len());
                return Err(fault(&self.path, text));
            }
        }
        preprocess.check().map_err(|error| fault(&self.path, error.to_string()))?;
        Ok(preprocess)
    }
}

/// The configuration that lies beside a model; transformers' wins over timm's.
///
/// # Errors
/// `Format` for one that cannot be used, `Io` where one cannot be read.
pub(super) fn beside(model: &Path) -> Result<Option<Config>> {
    let folders = folders(model);
    type Reader = fn(&Path, Value) -> Result<Option<Config>>;
    let kinds: [(&str, Reader); 2] = [("preprocessor_config.json", processor), ("config.json", timm)];
    for (name, reader) in kinds {
        for folder in &folders {
            let path = folder.join(name);
            if let Some(value) = json(&path, MOST, HINT)?
                && let Some(config) = reader(&path, value)?
            {
                return Ok(Some(config));
            }
        }
    }
    Ok(None)
}

fn fault(path: &Path, text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, text).at(path).hint(HINT)
}

/// What transformers writes of an image processor. Files of the time of feature extractors lack some keys.
#[derive(Deserialize)]
struct Processor {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Size>,
    default_to_square: Option<bool>,
    resample: Option<Value>,
    crop_pct: Option<f64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    offset: Option<bool>,
    rescale_offset: Option<bool>,
    do_normalize: Option<bool>,
    image_mean: Option<Numbers>,
    image_std: Option<Numbers>,
    do_flip_channel_order: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Both { height: usize, width: usize },
    Short { shortest_edge: usize, longest_edge: Option<usize> },
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(f64),
    Each(Vec<f64>),
}

impl Numbers {
    fn list(&self) -> &[f64] {
        match self {
            Numbers::One(number) => std::slice::from_ref(number),
            Numbers::Each(list) => list,
        }
    }
}

/// Where pictures come to lie: what is resized to which height and width, and the part of it that the model sees.
struct Geometry {
    resize: Resize,
    resized: [usize; 2],
    seen: [usize; 2],
}

impl Geometry {
    /// The share of the resized picture that the crop keeps, such that our transform comes to the same pixels.
    fn crop_ratio(&self) -> Option<f32> {
        let [ratio, other] = [0, 1].map(|axis| self.seen[axis] as f64 / self.resized[axis] as f64);
        let gives = |ratio: f32| {
            let ratio: f64 = ratio.to_string().parse().unwrap_or(1.0);
            [0, 1].iter().all(|&axis| (self.seen[axis] as f64 / ratio).floor() == self.resized[axis] as f64)
        };
        // A ratio that is no short decimal may fall below the whole number that it stands for.
        let between = [0, 1].map(|axis| self.seen[axis] as f64 / (self.resized[axis] as f64 + 0.25));
        let tried = [ratio, other, between[0], between[1]].map(|ratio| ratio as f32);
        tried.into_iter().find(|&ratio| ratio > 0.0 && ratio <= 1.0 && gives(ratio))
    }
}

/// Reads `preprocessor_config.json`. `None` for one of sound or text.
fn processor(path: &Path, value: Value) -> Result<Option<Config>> {
    let keys = ["image_mean", "image_processor_type", "do_resize", "do_normalize", "do_rescale", "resample"];
    if value.is_object() && (value.get("sampling_rate").is_some() || !keys.iter().any(|key| value.get(key).is_some())) {
        return Ok(None);
    }
    let [size_text, crop_text] =
        ["size", "crop_size"].map(|key| value.get(key).map(Value::to_string).unwrap_or_default());
    let processor: Processor = serde_json::from_value(value)
        .map_err(|error| fault(path, format!("no image processor: {error}")).caused_by(error))?;
    let reading = Reading { path, processor, size_text, crop_text };
    let (mean, std) = reading.statistics()?;
    let interpolation = reading.interpolation()?;
    let geometry = reading.geometry()?;
    let crop_ratio = geometry.as_ref().map_or(Ok(1.0), |g| reading.crop_ratio(g))?;
    let reversed = reading.processor.do_flip_channel_order == Some(true);
    Ok(Some(Config {
        path: path.to_path_buf(),
        size: geometry.as_ref().map(|g| g.seen),
        mean,
        std,
        crop_ratio,
        interpolation,
        resize: geometry.map_or(Resize::Square, |g| g.resize),
        channel_order: if reversed { ChannelOrder::Bgr } else { ChannelOrder::Rgb },
    }))
}

/// An image processor that is being read, with what its messages name.
struct Reading<'p> {
    path: &'p Path,
    processor: Processor,
    /// Its size and its crop size as they stand in the file.
    size_text: String,
    crop_text: String,
}

impl Reading<'_> {
    fn fault(&self, text: impl Into<String>) -> Error {
        fault(self.path, text)
    }

    fn unknown(&self, what: &str, size: &str) -> Error {
        self.fault(format!("a {what} to {size} is not among Offshoot's transforms"))
    }

    /// Whether the name of the processor, or of the feature extractor that it once was, begins in one of these ways.
    fn is(&self, names: &[&str]) -> bool {
        let kind = self.processor.image_processor_type.as_ref().or(self.processor.feature_extractor_type.as_ref());
        kind.is_some_and(|kind| names.iter().any(|name| kind.starts_with(name)))
    }

    /// Means and standard deviations of values between 0 and 1.
    fn statistics(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let processor = &self.processor;
        let factor = match processor.do_rescale {
            Some(false) => 1.0,
            _ => processor.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        if !(factor.is_finite() && factor > 0.0) {
            return Err(self.fault(format!("its rescale_factor is {factor}")));
        }
        let offset = if [processor.offset, processor.rescale_offset].contains(&Some(true)) { 1.0 } else { 0.0 };
        let (mean, std) = match (processor.do_normalize, &processor.image_mean, &processor.image_std) {
            (Some(false), ..) => (&[0.0][..], &[1.0][..]),
            (_, Some(mean), Some(std)) => (mean.list(), std.list()),
            _ => return Err(self.fault("it normalises, and names no image_mean and image_std")),
        };
        // (byte * factor - offset - mean) / std of values between 0 and 1. Factors are written with some digits.
        let scale = if (factor * 255.0 - 1.0).abs() < 1e-6 { 1.0 } else { factor * 255.0 };
        let mean = mean.iter().map(|mean| ((mean + offset) / scale) as f32).collect();
        let std = std.iter().map(|std| (std / scale) as f32).collect();
        Ok((mean, std))
    }

    fn interpolation(&self) -> Result<Interpolation> {
        let bicubic = ["CLIP", "ChineseCLIP", "DeiT", "Beit", "Bit", "Siglip", "Levit", "PoolFormer"];
        match &self.processor.resample {
            None if self.is(&bicubic) => Ok(Interpolation::Bicubic),
            None => Ok(Interpolation::Bilinear),
            Some(value) => resampling(value).ok_or_else(|| self.fault(format!("resample {value} is not known"))),
        }
    }

    /// Height and width of the crop in the middle, where there is one.
    fn crop(&self) -> Result<Option<[usize; 2]>> {
        match (self.processor.do_center_crop, &self.processor.crop_size) {
            (Some(true), Some(Size::Side(n))) => Ok(Some([*n; 2])),
            (Some(true), Some(Size::Both { height, width })) => Ok(Some([*height, *width])),
            (Some(true), Some(_)) => Err(self.unknown("crop", &self.crop_text)),
            (Some(true), None) => Err(self.fault("it crops, and names no crop_size")),
            _ => Ok(None),
        }
    }

    /// Where pictures come to lie; `None` where they are neither resized nor cropped.
    fn geometry(&self) -> Result<Option<Geometry>> {
        let short = ["CLIP", "ChineseCLIP", "Bit", "ConvNext", "Levit", "PoolFormer", "MobileNet", "MobileViT"];
        let square = self.processor.default_to_square.unwrap_or(!self.is(&short));
        let crop = self.crop()?;
        let warped = |resized| Geometry { resize: Resize::Square, resized, seen: crop.unwrap_or(resized) };
        let geometry = match self.processor.size.as_ref().filter(|_| self.processor.do_resize != Some(false)) {
            None => match crop {
                Some(seen) => warped(seen),
                None => return Ok(None),
            },
            Some(&Size::Side(n)) if square => warped([n; 2]),
            Some(&Size::Both { height, width }) => warped([height, width]),
            Some(&(Size::Side(n) | Size::Short { shortest_edge: n, longest_edge: None })) => {
                self.short_side(n, crop)?
            }
            Some(_) => return Err(self.unknown("resize", &self.size_text)),
        };
        let Geometry { resized, seen, .. } = &geometry;
        if resized.iter().chain(seen).any(|&n| n == 0 || n > 1 << 16) {
            return Err(self.fault(format!("images of {} x {} pixels are not known", seen[0], seen[1])));
        }
        Ok(Some(geometry))
    }

    /// The geometry where the short side of a picture is to have `n` pixels.
    fn short_side(&self, n: usize, crop: Option<[usize; 2]>) -> Result<Geometry> {
        if self.is(&["ConvNext"]) || self.processor.crop_pct.is_some() {
            // As transformers' ConvNextImageProcessor, which warps what is large.
            let ratio = self.processor.crop_pct.unwrap_or(224.0 / 256.0);
            let side = if n < 384 { (n as f64 / ratio) as usize } else { n };
            let resize = if n < 384 { Resize::ShortSide } else { Resize::Square };
            return Ok(Geometry { resize, resized: [side; 2], seen: [n; 2] });
        }
        let side = if self.is(&["Levit"]) { (256.0 / 224.0 * n as f64) as usize } else { n };
        let seen = crop.unwrap_or([n; 2]);
        // The crop of an oblong image has to come out of the short side.
        if seen[0] != seen[1] {
            let [height, width] = seen;
            return Err(self.fault(format!("a crop of {height} x {width} from a short side of {side} is not known")));
        }
        Ok(Geometry { resize: Resize::ShortSide, resized: [side; 2], seen })
    }

    fn crop_ratio(&self, geometry: &Geometry) -> Result<f32> {
        geometry.crop_ratio().ok_or_else(|| {
            let [[rows, columns], [height, width]] = [geometry.resized, geometry.seen];
            let text = format!("a crop of {height} x {width} from {rows} x {columns}");
            self.fault(format!("{text} is not among Offshoot's transforms"))
        })
    }
}

/// Pillow's filters, by number or by name.
fn resampling(value: &Value) -> Option<Interpolation> {
    match (value.as_u64(), value.as_str()) {
        (Some(0), _) | (_, Some("nearest")) => Some(Interpolation::Nearest),
        (Some(1), _) | (_, Some("lanczos")) => Some(Interpolation::Lanczos),
        (Some(2), _) | (_, Some("bilinear")) => Some(Interpolation::Bilinear),
        (Some(3), _) | (_, Some("bicubic")) => Some(Interpolation::Bicubic),
        _ => None,
    }
}

/// What timm writes of a pretrained model; what it leaves out has timm's defaults.
#[derive(Deserialize)]
struct Pretrained {
    input_size: Option<[usize; 3]>,
    mean: Option<Vec<f32>>,
    std: Option<Vec<f32>>,
    crop_pct: Option<f32>,
    crop_mode: Option<String>,
    interpolation: Option<String>,
}

/// Reads timm's `config.json`. `None` for one that describes a model of another library.
fn timm(path: &Path, value: Value) -> Result<Option<Config>> {
    let Some(of_model) = value.get("pretrained_cfg").or(value.get("default_cfg")).filter(|v| v.is_object()) else {
        return Ok(None);
    };
    let found: Pretrained = serde_json::from_value(of_model.clone())
        .map_err(|error| fault(path, format!("its pretrained_cfg cannot be read: {error}")).caused_by(error))?;
    let defaults = Preprocess::imagenet([224, 224]);
    let resize = match found.crop_mode.as_deref() {
        None | Some("center" | "") => Resize::ShortSide,
        Some("squash") => Resize::Square,
        Some(mode) => return Err(fault(path, format!("crop_mode `{mode}` is not among Offshoot's transforms"))),
    };
    let interpolation = match found.interpolation.as_deref() {
        None | Some("") => defaults.interpolation,
        // As timm, which draws it in training alone.
        Some("random") => Interpolation::Bilinear,
        Some(name) => {
            resampling(&name.into()).ok_or_else(|| fault(path, format!("interpolation `{name}` is not known")))?
        }
    };
    let size = found.input_size.map(|[_, height, width]| [height, width]);
    if size.is_some_and(|size| size.iter().any(|&n| n == 0 || n > 1 << 16)) {
        return Err(fault(path, "its input_size is that of no image"));
    }
    Ok(Some(Config {
        path: path.to_path_buf(),
        size,
        mean: found.mean.unwrap_or(defaults.mean),
        std: found.std.unwrap_or(defaults.std),
        crop_ratio: found.crop_pct.unwrap_or(defaults.crop_ratio),
        interpolation,
        resize,
        channel_order: ChannelOrder::Rgb,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn read_processor(value: Value) -> Result<Config> {
        processor(Path::new("preprocessor_config.json"), value).map(Option::unwrap)
    }

    fn geometry(value: Value) -> (Option<[usize; 2]>, Resize, [usize; 2]) {
        let config = read_processor(value).unwrap();
        let size = config.size.unwrap();
        let ratio: f64 = config.crop_ratio.to_string().parse().unwrap();
        (config.size, config.resize, size.map(|n| (n as f64 / ratio).floor() as usize))
    }

    #[test]
    fn processors_of_transformers_are_read() {
        let with = |more: Value| {
            let mut all = json!({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.5, 0.125], "do_normalize": true});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        // ViT stretches; CLIP keeps the proportions, and its size may be a number; DINOv2 is a BitImageProcessor.
        let vit = with(
            json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 160}, "resample": 2}),
        );
        assert_eq!(geometry(vit.clone()), (Some([224, 160]), Resize::Square, [224, 160]));
        let found = read_processor(vit).unwrap();
        assert_eq!((found.mean, found.std), (vec![0.5, 0.4, 0.3], vec![0.25, 0.5, 0.125]));
        assert_eq!((found.interpolation, found.crop_ratio), (Interpolation::Bilinear, 1.0));
        let old = with(json!({"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3}));
        assert_eq!(geometry(old), (Some([224, 224]), Resize::Square, [224, 224]));
        let clip = json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "do_center_crop": true,
            "crop_size": 224});
        assert_eq!(geometry(with(clip)), (Some([224, 224]), Resize::ShortSide, [224, 224]));
        let crop = json!({"height": 224, "width": 224});
        for side in 224..300 {
            let bit = json!({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": side},
                "do_center_crop": true, "crop_size": crop});
            assert_eq!(geometry(with(bit)), (Some([224, 224]), Resize::ShortSide, [side, side]));
        }
        let deit = json!({"image_processor_type": "DeiTImageProcessor", "size": {"height": 256, "width": 256},
            "do_center_crop": true, "crop_size": crop});
        assert_eq!(geometry(with(deit)), (Some([224, 224]), Resize::Square, [256, 256]));
        let convnext = |side: usize| {
            with(json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": side},
                    "crop_pct": 0.875}))
        };
        assert_eq!(geometry(convnext(224)), (Some([224, 224]), Resize::ShortSide, [256, 256]));
        assert_eq!(geometry(convnext(384)), (Some([384, 384]), Resize::Square, [384, 384]));
        let levit = json!({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224},
            "do_center_crop": true, "crop_size": crop});
        assert_eq!(geometry(with(levit)), (Some([224, 224]), Resize::ShortSide, [256, 256]));
    }

    #[test]
    fn what_is_not_normalised_or_rescaled_is_told_in_other_numbers() {
        let plain = json!({"do_normalize": false, "do_resize": false, "rescale_factor": 0.00392156862745098});
        let found = read_processor(plain).unwrap();
        assert_eq!((found.mean, found.std, found.size), (vec![0.0], vec![1.0], None));
        let bytes = read_processor(json!({"do_normalize": false, "do_rescale": false})).unwrap();
        assert_eq!((bytes.mean, bytes.std), (vec![0.0], vec![super::super::transforms::BYTES]));
        // Caffe's means of bytes, and values from -1 to 1.
        let caffe = json!({"do_rescale": false, "image_mean": [102.0, 127.5, 51.0], "image_std": [1.0, 1.0, 1.0],
            "do_flip_channel_order": true});
        let found = read_processor(caffe).unwrap();
        assert_eq!((found.mean, found.channel_order), (vec![0.4, 0.5, 0.2], ChannelOrder::Bgr));
        let offset = json!({"rescale_factor": 1.0 / 127.5, "rescale_offset": true, "do_normalize": false});
        let found = read_processor(offset).unwrap();
        assert_eq!((found.mean, found.std), (vec![0.5], vec![0.5]));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let normal = json!({"image_mean": 0.5, "image_std": 0.5});
        for more in [
            json!({"image_mean": "much"}),
            json!({"image_mean": null}),
            json!({"size": {"shortest_edge": 800, "longest_edge": 1333}}),
            json!({"size": {"height": 0, "width": 3}}),
            json!({"size": 224, "do_center_crop": true, "crop_size": 256}),
            json!({"size": 224, "do_center_crop": true}),
            json!({"resample": 5}),
            json!({"rescale_factor": 0.0}),
            json!({"size": {"max_height": 3}}),
        ] {
            let mut value = normal.clone();
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let error = read_processor(value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format, "{more}");
            assert!(error.to_string().contains("preprocessor_config.json"), "{error}");
            assert!(error.hint_text().unwrap().contains("`mean` and `std`"));
        }
        assert!(read_processor(json!([1, 2])).is_err());
        // Those of sound are no business of ours.
        let sound =
            json!({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": true, "sampling_rate": 16000});
        assert_eq!(processor(Path::new("p"), sound).unwrap(), None);
    }

    #[test]
    fn configurations_of_timm_are_read() {
        let read = |value: Value| timm(Path::new("config.json"), value);
        let squash = json!({"architecture": "vit", "pretrained_cfg": {"input_size": [3, 32, 48],
            "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.25, 0.5], "crop_pct": 0.9, "crop_mode": "squash"}});
        let found = read(squash).unwrap().unwrap();
        let transform = found.preprocess([32, 48], 3).unwrap();
        assert_eq!((found.size, transform.crop_ratio, transform.resize), (Some([32, 48]), 0.9, Resize::Square));
        assert_eq!((transform.std, transform.interpolation), (vec![0.5, 0.25, 0.5], Interpolation::Bilinear));
        let defaults = read(json!({"pretrained_cfg": {}})).unwrap().unwrap();
        assert_eq!(defaults.preprocess([224, 224], 3).unwrap(), Preprocess::imagenet([224, 224]));
        assert!(defaults.preprocess([28, 28], 1).unwrap_err().to_string().contains("3 entries"));
        assert_eq!(read(json!({"model_type": "vit", "image_size": 224})).unwrap(), None);
        assert_eq!(read(json!([])).unwrap(), None);
        for wrong in [
            json!({"crop_mode": "border"}),
            json!({"mean": 3}),
            json!({"interpolation": "hamming"}),
            json!({"input_size": [3, 0, 1]}),
        ] {
            assert!(read(json!({"pretrained_cfg": wrong})).unwrap_err().to_string().contains("config.json"));
        }
    }

    #[test]
    fn they_are_found_beside_the_model_and_above_a_folder_onnx() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("onnx")).unwrap();
        fs::create_dir_all(path("other")).unwrap();
        let mean_of = |model: &str| beside(&path(model)).unwrap().map(|config| config.mean[0]);
        assert_eq!(mean_of("onnx/model.onnx"), None);
        let of_timm = |mean: f32| json!({"pretrained_cfg": {"mean": [mean, mean, mean]}}).to_string();
        let of_processor = |mean: f32| json!({"image_mean": mean, "image_std": 1.0}).to_string();
        fs::write(path("config.json"), of_timm(0.1)).unwrap();
        assert_eq!((mean_of("onnx/model.onnx"), mean_of("model.onnx")), (Some(0.1), Some(0.1)));
        assert_eq!(mean_of("other/model.onnx"), None);
        fs::write(path("onnx/config.json"), of_timm(0.2)).unwrap();
        assert_eq!(mean_of("onnx/model.onnx"), Some(0.2));
        fs::write(path("preprocessor_config.json"), of_processor(0.3)).unwrap();
        assert_eq!(mean_of("onnx/model.onnx"), Some(0.3));
        fs::write(path("onnx/preprocessor_config.json"), of_processor(0.4)).unwrap();
        assert_eq!(mean_of("onnx/model.onnx"), Some(0.4));
        // The configuration of another library's model says nothing of pictures; what is no JSON is an error, and so is
        // a giant.
        fs::write(path("other/config.json"), json!({"model_type": "vit"}).to_string()).unwrap();
        assert_eq!(mean_of("other/model.onnx"), None);
        fs::create_dir(path("other/preprocessor_config.json")).unwrap();
        assert!(beside(&path("other/model.onnx")).unwrap_err().to_string().contains("not a file"));
        fs::remove_dir(path("other/preprocessor_config.json")).unwrap();
        for text in ["{\"image_mean\": ".to_string(), "[".repeat(100_000), " ".repeat(MOST as usize + 1)] {
            fs::write(path("other/preprocessor_config.json"), text).unwrap();
            let error = beside(&path("other/model.onnx")).unwrap_err();
            assert!(error.to_string().contains("preprocessor_config.json"), "{error}");
        }
    }
}
