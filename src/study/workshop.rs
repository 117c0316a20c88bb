//! Where cells are made: learngenes are measured once, and every cell grows its descendant and trains it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use image::{GrayImage, Luma};
use ndarray::{Array3, Axis};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

use super::calibrating::Calibrating;
use super::cell::{Cell, CellRecord, Epoch};
use super::file::Classifier;
use super::materials::Materials;
use super::method::{Construction, maker, rules, shape};
use super::search::{Trial, search};
use crate::anatomy::{Anatomy, Roles, activation, check_classes, class_factor, class_factors};
use crate::axes::Typing;
use crate::data::{InputShape, InputTransform, PreprocessFlags, TrainingOptions, class_names};
use crate::density::{Densities, Unit, attention_matrices, measure};
use crate::descendant::{Descendant, GrowOptions, Heads, Init, Projection, grow};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{Budget, Fitter, Job, JobOptions, Limits, Views};
use crate::learngene::{Cluster, Eps, Learngene, PruningOrder, Rules, parameters};
use crate::metadata::{PREPROCESS, schema};
use crate::onnx::{Model, element_count, is_float, to_f32};
use crate::runtime::{Runtime, RuntimeKind};
use crate::training::{
    Images, Loss, Observer, Operators, Optimiser, Precision, Recipe, RunOptions, Session, Trainer, Validation,
    ValidationReport, evaluate, is_independent, of_rows, with_logits,
};

/// What cells are made of, and what was measured of it.
pub struct CellRunner {
    runtime: Arc<Runtime>,
    pub(super) materials: Materials,
    genes: HashMap<String, (Learngene, Model)>,
    removals: HashMap<String, PruningOrder>,
}

/// A descendant before it is trained.
struct Candidate {
    model: Model,
    inherited: u64,
    learngene: Option<u64>,
    search: Vec<Trial>,
}

impl CellRunner {
    /// A workshop on a runtime.
    pub fn new(runtime: Arc<Runtime>) -> CellRunner {
        let materials = Materials::new(runtime.clone());
        CellRunner { runtime, materials, genes: HashMap::new(), removals: HashMap::new() }
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
        let (source, classes) = self.materials.source(cell)?;
        let set = self.materials.set(cell)?;
        if cell.attention && set.rows.is_some() {
            return Err(Error::new(ErrorKind::Usage, "`attention` draws what heads see of images, and there are none")
                .hint("leave it out of grids of arrays and texts"));
        }
        if method.classifier == Classifier::Kept {
            set.dataset.matched(class_names(&source).as_deref(), class_count(&source)?)?;
        }
        let maker = maker(method)?;
        if method.model.is_some() != matches!(maker, Construction::File) {
            bail!(Usage, "`model` is the file of `init = \"model\"`, and goes with it alone");
        }
        match maker {
            Construction::Shrink => match cell.size.parameters {
                Some(n) if n < parameters(source.graph()) => Ok(()),
                Some(n) => bail!(Usage, "`parameters`: the ancestor has no more than {n}"),
                None => bail!(Usage, "`parameters` is missing: the size that `shrink` comes to"),
            },
            Construction::File => self.materials.other(method).map(|_| ()),
            Construction::Magnitude => {
                let (typing, shape) = (Typing::new(&source)?, shape(cell, Init::ClusterLearngene, Some(classes))?);
                let gene = by_magnitude(&typing, &Anatomy::new(&typing)?)?;
                grow(&source, &gene, &shape).map(|_| ())
            }
            Construction::Grow(init) => {
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

    /// Computes a cell. `picture` is where its attention is drawn, if that was asked for.
    ///
    /// # Errors
    /// Those of growing, of training and of the data.
    pub fn compute(&mut self, cell: &Cell, picture: &Path, told: &dyn Fn(&str)) -> Result<CellRecord> {
        let begun = Instant::now();
        let made = self.make(cell)?;
        let grown = begun.elapsed().as_secs_f64();
        // What is fed to training is one array a sample.
        let fed = self.materials.set(cell)?.rows.as_ref().map(|rows| of_rows(&made.model, rows)).transpose()?;
        let model = fed.as_ref().unwrap_or(&made.model);
        let typing = Typing::new(model)?;
        let (image, macs) = (typing.image_size(), typing.macs());
        drop(typing);
        let drawn = self.drawn(cell, model)?;
        let epochs = self.before(cell, model, &drawn)?.into_iter().collect();
        let begun = Instant::now();
        let recipe = self.recipe(cell);
        let trainer = Trainer::new(&self.runtime, model, image, &recipe, &[], &[])?;
        let plan = RunOptions {
            epochs: cell.training.epochs.into(),
            learning_rate: Some(cell.training.lr),
            warmup: cell.training.warmup,
            // Judged already, where its classifier is the ancestor's; a new one knows nothing yet.
            validate_start: false,
            seed: cell.seed,
            ..RunOptions::default()
        };
        let mut session = Session::new(trainer, recipe, drawn, plan)?;
        let mut watch = EpochLog { epochs, told };
        session.fit(&mut watch)?;
        let seconds = [grown, begun.elapsed().as_secs_f64()];
        if cell.attention {
            let trained = crate::descendant::simplify(&session.trainer.export(false)?)?;
            self.draw_attention(cell, &trained, session.validation.as_ref(), picture)?;
        }
        let name = picture.file_name().map(Into::into);
        Ok(CellRecord {
            schema: schema::CELL.into(),
            ancestor: cell.ancestor.clone(),
            data: cell.data.clone(),
            method: cell.method.clone(),
            shape: cell.shape.clone(),
            follows: cell.follows(),
            settings: cell.settings(),
            epochs: watch.epochs,
            parameters: parameters(made.model.graph()),
            ancestor_parameters: parameters(self.materials.source(cell)?.0.graph()),
            inherited: made.inherited,
            learngene: made.learngene,
            macs,
            images: session.images(),
            seconds,
            search: made.search,
            attention: name.filter(|_| cell.attention),
            runtime: match self.runtime.kind {
                RuntimeKind::Tract => "tract".into(),
                _ => "ONNX Runtime".into(),
            },
            offshoot: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// The images of a cell as its descendant sees them: to train on those that its seed draws, to validate on the same
    /// for all cells.
    fn drawn(&self, cell: &Cell, model: &Model) -> Result<Images> {
        let set = self.materials.set(cell)?;
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
        let (rows, view) = (set.rows.clone(), InputTransform { preprocess, layout: input.layout });
        Ok(Images { dataset, training, validation, rows, view, batches })
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
    fn make(&mut self, cell: &Cell) -> Result<Candidate> {
        let ((source, classes), method) = (self.materials.source(cell)?, &cell.how);
        let wanted = match method.classifier {
            Classifier::New => Some(classes),
            Classifier::Kept => None,
        };
        match maker(method)? {
            Construction::File => with_classes(self.materials.other(method)?, wanted, cell.seed),
            Construction::Shrink => with_classes(&self.shrunk(cell, &source)?, wanted, cell.seed),
            Construction::Magnitude => {
                let typing = Typing::new(&source)?;
                let gene = by_magnitude(&typing, &Anatomy::new(&typing)?)?;
                plain(grow(&source, &gene, &shape(cell, Init::ClusterLearngene, wanted)?)?.model)
            }
            Construction::Grow(Init::ClusterLearngene) => {
                let shape = shape(cell, Init::ClusterLearngene, wanted)?;
                self.clustered(cell, &source, classes, shape)
            }
            Construction::Grow(init) => {
                let shape = shape(cell, init, wanted)?;
                let other = GrowOptions { seed: shape.seed ^ 0x5eed, ..shape.clone() };
                let typing = Typing::new(&source)?;
                let alone = Learngene::identity(&typing, &Anatomy::new(&typing)?);
                let child = grow(&source, &alone, &shape)?.model;
                let inherited = same_elements(&child, &grow(&source, &alone, &other)?.model)?;
                Ok(Candidate { model: child, inherited, learngene: None, search: Vec::new() })
            }
        }
    }

    /// An ancestor that is shrunk to the parameters of a cell.
    fn shrunk(&mut self, cell: &Cell, source: &Model) -> Result<Model> {
        let samples = self.calibrating(cell, source)?;
        let fitter = self.fitter(source, &samples, cell.seed)?;
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
    fn clustered(&mut self, cell: &Cell, source: &Model, classes: usize, mut shape: GrowOptions) -> Result<Candidate> {
        let samples = self.calibrating(cell, source)?;
        let (mut rules, mut trials) = (rules(&cell.how)?, Vec::new());
        if let Some(wanted) = &cell.how.search {
            let (found, width, all) = search(&self.runtime, source, &samples, &rules, &shape, wanted)?;
            (rules, trials, shape.heads) = (found, all, Heads::Width(width));
        }
        let key = format!("{} {classes} {} {rules:?}", cell.ancestor, cell.calibration.0);
        if !self.genes.contains_key(&key) {
            let gene = self.gene(source, &samples, &rules)?;
            self.genes.insert(key.clone(), gene);
        }
        let (gene, condensed) = &self.genes[&key];
        let of_gene = Typing::new(condensed)?;
        let counted = gene.inherited(condensed, &of_gene, &Anatomy::new(&of_gene)?, parameters(source.graph()));
        let child = grow(condensed, gene, &shape)?;
        // Each centroid counts once.
        let tied = GrowOptions { tied: true, transform: None, projection: Projection::Matched, ..shape.clone() };
        let inherited = without_classifier(&grow(condensed, gene, &tied)?.model)?;
        let model = match shape.projection {
            Projection::Fitted => self.fitted(source, child, &samples, cell.seed)?,
            _ => child.model,
        };
        Ok(Candidate { model, inherited, learngene: Some(counted.i_params), search: trials })
    }

    /// The learngene of an ancestor, and the model that holds it.
    fn gene(&self, source: &Model, samples: &Calibrating, rules: &Rules) -> Result<(Learngene, Model)> {
        let typing = Typing::new(source)?;
        let anatomy = Anatomy::new(&typing)?;
        let unclustered = [rules.eps, rules.ffn_eps].iter().all(|e| e.is_some_and(Eps::is_zero));
        let gene = match unclustered {
            true => Learngene::identity(&typing, &anatomy),
            false => {
                // Lengths are those of the samples for what is measured alone.
                let fixed = samples.fixed(source);
                let typing = Typing::new(&fixed)?;
                let anatomy = Anatomy::new(&typing)?;
                let densities = measure(&self.runtime, &fixed, &typing, &anatomy, samples.samples(), |_| {})?;
                Learngene::cluster(&typing, &anatomy, &densities, rules)?
            }
        };
        let condensed = gene.condense(source, &typing, &anatomy)?;
        Ok((gene, condensed))
    }

    /// What fits descendants of an ancestor on views of its images, or on its samples.
    fn fitter(&self, source: &Model, samples: &Calibrating, seed: u64) -> Result<Fitter> {
        let (views, runtime) = (Views { count: None, seed }, self.runtime.single_threaded());
        match samples {
            Calibrating::Images(images) => Fitter::new(source, images, runtime, views, Instant::now(), &()),
            Calibrating::Arrays(arrays) => Fitter::on_arrays(source, arrays, runtime, views, Instant::now()),
        }
    }

    /// A descendant whose output projections are fitted to its ancestor.
    fn fitted(&self, source: &Model, child: Descendant, samples: &Calibrating, seed: u64) -> Result<Model> {
        let fitter = self.fitter(source, samples, seed)?;
        let shrinker = fitter.shrinker(source)?;
        let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
        Ok(shrinker.refit(&child.model, &sources, &|_, _| {})?.0)
    }

    /// What the ancestor of a cell is clustered and fitted on.
    fn calibrating(&self, cell: &Cell, model: &Model) -> Result<Calibrating> {
        self.materials.calibrating(&cell.ancestor, model, cell.calibration.0)
    }

    /// The densities of the heads of an ancestor that was opened, by its name, and what they are measured in.
    ///
    /// # Errors
    /// Those of measuring them.
    pub fn densities(&self, name: &str, limit: usize) -> Result<(Densities, Unit)> {
        let model = self.materials.model(name)?;
        let samples = self.materials.calibrating(name, model, limit)?;
        let model = samples.fixed(model);
        let typing = Typing::new(&model)?;
        let found = measure(&self.runtime, &model, &typing, &Anatomy::new(&typing)?, samples.samples(), |_| {})?;
        let unit = if found.lengths.iter().any(Option::is_some) { Unit::Tokens } else { Unit::Pixels };
        Ok((found, unit))
    }

    /// 255 A of every head, one picture: a row each for the first layer of the ancestor and of the descendant, and for
    /// the last of both.
    fn attention(&self, cell: &Cell, trained: &Model, view: &ndarray::ArrayD<f32>) -> Result<GrayImage> {
        let (source, _) = self.materials.source(cell)?;
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
fn with_classes(model: &Model, classes: Option<usize>, seed: u64) -> Result<Candidate> {
    let typing = Typing::new(model)?;
    let gene = Learngene::identity(&typing, &Anatomy::new(&typing)?);
    plain(grow(model, &gene, &GrowOptions { classes, seed, ..GrowOptions::default() })?.model)
}

/// A descendant all of whose weights but the classifier's are the ancestor's, thinned or fitted.
fn plain(model: Model) -> Result<Candidate> {
    let inherited = without_classifier(&model)?;
    Ok(Candidate { model, inherited, learngene: None, search: Vec::new() })
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
struct EpochLog<'a> {
    epochs: Vec<Epoch>,
    told: &'a dyn Fn(&str),
}

impl Observer for EpochLog<'_> {
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
                let shape = GrowOptions {
                    init,
                    layers: layers.parse().unwrap(),
                    classes: Some(3),
                    seed,
                    ..GrowOptions::default()
                };
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
