//! Grows a descendant: plans its layers, heads and widths, resizes the graph, and checks what came of it.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::choice::{self, FfnWidth, LayerHeads};
use super::depth;
use super::inherit;
use super::init::{Init, LayerSource};
use super::initialise::{Ancestor, Initialiser};
use super::input_size::resize_image;
use super::joined::check_counts;
use super::numbers::select;
use super::plan::{Descendant, DescendantPlan, GrowOptions, PlannedLayer, Projection};
use super::spared::{check_untouched, spared};
use super::transform::{self, DEFAULT_RANK, Transform};
use crate::anatomy::{
    Anatomy, Attention, FeedForward, Roles, Summed, WeightKind, class_factors, normed, other_outputs, unit_norms,
    weight_uses,
};
use crate::axes::resize::{LinearCombination, ResizePlan, resize};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Names};
use crate::learngene::{BlockKind, Cluster, KeepOrder, Learngene, bake, compact, ordered, parameters};
use crate::metadata::{CLASSES, DESCENDANT, LEARNGENE, schema};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{Model, element_count, encoded_len, node_label, squares_along};

/// Grows a descendant from a learngene model (or from an ancestor with the identity learngene).
///
/// # Errors
/// [`ErrorKind::Usage`] for a shape that cannot be, [`ErrorKind::Unsupported`] where the graph does not allow it.
pub fn grow(model: &Model, gene: &Learngene, shape: &GrowOptions) -> Result<Descendant> {
    inherit::check(shape, model.metadata(LEARNGENE).is_some())?;
    let resized = shape.image_size.map(|size| resize_image(model, size)).transpose()?;
    let model = resized.as_ref().unwrap_or(model);
    let bare = shape.classes.map_or(Ok(None), |_| without_unit_norm(model))?;
    let mut child = grow_layers(bare.as_ref().unwrap_or(model), gene, shape)?;
    if bare.is_some() {
        child.plan.warnings.push("the norm that made unit vectors of the old logits went with their classifier".into());
    }
    Ok(child)
}

/// The model without the norm that makes a unit vector of its logits, where there is one: behind a new classifier it
/// would keep every loss from its least value.
fn without_unit_norm(model: &Model) -> Result<Option<Model>> {
    let norms = unit_norms(&Typing::new(model)?);
    if norms.is_empty() {
        return Ok(None);
    }
    let mut out = model.clone();
    let graph = out.graph_mut();
    for (logits, unit) in &norms {
        for node in graph.node.iter_mut().filter(|n| n.output.contains(unit)) {
            *node = graph::node("Identity", &[logits], &[unit], vec![]);
        }
    }
    graph::prune(graph);
    Ok(Some(out))
}

fn grow_layers(model: &Model, gene: &Learngene, shape: &GrowOptions) -> Result<Descendant> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    gene.check(&typing, &anatomy)?;
    if anatomy.layers.is_empty() {
        return Err(Error::new(ErrorKind::Anatomy, "the model has no self-attention layer to inherit").at(&model.path));
    }
    if shape.ffn_width != FfnWidth::Same && anatomy.layers.iter().all(|l| l.ffns.is_empty()) {
        let message = "an FFN width was asked for, and no layer has an FFN that is known";
        return Err(Error::new(ErrorKind::Unsupported, message)
            .at(&model.path)
            .hint("leave out ⟦ffn-width⟧; heads and layers can still be chosen"));
    }
    let spared = spared(&typing, &anatomy, shape.of.as_deref())?;
    let layers = inherit::layers(shape, &anatomy.stacks, &spared)?;
    let kept = layers.0.clone();
    let mut warnings = choice::check_stacks(&typing, &anatomy, &shape.layers, &kept)?;
    let ancestor = match shape.init {
        Init::ClusterLearngene => None,
        _ => Some(Ancestor::new(&typing, &anatomy)),
    };
    if kept.len() == anatomy.layers.len() {
        return Grower::new(model, &typing, &anatomy, gene, shape, layers, &spared).grow(ancestor);
    }
    let shallow = depth::keep_layers(model, &typing, &anatomy, &kept)?;
    let typing = Typing::new(&shallow.model)?;
    let anatomy = Anatomy::new(&typing)?;
    if anatomy.layers.len() != kept.len() {
        let message = format!("dropping layers left {} attentions and not {}", anatomy.layers.len(), kept.len());
        let hint = match shallow.warnings.first() {
            Some(why) => format!("{why}; cut such outputs from the model first"),
            None => "choose other layers with ⟦layers⟧".into(),
        };
        return Err(Error::new(ErrorKind::Unsupported, message).hint(hint));
    }
    warnings.extend(shallow.warnings);
    let mut grower = Grower::new(&shallow.model, &typing, &anatomy, gene, shape, layers, &spared);
    grower.warnings = warnings;
    grower.grow(ancestor)
}

/// What is to be said of a layer whose heads or neurons `mixers` take together beside the projection that sums over
/// them, if any do.
pub(crate) fn mixed_elsewhere(typing: &Typing, layer: usize, kind: BlockKind, mixers: &[usize]) -> Option<String> {
    let node = &typing.graph.node[*mixers.first()?];
    let more = match mixers.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let (units, projection) = match kind {
        BlockKind::Heads => ("heads", "output projection"),
        BlockKind::Neurons => ("neurons", "last matrix of the FFN"),
    };
    Some(format!(
        "layer {layer}: its {units} are also taken together in node `{}` ({}){more}, beside the {projection}: what is \
         left misses there \
         those that were removed",
        node_label(node),
        node.op_type()
    ))
}

struct Grower<'a, 'm> {
    model: &'a Model,
    typing: &'a Typing<'m>,
    anatomy: &'a Anatomy,
    roles: Roles<'a, 'm>,
    /// The factors that norms take their statistics over.
    normed: HashSet<Factor>,
    gene: &'a Learngene,
    shape: &'a GrowOptions,
    kept: Vec<usize>,
    sources: Vec<LayerSource>,
    /// Those that stay as they are.
    spared: Vec<bool>,
    resizing: ResizePlan,
    warnings: Vec<String>,
    inexact: Vec<String>,
    /// For each layer the nodes beside its projection that take heads together, and those of its neurons; found where
    /// they are first asked for.
    head_mixers: Option<Vec<Vec<usize>>>,
    neuron_mixers: Option<Vec<Vec<usize>>>,
}

impl<'a, 'm> Grower<'a, 'm> {
    fn new(
        model: &'a Model,
        typing: &'a Typing<'m>,
        anatomy: &'a Anatomy,
        gene: &'a Learngene,
        shape: &'a GrowOptions,
        (kept, sources): (Vec<usize>, Vec<LayerSource>),
        spared: &[bool],
    ) -> Self {
        let spared = kept.iter().map(|&l| spared[l]).collect();
        Grower {
            model,
            typing,
            anatomy,
            roles: Roles::new(typing),
            normed: normed(typing),
            gene,
            shape,
            kept,
            sources,
            spared,
            resizing: ResizePlan::default(),
            warnings: Vec::new(),
            inexact: Vec::new(),
            head_mixers: None,
            neuron_mixers: None,
        }
    }

    fn is_normed(&self, factor: Factor) -> bool {
        self.normed.contains(&self.typing.factors.root(factor))
    }

    /// Warns of what keeps the rest of a layer from being what it was.
    fn warn_inexact(&mut self, warning: String) {
        self.inexact.push(warning.clone());
        self.warnings.push(warning);
    }

    fn grow(mut self, ancestor: Option<Ancestor>) -> Result<Descendant> {
        let layers = self.plan_layers()?;
        if let Some(channels) = self.shape.embedding_dim {
            self.embedding(channels)?;
        }
        if let Some(classes) = self.shape.classes {
            self.classifier(classes)?;
        }
        if let Some(ancestor) = ancestor {
            let planned = Initialiser {
                typing: self.typing,
                anatomy: self.anatomy,
                roles: &self.roles,
                shape: self.shape,
                kept: &self.kept,
                sources: &self.sources,
                resizing: &self.resizing,
            };
            for (u, elements) in planned.weights(&ancestor)? {
                self.resizing.replace(u, elements);
            }
        }
        let mut out = self.model.clone();
        out.proto.graph = Some(resize(self.typing, &self.resizing)?);
        let graph = out.graph_mut();
        let transform = self.transform();
        if self.shape.tied {
            compact(graph)?;
        } else {
            bake(graph)?;
            if transform == Transform::None {
                self.separate_ffns(graph);
            }
        }
        graph::prune(graph);
        // Names of classes belong to the classifier.
        let renewed = self.shape.classes.is_some();
        out.proto.metadata_props.retain(|p| p.key() != LEARNGENE && !(renewed && p.key() == CLASSES));
        self.share(&mut out, transform)?;
        let plan = self.describe(&mut out, layers)?;
        Ok(Descendant { model: out, plan })
    }

    /// Plans the heads and the FFN of every layer.
    fn plan_layers(&mut self) -> Result<Vec<PlannedLayer>> {
        let (typing, anatomy) = (self.typing, self.anatomy);
        let spared = self.spared.clone();
        let layers = anatomy.layers.iter().zip(&self.kept);
        let heads: Vec<LayerHeads> = (layers.zip(&spared).filter(|(_, spared)| !**spared))
            .map(|((l, &layer), _)| LayerHeads {
                layer,
                heads: l.head_count(typing),
                resizable: !l.head_factors(typing).is_empty(),
            })
            .collect();
        let (counts, warnings) = self.shape.heads.resolve(&heads)?;
        let places = (0..spared.len()).filter(|&i| !spared[i]);
        check_counts(typing, anatomy, &self.kept, places.zip(counts.iter().copied()))?;
        let mut counts = counts.into_iter();
        let pins =
            anatomy.layers.iter().flat_map(|l| typing.factors.leaves(&l.heads)).filter_map(|f| typing.pinned_by(f));
        if let (Some(k), false) = (pins.min(), warnings.is_empty()) {
            let node = node_label(&typing.graph.node[k]);
            self.warnings.push(format!("heads that reach node `{node}`, of which nothing is known, stay"));
        }
        self.warnings.extend(warnings);
        let mut layers = Vec::new();
        for (i, &spared) in spared.iter().enumerate() {
            layers.push(match spared {
                true => self.as_it_is(i),
                false => self.plan_layer(i, counts.next())?,
            });
        }
        for i in (0..layers.len()).filter(|&i| spared[i]) {
            let planned = |f| self.resizing.indices(&typing.factors, f).is_some();
            check_untouched(typing, &anatomy.layers[i], self.kept[i], planned)?;
        }
        Ok(layers)
    }

    /// Plans the heads, `count` of them, and the FFNs of one layer.
    fn plan_layer(&mut self, i: usize, count: Option<usize>) -> Result<PlannedLayer> {
        let (typing, anatomy, l) = (self.typing, self.anatomy, self.kept[i]);
        let layer = &anatomy.layers[i];
        let heads = layer.head_count(typing);
        let count = count.unwrap_or(heads);
        let slots = self.heads(i, count)?;
        if count < heads && layer.head_factor(typing).is_some_and(|f| self.is_normed(f)) {
            self.warn_inexact(format!(
                "layer {l}: a norm runs over all heads together, so its statistics change with their number"
            ));
        }
        if count < heads && !layer.head_mixers.is_empty() {
            self.warnings.push(format!("layer {l}: heads are mixed, so what is left misses those that were removed"));
        }
        if count != heads || !(slots.is_empty() || slots.iter().copied().eq(0..heads)) {
            let mixers = self.head_mixers.get_or_insert_with(|| anatomy.head_mixers(typing));
            let warning = mixed_elsewhere(typing, l, BlockKind::Heads, &mixers[i]);
            warning.into_iter().for_each(|warning| self.warn_inexact(warning));
        }
        let (widths, neurons): (Vec<usize>, Vec<Vec<usize>>) =
            (0..layer.ffns.len()).map(|n| self.ffn(i, n)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if widths != ffn_widths(typing, layer) {
            let mixers = self.neuron_mixers.get_or_insert_with(|| anatomy.neuron_mixers(typing));
            let warning = mixed_elsewhere(typing, l, BlockKind::Neurons, &mixers[i]);
            warning.into_iter().for_each(|warning| self.warn_inexact(warning));
        }
        Ok(PlannedLayer {
            ancestor_layer: l,
            source: self.sources[i],
            heads: count,
            slots,
            ffn_width: widths.last().copied(),
            ffn_widths: if widths.len() > 1 { widths } else { Vec::new() },
            neurons,
        })
    }

    /// A layer that nothing is asked of.
    fn as_it_is(&self, i: usize) -> PlannedLayer {
        let layer = &self.anatomy.layers[i];
        let widths = ffn_widths(self.typing, layer);
        PlannedLayer {
            ancestor_layer: self.kept[i],
            source: self.sources[i],
            heads: layer.head_count(self.typing),
            slots: (0..layer.head_count(self.typing)).collect(),
            ffn_width: widths.last().copied(),
            neurons: vec![Vec::new(); widths.len()],
            ffn_widths: if widths.len() > 1 { widths } else { Vec::new() },
        }
    }

    fn transform(&self) -> Transform {
        let usual = match self.shape.init {
            Init::WeightTransformation => Transform::Affine,
            _ => Transform::None,
        };
        self.shape.transform.unwrap_or(usual)
    }

    /// Layers that share weights get the transforms that were asked for.
    fn share(&self, out: &mut Model, transform: Transform) -> Result<()> {
        let kept = |group: &Vec<usize>| -> Vec<usize> {
            (0..self.kept.len()).filter(|&i| group.contains(&self.kept[i])).collect()
        };
        let (groups, whole): (Vec<Vec<usize>>, _) = match self.shape.init {
            Init::WeightTransformation => {
                let all: Vec<usize> = (0..self.kept.len()).collect();
                (all.chunks(self.shape.share.unwrap_or(2)).map(<[usize]>::to_vec).collect(), true)
            }
            _ => (self.gene.ffn_groups.iter().map(kept).collect(), false),
        };
        let groups: Vec<Vec<usize>> = groups.into_iter().filter(|g| g.len() > 1).collect();
        if groups.is_empty() && (whole || transform != Transform::None) {
            return Err(Error::new(
                ErrorKind::Usage,
                "no two layers of the descendant share weights, so there is nothing to transform",
            )
            .hint("keep more layers with ⟦layers⟧, or condense with a larger ⟦ffn-eps⟧ or with ⟦ffn-clusters⟧"));
        }
        if whole {
            transform::share_layers(out, &groups)?;
        }
        let rank = self.shape.transform_rank.unwrap_or(DEFAULT_RANK);
        transform::insert(out, &groups, whole, transform, rank, self.shape.seed)
    }

    /// Plans the heads of one layer. Returns the ancestor's head in each slot.
    fn heads(&mut self, i: usize, count: usize) -> Result<Vec<usize>> {
        if self.shape.init != Init::ClusterLearngene {
            return self.plain_heads(i, count);
        }
        let l = self.kept[i];
        let layer = &self.anatomy.layers[i];
        let clusters = &self.gene.layers[l];
        let densities = self.gene.densities.as_ref().map(|d| d[l].as_slice());
        let queue = ordered(clusters, densities, self.shape.order);
        let mut filled: Vec<&Cluster> = (0..count).map(|s| queue[s % queue.len()]).collect();
        if let Some(kept) = self.removal(l, BlockKind::Heads).filter(|kept| count <= kept.units()) {
            // A learngene that knows which heads go together names them for every count, and they keep their places.
            let kept = kept.at(count);
            filled = kept.iter().filter_map(|h| clusters.iter().find(|c| c.centroid == *h)).collect();
        }
        let slots: Vec<usize> = filled.iter().map(|c| c.centroid).collect();
        let factors = layer.head_factors(self.typing);
        if factors.is_empty() {
            return Ok(slots);
        }
        let heads = layer.head_count(self.typing);
        let identity = slots.iter().copied().eq(0..heads) && clusters.iter().all(|c| c.members.len() == 1);
        if identity {
            return Ok(slots);
        }
        for &factor in &factors {
            self.resizing.gather(&self.typing.factors, factor, slots.clone()).map_err(|e| {
                e.hint(format!(
                    "layer {l} shares its head axis with another layer: give both the same heads and ⟦eps⟧ 0"
                ))
            })?;
        }
        let rows = match self.shape.projection {
            Projection::Matched | Projection::Fitted => matched(&filled),
            Projection::Paper => Vec::new(),
        };
        let projection = self.roles.projection_uses(layer);
        if projection.is_empty() {
            bail!(Unsupported, "layer {l}: the weight of the output projection does not carry the heads");
        }
        for summed in self.roles.summing(layer)? {
            match self.shape.projection {
                Projection::Matched | Projection::Fitted => self.spread(summed, &rows),
                Projection::Paper if projection.contains(&summed.of_use) => {
                    let mixture = self.published_columns(summed, layer, count)?;
                    self.resizing.mix(summed.of_use, summed.axis, mixture);
                }
                Projection::Paper => {}
            }
        }
        // Attentions beside the layers take part in what becomes of heads that they share with them.
        if self.shape.projection != Projection::Paper {
            let same = |f: Factor| factors.iter().any(|&own| self.typing.factors.meet(&[own], &[f]));
            let others = self.anatomy.others.iter().filter(|o| o.head_factor(self.typing).is_some_and(same));
            for other in others {
                self.roles.summing(other)?.into_iter().for_each(|s| self.spread(s, &rows));
            }
        }
        Ok(slots)
    }

    /// Plans that what is summed over an axis is mixed along it.
    fn spread(&mut self, s: Summed, rows: &LinearCombination) {
        self.resizing.spread(&self.typing.factors, s.of_use, s.axis, s.factor, rows.clone());
    }

    /// The published code's output projection: a prefix of the columns, or each column repeated.
    fn published_columns(&self, summed: Summed, layer: &Attention, count: usize) -> Result<LinearCombination> {
        let (outer, inner) = self.roles.around(&summed).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the axis of `{}` holds more than heads and has no published columns",
                    self.typing.uses[summed.of_use].name
                ),
            )
            .hint("use `⟦projection⟧ matched`")
        })?;
        let heads = layer.head_count(self.typing);
        let column = |j: usize| if count <= heads { j } else { j * heads / count };
        let mut mixture = Vec::with_capacity(outer * count * inner);
        for o in 0..outer {
            mixture.extend((0..count * inner).map(|j| vec![(o * heads * inner + column(j), 1.0)]));
        }
        Ok(mixture)
    }

    /// Plans FFN `n` of one layer. Returns its width, and the ancestor's neuron in each place where that is another.
    fn ffn(&mut self, i: usize, n: usize) -> Result<(usize, Vec<usize>)> {
        let ffn = &self.anatomy.layers[i].ffns[n];
        let is_last = n + 1 == self.anatomy.layers[i].ffns.len();
        let width = self.typing.factors.size(&ffn.hidden);
        let wanted = self.shape.ffn_width.resolve(width);
        if wanted == width {
            return Ok((width, Vec::new()));
        }
        if wanted < 2 {
            bail!(Usage, "layer {} was given {wanted} FFN neuron(s); an FFN needs at least two", self.kept[i]);
        }
        let Some(factor) = ffn.hidden_factor(self.typing) else {
            self.warnings.push(format!("layer {} keeps its FFN: its neurons have no axis of their own", self.kept[i]));
            return Ok((width, Vec::new()));
        };
        if self.is_normed(factor) {
            self.warn_inexact(format!(
                "layer {}: a norm runs over the FFN's neurons, so its statistics change with their number",
                self.kept[i]
            ));
        }
        if self.shape.init != Init::ClusterLearngene {
            let neurons = self.plain_neurons(factor, wanted)?;
            return Ok((wanted, neurons));
        }
        // A learngene knows the neurons of a layer's last FFN.
        let clusters = if is_last { self.gene.neurons(self.kept[i]) } else { &[] };
        let removal = self.removal(self.kept[i], BlockKind::Neurons).filter(|_| is_last && wanted < width);
        let (neurons, rows): (Vec<usize>, Vec<Vec<(usize, f32)>>) = if let Some(kept) = removal {
            (kept.at(wanted), Vec::new())
        } else if !clusters.is_empty() {
            let filled: Vec<&Cluster> = (0..wanted).map(|s| &clusters[s % clusters.len()]).collect();
            let rows = if self.shape.projection == Projection::Paper { Vec::new() } else { matched(&filled) };
            (filled.iter().map(|c| c.centroid).collect(), rows)
        } else if wanted < width {
            let mut order: Vec<(f64, usize)> = self.importance(ffn, factor)?.into_iter().zip(0..).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut keep: Vec<usize> = order[..wanted].iter().map(|o| o.1).collect();
            keep.sort_unstable();
            (keep, Vec::new())
        } else {
            // Copies of a neuron share what it passes on, so that the function survives.
            let copies = |n: usize| wanted / width + usize::from(n < wanted % width);
            (0..wanted).map(|s| s % width).map(|n| (n, vec![(n, 1.0 / copies(n) as f32)])).unzip()
        };
        if !rows.is_empty() {
            self.roles.summed_over(ffn.down, factor)?.into_iter().for_each(|s| self.spread(s, &rows));
        }
        self.resizing.gather(&self.typing.factors, factor, neurons.clone())?;
        Ok((wanted, neurons))
    }

    /// Heads of a layer by the rule of any method but Cluster-Learngene. Returns the ancestor's head in each slot.
    fn plain_heads(&mut self, i: usize, count: usize) -> Result<Vec<usize>> {
        let layer = &self.anatomy.layers[i];
        let heads = layer.head_count(self.typing);
        let slots = self.indices(heads, count, "heads")?;
        for factor in layer.head_factors(self.typing).into_iter().filter(|_| count != heads) {
            self.resizing.gather(&self.typing.factors, factor, slots.clone()).map_err(|e| {
                e.hint(format!(
                    "layer {} shares its head axis with another layer: give both the same heads",
                    self.kept[i]
                ))
            })?;
        }
        // Weight selection takes elements across the borders of heads.
        let whole = count == heads || self.shape.init != Init::WeightSelection;
        Ok(if whole && self.sources[i] == LayerSource::Inherited { slots } else { Vec::new() })
    }

    /// Neurons of an FFN by the rule of any method but Cluster-Learngene. Returns the ancestor's neuron in each place.
    fn plain_neurons(&mut self, factor: Factor, wanted: usize) -> Result<Vec<usize>> {
        let width = self.typing.factors.factor_size(factor);
        let neurons = self.indices(width, wanted, "FFN neurons")?;
        self.resizing.gather(&self.typing.factors, factor, neurons.clone())?;
        Ok(neurons)
    }

    fn indices(&self, have: usize, wanted: usize, what: &str) -> Result<Vec<usize>> {
        let init = self.shape.init;
        if wanted > have && !init.widens() {
            return Err(Error::new(ErrorKind::Usage, format!("{} cannot make {wanted} {what} of {have}", init.name()))
                .hint("ask for fewer, or use cluster-learngene, frequency or from-scratch"));
        }
        Ok(match init {
            Init::WeightSelection => select(have, wanted),
            _ => (0..wanted).map(|n| n % have).collect(),
        })
    }

    /// Plans another embedding dimension: the residual stream's factor is resized like any other.
    fn embedding(&mut self, wanted: usize) -> Result<()> {
        let factors = &self.typing.factors;
        let mut found: Vec<Factor> = self.anatomy.layers.iter().flat_map(|l| factors.leaves(&l.embedding)).collect();
        found.sort_unstable();
        found.dedup();
        let unsupported = |what: &str| {
            Err(Error::new(ErrorKind::Unsupported, format!("the embedding dimension cannot be changed: {what}"))
                .hint("leave out ⟦embedding-dim⟧"))
        };
        let [factor] = found[..] else {
            return unsupported("the layers do not have one embedding axis in common");
        };
        let inside = self
            .anatomy
            .layers
            .iter()
            .any(|l| factors.meet(&[factor], &l.heads) || factors.meet(&[factor], &l.head_dim));
        if inside {
            return unsupported("the heads' own axes are part of it");
        }
        let old = factors.factor_size(factor);
        if wanted == 0 || wanted > 1 << 20 {
            return Err(Error::new(ErrorKind::Usage, format!("an embedding dimension of {wanted} cannot be"))
                .hint("give ⟦embedding-dim⟧ a number such as 192"));
        }
        if wanted == old {
            return Ok(());
        }
        let indices = self.indices(old, wanted, "embedding channels")?;
        self.resizing.gather(factors, factor, indices)?;
        let uses = weight_uses(self.typing);
        let norms = (0..uses.len())
            .filter(|&u| uses[u].kind == WeightKind::NormScale)
            .filter(|&u| self.typing.uses[u].dims.iter().any(|d| factors.leaves(d).contains(&factor)))
            .count();
        let consequence = match self.shape.init {
            Init::WeightSelection => {
                ": the inherited weights see other inputs than in the ancestor and have to be trained"
            }
            _ => "",
        };
        self.warnings.push(format!(
            "{norms} norms take their statistics over {wanted} channels and not over {old}{consequence}"
        ));
        Ok(())
    }

    /// Which units of a layer stay, where the learngene knows it.
    fn removal(&self, layer: usize, kind: BlockKind) -> Option<&'a KeepOrder> {
        Some(&self.gene.removals.as_ref()?.block(layer, kind)?.kept)
    }

    /// How much each neuron can pass on: the norm of what makes it times the norm of what it makes.
    fn importance(&self, ffn: &FeedForward, factor: Factor) -> Result<Vec<f64>> {
        let width = self.typing.factors.factor_size(factor);
        let mut score = vec![1.0f64; width];
        let mut sides: Vec<Vec<usize>> = vec![self.roles.operand(ffn.down).into_iter().collect()];
        sides.push(ffn.up.iter().flat_map(|&k| self.roles.operand(k)).collect());
        for side in sides {
            let mut squares = vec![0f64; width];
            for u in side {
                let Some((axis, rows)) = self.roles.along(u, factor) else { continue };
                let t = self.typing.weights[self.typing.uses[u].name.as_str()];
                let dims = t.shape();
                let before = dims[..axis].iter().product::<usize>();
                let after = dims[axis + 1..].iter().product::<usize>();
                let sums = squares_along(t, [before, dims[axis], after])?;
                squares.iter_mut().zip(&rows).for_each(|(s, row)| *s += row.iter().map(|&r| sums[r]).sum::<f64>());
            }
            score.iter_mut().zip(squares).for_each(|(s, q)| *s *= q.sqrt());
        }
        Ok(score)
    }

    /// A new classifier, drawn as torch's nn.Linear draws it, for every output that holds classes. What stands behind
    /// the old one, a Softmax say, stands behind it.
    fn classifier(&mut self, classes: usize) -> Result<()> {
        if classes == 0 || classes > 1 << 20 {
            bail!(Usage, "{classes} classes cannot be");
        }
        let factors = class_factors(self.typing);
        if factors.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the model has no classifier whose classes could be replaced",
            )
            .hint("leave ⟦classes⟧ out: the descendant keeps the ancestor's outputs"));
        }
        let first = self.typing.factors.factor_size(factors[0]);
        for (output, n) in other_outputs(self.typing) {
            self.warnings.push(format!(
                "the output `{output}` stays as it is: it holds {n} values an image, and the classes that are replaced \
                 are {first}"
            ));
        }
        // Elements and bound of every use; one that two classifiers share has the classes of both.
        let mut drawn: Vec<(usize, usize, f32)> = Vec::new();
        for factor in factors {
            let old = self.typing.factors.factor_size(factor);
            let uses = self.roles.carriers(factor);
            let count =
                |u: &usize| element_count(self.typing.weights[self.typing.uses[*u].name.as_str()]).unwrap_or(old);
            let fan_in = uses.iter().map(|u| count(u) / old.max(1)).max().unwrap_or(1).max(1);
            let bound = 1.0 / (fan_in as f32).sqrt();
            for u in uses {
                match drawn.iter_mut().find(|d| d.0 == u) {
                    Some(shared) => shared.1 = shared.1 / old.max(1) * classes,
                    None => drawn.push((u, count(&u) / old.max(1) * classes, bound)),
                }
            }
            self.resizing.gather(&self.typing.factors, factor, (0..classes).map(|c| c % old).collect())?;
        }
        let mut random = StdRng::seed_from_u64(self.shape.seed);
        for (u, elements, bound) in drawn {
            self.resizing.replace(u, (0..elements).map(|_| random.random_range(-bound..=bound)).collect());
        }
        Ok(())
    }

    /// Weights of FFNs that the learngene shares become each layer's own.
    fn separate_ffns(&self, graph: &mut GraphProto) {
        let shared: Vec<&Vec<usize>> = self.gene.ffn_groups.iter().filter(|g| g.len() > 1).collect();
        if shared.is_empty() {
            return;
        }
        graph::lift_constants(graph);
        let mut names = Names::new(graph);
        // Nodes moved when the graph was repaired and pruned; a node is known by its first output.
        let mut at: HashMap<String, usize> = HashMap::new();
        for (k, node) in graph.node.iter().enumerate() {
            if let Some(o) = node.output.first() {
                at.insert(o.clone(), k);
            }
        }
        let mut used: HashMap<String, usize> = HashMap::new();
        for (i, l) in self.kept.iter().enumerate() {
            if !shared.iter().any(|g| g.contains(l)) {
                continue;
            }
            for u in self.roles.layer_ffn_uses(&self.anatomy.layers[i]) {
                let of_use = &self.typing.uses[u];
                let Some(&k) = at.get(&self.typing.graph.node[of_use.node].output[0]) else { continue };
                let name = graph.node[k].input[of_use.input].clone();
                let times = used.entry(name.clone()).or_default();
                *times += 1;
                if *times > 1
                    && let Some(t) = graph.initializer.iter().find(|t| t.name() == name)
                {
                    let fresh = names.fresh(&format!("{name}_{times}"));
                    let clone = TensorProto { name: Some(fresh.clone()), ..t.clone() };
                    graph.initializer.push(clone);
                    graph.node[k].input[of_use.input] = fresh;
                }
            }
        }
    }

    /// Types the result, checks that it is what was planned, and measures it.
    fn describe(self, out: &mut Model, layers: Vec<PlannedLayer>) -> Result<DescendantPlan> {
        let child = out.clone();
        let typing = Typing::new(&child)?;
        let anatomy = Anatomy::new(&typing)?;
        let found: Vec<(usize, Vec<usize>)> =
            anatomy.layers.iter().map(|l| (l.query_heads(&typing), ffn_widths(&typing, l))).collect();
        // Counted on the side of the queries: what shares one last head of keys is heads of its own.
        let shared = self.anatomy.layers.iter().map(|l| self.typing.factors.size(&l.queries_per_kv_head));
        let widths = |l: &PlannedLayer| match l.ffn_widths.is_empty() {
            true => l.ffn_width.into_iter().collect(),
            false => l.ffn_widths.clone(),
        };
        let planned: Vec<_> = layers.iter().zip(shared).map(|(l, s)| (l.heads * s, widths(l))).collect();
        let channels = anatomy.layers.first().map(|l| typing.factors.size(&l.embedding));
        if found != planned || self.shape.embedding_dim.is_some_and(|n| Some(n) != channels) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the resized graph has (heads, FFN neurons) {found:?} on {channels:?} channels where {planned:?} \
                     was planned"
                ),
            )
            .at(&self.model.path)
            .hint("this graph ties axes in a way that Offshoot does not resize yet; keep its heads and widths"));
        }
        let transform = self.transform();
        let description = serde_json::json!({
            "schema": schema::DESCENDANT,
            "offshoot": env!("CARGO_PKG_VERSION"),
            "source": self.gene.source,
            "init": self.shape.init,
            "inherit": self.shape.inherit,
            "layers": layers,
            "embedding_dim": self.shape.embedding_dim,
            "image_size": self.shape.image_size,
            "transform": transform,
            "transform_rank":
                (transform == Transform::Affine).then(|| self.shape.transform_rank.unwrap_or(DEFAULT_RANK)),
            "projection": self.shape.projection,
            "tied": self.shape.tied,
            "seed": self.shape.seed,
        });
        out.set_metadata(DESCENDANT, description.to_string());
        Ok(DescendantPlan {
            schema: schema::PLAN,
            init: self.shape.init,
            layers,
            embedding_dim: self.shape.embedding_dim,
            image_size: self.shape.image_size,
            tokens: None,
            batch_axis: None,
            transform,
            classes: self.shape.classes,
            projection: self.shape.projection,
            parameters: parameters(out.graph()),
            macs: typing.macs(),
            bytes: encoded_len(&out.proto),
            int8: None,
            warnings: self.warnings,
            inexact: self.inexact,
            verification: None,
            configs: None,
        })
    }
}

/// Neurons of each FFN of a layer.
fn ffn_widths(typing: &Typing, layer: &Attention) -> Vec<usize> {
    layer.ffns.iter().map(|f| typing.factors.size(&f.hidden)).collect()
}

/// Output rows of each slot as sums of the ancestor's: those of all heads that the centroid stands for, over its slots.
fn matched(filled: &[&Cluster]) -> Vec<Vec<(usize, f32)>> {
    filled
        .iter()
        .map(|c| {
            let slots = filled.iter().filter(|o| o.centroid == c.centroid).count();
            c.members.iter().map(|&h| (h, 1.0 / slots as f32)).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matched_rows_divide_over_the_slots_of_a_cluster() {
        let (a, b) = (Cluster { members: vec![0, 2], centroid: 2 }, Cluster { members: vec![1], centroid: 1 });
        assert_eq!(matched(&[&a, &b]), [vec![(0, 1.0), (2, 1.0)], vec![(1, 1.0)]]);
        assert_eq!(matched(&[&a, &b, &a])[2], [(0, 0.5), (2, 0.5)]);
        assert_eq!(matched(&[&a]), [[(0, 1.0), (2, 1.0)]]);
    }
}
