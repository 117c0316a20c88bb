//! Every fixture with its weights in int8, in both forms: it is typed as before, runs, says what the float32 weights
//! say that its integers stand for, and is read back.

use std::sync::Arc;

use ndarray::ArrayD;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::graph::{prepare_written, unfold};
use offshoot::onnx::proto::GraphProto;
use offshoot::onnx::{DataType, Model, data_type};
use offshoot::rounding::{self, Dtype, Rounded};
use offshoot::runtime::{Runtime, RuntimeKind};

use super::precision::error;
use super::{Fixture, all_fixtures, surgery, texts};

/// The layers of a model: their heads, and whether they have an FFN.
fn layers(model: &Model) -> Option<Vec<(usize, bool)>> {
    let typing = Typing::new(model).ok()?;
    let anatomy = Anatomy::new(&typing).ok()?;
    Some(anatomy.layers.iter().map(|l| (l.head_count(&typing), l.ffn().is_some())).collect())
}

/// What engines fold or compute wrongly: a transposed weight behind its scales, a matrix that several products read.
fn unfit(graph: &GraphProto) -> Option<String> {
    for node in graph.node.iter().filter(|n| n.op_type() == "DequantizeLinear") {
        let wide = &node.output[0];
        let users: Vec<_> = graph.node.iter().filter(|n| n.input.contains(wide)).collect();
        let product = users.len() == 1 && users[0].op_type() == "MatMul" && users[0].input[1] == *wide;
        let numbers = graph.node.iter().filter(|n| n.op_type() == node.op_type() && n.input[0] == node.input[0]);
        if !product || numbers.count() != 1 {
            return Some(format!("`{wide}` is read by {:?}", users.iter().map(|n| n.op_type()).collect::<Vec<_>>()));
        }
    }
    let zeros = graph.node.iter().filter(|n| n.op_type() == "MatMulInteger").map(|n| n.input.len());
    zeros.into_iter().find(|&inputs| inputs != 3).map(|n| format!("a MatMulInteger has {n} inputs"))
}

/// Runs a model on what its fixture takes.
fn run(runtime: &Arc<Runtime>, fixture: &Fixture, model: &Model) -> Result<Vec<ArrayD<f32>>, String> {
    match fixture.entry["texts"] == true {
        true => surgery::run_on(runtime, model, &texts::feeds(fixture, 24))
            .map(|outputs| texts::of_real_tokens(outputs, 24)),
        false => surgery::run(runtime, model, &surgery::images(fixture)),
    }
}

/// How far a fixture in int8 is from the same with float32 weights, and what became of it.
fn check(runtime: &Arc<Runtime>, fixture: &Fixture, dtype: Dtype) -> Result<(f32, Rounded), String> {
    let model = fixture.open();
    let mut rounded = model.clone();
    let converted = rounding::convert(&mut rounded, dtype).map_err(|e| e.to_string())?;
    let report = converted.int8.ok_or("nothing is told of the weights")?;
    let bytes = rounded.to_bytes();
    let mut again = model.clone();
    rounding::convert(&mut again, dtype).map_err(|e| e.to_string())?;
    if again.to_bytes() != bytes {
        return Err("other bytes the second time".into());
    }
    if let Some(what) = unfit(rounded.graph()) {
        return Err(what);
    }
    let mut written = Model::from_bytes(bytes).map_err(|e| e.to_string())?;
    let int8 = |m: &Model| m.graph().initializer.iter().filter(|t| data_type(t) == Some(DataType::Int8)).count();
    if int8(&written) != report.matrices + report.tables || written.opset() < 13 {
        return Err(format!("{} tensors are in int8, and {report:?}", int8(&written)));
    }
    prepare_written(&mut written).map_err(|e| e.to_string())?;
    let mut float = written.clone();
    let unfolded = unfold(&mut float).map_err(|e| e.to_string())?;
    if unfolded.is_none() != (report.matrices + report.tables == 0) || int8(&float) > 0 {
        return Err("the weights are not read back".into());
    }
    if layers(&model) != layers(&float) {
        return Err("the anatomy changed".into());
    }
    let found = run(runtime, fixture, &written)?;
    Ok((error(&found, &run(runtime, fixture, &float)?), report))
}

/// Both forms of some fixtures; all weights that products have become int8 in most of them.
pub fn check_each(runtime: &Arc<Runtime>, fixtures: &[Fixture]) {
    let (mut failures, mut worst) = (Vec::new(), [0f32; 2]);
    let (mut rounded, mut tables, mut raised) = (0, 0, 0);
    for fixture in fixtures.iter().filter(|f| f.runs_on(runtime)) {
        for (i, dtype) in [Dtype::Int8, Dtype::Int8Rows].into_iter().enumerate() {
            // tract computes the first form as it stands; ONNX Runtime rounds what it multiplies with it.
            let exact = dtype == Dtype::Int8 && runtime.kind == RuntimeKind::Tract;
            let tolerance = if exact { 1e-4 } else { 1e-1 };
            match check(runtime, fixture, dtype) {
                Ok((e, report)) => {
                    if e > tolerance {
                        failures.push(format!("{} {dtype:?}: {e:e}", fixture.name()));
                    }
                    worst[i] = worst[i].max(e);
                    rounded += usize::from(report.matrices >= 8);
                    (tables, raised) = (tables + report.tables, raised + usize::from(report.raised_from == Some(11)));
                }
                Err(e) => failures.push(format!("{} {dtype:?}: {e}", fixture.name())),
            }
        }
    }
    let of = fixtures.len();
    println!("{of} graphs in int8, {rounded} with 8 matrices or more, {tables} tables, {raised} of operator set 11");
    println!("largest relative errors {worst:?}");
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
    assert!(rounded > of && raised > 0, "{rounded} of {of} twice, {raised}");
}

/// All of them.
pub fn check_all(runtime: &Arc<Runtime>) {
    let mut fixtures = all_fixtures();
    fixtures.extend(texts::tried(runtime));
    check_each(runtime, &fixtures);
}
