//! Streams augmented batches for training, made ahead of time on other threads.
//!
//! Everything random is a function of the seed, the epoch and the position in it. So a run that is resumed at a batch of an
//! epoch sees the very batches that it would have seen, on any number of threads.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use ndarray::{Array2, Array3, Array4, Axis};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::augment::Augmentation;
use super::labelled::Dataset;
use super::mix;
use super::preprocess::{Layout, Preprocess};
use super::random::{Purpose, generator};
use super::source::{Item, Skipped};
use crate::error::{Error, ErrorKind, Result};

/// How many threads assemble batches: while one waits for the last images of its batch, the other's fill the cores.
const PRODUCERS: usize = 2;

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
    /// Which of how many processes that train together this is, from 0: each takes its part of every batch of
    /// `batch_size` times the number of processes.
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
    /// The values, in standard memory order: `[images, channels, height, width]`, or `[images, height, width,
    /// channels]` for [`Layout::Nhwc`].
    pub images: Array4<f32>,
    /// What the model should answer, `[images, classes]`: 1 at the class of the image and 0 elsewhere, or what mixing made
    /// of that. `None` where labels are left aside.
    pub targets: Option<Array2<f32>>,
    /// The class of every image before mixing. `None` where labels are left aside.
    pub labels: Option<Vec<u32>>,
    /// Which images of the data set they are.
    pub indices: Vec<usize>,
}

/// Makes batches for training. Clones share the data set.
#[derive(Clone, Debug)]
pub struct TrainingLoader {
    dataset: Dataset,
    selected: Arc<Vec<usize>>,
    preprocess: Option<Preprocess>,
    layout: Layout,
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
    /// cannot be augmented as asked; `Images` if there are fewer images than a batch takes, or if the labels do not pass
    /// [`Dataset::check_labels`].
    pub fn new(
        dataset: Dataset,
        selected: Vec<usize>,
        preprocess: Option<Preprocess>,
        layout: Layout,
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
        if let Some(index) = selected.iter().find(|&&index| index >= dataset.len()) {
            bail!(Usage, "there is no image {index}, only {}", dataset.len());
        }
        let whole = options.batch_size.saturating_mul(processes);
        if selected.len() < whole {
            return Err(Error::new(
                ErrorKind::Images,
                format!("there are {} images to train on, fewer than the {whole} of one batch", selected.len()),
            )
            .at(source.path())
            .hint("give a smaller --batch-size, or more images"));
        }
        let pool = match options.threads {
            0 => None,
            threads => Some(Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| {
                Error::new(ErrorKind::Usage, format!("{threads} threads cannot be started: {error}"))
            })?)),
        };
        Ok(TrainingLoader { selected: Arc::new(selected), dataset, preprocess, layout, options, pool })
    }

    /// The number of batches in an epoch. What is left over at its end is dropped.
    pub fn batches_per_epoch(&self) -> usize {
        self.selected.len() / (self.options.batch_size * self.options.share.1)
    }

    /// The number of images that are selected, readable or not.
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

    /// The batches of an epoch from the one numbered `first` on, both counted from 0. They are made some batches ahead of
    /// the one that is asked for; making the next epoch's while the model is being validated keeps that from waiting.
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
                let worker = std::thread::spawn(move || loader.produce(epoch, numbers, &order, &sender));
                (receiver, Some(worker))
            })
            .collect();
        TrainingBatches { workers, next: 0 }
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

    /// The order of the images in an epoch.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order = self.selected.to_vec();
        if self.options.shuffle {
            order.shuffle(&mut generator(self.options.seed, Purpose::Order, epoch as u64, 0));
        }
        order
    }

    fn batch(&self, epoch: usize, number: usize, order: &[usize]) -> Result<TrainingBatch> {
        let TrainingOptions { batch_size, seed, share: (rank, processes), .. } = self.options;
        let start = (number * processes + rank) * batch_size;
        let loaded: Vec<(usize, Array3<f32>)> = (start..start + batch_size)
            .into_par_iter()
            .map(|position| self.image(epoch, position, order))
            .collect::<Result<_>>()?;
        let mut images = Array4::zeros(match loaded.first() {
            Some((_, image)) => (batch_size, image.dim().0, image.dim().1, image.dim().2),
            None => (0, 0, 0, 0),
        });
        let indices = loaded.iter().map(|(index, _)| *index).collect::<Vec<_>>();
        images.outer_iter_mut().into_par_iter().zip(loaded).for_each(|(mut to, (_, image))| to.assign(&image));
        let labels = self.options.classes.and_then(|_| self.dataset.labels());
        let labels: Option<Vec<u32>> = labels.map(|all| indices.iter().map(|&index| all[index]).collect());
        let mut targets = labels.as_ref().zip(self.options.classes).map(|(labels, classes)| {
            let mut targets = Array2::zeros((batch_size, classes));
            for (mut target, &label) in targets.axis_iter_mut(Axis(0)).zip(labels) {
                target[label as usize] = 1.0;
            }
            targets
        });
        let size = match (self.layout, images.dim()) {
            (Layout::Nchw, (_, _, height, width)) | (Layout::Nhwc, (_, height, width, _)) => [height, width],
        };
        let mut random = generator(seed, Purpose::Mix, epoch as u64, number as u64);
        if let Some(mix) = mix::draw(self.options.mixup, self.options.cutmix, size, &mut random) {
            mix.images(&mut images, self.layout);
            if let Some(targets) = &mut targets {
                mix.targets(targets);
            }
        }
        Ok(TrainingBatch { epoch, batch: number, images, targets, labels, indices })
    }

    /// The image at a position of the epoch, or the next that can be read, with its index in the data set.
    fn image(&self, epoch: usize, position: usize, order: &[usize]) -> Result<(usize, Array3<f32>)> {
        let source = self.dataset.source();
        for &index in order[position..].iter().chain(&order[..position]) {
            match self.load(index, epoch, position) {
                Ok(image) => return Ok((index, image)),
                Err(error) => {
                    source.skip(index, &error);
                    if self.options.strict {
                        return Err(error);
                    }
                }
            }
        }
        let reason = self.skipped().first.unwrap_or_default();
        Err(Error::new(ErrorKind::Images, format!("none of the {} images can be read: {reason}", order.len()))
            .at(source.path())
            .hint("give pictures that other programs open; a download that broke off leaves such files"))
    }

    fn load(&self, index: usize, epoch: usize, position: usize) -> Result<Array3<f32>> {
        let source = self.dataset.source();
        let mut random = generator(self.options.seed, Purpose::Augment, epoch as u64, position as u64);
        let augmentation = &self.options.augmentation;
        match (source.read(index)?, &self.preprocess) {
            (Item::Picture(picture), Some(preprocess)) => augmentation
                .picture(picture, preprocess, self.layout, &mut random)
                .map_err(|error| error.at(source.file(index))),
            (Item::Tensor(tensor), _) => Ok(augmentation.tensor(tensor, self.layout, &mut random)),
            (Item::Picture(_), None) => bail!(Internal, "a picture without a transform"),
        }
    }
}

/// The batches of an epoch. Dropping it stops the work on the rest.
pub struct TrainingBatches {
    workers: Vec<(Receiver<Result<TrainingBatch>>, Option<JoinHandle<()>>)>,
    next: usize,
}

impl fmt::Debug for TrainingBatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainingBatches").finish_non_exhaustive()
    }
}

impl Iterator for TrainingBatches {
    type Item = Result<TrainingBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let turn = self.next % self.workers.len().max(1);
        let (receiver, worker) = self.workers.get_mut(turn)?;
        match receiver.recv() {
            Ok(batch) => {
                self.next += 1;
                if batch.is_err() {
                    self.workers.clear();
                }
                Some(batch)
            }
            // The worker has ended: well, or by a panic that must not pass for the end of the epoch.
            Err(_) => {
                let worker = worker.take();
                self.workers.clear();
                worker?.join().err().map(|_| Err(Error::new(ErrorKind::Internal, "the loading of images panicked")))
            }
        }
    }
}
