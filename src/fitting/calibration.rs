//! Calibration: random views of unlabelled images, or samples of arrays as they are, some of them held out for every
//! choice.

use ndarray::{Array3, ArrayD, Axis};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

use super::lengths::{Batches, TokenAxes, alike};
use super::network::Progress;
use super::subgraph::{Values, pin_on, sample, size};
use crate::axes::takes_any_batch;
use crate::data::{Arrays, Augmentation, Crop, Loader, Samples};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;

/// The least and the greatest area of a view, as shares of the picture.
const SCALE: [f64; 2] = [0.4, 1.0];
/// The least and the greatest width over height of a view.
const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Views that matrices are fitted on, where no number is given.
const VIEWS: usize = 192;
/// One image in so many is held out.
const HELD_OUT_SHARE: usize = 6;
/// Views of held-out images.
const HELD_OUT: usize = 16;
/// A view of a picture has about so many tokens. Texts have few: as many of them as have so many together count as one.
const VIEW_TOKENS: usize = 256;
/// Tokens of texts repeat each other less than those of a picture do: so many times fewer of them tell as much of what
/// a block costs. Children of MiniLM judged by 512 tokens, of 28 texts, are as near to it as those judged by 2,048.
const TEXT_TELLS: usize = 4;
/// Fewer images than these are said to be few.
const FEW: usize = 24;

/// How many views or samples are drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Views {
    /// Their number; where there is none, 192 views of pictures, or samples with the tokens of so many.
    pub count: Option<usize>,
    /// The seed that draws them.
    pub seed: u64,
}

/// Views of images, a batch of one each, or batches of samples of arrays, by the inputs that take them.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Views that matrices are fitted on.
    pub fit: Vec<Values>,
    /// Views of other images, for choices and for the error that is told.
    pub held_out: Vec<Values>,
    /// Images that the views are of, or samples.
    pub images: usize,
    /// Seed that drew them.
    pub seed: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The input at whose zeros tokens are padding.
    pub mask: Option<String>,
    /// True where these are arrays: models take them as long as they are.
    pub of_arrays: bool,
    /// Tokens of a sample of arrays without a mask.
    pub tokens: Option<usize>,
}

impl Calibration {
    /// Draws `count` views, spread evenly over the images of a loader, and views of images that are held out, for the
    /// input of a model. The same seed draws the same views.
    ///
    /// # Errors
    /// [`ErrorKind::Images`] where no image can be read or all views are alike.
    pub fn draw(loader: &Loader, input: &str, views: Views, progress: Progress) -> Result<Calibration> {
        let (images, count, seed) = (loader.len(), views.count.unwrap_or(VIEWS), views.seed);
        let order = drawn(images, seed);
        let mut warnings = Vec::new();
        let (held_out, fit) = order.split_at(held_out(images).min(HELD_OUT));
        let fit = if images == 1 { &order } else { fit };
        let share = |list: &[usize], count: usize| {
            let mut counts = vec![0; images];
            let list = &list[..list.len().min(count)];
            for (i, &image) in list.iter().enumerate() {
                counts[image] = count / list.len() + usize::from(i < count % list.len());
            }
            counts
        };
        let augmentation = match loader.source().is_tensors() {
            true => Augmentation { flip: 0.5, ..Augmentation::none() },
            false => {
                Augmentation { crop: Crop::Resized { scale: SCALE, ratio: RATIO }, flip: 0.5, ..Augmentation::none() }
            }
        };
        let done = std::sync::atomic::AtomicUsize::new(0);
        let tell = || progress(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed), images);
        let batch = |counts: &[usize], seed: u64| -> Result<Vec<Values>> {
            let views = loader.views(&augmentation, counts, seed, tell)?;
            let one = |v: Array3<f32>| Values::from([(input.to_string(), v.insert_axis(Axis(0)).into_dyn())]);
            Ok(views.into_iter().map(one).collect())
        };
        let fitted = batch(&share(fit, count), seed)?;
        let judged = if images == 1 {
            batch(&[HELD_OUT], seed.wrapping_add(1))?
        } else {
            batch(&share(held_out, HELD_OUT), seed)?
        };
        let unreadable = || {
            let reason = loader.skipped().first.unwrap_or_default();
            Error::new(ErrorKind::Images, format!("too few of the {images} images can be read: {reason}"))
                .at(loader.source().path())
                .hint("give pictures that other programs open")
        };
        if fitted.is_empty() || judged.is_empty() {
            return Err(unreadable());
        }
        if images == 1 {
            warnings.push("there is one image: nothing can be held out, and the fit will not hold for others".into());
        } else if images < FEW {
            warnings.push(format!("there are {images} images; a fit wants {FEW} or more, as different as there are"));
        }
        if count > 1 && fitted.iter().chain(&judged).all(|v| *v == fitted[0]) {
            return Err(Error::new(ErrorKind::Images, "the images are all alike: nothing can be fitted on them")
                .at(loader.source().path())
                .hint("give different photographs"));
        }
        Ok(Calibration { fit: fitted, held_out: judged, images, seed, warnings, ..Calibration::default() })
    }

    /// Takes samples of arrays, which are drawn at random, and others that are held out. The same seed draws the same
    /// ones. Padding that `model` can do without is cut off, and texts of one length are joined into batches where it
    /// takes batches of any size.
    ///
    /// # Errors
    /// [`ErrorKind::Images`] where there are too few, or all are alike.
    pub fn of_arrays(model: &Model, arrays: &Arrays, views: Views) -> Result<Calibration> {
        let samples = arrays.len();
        if samples < 2 {
            return Err(Error::new(ErrorKind::Images, "there is one sample: nothing can be fitted and judged on it")
                .at(arrays.path())
                .hint("give a few dozen samples or more, as different as there are"));
        }
        let tokens = arrays.tokens();
        let order = drawn(samples, views.seed);
        let (apart, rest) = order.split_at(held_out(samples));
        let enough =
            |list: &[usize], views: usize| worth(list.iter().map(|&i| tokens.as_ref().map(|tokens| tokens[i])), views);
        let apart = &apart[..enough(apart, HELD_OUT)];
        let count = views.count.map_or_else(|| enough(rest, VIEWS), |count| count.min(rest.len()));
        let taken = |list: &[usize]| -> Vec<Values> {
            list.iter().map(|&sample| arrays.select(&[sample]).arrays.into_iter().collect()).collect()
        };
        let (fit, held_out) = (taken(&rest[..count]), taken(apart));
        if fit.iter().chain(&held_out).all(|v| *v == fit[0]) {
            return Err(Error::new(ErrorKind::Images, "the samples are all alike: nothing can be fitted on them")
                .at(arrays.path())
                .hint("give different samples"));
        }
        let few = format!("there are {samples} samples; a fit wants {FEW} or more, as different as there are");
        let warnings = if samples < FEW { vec![few] } else { Vec::new() };
        let mask = arrays.mask().map(str::to_string);
        let axes = mask.as_ref().zip(fit.first()).and_then(|(mask, sample)| TokenAxes::new(model, mask, sample));
        let together = if takes_any_batch(model) { VIEW_TOKENS } else { 1 };
        // How many rows a sample has is known of texts alone.
        let batches = arrays.length().map(|length| Batches::new(axes, length, together, &fit, &held_out));
        let joined = |samples: Vec<Values>| match &batches {
            Some(batches) => batches.of(&samples),
            None => samples,
        };
        let (fit, held_out) = (joined(fit), joined(held_out));
        let tokens = tokens.and_then(|t| t.first().copied()).filter(|_| mask.is_none());
        let seed = views.seed;
        Ok(Calibration { fit, held_out, images: samples, seed, warnings, mask, of_arrays: true, tokens })
    }

    /// Views or samples that are fitted on, and those that are held out.
    pub fn counts(&self) -> [usize; 2] {
        [&self.fit, &self.held_out].map(|batches| batches.iter().map(size).sum())
    }

    /// The first of some batches, which tell as much as so many views of pictures.
    pub(super) fn first<'v>(&self, batches: &'v [Values], views: usize) -> &'v [Values] {
        let real = |mask: &ArrayD<f32>| mask.iter().filter(|v| **v != 0.0).count();
        let tokens = |batch: &Values| match &self.mask {
            Some(mask) => batch.get(mask).map(real),
            None => self.tokens.map(|tokens| tokens * size(batch)),
        };
        let of_texts = self.mask.is_some() || self.tokens.is_some();
        let views = if of_texts { views.div_ceil(TEXT_TELLS) } else { views };
        &batches[..worth(batches.iter().map(tokens), views)]
    }

    /// A batch of every shape that there is, those of the longest samples first.
    pub(super) fn shapes(&self) -> Vec<&Values> {
        alike(self.fit.iter().chain(&self.held_out)).iter().filter_map(|group| group.first().copied()).collect()
    }

    /// A model for batches of every shape that there is, those of the longest samples first.
    ///
    /// # Errors
    /// Those of [`pin_on`].
    pub fn pin(&self, model: &Model) -> Result<Vec<Model>> {
        self.shapes().into_iter().map(|batch| pin_on(model, batch)).collect()
    }

    /// One of the longest samples that there are.
    pub fn longest(&self) -> Option<Values> {
        self.shapes().first().map(|batch| sample(batch, 0))
    }

    /// A sample that models are timed on, where they take arrays.
    pub fn sample(&self) -> Option<Values> {
        self.longest().filter(|_| self.of_arrays)
    }
}

/// How many of the first samples hold as many tokens as so many views of pictures; where the number of tokens of a
/// sample is not known, it counts as a view.
fn worth(tokens: impl Iterator<Item = Option<usize>>, views: usize) -> usize {
    let wanted = views * VIEW_TOKENS;
    let before = tokens.scan(0, |sum, tokens| {
        let before = *sum;
        *sum += tokens.unwrap_or(VIEW_TOKENS).max(1);
        Some(before)
    });
    before.take_while(|before| *before < wanted).count()
}

/// The places of so many images in a random order.
fn drawn(images: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

/// How many of so many images may be held out.
fn held_out(images: usize) -> usize {
    (images / HELD_OUT_SHARE).max(usize::from(images > 1))
}
