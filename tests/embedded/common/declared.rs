//! `value_info` of children: what a file declares of its values is what they are when it runs.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array4, ArrayD, Axis, Slice, concatenate};
use offshoot::anatomy::Anatomy;
use offshoot::axes::{Typing, carry_value_info, declared_batch};
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, fold_constants, grow, has_fixed_size};
use offshoot::graph::{self, FloatType, declared_axes, element_types};
use offshoot::learngene::Learngene;
use offshoot::onnx::proto::tensor_shape_proto::dimension::Value;
use offshoot::onnx::proto::{ValueInfoProto, type_proto};
use offshoot::onnx::{DataType, Model, tensor_info};
use offshoot::runtime::Runtime;

use super::{Fixture, all_fixtures, surgery};

/// Half the heads and half the FFN of the fixtures that declare their values, as they are, folded and in float16.
pub fn check_all(runtime: &Arc<Runtime>) {
    let mut children = 0;
    for fixture in all_fixtures().iter().filter(|f| f.runs_on(runtime) && FIXTURES.iter().any(|n| f.name() == *n)) {
        let ancestor = fixture.open();
        let declared = ancestor.graph().value_info.len();
        assert!(declared > 20, "{}: {declared}", fixture.name());
        let typing = Typing::new(&ancestor).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let shape =
            GrowOptions { heads: Heads::Percent(50.0), ffn_width: FfnWidth::Percent(50.0), ..GrowOptions::default() };
        let child = grow(&ancestor, &gene, &shape).unwrap().model;
        let mut half = child.clone();
        graph::convert(&mut half, FloatType::Fp16).unwrap();
        let folded = has_fixed_size(&child).then(|| fold_constants(runtime, &child, None).unwrap());
        for mut child in [Some(child), Some(half), folded].into_iter().flatten() {
            carry_value_info(&ancestor, &mut child);
            check(runtime, fixture, &ancestor, &child);
            children += 1;
        }
    }
    assert!(children > 3 * FIXTURES.len() - 3, "only {children} children");
}

/// One of every exporter and of every form that a batch has.
const FIXTURES: [&str; 6] = [
    "timm-swin-fused-math-dynamo23.onnx",
    "torchvision-vit-dynamo23.onnx",
    "timm-vit-qknorm-batch1-dynamo23.onnx",
    "hf-vit-dynamic-size-dynamo18.onnx",
    "equinox.onnx",
    "paddle.onnx",
];

fn check(runtime: &Arc<Runtime>, fixture: &Fixture, ancestor: &Model, child: &Model) {
    let name = fixture.name();
    let declared: HashMap<&str, &ValueInfoProto> = child.graph().value_info.iter().map(|v| (v.name(), v)).collect();
    assert_eq!(declared.len(), child.graph().value_info.len(), "{name}: some are declared twice");
    // What the exporter declared and the child makes is declared, and so is what is new.
    let made = |model: &Model| -> Vec<String> { model.graph().node.iter().flat_map(|n| n.output.clone()).collect() };
    let (old, outputs) = (made(ancestor), child.graph().output.iter().map(|o| o.name()).collect::<Vec<_>>());
    let exported: Vec<&str> = ancestor.graph().value_info.iter().map(|v| v.name()).collect();
    for value in made(child).iter().filter(|v| !v.is_empty() && !outputs.contains(&v.as_str())) {
        let expected = exported.contains(&value.as_str()) || !old.contains(value);
        assert_eq!(declared.contains_key(value.as_str()), expected, "{name}: `{value}`");
    }
    let types = element_types(child.graph());
    for info in &child.graph().value_info {
        let kind = types[info.name()] as i32;
        assert_eq!(graph::declared_type(info), Some(kind), "{name}: `{}`", info.name());
    }
    let images = surgery::images(fixture);
    let more = concatenate(Axis(0), &[images.view(), images.view(), images.view()]).unwrap();
    let batches = match declared_batch(child) {
        Some(n) => vec![images.slice_axis(Axis(0), Slice::from(..n)).to_owned()],
        None => vec![images, more],
    };
    let found: Vec<_> = batches.iter().map(|x| shapes(runtime, child, &types, x)).collect();
    assert!(found[0].len() > 20, "{name}: {} values", found[0].len());
    let sides = graph::data_inputs(child.graph()).into_iter().filter_map(graph::declared_dims);
    let is_open = sides.flatten().skip(1).any(|side| side.is_none());
    let mut named: HashMap<(usize, &str), usize> = HashMap::new();
    for (value, shape) in &found[0] {
        let axes = declared_axes(declared[value.as_str()]).unwrap();
        let shapes: Vec<&Vec<usize>> = found.iter().map(|f| &f[value]).collect();
        assert_eq!(axes.len(), shape.len(), "{name}: `{value}`");
        for (a, axis) in axes.iter().enumerate() {
            let sizes = shapes.iter().map(|s| s[a]);
            match &axis.value {
                Some(Value::DimValue(n)) => {
                    assert!(sizes.clone().all(|s| s as i64 == *n), "{name}: `{value}` {axes:?}, not {shapes:?}")
                }
                Some(Value::DimParam(symbol)) => sizes.enumerate().for_each(|(batch, n)| {
                    let before = *named.entry((batch, symbol)).or_insert(n);
                    assert_eq!(before, n, "{name}: `{symbol}` of `{value}`");
                }),
                // It differs from one batch, or image, to the next.
                None => {
                    let differs = shapes.len() == 1 || shapes[0][a] != shapes[1][a];
                    assert!(is_open || differs, "{name}: `{value}` {shapes:?}");
                }
            }
        }
    }
}

/// The shapes of the declared values of float32 and float16, when the model runs.
fn shapes(
    runtime: &Arc<Runtime>,
    model: &Model,
    types: &HashMap<&str, DataType>,
    images: &Array4<f32>,
) -> HashMap<String, Vec<usize>> {
    let mut probe = model.clone();
    let floats = |v: &&ValueInfoProto| matches!(types[v.name()], DataType::Float | DataType::Float16);
    let initializers: Vec<&str> = model.graph().initializer.iter().map(|t| t.name()).collect();
    let values = model.graph().value_info.iter().filter(floats).map(|v| v.name());
    let values: Vec<&str> = values.filter(|v| !initializers.contains(v)).collect();
    probe.graph_mut().output = values.iter().map(|v| without_shape(tensor_info(*v, types[v], &[]))).collect();
    let mut session = runtime.load(&probe, images.shape()[0], [images.shape()[2], images.shape()[3]]).unwrap();
    let outputs: Vec<ArrayD<f32>> = session.run(images.view()).unwrap_or_else(|e| panic!("{:?}: {e}", model.path));
    session.outputs().iter().cloned().zip(outputs.iter().map(|o| o.shape().to_vec())).collect()
}

fn without_shape(mut info: ValueInfoProto) -> ValueInfoProto {
    if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.shape = None;
    }
    info
}
