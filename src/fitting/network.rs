//! A network that is fitted: the pinned model, its linear layers, and the statistics of what enters them.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use faer::Mat;
use ndarray::{Array2, ArrayD, Axis};
use rayon::prelude::*;

use super::algebra::{Covariance, Moments, Partial, affine, product, scale, times};
use super::order::{self, UnitOrder, features, predict};
use super::padding::{Mask, chosen};
use super::stages::Stages;
use super::subgraph::{Subgraph, Values};
use super::targets::{ResidualPath, TargetLinear, find_targets, first_uses};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::data_inputs;
use crate::learngene::BlockKind;
use crate::onnx::{Model, node_label};
use crate::parallel;
use crate::runtime::Runtime;

/// Bytes of features that are held at once while statistics are collected.
const CHUNK_BYTES: usize = 256 << 20;
/// Images whose rows are multiplied at once.
const CHUNK: usize = 8;
/// Ridge of the fits that are only measured, in means of the diagonal.
pub(super) const RIDGE: f64 = 0.1;
/// Shares of an FFN's neurons at which its cost is measured.
const LEVELS: [f64; 5] = [1.0 / 12.0, 0.25, 0.5, 0.75, 11.0 / 12.0];
/// Heads are measured at so many counts at most.
const HEAD_LEVELS: usize = 5;

/// What is told of the progress of a stage: how much of how much is done.
pub type Progress<'p> = &'p (dyn Fn(usize, usize) + Sync);

/// A pinned model ready for fits.
///
/// Samples of text differ in length, and most of a batch that is as long as the longest is padding. So a network may
/// have others beside it that differ from it in nothing but the shape of their batches: what is said of linear layers,
/// of matrices and of the order in which they run holds for all, and each batch is run by the one of its shape.
pub struct Network<'m> {
    /// The model.
    pub model: &'m Model,
    /// Its typing.
    pub typing: Typing<'m>,
    /// Its linear layers in order of execution.
    pub linears: Vec<TargetLinear>,
    /// For every linear layer the first one with the same matrix: itself, but in a layer that is used several times.
    pub first: Vec<usize>,
    /// Layers that cannot be fitted.
    pub warnings: Vec<String>,
    /// The values that fits are judged by: what leaves the encoder behind its last norm, or the outputs.
    pub end: Vec<String>,
    /// The matrix and the bias of every linear layer.
    pub matrices: Vec<(Array2<f32>, Vec<f32>)>,
    /// Which tokens are padding, where that is known: they count in no statistics and no error.
    pub(super) mask: Option<Mask>,
    /// The input whose shape tells which of several networks runs a batch.
    measure: Option<String>,
    pub(super) runtime: Arc<Runtime>,
    /// Made when they are first asked for: their sessions serve every pass over the network.
    stages: OnceLock<Stages>,
    ways: OnceLock<Vec<Option<ResidualPath>>>,
    /// The same network for samples of other lengths.
    others: Vec<Network<'m>>,
}

impl<'m> Network<'m> {
    /// Finds the linear layers of a model that was [pinned](super::subgraph::pin). `runtime` should have one thread;
    /// tokens at the zeros of the input `mask` are padding.
    ///
    /// # Errors
    /// Those of typing and of the runtime; [`ErrorKind::Anatomy`] where no matrix can be fitted.
    pub fn new(runtime: &Arc<Runtime>, model: &'m Model, mask: Option<&str>) -> Result<Network<'m>> {
        let typing = Typing::new(model)?;
        let measure = mask.filter(|input| typing.shape(input).is_some()).map(str::to_string);
        let mask = Mask::new(&typing, mask);
        let anatomy = Anatomy::new(&typing)?;
        let (linears, mut warnings) = find_targets(&typing, &anatomy);
        if let Some(mask) = mask.as_ref().filter(|mask| !linears.iter().any(|s| mask.is_along(&s.rows_over))) {
            warnings.push(mask.meets_nothing());
        }
        if linears.is_empty() {
            return Err(Error::new(ErrorKind::Anatomy, "no layer has a matrix that can be fitted").at(&model.path));
        }
        // The end of one branch says nothing of the others.
        let end = match anatomy.encoder_end(&typing).filter(|end| sees_all(&typing, end, &linears)) {
            Some(end) => vec![end],
            None => model.graph().output.iter().map(|o| o.name().to_string()).collect(),
        };
        let matrices = linears
            .iter()
            .map(|s| s.matrix(runtime, &typing, model))
            .collect::<Result<_>>()
            .map_err(|e| e.at(&model.path))?;
        let (stages, ways, first) = (OnceLock::new(), OnceLock::new(), first_uses(&linears));
        let (runtime, others) = (runtime.clone(), Vec::new());
        Ok(Network {
            model,
            typing,
            linears,
            first,
            warnings,
            end,
            matrices,
            mask,
            measure,
            runtime,
            stages,
            ways,
            others,
        })
    }

    /// The network of several models, which differ from each other in nothing but the shape of their batches. What
    /// cannot depend on that is taken from the first.
    ///
    /// # Errors
    /// Those of [`Network::new`], and [`ErrorKind::Unsupported`] where length changes which matrices there are.
    pub fn of_lengths(runtime: &Arc<Runtime>, models: &'m [Model], mask: Option<&str>) -> Result<Network<'m>> {
        let Some((first, others)) = models.split_first() else { bail!(Internal, "there is no model to fit") };
        let mut network = Network::new(runtime, first, mask)?;
        for model in others {
            let other = Network::new(runtime, model, mask)?;
            let key = |s: &TargetLinear| (s.layer, s.kind, s.units, s.size, s.outputs);
            if !network.linears.iter().map(key).eq(other.linears.iter().map(key)) {
                return Err(Error::new(ErrorKind::Unsupported, "texts of other lengths pass other matrices")
                    .at(&model.path)
                    .hint("give texts of one length: ⟦inputs⟧ with arrays without a mask"));
            }
            network.others.push(other);
        }
        if network.measure.is_none() && !network.others.is_empty() {
            let input = data_inputs(first.graph()).first().map(|v| v.name().to_string());
            network.others.iter_mut().for_each(|other| other.measure.clone_from(&input));
            network.measure = input;
        }
        Ok(network)
    }

    /// How many lengths of samples it runs.
    pub(super) fn lengths(&self) -> usize {
        1 + self.others.len()
    }

    /// The network of one of the lengths; 0 is its own.
    pub(super) fn at(&self, length: usize) -> &Network<'m> {
        length.checked_sub(1).and_then(|i| self.others.get(i)).unwrap_or(self)
    }

    /// Which of the lengths a sample has, by its values at any place of the network.
    pub(super) fn length(&self, sample: &Values) -> usize {
        let measure = self.measure.as_ref().and_then(|input| Some((input, sample.get(input)?.shape())));
        let Some((input, shape)) = measure else { return 0 };
        let is_own = |other: &Network| other.typing.shape(input).is_some_and(|own| own == shape);
        self.others.iter().position(is_own).map_or(0, |i| i + 1)
    }

    /// The network that runs a sample, by its values at any place.
    pub(super) fn of(&self, sample: &Values) -> &Network<'m> {
        self.at(self.length(sample))
    }

    /// The network in stages.
    ///
    /// # Errors
    /// Those of `Stages::new`.
    pub fn stages(&self) -> Result<&Stages> {
        if let Some(stages) = self.stages.get() {
            return Ok(stages);
        }
        let kept = self.measure.as_deref();
        let stages = Stages::new(&self.runtime, &self.typing, self.model, &self.linears, &self.end, kept)?;
        Ok(self.stages.get_or_init(|| stages))
    }

    /// The residual paths of all linear layers.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn residual_paths(&self) -> Result<&[Option<ResidualPath>]> {
        if let Some(ways) = self.ways.get() {
            return Ok(ways);
        }
        let ways = self
            .linears
            .par_iter()
            .map(|s| s.residual_path(&self.runtime, &self.typing, self.model))
            .collect::<Result<_>>()?;
        Ok(self.ways.get_or_init(|| ways))
    }

    /// The end of the network for some samples, without what is padding's.
    pub(super) fn ends(&self, samples: &[Values]) -> Result<Vec<Vec<ArrayD<f32>>>> {
        self.values(&self.end, samples)
    }

    /// Some values for some samples, without what is padding's.
    pub(super) fn values(&self, names: &[String], samples: &[Values]) -> Result<Vec<Vec<ArrayD<f32>>>> {
        let parts: Vec<Subgraph> = (0..self.lengths()).map(|l| self.at(l).whole(names)).collect();
        let of = |sample| {
            let found = parts[self.length(sample)].run(sample)?;
            names.iter().zip(found).map(|(name, value)| self.real(name, value, sample)).collect()
        };
        samples.par_iter().map(of).collect()
    }

    /// The values at the end of the network without what is padding's.
    pub(super) fn real_end(&self, end: Vec<ArrayD<f32>>, sample: &Values) -> Result<Vec<ArrayD<f32>>> {
        self.end.iter().zip(end).map(|(name, value)| self.real(name, value, sample)).collect()
    }

    /// One of the values of a sample without what is padding's.
    pub(super) fn real_part(&self, name: &str, sample: &Values) -> Result<Option<ArrayD<f32>>> {
        sample.get(name).map(|value| self.real(name, value.clone(), sample)).transpose()
    }

    fn real(&self, name: &str, value: ArrayD<f32>, sample: &Values) -> Result<ArrayD<f32>> {
        let own = self.of(sample);
        match &own.mask {
            Some(mask) => mask.part(&own.typing, name, value, sample),
            None => Ok(value),
        }
    }

    /// The rows of linear layer `i` that are those of real tokens; none where all are.
    pub(super) fn real_rows(&self, i: usize, sample: &Values) -> Option<Vec<usize>> {
        let own = self.of(sample);
        own.mask.as_ref()?.rows(&own.typing, &own.linears[i].rows_over, sample)
    }

    /// The features that enter linear layer `i`, of all tokens.
    pub(super) fn rows(&self, i: usize, values: &Values) -> Result<Array2<f32>> {
        self.of(values).linears[i].rows(values)
    }

    /// What leaves linear layer `i` as the value that the graph has there, for a sample with some `values`.
    pub(super) fn leaving(&self, i: usize, rows: &Array2<f32>, values: &Values) -> Result<ArrayD<f32>> {
        let own = self.of(values);
        own.linears[i].leaving(&own.typing, rows)
    }

    /// Runs a sample up to linear layer `i` from what it is behind the linear layer before.
    pub(super) fn advance(&self, i: usize, values: &mut Values) -> Result<()> {
        self.of(values).stages()?.advance(i, values)
    }

    /// The part between `feeds` and `results`, for each of the lengths.
    pub(super) fn parts(&self, feeds: &[String], results: &[String]) -> Vec<Subgraph> {
        let part =
            |own: &Network| Subgraph::cut(&own.runtime, &own.typing, own.model, feeds.to_vec(), results.to_vec());
        (0..self.lengths()).map(|l| part(self.at(l))).collect()
    }

    /// Everything behind linear layer `i`, for each of the lengths.
    pub(super) fn rest(&self, i: usize) -> Result<Vec<Subgraph>> {
        let rest = |own: &Network| Ok(own.stages()?.rest(&own.runtime, &own.typing, own.model, i));
        (0..self.lengths()).map(|l| rest(self.at(l))).collect()
    }

    /// The network from its inputs to given values.
    pub(super) fn whole(&self, results: &[String]) -> Subgraph {
        let inputs = data_inputs(self.typing.graph).into_iter().map(|v| v.name().to_string()).collect();
        Subgraph::cut(&self.runtime, &self.typing, self.model, inputs, results.to_vec())
    }

    /// Means and covariances of what enters every linear layer, over samples, in one pass whose memory does not grow
    /// with them. Processes that work together share the samples out.
    ///
    /// # Errors
    /// [`ErrorKind::Images`] for activations that are no numbers; it names the node. Errors of the runtime.
    pub fn statistics(&self, images: &[Values], progress: Progress) -> Result<Vec<Covariance>> {
        let mut collector = Collector::new(self);
        let mut done = 0;
        for group in images[parallel::part(images.len(), collector.chunk)].chunks(collector.chunk) {
            collector.add(group)?;
            done += group.len();
            progress((done * parallel::size()).min(images.len()), images.len());
        }
        collector.finish();
        Ok(collector.moments.par_iter().zip(&self.linears).map(|(m, s)| m.covariance(s.has_bias())).collect())
    }

    /// An error that names the node whose values are no numbers.
    pub(super) fn finite(&self, linear: &TargetLinear, part: &Partial) -> Result<()> {
        if part.is_finite() {
            return Ok(());
        }
        let maker = self.typing.graph.node.iter().find(|n| n.output.contains(&linear.input));
        let error = Error::new(
            ErrorKind::Images,
            format!("the activations that enter layer {} are not numbers on these samples", linear.layer),
        );
        let error = maker.map(node_label).into_iter().fold(error, Error::in_node);
        Err(error.at(&self.model.path).hint("check preprocessing (⟦mean⟧, ⟦std⟧) and the model's weights"))
    }

    /// In which order every linear layer loses its heads or neurons. Columns count as they reach the stream.
    ///
    /// # Errors
    /// [`ErrorKind::Images`] where statistics determine nothing.
    pub fn thinnings(&self, statistics: &[Covariance], progress: Progress) -> Result<Vec<UnitOrder>> {
        let ways = self.residual_paths()?;
        let done = std::sync::atomic::AtomicUsize::new(0);
        let of_site = |i: usize| -> Result<UnitOrder> {
            let (linear, weight) = (&self.linears[i], self.weight(i, ways[i].as_ref()));
            let thinning = match linear.kind {
                BlockKind::Heads => order::heads(&statistics[i].gram, &weight, linear.size),
                BlockKind::Neurons => order::neurons(&statistics[i].gram, &weight),
            };
            let own = 1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            progress((own * parallel::size()).min(self.linears.len()), self.linears.len());
            thinning
        };
        // By layers: FFNs take longer than heads.
        let indices: Vec<usize> = (0..self.linears.len()).filter(|&i| self.first[i] == i).collect();
        let layers: Vec<&[usize]> = indices.chunk_by(|&a, &b| self.linears[a].layer == self.linears[b].layer).collect();
        let work = |own: Vec<usize>| -> Result<Vec<Vec<UnitOrder>>> {
            own.into_par_iter().map(|l| layers[l].par_iter().map(|&i| of_site(i)).collect()).collect()
        };
        let found: Vec<UnitOrder> = parallel::share_out(layers.len(), work)?.into_iter().flatten().collect();
        let at = |i: &usize| indices.binary_search(i).ok().and_then(|at| found.get(at).cloned());
        Ok(self.first.iter().filter_map(at).collect())
    }

    /// The output projection of a layer's heads, features x outputs.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where the layer has none.
    pub(super) fn output_of_heads(&self, layer: usize) -> Result<Mat<f64>> {
        match self.site_of_heads(layer) {
            Some(i) => Ok(self.weight(i, None)),
            None => bail!(Internal, "layer {layer} has no output projection"),
        }
    }

    /// The linear layer that sums over a layer's heads.
    pub(super) fn site_of_heads(&self, layer: usize) -> Option<usize> {
        self.linears.iter().position(|s| (s.layer, s.kind) == (layer, BlockKind::Heads))
    }

    /// The matrix of a linear layer, columns scaled as they reach the stream.
    pub(super) fn weight(&self, i: usize, way: Option<&ResidualPath>) -> Mat<f64> {
        let matrix = &self.matrices[i].0;
        let gain = |c: usize| way.map_or(1.0, |w| f64::from(w.gain[c]));
        Mat::from_fn(matrix.nrows(), matrix.ncols(), |r, c| f64::from(matrix[[r, c]]) * gain(c))
    }

    /// What thinning one linear layer at a time, with its matrix fitted, and what leaving out each of the `removable`
    /// layers does to the end of the network. Images should be others than the statistics'. Processes that work
    /// together share the layers out.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn sensitivities(
        &self,
        statistics: &[Covariance],
        thinnings: &[UnitOrder],
        removable: &[bool],
        images: &[Values],
        progress: Progress,
    ) -> Result<Costs> {
        let ways = self.residual_paths()?;
        let end = self.ends(images)?;
        let size: f64 = end.iter().flatten().flatten().map(|v| f64::from(*v).powi(2)).sum();
        let mut states: Vec<Values> = images.to_vec();
        let mut found = Costs { blocks: Vec::new(), layers: vec![None; removable.len()] };
        for (i, linear) in self.linears.iter().enumerate() {
            progress(i, self.linears.len());
            let own = parallel::is_own(linear.layer);
            states.par_iter_mut().try_for_each(|values| self.advance(i, values))?;
            let last = self.whole_layer(i, ways).filter(|_| removable.get(linear.layer) == Some(&true));
            if let Some(last) = last.filter(|_| own) {
                let rest = self.rest(last)?;
                let errors: Vec<f64> = states
                    .par_iter()
                    .zip(&end)
                    .map(|(values, end)| {
                        let mut values = values.clone();
                        for j in i..=last {
                            if j > i {
                                self.advance(j, &mut values)?;
                            }
                            let output = &self.linears[j].output;
                            let nothing = self.of(&values).typing.shape(output).unwrap_or_default();
                            values.insert(output.clone(), ArrayD::zeros(nothing));
                        }
                        Ok(distance(&self.real_end(rest[self.length(&values)].run(&values)?, &values)?, end))
                    })
                    .collect::<Result<_>>()?;
                found.layers[linear.layer] = Some(errors.iter().sum::<f64>() / size);
            } else if last.is_some() {
                found.layers[linear.layer] = Some(0.0);
            }
            let rows: Vec<Array2<f32>> = states.iter().map(|v| self.rows(i, v)).collect::<Result<_>>()?;
            let levels = levels(linear);
            if !own {
                found.blocks.push(levels.into_iter().map(|count| (count, 0.0)).collect());
            } else if !levels.is_empty() {
                let weight = self.weight(i, None);
                let target = times(statistics[i].gram.as_ref(), weight.as_ref());
                let fits: Vec<_> = levels
                    .par_iter()
                    .map(|&count| {
                        let kept = features(&thinnings[i].kept.at(count), linear.size);
                        let ridge = RIDGE * scale(&statistics[i].gram);
                        let fit = predict(&statistics[i].gram, &target, &weight, &kept, ridge)?;
                        Ok(self.narrow(i, &statistics[i], &weight, &kept, &fit))
                    })
                    .collect::<Result<_>>()?;
                let rest = self.rest(i)?;
                let pairs: Vec<(usize, usize)> =
                    (0..images.len()).flat_map(|image| (0..levels.len()).map(move |l| (image, l))).collect();
                let errors: Vec<f64> = pairs
                    .par_iter()
                    .map(|&(image, l)| {
                        let (kept, matrix, bias) = &fits[l];
                        let mut out = product(rows[image].select(Axis(1), kept).view(), matrix.view());
                        out += bias;
                        let mut values = states[image].clone();
                        values.insert(linear.output.clone(), self.leaving(i, &out, &values)?);
                        let rest = &rest[self.length(&values)];
                        Ok(distance(&self.real_end(rest.run(&values)?, &values)?, &end[image]))
                    })
                    .collect::<Result<_>>()?;
                let error = |l: usize| -> f64 { errors.iter().skip(l).step_by(levels.len()).sum::<f64>() / size };
                found.blocks.push(levels.iter().enumerate().map(|(l, &count)| (count, error(l))).collect());
            } else {
                found.blocks.push(Vec::new());
            }
            states.par_iter_mut().zip(&rows).try_for_each(|(values, rows)| self.pass(i, rows, values))?;
        }
        Ok(found.of_all())
    }

    /// The linear layers that have the same matrix as linear layer `i`, itself among them.
    pub(super) fn uses(&self, i: usize) -> impl Iterator<Item = usize> {
        (0..self.first.len()).filter(move |&j| self.first[j] == self.first[i])
    }

    /// The last linear layer of the layer that begins with linear layer `i`, where what its linear layers add reaches
    /// the stream as it is.
    fn whole_layer(&self, i: usize, ways: &[Option<ResidualPath>]) -> Option<usize> {
        let layer = self.linears[i].layer;
        let of_layer = |s: &&TargetLinear| s.layer == layer;
        let last = i + self.linears[i..].iter().take_while(of_layer).count() - 1;
        let all = self.linears.iter().filter(of_layer).count() == last + 1 - i;
        (all && ways[i..=last].iter().all(Option::is_some)).then_some(last)
    }

    /// Puts what leaves the unchanged linear layer into the values of one image.
    pub(super) fn pass(&self, i: usize, rows: &Array2<f32>, values: &mut Values) -> Result<()> {
        let out = self.apply(i, rows);
        values.insert(self.linears[i].output.clone(), self.leaving(i, &out, values)?);
        Ok(())
    }

    /// What leaves the unchanged linear layer.
    pub(super) fn apply(&self, i: usize, rows: &Array2<f32>) -> Array2<f32> {
        let (matrix, bias) = &self.matrices[i];
        affine(rows.view(), matrix.view(), bias)
    }

    /// A fit on some features in f32, with the bias that keeps the mean.
    pub(super) fn narrow(
        &self,
        i: usize,
        statistics: &Covariance,
        weight: &Mat<f64>,
        kept: &[usize],
        fit: &Mat<f64>,
    ) -> (Vec<usize>, Array2<f32>, ndarray::Array1<f32>) {
        let mu = &statistics.features;
        let bias = ndarray::Array1::from_shape_fn(fit.ncols(), |c| {
            let whole: f64 = (0..weight.nrows()).map(|r| mu[r] * weight[(r, c)]).sum();
            let own: f64 = kept.iter().enumerate().map(|(r, &k)| mu[k] * fit[(r, c)]).sum();
            (f64::from(self.matrices[i].1[c]) + whole - own) as f32
        });
        (kept.to_vec(), Array2::from_shape_fn((fit.nrows(), fit.ncols()), |(r, c)| fit[(r, c)] as f32), bias)
    }
}

/// True where a value depends on what leaves every linear layer.
fn sees_all(typing: &Typing, value: &str, linears: &[TargetLinear]) -> bool {
    let links = typing.links();
    let operands = links.maker(value).into_iter().flat_map(|k| links.inputs(k));
    let before: HashSet<&str> = links.upstream(operands).collect();
    linears.iter().all(|s| before.contains(s.output.as_str()))
}

/// Squared errors at the end of the network, relative to the values themselves.
pub struct Costs {
    /// For every linear layer some counts of units and the error there.
    pub blocks: Vec<Vec<(usize, f64)>>,
    /// For every layer the error without it.
    pub layers: Vec<Option<f64>>,
}

impl Costs {
    /// What all processes found together: each has zeros for layers that are not its own.
    fn of_all(mut self) -> Costs {
        let Costs { blocks, layers } = &mut self;
        let mut errors: Vec<&mut f64> =
            blocks.iter_mut().flatten().map(|(_, e)| e).chain(layers.iter_mut().flatten()).collect();
        let mut sums: Vec<f64> = errors.iter().map(|e| **e).collect();
        parallel::sum(&mut sums);
        errors.iter_mut().zip(sums).for_each(|(e, sum)| **e = sum);
        self
    }
}

pub(super) fn distance(a: &[ArrayD<f32>], b: &[ArrayD<f32>]) -> f64 {
    let squares =
        |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum() };
    a.iter().zip(b).map(squares).sum()
}

/// Collects sums over what enters every linear layer, some images at a time.
pub struct Collector<'n, 'm> {
    network: &'n Network<'m>,
    /// For each of the lengths.
    parts: Vec<Subgraph>,
    /// Samples that are worked on at once.
    pub chunk: usize,
    /// By linear layer.
    pub moments: Vec<Moments>,
}

impl<'n, 'm> Collector<'n, 'm> {
    /// No images yet.
    pub fn new(network: &'n Network<'m>) -> Self {
        let inputs: Vec<String> = network.linears.iter().map(|s| s.input.clone()).collect();
        let parts = (0..network.lengths()).map(|l| network.at(l).whole(&inputs)).collect();
        let size = |i: &String| 4 * network.typing.shape(i).unwrap_or_default().iter().product::<usize>();
        let bytes: usize = inputs.iter().map(size).sum();
        let moments = network.linears.iter().map(|s| Moments::new(s.features(), 0)).collect();
        Collector { network, parts, chunk: (CHUNK_BYTES / bytes.max(1)).clamp(1, CHUNK), moments }
    }

    /// Adds samples, batches of one each.
    ///
    /// # Errors
    /// Those of [`Network::statistics`].
    pub fn add(&mut self, samples: &[Values]) -> Result<()> {
        let (parts, network) = (&self.parts, self.network);
        let runs: Vec<Values> = samples
            .par_iter()
            .map(|sample| {
                let part = &parts[network.length(sample)];
                Ok(part.results.iter().cloned().zip(part.run(sample)?).collect())
            })
            .collect::<Result<_>>()?;
        network.linears.par_iter().enumerate().zip(&mut self.moments).try_for_each(|((i, linear), moments)| {
            let rows = |(run, sample)| {
                let own = network.of(sample);
                Ok(chosen(own.linears[i].rows(run)?, own.real_rows(i, sample).as_deref()))
            };
            let rows = stack(runs.iter().zip(samples).map(rows).collect::<Result<Vec<_>>>()?.iter())?;
            let part = Partial::of(rows.view(), Array2::zeros((rows.nrows(), 0)).view());
            network.finite(linear, &part)?;
            moments.add(&part);
            Ok(())
        })
    }

    /// Adds up what all processes have seen, and over all uses of a matrix.
    pub fn finish(&mut self) {
        self.moments.iter_mut().for_each(Moments::sum);
        let first = &self.network.first;
        for (i, &of) in first.iter().enumerate().filter(|(i, of)| i != *of) {
            let own = self.moments[i].clone();
            self.moments[of].join(&own);
        }
        for (i, &of) in first.iter().enumerate().filter(|(i, of)| i != *of) {
            self.moments[i] = self.moments[of].clone();
        }
    }
}

/// The counts at which a linear layer is measured, descending from all but few.
fn levels(linear: &TargetLinear) -> Vec<usize> {
    if !linear.divides || linear.units < 2 {
        return Vec::new();
    }
    let mut levels: Vec<usize> = match linear.kind {
        BlockKind::Heads if linear.units <= HEAD_LEVELS + 1 => (1..linear.units).collect(),
        BlockKind::Heads => (0..HEAD_LEVELS).map(|l| 1 + l * (linear.units - 2) / (HEAD_LEVELS - 1)).collect(),
        BlockKind::Neurons => LEVELS.iter().map(|s| (s * linear.units as f64).round() as usize).collect(),
    };
    levels.retain(|&l| l > 0 && l < linear.units);
    levels.dedup();
    levels
}

/// Rows of several images as one matrix.
pub(super) fn stack<'a>(parts: impl Iterator<Item = &'a Array2<f32>>) -> Result<Array2<f32>> {
    let (mut values, mut shape) = (Vec::new(), [0, 0]);
    for part in parts {
        match part.as_slice() {
            Some(slice) => values.extend_from_slice(slice),
            None => values.extend(part),
        }
        shape = [shape[0] + part.nrows(), part.ncols()];
    }
    Array2::from_shape_vec(shape, values).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))
}
