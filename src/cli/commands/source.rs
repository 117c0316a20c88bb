//! What commands run a model on: pictures, arrays for its inputs, or texts that become such arrays.

use std::path::Path;

use serde_json::{Value, json};

use super::{flags_for, images, open_to_run, told, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{OpenFlags, RunFlags, RuntimeFlags, SampleFiles, SampleFlags, TransformFlags};
use crate::cli::output;
use crate::data::{Arrays, ArraysReport, InputReport, Loader, Preprocess, Samples, Skipped, Texts};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::opening::{Opened, Opening};
use crate::runtime::Runtime;

/// What a model is run on.
pub enum InputSource {
    /// Pictures, and what they become.
    Images(Loader, Box<InputReport>),
    /// Arrays, and what they are.
    Arrays(Arrays, Box<ArraysReport>),
}

/// A model, and the arrays that it is run on where these are no images.
pub type Subject = (Model, Option<Arrays>);

/// What samples are called.
#[derive(Clone, Copy)]
pub struct Noun {
    /// One of them.
    pub one: &'static str,
    /// Several.
    pub many: &'static str,
}

impl Noun {
    /// What samples are called, of arrays or of pictures.
    pub fn of(arrays: Option<&Arrays>) -> Noun {
        match arrays {
            None => Noun { one: "an image", many: "images" },
            Some(arrays) if arrays.are_texts() => Noun { one: "a text", many: "texts" },
            Some(_) => Noun { one: "a sample", many: "samples" },
        }
    }
}

/// Opens a model that is to run on what is named. Axes that it leaves open stay so: see [`sized`].
///
/// # Errors
/// Those of [`Opening::open`]; [`ErrorKind::Usage`] where arrays are to be prepared like pictures, and for samples of
/// two kinds.
pub fn open_for(path: &Path, run: &RunFlags, samples: &SampleFlags) -> Result<Subject> {
    if samples.are_of_towers() {
        return Err(Error::new(ErrorKind::Usage, "one tower is looked at here, and there are samples for two")
            .at(path)
            .hint("give one of --images, --texts and --inputs; `shrink`, `density` and `condense` take both kinds"));
    }
    let Some(given) = samples.arrays.given(run.transform.limit()) else {
        return open_to_run(path, &run.open, &run.runtime, &run.transform).map(|model| (model, None));
    };
    let opened = opened_on(path, &run.open, &run.runtime, &run.transform, given)?;
    let Some(arrays) = opened.arrays else { bail!(Internal, "the arrays were not read") };
    Ok((opened.model, Some(arrays.limit(run.transform.limit().unwrap_or(usize::MAX)))))
}

/// Opens a model of two towers, one that pictures reach and one that arrays or texts reach, and both by themselves.
///
/// # Errors
/// Those of [`Opening::open_towers`].
pub fn open_towers(path: &Path, run: &RunFlags, samples: &SampleFlags) -> Result<(Model, Vec<Subject>)> {
    let (arrays, texts) = match samples.arrays.given(run.transform.limit()) {
        Some(SampleFiles::Texts(texts)) => (None, Some(texts)),
        Some(SampleFiles::Arrays(arrays)) => (Some(arrays), None),
        None => (None, None),
    };
    let opening = Opening { pictures: Some(run.transform.preprocess()), arrays, texts, ..run.open.opening() };
    let opened = opening.open_towers(path, &|| Runtime::start(&run.runtime.options()))?;
    let limit = run.transform.limit().unwrap_or(usize::MAX);
    let others = opened.others.arrays.map(|arrays| arrays.limit(limit));
    Ok((told(opened.whole).model, vec![(opened.images.model, None), (opened.others.model, others)]))
}

/// Opens a model that is to run on arrays, all that there are, or on texts.
///
/// # Errors
/// Those of [`open_for`].
pub fn opened_on(
    path: &Path,
    open: &OpenFlags,
    runtime: &RuntimeFlags,
    transform: &TransformFlags,
    given: SampleFiles,
) -> Result<Opened> {
    if !transform.preprocess().is_empty() {
        let what = match given {
            SampleFiles::Texts(_) => "texts are fed to the model as tokens, and cannot be preprocessed",
            SampleFiles::Arrays(_) => "arrays are fed to the model as they are, and cannot be preprocessed",
        };
        return Err(Error::new(ErrorKind::Usage, what)
            .at(given.path())
            .hint("drop --mean, --std, --crop-ratio, --interpolation, --resize and --channel-order"));
    }
    let (arrays, texts) = match given {
        SampleFiles::Arrays(arrays) => (Some(arrays), None),
        SampleFiles::Texts(texts) => (None, Some(texts)),
    };
    let opening = Opening { arrays, texts, ..open.opening() };
    let start = || Runtime::start(&runtime.options());
    Ok(told(opening.open(path, Some(&start))?))
}

/// A model as long as the arrays that it is run on.
pub fn sized((model, arrays): Subject) -> Subject {
    let sized = arrays.as_ref().map(|arrays| arrays.fixed(&model));
    (sized.unwrap_or(model), arrays)
}

/// Opens two models that are to run on the same, of whose arrays they have the lengths.
///
/// # Errors
/// Those of [`open_for`].
pub fn open_both(paths: [&Path; 2], run: &RunFlags, samples: &SampleFlags) -> Result<[Subject; 2]> {
    let [a, b] = flags_for(paths, &run.open)?;
    // Both see the same tokens, wherever a child was written.
    let mut samples = samples.clone();
    if samples.arrays.texts.is_some() && samples.arrays.tokens.tokenizer.is_none() {
        samples.arrays.tokens.tokenizer = paths.into_iter().find_map(Texts::tokenizer_beside);
    }
    let open = |path, open: OpenFlags| open_for(path, &RunFlags { open, ..run.clone() }, &samples).map(sized);
    Ok([open(paths[0], a)?, open(paths[1], b)?])
}

impl InputSource {
    /// What a model that was [opened for it](open_for), and is as long, is run on; says what that is.
    ///
    /// # Errors
    /// Those of opening images.
    pub fn new(
        samples: &SampleFlags,
        run: &RunFlags,
        model: &Model,
        typing: &Typing,
        arrays: Option<Arrays>,
    ) -> Result<InputSource> {
        match (arrays, &samples.images) {
            (Some(arrays), _) => Ok(InputSource::of_arrays(arrays, model)),
            (None, Some(path)) => {
                let loader = images(path, &run.transform, model, typing)?;
                Ok(InputSource::of_loader(loader, model, typing))
            }
            (None, None) => Err(Error::new(ErrorKind::Usage, "there is nothing to run the model on")
                .hint("give --images PATH, --inputs PATH or --texts PATH")),
        }
    }

    /// Arrays that a model is run on; says what they are.
    pub fn of_arrays(arrays: Arrays, model: &Model) -> InputSource {
        let report = arrays.report(model);
        report.lines().iter().for_each(|line| output::note(line));
        InputSource::Arrays(arrays, Box::new(report))
    }

    /// Pictures, and what a model makes of them.
    pub fn of_loader(loader: Loader, model: &Model, typing: &Typing) -> InputSource {
        let report = InputReport::new(model, typing, loader.preprocess());
        InputSource::Images(loader, Box::new(report))
    }

    /// The model as long as the arrays that it is run on; none where it is as it is.
    pub fn fixed(&self, model: &Model) -> Option<Model> {
        match self {
            InputSource::Images(..) => None,
            InputSource::Arrays(arrays, _) => Some(arrays.fixed(model)),
        }
    }

    /// As samples.
    pub fn samples(&self) -> &dyn Samples {
        match self {
            InputSource::Images(loader, _) => loader,
            InputSource::Arrays(arrays, _) => arrays,
        }
    }

    /// What they are called.
    pub fn noun(&self) -> Noun {
        match self {
            InputSource::Images(..) => Noun::of(None),
            InputSource::Arrays(arrays, _) => Noun::of(Some(arrays)),
        }
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        match self {
            InputSource::Images(loader, _) => loader.source().path(),
            InputSource::Arrays(arrays, _) => arrays.path(),
        }
    }

    /// The transform of pictures.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        match self {
            InputSource::Images(loader, _) => loader.preprocess(),
            InputSource::Arrays(..) => None,
        }
    }

    /// A hash of what they are.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            InputSource::Images(loader, _) => loader.fingerprint(),
            InputSource::Arrays(arrays, _) => Ok(arrays.fingerprint()),
        }
    }

    /// What could not be read.
    pub fn skipped(&self) -> Skipped {
        match self {
            InputSource::Images(loader, _) => loader.skipped(),
            InputSource::Arrays(..) => Skipped::default(),
        }
    }

    /// Says which of them could not be read.
    pub fn warn_skipped(&self) {
        warn_skipped(&self.skipped());
    }

    /// What the model is fed with, for the field `input` of JSON.
    pub fn report(&self) -> Value {
        match self {
            InputSource::Images(_, report) => json!(report),
            InputSource::Arrays(_, report) => json!(report),
        }
    }
}
