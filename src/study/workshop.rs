//! Where cells are made: ancestors, data sets and learngenes are opened and measured once, and every cell grows its
//! descendant and trains it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use image::{GrayImage, Luma};
use ndarray::{Array3, Axis};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

use super::cell::{Cell, Epoch, Record};
use super::file::{self, Classifier, Method};
use super::search::{Trial, search};
use super::text::Text;
use crate::anatomy::{Anatomy, Roles, activation, check_classes, class_factor, class_factors};
use crate::axes::Typing;
use crate::data::{
    Dataset, DatasetOptions, InputReport, InputShape, Loader, PreprocessFlags, TrainingOptions, View, class_names,
};
use crate::density::{attention_matrices, measure};
use crate::descendant::{Descendant, Heads, Init, Projection, Shape, grow, resize_image};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{Budget, Fitter, Job, JobOptions, Limits, Views};
use crate::learngene::{Cluster, Eps, Learngene, Removals, Rules, parameters};
use crate::metadata::{IMAGE_SIZE, PREPROCESS, schema};
use crate::onnx::{Model, element_count, is_float, sha256, to_f32};
use crate::opening::Opening;
use crate::runtime::{Kind, Runtime};
use crate::training::{
    Images, Loss, Observer, Operators, Optimiser, Plan, Precision, Recipe, Session, Trainer, Validation,
    ValidationReport, add_classifier, evaluate, has_classifier, is_independent, with_logits,
};

/// Images that are clustered on, where the study gives no number.
pub const IMAGES: usize = 256;

/// An opened data set.
struct Set {
    dataset: Dataset,
    classes: usize,
    training: Vec<usize>,
    validation: Vec<usize>,
    fingerprint: String,
}

/// What cells are made of.
pub struct Workshop {
    runtime: Arc<Runtime>,
    /// Each with what identifies it.
    ancestors: BTreeMap<String, (Model, file::Ancestor, Vec<String>)>,
    sets: BTreeMap<String, Set>,
    /// Models that other tools made, and what identifies them.
    others: HashMap<PathBuf, (Model, Vec<String>)>,
    /// What the images of every model become, by the ancestor's name or the file.
    pub inputs: BTreeMap<String, InputReport>,
    /// What the user should know of the models.
    pub warnings: Vec<String>,
    genes: HashMap<String, (Learngene, Model)>,
    removals: HashMap<String, Removals>,
}

/// A descendant before it is trained.
struct Made {
    model: Model,
    inherited: u64,
    learngene: Option<u64>,
    search: Vec<Trial>,
}

/// How a method makes its descendants.
enum Maker {
    Grow(Init),
    Shrink,
    Magnitude,
    File,
}

fn maker(method: &Method) -> Result<Maker> {
    Ok(match method.init.as_str() {
        "shrink" => Maker::Shrink,
        "magnitude" => Maker::Magnitude,
        "model" => Maker::File,
        name => Maker::Grow(choice("init", name)?),
    })
}

/// A value of a key that stands for one of several.
fn choice<T: ValueEnum>(key: &str, text: &str) -> Result<T> {
    T::from_str(text, false).map_err(|_| {
        let known: Vec<String> =
            T::value_variants().iter().filter_map(|v| Some(v.to_possible_value()?.get_name().to_string())).collect();
        Error::new(ErrorKind::Usage, format!("`{key}`: `{text}` is none of {}", known.join(", ")))
    })
}

fn chosen<T: ValueEnum + Default>(key: &str, text: &Option<String>) -> Result<T> {
    text.as_deref().map_or(Ok(T::default()), |t| choice(key, t))
}

/// A value of a key that is written as on the command line.
fn parsed<T: std::str::FromStr<Err = Error>>(key: &str, text: Option<&str>) -> Result<Option<T>> {
    let told = |e: Error| {
        let hint = e.hint_text().unwrap_or("docs/studies/README.md lists the keys").to_string();
        Error::new(ErrorKind::Usage, format!("`{key}`: {e}")).hint(hint)
    };
    text.map(|t| t.parse().map_err(told)).transpose()
}

/// The clustering that a method asks for.
fn rules(method: &Method) -> Result<Rules> {
    Ok(Rules {
        algorithm: parsed("cluster", method.cluster.as_deref())?.unwrap_or_default(),
        eps: parsed("eps", method.eps.as_ref().map(|t| t.0.as_str()))?,
        ffn_eps: parsed("ffn-eps", method.ffn_eps.as_ref().map(|t| t.0.as_str()))?,
        min_heads: method.min_heads.unwrap_or(1),
        centroid: chosen("centroid", &method.centroid)?,
        ffn_centroid: chosen("ffn-centroid", &method.ffn_centroid)?,
        ffn_rule: chosen("ffn-rule", &method.ffn_rule)?,
        ffn_clusters: method.ffn_clusters.clone(),
        ..Rules::default()
    })
}

/// The shape of a cell's descendant, with a new classifier of so many classes.
fn shape(cell: &Cell, init: Init, classes: Option<usize>) -> Result<Shape> {
    let (size, method) = (&cell.size, &cell.how);
    let text = |t: &Option<Text>| t.as_ref().map(|t| t.0.clone());
    let heads = match (size.width, &size.heads) {
        (Some(_), Some(_)) => bail!(Usage, "`heads` and `width` cannot both be given"),
        (Some(w), None) => Heads::Width(w),
        (None, heads) => parsed("heads", text(heads).as_deref())?.unwrap_or_default(),
    };
    if size.parameters.is_some() {
        bail!(Usage, "`parameters` is for `shrink`: other methods take layers, heads and ffn-width");
    }
    Ok(Shape {
        layers: parsed("layers", text(&size.layers).as_deref())?.unwrap_or_default(),
        heads,
        ffn_width: parsed("ffn-width", text(&size.ffn_width).as_deref())?.unwrap_or_default(),
        classes,
        order: chosen("order", &method.order)?,
        projection: chosen("projection", &method.projection)?,
        init,
        inherit: parsed("inherit", text(&method.inherit).as_deref())?,
        share: method.share,
        embedding_dim: size.embedding_dim,
        transform: method.transform.as_deref().map(|t| choice("transform", t)).transpose()?,
        seed: cell.seed,
        ..Shape::default()
    })
}

impl Workshop {
    /// A workshop on a runtime.
    pub fn new(runtime: Arc<Runtime>) -> Workshop {
        Workshop {
            runtime,
            ancestors: BTreeMap::new(),
            sets: BTreeMap::new(),
            others: HashMap::new(),
            inputs: BTreeMap::new(),
            warnings: Vec::new(),
            genes: HashMap::new(),
            removals: HashMap::new(),
        }
    }

    /// Opens a model through the door that the commands have. Its bytes identify it, and what it was supplied with from
    /// elsewhere.
    fn open(&mut self, path: &Path, side: Option<usize>) -> Result<(Model, Vec<String>)> {
        let pictures = Some(PreprocessFlags::default());
        let opening = Opening { input_size: side.map(|n| [n; 2]), pictures, ..Opening::default() };
        let opened = opening.open(path, Some(&|| Ok(self.runtime.clone())))?;
        self.warnings.extend(opened.warnings);
        let mut sources = vec![sha256(path)?];
        for key in [PREPROCESS, IMAGE_SIZE] {
            if let (Some(value), [_, ..]) = (opened.model.metadata(key), opened.model.suppliers(key)) {
                sources.push(format!("{key} {value}"));
            }
        }
        Ok((opened.model, sources))
    }

    /// Notes what the images of a model become.
    fn report(&mut self, name: &str, report: InputReport) {
        self.warnings.extend(report.warnings().iter().map(|warning| format!("`{name}`: {warning}")));
        self.inputs.insert(name.to_string(), report);
    }

    /// Opens an ancestor.
    ///
    /// # Errors
    /// Those of opening it and its images, and of giving it another image size.
    pub fn ancestor(&mut self, name: &str, entry: &file::Ancestor) -> Result<()> {
        if self.ancestors.contains_key(name) {
            return Ok(());
        }
        let (mut model, mut sources) = self.open(&entry.model, entry.input_size)?;
        if let Some(side) = entry.image_size {
            model = resize_image(&model, [side; 2]).map_err(|e| e.at(&entry.model))?;
        }
        let typing = Typing::new(&model).map_err(|e| e.at(&entry.model))?;
        Anatomy::new(&typing).map_err(|e| e.at(&entry.model))?;
        let images = loader(&entry.images, &model, &typing)?;
        sources.insert(1, images.fingerprint()?);
        self.report(name, InputReport::new(&model, &typing, images.preprocess()));
        drop(typing);
        self.ancestors.insert(name.to_string(), (model, entry.clone(), sources));
        Ok(())
    }

    /// Opens a data set.
    ///
    /// # Errors
    /// Those of opening it; [`ErrorKind::Images`] where it has no labels.
    pub fn data(&mut self, name: &str, entry: &file::Data) -> Result<()> {
        if self.sets.contains_key(name) {
            return Ok(());
        }
        if !entry.path.exists() {
            return Err(Error::new(ErrorKind::Images, "no such file or folder")
                .at(&entry.path)
                .hint("scripts/fetch/studies.sh fetches the data sets of docs/studies"));
        }
        let dataset = Dataset::open(&entry.path, &DatasetOptions::default())?;
        dataset.require_labels().map_err(|e| e.at(&entry.path))?;
        let classes = dataset.class_count().unwrap_or(0);
        let split = dataset.given_split().cloned().unwrap_or_else(|| dataset.split(0.2, 0));
        let fingerprint = dataset.fingerprint()?;
        let (training, validation) = (split.training, split.validation);
        self.sets.insert(name.to_string(), Set { dataset, classes, training, validation, fingerprint });
        Ok(())
    }

    /// What identifies everything that enters a cell: the ancestor, its images, the data, and a model that another tool
    /// made, which is opened here.
    ///
    /// # Errors
    /// Those of opening that model.
    pub fn sources(&mut self, ancestor: &str, data: &str, method: &Method) -> Result<Vec<String>> {
        let mut all: Vec<String> = self.ancestors.get(ancestor).map(|a| a.2.clone()).unwrap_or_default();
        all.extend(self.sets.get(data).map(|s| s.fingerprint.clone()));
        if let Some(path) = &method.model {
            if !self.others.contains_key(path) {
                let (model, sources) = self.open(path, None)?;
                let typing = Typing::new(&model).map_err(|e| e.at(path))?;
                if let Some(set) = self.sets.get(data) {
                    let (flags, input) = (PreprocessFlags::default(), InputShape::of(&typing)?);
                    let transform = set.dataset.preprocess(&flags, model.metadata(PREPROCESS), input)?;
                    self.report(&path.display().to_string(), InputReport::new(&model, &typing, transform.as_ref()));
                }
                drop(typing);
                self.others.insert(path.clone(), (model, sources));
            }
            all.extend(self.others[path].1.iter().cloned());
        }
        Ok(all)
    }

    fn set(&self, cell: &Cell) -> Result<&Set> {
        let missing = || Error::new(ErrorKind::Internal, format!("the data `{}` are not open", cell.data));
        self.sets.get(&cell.data).ok_or_else(missing)
    }

    /// The ancestor of a cell with a classifier; a new one of its data's classes where it had none.
    fn source(&self, cell: &Cell) -> Result<(Model, usize)> {
        let Some((model, _, _)) = self.ancestors.get(&cell.ancestor) else {
            bail!(Internal, "the ancestor `{}` is not open", cell.ancestor)
        };
        let classes = self.set(cell)?.classes;
        let has = has_classifier(&Typing::new(model)?);
        Ok((if has { model.clone() } else { add_classifier(model, classes, None, None)? }, classes))
    }

    /// Checks that a cell can be: that its values can be read, and that its shape is one that the method makes of the
    /// ancestor.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] and others that growing has.
    pub fn check(&self, cell: &Cell) -> Result<()> {
        let method = &cell.how;
        let rules = rules(method)?;
        if let Some(search) = &method.search {
            search.check()?;
        }
        cell.training.augment.parse::<crate::data::Augmentation>()?;
        let (source, classes) = self.source(cell)?;
        let set = self.set(cell)?;
        if method.classifier == Classifier::Kept {
            set.dataset.matched(class_names(&source).as_deref(), class_count(&source)?)?;
        }
        let maker = maker(method)?;
        if method.model.is_some() != matches!(maker, Maker::File) {
            bail!(Usage, "`model` is the file of `init = \"model\"`, and goes with it alone");
        }
        match maker {
            Maker::Shrink => match cell.size.parameters {
                Some(n) if n < parameters(source.graph()) => Ok(()),
                Some(n) => bail!(Usage, "`parameters`: the ancestor has no more than {n}"),
                None => bail!(Usage, "`parameters` is missing: the size that `shrink` comes to"),
            },
            Maker::File => self.other(method).map(|_| ()),
            Maker::Magnitude => {
                let (typing, shape) = (Typing::new(&source)?, shape(cell, Init::ClusterLearngene, Some(classes))?);
                let gene = by_magnitude(&typing, &Anatomy::new(&typing)?)?;
                grow(&source, &gene, &shape).map(|_| ())
            }
            Maker::Grow(init) => {
                let mut shape = shape(cell, init, Some(classes))?;
                let (typing, clusters) = (Typing::new(&source)?, init == Init::ClusterLearngene);
                let anatomy = Anatomy::new(&typing)?;
                if !clusters && rules != (Rules { min_heads: 1, ..Rules::default() }) {
                    bail!(Usage, "{} clusters no heads: leave out eps, cluster and centroid", init.name());
                }
                if let Some(w) = method.search.as_ref().and_then(|s| s.width.first()) {
                    shape.heads = Heads::Width(*w);
                }
                let mut gene = Learngene::identity(&typing, &anatomy);
                // Orders need densities, and any will do to see whether the shape can be.
                gene.densities = Some(gene.layers.iter().map(|c| vec![0.0; c.len()]).collect());
                if clusters {
                    // What layers share is not known yet.
                    shape.transform = None;
                }
                grow(&source, &gene, &shape).map(|_| ())
            }
        }
    }

    /// The model that another tool made.
    fn other(&self, method: &Method) -> Result<&Model> {
        let opened = method.model.as_ref().and_then(|path| self.others.get(path));
        let missing = || Error::new(ErrorKind::Usage, "`model` is missing: the file that another tool wrote");
        opened.map(|(model, _)| model).ok_or_else(missing)
    }

    /// Computes a cell. `picture` is where its attention is drawn, if that was asked for.
    ///
    /// # Errors
    /// Those of growing, of training and of the data.
    pub fn compute(&mut self, cell: &Cell, picture: &Path, told: &dyn Fn(&str)) -> Result<Record> {
        let begun = Instant::now();
        let made = self.make(cell)?;
        let grown = begun.elapsed().as_secs_f64();
        let typing = Typing::new(&made.model)?;
        let (image, macs) = (typing.image_size(), typing.macs());
        drop(typing);
        let drawn = self.drawn(cell, &made.model)?;
        let epochs = self.before(cell, &made.model, &drawn)?.into_iter().collect();
        let begun = Instant::now();
        let recipe = self.recipe(cell);
        let trainer = Trainer::new(&self.runtime, &made.model, image, &recipe, &[], &[])?;
        let plan = Plan {
            epochs: cell.training.epochs.into(),
            learning_rate: Some(cell.training.lr),
            warmup: cell.training.warmup,
            // Judged already, where its classifier is the ancestor's; a new one knows nothing yet.
            validate_start: false,
            seed: cell.seed,
            ..Plan::default()
        };
        let mut session = Session::new(trainer, recipe, drawn, plan)?;
        let mut watch = Watch { epochs, told };
        session.fit(&mut watch)?;
        let seconds = [grown, begun.elapsed().as_secs_f64()];
        if cell.attention {
            let trained = crate::descendant::simplify(&session.trainer.export(false)?)?;
            self.draw_attention(cell, &trained, session.validation.as_ref(), picture)?;
        }
        let name = picture.file_name().map(Into::into);
        Ok(Record {
            schema: schema::CELL.into(),
            ancestor: cell.ancestor.clone(),
            data: cell.data.clone(),
            method: cell.method.clone(),
            shape: cell.shape.clone(),
            follows: cell.follows(),
            settings: cell.settings(),
            epochs: watch.epochs,
            parameters: parameters(made.model.graph()),
            ancestor_parameters: parameters(self.source(cell)?.0.graph()),
            inherited: made.inherited,
            learngene: made.learngene,
            macs,
            images: session.images(),
            seconds,
            search: made.search,
            attention: name.filter(|_| cell.attention),
            runtime: match self.runtime.kind {
                Kind::Tract => "tract".into(),
                _ => "ONNX Runtime".into(),
            },
            offshoot: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// The images of a cell as its descendant sees them: to train on those that its seed draws, to validate on the same
    /// for all cells.
    fn drawn(&self, cell: &Cell, model: &Model) -> Result<Images> {
        let set = self.set(cell)?;
        let dataset = match cell.how.classifier {
            Classifier::New => set.dataset.clone(),
            // The ancestor's classes are in its own order.
            Classifier::Kept => set.dataset.matched(class_names(model).as_deref(), class_count(model)?)?.dataset,
        };
        let labels = dataset.labels().unwrap_or_default().to_vec();
        let input = InputShape::of(&Typing::new(model)?)?;
        let preprocess = dataset.preprocess(&PreprocessFlags::default(), model.metadata(PREPROCESS), input)?;
        let wanted = cell.images[0].map_or(set.training.len(), |n| n.min(set.training.len()));
        let count = (wanted as f64 * cell.fraction).round() as usize;
        let training = draw(&labels, &set.training, count, cell.seed);
        let judged = draw(&labels, &set.validation, cell.images[1].unwrap_or(usize::MAX), 0);
        let loader = dataset.loader(judged, preprocess.clone(), input.layout)?;
        let batches = TrainingOptions {
            seed: cell.seed,
            augmentation: cell.training.augment.parse()?,
            threads: self.runtime.threads,
            ..TrainingOptions::default()
        };
        let validation = Some(Validation { loader, labels: Some(labels), cosines: None });
        Ok(Images { dataset, training, validation, view: View { preprocess, layout: input.layout }, batches })
    }

    /// How good a descendant is before it is trained, where its classifier is the ancestor's.
    fn before(&self, cell: &Cell, model: &Model, drawn: &Images) -> Result<Option<Epoch>> {
        let (Classifier::Kept, Some(validation)) = (cell.how.classifier, &drawn.validation) else { return Ok(None) };
        let typing = Typing::new(model)?;
        check_classes(&typing, model.graph().output.first().map_or("", |o| o.name()))?;
        let logits = with_logits(model, &typing)?;
        let judged = logits.as_ref().unwrap_or(model);
        let mut session = self.runtime.load_for(validation.loader.len(), judged, typing.image_size())?;
        let independent = activation(&typing).is_some_and(|a| is_independent(&a));
        let found = evaluate(&mut session, validation, None, independent, |_| {})?;
        Ok(Some(Epoch { epoch: 0, top1: found.top1, loss: found.loss }))
    }

    /// Draws the attention of ancestor and trained descendant on the first image that validates.
    fn draw_attention(
        &self,
        cell: &Cell,
        trained: &Model,
        validation: Option<&Validation>,
        picture: &Path,
    ) -> Result<()> {
        let Some(validation) = validation else { return Ok(()) };
        let view = validation.loader.image(0)?.insert_axis(Axis(0)).into_dyn();
        let seen = self.attention(cell, trained, &view)?;
        let failed = |e: image::ImageError| Error::new(ErrorKind::Io, e.to_string()).at(picture);
        seen.save_with_format(picture, image::ImageFormat::Png).map_err(failed)
    }

    fn recipe(&self, cell: &Cell) -> Recipe {
        let t = &cell.training;
        Recipe {
            batch: t.batch_size as usize,
            loss: Loss::cross_entropy(t.label_smoothing as f32),
            optimiser: Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
            weight_decay: t.weight_decay as f32,
            clip: t.clip.map(|v| v as f32),
            operators: Operators::of(&self.runtime, Precision::F32),
            ..Recipe::default()
        }
    }

    /// Grows, shrinks or opens the descendant of a cell.
    fn make(&mut self, cell: &Cell) -> Result<Made> {
        let ((source, classes), method) = (self.source(cell)?, &cell.how);
        let wanted = match method.classifier {
            Classifier::New => Some(classes),
            Classifier::Kept => None,
        };
        match maker(method)? {
            Maker::File => with_classes(self.other(method)?, wanted, cell.seed),
            Maker::Shrink => with_classes(&self.shrunk(cell, &source)?, wanted, cell.seed),
            Maker::Magnitude => {
                let typing = Typing::new(&source)?;
                let gene = by_magnitude(&typing, &Anatomy::new(&typing)?)?;
                plain(grow(&source, &gene, &shape(cell, Init::ClusterLearngene, wanted)?)?.model)
            }
            Maker::Grow(Init::ClusterLearngene) => {
                let shape = shape(cell, Init::ClusterLearngene, wanted)?;
                self.clustered(cell, &source, classes, shape)
            }
            Maker::Grow(init) => {
                let shape = shape(cell, init, wanted)?;
                let other = Shape { seed: shape.seed ^ 0x5eed, ..shape.clone() };
                let typing = Typing::new(&source)?;
                let alone = Learngene::identity(&typing, &Anatomy::new(&typing)?);
                let child = grow(&source, &alone, &shape)?.model;
                let inherited = same_elements(&child, &grow(&source, &alone, &other)?.model)?;
                Ok(Made { model: child, inherited, learngene: None, search: Vec::new() })
            }
        }
    }

    /// An ancestor that is shrunk to the parameters of a cell.
    fn shrunk(&mut self, cell: &Cell, source: &Model) -> Result<Model> {
        let images = self.images(cell, source)?;
        let fitter = self.fitter(source, &images, cell.seed)?;
        let mut shrinker = fitter.shrinker(source)?;
        let (limits, key) = (Limits::default(), format!("{} {} {}", cell.ancestor, cell.seed, cell.calibration.0));
        let removals = match self.removals.get(&key) {
            Some(found) => found.clone(),
            None => shrinker.analyse(&limits, &|_, _, _| {})?,
        };
        self.removals.insert(key, removals.clone());
        let (shrinker, runtime) = (shrinker.into(), self.runtime.clone());
        let mut job = Job::new(source, Some(shrinker), removals, limits, runtime, JobOptions::default());
        let allocation = job.allocate(Budget::Parameters(cell.size.parameters.unwrap_or_default() as f64))?;
        Ok(job.make(&allocation, &|_, _| {})?.model)
    }

    /// A descendant of an ancestor whose heads are clustered.
    fn clustered(&mut self, cell: &Cell, source: &Model, classes: usize, mut shape: Shape) -> Result<Made> {
        let images = self.images(cell, source)?;
        let (mut rules, mut trials) = (rules(&cell.how)?, Vec::new());
        if let Some(wanted) = &cell.how.search {
            let (found, width, all) = search(&self.runtime, source, &images, &rules, &shape, wanted)?;
            (rules, trials, shape.heads) = (found, all, Heads::Width(width));
        }
        let key = format!("{} {classes} {} {rules:?}", cell.ancestor, cell.calibration.0);
        if !self.genes.contains_key(&key) {
            let gene = self.gene(source, &images, &rules)?;
            self.genes.insert(key.clone(), gene);
        }
        let (gene, condensed) = &self.genes[&key];
        let of_gene = Typing::new(condensed)?;
        let counted = gene.inherited(condensed, &of_gene, &Anatomy::new(&of_gene)?, parameters(source.graph()));
        let child = grow(condensed, gene, &shape)?;
        // Each centroid counts once.
        let tied = Shape { tied: true, transform: None, projection: Projection::Matched, ..shape.clone() };
        let inherited = without_classifier(&grow(condensed, gene, &tied)?.model)?;
        let model = match shape.projection {
            Projection::Fitted => self.fitted(source, child, &images, cell.seed)?,
            _ => child.model,
        };
        Ok(Made { model, inherited, learngene: Some(counted.i_params), search: trials })
    }

    /// The learngene of an ancestor, and the model that holds it.
    fn gene(&self, source: &Model, images: &Loader, rules: &Rules) -> Result<(Learngene, Model)> {
        let typing = Typing::new(source)?;
        let anatomy = Anatomy::new(&typing)?;
        let unclustered = [rules.eps, rules.ffn_eps].iter().all(|e| e.is_some_and(Eps::is_zero));
        let gene = match unclustered {
            true => Learngene::identity(&typing, &anatomy),
            false => {
                let densities = measure(&self.runtime, source, &typing, &anatomy, images, |_| {})?;
                Learngene::cluster(&typing, &anatomy, &densities, rules)?
            }
        };
        let condensed = gene.condense(source, &typing, &anatomy)?;
        Ok((gene, condensed))
    }

    /// What fits descendants of an ancestor on views of its images.
    fn fitter(&self, source: &Model, images: &Loader, seed: u64) -> Result<Fitter> {
        let views = Views { count: None, seed };
        Fitter::new(source, images, self.runtime.single_threaded(), views, Instant::now(), &())
    }

    /// A descendant whose output projections are fitted to its ancestor.
    fn fitted(&self, source: &Model, child: Descendant, images: &Loader, seed: u64) -> Result<Model> {
        let fitter = self.fitter(source, images, seed)?;
        let shrinker = fitter.shrinker(source)?;
        let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
        Ok(shrinker.refit(&child.model, &sources, &|_, _| {})?.0)
    }

    /// The images that the ancestor of a cell is clustered and fitted on.
    fn images(&self, cell: &Cell, model: &Model) -> Result<Loader> {
        let Some((_, entry, _)) = self.ancestors.get(&cell.ancestor) else {
            bail!(Internal, "the ancestor `{}` is not open", cell.ancestor)
        };
        let loader = loader(&entry.images, model, &Typing::new(model)?)?;
        Ok(loader.sample(cell.calibration.0, 0))
    }

    /// The densities of the heads of every ancestor that was opened, by its name.
    ///
    /// # Errors
    /// Those of measuring them.
    pub fn densities(&self, name: &str, limit: usize) -> Result<Vec<Vec<f64>>> {
        let Some((model, entry, _)) = self.ancestors.get(name) else { bail!(Internal, "`{name}` is not open") };
        let typing = Typing::new(model)?;
        let images = loader(&entry.images, model, &typing)?.sample(limit, 0);
        Ok(measure(&self.runtime, model, &typing, &Anatomy::new(&typing)?, &images, |_| {})?.layers)
    }

    /// 255 A of every head, one picture: a row each for the first layer of the ancestor and of the descendant, and for
    /// the last of both.
    fn attention(&self, cell: &Cell, trained: &Model, view: &ndarray::ArrayD<f32>) -> Result<GrayImage> {
        let (source, _) = self.source(cell)?;
        let of = |model: &Model| -> Result<Vec<Array3<f32>>> {
            let typing = Typing::new(model)?;
            let last = Anatomy::new(&typing)?.layers.len().saturating_sub(1);
            let layers: &[usize] = if last > 0 { &[0, last] } else { &[0] };
            attention_matrices(&self.runtime, model, layers, view)
        };
        let (a, b) = (of(&source)?, of(trained)?);
        let rows: Vec<&Array3<f32>> = [a.first(), b.first(), a.last(), b.last()].into_iter().flatten().collect();
        Ok(montage(&rows))
    }
}

/// Maps [heads, queries, keys], a row each, with a white line between them.
fn montage(rows: &[&Array3<f32>]) -> GrayImage {
    let size = |r: &Array3<f32>| (r.dim().0 * (r.dim().2 + 1), r.dim().1 + 1);
    let width = rows.iter().map(|r| size(r).0).max().unwrap_or(1) + 1;
    let height = rows.iter().map(|r| size(r).1).sum::<usize>() + 1;
    let mut out = GrayImage::from_pixel(width as u32, height as u32, Luma([255]));
    let mut top = 1;
    for row in rows {
        for ((h, q, k), a) in row.indexed_iter() {
            let x = 1 + h * (row.dim().2 + 1) + k;
            out.put_pixel(x as u32, (top + q) as u32, Luma([(255.0 * a).round().clamp(0.0, 255.0) as u8]));
        }
        top += size(row).1;
    }
    out
}

/// A model as it is; only its classifier is new, where one is wanted.
fn with_classes(model: &Model, classes: Option<usize>, seed: u64) -> Result<Made> {
    let typing = Typing::new(model)?;
    let gene = Learngene::identity(&typing, &Anatomy::new(&typing)?);
    plain(grow(model, &gene, &Shape { classes, seed, ..Shape::default() })?.model)
}

/// A descendant all of whose weights but the classifier's are the ancestor's, thinned or fitted.
fn plain(model: Model) -> Result<Made> {
    let inherited = without_classifier(&model)?;
    Ok(Made { model, inherited, learngene: None, search: Vec::new() })
}

fn loader(path: &Path, model: &Model, typing: &Typing) -> Result<Loader> {
    Loader::open(path, &PreprocessFlags::default(), model.metadata(PREPROCESS), InputShape::of(typing)?)
}

/// Classes that a model tells apart.
fn class_count(model: &Model) -> Result<usize> {
    let typing = Typing::new(model)?;
    Ok(class_factor(&typing).map_or(0, |f| typing.factors.factor_size(f)))
}

/// Parameters, without those of the classifier.
fn without_classifier(model: &Model) -> Result<u64> {
    let typing = Typing::new(model)?;
    let roles = Roles::new(&typing);
    let carriers = class_factors(&typing).into_iter().flat_map(|classes| roles.carriers(classes));
    let mut names: Vec<&str> = carriers.map(|u| typing.uses[u].name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let float = |n: &&&str| is_float(typing.weights[**n]);
    let own: u64 =
        names.iter().filter(float).filter_map(|n| element_count(typing.weights[*n]).ok()).sum::<usize>() as u64;
    Ok(parameters(model.graph()).saturating_sub(own))
}

/// Elements of the weights that two descendants of different seeds have in common: they come from the ancestor. A
/// weight that is one number throughout (a norm's scale at its start) comes from nowhere.
fn same_elements(a: &Model, b: &Model) -> Result<u64> {
    let others: HashMap<&str, _> = b.graph().initializer.iter().map(|t| (t.name(), t)).collect();
    let mut count = 0;
    for t in a.graph().initializer.iter().filter(|t| is_float(t)) {
        let (x, y) = (to_f32(t)?, others.get(t.name()).map(|o| to_f32(o)).transpose()?);
        if x.len() > 1 && y.is_some_and(|y| x == y) && x.iter().any(|v| *v != x[0]) {
            count += x.len() as u64;
        }
    }
    Ok(count)
}

/// Every head a cluster of its own, in the order of their magnitude: the sum of squares of all their weights, so that
/// the smallest go first.
fn by_magnitude(typing: &Typing, anatomy: &Anatomy) -> Result<Learngene> {
    let mut gene = Learngene::identity(typing, anatomy);
    let roles = Roles::new(typing);
    for (layer, clusters) in anatomy.layers.iter().zip(&mut gene.layers) {
        let mut sizes = vec![0f64; clusters.len()];
        let made = roles.head_uses(layer).into_iter();
        let made = made.filter_map(|(u, factor)| roles.along(u, factor).map(|(axis, rows)| (u, axis, rows)));
        let summed = roles.summing(layer)?;
        let summed = summed.into_iter().map(|s| (s.of_use, s.axis, roles.positions(&s)));
        for (u, axis, positions) in made.chain(summed) {
            let tensor = typing.weights[typing.uses[u].name.as_str()];
            let dims = tensor.shape();
            let inner: usize = dims[axis + 1..].iter().product();
            let mut at = vec![0f64; dims[axis]];
            for (i, v) in to_f32(tensor)?.iter().enumerate() {
                at[i / inner.max(1) % dims[axis]] += f64::from(*v).powi(2);
            }
            for (size, list) in sizes.iter_mut().zip(&positions) {
                *size += list.iter().map(|&i| at[i]).sum::<f64>();
            }
        }
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by(|&a, &b| sizes[b].total_cmp(&sizes[a]));
        *clusters = order.into_iter().map(|h| Cluster { members: vec![h], centroid: h }).collect();
    }
    Ok(gene)
}

/// Draws `count` of some images, from every class alike.
fn draw(labels: &[u32], from: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut order = from.to_vec();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order.sort_by_key(|&i| labels.get(i).copied());
    let count = count.min(order.len());
    // Classes lie one after the other, and every so-manieth image is taken.
    let taken = |p: usize| p * count / order.len().max(1);
    let mut out: Vec<usize> = (0..order.len()).filter(|&p| taken(p + 1) > taken(p)).map(|p| order[p]).collect();
    out.sort_unstable();
    out
}

/// Keeps what every epoch came to.
struct Watch<'a> {
    epochs: Vec<Epoch>,
    told: &'a dyn Fn(&str),
}

impl Observer for Watch<'_> {
    fn validated(&mut self, report: &ValidationReport) -> Result<()> {
        let top1 = report.val_top1.unwrap_or(f64::NAN);
        (self.told)(&format!("epoch {} {:.2} %", report.epoch, 100.0 * top1));
        self.epochs.push(Epoch { epoch: report.epoch, top1, loss: report.val_loss });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph;

    #[test]
    fn images_are_drawn_from_every_class_alike() {
        let labels: Vec<u32> = (0..100).map(|i| (i % 4 == 0) as u32).collect();
        let from: Vec<usize> = (0..80).collect();
        let drawn = draw(&labels, &from, 20, 3);
        assert_eq!(drawn.len(), 20);
        assert_eq!(drawn.iter().filter(|&&i| labels[i] == 1).count(), 5);
        assert!(drawn.iter().all(|i| *i < 80));
        assert_eq!(drawn, draw(&labels, &from, 20, 3));
        assert_ne!(drawn, draw(&labels, &from, 20, 4));
        assert_eq!(draw(&labels, &from, 1000, 0), from);
    }

    #[test]
    fn small_heads_go_first() {
        let mut model = Model::open("models/fashion-vit.onnx").unwrap();
        graph::prepare(&mut model).unwrap();
        let typing = Typing::new(&model).unwrap();
        let gene = by_magnitude(&typing, &Anatomy::new(&typing).unwrap()).unwrap();
        let order = |l: usize| gene.layers[l].iter().map(|c| c.centroid).collect::<Vec<_>>();
        // NumPy: the sum of squares over `Weights.heads` of scripts/bench/shrink.py, descending.
        assert_eq!(order(0), [0, 7, 1, 2, 3, 6, 5, 4]);
        assert_eq!(order(3), [5, 0, 2, 6, 7, 4, 1, 3]);
        assert_eq!(order(7), [5, 7, 6, 4, 0, 1, 3, 2]);
    }

    #[test]
    fn inherited_elements_are_those_that_no_seed_changes() {
        let mut model = Model::open("models/fashion-vit.onnx").unwrap();
        graph::prepare(&mut model).unwrap();
        let typing = Typing::new(&model).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let inherited = |init: Init, layers: &str| {
            let grown = |seed| {
                let shape = Shape { init, layers: layers.parse().unwrap(), classes: Some(3), seed, ..Shape::default() };
                grow(&model, &gene, &shape).unwrap().model
            };
            same_elements(&grown(1), &grown(2)).unwrap()
        };
        // A layer has 4 D^2 + 2 D F + 9 D + F parameters; before and behind there are 16 D + D, a token, 50 positions
        // and a norm.
        let (d, f) = (64, 256);
        let (layer, rest) = (4 * d * d + 2 * d * f + 9 * d + f, (17 + 1 + 50 + 2) * d);
        assert_eq!(inherited(Init::PretrainFinetune, "3"), 3 * layer + rest);
        // Half of the ancestor's eight layers, below two random ones.
        assert_eq!(inherited(Init::AutoLearngene, "6"), 4 * layer + rest);
        assert_eq!(inherited(Init::FromScratch, "2"), 0);
    }

    #[test]
    fn a_montage_is_255_times_the_attention() {
        let map = Array3::from_shape_fn((2, 2, 3), |(h, q, k)| (h + q + k) as f32 / 10.0);
        let picture = montage(&[&map, &map]);
        assert_eq!(picture.dimensions(), (9, 7));
        // Head 1, query 0, key 2 of the second row: 0.3.
        assert_eq!(picture.get_pixel(1 + 4 + 2, 1 + 3).0, [77]);
        assert_eq!(picture.get_pixel(0, 0).0, [255]);
    }
}
