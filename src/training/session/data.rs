//! The images of a session: a data set, which part of it validates, and in whose terms its labels are.

use std::path::{Path, PathBuf};

use crate::axes::Typing;
use crate::data::{Dataset, DatasetOptions, InputShape, PreprocessFlags, Split, class_names};
use crate::error::Result;
use crate::metadata::PREPROCESS;
use crate::onnx::Model;
use crate::progress::Listener;
use crate::training::Validation;

/// Images to train on and to validate on.
pub struct Data {
    /// Where the data set lies.
    pub path: PathBuf,
    /// The data set.
    pub dataset: Dataset,
    /// Its images to train on and to validate on.
    pub split: Split,
    /// Another data set, all of which validates.
    pub other: Option<Dataset>,
}

/// How a data set is cut into a part to train on and one to validate on.
#[derive(Clone, Copy, Debug, Default)]
pub struct HoldOut {
    /// Share of the images that validates; where none is given, the part that the data come with, or one by their
    /// number.
    pub share: Option<f64>,
    /// What the cut follows from.
    pub seed: u64,
    /// Images to train on, at most.
    pub limit: Option<usize>,
}

/// Opens a data set, and says what was assumed of it.
///
/// # Errors
/// Those of [`Dataset::open`].
pub fn open_dataset(path: &Path, options: &DatasetOptions, listener: &dyn Listener) -> Result<Dataset> {
    let dataset = Dataset::open(path, options)?;
    dataset.source().notes().iter().for_each(|note| listener.warn(note));
    Ok(dataset)
}

impl Data {
    /// Opens a data set, and another one to validate on where there is one.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub fn open(
        path: &Path,
        other: Option<&Path>,
        options: &DatasetOptions,
        cut: HoldOut,
        listener: &dyn Listener,
    ) -> Result<Data> {
        let set = open_dataset(path, options, listener)?;
        let other = other.map(|p| open_dataset(p, options, listener)).transpose()?;
        Ok(Data::cut(path, set, other, cut, listener))
    }

    /// Cuts a data set, where there is no other one to validate on.
    pub fn cut(path: &Path, set: Dataset, other: Option<Dataset>, cut: HoldOut, listener: &dyn Listener) -> Data {
        let all = || Split { training: (0..set.len()).collect(), validation: Vec::new() };
        let mut split = match (&other, cut.share, set.given_split()) {
            (Some(_), _, Some(given)) => Split { training: given.training.clone(), validation: Vec::new() },
            (Some(_), _, None) => all(),
            (None, Some(0.0), _) => all(),
            (None, Some(share), _) => set.split(share, cut.seed),
            (None, None, Some(given)) => given.clone(),
            (None, None, None) => set.split(set.held_out_share(), cut.seed),
        };
        if set.len() < 80 && !split.validation.is_empty() && cut.share.is_none() && set.given_split().is_none() {
            let (held_out, share) = (split.validation.len(), set.held_out_share());
            listener.note(&format!(
                "{held_out} of {} samples are held out to validate on, as by ⟦val-split⟧ {share}: of so few a tenth \
                 would say little",
                set.len()
            ));
        }
        if let Some(limit) = cut.limit {
            split.training.truncate(limit);
        }
        Data { path: path.to_path_buf(), dataset: set, split, other }
    }

    /// A hash of all images and labels.
    ///
    /// # Errors
    /// Those of reading them.
    pub fn fingerprint(&self) -> Result<String> {
        let other = self.other.as_ref().map(Dataset::fingerprint).transpose()?;
        Ok(self.dataset.fingerprint()? + &other.unwrap_or_default())
    }

    /// Puts the labels in the terms of the model, and those of another data set for validation in the same.
    pub(super) fn match_classes(&mut self, model: &Model, outputs: usize, listener: &dyn Listener) -> Result<()> {
        let names = class_names(model);
        let matched = self.dataset.matched(names.as_deref(), outputs)?;
        let mut notes: Vec<String> = matched.note.into_iter().collect();
        self.dataset = matched.dataset;
        if let Some(other) = &mut self.other {
            let matched = other.matched(self.dataset.classes().or(names.as_deref()), outputs)?;
            notes.extend(matched.note);
            *other = matched.dataset;
        }
        notes.dedup();
        notes.iter().for_each(|note| listener.warn(note));
        Ok(())
    }

    /// The images to validate on, as a model sees them; `limit` is the most that are taken of another data set.
    pub(super) fn validation(
        &self,
        model: &Model,
        typing: &Typing,
        flags: &PreprocessFlags,
        limit: Option<usize>,
        strict: bool,
    ) -> Result<Option<Validation>> {
        match &self.other {
            Some(other) => {
                let mut some: Vec<usize> = (0..other.len().min(limit.unwrap_or(usize::MAX))).collect();
                some.sort_by_key(|&sample| other.length_of(sample));
                Validation::new(other, some, flags, model, typing, strict).map(Some)
            }
            None if self.split.validation.is_empty() => Ok(None),
            None => {
                let mut part = self.split.validation.clone();
                part.sort_by_key(|&sample| self.dataset.length_of(sample));
                Validation::new(&self.dataset, part, flags, model, typing, strict).map(Some)
            }
        }
    }
}

impl Validation {
    /// Some images of a data set through the evaluation transform of a model, with their labels.
    ///
    /// # Errors
    /// Those of the transform and of the images.
    pub fn new(
        dataset: &Dataset,
        indices: Vec<usize>,
        flags: &PreprocessFlags,
        model: &Model,
        typing: &Typing,
        strict: bool,
    ) -> Result<Validation> {
        let input = InputShape::of(typing)?;
        let preprocess = dataset.preprocess(flags, model.metadata(PREPROCESS), input)?;
        let loader = dataset.loader(indices, preprocess, input.layout)?.strict(strict);
        let cosines = dataset.cosines().map(<[f64]>::to_vec);
        Ok(Validation { loader, labels: dataset.labels().map(<[u32]>::to_vec), cosines })
    }

    /// The number of samples, readable or not.
    pub fn samples(&self) -> usize {
        self.loader.len() / if self.cosines.is_some() { 2 } else { 1 }
    }

    /// The cosine that all pairs are to have, where there are pairs and these have one score alone.
    pub(super) fn only_score(&self) -> Option<f64> {
        let all = self.cosines.as_ref()?;
        let mut wanted = self.loader.selected().iter().filter_map(|&image| all.get(image));
        let first = *wanted.next()?;
        wanted.all(|cosine| *cosine == first).then_some(first)
    }

    /// The first images, at most so many.
    pub fn limit(self, limit: Option<usize>) -> Validation {
        match limit {
            Some(limit) => Validation { loader: self.loader.limit(limit), ..self },
            None => self,
        }
    }
}
