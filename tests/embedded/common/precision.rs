//! Every fixture in half precision: it is typed as before, runs, and says what it said in float32.

use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::graph::{self, FloatType, element_types};
use offshoot::onnx::{DataType, Model, is_float, payload, tensor_from_f32, to_f32};
use offshoot::runtime::Runtime;

use super::{all_fixtures, surgery};

/// Inputs of a node that must be of one floating-point type, as far as the operators of the fixtures go.
fn mixed(model: &Model) -> Option<String> {
    let types = element_types(model.graph());
    let halves = [DataType::Float16, DataType::Bfloat16];
    for node in &model.graph().node {
        if matches!(node.op_type(), "Cast" | "Resize" | "Dropout") {
            continue;
        }
        let of: Vec<DataType> = node.input.iter().filter_map(|x| types.get(x.as_str()).copied()).collect();
        if of.contains(&DataType::Float) && of.iter().any(|t| halves.contains(t)) {
            return Some(format!("{} {:?} takes {of:?}", node.op_type(), node.output));
        }
    }
    None
}

fn check(runtime: &Arc<Runtime>, model: &Model, x: &Array4<f32>, to: FloatType) -> Result<f32, String> {
    let mut half = model.clone();
    graph::convert(&mut half, to).map_err(|e| e.to_string())?;
    if let Some(what) = mixed(&half) {
        return Err(what);
    }
    let (before, after) = (Typing::new(model).unwrap(), Typing::new(&half).map_err(|e| e.to_string())?);
    let layers = |t: &Typing| {
        Anatomy::new(t).map(|a| a.layers.iter().map(|l| (l.head_count(t), l.ffn().is_some())).collect::<Vec<_>>())
    };
    if layers(&before).ok() != layers(&after).ok() {
        return Err("the anatomy changed".into());
    }
    // Large tensors are half in the file.
    let wide: usize = half
        .graph()
        .initializer
        .iter()
        .filter(|t| is_float(t) && payload(t).len() >= 4096)
        .filter(|t| t.data_type() == DataType::Float as i32)
        .count();
    if wide > 0 {
        return Err(format!("{wide} large tensors are float32 still"));
    }
    let half = Model::from_bytes(half.to_bytes()).map_err(|e| e.to_string())?;
    let found = surgery::run(runtime, &half, x)?;
    let whole = error(&found, &surgery::run(runtime, model, x)?);
    // A model that magnifies what rounding its weights does (LeViT with random weights) is held against itself with
    // rounded weights.
    let mut rounded = model.clone();
    for t in rounded.graph_mut().initializer.iter_mut().filter(|t| t.data_type() == DataType::Float as i32) {
        let narrow = half.graph().initializer.iter().find(|h| h.name() == t.name() && h.dims == t.dims);
        if let Some(narrow) = narrow.filter(|h| h.data_type() != t.data_type()) {
            let dims = t.shape();
            *t = tensor_from_f32(t.name(), DataType::Float, &dims, &to_f32(narrow).map_err(|e| e.to_string())?);
        }
    }
    Ok(whole.min(error(&found, &surgery::run(runtime, &rounded, x)?)))
}

/// The largest error of any output: the norm of the difference, relative to the output's.
pub fn error(found: &[ArrayD<f32>], truth: &[ArrayD<f32>]) -> f32 {
    assert_eq!(found.len(), truth.len());
    let of = |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| {
        assert_eq!(a.shape(), b.shape());
        let norm = |a: &ArrayD<f32>| a.iter().map(|v| v * v).sum::<f32>().sqrt();
        let relative = norm(&(a - b)) / norm(b).max(1e-6);
        if relative.is_nan() { f32::INFINITY } else { relative }
    };
    found.iter().zip(truth).map(of).fold(0.0, f32::max)
}

/// Both half precisions, on every fixture that the runtime runs.
pub fn check_all(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    let (mut worst, mut done) = ([0f32; 2], 0);
    for fixture in all_fixtures().iter().filter(|f| f.runs_on(runtime)) {
        let model = fixture.open();
        let x = surgery::images(fixture);
        for (i, (to, tolerance)) in [(FloatType::Fp16, 1e-2), (FloatType::Bf16, 2e-2)].into_iter().enumerate() {
            if to == FloatType::Bf16 && model.opset() < 13 {
                assert!(graph::convert(&mut model.clone(), to).is_err());
                continue;
            }
            match check(runtime, &model, &x, to) {
                Ok(e) if e <= tolerance => worst[i] = worst[i].max(e),
                Ok(e) => failures.push(format!("{} {to:?}: {e:e}", fixture.name())),
                Err(e) => failures.push(format!("{} {to:?}: {e}", fixture.name())),
            }
            done += 1;
        }
    }
    println!("{done} graphs in half precision, largest relative errors {worst:?}");
    assert!(failures.is_empty(), "{} of {done}:\n{}", failures.len(), failures.join("\n"));
}
