//! Opening models: the one door of commands and studies.
//!
//! A model that comes through it has the form that everything else works on, says how its pictures are prepared, and
//! declares the batch that its graph really has. What was assumed on the way is told, for the caller to pass on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, Axis};

use crate::anatomy::{EMBEDDING, Pooling, pooled};
use crate::axes::{self, BatchFault, Typing, batch_fault};
use crate::data::{
    ArrayFile, Arrays, FedReport, Feed, Preprocess, PreprocessFlags, Texts, Tokenised, check_names, declare, fix_size,
    inputs_in_words, token_inputs,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, ImageInput, SampleInputs, Unfolded, listed};
use crate::metadata::PREPROCESS;
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{ExternalLinks, Model};
use crate::runtime::Runtime;

/// What is the same with padding and without, of the largest value of an output: half precision is within it.
const SAME: f32 = 1e-3;

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Where links of external data may lead.
    pub links: ExternalLinks,
    /// Whether the weights of a quantised model become float numbers.
    pub dequantize: bool,
    /// Whether weights in int8 stay as the file has them, for a model that is run and not changed; else they become
    /// float32.
    pub written: bool,
    /// Height and width of the images, for a model that leaves them open.
    pub input_size: Option<[usize; 2]>,
    /// Values of inputs other than the image.
    pub feeds: Vec<Feed>,
    /// The output that counts, where pictures are fed; else all that these and the feeds can compute.
    pub of: Option<String>,
    /// How states of tokens become one vector a sample, the one output; else outputs are as they are.
    pub pooling: Option<Pooling>,
    /// What is said about the transform of pictures; `None` where none are fed.
    pub pictures: Option<PreprocessFlags>,
    /// A file of arrays that are fed, one for each input by name; labels may be beside them.
    pub arrays: Option<PathBuf>,
    /// Texts that are fed instead, as tokens.
    pub texts: Option<Texts>,
}

/// A model that was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The model.
    pub model: Model,
    /// What its user should know.
    pub warnings: Vec<String>,
    /// What was assumed and left out because it was asked for.
    pub notes: Vec<String>,
    /// The warning about a batch that its file declares open and its graph does not have, where there is one.
    pub batch: Option<String>,
    /// The arrays that it is fed with. It is to be [fixed](Arrays::fixed) to their lengths where it is run.
    pub arrays: Option<Arrays>,
    /// The weights in int8 that became float32.
    pub int8: Option<Unfolded>,
}

/// A model of two towers that was opened.
#[derive(Clone, Debug)]
pub struct OpenedTowers {
    /// All of it.
    pub whole: Opened,
    /// What pictures reach.
    pub images: Opened,
    /// What arrays or texts reach, with these.
    pub others: Opened,
}

impl Opened {
    /// A model of which nothing is to be said.
    fn new(model: Model) -> Opened {
        Opened { model, warnings: Vec::new(), notes: Vec::new(), batch: None, arrays: None, int8: None }
    }
}

impl Opening {
    /// Reads a model, brings it into the form that everything else works on, and feeds what it is to be fed.
    ///
    /// # Errors
    /// Those of [`Self::prepared`], of [`Feed::give`] and of [`axes::branches::inline`]; they name the file.
    pub fn read(&self, path: &Path) -> Result<Opened> {
        let (mut model, int8) = self.unfolded(path)?;
        // Branches may depend on what is fed.
        let given = self.feeds.iter().try_for_each(|feed| feed.give(&mut model));
        given.and_then(|()| axes::branches::inline(&mut model, self.input_size)).map_err(|e| e.at(path))?;
        let notes = int8.iter().map(Unfolded::note).collect();
        Ok(Opened { notes, int8, ..Opened::new(model) })
    }

    /// Reads a model, fed with nothing, whose branches stand as they are.
    ///
    /// # Errors
    /// Those of reading, of the graph's form, and of weights that cannot be made float; they name the file.
    pub fn prepared(&self, path: &Path) -> Result<Model> {
        self.unfolded(path).map(|(model, _)| model)
    }

    /// [`Self::prepared`], and what was in int8.
    fn unfolded(&self, path: &Path) -> Result<(Model, Option<Unfolded>)> {
        let mut model = Model::open_with(path, self.links)?;
        let prepare = |model: &mut Model| -> Result<Option<Unfolded>> {
            let int8 = if self.written { None } else { graph::unfold(model)? };
            if self.dequantize {
                graph::dequantize(model)?;
            }
            graph::prepare_written(model)?;
            Ok(int8)
        };
        let int8 = prepare(&mut model).map_err(|e| e.at(path))?;
        Ok((model, int8))
    }

    /// Opens a model and settles how its pictures are prepared; a configuration beside it that cannot be used is a
    /// warning where none are fed. Where some are fed, or arrays, what needs inputs that nothing is given for is cut
    /// away. Shapes that fit one batch alone are found without running the graph. Where the graph leaves a doubt and
    /// `runtime` gives a runtime, one sample alone is compared with the same one beside another; if they differ, the
    /// model takes one at a time from here on.
    ///
    /// # Errors
    /// Those of [`Self::read`], of [`graph::cut`], of [`pooled`], of [`fix_size`], of [`declare`], of reading arrays,
    /// and of running the model.
    pub fn open(&self, path: &Path, runtime: Option<&dyn Fn() -> Result<Arc<Runtime>>>) -> Result<Opened> {
        let mut opened = self.read(path)?;
        let settled = self.settle(path, &mut opened, runtime);
        settled.map_err(|e| e.at(path)).map(|()| opened)
    }

    /// The arrays that a model is fed, and how texts became them.
    fn file(&self, path: &Path, model: &Model) -> Result<(Option<ArrayFile>, Option<Tokenised>)> {
        match (&self.texts, &self.arrays) {
            (Some(texts), _) => texts.arrays(path, model).map(|(file, texts)| (Some(file), Some(texts))),
            (None, Some(arrays)) => ArrayFile::open(arrays).map(|file| (Some(file), None)),
            (None, None) => Ok((None, None)),
        }
    }

    fn settle(
        &self,
        path: &Path,
        opened: &mut Opened,
        runtime: Option<&dyn Fn() -> Result<Arc<Runtime>>>,
    ) -> Result<()> {
        let Opened { model, warnings, notes, arrays, .. } = &mut *opened;
        let of = self.of.as_deref();
        let (file, of_texts) = self.file(path, model)?;
        let names: Option<Vec<String>> = file.as_ref().map(|f| f.names().map(str::to_string).collect());
        file.iter().try_for_each(|file| check_names(file, model))?;
        let given = match (names.as_deref(), &of_texts) {
            (None, _) => SampleInputs::Image,
            (Some(names), None) => SampleInputs::Inputs(names),
            (Some(names), Some(_)) => SampleInputs::Tokens(names),
        };
        if (self.pictures.is_some() || file.is_some())
            && let Some(cut) = graph::cut(model, given, of)?
        {
            let told = if cut.of.is_some() { &mut *notes } else { &mut *warnings };
            told.push(cut.note());
        } else if let Some(of) = of {
            graph::check_output(model.graph(), of)?;
        }
        if let Some(pooling) = self.pooling {
            notes.push(pool(model, pooling)?);
        }
        if let Some(size) = self.input_size {
            fix_size(model, size)?;
        }
        *arrays = file.map(|file| fed(model, &file, of_texts, runtime)).transpose()?;
        assumed(model, warnings, notes)?;
        let flags = self.pictures.clone().unwrap_or_default();
        match (&self.pictures, arrays.is_none().then(|| declare(model, &flags, self.input_size.is_some()))) {
            (None, Some(Err(error))) => warnings.push(error.marked()),
            (_, declared) => declared.transpose().map(drop)?,
        }
        settle_batch(path, opened, runtime)
    }

    /// Opens a model of two towers, one that pictures reach and one that arrays or texts reach, and takes both out of
    /// it. Outputs that need both stay in the whole model.
    ///
    /// # Errors
    /// Those of [`Self::open`]; [`ErrorKind::Usage`] where one output is to count or to be pooled;
    /// [`ErrorKind::Unsupported`] where pictures or the other samples alone make no output.
    pub fn open_towers(&self, path: &Path, runtime: &dyn Fn() -> Result<Arc<Runtime>>) -> Result<OpenedTowers> {
        self.take_apart(path, runtime).map_err(|e| e.at(path))
    }

    fn take_apart(&self, path: &Path, runtime: &dyn Fn() -> Result<Arc<Runtime>>) -> Result<OpenedTowers> {
        if let Some(flag) = self.of.as_ref().map(|_| "⟦of⟧").or(self.pooling.map(|_| "⟦pooling⟧")) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{flag} is for one tower, and there are samples for two"),
            )
            .hint("give the samples of that tower alone, or leave it out"));
        }
        let Opened { model: mut whole, mut notes, int8, .. } = self.read(path)?;
        let Some(image) = ImageInput::of(whole.graph()).map(|input| input.name) else {
            let what = format!("no input takes images: {}", inputs_in_words(&whole));
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("leave ⟦images⟧ out: it is for a tower of pictures beside that of other samples"));
        };
        let (file, of_texts) = self.file(path, &whole).map_err(|e| match e.kind() {
            ErrorKind::Unsupported => e.rehint("leave ⟦texts⟧ out: it is for a tower of texts beside that of pictures"),
            _ => e,
        })?;
        let Some(file) = file else { bail!(Internal, "there is nothing to feed but pictures") };
        check_names(&file, &whole)?;
        let names: Vec<String> = file.names().map(str::to_string).collect();
        if names.contains(&image) {
            return Err(Error::new(ErrorKind::Usage, format!("it has an array for `{image}`, which ⟦images⟧ gives"))
                .at(file.path())
                .hint("leave out one of the two"));
        }
        let mut warnings = Vec::new();
        let all: Vec<String> = names.iter().cloned().chain([image]).collect();
        warnings.extend(graph::cut(&mut whole, SampleInputs::Tokens(&all), None)?.map(|cut| cut.note()));
        self.input_size.map_or(Ok(()), |size| fix_size(&mut whole, size))?;
        assumed(&whole, &mut warnings, &mut notes)?;
        declare(&mut whole, &self.pictures.clone().unwrap_or_default(), self.input_size.is_some())?;
        let [pictures, rest] = [(SampleInputs::Image, "pictures"), (SampleInputs::Tokens(&names), "texts or arrays")];
        read_own_batch(&mut whole, pictures, &all[names.len()..])?;
        read_own_batch(&mut whole, rest, &names)?;
        let [images, others] = [pictures, rest].map(|given| tower(&whole, given).map(Opened::new));
        let (mut images, mut others) = (images?, others?);
        others.arrays = Some(fed(&others.model, &file, of_texts, Some(runtime))?);
        settle_batch(path, &mut images, Some(runtime))?;
        settle_batch(path, &mut others, Some(runtime))?;
        for part in [&mut images, &mut others] {
            // What a part takes is what the whole takes.
            let own = |v: &ValueInfoProto| part.model.graph().input.iter().find(|own| own.name() == v.name()).cloned();
            whole.graph_mut().input.iter_mut().for_each(|v| own(v).into_iter().for_each(|own| *v = own));
            warnings.append(&mut part.warnings);
        }
        let is_of = |part: &Opened, name: &str| part.model.graph().output.iter().any(|o| o.name() == name);
        let outputs = whole.graph().output.iter().map(|o| o.name());
        let both: Vec<String> =
            outputs.filter(|o| !is_of(&images, o) && !is_of(&others, o)).map(str::to_string).collect();
        if !both.is_empty() {
            notes.push(format!("{} follow from both towers: they stay, and nothing is judged by them", listed(&both)));
        }
        Ok(OpenedTowers { whole: Opened { warnings, notes, int8, ..Opened::new(whole) }, images, others })
    }
}

/// Takes the part out of a model that some samples are enough for.
fn tower(model: &Model, (given, what): (SampleInputs, &str)) -> Result<Model> {
    let mut part = model.clone();
    match graph::cut(&mut part, given, None) {
        Ok(Some(_)) => Ok(part),
        _ => Err(Error::new(ErrorKind::Unsupported, format!("no output is made from {what} alone"))
            .hint("⟦inputs⟧ takes pictures and texts that belong together: an array for each input")),
    }
}

/// Lets a tower read the batch off its `own` inputs alone.
fn read_own_batch(whole: &mut Model, given: (SampleInputs, &str), own: &[String]) -> Result<()> {
    let mut read = whole.graph().clone();
    if !graph::read_own_axes(&mut read, own) {
        return Ok(());
    }
    let part = tower(whole, given)?;
    let declared = std::mem::take(&mut whole.graph_mut().value_info);
    graph::splice(whole.graph_mut(), part.graph(), part.graph().clone())?;
    whole.graph_mut().value_info = declared;
    Ok(())
}

/// The arrays that a model is fed with.
fn fed(
    model: &Model,
    file: &ArrayFile,
    of_texts: Option<Tokenised>,
    runtime: Option<&dyn Fn() -> Result<Arc<Runtime>>>,
) -> Result<Arrays> {
    let arrays = Arrays::read(file, model)?.of_texts(of_texts);
    runtime.map_or(Ok(()), |start| check_padding(model, &arrays, start))?;
    Ok(arrays)
}

/// Says what is assumed of a model.
fn assumed(model: &Model, warnings: &mut Vec<String>, notes: &mut Vec<String>) -> Result<()> {
    notes.extend(FedReport::of(model).iter().map(FedReport::line));
    if axes::holds_unread(model) {
        warnings.extend(Typing::new(model)?.unread());
    }
    Ok(())
}

/// Fixes the batch of a model that declares an open one and has none. Graphs are believed of pictures where they leave
/// no doubt; of arrays two samples are always compared, which takes no longer than to read them.
fn settle_batch(path: &Path, opened: &mut Opened, runtime: Option<&dyn Fn() -> Result<Arc<Runtime>>>) -> Result<()> {
    let Opened { model, warnings, batch, arrays, .. } = opened;
    let (noun, sized) = match arrays {
        Some(arrays) => ("samples", arrays.fixed(model)),
        None => ("images", model.clone()),
    };
    let fault = if arrays.is_some() { axes::batch_fault_of_all(&sized) } else { batch_fault(model) };
    let two = arrays.as_ref().and_then(Arrays::two_that_differ);
    let is_looked_at = matches!(fault, Some(BatchFault::Meets(_))) || two.is_some() && axes::takes_any_batch(&sized);
    let (count, why) = match (fault, runtime) {
        (Some(BatchFault::Holds(count)), _) => (count, "its shapes fit no others".to_owned()),
        (fault, Some(runtime)) if is_looked_at => {
            let samples = two.or_else(|| arrays.as_ref().map(|arrays| arrays.select(&[0, 0])));
            let typing = Typing::new(&sized)?;
            match runtime()?.keeps_apart(&sized, typing.image_size(), samples.map(|samples| samples.arrays)) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // What the runtime does not know it cannot run, and the file is taken at its word.
                Err(_) if !typing.opaque.is_empty() => return Ok(()),
                Err(error) => return Err(error),
            }
            // A batch that the graph shows to be one may be opened by its shapes.
            model.is_of_singles = fault.is_none();
            let why = match fault {
                Some(BatchFault::Meets(node)) => format!("{noun} of a batch meet in node `{node}`"),
                _ => format!("{noun} of a batch change each other"),
            };
            (1, why)
        }
        _ => return Ok(()),
    };
    match arrays {
        Some(_) => axes::fix_batches(model, count),
        None => axes::fix_batch(model, count),
    }
    let opens = arrays.is_none() && axes::open_batch(model).is_ok();
    let way_out = if opens { "; `grow ⟦batch-axis⟧ open` opens it" } else { "" };
    let note = format!(
        "`{}` declares an open batch and has none, since {why}: it is run on batches of {count}{way_out}",
        path.display()
    );
    warnings.push(note.clone());
    *batch = Some(note);
    Ok(())
}

/// Gives a model the vector of a sample as its one output, and says what that is.
fn pool(model: &mut Model, pooling: Pooling) -> Result<String> {
    let Ok((ids, mask)) = token_inputs(model) else {
        return Err(Error::new(ErrorKind::Usage, "⟦pooling⟧ is for models of texts, and no input takes tokens")
            .hint("leave it out; with `tune ⟦classes⟧ N` it says what a new classifier looks at"));
    };
    Ok(match pooled(model, pooling, &ids, mask.as_deref())? {
        Some(pooled) => {
            *model = pooled.model;
            pooled.note
        }
        None => format!("it gives `{EMBEDDING}` already: nothing is pooled by ⟦pooling⟧ {}", pooling.name()),
    })
}

/// Checks that a text says the same with padding and alone, where padding is on a side that was asked for.
fn check_padding(model: &Model, arrays: &Arrays, start: &dyn Fn() -> Result<Arc<Runtime>>) -> Result<()> {
    let Some([alone, padded]) = arrays.to_check()? else { return Ok(()) };
    let runtime = start()?;
    let run = |arrays: &Arrays| {
        let inputs = arrays.select(&[0]);
        let mut session = runtime.load(&arrays.fixed(model), 1, [1, 1])?;
        Ok((session.run_on(&inputs.views())?, inputs.real))
    };
    let ((alone, _), (padded, real)) = (run(&alone)?, run(&padded)?);
    let real: Vec<bool> = real.into_iter().flatten().collect();
    let worst = alone.iter().zip(&padded).filter_map(|(alone, padded)| apart(alone, padded, &real)).reduce(f32::max);
    let what = match worst {
        Some(worst) if worst <= SAME => return Ok(()),
        Some(worst) => {
            format!("a text says something else with padding on that side: off by {worst:.3} of its largest value")
        }
        None => {
            "no output can be compared with padding and without, and so the side of padding is not known to be right"
                .to_owned()
        }
    };
    let hint = "leave ⟦padding-side⟧ out, or give texts of one length";
    Err(Error::new(ErrorKind::Usage, what).at(arrays.path()).hint(hint))
}

/// How far an output with padding is from that of the same text alone, by the largest value of that; `real` says
/// which tokens are no padding. None where it lies along tokens in another way than its second axis.
fn apart(alone: &ArrayD<f32>, padded: &ArrayD<f32>, real: &[bool]) -> Option<f32> {
    let places: Vec<usize> = (0..real.len()).filter(|&at| real[at]).collect();
    let padded = match padded.ndim() > 1 && padded.len_of(Axis(1)) == real.len() {
        true => padded.select(Axis(1), &places),
        false => padded.clone(),
    };
    let largest = alone.iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
    let difference = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() / largest };
    (alone.shape() == padded.shape()).then(|| alone.iter().zip(&padded).map(difference).fold(0.0, f32::max))
}

/// Lets a model that is to be written say how its pictures are prepared, where it does not yet; `size` is that of a
/// child of another image size.
///
/// # Errors
/// [`ErrorKind::Internal`] where the transform cannot be written down.
pub fn keep_transform(model: &mut Model, transform: Option<&Preprocess>, size: Option<[usize; 2]>) -> Result<()> {
    if let (Some(transform), None) = (transform, model.metadata(PREPROCESS)) {
        let transform = Preprocess { size: size.unwrap_or(transform.size), ..transform.clone() };
        let text = serde_json::to_string(&transform).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        model.set_metadata(PREPROCESS, text);
    }
    Ok(())
}
