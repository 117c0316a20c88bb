//! What the cells of a study are made of: ancestors with what they are measured and fitted on, data sets, and models
//! that other tools made. Each is opened once, through the door of the commands.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::calibrating::Calibrating;
use super::cell::Cell;
use super::file::{self, Method, SampleSpec};
use super::method::choice;
use crate::anatomy::{Anatomy, Pooling};
use crate::axes::{Typing, fix_batches};
use crate::data::{
    Arrays, ArraysReport, Dataset, DatasetOptions, InputReport, InputShape, Loader, PreprocessFlags, Rows, Texts,
};
use crate::descendant::resize_image;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{CLASSES, IMAGE_SIZE, PREPROCESS};
use crate::onnx::{Model, sha256};
use crate::opening::{Opened, Opening};
use crate::runtime::Runtime;
use crate::training::{add_classifier, has_classifier};

/// What a model is fed with, for JSON.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum CellSamples {
    /// What its images become.
    Images(Box<InputReport>),
    /// Arrays, or the tokens of texts.
    Arrays(Box<ArraysReport>),
}

impl CellSamples {
    /// What is used, and what is assumed, in lines.
    pub fn lines(&self) -> Vec<String> {
        match self {
            CellSamples::Images(report) => vec![report.line()],
            CellSamples::Arrays(report) => report.lines(),
        }
    }
}

/// An opened ancestor.
struct Ancestor {
    model: Model,
    entry: file::Ancestor,
    /// What identifies it.
    sources: Vec<String>,
    /// What it is measured on, where these are no images.
    arrays: Option<Arrays>,
    /// What a new classifier looks at.
    pooling: Option<Pooling>,
}

/// An opened data set.
pub(super) struct Set {
    /// The samples, in rows where these are arrays.
    pub dataset: Dataset,
    pub classes: usize,
    pub training: Vec<usize>,
    pub validation: Vec<usize>,
    /// How arrays lie in rows.
    pub rows: Option<Rows>,
    /// The names of the classes of a model, by the configuration beside it.
    pub model_classes: Option<Vec<String>>,
    fingerprint: String,
}

/// Everything that was opened.
pub(super) struct Materials {
    runtime: Arc<Runtime>,
    ancestors: BTreeMap<String, Ancestor>,
    /// By their names and those of the ancestors, since texts become the tokens of these.
    sets: HashMap<(String, String), Set>,
    /// Models that other tools made, and what identifies them.
    others: HashMap<PathBuf, (Model, Vec<String>)>,
    /// What every model is fed with, by the ancestor's name or the file.
    pub inputs: BTreeMap<String, CellSamples>,
    /// What the user should know of the models.
    pub warnings: Vec<String>,
}

impl Materials {
    /// Nothing yet, on a runtime.
    pub fn new(runtime: Arc<Runtime>) -> Materials {
        Materials {
            runtime,
            ancestors: BTreeMap::new(),
            sets: HashMap::new(),
            others: HashMap::new(),
            inputs: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Opens a model through the door that the commands have.
    fn open(&mut self, path: &Path, side: Option<usize>, given: SampleSpec) -> Result<Opened> {
        let mut opening = Opening { input_size: side.map(|n| [n; 2]), ..Opening::default() };
        match given {
            SampleSpec::Images(_) => opening.pictures = Some(PreprocessFlags::default()),
            SampleSpec::Inputs(arrays) => opening.arrays = Some(arrays),
            SampleSpec::Texts(texts) => opening.texts = Some(texts),
        }
        let opened = opening.open(path, Some(&|| Ok(self.runtime.clone())))?;
        for warning in &opened.warnings {
            if !self.warnings.contains(warning) {
                self.warnings.push(warning.clone());
            }
        }
        Ok(opened)
    }

    /// Notes what a model is fed with.
    fn report(&mut self, name: &str, fed: CellSamples) {
        if let CellSamples::Images(report) = &fed {
            self.warnings.extend(report.warnings().iter().map(|warning| format!("`{name}`: {warning}")));
        }
        self.inputs.insert(name.to_string(), fed);
    }

    /// Opens an ancestor.
    ///
    /// # Errors
    /// Those of opening it and its samples, and of giving it another image size.
    pub fn ancestor(&mut self, name: &str, entry: &file::Ancestor) -> Result<()> {
        if self.ancestors.contains_key(name) {
            return Ok(());
        }
        let on = |e: Error| e.at(&entry.model);
        let given = entry.given().map_err(|e| in_table(e, "ancestor", name))?;
        let pooling = entry.pooling.as_deref().map(|text| choice("pooling", text)).transpose()?;
        let Opened { mut model, arrays, .. } = self.open(&entry.model, entry.input_size, given.clone())?;
        let mut sources = identity(&entry.model, &model)?;
        if let Some(side) = entry.image_size {
            model = resize_image(&model, [side; 2]).map_err(on)?;
        }
        let typing = Typing::new(&model).map_err(on)?;
        Anatomy::new(&typing).map_err(on)?;
        if let (Some(pooling), true) = (pooling, has_classifier(&typing)) {
            let what = format!("`pooling` is `{}`, and the ancestor has a classifier", Pooling::name(pooling));
            return Err(in_table(Error::new(ErrorKind::Usage, what).hint("leave it out"), "ancestor", name));
        }
        let fed = match (&given, &arrays) {
            (SampleSpec::Images(path), _) => {
                let images = loader(path, &model, &typing)?;
                sources.insert(1, images.fingerprint()?);
                CellSamples::Images(Box::new(InputReport::new(&model, &typing, images.preprocess())))
            }
            (_, Some(arrays)) => {
                sources.insert(1, arrays.fingerprint());
                CellSamples::Arrays(Box::new(arrays.report(&model)))
            }
            (_, None) => bail!(Internal, "the arrays were not read"),
        };
        drop(typing);
        sources.extend(entry.pooling.as_ref().map(|pooling| format!("pooling {pooling}")));
        self.report(name, fed);
        self.ancestors.insert(name.to_string(), Ancestor { model, entry: entry.clone(), sources, arrays, pooling });
        Ok(())
    }

    /// Opens a data set for an ancestor.
    ///
    /// # Errors
    /// Those of opening it; [`ErrorKind::Images`] where it has no labels; [`ErrorKind::Usage`] where it holds samples
    /// of another kind than the ancestor is measured on.
    pub fn data(&mut self, ancestor: &str, name: &str, entry: &file::Data) -> Result<()> {
        let key = (ancestor.to_string(), name.to_string());
        if self.sets.contains_key(&key) {
            return Ok(());
        }
        let here = |e: Error| in_table(e, "data", name);
        let owner = self.of(ancestor)?.entry.clone();
        let given = entry.given(&owner).map_err(here)?;
        if matches!(given, SampleSpec::Images(_)) != owner.images.is_some() {
            let [own, other] = match given {
                SampleSpec::Images(_) => ["images", "arrays or texts"],
                _ => ["arrays or texts", "images"],
            };
            let what = format!("they are {own}, and the ancestor `{ancestor}` is measured on {other}");
            let hint = "give both images, or both `inputs` or `texts`";
            return Err(here(Error::new(ErrorKind::Usage, what).hint(hint)));
        }
        let set = match &given {
            SampleSpec::Images(path) => {
                let known = self.sets.iter().find(|((_, own), _)| own == name).map(|(_, set)| set.dataset.clone());
                Set::of(path, known.map_or_else(|| of_images(path, entry), Ok)?, None, None)?
            }
            SampleSpec::Inputs(path) => self.of_arrays(&owner, path, given.clone())?,
            SampleSpec::Texts(texts) => self.of_arrays(&owner, &texts.path, given.clone())?,
        };
        self.sets.insert(key, set);
        Ok(())
    }

    /// A data set of what an ancestor takes by the names of its inputs.
    fn of_arrays(&mut self, ancestor: &file::Ancestor, path: &Path, given: SampleSpec) -> Result<Set> {
        let opened = self.open(&ancestor.model, None, given)?;
        let Some(arrays) = opened.arrays else { bail!(Internal, "the arrays were not read") };
        if opened.model.is_of_singles {
            // So is what was opened with other samples, which may have been too few to show it.
            let own = self.ancestors.values_mut().filter(|own| own.entry.model == ancestor.model);
            own.for_each(|own| {
                own.model.is_of_singles = true;
                fix_batches(&mut own.model, 1);
            });
        }
        let rows = Rows::of(&arrays);
        let dataset = rows.dataset(&arrays, false)?;
        Set::of(path, dataset, Some(rows), arrays.model_classes().map(<[String]>::to_vec))
    }

    /// What identifies everything that enters a cell: the ancestor, its samples, the data, and a model that another
    /// tool made, which is opened here.
    ///
    /// # Errors
    /// Those of opening that model.
    pub fn sources(&mut self, ancestor: &str, data: &str, method: &Method) -> Result<Vec<String>> {
        let mut all: Vec<String> = self.ancestors.get(ancestor).map(|a| a.sources.clone()).unwrap_or_default();
        let key = (ancestor.to_string(), data.to_string());
        all.extend(self.sets.get(&key).map(|s| s.fingerprint.clone()));
        if let Some(path) = &method.model {
            if !self.others.contains_key(path) {
                let given = self.of(ancestor)?.entry.given()?.beside(&self.of(ancestor)?.entry.model);
                let Opened { model, arrays, .. } = self.open(path, None, given)?;
                let sources = identity(path, &model)?;
                let typing = Typing::new(&model).map_err(|e| e.at(path))?;
                let fed = match (arrays, self.sets.get(&key)) {
                    (Some(arrays), _) => Some(CellSamples::Arrays(Box::new(arrays.report(&model)))),
                    (None, Some(set)) => {
                        let (flags, input) = (PreprocessFlags::default(), InputShape::of(&typing)?);
                        let transform = set.dataset.preprocess(&flags, model.metadata(PREPROCESS), input)?;
                        Some(CellSamples::Images(Box::new(InputReport::new(&model, &typing, transform.as_ref()))))
                    }
                    (None, None) => None,
                };
                drop(typing);
                fed.into_iter().for_each(|fed| self.report(&path.display().to_string(), fed));
                self.others.insert(path.clone(), (model, sources));
            }
            all.extend(self.others[path].1.iter().cloned());
        }
        Ok(all)
    }

    fn of(&self, ancestor: &str) -> Result<&Ancestor> {
        let missing = || Error::new(ErrorKind::Internal, format!("the ancestor `{ancestor}` is not open"));
        self.ancestors.get(ancestor).ok_or_else(missing)
    }

    /// The data of a cell.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`].
    pub fn set(&self, cell: &Cell) -> Result<&Set> {
        let missing = || Error::new(ErrorKind::Internal, format!("the data `{}` are not open", cell.data));
        self.sets.get(&(cell.ancestor.clone(), cell.data.clone())).ok_or_else(missing)
    }

    /// An ancestor as it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`].
    pub fn model(&self, ancestor: &str) -> Result<&Model> {
        self.of(ancestor).map(|own| &own.model)
    }

    /// The ancestor of a cell with a classifier; a new one of its data's classes where it had none.
    ///
    /// # Errors
    /// Those of [`add_classifier`].
    pub fn source(&self, cell: &Cell) -> Result<(Model, usize)> {
        let (Ancestor { model, pooling, .. }, set) = (self.of(&cell.ancestor)?, self.set(cell)?);
        let mask = set.rows.as_ref().and_then(|rows| rows.mask.as_deref());
        let mut source = match has_classifier(&Typing::new(model)?) {
            true => model.clone(),
            false => add_classifier(model, set.classes, *pooling, mask)?,
        };
        // Names of labels are matched with those of the model's classes, which the configuration beside it may tell.
        if let (None, Some(classes)) = (source.metadata(CLASSES), &set.model_classes) {
            source.set_metadata(CLASSES, serde_json::to_string(classes).unwrap_or_default());
        }
        Ok((source, set.classes))
    }

    /// The model that another tool made.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where none is named.
    pub fn other(&self, method: &Method) -> Result<&Model> {
        let opened = method.model.as_ref().and_then(|path| self.others.get(path));
        let missing = || Error::new(ErrorKind::Usage, "`model` is missing: the file that another tool wrote");
        opened.map(|(model, _)| model).ok_or_else(missing)
    }

    /// What an ancestor is clustered and fitted on, at most so many.
    ///
    /// # Errors
    /// Those of opening images.
    pub fn calibrating(&self, ancestor: &str, model: &Model, most: usize) -> Result<Calibrating> {
        let own = self.of(ancestor)?;
        match (&own.arrays, &own.entry.images) {
            (Some(arrays), _) => Ok(Calibrating::Arrays(arrays.clone().limit(most))),
            (None, Some(images)) => {
                Ok(Calibrating::Images(loader(images, model, &Typing::new(model)?)?.sample(most, 0)))
            }
            (None, None) => bail!(Internal, "the ancestor `{ancestor}` has no samples"),
        }
    }
}

impl Set {
    /// Of a data set with labels.
    fn of(path: &Path, dataset: Dataset, rows: Option<Rows>, model_classes: Option<Vec<String>>) -> Result<Set> {
        dataset.require_labels().map_err(|e| e.at(path))?;
        let classes = dataset.class_count().unwrap_or(0);
        let split = dataset.given_split().cloned().unwrap_or_else(|| dataset.split(0.2, 0));
        let fingerprint = dataset.fingerprint()?;
        let (training, validation) = (split.training, split.validation);
        Ok(Set { dataset, classes, training, validation, rows, model_classes, fingerprint })
    }
}

impl SampleSpec {
    /// The same for another file than the one at `model`, whose tokenizer it is cut by where none is named.
    fn beside(self, model: &Path) -> SampleSpec {
        match self {
            SampleSpec::Texts(texts) => {
                let tokenizer = texts.tokenizer.clone().or_else(|| Texts::tokenizer_beside(model));
                SampleSpec::Texts(Texts { tokenizer, ..texts })
            }
            other => other,
        }
    }
}

/// Opens labelled images.
fn of_images(path: &Path, entry: &file::Data) -> Result<Dataset> {
    if !path.exists() {
        return Err(Error::new(ErrorKind::Images, "no such file or folder")
            .at(path)
            .hint("scripts/fetch/studies.sh fetches the data sets of docs/studies"));
    }
    Dataset::open(path, &DatasetOptions { label_column: entry.label_column.clone(), ..DatasetOptions::default() })
}

fn loader(path: &Path, model: &Model, typing: &Typing) -> Result<Loader> {
    Loader::open(path, &PreprocessFlags::default(), model.metadata(PREPROCESS), InputShape::of(typing)?)
}

/// What identifies a model: its bytes, and what it was supplied with from elsewhere.
fn identity(path: &Path, model: &Model) -> Result<Vec<String>> {
    let mut sources = vec![sha256(path)?];
    for key in [PREPROCESS, IMAGE_SIZE] {
        if let (Some(value), [_, ..]) = (model.metadata(key), model.suppliers(key)) {
            sources.push(format!("{key} {value}"));
        }
    }
    Ok(sources)
}

/// An error that says which table of the study it is about.
fn in_table(e: Error, kind: &str, name: &str) -> Error {
    let hint = e.marked_hint().unwrap_or("docs/studies/README.md lists the keys").to_string();
    Error::new(e.kind(), format!("[{kind}.{name}]: {}", e.marked())).hint(hint)
}
