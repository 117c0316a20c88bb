//! The classifier that a session's model is given before it is trained.

use std::sync::Arc;

use super::data::Data;
use super::options::Options;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::descendant;
use crate::error::Result;
use crate::learngene::Learngene;
use crate::metadata::CLASSES;
use crate::onnx::Model;
use crate::progress::Listener;
use crate::runtime::Runtime;
use crate::training::{CLASSIFIER_IMAGES, Validation, add_classifier, fit_classifier, has_classifier};

/// What a classifier is made by.
pub(super) struct ClassifierBuilder<'s> {
    pub data: &'s Data,
    pub runtime: &'s Arc<Runtime>,
    pub options: &'s Options,
    pub listener: &'s dyn Listener,
}

impl ClassifierBuilder<'_> {
    /// Gives a model the classifier that was asked for: in the place of its own, or behind its encoder.
    pub fn prepare(&self, model: &mut Model) -> Result<()> {
        let ClassifierBuilder { data, options, listener, .. } = self;
        let Some(classes) = options.classes else { return Ok(()) };
        let path = model.path.clone();
        let replaced = {
            let typing = Typing::new(model).map_err(|e| e.at(&path))?;
            match has_classifier(&typing) && options.pooling.is_none() {
                true => {
                    let anatomy = Anatomy::new(&typing).map_err(|e| e.at(&path))?;
                    let gene = Learngene::identity(&typing, &anatomy);
                    let seed = options.plan.seed;
                    let shape = descendant::GrowOptions { classes: Some(classes), seed, ..Default::default() };
                    let grown = descendant::grow(model, &gene, &shape)?;
                    grown.plan.warnings.iter().for_each(|w| listener.warn(w));
                    Some(grown.model)
                }
                false => None,
            }
        };
        match replaced {
            Some(new) => *model = new,
            None => {
                // A new classifier does not look at padding.
                let mask = options.rows.as_ref().and_then(|rows| rows.mask.as_deref());
                *model = add_classifier(model, classes, options.pooling, mask).map_err(|e| e.at(&path))?;
                if data.dataset.labels().is_some() && !options.dry_run {
                    data.dataset.check_labels(classes)?;
                    self.fit(model)?;
                }
            }
        }
        if let Some(names) = data.dataset.classes().filter(|names| names.len() == classes) {
            model.set_metadata(CLASSES, serde_json::to_string(names).unwrap_or_default());
        }
        Ok(())
    }

    /// Starts a new classifier from a regression on the encoder's features.
    fn fit(&self, model: &mut Model) -> Result<()> {
        let ClassifierBuilder { data, runtime, options, listener } = self;
        let (images, image) = {
            let typing = Typing::new(model)?;
            // Spread over the whole training part, whatever its order.
            let training = &data.split.training;
            let step = training.len().div_ceil(CLASSIFIER_IMAGES).max(1);
            let some: Vec<usize> = training.iter().copied().step_by(step).collect();
            let (flags, strict) = (&options.transform, options.batches.strict);
            let images = Validation::new(&data.dataset, some, flags, model, &typing, strict)?.limit(options.limit);
            (images, typing.image_size())
        };
        let count = images.loader.len();
        let result = fit_classifier(runtime, model, &images, image, |n| listener.progress("features", n, count));
        listener.over();
        result
    }
}
