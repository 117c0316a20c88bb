//! Surgery on every fixture against oracles that are computed on the exported graph itself, through a runtime.

use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::anatomy::{Anatomy, Attention, Roles};
use offshoot::axes::resize::{Plan, resize};
use offshoot::axes::{Factor, Typing};
use offshoot::descendant::{FfnWidth, Heads, Layers, Projection, Shape, grow};
use offshoot::learngene::{Centroid, Cluster, FfnCentroid, Learngene};
use offshoot::metadata::SHARE_PREFIX;
use offshoot::onnx::proto::TensorProto;
use offshoot::onnx::{Model, data_type, tensor_from_f32, to_f32};
use offshoot::runtime::Runtime;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Fixture, all_fixtures};

/// Runs a model on images.
pub fn run(runtime: &Arc<Runtime>, model: &Model, x: &Array4<f32>) -> Result<Vec<ArrayD<f32>>, String> {
    let image = [x.shape()[2], x.shape()[3]];
    let mut session = runtime.load(model, x.shape()[0], image).map_err(|e| e.to_string())?;
    session.run(x.view()).map_err(|e| e.to_string())
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

/// The same graph with parts of weights set to zero along a factor: what is kept stays.
fn zeroed(model: &Model, typing: &Typing, uses: &[(usize, Factor)], keep: &[usize]) -> Model {
    let roles = Roles::new(typing);
    let mut out = model.clone();
    for &(u, factor) in uses {
        let of_use = &typing.uses[u];
        let t = typing.weights[of_use.name.as_str()];
        let (axis, rows) = roles.along(u, factor).expect("an axis that holds the factor");
        let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
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
            tensor_from_f32(format!("zeroed_{u}"), data_type(t).unwrap(), &dims, &data),
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

fn resized(model: &Model, typing: &Typing, plan: &Plan) -> Model {
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

/// All checks of one fixture; returns what failed.
pub fn check(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<String> {
    let mut failures = Vec::new();
    let model = fixture.open();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let roles = Roles::new(&typing);
    let x = images(fixture);
    let base = match run(runtime, &model, &x) {
        Ok(b) => b,
        Err(e) => return vec![format!("{}: {e}", fixture.name())],
    };
    let mut random = StdRng::seed_from_u64(11);
    let mut expect = |what: &str, child: Model, truth: Result<Vec<ArrayD<f32>>, String>| {
        let verdict = match (run(runtime, &child, &x), truth) {
            (Ok(a), Ok(b)) => {
                let e = error(&a, &b);
                if e <= fixture.tolerance() { None } else { Some(format!("relative error {e:e}")) }
            }
            (Err(e), _) => Some(format!("the child does not run: {e}")),
            (_, Err(e)) => Some(format!("the oracle does not run: {e}")),
        };
        failures.extend(verdict.map(|v| format!("{}: {what}: {v}", fixture.name())));
    };
    let attentions = headed(&typing, &anatomy);
    assert!(!attentions.is_empty() || fixture.entry["heads_stay"] == true, "{}: no heads", fixture.name());

    // Permuted heads leave the outputs.
    let mut plan = Plan::default();
    for (a, f) in attentions.iter().flat_map(|(a, factors)| factors.iter().map(move |f| (a, f))) {
        let n = a.head_count(&typing);
        plan.gather(&typing.factors, *f, (0..n).map(|i| (2 * n - 2 - i) % n).collect()).unwrap();
    }
    expect("heads permuted", resized(&model, &typing, &plan), Ok(base.clone()));

    // Every head twice, with halved output rows, leaves the outputs.
    let mut plan = Plan::default();
    for (a, factors) in &attentions {
        let n = a.head_count(&typing);
        for f in factors {
            plan.gather(&typing.factors, *f, (0..2 * n).map(|i| i % n).collect()).unwrap();
        }
        for (u, f) in roles.summing_uses(a) {
            plan.spread(&typing.factors, u, f, (0..2 * n).map(|h| vec![(h % n, 0.5)]).collect());
        }
    }
    expect("heads doubled", resized(&model, &typing, &plan), Ok(base.clone()));

    // Half the heads, and one head: the others' output rows at zero.
    for one in [false, true] {
        let mut plan = Plan::default();
        let mut oracle = model.clone();
        for (a, factors) in &attentions {
            let n = a.head_count(&typing);
            let first = random.random_range(0..n);
            let keep: Vec<usize> = if one { vec![first] } else { (0..n).filter(|h| h % 2 == first % 2).collect() };
            for f in factors {
                plan.gather(&typing.factors, *f, keep.clone()).unwrap();
            }
            oracle = zeroed(&oracle, &typing, &roles.summing_uses(a), &keep);
        }
        let what = if one { "one head" } else { "half the heads" };
        expect(what, resized(&model, &typing, &plan), run(runtime, &oracle, &x));
    }

    // Half the FFN: the other neurons' rows at zero. A norm over the neurons makes removal inexact, so there they are permuted.
    let mut plan = Plan::default();
    let mut oracle = model.clone();
    let normed = fixture.name().contains("eva02");
    for a in anatomy.layers.iter().chain(&anatomy.others) {
        let Some(ffn) = &a.ffn else { continue };
        let f = ffn.hidden_factor(&typing).expect("neurons are one factor");
        let n = typing.factors.factor_size(f);
        let keep: Vec<usize> = if normed { (0..n).rev().collect() } else { (0..n).filter(|i| i % 2 == 1).collect() };
        plan.gather(&typing.factors, f, keep.clone()).unwrap();
        let down = roles.operand(ffn.down);
        let uses: Vec<_> = roles.carriers(f).into_iter().filter(|u| down.contains(u)).map(|u| (u, f)).collect();
        assert!(!uses.is_empty());
        oracle = zeroed(&oracle, &typing, &uses, &keep);
    }
    expect("half the FFN", resized(&model, &typing, &plan), run(runtime, &oracle, &x));

    // Growing at full size is the identity; one layer dropped equals rows and biases of its last matrices at zero.
    let gene = Learngene::identity(&typing, &anatomy);
    let child = grow(&model, &gene, &Shape::default()).unwrap();
    expect("identity", child.model, Ok(base.clone()));
    let last = anatomy.layers.len() - 1;
    for dropped in [0, last] {
        let mut oracle = model.clone();
        let a = &anatomy.layers[dropped];
        for k in [Some(a.projection), a.ffn.as_ref().map(|f| f.down)].into_iter().flatten() {
            let mut uses: Vec<usize> = roles.operand(k).into_iter().collect();
            uses.extend(roles.bias(k));
            for u in uses {
                let of_use = &typing.uses[u];
                let t = typing.weights[of_use.name.as_str()];
                if !offshoot::onnx::is_float(t) {
                    continue;
                }
                let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
                let zeros = vec![0.0; dims.iter().product()];
                set(
                    &mut oracle,
                    of_use.node,
                    of_use.input,
                    tensor_from_f32(format!("nothing_{u}"), data_type(t).unwrap(), &dims, &zeros),
                );
            }
        }
        let kept = (0..=last).filter(|l| *l != dropped).collect();
        let shape = Shape { layers: Layers::List(kept), ..Shape::default() };
        // Where a layer holds more than its attention and FFN (norms behind them, convolutions), it goes as a whole.
        let dropping = fixture.entry["dropping"].as_str().unwrap_or("exact");
        let refused = |e: &str| e.contains("cannot be dropped") || e.contains("at least one layer");
        match grow(&model, &gene, &shape) {
            Ok(child) if dropping == "whole" => {
                expect("a layer dropped whole", child.model.clone(), run(runtime, &child.model, &x))
            }
            Err(e) if dropping == "refused" && refused(&e.to_string()) => {}
            Ok(child) => expect(&format!("layer {dropped} dropped"), child.model, run(runtime, &oracle, &x)),
            Err(e) => expect(&format!("layer {dropped} dropped"), model.clone(), Err(e.to_string())),
        }
    }

    // `--heads k` keeps the first k heads, `--width 0.5` leaves the outputs, twice the FFN leaves the outputs.
    let mut oracle = model.clone();
    for l in &anatomy.layers {
        oracle = zeroed(&oracle, &typing, &roles.summing_uses(l), &[0]);
    }
    let child = grow(&model, &gene, &Shape { heads: Heads::Count(1), ..Shape::default() }).unwrap();
    expect("--heads 1", child.model, run(runtime, &oracle, &x));
    let child = grow(&model, &gene, &Shape { heads: Heads::Width(0.5), ..Shape::default() }).unwrap();
    expect("--width 0.5", child.model, Ok(base.clone()));
    if !normed {
        let child = grow(&model, &gene, &Shape { ffn_width: FfnWidth::Percent(200.0), ..Shape::default() }).unwrap();
        expect("--ffn-width 200%", child.model, Ok(base.clone()));
    }
    // Heads that are mixed have no centroids that keep the function.
    if anatomy.layers.iter().any(|l| !l.mixings.is_empty()) {
        return failures;
    }
    // Clusters: the learngene, and a descendant with one slot a cluster, equal the ancestor with every head's queries, keys and
    // values replaced by its centroid's; sharing an FFN equals copying it.
    let mut gene = gene;
    let resizable = anatomy.layers.iter().map(|l| l.head_factor(&typing).is_some());
    for (clusters, _) in gene.layers.iter_mut().zip(resizable).filter(|(_, resizable)| *resizable) {
        let n = clusters.len();
        let members: Vec<usize> = (0..n).filter(|h| h % 2 == 0 || n == 2).collect();
        let centroid = *members.last().unwrap();
        let rest: Vec<usize> = (0..n).filter(|h| !members.contains(h)).collect();
        *clusters = vec![Cluster { members, centroid }];
        clusters.extend(rest.into_iter().map(|h| Cluster { members: vec![h], centroid: h }));
    }
    let mut oracle = with_centroids(&model, &typing, &anatomy, &gene);
    let shares_ffn = gene.group_ffns(&format!("0-{last}"), &typing, &anatomy).is_ok();
    if shares_ffn {
        let first = roles.ffn_uses(anatomy.layers[0].ffn.as_ref().unwrap());
        for l in &anatomy.layers[1..] {
            for (u, v) in roles.ffn_uses(l.ffn.as_ref().unwrap()).into_iter().zip(&first) {
                let of_use = &typing.uses[u];
                oracle.graph_mut().node[of_use.node].input[of_use.input] = typing.uses[*v].name.clone();
            }
        }
    }
    let truth = run(runtime, &oracle, &x);
    let condensed = gene.condense(&model, &typing, &anatomy).unwrap();
    let read = Learngene::read(&condensed).unwrap().unwrap();
    assert_eq!(read, gene);
    expect("learngene", condensed.clone(), truth.clone());
    let counts: Vec<usize> = gene.layers.iter().map(Vec::len).collect();
    let shape = Shape { heads: Heads::List(counts), ..Shape::default() };
    let baked = grow(&condensed, &gene, &shape).unwrap();
    expect("one slot a cluster, matched", baked.model.clone(), truth.clone());
    let tied = grow(&condensed, &gene, &Shape { tied: true, ..shape.clone() }).unwrap();
    expect("one slot a cluster, tied", tied.model.clone(), truth.clone());
    assert!(!baked.model.graph().node.iter().any(|n| n.name().starts_with(SHARE_PREFIX)), "baked means plain weights");
    assert!(last == 0 || !shares_ffn || tied.plan.parameters < baked.plan.parameters, "{}", fixture.name());
    let again = grow(&condensed, &gene, &Shape::default()).unwrap();
    expect("all slots of a learngene", again.model, truth);

    // A projection that holds more than heads has no published columns.
    let holds_more = |l: &Attention| roles.summing_uses(l).iter().any(|&(u, f)| roles.place(u, f).is_none());
    if anatomy.layers.iter().any(holds_more) {
        return failures;
    }
    // The published projection: head 0's output rows for slot 0, which holds the centroid of head 0's cluster.
    let mut published = oracle.clone();
    for l in &anatomy.layers {
        published = zeroed(&published, &typing, &roles.summing_uses(l), &[0]);
    }
    let shape = Shape { heads: Heads::Count(1), projection: Projection::Paper, ..Shape::default() };
    let child = grow(&condensed, &gene, &shape).unwrap();
    expect("paper projection", child.model, run(runtime, &published, &x));

    // Mean centroids.
    gene.centroid = Centroid::Mean;
    gene.ffn_groups = (0..=last).map(|l| vec![l]).collect();
    let oracle = with_centroids(&model, &typing, &anatomy, &gene);
    expect("mean centroids", gene.condense(&model, &typing, &anatomy).unwrap(), run(runtime, &oracle, &x));
    // The mean of FFNs.
    if shares_ffn {
        gene.centroid = Centroid::Nearest;
        gene.ffn_centroid = FfnCentroid::Mean;
        gene.ffn_groups = vec![(0..=last).collect()];
        let mut oracle = with_centroids(&model, &typing, &anatomy, &gene);
        let uses: Vec<Vec<usize>> = anatomy.layers.iter().map(|l| roles.ffn_uses(l.ffn.as_ref().unwrap())).collect();
        for i in 0..uses[0].len() {
            let tensors: Vec<_> = uses.iter().map(|u| typing.weights[typing.uses[u[i]].name.as_str()]).collect();
            let data: Vec<Vec<f32>> = tensors.iter().map(|t| to_f32(t).unwrap()).collect();
            let mean: Vec<f32> =
                (0..data[0].len()).map(|e| data.iter().map(|d| d[e]).sum::<f32>() / data.len() as f32).collect();
            let dims: Vec<usize> = tensors[0].dims.iter().map(|&d| d as usize).collect();
            for u in uses.iter().map(|u| u[i]) {
                let of_use = &typing.uses[u];
                let t = tensor_from_f32(format!("mean_{u}"), data_type(tensors[0]).unwrap(), &dims, &mean);
                set(&mut oracle, of_use.node, of_use.input, t);
            }
        }
        expect("mean FFNs", gene.condense(&model, &typing, &anatomy).unwrap(), run(runtime, &oracle, &x));
    }
    failures
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
    for (l, clusters) in anatomy.layers.iter().zip(&gene.layers) {
        for (u, f) in roles.head_uses(l) {
            let of_use = &typing.uses[u];
            let t = typing.weights[of_use.name.as_str()];
            let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
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

/// All checks of all fixtures.
pub fn check_all(runtime: &Arc<Runtime>) {
    // To look at a few: OFFSHOOT_FIXTURE=timm-swin,grouped
    let some = std::env::var("OFFSHOOT_FIXTURE").unwrap_or_default();
    let all = all_fixtures();
    let wanted = |f: &&Fixture| f.runs_on(runtime) && some.split(',').any(|s| f.name().contains(s));
    let chosen: Vec<&Fixture> = all.iter().filter(wanted).collect();
    assert!(!chosen.is_empty(), "no fixture is called `{some}`");
    let failures: Vec<String> = chosen.into_iter().flat_map(|f| check(runtime, f)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
