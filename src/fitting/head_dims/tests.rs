//! Cutting in the weights does what cutting on the way does, and bases of full rank lose nothing.

use faer::Mat;
use ndarray::{Array2, ArrayD, IxDyn};

use super::super::algebra::{product, ridged, times};
use super::super::network::Network;
use super::super::prune::cut;
use super::super::subgraph::{Subgraph, Values, pin};
use super::bases::{SCORE_RIDGE, score_bases, value_bases};
use super::cost::{DimensionCosts, basis_changes, cut_queries};
use super::find::reductions;
use super::statistics::ScoreStatistics;
use super::*;
use crate::anatomy::Anatomy;
use crate::error::{ErrorKind, Result};
use crate::learngene::BlockKind;
use crate::onnx::Model;
use crate::runtime::{Options, Runtime, RuntimeKind};

fn image(shape: &[usize], seed: usize) -> ArrayD<f32> {
    ArrayD::from_shape_fn(IxDyn(shape), |at| {
        let wave = (0..shape.len()).map(|i| ((seed + i) as f32 * 0.37 + 0.3) * at[i] as f32).sum::<f32>();
        wave.sin() + 0.5 * (0.31 * wave + seed as f32).cos()
    })
}

fn close(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
    let most = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / most
}

/// What a model says whose queries, keys and values are cut in its graph is what the ancestor says when queries are cut
/// on the way and the output projection sees values through the same directions.
fn check(path: &str, joint: bool, kept: &[usize]) {
    let runtime =
        Runtime::start(&Options { kind: RuntimeKind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    let mut model = Model::open(std::path::Path::new(path)).unwrap();
    crate::graph::prepare(&mut model).unwrap();
    let pinned = pin(&model).unwrap();
    let network = Network::new(&runtime, &pinned, None).unwrap();
    let found = reductions(&runtime, &network.typing, &pinned).unwrap();
    let n = found.iter().find(|n| n.layer == 1).unwrap_or_else(|| panic!("{path}: none of {}", found.len()));
    assert_eq!(n.is_joint(), joint, "{path}");
    let input = crate::graph::data_inputs(pinned.graph())[0].name().to_string();
    let shape = network.typing.shape(&input).unwrap();
    let view = |i| Values::from([(input.clone(), image(&shape, i))]);
    let images: Vec<Values> = (0..6).map(view).collect();
    let i = network.site_of_heads(n.layer).unwrap();
    let statistics = network.statistics(&images, &|_, _| {}).unwrap();
    let measured = measure(&network, std::slice::from_ref(n), &images).unwrap();
    let r = n.of.map(|of| (of / 2).max(1));
    // By surgery.
    let heads: Vec<usize> = (0..n.heads).filter(|h| kept.is_empty() || kept.contains(h)).collect();
    let all: Vec<usize> = (0..Anatomy::new(&network.typing).unwrap().layers.len()).collect();
    let fewer = (heads.len() < n.heads).then(|| (n.layer, BlockKind::Heads, heads.clone()));
    let thin = cut(&model, &all, fewer.into_iter().collect(), vec![(n.layer, r)]).unwrap();
    let cuts = [Truncation {
        narrow: n,
        measured: &measured[0],
        statistics: &statistics[i],
        layer: n.layer,
        heads: heads.clone(),
    }];
    let child = write(&runtime, &network, &cuts, &pin(&thin).unwrap(), &thin).unwrap();
    let child = pin(&child).unwrap();
    let small = Network::new(&runtime, &child, None).unwrap();
    // On the way.
    let stages = network.stages().unwrap();
    let mut values = images[0].clone();
    for s in 0..i {
        stages.advance(s, &mut values).unwrap();
        let rows = network.linears[s].rows(&values).unwrap();
        network.pass(s, &rows, &mut values).unwrap();
    }
    let feeds = stages.feeds(i);
    let part = |feeds: Vec<String>, result: &str| {
        Subgraph::cut(&runtime, &network.typing, &pinned, feeds, vec![result.to_string()])
    };
    let query = n.query.value.clone();
    let queries = part(feeds.to_vec(), &query).run(&values).unwrap().remove(0);
    let mut with = values.clone();
    with.insert(query.clone(), cut_queries(n, &basis_changes(n, &measured[0], r[0]).unwrap(), &queries).unwrap());
    let linear = &network.linears[i];
    let entering = part([feeds, &[query]].concat(), &linear.input).run(&with).unwrap().remove(0);
    let rows = linear.rows(&Values::from([(linear.input.clone(), entering)])).unwrap();
    let weight = network.output_of_heads(n.layer).unwrap();
    let bases = value_bases(&statistics[i].gram, &weight, &heads, n.of[1]).unwrap();
    let mut through = Array2::<f32>::zeros((rows.ncols(), rows.ncols()));
    for (&h, (base, _)) in heads.iter().zip(&bases) {
        let p = base.subcols(0, r[1]);
        let own = times(p, p.transpose());
        let e = n.of[1];
        (0..e * e).for_each(|x| through[[h * e + x / e, h * e + x % e]] = own[(x / e, x % e)] as f32);
    }
    let cut_rows = product(rows.view(), through.view());
    stages.advance(i, &mut values).unwrap();
    let out = network.apply(i, &cut_rows);
    values.insert(linear.output.clone(), linear.leaving(&network.typing, &out).unwrap());
    let rest = stages.rest(&runtime, &network.typing, &pinned, i);
    let want = rest.run(&values).unwrap();
    let part = small.whole(&small.end);
    let have = part.run(&images[0]).unwrap();
    let whole = network.whole(&network.end);
    let before = whole.run(&images[0]).unwrap();
    for ((w, h), b) in want.iter().zip(&have).zip(&before) {
        assert!(close(w, h) < 2e-4, "{path}: {}", close(w, h));
        assert!(close(w, b) > 1e-3, "{path}: cutting half of the dimensions changes nothing");
    }
}

#[test]
fn projections_that_are_cut_do_what_cut_queries_and_values_do() {
    check("models/fashion-vit.onnx", true, &[]);
    check("models/fashion-vit.onnx", true, &[1, 4, 6]);
    // One head has no axis of its own any more.
    check("models/fashion-vit.onnx", true, &[5]);
    check("fixtures/graphs/hf-dinov2-ts17.onnx", false, &[1]);
    for (name, joint) in [
        ("hf-dinov2-ts17", false),
        ("hf4-vit-eager-ts13", false),
        ("timm-vit-unfused-ts17", true),
        ("timm-swin-ts17", true),
        ("torchvision-vit-ts17", true),
    ] {
        check(&format!("fixtures/graphs/{name}.onnx"), joint, &[]);
    }
}

#[test]
fn bases_of_full_rank_change_nothing_and_lose_nothing() {
    let random = |rows: usize, columns: usize, seed: usize| {
        Mat::from_fn(rows, columns, |i, j| (((seed + 7 * i + 13 * j + i * j) * 2654435761) % 1000) as f64 / 500.0 - 1.0)
    };
    let square = |m: Mat<f64>| times(m.transpose(), m.as_ref());
    let s = ScoreStatistics { queries: square(random(40, 6, 1)), keys: square(random(40, 6, 2)) };
    let (a, b, tail) = score_bases(&s).unwrap();
    let one = times(a.as_ref(), b.transpose());
    (0..6).for_each(|i| (0..6).for_each(|j| assert!((one[(i, j)] - f64::from(i == j)).abs() < 1e-8)));
    assert!(tail[6] == 0.0 && tail.windows(2).all(|t| t[0] >= t[1]));
    // The loss of rank r is that of the best approximation of scores in the norm of both covariances.
    let through = times(a.subcols(0, 3), b.subcols(0, 3).transpose());
    let missing = &one - &through;
    let (q, k) = (ridged(&s.queries, SCORE_RIDGE), ridged(&s.keys, SCORE_RIDGE));
    let lost = times(times(times(q.as_ref(), missing.as_ref()).as_ref(), k.as_ref()).as_ref(), missing.transpose());
    let lost: f64 = (0..6).map(|i| lost[(i, i)]).sum();
    assert!((lost / tail[3] - 1.0).abs() < 1e-6, "{lost} {}", tail[3]);
    let (gram, weight) = (square(random(50, 8, 3)), random(8, 5, 4));
    let bases = value_bases(&gram, &weight, &[0, 1], 4).unwrap();
    for (base, _) in &bases {
        let one = times(base.transpose(), base.as_ref());
        (0..4).for_each(|i| (0..4).for_each(|j| assert!((one[(i, j)] - f64::from(i == j)).abs() < 1e-8)));
    }
}

/// What cutting the heads of the second layer costs, where `change` alters what is known of them and of those of the
/// first.
fn costs(change: impl Fn(&mut HeadDimReduction, &HeadDimReduction)) -> Result<DimensionCosts> {
    let runtime =
        Runtime::start(&Options { kind: RuntimeKind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    let mut model = Model::open(std::path::Path::new("models/fashion-vit.onnx")).unwrap();
    crate::graph::prepare(&mut model).unwrap();
    let pinned = pin(&model).unwrap();
    let network = Network::new(&runtime, &pinned, None).unwrap();
    let mut found = reductions(&runtime, &network.typing, &pinned).unwrap();
    let input = crate::graph::data_inputs(pinned.graph())[0].name().to_string();
    let shape = network.typing.shape(&input).unwrap();
    let view = |i| Values::from([(input.clone(), image(&shape, i))]);
    let images: Vec<Values> = (0..2).map(view).collect();
    let statistics = network.statistics(&images, &|_, _| {}).unwrap();
    let (first, mut second) = (found.remove(0), found.remove(0));
    let measured = measure(&network, std::slice::from_ref(&second), &images).unwrap();
    change(&mut second, &first);
    Ok(dimension_costs(&network, &statistics, &[second], &measured, &images, &|_, _| {})?.remove(0))
}

#[test]
fn queries_of_an_earlier_stage_are_not_measured_and_other_errors_are_told() {
    let [queries, values] = costs(|_, _| {}).unwrap();
    assert!(!queries.is_empty() && !values.is_empty());
    let [none, same] = costs(|own, first| own.query.value = first.query.value.clone()).unwrap();
    assert!(none.is_empty(), "{none:?}");
    assert_eq!(same, values);
    // Any error was once taken for such queries.
    let error = costs(|own, _| own.query.layout = own.probabilities.1.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
}
