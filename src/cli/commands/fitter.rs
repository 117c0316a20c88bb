//! What the commands that fit have in common: what fits a model, or each of its towers, on the samples of the command
//! line.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Map, Value};

use super::source::{InputSource, Noun, Subject};
use super::{agree, named, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{RunFlags, SampleFlags};
use crate::cli::output::{Bars, note};
use crate::data::{Arrays, Preprocess};
use crate::error::Result;
use crate::fitting::{Fitter, Origin, Towers, Views};
use crate::onnx::Model;
use crate::rounding::Dtype;
use crate::runtime::{Options, Runtime};

/// What a model is fitted on.
pub enum FitSamples {
    /// All of it on arrays, or else on images.
    Whole(Option<Arrays>),
    /// Each tower, by itself, on what is for it.
    Towers(Vec<Subject>),
}

/// Samples, and what fits descendants on them.
pub struct Calibrated(Vec<CalibratedTower>);

/// The samples of a model, or of one of its towers.
pub struct CalibratedTower {
    /// What fits.
    pub fitter: Fitter,
    source: InputSource,
    /// The tower.
    tower: Option<Model>,
}

impl Calibrated {
    /// The model, or each of its towers.
    pub fn parts(&self) -> &[CalibratedTower] {
        &self.0
    }

    /// What shrinks the model.
    ///
    /// # Errors
    /// Those of [`Fitter::shrinker`] and of [`Towers::new`].
    pub fn towers<'m>(&'m self, model: &'m Model) -> Result<Towers<'m>> {
        let shrinker = |part: &'m CalibratedTower| part.fitter.shrinker(part.tower.as_ref().unwrap_or(model));
        let towers = match &self.0[..] {
            [part] => shrinker(part).map(Towers::from),
            parts => parts.iter().map(shrinker).collect::<Result<_>>().and_then(|all| Towers::new(model, all)),
        };
        named(&model.path, towers)
    }

    /// Views that are fitted on, and those that are held out.
    pub fn views(&self) -> [usize; 2] {
        let all = self.0.iter().map(|part| part.fitter.views());
        all.fold([0; 2], |[fit, held_out], own| [fit + own[0], held_out + own[1]])
    }

    /// What an order of removal is measured on.
    ///
    /// # Errors
    /// Those of reading the samples.
    pub fn origin(&self) -> Result<Origin<'_>> {
        let hashes = self.0.iter().map(|part| part.source.fingerprint()).collect::<Result<Vec<_>>>()?;
        let count = self.0.iter().map(|part| part.source.samples().len()).sum();
        Ok(Origin { count, sha256: hashes.join("+"), transform: self.preprocess() })
    }

    /// The transform of pictures.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.0.iter().find_map(|part| part.source.preprocess())
    }

    /// What samples are called.
    pub fn noun(&self) -> Noun {
        match &self.0[..] {
            [part] => part.source.noun(),
            _ => Noun { one: "an image with a text", many: "samples" },
        }
    }

    /// What the model is fed with, for JSON: of several towers by what samples are called.
    pub fn report(&self) -> Value {
        match &self.0[..] {
            [part] => part.source.report(),
            parts => {
                let of = |part: &CalibratedTower| (part.source.noun().many.to_string(), part.source.report());
                Value::Object(parts.iter().map(of).collect::<Map<_, _>>())
            }
        }
    }

    /// The values of a descendant that stay in float32 in a file of `dtype`: see [`Fitter::wide`].
    ///
    /// # Errors
    /// Those of [`Fitter::wide`] and of [`Towers::part`].
    pub fn wide(
        &self,
        towers: &Towers,
        child: &Model,
        dtype: Option<Dtype>,
        bars: &Bars,
    ) -> Result<Option<HashSet<String>>> {
        let mut found: Option<HashSet<String>> = None;
        for (part, tower) in self.0.iter().zip(towers.each()) {
            let small = towers.part(tower, child)?;
            if let Some(own) = part.fitter.wide(&small, dtype.map(Dtype::float), bars)? {
                found.get_or_insert_default().extend(own);
            }
        }
        Ok(found)
    }
}

/// Draws so many views of the images that are named, or takes up to so many samples of the arrays that a model was
/// opened with, as they are; for each of its towers, where there are several.
pub fn calibrated(
    model: &Model,
    (samples, fed): (&SampleFlags, FitSamples),
    run: &RunFlags,
    views: Views,
    bars: &Bars,
) -> Result<Calibrated> {
    let on = |model: &Model, arrays| on(model, (samples, arrays), run, views, bars);
    match fed {
        FitSamples::Whole(arrays) => Ok(Calibrated(vec![on(model, arrays)?])),
        FitSamples::Towers(towers) => {
            let of = |(tower, arrays)| {
                let part = on(&tower, arrays)?;
                Ok(CalibratedTower { tower: Some(tower), ..part })
            };
            Ok(Calibrated(towers.into_iter().map(of).collect::<Result<_>>()?))
        }
    }
}

/// Draws the views of one model.
fn on(
    model: &Model,
    (samples, arrays): (&SampleFlags, Option<Arrays>),
    run: &RunFlags,
    views: Views,
    bars: &Bars,
) -> Result<CalibratedTower> {
    let begun = Instant::now();
    let source = match arrays {
        Some(arrays) => InputSource::of_arrays(arrays, model),
        None => {
            let typing = named(&model.path, Typing::new(model))?;
            InputSource::new(samples, run, model, &typing, None)?
        }
    };
    agree(&model.path, || source.fingerprint())?;
    let runtime = Runtime::start(&Options { threads: Some(1), ..run.runtime.options() })?;
    let fitter = match &source {
        InputSource::Images(loader, _) => Fitter::new(model, loader, runtime, views, begun, bars)?,
        InputSource::Arrays(arrays, _) => named(&model.path, Fitter::on_arrays(model, arrays, runtime, views, begun))?,
    };
    if let InputSource::Arrays(..) = &source {
        let ([fit, held_out], many) = (fitter.views(), source.noun().many);
        note(&format!("fits are made on {fit} {many} and judged by {held_out} others"));
    }
    // Every process draws the same views.
    warn_skipped(&source.skipped());
    Ok(CalibratedTower { fitter, source, tower: None })
}
