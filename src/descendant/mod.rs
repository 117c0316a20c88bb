//! Descendants: models of another scale that inherit a learngene.
//!
//! Layers that are not wanted are by-passed in the residual stream. Slot i of a layer's heads receives the centroid of cluster
//! i mod m, big clusters first (priority weight-sharing); its output rows follow by the chosen rule. FFN neurons follow their
//! clusters in the same way, or are kept by the size of what they pass on. Everything else is inherited as it is. The methods that Cluster-Learngene is compared with are
//! other ways to fill the same shapes ([`Init`]). Weights that layers share may get a small learnable transform in each
//! ([`Transform`]), which [`simplify`] computes away once it is trained.

mod choice;
mod constant_folding;
mod depth;
mod image;
mod init;
mod layers;
mod numbers;
mod resample;
mod scales;
mod simplify;
mod taps;
mod transform;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Serialize, Serializer};

use crate::anatomy::{Anatomy, Attention, FeedForward, Roles, class_factors, other_outputs, unit_norms};
use crate::axes::resize::{Mixture, Plan as Resizing, resize};
use crate::axes::{Factor, Typing, declared_batch, fix_batch, open_batch};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, FloatType};
use crate::learngene::{Cluster, Kept, Kind, Learngene, Order, ordered, parameters};
use crate::metadata::{CLASSES, DESCENDANT, LEARNGENE, SHARE_PREFIX, schema};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{
    Model, element_count, encoded_len, node_label, payload, squares_along, tensor_from_i64, tensor_from_raw, to_i64,
};
use crate::runtime::Runtime;
pub use choice::{FfnWidth, Heads, LayerHeads, Layers};
pub use constant_folding::{fold_constants, has_fixed_size};
pub use depth::{Shallow, keep_layers};
pub use image::resize_image;
pub use init::{Inherit, Init, LayerSource};
pub use simplify::simplify;
pub use transform::{DEFAULT_RANK, Transform};
pub use verify::{
    Case, Check, Checked, Grown, MACS_PER_SECOND, Outcome, Verification, Verifier, cost, predicted_seconds,
};

/// How the output projection follows the heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// As the published code: the first columns, or every column repeated; whichever heads fill the slots.
    Paper,
    /// A slot's output rows are the sum of the rows of all heads that its centroid stands for, divided over the slots that
    /// hold it.
    #[default]
    Matched,
    /// As matched, and then fitted in closed form to the ancestor on images ([`crate::fitting`]), with the last FFN matrices.
    Fitted,
}

/// Images in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchAxis {
    /// Any number.
    Open,
    /// So many.
    Fixed(usize),
}

impl Serialize for BatchAxis {
    /// `open`, or the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            BatchAxis::Open => serializer.serialize_str("open"),
            BatchAxis::Fixed(images) => images.serialize(serializer),
        }
    }
}

/// What a descendant is to be.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Its layers.
    pub layers: Layers,
    /// Its heads.
    pub heads: Heads,
    /// The width of its FFNs.
    pub ffn_width: FfnWidth,
    /// Classes of a new classifier.
    pub classes: Option<usize>,
    /// The order in which clusters fill slots.
    pub order: Order,
    /// How the output projection follows the heads.
    pub projection: Projection,
    /// Keep shared weights shared: one tensor a centroid and an FFN.
    pub tied: bool,
    /// How the weights come about.
    pub init: Init,
    /// Which layers inherit, where the method inherits only some.
    pub inherit: Option<Inherit>,
    /// Consecutive layers that share weights, for the method that shares them; two where it is left open.
    pub share: Option<usize>,
    /// Channels of the residual stream, for the methods that define another number.
    pub embedding_dim: Option<usize>,
    /// How a layer transforms weights that it shares with others. Left open, [`Init::WeightTransformation`] transforms
    /// and others do not.
    pub transform: Option<Transform>,
    /// Rank of the low-rank part of an affine transform.
    pub transform_rank: Option<usize>,
    /// Height and width of its images, in pixels.
    pub image_size: Option<[usize; 2]>,
    /// Seed of what is drawn at random (a new classifier, layers that are not inherited).
    pub seed: u64,
}

/// One layer of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// The ancestor's layer that it is built like.
    pub ancestor_layer: usize,
    /// Where its weights come from.
    pub source: LayerSource,
    /// Heads.
    pub heads: usize,
    /// The ancestor's head that each slot receives; none where weights are not inherited as they are.
    pub slots: Vec<usize>,
    /// Neurons of the FFN, where there is one.
    pub ffn_width: Option<usize>,
    /// The ancestor's neuron in each place of the FFN; empty where all stay, and where weights are not inherited as they are.
    #[serde(skip)]
    pub neurons: Vec<usize>,
}

/// What growing does, and how large the result is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// [`schema::PLAN`].
    pub schema: &'static str,
    /// How the weights come about.
    pub init: Init,
    /// The layers.
    pub layers: Vec<PlannedLayer>,
    /// Channels of the residual stream, where they were asked for.
    pub embedding_dim: Option<usize>,
    /// Height and width of the images, where they were asked for.
    pub image_size: Option<[usize; 2]>,
    /// Images in a batch, `open` for any number, where that was asked for.
    pub batch_axis: Option<BatchAxis>,
    /// How layers transform the weights that they share.
    pub transform: Transform,
    /// Classes of the new classifier, where there is one.
    pub classes: Option<usize>,
    /// How the output projection follows the heads.
    pub projection: Projection,
    /// Parameters.
    pub parameters: u64,
    /// Multiply-accumulate operations for one image.
    pub macs: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Those warnings that say why what is left is not what it was in the ancestor.
    #[serde(skip)]
    pub inexact: Vec<String>,
    /// What came of its verification, where there was to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// A descendant that was grown in memory.
#[derive(Debug)]
pub struct Descendant {
    /// The model.
    pub model: Model,
    /// How it came about.
    pub plan: Plan,
}

impl Descendant {
    /// Computes what is constant at its image size: see [`fold_constants`].
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where layers transform shared weights, which is still to be trained; those of [`fold_constants`].
    pub fn fold_constants(&mut self, runtime: &Arc<Runtime>, image: Option<[usize; 2]>) -> Result<()> {
        if self.plan.transform != Transform::None {
            return Err(Error::new(ErrorKind::Usage, "folding would compute the transforms of shared weights away")
                .hint("tune the descendant first, or give --transform none"));
        }
        self.model = fold_constants(runtime, &self.model, image)?;
        self.plan.parameters = parameters(self.model.graph());
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }

    /// Gives it batches of another size: shapes that hold the one of its file are opened first, see [`open_batch`].
    ///
    /// # Errors
    /// Those of [`open_batch`].
    pub fn batch(&mut self, axis: BatchAxis) -> Result<()> {
        self.plan.batch_axis = Some(axis);
        if let BatchAxis::Fixed(images) = axis
            && declared_batch(&self.model) == Some(images)
        {
            return Ok(());
        }
        self.model = open_batch(&self.model)?;
        if let BatchAxis::Fixed(images) = axis {
            fix_batch(&mut self.model, images);
        }
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }

    /// Makes it compute in another floating-point type, but for the nodes that make or take some values, where images were looked at for
    /// them: see [`graph::convert_but`].
    ///
    /// # Errors
    /// Those of [`graph::convert`].
    pub fn convert(&mut self, to: FloatType, wide: Option<&HashSet<String>>) -> Result<()> {
        let none = HashSet::new();
        self.plan.warnings.extend(graph::convert_but(&mut self.model, to, wide.unwrap_or(&none))?);
        self.plan.warnings.extend(to.caution(wide.is_some()).map(str::to_string));
        self.plan.parameters = parameters(self.model.graph());
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }
}

/// Grows a descendant from a learngene model (or from an ancestor with the identity learngene).
///
/// # Errors
/// [`ErrorKind::Usage`] for a shape that cannot be, [`ErrorKind::Unsupported`] where the graph does not allow it.
pub fn grow(model: &Model, gene: &Learngene, shape: &Shape) -> Result<Descendant> {
    init::check(shape, model.metadata(LEARNGENE).is_some())?;
    let resized = shape.image_size.map(|size| resize_image(model, size)).transpose()?;
    let model = resized.as_ref().unwrap_or(model);
    let bare = shape.classes.map_or(Ok(None), |_| without_unit_norm(model))?;
    let mut child = grow_layers(bare.as_ref().unwrap_or(model), gene, shape)?;
    if bare.is_some() {
        child.plan.warnings.push("the norm that made unit vectors of the old logits went with their classifier".into());
    }
    Ok(child)
}

/// The model without the norm that makes a unit vector of its logits, where there is one: behind a new classifier it would keep every
/// loss from its least value.
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

fn grow_layers(model: &Model, gene: &Learngene, shape: &Shape) -> Result<Descendant> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    gene.check(&typing, &anatomy)?;
    if anatomy.layers.is_empty() {
        return Err(Error::new(ErrorKind::Anatomy, "the model has no self-attention layer to inherit").at(&model.path));
    }
    let (kept, sources) = init::layers(shape, &anatomy.stacks)?;
    let mut warnings = choice::check_stacks(&typing, &anatomy, &shape.layers, &kept)?;
    let ancestor = match shape.init {
        Init::ClusterLearngene => None,
        _ => Some(init::Ancestor::new(&typing, &anatomy)),
    };
    if kept.len() == anatomy.layers.len() {
        return Grower::new(model, &typing, &anatomy, gene, shape, kept, sources).grow(ancestor);
    }
    let shallow = depth::keep_layers(model, &typing, &anatomy, &kept)?;
    let typing = Typing::new(&shallow.model)?;
    let anatomy = Anatomy::new(&typing)?;
    if anatomy.layers.len() != kept.len() {
        let message = format!("dropping layers left {} attentions and not {}", anatomy.layers.len(), kept.len());
        let hint = match shallow.warnings.first() {
            Some(why) => format!("{why}; cut such outputs from the model first"),
            None => "choose other layers with --layers".into(),
        };
        return Err(Error::new(ErrorKind::Unsupported, message).hint(hint));
    }
    warnings.extend(shallow.warnings);
    let mut grower = Grower::new(&shallow.model, &typing, &anatomy, gene, shape, kept, sources);
    grower.warnings = warnings;
    grower.grow(ancestor)
}

/// True where a norm takes its statistics over the factor.
pub fn norm_over(typing: &Typing, factor: Factor) -> bool {
    let reduces = |op: &str| op.contains("Normalization") || op == "ReduceMean";
    let root = typing.factors.root(factor);
    typing.graph.node.iter().filter(|n| reduces(n.op_type())).any(|n| {
        let dims = n.input.first().and_then(|x| typing.dims.get(x.as_str()));
        dims.and_then(|d| d.last()).is_some_and(|last| typing.factors.leaves(last).contains(&root))
    })
}

/// What is to be said of a layer whose heads or neurons `mixers` take together beside the projection that sums over them, if any do.
pub(crate) fn mixed_elsewhere(typing: &Typing, layer: usize, kind: Kind, mixers: &[usize]) -> Option<String> {
    let node = &typing.graph.node[*mixers.first()?];
    let more = match mixers.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let (units, projection) = match kind {
        Kind::Heads => ("heads", "output projection"),
        Kind::Neurons => ("neurons", "last matrix of the FFN"),
    };
    Some(format!(
        "layer {layer}: its {units} are also taken together in node `{}` ({}){more}, beside the {projection}: what is left misses there \
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
    gene: &'a Learngene,
    shape: &'a Shape,
    kept: Vec<usize>,
    sources: Vec<LayerSource>,
    resizing: Resizing,
    warnings: Vec<String>,
    inexact: Vec<String>,
}

impl<'a, 'm> Grower<'a, 'm> {
    fn new(
        model: &'a Model,
        typing: &'a Typing<'m>,
        anatomy: &'a Anatomy,
        gene: &'a Learngene,
        shape: &'a Shape,
        kept: Vec<usize>,
        sources: Vec<LayerSource>,
    ) -> Self {
        Grower {
            model,
            typing,
            anatomy,
            roles: Roles::new(typing),
            gene,
            shape,
            kept,
            sources,
            resizing: Resizing::default(),
            warnings: Vec::new(),
            inexact: Vec::new(),
        }
    }

    /// Warns of what keeps the rest of a layer from being what it was.
    fn warn_inexact(&mut self, warning: String) {
        self.inexact.push(warning.clone());
        self.warnings.push(warning);
    }

    fn grow(mut self, ancestor: Option<init::Ancestor>) -> Result<Descendant> {
        let heads: Vec<LayerHeads> = self
            .anatomy
            .layers
            .iter()
            .zip(&self.kept)
            .map(|(l, &layer)| LayerHeads {
                layer,
                heads: l.head_count(self.typing),
                resizable: !l.head_factors(self.typing).is_empty(),
            })
            .collect();
        let (counts, warnings) = self.shape.heads.resolve(&heads)?;
        self.warnings.extend(warnings);
        let (typing, anatomy) = (self.typing, self.anatomy);
        let (mut mixers, mut neuron_mixers) = (None, None);
        let mut layers = Vec::new();
        for (i, &count) in counts.iter().enumerate() {
            let slots = self.heads(i, count)?;
            let layer = &self.anatomy.layers[i];
            if count < layer.head_count(self.typing)
                && layer.head_factor(self.typing).is_some_and(|f| norm_over(self.typing, f))
            {
                let l = self.kept[i];
                self.warn_inexact(format!(
                    "layer {l}: a norm runs over all heads together, so its statistics change with their number"
                ));
            }
            if count < layer.head_count(self.typing) && !layer.mixings.is_empty() {
                let l = self.kept[i];
                self.warnings
                    .push(format!("layer {l}: heads are mixed, so what is left misses those that were removed"));
            }
            let heads = layer.head_count(self.typing);
            if count != heads || !(slots.is_empty() || slots.iter().copied().eq(0..heads)) {
                let mixers = mixers.get_or_insert_with(|| anatomy.head_mixers(typing));
                mixed_elsewhere(typing, self.kept[i], Kind::Heads, &mixers[i])
                    .into_iter()
                    .for_each(|warning| self.warn_inexact(warning));
            }
            let (ffn_width, neurons) = self.ffn(i)?;
            let width = layer.ffn.as_ref().map(|f| typing.factors.size(&f.hidden));
            if ffn_width != width {
                let mixers = neuron_mixers.get_or_insert_with(|| anatomy.neuron_mixers(typing));
                mixed_elsewhere(typing, self.kept[i], Kind::Neurons, &mixers[i])
                    .into_iter()
                    .for_each(|warning| self.warn_inexact(warning));
            }
            let source = self.sources[i];
            layers.push(PlannedLayer { ancestor_layer: self.kept[i], source, heads: count, slots, ffn_width, neurons });
        }
        if let Some(channels) = self.shape.embedding_dim {
            self.embedding(channels)?;
        }
        if let Some(classes) = self.shape.classes {
            self.classifier(classes)?;
        }
        if let Some(ancestor) = ancestor {
            self.initialise(&ancestor)?;
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
            .hint("keep more layers with --layers, or condense with a larger --ffn-eps or with --ffn-clusters"));
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
        if let Some(kept) = self.removal(l, Kind::Heads).filter(|kept| count <= kept.units()) {
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
        for factor in factors {
            self.resizing.gather(&self.typing.factors, factor, slots.clone()).map_err(|e| {
                e.hint(format!(
                    "layer {l} shares its head axis with another layer: give both the same heads and --eps 0"
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
        for (u, factor) in self.roles.summing_uses(layer) {
            match self.shape.projection {
                Projection::Matched | Projection::Fitted => {
                    self.resizing.spread(&self.typing.factors, u, factor, rows.clone());
                }
                Projection::Paper if projection.contains(&u) => {
                    let (axis, mixture) = self.published_columns(u, layer, factor, count)?;
                    self.resizing.mix(u, axis, mixture);
                }
                Projection::Paper => {}
            }
        }
        Ok(slots)
    }

    /// The published code's output projection: a prefix of the columns, or each column repeated.
    fn published_columns(&self, u: usize, layer: &Attention, factor: Factor, count: usize) -> Result<(usize, Mixture)> {
        let (axis, outer, inner) = self.roles.place(u, factor).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the axis of `{}` holds more than heads and has no published columns",
                    self.typing.uses[u].name
                ),
            )
            .hint("use `--projection matched`")
        })?;
        let heads = layer.head_count(self.typing);
        let column = |j: usize| if count <= heads { j } else { j * heads / count };
        let mut mixture = Vec::with_capacity(outer * count * inner);
        for o in 0..outer {
            mixture.extend((0..count * inner).map(|j| vec![(o * heads * inner + column(j), 1.0)]));
        }
        Ok((axis, mixture))
    }

    /// Plans the FFN of one layer. Returns its width, and the ancestor's neuron in each place where that is another.
    fn ffn(&mut self, i: usize) -> Result<(Option<usize>, Vec<usize>)> {
        let Some(ffn) = &self.anatomy.layers[i].ffn else { return Ok((None, Vec::new())) };
        let width = self.typing.factors.size(&ffn.hidden);
        let wanted = self.shape.ffn_width.resolve(width);
        if wanted == width {
            return Ok((Some(width), Vec::new()));
        }
        if wanted < 2 {
            bail!(Usage, "layer {} was given {wanted} FFN neuron(s); an FFN needs at least two", self.kept[i]);
        }
        let Some(factor) = ffn.hidden_factor(self.typing) else {
            self.warnings.push(format!("layer {} keeps its FFN: its neurons have no axis of their own", self.kept[i]));
            return Ok((Some(width), Vec::new()));
        };
        if norm_over(self.typing, factor) {
            self.warn_inexact(format!(
                "layer {}: a norm runs over the FFN's neurons, so its statistics change with their number",
                self.kept[i]
            ));
        }
        if self.shape.init != Init::ClusterLearngene {
            let neurons = self.plain_neurons(factor, wanted)?;
            return Ok((Some(wanted), neurons));
        }
        let clusters = self.gene.neurons(self.kept[i]);
        let removal = self.removal(self.kept[i], Kind::Neurons).filter(|_| wanted < width);
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
            let down = self.roles.operand(ffn.down);
            for u in self.roles.carriers(factor).into_iter().filter(|u| down.contains(u)) {
                self.resizing.spread(&self.typing.factors, u, factor, rows.clone());
            }
        }
        self.resizing.gather(&self.typing.factors, factor, neurons.clone())?;
        Ok((Some(wanted), neurons))
    }

    /// Which units of a layer stay, where the learngene knows it.
    fn removal(&self, layer: usize, kind: Kind) -> Option<&'a Kept> {
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

    /// A new classifier, drawn as torch's nn.Linear draws it, for every output that holds classes. What stands behind the old one, a
    /// Softmax say, stands behind it.
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
            .hint("leave --classes out: the descendant keeps the ancestor's outputs"));
        }
        let first = self.typing.factors.factor_size(factors[0]);
        for (output, n) in other_outputs(self.typing) {
            self.warnings.push(format!(
                "the output `{output}` stays as it is: it holds {n} values an image, and the classes that are replaced are {first}"
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
        let mut names = graph::Names::new(graph);
        // Nodes moved when the graph was repaired and pruned; a node is known by its first output.
        let mut at: HashMap<String, usize> = HashMap::new();
        for (k, node) in graph.node.iter().enumerate() {
            if let Some(o) = node.output.first() {
                at.insert(o.clone(), k);
            }
        }
        let mut used: HashMap<String, usize> = HashMap::new();
        for (i, l) in self.kept.iter().enumerate() {
            let Some(ffn) = &self.anatomy.layers[i].ffn else { continue };
            if !shared.iter().any(|g| g.contains(l)) {
                continue;
            }
            for u in self.roles.ffn_uses(ffn) {
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
    fn describe(self, out: &mut Model, layers: Vec<PlannedLayer>) -> Result<Plan> {
        let child = out.clone();
        let typing = Typing::new(&child)?;
        let anatomy = Anatomy::new(&typing)?;
        let found: Vec<(usize, Option<usize>)> = anatomy
            .layers
            .iter()
            .map(|l| (l.query_heads(&typing), l.ffn.as_ref().map(|f| typing.factors.size(&f.hidden))))
            .collect();
        // Counted on the side of the queries: what shares one last head of keys is heads of its own.
        let shared = self.anatomy.layers.iter().map(|l| self.typing.factors.size(&l.shared));
        let planned: Vec<_> = layers.iter().zip(shared).map(|(l, s)| (l.heads * s, l.ffn_width)).collect();
        let channels = anatomy.layers.first().map(|l| typing.factors.size(&l.embedding));
        if found != planned || self.shape.embedding_dim.is_some_and(|n| Some(n) != channels) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the resized graph has (heads, FFN neurons) {found:?} on {channels:?} channels where {planned:?} was planned"
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
            "transform_rank": (transform == Transform::Affine).then(|| self.shape.transform_rank.unwrap_or(DEFAULT_RANK)),
            "projection": self.shape.projection,
            "tied": self.shape.tied,
            "seed": self.shape.seed,
        });
        out.set_metadata(DESCENDANT, description.to_string());
        Ok(Plan {
            schema: schema::PLAN,
            init: self.shape.init,
            layers,
            embedding_dim: self.shape.embedding_dim,
            image_size: self.shape.image_size,
            batch_axis: None,
            transform,
            classes: self.shape.classes,
            projection: self.shape.projection,
            parameters: parameters(out.graph()),
            macs: typing.macs(),
            bytes: encoded_len(&out.proto),
            warnings: self.warnings,
            inexact: self.inexact,
            verification: None,
        })
    }
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

/// A lookup of centroids: the nodes and their operands.
struct Lookup {
    gather: usize,
    data: usize,
    slots: usize,
    axis: usize,
}

fn lookups(graph: &GraphProto) -> Vec<Lookup> {
    let position: HashMap<&str, usize> = graph.initializer.iter().enumerate().map(|(i, t)| (t.name(), i)).collect();
    graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, n)| n.op_type() == "Gather" && n.name().starts_with(SHARE_PREFIX))
        .filter_map(|(gather, n)| {
            let data = *position.get(n.input.first()?.as_str())?;
            let slots = *position.get(n.input.get(1)?.as_str())?;
            let axis = usize::try_from(n.int("axis").unwrap_or(0)).ok()?;
            (axis < graph.initializer[data].dims.len()).then_some(Lookup { gather, data, slots, axis })
        })
        .collect()
}

/// What a lookup gives.
fn look_up(data: &TensorProto, slots: &[i64], axis: usize) -> Result<TensorProto> {
    let mut dims = data.shape();
    let list: Vec<usize> =
        slots.iter().map(|&s| usize::try_from(s).ok().filter(|&s| s < dims[axis])).collect::<Option<_>>().ok_or_else(
            || Error::new(ErrorKind::Format, format!("slots {slots:?} name centroids that `{}` lacks", data.name())),
        )?;
    let bytes = payload(data);
    let size = bytes.len() / element_count(data)?.max(1);
    let taken = crate::axes::resize::take(&bytes, &dims, axis, &list, size);
    dims[axis] = list.len();
    let kind = crate::onnx::data_type(data).unwrap_or(crate::onnx::DataType::Float);
    Ok(tensor_from_raw(data.name(), kind, &dims, taken.into()))
}

/// Writes every looked-up weight out, so that a deployer sees plain weights.
fn bake(graph: &mut GraphProto) -> Result<()> {
    let found = lookups(graph);
    if found.is_empty() {
        return Ok(());
    }
    let mut baked: HashMap<String, TensorProto> = HashMap::new();
    let mut gone = Vec::new();
    for lookup in &found {
        let gather = &graph.node[lookup.gather];
        let tensor = look_up(&graph.initializer[lookup.data], &to_i64(&graph.initializer[lookup.slots])?, lookup.axis)?;
        let gathered = gather.output[0].clone();
        gone.push(lookup.gather);
        let reshape = graph.node.iter().enumerate().find(|(_, n)| n.op_type() == "Reshape" && n.input[0] == gathered);
        let Some((k, reshape)) = reshape else {
            bail!(Format, "the lookup `{gathered}` of the learngene has lost its Reshape");
        };
        let target = graph.initializer.iter().find(|t| t.name() == reshape.input[1]);
        let Some(target) = target else { bail!(Format, "the Reshape of `{gathered}` has no constant shape") };
        let dims = to_i64(target)?;
        let name = reshape.output[0].clone();
        gone.push(k);
        let elements = element_count(&tensor)?;
        let tensor = TensorProto { name: Some(name.clone()), dims, ..tensor };
        if element_count(&tensor)? != elements {
            bail!(Format, "the lookup `{name}` of the learngene does not fit its shape");
        }
        baked.insert(name, tensor);
    }
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        !gone.contains(&(k - 1))
    });
    let mut list: Vec<TensorProto> = baked.into_values().collect();
    list.sort_by(|a, b| a.name().cmp(b.name()));
    // The plain weight has its old name back where that is free.
    let mut names = graph::Names::new(graph);
    let old: std::collections::HashSet<String> = graph.initializer.iter().map(|t| t.name().to_string()).collect();
    for mut t in list {
        let shared = t.name().to_string();
        let plain = shared.strip_prefix(SHARE_PREFIX).unwrap_or(&shared).to_string();
        let name = if old.contains(&plain) { shared.clone() } else { names.fresh(&plain) };
        for node in &mut graph.node {
            node.input.iter_mut().filter(|x| **x == shared).for_each(|x| *x = name.clone());
        }
        t.name = Some(name);
        graph.initializer.push(t);
    }
    Ok(())
}

/// Drops centroids that no slot names.
fn compact(graph: &mut GraphProto) -> Result<()> {
    let mut names = graph::Names::new(graph);
    for lookup in lookups(graph) {
        let slots = to_i64(&graph.initializer[lookup.slots])?;
        let mut used: Vec<i64> = slots.clone();
        used.sort_unstable();
        used.dedup();
        if used.len() as i64 == graph.initializer[lookup.data].dims[lookup.axis] {
            continue;
        }
        let renumbered: Vec<i64> =
            slots.iter().map(|s| used.iter().position(|u| u == s).unwrap_or_default() as i64).collect();
        let data = look_up(&graph.initializer[lookup.data], &used, lookup.axis)?;
        let name = names.fresh(&format!("{}/used", graph.initializer[lookup.data].name()));
        let slots_name = names.fresh(&format!("{}/used", graph.initializer[lookup.slots].name()));
        graph.initializer.push(TensorProto { name: Some(name.clone()), ..data });
        graph.initializer.push(tensor_from_i64(slots_name.clone(), &[renumbered.len()], &renumbered));
        let gather = &mut graph.node[lookup.gather];
        gather.input[0] = name;
        gather.input[1] = slots_name;
    }
    Ok(())
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
