//! Streams preprocessed images in batches, decoded in the background.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use ndarray::{Array3, Array4, ArrayView3, Axis, stack};
use rayon::prelude::*;

use super::item::Item;
use super::random::{Purpose, generator};
use super::shape::{ImageLayout, InputShape};
use super::source::{ImageSource, Skipped};
use super::transforms::{Augmentation, InputTransform, Preprocess, PreprocessFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel;

/// What to do about an image that cannot be read where none may be left out.
pub(super) const STRICT_HINT: &str = "mend or remove the file, or leave ⟦strict⟧ out to go on without it";

/// Some images that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// How many images the batches before this one hold.
    pub first: usize,
    /// The values, in standard memory order: `[images, channels, height, width]`, or `[images, height, width,
    /// channels]` for [`ImageLayout::Nhwc`].
    pub images: Array4<f32>,
    /// The same images as a [teacher](Loader::with_teacher) takes them, where it takes them otherwise.
    pub teacher: Option<Array4<f32>>,
    /// Which images of the source they are.
    pub indices: Vec<usize>,
}

impl Batch {
    /// The images for the teacher.
    pub fn for_teacher(&self) -> &Array4<f32> {
        self.teacher.as_ref().unwrap_or(&self.images)
    }
}

/// Images of a source, made ready for a model. Clones share the source, and with it the record of skipped images.
#[derive(Clone, Debug)]
pub struct Loader {
    source: Arc<ImageSource>,
    preprocess: Option<Preprocess>,
    layout: ImageLayout,
    teacher: Option<InputTransform>,
    strict: bool,
    /// The selected images of the source.
    selected: Vec<usize>,
    /// How many that follow each other are one sample.
    together: usize,
    /// Whether other processes have images of their own: then none of these need be readable.
    is_part: bool,
}

impl Loader {
    /// A loader of all images of `source`, for models whose layout is NCHW.
    ///
    /// # Errors
    ///
    /// `Usage` if pictures come without a transform, tensors with one, or the transform makes no sense.
    pub fn new(source: ImageSource, preprocess: Option<Preprocess>) -> Result<Self> {
        Loader::shared(Arc::new(source), preprocess)
    }

    pub(super) fn shared(source: Arc<ImageSource>, preprocess: Option<Preprocess>) -> Result<Self> {
        source.check_preprocess(preprocess.as_ref())?;
        let selected = (0..source.len()).collect();
        let (layout, teacher) = (ImageLayout::Nchw, None);
        Ok(Loader { selected, together: 1, source, preprocess, layout, teacher, strict: false, is_part: false })
    }

    /// Opens the images at `path` for a model with the given input, with the [transform](ImageSource::preprocess) that
    /// they need.
    ///
    /// # Errors
    ///
    /// Those of [`ImageSource::open`] and [`ImageSource::preprocess`].
    pub fn open(
        path: impl AsRef<Path>,
        flags: &PreprocessFlags,
        metadata: Option<&str>,
        input: InputShape,
    ) -> Result<Self> {
        let source = ImageSource::open(path)?;
        let preprocess = source.preprocess(flags, metadata, input)?;
        Ok(Loader::new(source, preprocess)?.with_layout(input.layout))
    }

    /// Gives the images the axes that the model takes.
    pub fn with_layout(mut self, layout: ImageLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Makes every image ready for a second model too, which learns nothing from it but says what it sees.
    ///
    /// # Errors
    ///
    /// `Usage` if its transform does not fit the images, as in [`Loader::new`].
    pub fn with_teacher(mut self, view: Option<InputTransform>) -> Result<Self> {
        if let Some(view) = &view {
            self.source.check_preprocess(view.preprocess.as_ref())?;
        }
        self.teacher = view;
        Ok(self)
    }

    /// Keeps so many selected images that follow each other in one process: they are one sample.
    pub(super) fn together(mut self, together: usize) -> Self {
        self.together = together;
        self
    }

    /// Makes an image that cannot be read an error, rather than skipping it.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Selects the images of the source with the given indices, in this order, each at most once.
    ///
    /// # Errors
    ///
    /// `Usage` if there is no such image.
    pub fn select(mut self, indices: Vec<usize>) -> Result<Self> {
        if let Some(index) = indices.iter().find(|&&index| index >= self.source.len()) {
            bail!(Usage, "there is no image {index}, only {}", self.source.len());
        }
        self.selected = indices;
        Ok(self)
    }

    /// Keeps only the first `count` images, readable or not.
    pub fn limit(mut self, count: usize) -> Self {
        self.selected.truncate(count);
        self
    }

    /// Keeps the samples that are this process's among all that [work together](crate::parallel), every so-manieth.
    /// Whoever adds up what they find has to [check](Loader::check_any) that images were read at all.
    pub fn share(mut self) -> Self {
        let samples: Vec<&[usize]> = self.selected.chunks(self.together).collect();
        self.selected = parallel::share(samples.len()).flat_map(|i| samples[i]).copied().collect();
        self.is_part |= parallel::size() > 1;
        self
    }

    /// The error that says that no image could be read, where there are some and `count`, of all processes, is none.
    ///
    /// # Errors
    ///
    /// `Images`.
    pub fn check_any(&self, count: usize) -> Result<()> {
        if count > 0 || self.is_empty() {
            return Ok(());
        }
        let reason = self.skipped().first.unwrap_or_default();
        let message = format!("none of the {} images can be read: {reason}", self.len());
        Err(Error::new(ErrorKind::Images, message)
            .at(self.source.path())
            .hint("give pictures that other programs open; a download that broke off leaves such files"))
    }

    /// Keeps `count` images that are drawn at random, readable or not, in the order of the source. The same seed draws
    /// the same images everywhere.
    pub fn sample(mut self, count: usize, seed: u64) -> Self {
        // Selection sampling: each image is taken with the probability of (still wanted) / (still left).
        let mut state = seed;
        let mut left = self.selected.len();
        let mut wanted = count.min(left);
        self.selected.retain(|_| {
            let taken = split_mix(&mut state) % (left as u64) < wanted as u64;
            left -= 1;
            wanted -= usize::from(taken);
            taken
        });
        self
    }

    /// Random views of the images: `counts[i]` of image i, through `augmentation`, in the order of the images. Every
    /// image is read once. One that cannot be read is [skipped](Loader::skipped), with all of its views. The same seed
    /// gives the same views, whatever the number of threads.
    ///
    /// `progress` is told of every image that is done.
    ///
    /// # Errors
    ///
    /// `Usage` if tensors cannot be augmented as asked; `Images` for a [strict](Loader::strict) loader whose image
    /// cannot be read.
    pub fn views(
        &self,
        augmentation: &Augmentation,
        counts: &[usize],
        seed: u64,
        progress: impl Fn() + Sync,
    ) -> Result<Vec<Array3<f32>>> {
        augmentation.check()?;
        if self.source.is_tensors() {
            augmentation.check_tensors()?;
        }
        let wanted: Vec<(usize, usize)> =
            self.selected.iter().copied().zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect();
        let views: Vec<Vec<Array3<f32>>> = wanted
            .into_par_iter()
            .map(|(index, count)| {
                let views = self.views_of(index, count, augmentation, seed);
                progress();
                match views {
                    Err(error) if self.strict => Err(error.hint(STRICT_HINT)),
                    Err(error) => {
                        self.source.skip(index, &error);
                        Ok(Vec::new())
                    }
                    views => views,
                }
            })
            .collect::<Result<_>>()?;
        Ok(views.into_iter().flatten().collect())
    }

    fn views_of(&self, index: usize, count: usize, augmentation: &Augmentation, seed: u64) -> Result<Vec<Array3<f32>>> {
        let item = self.source.read(index)?;
        (0..count)
            .map(|number| {
                let random = &mut generator(seed, Purpose::View, index as u64, number as u64);
                match (&item, &self.preprocess) {
                    (Item::Picture(picture), Some(preprocess)) => augmentation
                        .picture(picture.clone(), preprocess, self.layout, random)
                        .map_err(|error| error.at(self.source.file(index))),
                    (Item::Tensor(tensor), _) => {
                        Ok(augmentation.tensor(tensor.view(), self.layout, random).as_standard_layout().into_owned())
                    }
                    (Item::Picture(_), None) => bail!(Internal, "a picture without a transform"),
                }
            })
            .collect()
    }

    /// The number of images, readable or not.
    pub fn len(&self) -> usize {
        self.selected.len()
    }

    /// The selected images of the source.
    pub(crate) fn selected(&self) -> &[usize] {
        &self.selected
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.selected.is_empty()
    }

    /// Where the images come from.
    pub fn source(&self) -> &ImageSource {
        &self.source
    }

    /// The transform of the pictures; `None` for tensors.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.preprocess.as_ref()
    }

    /// Whether the channels are the last axis of the images.
    pub fn channels_last(&self) -> bool {
        self.layout == ImageLayout::Nhwc
    }

    /// What could not be read so far.
    pub fn skipped(&self) -> Skipped {
        self.source.skipped()
    }

    /// The [fingerprint](ImageSource::fingerprint) of the whole source, whichever of its images are selected.
    ///
    /// # Errors
    ///
    /// `Io` if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        self.source.fingerprint()
    }

    /// Image `index`, `[channels, height, width]`, or `[height, width, channels]` for [`ImageLayout::Nhwc`].
    ///
    /// # Errors
    ///
    /// `Usage` if there is no such image, `Images` if it cannot be read.
    pub fn image(&self, index: usize) -> Result<Array3<f32>> {
        match self.selected.get(index) {
            Some(&selected) => self.load(selected),
            None => bail!(Usage, "there is no image {index}, only {}", self.len()),
        }
    }

    /// Streams the images in batches of `batch_size`, which is at least 1, in the order of the source. What cannot be
    /// read is [skipped](Loader::skipped), and the batches are filled with what can; only the last one may be smaller.
    /// For a [strict](Loader::strict) loader, the first such image ends the batches with its error.
    ///
    /// Images are decoded on all cores, some batches ahead of the one that is asked for. If no image at all can be
    /// read, the only item is an error of the kind `Images`.
    pub fn batches(&self, batch_size: usize) -> Batches {
        let (sender, receiver) = sync_channel(2);
        let loader = self.clone();
        let worker = std::thread::spawn(move || loader.produce(batch_size.max(1), &sender));
        Batches { receiver, worker: Some(worker) }
    }

    fn produce(&self, batch_size: usize, sender: &SyncSender<Result<Batch>>) {
        let mut first = 0;
        let mut rest = self.selected.as_slice();
        while !rest.is_empty() {
            let mut images = Vec::new();
            let mut indices = Vec::new();
            while images.len() < batch_size && !rest.is_empty() {
                let (next, later) = rest.split_at(rest.len().min(batch_size - images.len()));
                rest = later;
                let loaded: Vec<_> = next.par_iter().map(|&index| self.load_all(index)).collect();
                for (&index, image) in next.iter().zip(loaded) {
                    match image {
                        Ok(image) => {
                            images.push(image);
                            indices.push(index);
                        }
                        Err(error) => {
                            self.source.skip(index, &error);
                            if self.strict {
                                // The receiver may be gone, as below.
                                let _ = sender.send(Err(error.hint(STRICT_HINT)));
                                return;
                            }
                        }
                    }
                }
            }
            if images.is_empty() {
                break;
            }
            let count = images.len();
            let batch = stacked(images).map(|(images, teacher)| Batch { first, images, teacher, indices });
            first += count;
            // The receiver is gone when nobody wants the rest.
            if sender.send(batch).is_err() {
                return;
            }
        }
        if !self.is_part
            && let Err(error) = self.check_any(first)
        {
            // As above.
            let _ = sender.send(Err(error));
        }
    }

    fn load(&self, index: usize) -> Result<Array3<f32>> {
        self.load_all(index).map(|(image, _)| image)
    }

    /// An image, and the same for the teacher.
    fn load_all(&self, index: usize) -> Result<Pair> {
        let standard = |values: ArrayView3<f32>| values.as_standard_layout().into_owned();
        match (self.source.read(index)?, &self.preprocess) {
            (Item::Picture(picture), Some(preprocess)) => {
                let apply = |picture, preprocess: &Preprocess, layout| {
                    preprocess.apply(picture, layout).map_err(|error| error.at(self.source.file(index)))
                };
                let teacher = match &self.teacher {
                    Some(InputTransform { preprocess: Some(other), layout }) => {
                        Some(apply(picture.clone(), other, *layout)?)
                    }
                    _ => None,
                };
                Ok((apply(picture, preprocess, self.layout)?, teacher))
            }
            (Item::Tensor(tensor), _) => {
                let teacher = self.teacher.as_ref().map(|view| standard(view.layout.arrange(tensor)));
                Ok((standard(self.layout.arrange(tensor)), teacher))
            }
            (Item::Picture(_), None) => bail!(Internal, "a picture without a transform"),
        }
    }
}

/// An image, and the same as the teacher takes it, where it takes it otherwise.
type Pair = (Array3<f32>, Option<Array3<f32>>);

/// Puts images into a batch, and those of the teacher into another.
fn stacked(images: Vec<Pair>) -> Result<(Array4<f32>, Option<Array4<f32>>)> {
    let (own, teacher): (Vec<_>, Vec<_>) = images.into_iter().unzip();
    let whole = |images: &[Array3<f32>]| {
        let views: Vec<_> = images.iter().map(|image| image.view()).collect();
        stack(Axis(0), &views).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
    };
    let teacher: Option<Vec<_>> = teacher.into_iter().collect();
    Ok((whole(&own)?, teacher.map(|t| whole(&t)).transpose()?))
}

/// The batches of a [`Loader`]. Dropping it stops the work on the rest.
pub struct Batches {
    receiver: Receiver<Result<Batch>>,
    worker: Option<JoinHandle<()>>,
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.receiver.recv() {
            return Some(batch);
        }
        // The worker has ended: well, or by a panic that must not pass for the end of the images.
        self.worker.take()?.join().err().map(|_| Err(Error::new(ErrorKind::Internal, "the loading of images panicked")))
    }
}

/// The next number of the SplitMix64 generator.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ndarray::{Array, s};
    use ndarray_npy::write_npy;
    use tempfile::TempDir;

    use super::super::testing::write_picture;
    use super::*;

    const INPUT: InputShape = InputShape { channels: 3, height: 4, width: 6, layout: ImageLayout::Nchw };

    fn open(path: impl AsRef<Path>, input: InputShape) -> Result<Loader> {
        Loader::open(path, &PreprocessFlags::default(), None, input)
    }

    /// A folder of `count` pictures, whose red is their number.
    fn folder(count: u8) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..count {
            let path = folder.path().join(format!("{number:03}.png"));
            write_picture(&path, 9, 7, [number, 0, 0]);
        }
        folder
    }

    /// The numbers of the pictures of [`folder`] in the batches.
    fn numbers(loader: &Loader, batch_size: usize) -> Vec<Vec<u8>> {
        loader
            .batches(batch_size)
            .map(|batch| {
                let images = batch.unwrap().images;
                assert!(images.is_standard_layout());
                images.slice(s![.., 0, 0, 0]).iter().map(|red| ((red * 0.229 + 0.485) * 255.0).round() as u8).collect()
            })
            .collect()
    }

    #[test]
    fn batches_follow_the_order_and_skip_what_is_corrupt() {
        let folder = folder(10);
        fs::write(folder.path().join("004.png"), b"\x89PNG\r\n\x1a\n broken").unwrap();
        let loader = open(folder.path(), INPUT).unwrap();
        let expected = [vec![0, 1, 2], vec![3, 5, 6], vec![7, 8, 9]];
        // A second pass counts the same image once.
        for _ in 0..2 {
            assert_eq!(numbers(&loader, 3), expected);
            let skipped = loader.skipped();
            assert_eq!(skipped.count, 1);
            assert!(skipped.first.unwrap().contains("004.png"));
        }
        let firsts: Vec<_> = loader.batches(4).map(|batch| batch.unwrap().first).collect();
        assert_eq!(firsts, [0, 4, 8]);
        assert_eq!(loader.image(4).unwrap_err().kind(), ErrorKind::Images);
        assert_eq!(loader.image(10).unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(loader.image(3).unwrap().dim(), (3, 4, 6));
    }

    #[test]
    fn a_folder_of_corrupt_pictures_is_an_image_error() {
        let folder = folder(0);
        for name in ["a.jpg", "b.jpg"] {
            fs::write(folder.path().join(name), "broken").unwrap();
        }
        let loader = open(folder.path(), INPUT).unwrap();
        let mut batches = loader.batches(1);
        let error = batches.next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains("a.jpg"), "{error}");
        assert!(batches.next().is_none());
    }

    #[test]
    fn selections_are_deterministic_and_ordered() {
        let folder = folder(20);
        let loader = open(folder.path(), INPUT).unwrap();
        assert_eq!(numbers(&loader.clone().limit(2), 8), [vec![0, 1]]);
        let sample = |seed| numbers(&loader.clone().sample(7, seed), 8).concat();
        assert_eq!(sample(1), sample(1));
        assert_ne!(sample(1), sample(2));
        assert_eq!(sample(1).len(), 7);
        assert!(sample(1).is_sorted());
        assert_eq!(loader.clone().sample(99, 1).len(), 20);
        assert_eq!(loader.clone().limit(0).batches(1).count(), 0);
    }

    #[test]
    fn views_are_drawn_image_by_image() {
        let folder = folder(4);
        fs::write(folder.path().join("001.png"), b"\x89PNG\r\n\x1a\n broken").unwrap();
        let loader = open(folder.path(), INPUT).unwrap();
        let augmentation = Augmentation::standard();
        let views = |counts: &[usize], seed| loader.views(&augmentation, counts, seed, || {}).unwrap();
        let all = views(&[2, 2, 0, 3], 1);
        // Image 1 is broken and image 2 is not asked for.
        assert_eq!(all.len(), 5);
        let reds: Vec<u8> = all.iter().map(|v| ((v[[0, 0, 0]] * 0.229 + 0.485) * 255.0).round() as u8).collect();
        assert_eq!(reds, [0, 0, 3, 3, 3]);
        assert_eq!(loader.skipped().count, 1);
        // A view depends on its image and number alone.
        assert_eq!(views(&[1, 0, 0, 1], 1), [all[0].clone(), all[2].clone()]);
        let picture = image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([20 * x as u8, 30 * y as u8, 0]));
        picture.save(folder.path().join("000.png")).unwrap();
        assert_ne!(views(&[1], 1), views(&[1], 2));
        assert_ne!(views(&[2], 1)[0], views(&[2], 1)[1]);
    }

    #[test]
    fn unwanted_batches_are_not_waited_for() {
        let folder = folder(20);
        let loader = open(folder.path(), INPUT).unwrap();
        let mut batches = loader.batches(1);
        assert!(batches.next().unwrap().is_ok());
        let worker = batches.worker.take().unwrap();
        drop(batches);
        worker.join().unwrap();
    }

    #[test]
    fn layouts_hold_the_same_values() {
        let folder = folder(2);
        let npy = folder.path().join("images.npy");
        write_npy(&npy, &tensors()).unwrap();
        let last = InputShape { layout: ImageLayout::Nhwc, ..INPUT };
        for path in [folder.path(), npy.as_path()] {
            let planar = open(path, INPUT).unwrap();
            let interleaved = open(path, last).unwrap();
            assert!(interleaved.channels_last() && !planar.channels_last());
            let first = |loader: &Loader| loader.batches(2).next().unwrap().unwrap().images;
            let images = first(&interleaved);
            assert_eq!(images.dim(), (2, 4, 6, 3));
            assert!(images.is_standard_layout());
            assert_eq!(first(&planar).permuted_axes([0, 2, 3, 1]), images);
        }
    }

    fn tensors() -> Array4<f32> {
        Array::from_iter((0..144u8).map(f32::from)).into_shape_with_order((2, 3, 4, 6)).unwrap()
    }

    #[test]
    fn tensors_are_used_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.npy");
        write_npy(&path, &tensors()).unwrap();
        let loader = open(&path, INPUT).unwrap();
        let batch = loader.batches(8).next().unwrap().unwrap();
        assert_eq!(batch.images, tensors());
        assert!(loader.preprocess().is_none());

        let wide = InputShape { width: 7, ..INPUT };
        let error = open(&path, wide).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        let message = error.to_string();
        assert!(message.contains("3 x 4 x 6") && message.contains("3 x 4 x 7"), "{message}");

        let flags = PreprocessFlags { crop_ratio: Some(1.0), ..PreprocessFlags::default() };
        let error = Loader::open(&path, &flags, None, INPUT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn pictures_and_transforms_belong_together() {
        let folder = folder(1);
        let source = || ImageSource::open(folder.path()).unwrap();
        assert!(Loader::new(source(), None).is_err());
        let mut preprocess = Preprocess::imagenet([4, 6]);
        assert!(Loader::new(source(), Some(preprocess.clone())).is_ok());
        preprocess.mean.pop();
        assert!(Loader::new(source(), Some(preprocess)).is_err());
    }
}
