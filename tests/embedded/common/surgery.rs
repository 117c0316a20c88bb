//! Surgery on every fixture against oracles that are computed on the exported graph itself, through a runtime.

use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayViewD};
use offshoot::anatomy::{Anatomy, Attention, Roles, Summed};
use offshoot::axes::resize::{ResizePlan, resize};
use offshoot::axes::{Factor, Typing};
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, Layers, Projection, grow};
use offshoot::graph::node;
use offshoot::learngene::{Centroid, Cluster, FfnCentroid, Learngene};
use offshoot::metadata::SHARE_PREFIX;
use offshoot::onnx::proto::TensorProto;
use offshoot::onnx::{Model, data_type, tensor_from_f32, to_f32};
use offshoot::runtime::Runtime;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Fixture, all_fixtures, texts};

/// Runs a model on images.
pub fn run(runtime: &Arc<Runtime>, model: &Model, x: &Array4<f32>) -> Result<Vec<ArrayD<f32>>, String> {
    let image = [x.shape()[2], x.shape()[3]];
    let mut session = runtime.load(model, x.shape()[0], image).map_err(|e| e.to_string())?;
    session.run(x.view()).map_err(|e| e.to_string())
}

/// Runs a model on arrays for its inputs; lengths that it leaves open are theirs.
pub fn run_on(
    runtime: &Arc<Runtime>,
    model: &Model,
    feeds: &[(String, ArrayD<f32>)],
) -> Result<Vec<ArrayD<f32>>, String> {
    let arrays: Vec<(&str, ArrayViewD<f32>)> =
        feeds.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
    let shape = feeds[0].1.shape();
    let mut session = runtime.load_open(model, shape[0], texts::image_size(feeds)).map_err(|e| e.to_string())?;
    session.run_on(&arrays).map_err(|e| e.to_string())
}

/// What a fixture is run on, an array for each input.
type Feeds = Vec<(String, ArrayD<f32>)>;

/// Two images, or a batch of three texts.
fn feeds(fixture: &Fixture) -> Feeds {
    match fixture.entry["texts"] == true {
        true => texts::feeds(fixture, 24),
        false => vec![("image".into(), images(fixture).into_dyn())],
    }
}

/// Largest error of any output, relative to the output's largest value.
pub fn error(a: &[ArrayD<f32>], b: &[ArrayD<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| {
            assert_eq!(a.shape(), b.shape());
            let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
            let difference = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
            if difference.is_nan() { f32::INFINITY } else { difference / largest.max(1e-6) }
        })
        .fold(0.0, f32::max)
}

/// Images as the fixture takes them.
pub fn images(fixture: &Fixture) -> Array4<f32> {
    fixture.ordered(channels_first(fixture))
}

/// The same images [n, channels, height, width], as files of images hold them.
pub fn channels_first(fixture: &Fixture) -> Array4<f32> {
    let size = |i: usize| fixture.entry["image"][i].as_u64().unwrap() as usize;
    let mut random = StdRng::seed_from_u64(7);
    Array4::from_shape_simple_fn((2, size(0), size(1), size(2)), || random.random_range(-2.0..2.0))
}

/// The same graph with parts of weights set to zero along axes: what is kept stays.
fn zeroed(model: &Model, typing: &Typing, summed: &[Summed], keep: &[usize]) -> Model {
    let roles = Roles::new(typing);
    let mut out = model.clone();
    for s in summed {
        let (of_use, axis, rows) = (&typing.uses[s.of_use], s.axis, roles.positions(s));
        let t = typing.weights[of_use.name.as_str()];
        let dims = t.shape();
        let after = dims[axis + 1..].iter().product::<usize>();
        let before = dims[..axis].iter().product::<usize>();
        let mut data = to_f32(t).unwrap();
        for b in 0..before {
            for row in rows.iter().enumerate().filter(|(n, _)| !keep.contains(n)).flat_map(|(_, rows)| rows) {
                data[(b * dims[axis] + row) * after..(b * dims[axis] + row + 1) * after].fill(0.0);
            }
        }
        set(
            &mut out,
            of_use.node,
            of_use.input,
            tensor_from_f32(format!("zeroed_{}", s.of_use), data_type(t).unwrap(), &dims, &data),
        );
    }
    out
}

fn set(model: &mut Model, node: usize, input: usize, tensor: TensorProto) {
    let graph = model.graph_mut();
    graph.node[node].input[input] = tensor.name().to_string();
    // An attention and an FFN may share a matrix.
    match graph.initializer.iter().find(|t| t.name() == tensor.name()) {
        Some(before) => assert_eq!(*before, tensor),
        None => graph.initializer.push(tensor),
    }
}

fn resized(model: &Model, typing: &Typing, plan: &ResizePlan) -> Model {
    let mut out = model.clone();
    *out.graph_mut() = resize(typing, plan).unwrap();
    Typing::new(&out).expect("the resized graph types");
    out
}

/// Attentions whose head factors are their own, each factor once.
fn headed<'a>(typing: &Typing, anatomy: &'a Anatomy) -> Vec<(&'a Attention, Vec<Factor>)> {
    let mut seen = Vec::new();
    anatomy
        .layers
        .iter()
        .chain(&anatomy.others)
        .map(|a| (a, a.head_factors(typing).iter().map(|&f| typing.factors.root(f)).collect::<Vec<_>>()))
        .filter(|(_, f)| {
            let new = !f.is_empty() && !f.iter().any(|f| seen.contains(f));
            seen.extend(f);
            new
        })
        .collect()
}

/// A fixture with what its properties are checked with.
struct Case<'c> {
    runtime: &'c Arc<Runtime>,
    fixture: &'c Fixture,
    model: &'c Model,
    typing: &'c Typing<'c>,
    anatomy: &'c Anatomy,
    roles: &'c Roles<'c, 'c>,
    x: Feeds,
    /// What the fixture itself says.
    base: Vec<ArrayD<f32>>,
    failures: Vec<String>,
}

/// What holds of every fixture.
const PROPERTIES: [fn(&mut Case); 8] = [
    |case| case.heads_may_be_permuted(),
    |case| case.heads_may_be_doubled(),
    |case| case.a_head_that_goes_takes_its_rows(),
    |case| case.a_neuron_that_goes_takes_its_rows(),
    |case| case.grown_whole_nothing_changes(),
    |case| case.a_layer_that_goes_adds_nothing(),
    |case| case.heads_and_neurons_are_counted(),
    |case| case.centroids_stand_for_their_clusters(),
];

/// All checks of one fixture; returns what failed.
pub fn check(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<String> {
    let model = fixture.open();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let roles = Roles::new(&typing);
    let x = feeds(fixture);
    let base = match run_on(runtime, &model, &x) {
        Ok(b) => b,
        Err(e) => return vec![format!("{}: {e}", fixture.name())],
    };
    let (model, typing, anatomy, roles) = (&model, &typing, &anatomy, &roles);
    let mut case = Case { runtime, fixture, model, typing, anatomy, roles, x, base, failures: Vec::new() };
    PROPERTIES.iter().for_each(|property| property(&mut case));
    case.failures
}

impl<'c> Case<'c> {
    /// Notes where a child does not say what its oracle says.
    fn expect(&mut self, what: &str, child: Model, truth: Result<Vec<ArrayD<f32>>, String>) {
        let verdict = match (self.run(&child), truth) {
            (Ok(a), Ok(b)) => {
                let e = error(&a, &b);
                if e <= self.fixture.tolerance() { None } else { Some(format!("relative error {e:e}")) }
            }
            (Err(e), _) => Some(format!("the child does not run: {e}")),
            (_, Err(e)) => Some(format!("the oracle does not run: {e}")),
        };
        self.failures.extend(verdict.map(|v| format!("{}: {what}: {v}", self.fixture.name())));
    }

    /// Notes where a child does not say what the fixture says.
    fn expect_same(&mut self, what: &str, child: Model) {
        self.expect(what, child, Ok(self.base.clone()));
    }

    fn run(&self, model: &Model) -> Result<Vec<ArrayD<f32>>, String> {
        run_on(self.runtime, model, &self.x)
    }

    fn attentions(&self) -> Vec<(&'c Attention, Vec<Factor>)> {
        headed(self.typing, self.anatomy)
    }

    /// What sums over the heads of an attention, in all attentions that have these heads.
    fn summing(&self, factors: &[Factor]) -> Vec<Summed> {
        let all = self.anatomy.layers.iter().chain(&self.anatomy.others);
        let mut sums: Vec<Summed> = all.flat_map(|a| self.roles.summing(a).unwrap()).collect();
        sums.retain(|s| factors.contains(&self.typing.factors.root(s.factor)));
        sums
    }

    fn resized(&self, plan: &ResizePlan) -> Model {
        resized(self.model, self.typing, plan)
    }

    /// A norm over the neurons makes removal inexact.
    fn has_normed_neurons(&self) -> bool {
        self.fixture.name().contains("eva02")
    }

    fn last(&self) -> usize {
        self.anatomy.layers.len() - 1
    }

    /// Permuted heads leave the outputs.
    fn heads_may_be_permuted(&mut self) {
        let attentions = self.attentions();
        let stay = self.fixture.entry["heads_stay"] == true;
        assert!(!attentions.is_empty() || stay, "{}: no heads", self.fixture.name());
        let mut plan = ResizePlan::default();
        for (a, f) in attentions.iter().flat_map(|(a, factors)| factors.iter().map(move |f| (a, f))) {
            let n = a.head_count(self.typing);
            plan.gather(&self.typing.factors, *f, (0..n).map(|i| (2 * n - 2 - i) % n).collect()).unwrap();
        }
        self.expect_same("heads permuted", self.resized(&plan));
    }

    /// Every head twice, with halved output rows, leaves the outputs.
    fn heads_may_be_doubled(&mut self) {
        let mut plan = ResizePlan::default();
        for (a, factors) in &self.attentions() {
            let n = a.head_count(self.typing);
            for f in factors {
                plan.gather(&self.typing.factors, *f, (0..2 * n).map(|i| i % n).collect()).unwrap();
            }
            for s in self.summing(factors) {
                let halves = (0..2 * n).map(|h| vec![(h % n, 0.5)]).collect();
                plan.spread(&self.typing.factors, s.of_use, s.axis, s.factor, halves);
            }
        }
        self.expect_same("heads doubled", self.resized(&plan));
    }

    /// Half the heads, and one head: the others' output rows at zero.
    fn a_head_that_goes_takes_its_rows(&mut self) {
        let mut random = StdRng::seed_from_u64(11);
        for one in [false, true] {
            let mut plan = ResizePlan::default();
            let mut oracle = self.model.clone();
            for (a, factors) in &self.attentions() {
                let n = a.head_count(self.typing);
                let first = random.random_range(0..n);
                let keep: Vec<usize> = if one { vec![first] } else { (0..n).filter(|h| h % 2 == first % 2).collect() };
                for f in factors {
                    plan.gather(&self.typing.factors, *f, keep.clone()).unwrap();
                }
                oracle = zeroed(&oracle, self.typing, &self.summing(factors), &keep);
            }
            let what = if one { "one head" } else { "half the heads" };
            self.expect(what, self.resized(&plan), self.run(&oracle));
        }
    }

    /// Half the FFN: the other neurons' rows at zero. Below a norm over the neurons they are permuted.
    fn a_neuron_that_goes_takes_its_rows(&mut self) {
        let (typing, normed) = (self.typing, self.has_normed_neurons());
        let mut plan = ResizePlan::default();
        let mut oracle = self.model.clone();
        for a in self.anatomy.layers.iter().chain(&self.anatomy.others) {
            let Some(ffn) = a.ffn() else { continue };
            let f = ffn.hidden_factor(typing).expect("neurons are one factor");
            let n = typing.factors.factor_size(f);
            let odd = || (0..n).filter(|i| i % 2 == 1).collect();
            let keep: Vec<usize> = if normed { (0..n).rev().collect() } else { odd() };
            plan.gather(&typing.factors, f, keep.clone()).unwrap();
            let down = self.roles.summed_over(ffn.down, f).unwrap();
            assert!(!down.is_empty());
            oracle = zeroed(&oracle, typing, &down, &keep);
        }
        self.expect("half the FFN", self.resized(&plan), self.run(&oracle));
    }

    fn identity(&self) -> Learngene {
        Learngene::identity(self.typing, self.anatomy)
    }

    /// Growing at full size is the identity.
    fn grown_whole_nothing_changes(&mut self) {
        let child = grow(self.model, &self.identity(), &GrowOptions::default()).unwrap();
        self.expect_same("identity", child.model);
    }

    /// A layer that is dropped equals one that adds nothing to the residual stream.
    fn a_layer_that_goes_adds_nothing(&mut self) {
        let last = self.last();
        for dropped in [0, last] {
            let kept = (0..=last).filter(|l| *l != dropped).collect();
            let shape = GrowOptions { layers: Layers::List(kept), ..GrowOptions::default() };
            let dropping = self.fixture.entry["dropping"].as_str().unwrap_or("exact");
            let refused = |e: &str| e.contains("cannot be dropped") || e.contains("at least one layer");
            let what = format!("layer {dropped} dropped");
            match grow(self.model, &self.identity(), &shape) {
                // Where a layer holds more than its attention and FFN (norms behind them, convolutions), it goes as a
                // whole.
                Ok(child) if dropping == "whole" => {
                    let which = if dropped == 0 { "first" } else { "last" };
                    let truth = match &self.fixture.entry["skips"][which] {
                        serde_json::Value::Array(ends) => skipping(self.model, ends),
                        _ => bypassed(self.model, &self.fixture.entry["residual_sums"][which]),
                    };
                    self.expect(&what, child.model, self.run(&truth));
                }
                Err(e) if dropping == "refused" && refused(&e.to_string()) => {}
                Ok(child) => self.expect(&what, child.model, self.run(&self.silenced(dropped))),
                Err(e) => self.expect(&what, self.model.clone(), Err(e.to_string())),
            }
        }
    }

    /// The graph with rows and biases of a layer's last matrices at zero.
    fn silenced(&self, layer: usize) -> Model {
        let mut out = self.model.clone();
        let a = &self.anatomy.layers[layer];
        for k in [Some(a.projection), a.ffn().map(|f| f.down)].into_iter().flatten() {
            let mut uses: Vec<usize> = self.roles.operand(k).into_iter().collect();
            uses.extend(self.roles.bias(k));
            for u in uses {
                let of_use = &self.typing.uses[u];
                let t = self.typing.weights[of_use.name.as_str()];
                if !offshoot::onnx::is_float(t) {
                    continue;
                }
                let dims = t.shape();
                let zeros = vec![0.0; dims.iter().product()];
                let tensor = tensor_from_f32(format!("nothing_{u}"), data_type(t).unwrap(), &dims, &zeros);
                set(&mut out, of_use.node, of_use.input, tensor);
            }
        }
        out
    }

    /// `--heads k` keeps the first k heads, `--width 0.5` leaves the outputs, twice the FFN leaves the outputs.
    fn heads_and_neurons_are_counted(&mut self) {
        let gene = self.identity();
        let child = |shape: GrowOptions| grow(self.model, &gene, &shape).unwrap().model;
        let one = child(GrowOptions { heads: Heads::Count(1), ..GrowOptions::default() });
        let doubled = child(GrowOptions { heads: Heads::Width(0.5), ..GrowOptions::default() });
        let ffn_width = FfnWidth::Percent(200.0);
        let wide = (!self.has_normed_neurons()).then(|| child(GrowOptions { ffn_width, ..GrowOptions::default() }));
        self.expect("--heads 1", one, self.run(&self.with_first_heads(self.model)));
        self.expect_same("--width 0.5", doubled);
        if let Some(wide) = wide {
            self.expect_same("--ffn-width 200%", wide);
        }
    }

    /// A graph with the output rows of all heads but the first of every layer at zero.
    fn with_first_heads(&self, model: &Model) -> Model {
        let first = |out, l| zeroed(&out, self.typing, &self.roles.summing(l).unwrap(), &[0]);
        self.anatomy.layers.iter().fold(model.clone(), first)
    }

    /// The learngene, and a descendant with one slot a cluster, equal the ancestor with every head's queries, keys and
    /// values replaced by its centroid's; sharing an FFN equals copying it. Heads that are mixed have no centroids that
    /// keep the function.
    fn centroids_stand_for_their_clusters(&mut self) {
        if self.anatomy.layers.iter().any(|l| !l.head_mixers.is_empty()) {
            return;
        }
        let (typing, anatomy, last) = (self.typing, self.anatomy, self.last());
        let mut gene = self.clustered();
        let mut oracle = with_centroids(self.model, typing, anatomy, &gene);
        let shares_ffn = gene.group_ffns(&format!("0-{last}"), typing, anatomy).is_ok();
        if shares_ffn {
            let first = self.ffn_uses(0);
            for l in 1..=last {
                for (u, v) in self.ffn_uses(l).into_iter().zip(&first) {
                    let of_use = &typing.uses[u];
                    oracle.graph_mut().node[of_use.node].input[of_use.input] = typing.uses[*v].name.clone();
                }
            }
        }
        let truth = self.run(&oracle);
        let condensed = gene.condense(self.model, typing, anatomy).unwrap();
        let read = Learngene::read(&condensed).unwrap().unwrap();
        assert_eq!(read, gene);
        self.expect("learngene", condensed.clone(), truth.clone());
        let counts: Vec<usize> = gene.layers.iter().map(Vec::len).collect();
        let shape = GrowOptions { heads: Heads::List(counts), ..GrowOptions::default() };
        let baked = grow(&condensed, &gene, &shape).unwrap();
        self.expect("one slot a cluster, matched", baked.model.clone(), truth.clone());
        let tied = grow(&condensed, &gene, &GrowOptions { tied: true, ..shape.clone() }).unwrap();
        self.expect("one slot a cluster, tied", tied.model.clone(), truth.clone());
        assert!(
            !baked.model.graph().node.iter().any(|n| n.name().starts_with(SHARE_PREFIX)),
            "baked means plain weights"
        );
        let fewer = tied.plan.parameters < baked.plan.parameters;
        assert!(last == 0 || !shares_ffn || fewer, "{}", self.fixture.name());
        let again = grow(&condensed, &gene, &GrowOptions::default()).unwrap();
        self.expect("all slots of a learngene", again.model, truth);

        // A projection that holds more than heads has no published columns.
        let holds_more = |l: &Attention| self.roles.summing(l).unwrap().iter().any(|s| self.roles.around(s).is_none());
        if anatomy.layers.iter().any(holds_more) {
            return;
        }
        // The published projection: head 0's output rows for slot 0, which holds the centroid of head 0's cluster.
        let shape = GrowOptions { heads: Heads::Count(1), projection: Projection::Paper, ..GrowOptions::default() };
        let child = grow(&condensed, &gene, &shape).unwrap();
        self.expect("paper projection", child.model, self.run(&self.with_first_heads(&oracle)));
        self.means_stand_for_their_clusters(gene, shares_ffn);
    }

    /// A gene in which every other head of a layer is one cluster.
    fn clustered(&self) -> Learngene {
        let mut gene = self.identity();
        let resizable = self.anatomy.layers.iter().map(|l| l.head_factor(self.typing).is_some());
        for (clusters, _) in gene.layers.iter_mut().zip(resizable).filter(|(_, resizable)| *resizable) {
            let n = clusters.len();
            let members: Vec<usize> = (0..n).filter(|h| h % 2 == 0 || n == 2).collect();
            let centroid = *members.last().unwrap();
            let rest: Vec<usize> = (0..n).filter(|h| !members.contains(h)).collect();
            *clusters = vec![Cluster { members, centroid }];
            clusters.extend(rest.into_iter().map(|h| Cluster { members: vec![h], centroid: h }));
        }
        gene
    }

    fn ffn_uses(&self, layer: usize) -> Vec<usize> {
        self.roles.ffn_uses(self.anatomy.layers[layer].ffn().unwrap())
    }

    /// The same with means of heads, and of FFNs where they can be shared.
    fn means_stand_for_their_clusters(&mut self, mut gene: Learngene, shares_ffn: bool) {
        let (typing, anatomy, last) = (self.typing, self.anatomy, self.last());
        gene.centroid = Centroid::Mean;
        gene.ffn_groups = (0..=last).map(|l| vec![l]).collect();
        let oracle = with_centroids(self.model, typing, anatomy, &gene);
        self.expect("mean centroids", gene.condense(self.model, typing, anatomy).unwrap(), self.run(&oracle));
        if !shares_ffn {
            return;
        }
        gene.centroid = Centroid::Nearest;
        gene.ffn_centroid = FfnCentroid::Mean;
        gene.ffn_groups = vec![(0..=last).collect()];
        let mut oracle = with_centroids(self.model, typing, anatomy, &gene);
        let uses: Vec<Vec<usize>> = (0..=last).map(|l| self.ffn_uses(l)).collect();
        for i in 0..uses[0].len() {
            let tensors: Vec<_> = uses.iter().map(|u| typing.weights[typing.uses[u[i]].name.as_str()]).collect();
            let data: Vec<Vec<f32>> = tensors.iter().map(|t| to_f32(t).unwrap()).collect();
            let mean: Vec<f32> =
                (0..data[0].len()).map(|e| data.iter().map(|d| d[e]).sum::<f32>() / data.len() as f32).collect();
            let dims = tensors[0].shape();
            for u in uses.iter().map(|u| u[i]) {
                let of_use = &typing.uses[u];
                let t = tensor_from_f32(format!("mean_{u}"), data_type(tensors[0]).unwrap(), &dims, &mean);
                set(&mut oracle, of_use.node, of_use.input, t);
            }
        }
        self.expect("mean FFNs", gene.condense(self.model, typing, anatomy).unwrap(), self.run(&oracle));
    }
}

/// The graph with some residual sums by-passed: what each adds to, its first operand, is passed on.
fn bypassed(model: &Model, sums: &serde_json::Value) -> Model {
    let mut out = model.clone();
    for sum in sums.as_array().expect("residual sums of the layer").iter().map(|sum| sum.as_str().unwrap()) {
        let graph = out.graph_mut();
        let node = graph.node.iter().find(|n| n.output.iter().any(|o| o == sum)).expect("the sum is in the graph");
        assert_eq!(node.op_type(), "Add", "{sum}");
        let stream = node.input[0].clone();
        for input in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|x| *x == sum) {
            *input = stream.clone();
        }
    }
    out
}

/// The graph in which the first of two values is the second, which stands before it.
fn skipping(model: &Model, ends: &[serde_json::Value]) -> Model {
    let [leave, enter] = ends else { panic!("two values: {ends:?}") };
    let (leave, enter) = (leave.as_str().unwrap(), enter.as_str().unwrap());
    let mut out = model.clone();
    let nodes = &mut out.graph_mut().node;
    let at = nodes.iter().position(|n| n.output.iter().any(|o| o == leave)).expect("the value is in the graph");
    nodes[at].output.iter_mut().filter(|o| *o == leave).for_each(|o| *o = format!("{leave}_skipped"));
    nodes.insert(at + 1, node("Identity", &[enter], &[leave], vec![]));
    out
}

/// The elements of every head where its factor lies inside the segments of one axis.
fn segmented(typing: &Typing, dims: &[offshoot::axes::Dim], factor: Factor, heads: usize) -> Vec<Vec<usize>> {
    let factors = &typing.factors;
    let mut out = vec![Vec::new(); heads];
    let whole: Vec<usize> = dims.iter().map(|d| factors.size(d)).collect();
    let axis = dims.iter().position(|d| factors.all_leaves(d).contains(&factors.root(factor))).unwrap();
    let (before, after) = (whole[..axis].iter().product::<usize>(), whole[axis + 1..].iter().product::<usize>());
    let (mut start, width) = (0, whole[axis]);
    for segment in factors.segments(&dims[axis]).expect("segments") {
        let leaves = factors.leaves(&segment);
        let n = factors.size(&segment);
        if let Some(at) = leaves.iter().position(|&l| l == factors.root(factor)) {
            let inner = factors.size(&leaves[at + 1..]);
            for i in 0..n {
                let own = (0..before).flat_map(|b| (0..after).map(move |a| (b * width + start + i) * after + a));
                out[i / inner % heads].extend(own);
            }
        }
        start += n;
    }
    out
}

/// The graph with the queries, keys and values of every head written over by those of its cluster's centroid.
fn with_centroids(model: &Model, typing: &Typing, anatomy: &Anatomy, gene: &Learngene) -> Model {
    let roles = Roles::new(typing);
    let mut out = model.clone();
    // What sums over heads is each layer's own, also where layers have their heads in common.
    let sums: Vec<usize> = anatomy.layers.iter().flat_map(|l| roles.summing(l).unwrap()).map(|s| s.of_use).collect();
    for (l, clusters) in anatomy.layers.iter().zip(&gene.layers) {
        for (u, f) in roles.head_uses(l) {
            assert!(!sums.contains(&u), "`{}` sums over heads", typing.uses[u].name);
            let of_use = &typing.uses[u];
            let t = typing.weights[of_use.name.as_str()];
            let dims = t.shape();
            let heads = l.head_count(typing);
            let sources =
                |c: &Cluster| if gene.centroid == Centroid::Mean { c.members.clone() } else { vec![c.centroid] };
            let old = to_f32(t).unwrap();
            let mut data = old.clone();
            // Elements of a head: in the plain case a block, else wherever a segment of the axis holds it.
            let blocks: Vec<Vec<usize>> = match roles.place(u, f) {
                Some((axis, outer, inner)) => {
                    let after = inner * dims[axis + 1..].iter().product::<usize>();
                    let before = outer * dims[..axis].iter().product::<usize>();
                    let of =
                        |h: usize| (0..before).flat_map(move |b| (0..after).map(move |i| (b * heads + h) * after + i));
                    (0..heads).map(|h| of(h).collect()).collect()
                }
                None => segmented(typing, &of_use.dims, f, heads),
            };
            for c in clusters {
                for &h in &c.members {
                    for (i, &at) in blocks[h].iter().enumerate() {
                        let sum: f32 = sources(c).iter().map(|&s| old[blocks[s][i]]).sum();
                        data[at] = sum / sources(c).len() as f32;
                    }
                }
            }
            set(
                &mut out,
                of_use.node,
                of_use.input,
                tensor_from_f32(format!("replaced_{u}"), data_type(t).unwrap(), &dims, &data),
            );
        }
    }
    out
}

/// All checks of all fixtures of images.
pub fn check_all(runtime: &Arc<Runtime>) {
    check_each(runtime, &all_fixtures());
}

/// All checks of fixtures of texts.
pub fn check_texts(runtime: &Arc<Runtime>) {
    check_each(runtime, &texts::tried(runtime));
}

fn check_each(runtime: &Arc<Runtime>, all: &[Fixture]) {
    // To look at a few: OFFSHOOT_FIXTURE=timm-swin,grouped
    let some = std::env::var("OFFSHOOT_FIXTURE").unwrap_or_default();
    let wanted = |f: &&Fixture| f.runs_on(runtime) && some.split(',').any(|s| f.name().contains(s));
    let chosen: Vec<&Fixture> = all.iter().filter(wanted).collect();
    assert!(!chosen.is_empty(), "no fixture is called `{some}`");
    let failures: Vec<String> = chosen.into_iter().flat_map(|f| check(runtime, f)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
