//! Random transforms for training, with the semantics of torchvision and timm.
//!
//! An [`Augmentation`] says what may happen to a picture; what does happen is drawn from a generator that the caller
//! seeds. The order is that of timm: crop, flip, RandAugment, colour jitter, normalisation, random erasing.

use std::fmt;
use std::str::FromStr;

use image::DynamicImage;
use ndarray::{Array3, ArrayView3, Axis, s};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::super::decode::pixels;
use super::super::random::Generator;
use super::super::shape::ImageLayout;
use super::draw::{Draw, DrawnCrop, Erased};
use super::ops::Operation;
use super::preprocess::Preprocess;
use super::rand_augment::RandAugment;
use crate::error::{Error, ErrorKind, Result};

/// The area of a random crop, as in Inception: between 8 % of the picture and all of it.
const SCALE: [f64; 2] = [0.08, 1.0];

/// The width over the height of a random crop.
const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// Models whose input is no wider get small pictures, which a padded crop suits better than a zoom.
const SMALL: usize = 64;

const KNOWN: &str = "presets are none, light, standard and deit; settings are crop=0.08..1, crop=none, \
    ratio=0.75..1.33, \
                     pad=4, flip=0.5, jitter=0.4, randaugment=rand-m9-n2-mstd0.5-inc1, erase=0.25, erase-mode=pixel";

/// What may happen to a picture in training.
///
/// As text, it is a preset, settings, or both: `deit`, `standard,flip=0`, `crop=0.35..1,flip=0.5`. Settings without a
/// preset are added to `none`. As JSON, it is that text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Augmentation {
    /// What is cut out of the picture.
    pub crop: Crop,
    /// The probability of a horizontal flip.
    pub flip: f64,
    /// How far brightness, contrast and saturation may be from 1, as torchvision's `ColorJitter`.
    pub jitter: [f64; 3],
    /// Random operations on the picture.
    pub rand_augment: Option<RandAugment>,
    /// The probability that a random rectangle is erased (Zhong et al. 2017, arXiv:1708.04896).
    pub erase: f64,
    /// What an erased rectangle is filled with.
    pub erase_mode: EraseMode,
}

/// What is cut out of a picture for training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Crop {
    /// What the evaluation transform takes.
    #[default]
    Evaluation,
    /// A random place in what the evaluation transform takes, with a border of so many black pixels (zeros in tensors).
    Padded(usize),
    /// A random part, resized to the input of the model, as torchvision's `RandomResizedCrop`.
    Resized {
        /// The least and the greatest area, as shares of the picture.
        scale: [f64; 2],
        /// The least and the greatest width over height.
        ratio: [f64; 2],
    },
    /// `Padded` by an eighth of the side for inputs of up to 64 pixels and for tensors, else `Resized` to between half
    /// and all of the picture.
    Mild,
}

/// What an erased rectangle is filled with, after normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseMode {
    /// Zeros.
    Const,
    /// One colour, whose channels are drawn from the normal distribution.
    Rand,
    /// Values that are all drawn from the normal distribution.
    #[default]
    Pixel,
}

impl Augmentation {
    /// Nothing random: the evaluation transform.
    pub fn none() -> Self {
        Augmentation::default()
    }

    /// A mild crop, and flips.
    pub fn light() -> Self {
        Augmentation { crop: Crop::Mild, flip: 0.5, ..Augmentation::none() }
    }

    /// Random resized crops, and flips.
    pub fn standard() -> Self {
        Augmentation { crop: Crop::Resized { scale: SCALE, ratio: RATIO }, flip: 0.5, ..Augmentation::none() }
    }

    /// What DeiT was trained with (Touvron et al. 2020, arXiv:2012.12877): `standard`, RandAugment
    /// `rand-m9-mstd0.5-inc1`, and random erasing of pixels. Its recipe also names a colour jitter of 0.4, which timm
    /// leaves out where there is RandAugment; `deit,jitter=0.4` puts it in.
    pub fn deit() -> Self {
        Augmentation { rand_augment: Some(RandAugment::default()), erase: 0.25, ..Augmentation::standard() }
    }

    /// Whether nothing random happens.
    pub fn is_none(&self) -> bool {
        Augmentation { erase_mode: EraseMode::default(), ..self.clone() } == Augmentation::none()
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    ///
    /// `Usage`, naming the setting.
    pub fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(ErrorKind::Usage, message).hint(KNOWN));
        for (name, value) in [("flip", self.flip), ("erase", self.erase)] {
            if !(0.0..=1.0).contains(&value) {
                return wrong(format!("{name} is a probability, from 0 to 1, not {value}"));
            }
        }
        if self.jitter.iter().any(|value| !(0.0..=10.0).contains(value)) {
            return wrong(format!("jitter is from 0 to 10, not {:?}", self.jitter));
        }
        match self.crop {
            Crop::Resized { scale: [low, high], .. } if !(low > 0.0 && low <= high && high <= 1.0) => {
                return wrong(format!(
                    "the areas of a crop are shares that ascend, above 0 and up to 1, not {low}..{high}"
                ));
            }
            Crop::Resized { ratio: [low, high], .. } if !(low > 0.0 && low <= high && high.is_finite()) => {
                return wrong(format!("the ratios of a crop are above 0 and ascend, not {low}..{high}"));
            }
            Crop::Padded(width) if width > 256 => return wrong(format!("pad is up to 256 pixels, not {width}")),
            _ => {}
        }
        if let Some(RandAugment { magnitude, layers, deviation, probability }) = self.rand_augment
            && !((0.0..=10.0).contains(&magnitude)
                && layers <= 100
                && deviation >= 0.0
                && deviation.is_finite()
                && (0.0..=1.0).contains(&probability))
        {
            return wrong("RandAugment takes m0 to m10, n0 to n100, mstd0 and more, and p0 to p1".into());
        }
        Ok(())
    }

    /// Checks that tensors, which are preprocessed already, can be augmented like this.
    ///
    /// # Errors
    ///
    /// `Usage`, naming the setting that cannot.
    pub fn check_tensors(&self) -> Result<()> {
        let problem = match self {
            Augmentation { crop: Crop::Resized { .. }, .. } => "a resized crop",
            Augmentation { rand_augment: Some(_), .. } => "RandAugment",
            Augmentation { jitter, .. } if jitter.iter().any(|&value| value > 0.0) => "colour jitter",
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::Usage, format!("{problem} needs pictures, and these images are preprocessed values"))
            .hint("use ⟦augment⟧ none or light, or pad=4,flip=0.5,erase=0.25; or give pictures"))
    }

    /// Transforms a picture into values `[channels, height, width]`, or `[height, width, channels]` for
    /// [`ImageLayout::Nhwc`].
    ///
    /// # Errors
    ///
    /// As [`Preprocess::apply`].
    pub(crate) fn picture(
        &self,
        picture: DynamicImage,
        preprocess: &Preprocess,
        layout: ImageLayout,
        random: &mut Generator,
    ) -> Result<Array3<f32>> {
        let draw = self.draw([picture.height() as usize, picture.width() as usize], preprocess, random)?;
        draw.apply(&pixels(picture, preprocess.channels), preprocess, layout)
    }

    /// Draws what happens to a picture of `rows` and `columns` on its way into a model with this transform.
    ///
    /// # Errors
    ///
    /// `Images` if the picture is empty.
    pub(crate) fn draw(&self, sides: [usize; 2], preprocess: &Preprocess, random: &mut Generator) -> Result<Draw> {
        let cut = self.draw_cut(sides, preprocess, random)?;
        let flip = random.random_bool(self.flip);
        let mut operations = self.rand_augment.as_ref().map_or(Vec::new(), |r| r.draw(random));
        operations.extend(self.draw_jitter(random));
        Ok(Draw { cut, flip, operations, erased: self.draw_erased(preprocess, random), of: preprocess.clone() })
    }

    /// Transforms the values `[channels, height, width]` of a tensor, and puts them into the order of the model.
    pub(crate) fn tensor(&self, tensor: ArrayView3<f32>, layout: ImageLayout, random: &mut Generator) -> Array3<f32> {
        let (channels, height, width) = tensor.dim();
        let mut values = tensor.to_owned();
        if let Some(border) = self.border([height, width], true) {
            let mut padded = Array3::zeros((channels, height + 2 * border, width + 2 * border));
            padded.slice_mut(s![.., border..border + height, border..border + width]).assign(&values);
            let [top, left] = [0, 1].map(|_| random.random_range(0..=2 * border));
            values = padded.slice_move(s![.., top..top + height, left..left + width]);
        }
        if random.random_bool(self.flip) {
            values.invert_axis(Axis(2));
        }
        if let Some(Erased { rectangle: [top, left, rows, columns], values: filling }) =
            self.draw_rectangle([channels, height, width], random)
        {
            values.slice_mut(s![.., top..top + rows, left..left + columns]).assign(&filling);
        }
        match layout {
            ImageLayout::Nchw => values,
            ImageLayout::Nhwc => values.permuted_axes([1, 2, 0]),
        }
    }

    /// The width of the border that a crop is taken with, if it is.
    fn border(&self, [height, width]: [usize; 2], tensor: bool) -> Option<usize> {
        match self.crop {
            Crop::Padded(border) => Some(border),
            Crop::Mild if tensor || height.max(width) <= SMALL => Some(height.min(width).div_ceil(8)),
            _ => None,
        }
    }

    fn draw_cut(&self, sides: [usize; 2], preprocess: &Preprocess, random: &mut Generator) -> Result<DrawnCrop> {
        if let Some(border) = self.border(preprocess.size, false) {
            return Ok(DrawnCrop::Padded { border, corner: [0, 1].map(|_| random.random_range(0..=2 * border)) });
        }
        let (scale, ratio) = match self.crop {
            Crop::Resized { scale, ratio } => (scale, ratio),
            Crop::Mild => ([0.5, 1.0], RATIO),
            _ => return Ok(DrawnCrop::Evaluation),
        };
        if sides.contains(&0) {
            bail!(Images, "the picture has no pixels");
        }
        Ok(DrawnCrop::Part(draw_crop(sides, scale, ratio, random)))
    }

    /// Brightness, contrast and saturation in random order, as torchvision's `ColorJitter`.
    fn draw_jitter(&self, random: &mut Generator) -> Vec<Operation> {
        let mut operations = Vec::new();
        let kinds: [fn(f64) -> Operation; 3] = [Operation::Brightness, Operation::Contrast, Operation::Color];
        for (kind, strength) in kinds.into_iter().zip(self.jitter) {
            if strength > 0.0 {
                operations.push(kind(random.random_range((1.0 - strength).max(0.0)..=1.0 + strength)));
            }
        }
        operations.shuffle(random);
        operations
    }

    fn draw_erased(&self, preprocess: &Preprocess, random: &mut Generator) -> Option<Erased> {
        let [height, width] = preprocess.size;
        self.draw_rectangle([preprocess.channels, height, width], random)
    }

    /// A random rectangle of 2 % to a third of the image, and what it is filled with, as timm.
    fn draw_rectangle(&self, [channels, height, width]: [usize; 3], random: &mut Generator) -> Option<Erased> {
        if !random.random_bool(self.erase) {
            return None;
        }
        let rectangle = (0..10).find_map(|_| {
            let [rows, columns] = draw_sides((height * width) as f64, [0.02, 1.0 / 3.0], [0.3, 1.0 / 0.3], random);
            // The ratio of timm's rectangles is height over width, which is as likely.
            (rows < height && columns < width).then(|| {
                [random.random_range(0..=height - rows), random.random_range(0..=width - columns), rows, columns]
            })
        })?;
        let [_, _, rows, columns] = rectangle;
        let mut values = Array3::zeros((channels, rows, columns));
        for mut plane in values.outer_iter_mut() {
            match self.erase_mode {
                EraseMode::Const => {}
                EraseMode::Rand => plane.fill(StandardNormal.sample(random)),
                EraseMode::Pixel => plane.mapv_inplace(|_: f32| StandardNormal.sample(random)),
            }
        }
        Some(Erased { rectangle, values })
    }
}

/// The rows and columns of a rectangle whose area is a share of `area` and whose width over height is in `ratio`, drawn
/// as torchvision does: the area uniformly, the ratio uniformly in its logarithm.
fn draw_sides(area: f64, scale: [f64; 2], ratio: [f64; 2], random: &mut Generator) -> [usize; 2] {
    let area = area * random.random_range(scale[0]..=scale[1]);
    let ratio = random.random_range(ratio[0].ln()..=ratio[1].ln()).exp();
    [area / ratio, area * ratio].map(|square| square.sqrt().round_ties_even() as usize)
}

/// Top, left, rows and columns of a random part of a picture that is not empty.
fn draw_crop([rows, columns]: [usize; 2], scale: [f64; 2], ratio: [f64; 2], random: &mut Generator) -> [usize; 4] {
    for _ in 0..10 {
        let [height, width] = draw_sides((rows * columns) as f64, scale, ratio, random);
        if (1..=rows).contains(&height) && (1..=columns).contains(&width) {
            return [random.random_range(0..=rows - height), random.random_range(0..=columns - width), height, width];
        }
    }
    // The picture is too elongated: its middle, as far as the ratio allows.
    let whole = columns as f64 / rows as f64;
    let side = |length: f64, most: usize| (length.round_ties_even() as usize).clamp(1, most);
    let [height, width] = if whole < ratio[0] {
        [side(columns as f64 / ratio[0], rows), columns]
    } else if whole > ratio[1] {
        [rows, side(rows as f64 * ratio[1], columns)]
    } else {
        [rows, columns]
    };
    [(rows - height) / 2, (columns - width) / 2, height, width]
}

impl FromStr for Augmentation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut result = Augmentation::none();
        for (position, word) in text.split(',').map(str::trim).enumerate() {
            let wrong = || Error::new(ErrorKind::Usage, format!("`{word}` is no augmentation")).hint(KNOWN);
            let number = |text: &str| text.parse::<f64>().map_err(|_| wrong());
            let range = |text: &str| match text.split_once("..") {
                Some((low, high)) => Ok([number(low)?, number(high)?]),
                None => Err(wrong()),
            };
            match word.split_once('=') {
                None if position == 0 => {
                    result = match word {
                        "none" => Augmentation::none(),
                        "light" => Augmentation::light(),
                        "standard" => Augmentation::standard(),
                        "deit" => Augmentation::deit(),
                        _ => return Err(wrong()),
                    }
                }
                Some(("crop", "none")) => result.crop = Crop::Evaluation,
                Some(("crop", "mild")) => result.crop = Crop::Mild,
                Some(("crop", value)) => {
                    let ratio = if let Crop::Resized { ratio, .. } = result.crop { ratio } else { RATIO };
                    result.crop = Crop::Resized { scale: range(value)?, ratio };
                }
                Some(("ratio", value)) => {
                    let scale = if let Crop::Resized { scale, .. } = result.crop { scale } else { SCALE };
                    result.crop = Crop::Resized { scale, ratio: range(value)? };
                }
                Some(("pad", value)) => result.crop = Crop::Padded(value.parse().map_err(|_| wrong())?),
                Some(("flip", value)) => result.flip = number(value)?,
                Some(("jitter", value)) => {
                    let strengths = value.split('/').map(number).collect::<Result<Vec<f64>>>()?;
                    result.jitter = match strengths[..] {
                        [all] => [all; 3],
                        [brightness, contrast, saturation] => [brightness, contrast, saturation],
                        _ => return Err(wrong()),
                    };
                }
                Some(("randaugment", "none")) => result.rand_augment = None,
                Some(("randaugment", value)) => result.rand_augment = Some(value.parse()?),
                Some(("erase", value)) => result.erase = number(value)?,
                Some(("erase-mode", value)) => {
                    result.erase_mode = serde_json::from_value(value.into()).map_err(|_| wrong())?;
                }
                _ => return Err(wrong()),
            }
        }
        result.check()?;
        Ok(result)
    }
}

impl fmt::Display for Augmentation {
    /// Writes all settings that are not those of `none`, so that reading the text gives an equal value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none")?;
        match self.crop {
            Crop::Evaluation => {}
            Crop::Mild => f.write_str(",crop=mild")?,
            Crop::Padded(width) => write!(f, ",pad={width}")?,
            Crop::Resized { scale: [least, most], ratio: [low, high] } => {
                write!(f, ",crop={least}..{most},ratio={low}..{high}")?;
            }
        }
        if self.flip > 0.0 {
            write!(f, ",flip={}", self.flip)?;
        }
        if self.jitter != [0.0; 3] {
            let [brightness, contrast, saturation] = self.jitter;
            write!(f, ",jitter={brightness}/{contrast}/{saturation}")?;
        }
        if let Some(rand_augment) = &self.rand_augment {
            write!(f, ",randaugment={rand_augment}")?;
        }
        if self.erase > 0.0 {
            write!(f, ",erase={}", self.erase)?;
        }
        match self.erase_mode {
            EraseMode::Const => f.write_str(",erase-mode=const"),
            EraseMode::Rand => f.write_str(",erase-mode=rand"),
            EraseMode::Pixel => Ok(()),
        }
    }
}

impl TryFrom<String> for Augmentation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Augmentation> for String {
    fn from(augmentation: Augmentation) -> String {
        augmentation.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::random::{Purpose, generator};
    use super::super::ops::pad;
    use super::super::ops::tests::fixture;
    use super::super::preprocess::ChannelOrder;
    use super::*;

    fn random(position: u64) -> Generator {
        generator(7, Purpose::Augment, 0, position)
    }

    fn picture() -> DynamicImage {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/augment/colour.png");
        image::open(path).unwrap()
    }

    #[test]
    fn none_is_the_evaluation_transform() {
        let preprocess = Preprocess::imagenet([12, 16]);
        for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
            let expected = preprocess.apply(picture(), layout).unwrap();
            let actual = Augmentation::none().picture(picture(), &preprocess, layout, &mut random(0)).unwrap();
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn presets_fit_colours_greys_and_layouts() {
        for text in ["light", "standard", "deit", "deit,jitter=0.4", "deit,pad=4,erase=1,erase-mode=rand"] {
            let augmentation: Augmentation = text.parse().unwrap();
            for (channels, mean) in [(3, vec![0.4, 0.5, 0.6]), (1, vec![0.5])] {
                let preprocess =
                    Preprocess { channels, std: vec![0.25; channels], mean, ..Preprocess::imagenet([20, 28]) };
                let apply = |layout, position| {
                    augmentation.picture(picture(), &preprocess, layout, &mut random(position)).unwrap()
                };
                let mut seen = Vec::new();
                for position in 0..20 {
                    let planar = apply(ImageLayout::Nchw, position);
                    assert_eq!(planar.dim(), (channels, 20, 28));
                    assert!(planar.iter().all(|value| value.is_finite()));
                    assert_eq!(planar, apply(ImageLayout::Nchw, position), "the seed decides");
                    // The values drawn for erased pixels follow the planes in either layout.
                    assert_eq!(planar, apply(ImageLayout::Nhwc, position).permuted_axes([2, 0, 1]));
                    seen.push(planar);
                }
                assert!(seen.windows(2).filter(|pair| pair[0] != pair[1]).count() >= 18);
            }
        }
    }

    #[test]
    fn flips_happen_as_often_as_they_should() {
        let preprocess = Preprocess::imagenet([12, 16]);
        let straight = preprocess.apply(picture(), ImageLayout::Nchw).unwrap();
        let mut mirrored = straight.clone();
        mirrored.invert_axis(Axis(2));
        let augmentation: Augmentation = "flip=0.3".parse().unwrap();
        let flips = (0..1000)
            .filter(|&position| {
                let actual =
                    augmentation.picture(picture(), &preprocess, ImageLayout::Nchw, &mut random(position)).unwrap();
                assert!(actual == straight || actual == mirrored);
                actual == mirrored
            })
            .count();
        // Five standard deviations.
        assert!(flips.abs_diff(300) < 73, "{flips}");
    }

    #[test]
    fn crops_are_distributed_as_in_torchvision() {
        let (rows, columns) = (300, 400);
        let mut random = random(0);
        let (mut areas, mut logarithms, mut middles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4000 {
            let [top, left, height, width] = draw_crop([rows, columns], [0.08, 0.5], RATIO, &mut random);
            assert!(top + height <= rows && left + width <= columns);
            areas.push((height * width) as f64 / (rows * columns) as f64);
            logarithms.push((width as f64 / height as f64).ln());
            middles.push((top as f64 + height as f64 / 2.0) / rows as f64);
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        assert!(areas.iter().all(|area| (0.078..=0.505).contains(area)));
        assert!((mean(&areas) - 0.29).abs() < 0.01, "{}", mean(&areas));
        assert!(logarithms.iter().all(|ratio| ratio.abs() < 0.3));
        assert!(mean(&logarithms).abs() < 0.02, "{}", mean(&logarithms));
        assert!((mean(&middles) - 0.5).abs() < 0.02, "{}", mean(&middles));
    }

    #[test]
    fn elongated_pictures_are_cropped_to_their_middle() {
        let whole = [1.0, 1.0];
        // As torchvision's `RandomResizedCrop.get_params` gives them.
        assert_eq!(draw_crop([10, 100], whole, RATIO, &mut random(0)), [0, 43, 10, 13]);
        assert_eq!(draw_crop([100, 10], whole, RATIO, &mut random(0)), [43, 0, 13, 10]);
        assert_eq!(draw_crop([1, 1], [0.01, 0.01], RATIO, &mut random(0)), [0, 0, 1, 1]);
        // The middle of the ratios is allowed, yet no draw of 10 hits it.
        assert_eq!(draw_crop([10, 10], whole, [0.1, 10.0], &mut random(1)), [0, 0, 10, 10]);
    }

    #[test]
    fn padded_crops_reach_every_place() {
        let preprocess = Preprocess { crop_ratio: 1.0, ..Preprocess::imagenet([24, 32]) };
        let pixels = fixture("colour.png");
        let padded = pad(&pixels, 1);
        let augmentation: Augmentation = "pad=1".parse().unwrap();
        let mut places = std::collections::BTreeSet::new();
        for position in 0..200 {
            let draw = augmentation.draw([24, 32], &preprocess, &mut random(position)).unwrap();
            let actual = draw.cropped(&pixels, &preprocess).unwrap();
            let place = (0..9)
                .find(|place| padded.slice(s![place / 3..place / 3 + 24, place % 3..place % 3 + 32, ..]) == actual);
            places.insert(place.unwrap());
        }
        assert_eq!(places.len(), 9);
    }

    #[test]
    fn jitter_stays_in_its_range() {
        let augmentation: Augmentation = "jitter=0.4/0.1/0".parse().unwrap();
        let mut first_is_brightness = 0;
        for position in 0..200 {
            let operations = augmentation.draw_jitter(&mut random(position));
            assert_eq!(operations.len(), 2);
            for operation in &operations {
                match operation {
                    Operation::Brightness(factor) => assert!((0.6..=1.4).contains(factor)),
                    Operation::Contrast(factor) => assert!((0.9..=1.1).contains(factor)),
                    other => panic!("{other:?}"),
                }
            }
            first_is_brightness += usize::from(matches!(operations[0], Operation::Brightness(_)));
        }
        assert!((65..=135).contains(&first_is_brightness), "{first_is_brightness}");
    }

    #[test]
    fn erased_rectangles_have_the_sizes_of_timm() {
        let (height, width) = (40, 60);
        for (mode, layout) in [
            (EraseMode::Const, ImageLayout::Nchw),
            (EraseMode::Rand, ImageLayout::Nhwc),
            (EraseMode::Pixel, ImageLayout::Nchw),
        ] {
            let augmentation = Augmentation { erase: 0.5, erase_mode: mode, ..Augmentation::none() };
            let mut areas = Vec::new();
            let mut values = Vec::new();
            for position in 0..400 {
                let mut image = match layout {
                    ImageLayout::Nchw => Array3::from_elem((3, height, width), 9.0f32),
                    ImageLayout::Nhwc => Array3::from_elem((height, width, 3), 9.0),
                };
                let preprocess = Preprocess::imagenet([height, width]);
                let draw = augmentation.draw([height, width], &preprocess, &mut random(position)).unwrap();
                if let Some(erased) = &draw.erased {
                    draw.erase(erased, &mut image, &preprocess, layout);
                }
                if layout == ImageLayout::Nhwc {
                    image = image.permuted_axes([2, 0, 1]);
                }
                let erased: Vec<_> = image.indexed_iter().filter(|(_, value)| **value != 9.0).collect();
                if erased.is_empty() {
                    continue;
                }
                let rows = erased.iter().map(|((_, y, _), _)| y);
                let columns = erased.iter().map(|((_, _, x), _)| x);
                let span = |all: Vec<&usize>| *all.iter().max().unwrap() - *all.iter().min().unwrap() + 1;
                let area = span(rows.collect()) * span(columns.collect());
                assert_eq!(erased.len(), 3 * area, "a rectangle in every channel");
                areas.push(area as f64 / (height * width) as f64);
                let plane: std::collections::BTreeSet<u32> = erased
                    .iter()
                    .filter(|((channel, ..), _)| *channel == 1)
                    .map(|(_, value)| value.to_bits())
                    .collect();
                match mode {
                    EraseMode::Const => assert_eq!(plane.into_iter().collect::<Vec<_>>(), [0]),
                    EraseMode::Rand => assert_eq!(plane.len(), 1),
                    EraseMode::Pixel => assert!(plane.len() > area * 9 / 10),
                }
                values.extend(erased.iter().map(|(_, value)| f64::from(**value)));
            }
            assert!(areas.len().abs_diff(200) < 50, "{}", areas.len());
            assert!(areas.iter().all(|area| (0.01..0.35).contains(area)));
            if mode == EraseMode::Pixel {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let square = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
                assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
            }
        }
    }

    /// What is drawn once is seen by each model as its own transform has it.
    #[test]
    fn models_of_other_transforms_see_the_same() {
        let (rows, columns) = (picture().height() as usize, picture().width() as usize);
        let student = Preprocess::imagenet([20, 28]);
        let other = |size, channels| {
            let (mean, std) = (vec![0.9; channels], vec![0.1; channels]);
            Preprocess { channels, mean, std, ..Preprocess::imagenet(size) }
        };
        for text in
            ["none", "light", "pad=6", "standard", "deit,erase=1", "deit,pad=4,erase=1,erase-mode=rand,jitter=0.4"]
        {
            let augmentation: Augmentation = text.parse().unwrap();
            for position in 0..20 {
                let draw = augmentation.draw([rows, columns], &student, &mut random(position)).unwrap();
                let apply = |preprocess: &Preprocess, layout| {
                    draw.apply(&pixels(picture(), preprocess.channels), preprocess, layout).unwrap()
                };
                let own = apply(&student, ImageLayout::Nchw);
                // In shares of white.
                let shares = |values: &Array3<f32>, p: &Preprocess| {
                    Array3::from_shape_fn(values.dim(), |(c, y, x)| values[[c, y, x]] * p.std[c] + p.mean[c])
                };
                let expected = shares(&own, &student);
                let same = other([20, 28], 3);
                let found = shares(&apply(&same, ImageLayout::Nhwc).permuted_axes([2, 0, 1]), &same);
                let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest < 1e-5, "{text}, {position}: {largest}");

                let bgr = Preprocess { channel_order: ChannelOrder::Bgr, ..same };
                let mut found = shares(&apply(&bgr, ImageLayout::Nchw), &bgr);
                found.invert_axis(Axis(0));
                let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest < 1e-5, "{text}, {position}, blue first: {largest}");

                // Twice the size: the means of its blocks of four pixels.
                let large = other([40, 56], 3);
                let found = shares(&apply(&large, ImageLayout::Nchw), &large);
                let blocks = Array3::from_shape_fn(own.dim(), |(c, y, x)| {
                    found.slice(s![c, 2 * y..2 * y + 2, 2 * x..2 * x + 2]).sum() / 4.0
                });
                let error = (&blocks - &expected).mapv(f32::abs).mean().unwrap();
                assert!(error < 0.06, "{text}, {position}: {error}");
                assert_eq!(apply(&other([20, 28], 1), ImageLayout::Nchw).dim(), (1, 20, 28));
            }
        }
    }

    #[test]
    fn tensors_take_what_needs_no_picture() {
        let tensor = Array3::from_shape_fn((2, 8, 8), |(c, y, x)| (1 + c * 64 + y * 8 + x) as f32);
        let apply = |text: &str, layout, position| {
            let augmentation: Augmentation = text.parse().unwrap();
            augmentation.check_tensors().unwrap();
            augmentation.tensor(tensor.view(), layout, &mut random(position))
        };
        assert_eq!(apply("none", ImageLayout::Nchw, 0), tensor);
        assert_eq!(apply("none", ImageLayout::Nhwc, 0).permuted_axes([2, 0, 1]), tensor);
        let mut mirrored = tensor.clone();
        mirrored.invert_axis(Axis(2));
        assert_eq!(apply("flip=1", ImageLayout::Nchw, 0), mirrored);
        let mut zeros = 0;
        for position in 0..20 {
            let light = apply("light,erase=0", ImageLayout::Nchw, position);
            assert_eq!(light.dim(), (2, 8, 8));
            zeros += usize::from(light.iter().any(|&value| value == 0.0));
        }
        assert!(zeros > 10, "the border is one pixel wide");
        for text in ["standard", "deit", "randaugment=rand-m9-inc1", "jitter=0.1"] {
            let error = text.parse::<Augmentation>().unwrap().check_tensors().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn text_and_values_stand_for_each_other() {
        let parse = |text: &str| text.parse::<Augmentation>();
        assert!(parse("none").unwrap().is_none() && parse("none,erase-mode=const").unwrap().is_none());
        let custom = parse("flip=0.5, crop=0.35..1").unwrap();
        assert_eq!(custom.crop, Crop::Resized { scale: [0.35, 1.0], ratio: RATIO });
        assert_eq!(custom.flip, 0.5);
        assert!(!custom.is_none());
        assert_eq!(parse("standard,ratio=1..1").unwrap().crop, Crop::Resized { scale: SCALE, ratio: [1.0, 1.0] });
        for text in
            ["none", "light", "standard", "deit", "deit,randaugment=none,pad=4,jitter=0.1/0.2/0.3,erase-mode=const"]
        {
            let augmentation = parse(text).unwrap();
            assert_eq!(augmentation.to_string().parse::<Augmentation>().unwrap(), augmentation);
            let json = serde_json::to_string(&augmentation).unwrap();
            assert_eq!(serde_json::from_str::<Augmentation>(&json).unwrap(), augmentation);
        }
        for text in [
            "",
            "strong",
            "flip=0.5,standard",
            "flip",
            "flip=2",
            "flip=nan",
            "crop=1",
            "crop=0..1",
            "crop=0.5..0.1",
            "crop=0.5..2",
            "ratio=0..1",
            "ratio=1..inf",
            "pad=-1",
            "pad=100000",
            "jitter=-1",
            "jitter=1/2",
            "erase=1.1",
            "erase-mode=black",
            "randaugment=m9",
            "randaugment=rand-m9",
            "randaugment=rand-m11-inc1",
            "randaugment=rand-x3-inc1",
            "randaugment=rand-m-inc1",
            "colour=1",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.hint_text().is_some(), "{text}");
        }
    }
}
