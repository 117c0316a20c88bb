//! Towers: of a model that takes pictures and texts, what pictures reach and what texts reach.
//!
//! Each tower is cut out and shrunk on samples of its own, as a model by itself, and put back into the place that it
//! had. So nothing is assumed of how pictures and texts belong together, or of how many there are of each. What a tower
//! costs is an error relative to its own values; these are added up, and the budget is shared by all towers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::blocks::blocks;
use super::budget::{Allocation, Limits};
use super::network::Progress;
use super::shrinker::{Fit, Shrinker, Shrunk, Timing};
use super::subgraph::Values;
use super::targets::find_targets;
use crate::anatomy::{Anatomy, layers_of_part};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, SampleInputs, data_inputs};
use crate::learngene::{BlockPruning, Dimensions, PruningOrder};
use crate::metadata::LEARNGENE;
use crate::onnx::Model;

/// What shrinks a model: all of it, or each of its towers by itself.
pub struct Towers<'m> {
    whole: &'m Model,
    towers: Vec<Tower<'m>>,
}

/// A tower, or a model that is not taken apart.
pub struct Tower<'m> {
    /// What its layers are called: `vision`, `text`. Empty where the model is not taken apart.
    pub name: String,
    /// What shrinks it.
    pub shrinker: Shrinker<'m>,
    /// For each of its layers that of the whole model.
    pub layers: Vec<usize>,
}

impl<'m> From<Shrinker<'m>> for Towers<'m> {
    fn from(shrinker: Shrinker<'m>) -> Self {
        let (whole, layers, name) = (shrinker.model(), Vec::new(), String::new());
        Towers { whole, towers: vec![Tower { name, shrinker, layers }] }
    }
}

impl<'m> Towers<'m> {
    /// The towers of a model, each with what shrinks it by itself: a part that was [cut](graph::cut) out of the model.
    ///
    /// # Errors
    /// Those of typing; [`ErrorKind::Unsupported`] where a layer of a tower is none of the model's, and where two
    /// towers have matrices in common.
    pub fn new(whole: &'m Model, shrinkers: Vec<Shrinker<'m>>) -> Result<Towers<'m>> {
        let typing = Typing::new(whole)?;
        let anatomy = Anatomy::new(&typing)?;
        let tower = |shrinker: Shrinker<'m>| {
            let layers = layers_of_part(shrinker.model(), (&typing, &anatomy))?;
            let of_tower = |s: &&crate::anatomy::Stack| layers.iter().any(|l| s.layers.contains(l));
            let name = anatomy.stacks.iter().find(of_tower).map(|s| s.name.clone()).unwrap_or_default();
            Ok(Tower { name, shrinker, layers })
        };
        let towers: Vec<Tower> = shrinkers.into_iter().map(tower).collect::<Result<_>>()?;
        let of = |layer: usize| towers.iter().position(|t| t.layers.contains(&layer));
        let (blocks, _) = blocks(whole, &Limits::default())?;
        if let Some(block) = blocks.iter().find(|b| of(b.layer) != of(blocks[b.first].layer)) {
            let (layer, other) = (block.layer, blocks[block.first].layer);
            let what = format!("layers {other} and {layer} are of different towers and have matrices in common");
            return Err(Error::new(ErrorKind::Unsupported, what)
                .at(&whole.path)
                .hint("such a model cannot be shrunk tower by tower"));
        }
        Ok(Towers { whole, towers })
    }

    /// The model, where it is not taken apart.
    fn alone(&mut self) -> Option<&mut Shrinker<'m>> {
        match &mut self.towers[..] {
            [tower] if std::ptr::eq(self.whole, tower.shrinker.model()) => Some(&mut tower.shrinker),
            _ => None,
        }
    }

    /// Lets fits hold so many bytes of token streams in memory.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.towers.iter_mut().for_each(|t| t.shrinker.memory_limit = bytes);
    }

    /// How long the stages took, those of all towers together.
    pub fn timings(&self) -> Vec<Timing> {
        let mut all: Vec<Timing> = Vec::new();
        for timing in self.towers.iter().flat_map(|t| &t.shrinker.timings) {
            match all.iter_mut().find(|own| own.stage == timing.stage && self.towers.len() > 1) {
                Some(own) => own.seconds += timing.seconds,
                None => all.push(timing.clone()),
            }
        }
        all
    }

    /// A sample that the whole model is timed on, where it takes arrays: of several towers, one of each.
    pub fn sample(&self) -> Option<Values> {
        match &self.towers[..] {
            [tower] => tower.shrinker.sample(),
            towers => Some(towers.iter().filter_map(|t| t.shrinker.longest()).flatten().collect()),
        }
    }

    /// What the user should know about the model, the samples and what stays as it is.
    ///
    /// # Errors
    /// Those of typing; [`ErrorKind::Usage`] where `limits` name a layer that there is not.
    pub fn warnings(&self, limits: &Limits) -> Result<Vec<String>> {
        if let [tower] = &self.towers[..] {
            return tower.shrinker.warnings(limits);
        }
        let typing = Typing::new(self.whole)?;
        let mut warnings = blocks(self.whole, limits)?.1;
        warnings.extend(find_targets(&typing, &Anatomy::new(&typing)?).1);
        warnings.extend(self.towers.iter().flat_map(|t| t.shrinker.of_samples()).cloned());
        Ok(warnings)
    }

    /// Measures in which order heads and neurons go, and what that and leaving out whole layers cost.
    ///
    /// # Errors
    /// Those of [`Shrinker::analyse`].
    pub fn analyse(
        &mut self,
        limits: &Limits,
        progress: &(dyn Fn(&'static str, usize, usize) + Sync),
    ) -> Result<PruningOrder> {
        if let Some(shrinker) = self.alone() {
            return shrinker.analyse(limits, progress);
        }
        let layers = Anatomy::new(&Typing::new(self.whole)?)?.layers.len();
        let mut all = PruningOrder { layers: vec![None; layers], ..PruningOrder::default() };
        for tower in &mut self.towers {
            let own = limits.layers.as_ref().map(|list| list.iter().filter_map(|&l| tower.own(l)).collect());
            let found = tower.shrinker.analyse(&Limits { layers: own, ..limits.clone() }, progress)?;
            let of_whole = |l: usize| tower.layers[l];
            all.blocks.extend(found.blocks.into_iter().map(|b| BlockPruning { layer: of_whole(b.layer), ..b }));
            all.dimensions.extend(found.dimensions.into_iter().map(|d| Dimensions { layer: of_whole(d.layer), ..d }));
            found.layers.into_iter().enumerate().for_each(|(l, error)| all.layers[of_whole(l)] = error);
            (all.views, all.seed) = (all.views + found.views, found.seed);
        }
        Ok(all)
    }

    /// Thins and fits. The error of several towers is that of the worst.
    ///
    /// # Errors
    /// Those of [`Shrinker::shrink`].
    pub fn shrink(&mut self, removals: &PruningOrder, allocation: &Allocation, progress: Progress) -> Result<Shrunk> {
        if let Some(shrinker) = self.alone() {
            return shrinker.shrink(removals, allocation, progress);
        }
        let mut model = self.whole.clone();
        model.proto.metadata_props.retain(|p| p.key() != LEARNGENE);
        let kept = allocation.kept_layers();
        let (mut errors, mut outputs, mut fits) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for tower in &mut self.towers {
            let own = tower.allocation(allocation);
            let child = tower.shrinker.shrink(&tower.removals(removals), &own, progress)?;
            outputs.extend(tower.shrinker.of_outputs(&child.model)?);
            put_back(&mut model, tower.shrinker.model(), child.model)?;
            let of_whole = |layer: usize| kept.iter().position(|l| *l == tower.layers[own.kept_layers()[layer]]);
            fits.extend(child.fits.into_iter().filter_map(|fit| Some(Fit { layer: of_whole(fit.layer)?, ..fit })));
            errors.insert(tower.name.clone(), child.error);
        }
        let error = errors.values().copied().fold(0.0, worst);
        Ok(Shrunk { error, errors, outputs, fits, ..Shrunk::of(model, self.sample().as_ref())? })
    }

    /// Fits a descendant of the whole model that was grown in any other way, and tells the error: see
    /// [`Shrinker::refit`].
    ///
    /// # Errors
    /// Those of [`Shrinker::refit`].
    pub fn refit(&self, child: &Model, sources: &[usize], progress: Progress) -> Result<(Model, f64)> {
        if let [tower] = &self.towers[..] {
            return tower.shrinker.refit(child, sources, progress);
        }
        let (mut model, mut error) = (child.clone(), 0.0);
        for tower in &self.towers {
            let part = self.part(tower, child)?;
            let places = self.places(&part, child)?;
            let source = |l: usize| tower.own(*sources.get(l)?);
            let Some(own) = places.into_iter().map(source).collect::<Option<Vec<usize>>>() else {
                bail!(Internal, "a layer of the {} tower comes from another one", tower.name)
            };
            let (fitted, found) = tower.shrinker.refit(&part, &own, progress)?;
            put_back(&mut model, &part, fitted)?;
            error = worst(error, found);
        }
        Ok((model, error))
    }

    /// The towers of the whole model, or the model itself where it is not taken apart.
    pub fn each(&self) -> &[Tower<'m>] {
        &self.towers
    }

    /// What of a descendant of the whole model is a tower's.
    ///
    /// # Errors
    /// Those of [`graph::cut`].
    pub fn part<'c>(&self, tower: &Tower, child: &'c Model) -> Result<Cow<'c, Model>> {
        if self.towers.len() == 1 {
            return Ok(Cow::Borrowed(child));
        }
        let inputs = data_inputs(tower.shrinker.model().graph());
        let inputs: Vec<String> = inputs.into_iter().map(|v| v.name().to_string()).collect();
        let mut part = child.clone();
        graph::cut(&mut part, SampleInputs::Inputs(&inputs), None)?;
        Ok(Cow::Owned(part))
    }

    /// For each layer of a part of a descendant that of the descendant.
    fn places(&self, part: &Model, child: &Model) -> Result<Vec<usize>> {
        let typing = Typing::new(child)?;
        layers_of_part(part, (&typing, &Anatomy::new(&typing)?))
    }
}

impl Tower<'_> {
    /// The number that a layer of the whole model has in the tower.
    pub fn own(&self, layer: usize) -> Option<usize> {
        if self.name.is_empty() { Some(layer) } else { self.layers.iter().position(|l| *l == layer) }
    }

    /// What of an order of removal is its own.
    fn removals(&self, whole: &PruningOrder) -> PruningOrder {
        let blocks = whole.blocks.iter().filter_map(|b| Some(BlockPruning { layer: self.own(b.layer)?, ..b.clone() }));
        let dimensions =
            whole.dimensions.iter().filter_map(|d| Some(Dimensions { layer: self.own(d.layer)?, ..d.clone() }));
        PruningOrder {
            blocks: blocks.collect(),
            layers: self.layers.iter().map(|&l| whole.layers.get(l).copied().flatten()).collect(),
            dimensions: dimensions.collect(),
            ..*whole
        }
    }

    /// What of an allocation is its own.
    fn allocation(&self, whole: &Allocation) -> Allocation {
        let layers = self.layers.iter().filter_map(|&l| whole.layers.get(l).cloned()).collect();
        Allocation { layers, ..whole.clone() }
    }
}

/// The larger of two errors; what is no number is the worst.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Puts a changed tower into its place. One that is as it was leaves the model as it is.
fn put_back(model: &mut Model, before: &Model, after: Model) -> Result<()> {
    if before.graph() == after.graph() {
        return Ok(());
    }
    let Some(changed) = after.proto.graph else { bail!(Internal, "a tower without a graph") };
    graph::splice(model.graph_mut(), before.graph(), changed).map_err(|e| e.at(&model.path))
}
