//! What a verification finds, and what it says of what it did not run.

use std::path::Path;
use std::sync::Arc;

use offshoot::anatomy::{Anatomy, Roles};
use offshoot::axes::Typing;
use offshoot::descendant::{
    Case, Check, FfnWidth, GrowOptions, Grown, Heads, Layers, Outcome, Verification, Verifier, grow,
};
use offshoot::graph::{self, FloatType, int_attribute, ints_attribute, node};
use offshoot::learngene::Learngene;
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, to_f32};
use offshoot::runtime::Runtime;
use serde_json::Value;

use crate::common::binary::{done, json, offshoot, refused, text};
use crate::common::{Fixture, all_fixtures, root};

/// The checks of a child that was grown from an ancestor.
const ALL: [&str; 6] = ["runs", "batches", "samples", "permuted", "full-size", "removed"];

fn verify(runtime: &Arc<Runtime>, ancestor: &Model, shape: &GrowOptions, spoil: impl Fn(&mut Model)) -> Verification {
    let typing = Typing::new(ancestor).unwrap();
    let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
    let grown = grow(ancestor, &gene, shape).unwrap();
    let mut child = grown.model.clone();
    spoil(&mut child);
    let how = Grown { gene: &gene, shape, plan: &grown.plan, model: &grown.model };
    let case = Case { ancestor, child: &child, written: &child, grown: Some(how) };
    Verifier::new(runtime.clone()).verify(&case).unwrap()
}

fn open(file: &str) -> Model {
    let mut model = Model::open(root().join(file)).unwrap();
    graph::prepare(&mut model).unwrap();
    model
}

/// Puts nodes behind the only output, which they make of the value `inner`.
fn behind(model: &mut Model, nodes: Vec<NodeProto>) {
    let graph = model.graph_mut();
    let output = graph.output[0].name().to_string();
    for made in graph.node.iter_mut().flat_map(|n| &mut n.output).filter(|o| **o == output) {
        *made = "inner".into();
    }
    graph.node.extend(nodes);
    for made in graph.node.iter_mut().flat_map(|n| &mut n.output).filter(|o| *o == "outer") {
        *made = output.clone();
    }
}

/// Probabilities are added up over the heads before each: what that is to heads is nothing that their axis says.
pub(super) fn heads_that_add_up(model: &mut Model) {
    let graph = model.graph_mut();
    let k = graph.node.iter().position(|n| n.op_type() == "Softmax").unwrap();
    let softmax = graph.node[k].output[0].clone();
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|x| **x == softmax) {
        *input = "added up".into();
    }
    graph.initializer.push(tensor_from_i64("axis of heads", &[], &[1]));
    graph.node.insert(k + 1, node("CumSum", &[&softmax, "axis of heads"], &["added up"], vec![]));
}

/// Each fault is found by the check that is there for it, and none by a child that has none.
pub fn faults_are_found(runtime: &Arc<Runtime>) {
    let ancestor = open("fixtures/graphs/timm-vit-unfused-ts17.onnx");
    let shape = GrowOptions { heads: Heads::Count(2), ffn_width: FfnWidth::Percent(50.0), ..GrowOptions::default() };
    let right = verify(runtime, &ancestor, &shape, |_| {});
    let outcomes: Vec<_> = right.checks.iter().map(|c| (c.check.name(), c.outcome)).collect();
    assert_eq!(outcomes, ALL.map(|name| (name, Outcome::Passed)), "{:?}", right.checks);
    assert!(right.checks[3..].iter().all(|c| c.error.is_some_and(|e| e < 1e-5)), "{:?}", right.checks);

    let first = |spoil: &dyn Fn(&mut Model)| {
        let found = verify(runtime, &ancestor, &shape, spoil);
        let failed = found.ended(Outcome::Failed).next().unwrap_or_else(|| panic!("nothing found: {:?}", found.checks));
        assert!(failed.fault().to_string().contains(failed.check.name()), "{}", failed.fault());
        failed.check
    };
    let classes = 7;
    // An axis of another size than the graph makes.
    assert_eq!(first(&|m| target(m, &[-1, classes + 1])), Check::Runs);
    // A table with a row for each of two images.
    let table = |m: &mut Model| {
        let rows = [0.0; 14];
        m.graph_mut().initializer.push(tensor_from_f32("table", DataType::Float, &[2, 7], &rows));
        behind(m, vec![node("Add", &["inner", "table"], &["outer"], vec![])]);
    };
    assert_eq!(first(&table), Check::Batches);
    // Images that see each other.
    let meet = |m: &mut Model| {
        let mean = node("ReduceMean", &["inner"], &["mean"], vec![ints_attribute("axes", &[0])]);
        behind(m, vec![mean, node("Add", &["inner", "mean"], &["outer"], vec![])]);
    };
    assert_eq!(first(&meet), Check::Samples);
    // Images that change places: the first one and the last say what others do, in a batch alone.
    let swapped = |m: &mut Model| {
        m.graph_mut().initializer.extend(
            [("start", -1), ("end", i64::MIN), ("first", 0), ("step", -1)].map(|(n, v)| tensor_from_i64(n, &[1], &[v])),
        );
        behind(m, vec![node("Slice", &["inner", "start", "end", "first", "step"], &["outer"], vec![])]);
    };
    assert_eq!(first(&swapped), Check::Samples);
    assert_eq!(first(&heads_that_add_up), Check::Permuted);
    // Rows of an output projection in places of others: no symmetry is broken.
    assert_eq!(first(&|m| rotate(m, false)), Check::Removed);
    assert_eq!(first(&|m| rotate(m, true)), Check::Removed);
    // A layer more or less.
    let shallow = GrowOptions { layers: Layers::List(vec![1]), ..GrowOptions::default() };
    let passed = verify(runtime, &ancestor, &shallow, |_| {});
    assert!(passed.failure().is_none() && passed.checks[5].outcome == Outcome::Passed, "{:?}", passed.checks);
}

/// An attention map has one matrix for each head, which are fewer in a child and in another order where they are
/// permuted: that is no fault. What the other outputs say is compared all the same.
pub fn outputs_of_each_head_are_left_out(runtime: &Arc<Runtime>) {
    let ancestor = open("fixtures/reports/heads/inside.onnx");
    let shape = |heads| GrowOptions { heads: Heads::Count(heads), ..GrowOptions::default() };
    for heads in [1, 2] {
        let right = verify(runtime, &ancestor, &shape(heads), |_| {});
        let outcomes: Vec<_> = right.checks.iter().map(|c| (c.check.name(), c.outcome)).collect();
        assert_eq!(outcomes, ALL.map(|name| (name, Outcome::Passed)), "{:?}", right.checks);
        for c in &right.checks {
            let compared = !matches!(c.check, Check::Permuted | Check::FullSize | Check::Removed);
            let note = (!compared).then_some("but for `map`, with an axis of heads or neurons");
            // A single head has no axis, and no order.
            let alone = heads == 1 && c.check == Check::Permuted;
            assert_eq!(c.note.as_deref(), note.filter(|_| !alone), "{:?}", right.checks);
        }
        let line = right.lines().remove(0);
        assert!(line.contains("removed (but for `map`, with an axis of heads or neurons)"), "{line}");
    }
    let wrong = verify(runtime, &ancestor, &shape(2), |m| rotate(m, false));
    let failed: Vec<Check> = wrong.ended(Outcome::Failed).map(|c| c.check).collect();
    assert_eq!(failed, [Check::Removed], "{:?}", wrong.checks);
}

/// A Reshape of the output to a fixed target.
fn target(model: &mut Model, sizes: &[i64]) {
    model.graph_mut().initializer.push(tensor_from_i64("target", &[sizes.len()], sizes));
    behind(model, vec![node("Reshape", &["inner", "target"], &["outer"], vec![])]);
}

/// Rotates the rows of the first output projection, or of the first FFN's last matrix, by one.
fn rotate(model: &mut Model, of_ffn: bool) {
    let typing = Typing::new(model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let layer = &anatomy.layers[0];
    let k = if of_ffn { layer.ffn().unwrap().down } else { layer.projection };
    let roles = Roles::new(&typing);
    let uses = roles.operand(k);
    let u = uses.into_iter().next().unwrap();
    let factor = if of_ffn { layer.ffn().unwrap().hidden_factor(&typing) } else { layer.head_factor(&typing) };
    let (axis, _) = roles.along(u, factor.unwrap()).unwrap();
    let name = typing.uses[u].name.clone();
    let tensor = model.graph_mut().initializer.iter_mut().find(|t| t.name() == name).unwrap();
    let [rows, columns] = [0, 1].map(|a| tensor.dims[a] as usize);
    let old = to_f32(tensor).unwrap();
    let moved = |i: usize| match axis {
        0 => old[(i / columns + 1) % rows * columns + i % columns],
        _ => old[i / columns * columns + (i % columns + 1) % columns],
    };
    let new: Vec<f32> = (0..old.len()).map(moved).collect();
    *tensor = tensor_from_f32(name, DataType::Float, &[rows, columns], &new);
}

/// In half precision, on tract: what overflows there is found, whatever library runs the rest.
pub fn half_precision_is_run_where_it_is_computed(runtime: &Arc<Runtime>) {
    let ancestor = open("fixtures/graphs/timm-vit-unfused-ts17.onnx");
    let typing = Typing::new(&ancestor).unwrap();
    let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
    let shape = GrowOptions::default();
    let outcome = |spoil: &dyn Fn(&mut Model), dtype: FloatType| {
        let grown = grow(&ancestor, &gene, &shape).unwrap();
        let mut child = grown.model.clone();
        spoil(&mut child);
        let mut written = child.clone();
        graph::convert(&mut written, dtype).unwrap();
        let case = Case { ancestor: &ancestor, child: &child, written: &written, grown: None };
        let found = Verifier::new(runtime.clone()).verify(&case).unwrap();
        let last = found.checks.last().unwrap();
        assert_eq!(last.check, Check::HalfPrecision, "{:?}", found.checks);
        for c in &found.checks[..found.checks.len() - 1] {
            let of_grow = matches!(c.check, Check::FullSize | Check::Removed);
            assert_eq!(c.outcome, if of_grow { Outcome::NotRun } else { Outcome::Passed }, "{:?}", found.checks);
        }
        (last.outcome, last.error, last.note.clone().unwrap_or_default())
    };
    let (plain, error, _) = outcome(&|_| {}, FloatType::Fp16);
    assert!(plain == Outcome::Passed && error.is_some_and(|e| e > 0.0 && e < 1e-2), "{error:?}");
    // Within float32, and beyond float16 on the way.
    let overflow = |m: &mut Model| {
        let graph = m.graph_mut();
        graph.initializer.push(tensor_from_f32("large", DataType::Float, &[], &[60000.0]));
        behind(
            m,
            vec![
                node("Mul", &["inner", "large"], &["once"], vec![]),
                node("Mul", &["once", "large"], &["twice"], vec![]),
                node("Div", &["twice", "large"], &["back"], vec![]),
                node("Div", &["back", "large"], &["outer"], vec![]),
            ],
        );
    };
    let (outcome_of_overflow, _, note) = outcome(&overflow, FloatType::Fp16);
    assert!(outcome_of_overflow == Outcome::Failed && note.contains("float16"), "{note}");
    let (brain, _, note) = outcome(&|_| {}, FloatType::Bf16);
    assert!(brain == Outcome::NotRun && note.contains("bfloat16"), "{note}");
}

/// Nothing that is right is refused: half of all that can go is taken from every export.
pub fn children_of_every_fixture_pass(runtime: &Arc<Runtime>) {
    use rayon::prelude::*;
    let all = all_fixtures();
    let chosen: Vec<&Fixture> = all.iter().filter(|f| f.runs_on(runtime)).collect();
    let found: Vec<(String, Verification)> = chosen.par_iter().flat_map_iter(|f| pruned(runtime, f)).collect();
    let (mut wrong, mut removed) = (Vec::new(), 0);
    for (name, verification) in &found {
        println!("{name}\n    {}", verification.lines().join("\n    "));
        wrong.extend(verification.failure().map(|e| format!("{name}: {e}")));
        removed += usize::from(verification.ended(Outcome::Passed).any(|c| c.check == Check::Removed));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), found.len(), wrong.join("\n"));
    assert!(10 * removed > 8 * found.len(), "only {removed} of {} were compared with their ancestor", found.len());
}

/// Children with one head in each layer and half the neurons: without the first layer where that can be, and without
/// the last where sums are fused with norms, which hides what the last layer adds.
fn pruned(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<(String, Verification)> {
    let ancestor = fixture.open();
    let typing = Typing::new(&ancestor).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let gene = Learngene::identity(&typing, &anatomy);
    let shape = GrowOptions { heads: Heads::Count(1), ffn_width: FfnWidth::Percent(50.0), ..GrowOptions::default() };
    let layers = anatomy.layers.len();
    let fused = ancestor.graph().node.iter().any(|n| n.op_type().starts_with("Skip"));
    let kept = [1..layers, 0..if fused { layers - 1 } else { 0 }].into_iter().filter(|kept| !kept.is_empty());
    let shallow = kept.map(|kept| GrowOptions { layers: Layers::List(kept.collect()), ..shape.clone() });
    let mut shapes: Vec<GrowOptions> = shallow.filter(|shape| grow(&ancestor, &gene, shape).is_ok()).collect();
    if shapes.is_empty() {
        shapes.push(shape);
    }
    let verified =
        |s: GrowOptions| (format!("{}, {:?}", fixture.name(), s.layers), verify(runtime, &ancestor, &s, |_| {}));
    shapes.into_iter().map(verified).collect()
}

fn checks(plan: &Value) -> Vec<(&str, &str)> {
    let list = plan["verification"]["checks"].as_array().unwrap();
    list.iter().map(|c| (c["check"].as_str().unwrap(), c["outcome"].as_str().unwrap())).collect()
}

/// `grow` verifies by itself what is small, says so, and writes the same bytes as without.
pub fn children_are_verified(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shape = ["--no-images", "--layers", "even:4", "--heads", "4", "--ffn-width", "50%", "--runtime", runtime];
    let grow = |name: &str, more: &[&str]| {
        let path = at(name);
        let all = [&["grow", "models/fashion-vit.onnx"][..], &shape, more, &["--json", "-o", text(&path)]].concat();
        let run = done(&all);
        let said = String::from_utf8(run.stderr).unwrap();
        (serde_json::from_slice::<Value>(&run.stdout).unwrap(), said, std::fs::read(&path).unwrap())
    };
    let (plan, said, bytes) = grow("plain.onnx", &[]);
    assert_eq!(checks(&plan), ALL.map(|name| (name, "passed")), "{plan}");
    assert_eq!(plan["verification"]["runtime"], runtime);
    assert!(said.contains("verified on") && said.contains(&ALL.join(", ")), "{said}");
    let (plan, said, without) = grow("without.onnx", &["--no-verify"]);
    assert_eq!((&plan["verification"]["not_run"], bytes == without), (&"--no-verify".into(), true));
    assert!(!said.contains("verified"), "{said}");
    let (plan, _, asked) = grow("asked.onnx", &["--verify"]);
    assert!(checks(&plan).len() == ALL.len() && bytes == asked);

    // Half precision on tract, and a type that nothing here computes in.
    for (dtype, outcome) in [("fp16", "passed"), ("bf16", "not-run")] {
        let (plan, said, _) = grow(dtype, &["--dtype", dtype]);
        assert_eq!(checks(&plan).last(), Some(&("half-precision", outcome)), "{plan}");
        assert_eq!(said.contains("not verified: half-precision"), outcome == "not-run", "{said}");
    }
    // A new classifier is verified with the old one in its place.
    let (plan, _, _) = grow("classes.onnx", &["--classes", "3"]);
    assert_eq!(checks(&plan), ALL.map(|name| (name, "passed")), "{plan}");
    let folded = grow("folded.onnx", &["--fold"]).0;
    assert_eq!(checks(&folded), ALL.map(|name| (name, "passed")), "{folded}");
    // Weights that are drawn have no ancestor to be compared with.
    let drawn = grow("drawn.onnx", &["--init", "from-scratch"]).0;
    assert_eq!(checks(&drawn).last(), Some(&("removed", "not-run")), "{drawn}");
}

/// What is wrong is not written, unless that is asked for.
pub fn what_is_wrong_is_not_written(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [model, child] = ["model.onnx", "child.onnx"].map(|n| folder.path().join(n));
    let mut ancestor = Model::open(root().join("fixtures/graphs/timm-vit-unfused-ts17.onnx")).unwrap();
    heads_that_add_up(&mut ancestor);
    ancestor.write(&model).unwrap();
    let arguments = ["grow", text(&model), "--no-images", "--heads", "2", "--runtime", runtime, "-o", text(&child)];
    let output = offshoot(&arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("check `permuted`") && said.contains("hint: "), "{said}");
    assert!(!child.exists());
    done(&[&arguments[..], &["--no-verify"]].concat());
    assert!(child.exists());
    // `compare` finds it in the file.
    let images = folder.path().join("images.npy");
    ndarray_npy::write_npy(&images, &crate::common::surgery::channels_first(&some_fixture())).unwrap();
    let compared =
        ["compare", text(&model), text(&child), "--images", text(&images), "--runs", "1", "--runtime", runtime];
    let output = offshoot(&compared);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("check `permuted`"), "{said}");
    assert!(said.contains("not verified: removed (only `grow`, which makes a child, knows"), "{said}");
    let v = json(&[&compared[..], &["--no-verify", "--json"]].concat());
    assert_eq!(v["verification"]["not_run"], "--no-verify");
}

fn some_fixture() -> Fixture {
    all_fixtures().into_iter().find(|f| f.name() == "timm-vit-unfused-ts17.onnx").unwrap()
}

/// What was not run is said: for want of a library, and for want of time.
pub fn what_is_not_run_is_said(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let none = folder.path().join("libnone.so");
    let grow = ["grow", "models/fashion-vit.onnx", "--no-images", "--heads", "4", "--force", "-o", text(&child)];
    let without = ["--runtime", "onnxruntime", "--onnxruntime", text(&none)];
    for size in [&[][..], &["--image-size", "56"]] {
        let said = String::from_utf8(done(&[&grow[..], &without, size].concat()).stderr).unwrap();
        assert!(said.contains("not verified: nothing was run") && said.contains("libnone.so"), "{said}");
    }
    refused(&[&grow[..], &without, &["--verify"]].concat(), &["libnone.so"]);

    let open = "fixtures/graphs/hf-vit-dynamic-size-ts17.onnx";
    let large = ["grow", open, "--no-images", "--runtime", runtime, "--force", "-o", text(&child), "--json"];
    let plan = json(&[&large[..], &["--input-size", "512"]].concat());
    let why = plan["verification"]["not_run"].as_str().unwrap();
    assert!(why.contains(" s; --verify asks for it") && checks(&plan).is_empty(), "{why}");
}

/// A child of another image size is run, also where the rest would take too long.
pub fn children_of_another_size_are_run(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let open = "fixtures/graphs/hf-vit-dynamic-size-ts17.onnx";
    let grow = |size: &str| {
        json(&[
            "grow",
            open,
            "--no-images",
            "--image-size",
            size,
            "--runtime",
            runtime,
            "--force",
            "-o",
            text(&child),
            "--json",
        ])
    };
    assert_eq!(checks(&grow("24x20")), ALL.map(|name| (name, "passed")));
    let large = grow("280");
    assert_eq!(checks(&large), [("runs", "passed")], "{large}");
    assert!(large["verification"]["not_run"].as_str().unwrap().contains("--verify"), "{large}");
}

/// A child that does not run, and whose ancestor does, is found by one run.
pub fn one_run_finds_what_does_not_run(runtime: &Arc<Runtime>) {
    let ancestor = open("fixtures/graphs/timm-vit-unfused-ts17.onnx");
    let mut child = ancestor.clone();
    target(&mut child, &[-1, 8]);
    let case = Case { ancestor: &ancestor, child: &child, written: &child, grown: None };
    let verification = Verifier::new(runtime.clone()).run_once(&case).unwrap();
    let error = verification.failure().unwrap();
    assert!(error.to_string().contains("check `runs`: it does not run, and its ancestor does"), "{error}");
    let case = Case { ancestor: &child, child: &child, written: &child, grown: None };
    assert!(Verifier::new(runtime.clone()).run_once(&case).is_err(), "nothing is known of what never ran");
}

/// A panic inside tract, behind ONNX Runtime's interface, does not abort the process; where tract is called itself, it
/// is an error.
pub fn panics_do_not_abort() {
    let folder = tempfile::tempdir().unwrap();
    let [model, child] = ["model.onnx", "child.onnx"].map(|n| folder.path().join(n));
    write_panicking(&model);
    let images = ["--images", "fixtures/fashion-png", "--limit", "2", "--runs", "1", "--runtime", "tract"];
    let compared = offshoot(&[&["compare", text(&model), text(&model)][..], &images].concat());
    let said = String::from_utf8(compared.stderr).unwrap();
    assert_eq!(compared.status.code(), Some(3), "{said}");
    assert!(said.contains("error: the runtime panicked at") && said.contains("hint: "), "{said}");
    let said = done(&["grow", text(&model), "--no-images", "--heads", "4", "--runtime", "tract", "-o", text(&child)]);
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("not verified: nothing was run: tract"), "{said}");
}

/// The bundled model, whose logits are written to places far beyond their axis: tract 0.23 looks at no bound there.
fn write_panicking(path: &Path) {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    model.graph_mut().initializer.push(tensor_from_f32("beyond", DataType::Float, &[], &[1000.0]));
    behind(
        &mut model,
        vec![
            node("Abs", &["inner"], &["size"], vec![]),
            node("Add", &["size", "beyond"], &["far"], vec![]),
            node("Cast", &["far"], &["places"], vec![int_attribute("to", DataType::Int64 as i64)]),
            node("ScatterElements", &["inner", "places", "inner"], &["outer"], vec![int_attribute("axis", 1)]),
        ],
    );
    model.write(path).unwrap();
}
