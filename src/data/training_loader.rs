//! Streams augmented batches for training, made ahead of time on other threads.
//!
//! Everything random is a function of the seed, the epoch and the position in it. So a run that is resumed at a batch
//! of an epoch sees the very batches that it would have seen, on any number of threads.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use image::DynamicImage;
use ndarray::{Array2, Array3, Array4, Axis};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::dataset::Dataset;
use super::decode::pixels;
use super::item::Item;
use super::loader::{Batch, STRICT_HINT};
use super::random::{Generator, Purpose, generator};
use super::shape::ImageLayout;
use super::source::Skipped;
use super::transforms::{Augmentation, InputTransform, Preprocess, mixup};
use crate::error::{Error, ErrorKind, Result};

/// How many threads assemble batches: while one waits for the last images of its batch, the other's fill the cores.
const PRODUCERS: usize = 2;

/// Batches in whose samples those of one length are looked for. Of fewer, batches would be alike in every epoch.
const BLOCK: usize = 32;

/// How images are put into batches for training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingOptions {
    /// The number of images in a batch, at least 1.
    pub batch_size: usize,
    /// Whether each epoch has an order of its own; else it is that of the data set.
    pub shuffle: bool,
    /// What everything random follows from.
    pub seed: u64,
    /// What may happen to an image.
    pub augmentation: Augmentation,
    /// The parameter of mixup's distribution (Zhang et al. 2017, arXiv:1710.09412); 0 for none.
    pub mixup: f64,
    /// The parameter of CutMix's distribution (Yun et al. 2019, arXiv:1905.04899); 0 for none.
    pub cutmix: f64,
    /// The number of classes, the width of the targets; `None` leaves labels aside.
    pub classes: Option<usize>,
    /// Whether an image that cannot be read is an error, rather than replaced by the next one.
    pub strict: bool,
    /// The number of threads that load images; 0 for one a core.
    pub threads: usize,
    /// Which of how many processes that train together this is, from 0: each takes [its
    /// part](TrainingLoader::positions) of every batch of `batch_size` times the number of processes.
    pub share: (usize, usize),
}

impl Default for TrainingOptions {
    /// Batches of 32 in random order, with seed 0 and nothing else that is random.
    fn default() -> Self {
        TrainingOptions {
            batch_size: 32,
            shuffle: true,
            seed: 0,
            augmentation: Augmentation::none(),
            mixup: 0.0,
            cutmix: 0.0,
            classes: None,
            strict: false,
            threads: 0,
            share: (0, 1),
        }
    }
}

/// A batch to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingBatch {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Which batch of the epoch it is, from 0.
    pub batch: usize,
    /// Its images, as they came out of augmentation and mixing.
    pub data: Batch,
    /// What the model should answer, `[images, classes]`: 1 at the class of the image and 0 elsewhere, or what mixing
    /// made of that. Of pairs their cosines, `[pairs, 1]`. `None` where labels are left aside.
    pub targets: Option<Array2<f32>>,
    /// The class of every image before mixing. `None` where labels are left aside.
    pub labels: Option<Vec<u32>>,
}

impl Deref for TrainingBatch {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        &self.data
    }
}

/// Makes batches for training. Clones share the data set.
#[derive(Clone, Debug)]
pub struct TrainingLoader {
    dataset: Arc<Dataset>,
    selected: Arc<Vec<usize>>,
    preprocess: Option<Preprocess>,
    layout: ImageLayout,
    teacher: Option<InputTransform>,
    options: TrainingOptions,
    pool: Option<Arc<ThreadPool>>,
}

impl TrainingLoader {
    /// A loader of the images of `dataset` with the given indices, prepared by `preprocess`
    /// ([`Dataset::preprocess`]) for a model of the given layout.
    ///
    /// # Errors
    ///
    /// `Usage` if the options make no sense, if pictures come without a transform or tensors with one, or if tensors
    /// cannot be augmented as asked; `Images` if there are fewer images than a batch takes, or if the labels do not
    /// pass [`Dataset::check_labels`].
    pub fn new(
        dataset: Dataset,
        selected: Vec<usize>,
        preprocess: Option<Preprocess>,
        layout: ImageLayout,
        options: TrainingOptions,
    ) -> Result<Self> {
        let source = dataset.source();
        source.check_preprocess(preprocess.as_ref())?;
        options.augmentation.check()?;
        if source.is_tensors() {
            options.augmentation.check_tensors()?;
        }
        for (name, alpha) in [("mixup", options.mixup), ("cutmix", options.cutmix)] {
            if !(0.0..=1000.0).contains(&alpha) {
                bail!(Usage, "the parameter of {name} is from 0 (none) to 1000, not {alpha}");
            }
        }
        match options.classes {
            Some(classes) => dataset.check_labels(classes)?,
            None if options.mixup > 0.0 || options.cutmix > 0.0 => {
                return Err(Error::new(ErrorKind::Usage, "mixup and CutMix mix labels, and there are none")
                    .hint("leave them out for distillation"));
            }
            None => {}
        }
        let (rank, processes) = options.share;
        if rank >= processes || options.batch_size == 0 {
            bail!(Usage, "batches of {} for process {rank} of {processes} cannot be", options.batch_size);
        }
        if processes > 1 && options.batch_size % 2 == 1 && (options.mixup > 0.0 || options.cutmix > 0.0) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("several processes cannot mix batches of {}, an odd number", options.batch_size),
            )
            .hint("mixup and CutMix mix two images each: give an even ⟦batch-size⟧"));
        }
        if let Some(index) = selected.iter().find(|&&index| index >= dataset.len()) {
            bail!(Usage, "there is no image {index}, only {}", dataset.len());
        }
        let whole = options.batch_size.saturating_mul(processes) / dataset.images_each();
        if selected.len() < whole {
            return Err(Error::new(
                ErrorKind::Images,
                format!("there are {} samples to train on, fewer than the {whole} of one batch", selected.len()),
            )
            .at(source.path())
            .hint("give a smaller ⟦batch-size⟧, or more samples"));
        }
        let pool = match options.threads {
            0 => None,
            threads => Some(Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| {
                Error::new(ErrorKind::Usage, format!("{threads} threads cannot be started: {error}"))
            })?)),
        };
        Ok(TrainingLoader {
            selected: Arc::new(selected),
            dataset: Arc::new(dataset),
            preprocess,
            layout,
            teacher: None,
            options,
            pool,
        })
    }

    /// Makes every image ready for a teacher too: what is drawn at random is drawn once, so that both models see the
    /// same part of a picture, each in its own size and normalisation.
    ///
    /// # Errors
    ///
    /// `Usage` if pictures come without a transform for it or tensors with one, or the transform makes no sense.
    pub fn with_teacher(mut self, view: Option<InputTransform>) -> Result<Self> {
        if let Some(view) = &view {
            self.dataset.source().check_preprocess(view.preprocess.as_ref())?;
        }
        self.teacher = view;
        Ok(self)
    }

    /// The number of batches in an epoch. What is left over at its end is dropped.
    pub fn batches_per_epoch(&self) -> usize {
        self.selected.len() * self.dataset.images_each() / (self.options.batch_size * self.options.share.1)
    }

    /// The positions of this process's images in the batch that all processes take together: as many from its front as
    /// from its back, in the same order, so that an image and the one that it is mixed with, the batch in reverse,
    /// stand together. Pairs, which are not mixed, stay pairs.
    pub fn positions(&self) -> Vec<usize> {
        let TrainingOptions { batch_size, share: (rank, processes), .. } = self.options;
        if self.dataset.cosines().is_some() {
            return (rank * batch_size..(rank + 1) * batch_size).collect();
        }
        let half = batch_size / 2;
        let middle = processes * half;
        let end = processes * batch_size;
        let front = rank * half..(rank + 1) * half;
        let odd = (middle + rank..middle + rank + 1).filter(|_| batch_size % 2 == 1);
        front.clone().chain(odd).chain(front.rev().map(|p| end - 1 - p)).collect()
    }

    /// The number of samples that are selected, readable or not.
    pub fn len(&self) -> usize {
        self.selected.len()
    }

    /// Whether no images are selected; never so.
    pub fn is_empty(&self) -> bool {
        self.selected.is_empty()
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// How the batches are made.
    pub fn options(&self) -> &TrainingOptions {
        &self.options
    }

    /// What could not be read so far.
    pub fn skipped(&self) -> Skipped {
        self.dataset.source().skipped()
    }

    /// The batches of an epoch from the one numbered `first` on, both counted from 0. They are made some batches ahead
    /// of the one that is asked for; making the next epoch's while the model is being validated keeps that from
    /// waiting.
    ///
    /// An image that cannot be read is replaced by the next one of the epoch that can, and [counted](Self::skipped).
    pub fn batches(&self, epoch: usize, first: usize) -> TrainingBatches {
        let order = Arc::new(self.order(epoch));
        let end = self.batches_per_epoch();
        let workers = (0..PRODUCERS)
            .map(|offset| {
                let (sender, receiver) = sync_channel(1);
                let (loader, order) = (self.clone(), order.clone());
                let numbers = (first.saturating_add(offset)..end).step_by(PRODUCERS);
                let thread = std::thread::spawn(move || loader.produce(epoch, numbers, &order, &sender));
                Worker { receiver, thread }
            })
            .collect();
        TrainingBatches { workers, taken: 0 }
    }

    fn produce(
        &self,
        epoch: usize,
        numbers: impl Iterator<Item = usize> + Send,
        order: &[usize],
        sender: &SyncSender<Result<TrainingBatch>>,
    ) {
        for number in numbers {
            let make = || self.batch(epoch, number, order);
            let batch = match &self.pool {
                Some(pool) => pool.install(make),
                None => make(),
            };
            let ends = batch.is_err();
            // The receiver is gone when nobody wants the rest.
            if sender.send(batch).is_err() || ends {
                return;
            }
        }
    }

    /// The order of the images in an epoch. Where samples have lengths, a batch is of samples of few of them.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order = self.selected.to_vec();
        if self.options.shuffle {
            let mut random = generator(self.options.seed, Purpose::Order, epoch as u64, 0);
            order.shuffle(&mut random);
            let batch = self.options.batch_size * self.options.share.1 / self.dataset.images_each();
            // What is left over at the end of the epoch is dropped, and is to be no longer than the rest.
            let whole = order.len() / batch.max(1) * batch;
            for block in order[..whole].chunks_mut(BLOCK * batch.max(1)) {
                by_length(block, batch, |&sample| self.dataset.length_of(sample), &mut random);
            }
        }
        self.dataset.images_of(order)
    }

    fn batch(&self, epoch: usize, number: usize, order: &[usize]) -> Result<TrainingBatch> {
        let TrainingOptions { batch_size, seed, share: (_, processes), .. } = self.options;
        let start = number * processes * batch_size;
        let loaded: Vec<(usize, Loaded)> = self
            .positions()
            .into_par_iter()
            .map(|position| self.image(epoch, start + position, order))
            .collect::<Result<_>>()?;
        let (indices, loaded): (Vec<usize>, Vec<Loaded>) = loaded.into_iter().unzip();
        let (own, of_teacher): (Vec<_>, Vec<_>) = loaded.into_iter().map(|l| (l.own, l.teacher)).unzip();
        let mut images = whole(own);
        let mut teacher = of_teacher.into_iter().collect::<Option<Vec<_>>>().map(whole);
        let labels = self.options.classes.and_then(|_| self.dataset.labels());
        let labels: Option<Vec<u32>> = labels.map(|all| indices.iter().map(|&index| all[index]).collect());
        let of_labels = labels.as_ref().zip(self.options.classes).map(|(labels, classes)| {
            let mut targets = Array2::zeros((batch_size, classes));
            for (mut target, &label) in targets.axis_iter_mut(Axis(0)).zip(labels) {
                target[label as usize] = 1.0;
            }
            targets
        });
        let of_pairs = self.dataset.cosines().map(|all| {
            Array2::from_shape_fn((indices.len() / 2, 1), |(pair, _)| all[indices[2 * pair] % all.len()] as f32)
        });
        let mut targets = of_labels.or(of_pairs);
        let size = self.layout.size(&images);
        let mut random = generator(seed, Purpose::Mix, epoch as u64, number as u64);
        if let Some(mix) = mixup::draw(self.options.mixup, self.options.cutmix, size, &mut random) {
            mix.images(&mut images, self.layout);
            if let (Some(teacher), Some(view)) = (&mut teacher, &self.teacher) {
                let scaled = mix.scaled(size, view.layout.size(teacher));
                scaled.images(teacher, view.layout);
            }
            if let Some(targets) = &mut targets {
                mix.targets(targets);
            }
        }
        let data = Batch { first: number * batch_size, images, teacher, indices };
        Ok(TrainingBatch { epoch, batch: number, data, targets, labels })
    }

    /// The image at a position of the epoch, or the next that can be read, with its index in the data set.
    fn image(&self, epoch: usize, position: usize, order: &[usize]) -> Result<(usize, Loaded)> {
        let source = self.dataset.source();
        for &index in order[position..].iter().chain(&order[..position]) {
            match self.load(index, epoch, position) {
                Ok(image) => return Ok((index, image)),
                Err(error) => {
                    source.skip(index, &error);
                    if self.options.strict {
                        return Err(error.hint(STRICT_HINT));
                    }
                }
            }
        }
        let reason = self.skipped().first.unwrap_or_default();
        Err(Error::new(ErrorKind::Images, format!("none of the {} images can be read: {reason}", order.len()))
            .at(source.path())
            .hint("give pictures that other programs open; a download that broke off leaves such files"))
    }

    fn load(&self, index: usize, epoch: usize, position: usize) -> Result<Loaded> {
        let source = self.dataset.source();
        let mut random = generator(self.options.seed, Purpose::Augment, epoch as u64, position as u64);
        let augmentation = &self.options.augmentation;
        match (source.read(index)?, &self.preprocess) {
            (Item::Picture(picture), Some(preprocess)) => {
                self.picture(picture, preprocess, &mut random).map_err(|error| error.at(source.file(index)))
            }
            (Item::Tensor(tensor), _) => {
                let values = augmentation.tensor(tensor, ImageLayout::Nchw, &mut random);
                let teacher = self.teacher.as_ref().map(|view| view.layout.arrange(values.clone()));
                Ok(Loaded { own: self.layout.arrange(values), teacher })
            }
            (Item::Picture(_), None) => bail!(Internal, "a picture without a transform"),
        }
    }

    fn picture(&self, picture: DynamicImage, preprocess: &Preprocess, random: &mut Generator) -> Result<Loaded> {
        let sides = [picture.height() as usize, picture.width() as usize];
        let draw = self.options.augmentation.draw(sides, preprocess, random)?;
        let teacher = match &self.teacher {
            Some(InputTransform { preprocess: Some(other), layout }) => {
                Some(draw.apply(&pixels(picture.clone(), other.channels), other, *layout)?)
            }
            _ => None,
        };
        Ok(Loaded { own: draw.apply(&pixels(picture, preprocess.channels), preprocess, self.layout)?, teacher })
    }
}

/// An image, and the same as the teacher takes it, where it takes it otherwise.
struct Loaded {
    own: Array3<f32>,
    teacher: Option<Array3<f32>>,
}

/// Images, all of one shape, in a batch.
fn whole(images: Vec<Array3<f32>>) -> Array4<f32> {
    let (a, b, c) = images.first().map_or((0, 0, 0), |image| image.dim());
    let mut batch = Array4::zeros((images.len(), a, b, c));
    batch.outer_iter_mut().into_par_iter().zip(images).for_each(|(mut to, image)| to.assign(&image));
    batch
}

/// The batches of an epoch. Dropping it stops the work on the rest.
pub struct TrainingBatches {
    workers: Vec<Worker>,
    /// How many batches were handed out: the workers take turns.
    taken: usize,
}

/// Puts samples, which are in random order, into batches of like lengths, which are in random order again. What has no
/// length stays as it is.
fn by_length(samples: &mut [usize], batch: usize, length: impl Fn(&usize) -> Option<usize>, random: &mut Generator) {
    if samples.iter().any(|sample| length(sample).is_none()) {
        return;
    }
    samples.sort_by_cached_key(length);
    let mut batches: Vec<&[usize]> = samples.chunks(batch).collect();
    batches.shuffle(random);
    let found = batches.concat();
    samples.copy_from_slice(&found);
}

/// A thread that makes every so-manieth batch.
struct Worker {
    receiver: Receiver<Result<TrainingBatch>>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for TrainingBatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainingBatches").finish_non_exhaustive()
    }
}

impl Iterator for TrainingBatches {
    type Item = Result<TrainingBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let turn = self.taken % self.workers.len().max(1);
        let batch = self.workers.get(turn)?.receiver.recv();
        self.taken += 1;
        match batch {
            Ok(Ok(batch)) => Some(Ok(batch)),
            Ok(Err(error)) => {
                self.workers.clear();
                Some(Err(error))
            }
            // The worker has ended: well, or by a panic that must not pass for the end of the epoch.
            Err(_) => {
                let worker = self.workers.swap_remove(turn);
                self.workers.clear();
                let panicked = || Err(Error::new(ErrorKind::Internal, "the loading of images panicked"));
                worker.thread.join().err().map(|_| panicked())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use ndarray::{Array, s};
    use ndarray_npy::NpzWriter;
    use tempfile::TempDir;

    use super::super::dataset::DatasetOptions;
    use super::super::testing::write_picture;
    use super::*;

    /// A folder of three classes of `count` pictures each, whose red is their number in the whole.
    fn folder(count: u8) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3 * count {
            let path = folder.path().join(format!("{}/{number:03}.png", ["a", "b", "c"][usize::from(number / count)]));
            write_picture(&path, 9, 7, [number, 0, 0]);
        }
        folder
    }

    fn loader(path: &Path, options: TrainingOptions) -> Result<TrainingLoader> {
        let dataset = Dataset::open(path, &DatasetOptions::default())?;
        let selected = (0..dataset.len()).collect();
        let preprocess = Preprocess { crop_ratio: 1.0, ..Preprocess::imagenet([4, 6]) };
        TrainingLoader::new(dataset, selected, Some(preprocess), ImageLayout::Nchw, options)
    }

    fn options() -> TrainingOptions {
        TrainingOptions { batch_size: 4, classes: Some(3), seed: 5, ..TrainingOptions::default() }
    }

    fn epoch(loader: &TrainingLoader, epoch: usize, first: usize) -> Vec<TrainingBatch> {
        loader.batches(epoch, first).map(Result::unwrap).collect()
    }

    fn indices(batches: &[TrainingBatch]) -> Vec<usize> {
        batches.iter().flat_map(|batch| batch.indices.clone()).collect()
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_data() {
        let folder = folder(5);
        let loader = loader(folder.path(), TrainingOptions { shuffle: false, ..options() }).unwrap();
        assert_eq!(loader.batches_per_epoch(), 3);
        for number in [0, 7] {
            let batches = epoch(&loader, number, 0);
            assert_eq!(indices(&batches), (0..12).collect::<Vec<_>>());
            for (position, batch) in batches.iter().enumerate() {
                assert_eq!((batch.epoch, batch.batch), (number, position));
                assert_eq!(batch.images.dim(), (4, 3, 4, 6));
                assert!(batch.images.is_standard_layout());
                let reds =
                    batch.images.slice(s![.., 0, 0, 0]).mapv(|red| ((red * 0.229 + 0.485) * 255.0).round() as usize);
                assert_eq!(reds.to_vec(), batch.indices);
                let labels: Vec<u32> = batch.indices.iter().map(|&index| index as u32 / 5).collect();
                assert_eq!(batch.labels.as_ref().unwrap(), &labels);
                let targets = batch.targets.as_ref().unwrap();
                assert_eq!(targets.dim(), (4, 3));
                for (target, &label) in targets.outer_iter().zip(&labels) {
                    assert!(
                        target.iter().enumerate().all(|(class, &value)| (class == label as usize) == (value == 1.0))
                    );
                    assert_eq!(target.sum(), 1.0);
                }
            }
        }
    }

    #[test]
    fn epochs_are_permutations_that_the_seed_decides() {
        let folder = folder(8);
        let order = |seed, number| {
            let loader = loader(folder.path(), TrainingOptions { seed, ..options() }).unwrap();
            indices(&epoch(&loader, number, 0))
        };
        let mut sorted = order(1, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..24).collect::<Vec<_>>());
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    #[test]
    fn threads_and_resuming_change_nothing() {
        let folder = folder(9);
        let random = |threads| TrainingOptions {
            augmentation: Augmentation { jitter: [0.4; 3], ..Augmentation::deit() },
            mixup: 0.8,
            cutmix: 1.0,
            threads,
            ..options()
        };
        let one = loader(folder.path(), random(1)).unwrap();
        let whole = epoch(&one, 3, 0);
        assert_eq!(whole.len(), 6);
        assert_ne!(whole[0].images, epoch(&one, 4, 0)[0].images);
        assert!(whole.iter().any(|batch| batch.targets.iter().flatten().any(|&value| value != 0.0 && value != 1.0)));
        for threads in [0, 2, 5] {
            let other = loader(folder.path(), random(threads)).unwrap();
            assert_eq!(epoch(&other, 3, 0), whole);
            assert_eq!(epoch(&other, 3, 4), whole[4..]);
            assert!(epoch(&other, 3, 6).is_empty());
        }
    }

    #[test]
    fn processes_share_the_same_order() {
        let folder = folder(9);
        for (processes, size, mixup) in [(2, 4, 0.0), (2, 4, 0.8), (3, 2, 0.8), (3, 3, 0.0), (2, 1, 0.0)] {
            let with = |batch_size, share| {
                let augmentation = Augmentation::standard();
                let more = TrainingOptions { batch_size, share, augmentation, mixup, ..options() };
                loader(folder.path(), more).unwrap()
            };
            let alone = epoch(&with(size * processes, (0, 1)), 2, 0);
            assert_eq!(alone.len(), 27 / (size * processes));
            let mut seen = vec![0; size * processes];
            for rank in 0..processes {
                let own = with(size, (rank, processes));
                let positions = own.positions();
                positions.iter().for_each(|&p| seen[p] += 1);
                for (part, batch) in epoch(&own, 2, 0).iter().zip(&alone) {
                    let indices: Vec<usize> = positions.iter().map(|&p| batch.indices[p]).collect();
                    assert_eq!(part.indices, indices);
                    assert_eq!(part.images, batch.images.select(Axis(0), &positions));
                    let targets = |b: &TrainingBatch| b.targets.clone().unwrap();
                    assert_eq!(targets(part), targets(batch).select(Axis(0), &positions));
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{seen:?}");
        }
        let odd = TrainingOptions { batch_size: 3, share: (0, 2), mixup: 0.2, ..options() };
        assert!(loader(folder.path(), odd).unwrap_err().to_string().contains("odd number"));
    }

    #[test]
    fn pairs_stay_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.npy");
        ndarray_npy::write_npy(&path, &Array::from_shape_fn((18, 1, 2, 3), |(n, _, y, x)| (10 * n + 3 * y + x) as f32))
            .unwrap();
        let cosines: Vec<f64> = (0..9).map(|pair| f64::from(pair) / 16.0).collect();
        let with = |batch_size, share| {
            let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap().in_pairs(cosines.clone()).unwrap();
            assert_eq!(dataset.len(), 9);
            let more = TrainingOptions { batch_size, share, classes: None, ..options() };
            TrainingLoader::new(dataset, (0..9).collect(), None, ImageLayout::Nchw, more).unwrap()
        };
        for (processes, size) in [(1, 6), (2, 2), (2, 6)] {
            let alone = epoch(&with(size * processes, (0, 1)), 2, 0);
            assert_eq!(alone.len(), 18 / (size * processes));
            let mut seen = Vec::new();
            for rank in 0..processes {
                let own = with(size, (rank, processes));
                for (part, batch) in epoch(&own, 2, 0).iter().zip(&alone) {
                    let all = &batch.indices;
                    assert_eq!(part.indices, own.positions().iter().map(|&p| all[p]).collect::<Vec<_>>());
                    let pairs: Vec<usize> = part.indices.chunks(2).map(|pair| pair[0]).collect();
                    assert!(part.indices.chunks(2).all(|pair| pair[1] == pair[0] + 9), "{:?}", part.indices);
                    let wanted = Array::from_shape_fn((size / 2, 1), |(i, _)| cosines[pairs[i]] as f32);
                    assert_eq!(part.targets.as_ref().unwrap(), wanted);
                    assert!(part.images.outer_iter().zip(&part.indices).all(|(i, &n)| i[[0, 0, 0]] == 10.0 * n as f32));
                    seen.extend(pairs);
                }
            }
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), alone.len() * size * processes / 2);
        }
        assert!(Dataset::open(&path, &DatasetOptions::default()).unwrap().in_pairs(vec![0.5; 8]).is_err());
    }

    #[test]
    fn what_is_corrupt_is_replaced_by_what_follows() {
        let folder = folder(5);
        for name in ["a/001.png", "a/002.png", "c/014.png"] {
            fs::write(folder.path().join(name), b"\x89PNG\r\n\x1a\n broken").unwrap();
        }
        let unshuffled = TrainingOptions { shuffle: false, batch_size: 5, ..options() };
        let loose = loader(folder.path(), unshuffled.clone()).unwrap();
        // The last one is followed by the first.
        assert_eq!(indices(&epoch(&loose, 0, 0)), [0, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0]);
        assert_eq!(loose.skipped().count, 3);
        let strict = loader(folder.path(), TrainingOptions { strict: true, ..unshuffled }).unwrap();
        let mut batches = strict.batches(0, 0);
        let error = batches.next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains("00"), "{error}");
        assert!(batches.next().is_none());
    }

    #[test]
    fn a_folder_of_corrupt_pictures_is_an_image_error() {
        let folder = folder(2);
        for number in 0..6 {
            let path = folder.path().join(format!("{}/{number:03}.png", ["a", "b", "c"][number / 2]));
            fs::write(path, "broken").unwrap();
        }
        let loader = loader(folder.path(), options()).unwrap();
        let error = loader.batches(0, 0).next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains("none of the 6 images"), "{error}");
        assert!(error.to_string().contains("a/000.png"), "{error}");
    }

    #[test]
    fn tensors_are_trained_on_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.npz");
        let tensors = Array::from_iter((0..288u16).map(f32::from)).into_shape_with_order((4, 3, 4, 6)).unwrap();
        let mut writer = NpzWriter::new(fs::File::create(&path).unwrap());
        writer.add_array("x", &tensors).unwrap();
        writer.add_array("y", &ndarray::array![2i64, 0, 1, 2]).unwrap();
        writer.finish().unwrap();
        let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
        let new = |options, layout| TrainingLoader::new(dataset.clone(), vec![0, 1, 2, 3], None, layout, options);
        let plain = TrainingOptions { shuffle: false, ..options() };
        let batch = epoch(&new(plain.clone(), ImageLayout::Nchw).unwrap(), 0, 0).remove(0);
        assert_eq!(batch.images, tensors);
        assert_eq!(batch.labels.unwrap(), [2, 0, 1, 2]);
        let last = epoch(&new(plain.clone(), ImageLayout::Nhwc).unwrap(), 0, 0).remove(0);
        assert!(last.images.is_standard_layout());
        assert_eq!(last.data.images.permuted_axes([0, 3, 1, 2]), tensors);
        let error =
            new(TrainingOptions { augmentation: Augmentation::standard(), ..plain }, ImageLayout::Nchw).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn unlabelled_images_have_no_targets() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..4 {
            write_picture(&folder.path().join(format!("{number}.png")), 9, 7, [number, 0, 0]);
        }
        let error = loader(folder.path(), options()).unwrap_err();
        assert!(error.to_string().contains("lies in no folder of a class"), "{error}");
        let unlabelled = TrainingOptions { classes: None, ..options() };
        let batch = epoch(&loader(folder.path(), unlabelled.clone()).unwrap(), 0, 0).remove(0);
        assert_eq!((batch.targets, batch.labels), (None, None));
        assert!(loader(folder.path(), TrainingOptions { mixup: 0.2, ..unlabelled }).is_err());
    }

    #[test]
    fn senseless_options_are_errors() {
        let folder = folder(2);
        for (change, message) in [
            (TrainingOptions { batch_size: 0, ..options() }, "batches of 0"),
            (TrainingOptions { batch_size: 7, ..options() }, "there are 6 samples to train on, fewer than the 7"),
            (TrainingOptions { share: (0, 2), ..options() }, "fewer than the 8"),
            (TrainingOptions { share: (2, 2), ..options() }, "process 2 of 2"),
            (TrainingOptions { classes: Some(2), ..options() }, "the model tells 2 classes apart"),
            (TrainingOptions { classes: Some(4), ..options() }, "has 3 classes, and the model tells 4 apart"),
            (TrainingOptions { mixup: -1.0, ..options() }, "mixup"),
            (TrainingOptions { cutmix: f64::NAN, ..options() }, "cutmix"),
        ] {
            let error = loader(folder.path(), change).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
        let dataset = Dataset::open(folder.path(), &DatasetOptions::default()).unwrap();
        assert!(TrainingLoader::new(dataset, vec![0; 4], None, ImageLayout::Nchw, options()).is_err());
    }

    #[test]
    fn unwanted_batches_are_not_waited_for() {
        let folder = folder(20);
        let loader = loader(folder.path(), TrainingOptions { batch_size: 1, ..options() }).unwrap();
        let mut batches = loader.batches(0, 0);
        assert!(batches.next().unwrap().is_ok());
        let threads: Vec<_> = batches.workers.drain(..).map(|worker| worker.thread).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
