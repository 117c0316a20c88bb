//! Models of a single image: their input `[channels, height, width]` is given the axis of images that everything else
//! works with, and loses it again before a model is written.

use super::names::Names;
use super::nodes::{ints_attribute, node};
use super::subgraphs::replace_use;
use super::values::{data_inputs, declared_dims};
use crate::metadata::BATCH_PREFIX;
use crate::onnx::proto::{GraphProto, NodeProto, TensorShapeProto, ValueInfoProto, tensor_shape_proto, type_proto};
use crate::onnx::{Model, tensor_from_i64};

/// A height or width that is fixed is at least so many pixels.
const LEAST: usize = 8;

/// Gives a model whose only input is one picture an axis of one image in front; outputs without one get it too. Other
/// models stay as they are.
pub fn add_batch_axis(model: &mut Model) {
    let opset = model.opset();
    let graph = model.graph_mut();
    let inputs = data_inputs(graph);
    let [input] = &inputs[..] else { return };
    if !declared_dims(input).is_some_and(|dims| is_picture(&dims)) {
        return;
    }
    let name = input.name().to_string();
    let mut names = Names::new(graph);
    let mut axes = Vec::new();
    let mut moved = |op: &str, from: &str, to: &str, names: &mut Names| {
        let mut made = match opset >= 13 {
            true => {
                axes.push(tensor_from_i64(names.fresh(&format!("{BATCH_PREFIX}axes")), &[1], &[0]));
                node(op, &[from, axes[axes.len() - 1].name()], &[to], vec![])
            }
            false => node(op, &[from], &[to], vec![ints_attribute("axes", &[0])]),
        };
        made.name = Some(names.fresh(&format!("{BATCH_PREFIX}{op}")));
        made
    };
    let picture = names.fresh(&format!("{name}/picture"));
    rename_uses(graph, &name, &picture);
    let first = moved("Squeeze", &name, &picture, &mut names);
    graph.node.insert(0, first);
    for info in graph.input.iter_mut().filter(|v| v.name() == name) {
        prepend(info);
    }
    // A first axis of no declared size may be that of images.
    let lacks = |dims: Vec<Option<usize>>| dims.len() < 2 || dims[0].is_some_and(|n| n != 1);
    let single: Vec<String> =
        graph.output.iter().filter(|o| declared_dims(o).is_some_and(lacks)).map(|o| o.name().to_string()).collect();
    for output in single {
        let inner = names.fresh(&format!("{output}/picture"));
        rename_uses(graph, &output, &inner);
        for node in &mut graph.node {
            node.output.iter_mut().filter(|o| **o == output).for_each(|o| *o = inner.clone());
        }
        let last = moved("Unsqueeze", &inner, &output, &mut names);
        graph.node.push(last);
        graph.output.iter_mut().filter(|o| o.name() == output).for_each(prepend);
    }
    graph.initializer.extend(axes);
}

/// Takes the axis away that [`add_batch_axis`] gave a model.
pub fn remove_batch_axis(model: &mut Model) {
    if !model.graph().node.iter().any(|n| n.name().starts_with(BATCH_PREFIX)) {
        return;
    }
    let graph = model.graph_mut();
    let (added, kept): (Vec<_>, Vec<_>) =
        std::mem::take(&mut graph.node).into_iter().partition(|n| n.name().starts_with(BATCH_PREFIX));
    graph.node = kept;
    for node in added {
        let (outside, inside) = match node.op_type() {
            "Squeeze" => (&node.input[0], &node.output[0]),
            _ => (&node.output[0], &node.input[0]),
        };
        rename_uses(graph, inside, outside);
        for made in &mut graph.node {
            made.output.iter_mut().filter(|o| *o == inside).for_each(|o| *o = outside.clone());
        }
        for info in graph.input.iter_mut().chain(&mut graph.output).filter(|v| v.name() == outside) {
            if let Some(shape) = shape(info).filter(|s| !s.dim.is_empty()) {
                shape.dim.remove(0);
            }
        }
    }
    graph.initializer.retain(|t| !t.name().starts_with(BATCH_PREFIX));
}

/// True for an input or output whose axis of images is that of [`add_batch_axis`].
pub fn has_added_batch(graph: &GraphProto, value: &str) -> bool {
    let end =
        |n: &NodeProto| if n.op_type() == "Squeeze" { n.input.first().cloned() } else { n.output.first().cloned() };
    graph.node.iter().any(|n| n.name().starts_with(BATCH_PREFIX) && end(n).is_some_and(|end| end == value))
}

/// Three channels before or behind a height and a width.
fn is_picture(dims: &[Option<usize>]) -> bool {
    let side = |d: Option<usize>| d.is_none_or(|n| n >= LEAST);
    match dims {
        [Some(3), a, b] | [a, b, Some(3)] => side(*a) && side(*b),
        _ => false,
    }
}

fn rename_uses(graph: &mut GraphProto, from: &str, to: &str) {
    for node in &mut graph.node {
        replace_use(node, from, to);
    }
}

fn shape(info: &mut ValueInfoProto) -> Option<&mut TensorShapeProto> {
    match info.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => tensor.shape.as_mut(),
        _ => None,
    }
}

/// Declares an axis of one image in front.
fn prepend(info: &mut ValueInfoProto) {
    if let Some(shape) = shape(info) {
        let value = Some(tensor_shape_proto::dimension::Value::DimValue(1));
        shape.dim.insert(0, tensor_shape_proto::Dimension { value, ..Default::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::int_attribute;
    use crate::onnx::proto::{ModelProto, OperatorSetIdProto};
    use crate::onnx::{DataType, tensor_info};

    fn model(dims: &[Option<usize>], output: &[Option<usize>], opset: i64) -> Model {
        Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![tensor_info("x", DataType::Uint8, dims)],
                output: vec![tensor_info("y", DataType::Float, output)],
                node: vec![
                    node("Cast", &["x"], &["y"], vec![int_attribute("to", DataType::Float as i64)]),
                    node("Relu", &["y"], &["z"], vec![]),
                ],
                ..Default::default()
            }),
            opset_import: vec![OperatorSetIdProto { version: Some(opset), ..Default::default() }],
            ..Default::default()
        })
    }

    #[test]
    fn the_axis_comes_and_goes() {
        for opset in [11, 17] {
            let kinds = [([Some(3), None, None], vec![Some(7)]), ([Some(32), None, Some(3)], vec![Some(1), Some(7)])];
            for (dims, output) in kinds {
                let before = model(&dims, &output, opset);
                let mut after = before.clone();
                add_batch_axis(&mut after);
                assert!(has_added_batch(after.graph(), "x"));
                assert_eq!(has_added_batch(after.graph(), "y"), output.len() == 1);
                assert_eq!(declared_dims(&after.graph().input[0]).unwrap(), [&[Some(1)][..], &dims].concat());
                assert_eq!(declared_dims(&after.graph().output[0]).unwrap(), [Some(1), Some(7)]);
                let once = after.clone();
                add_batch_axis(&mut after);
                assert_eq!(after.proto, once.proto, "an axis is enough");
                remove_batch_axis(&mut after);
                assert_eq!(after.proto, before.proto);
            }
        }
        for dims in [[None, Some(197), Some(768)], [Some(1), Some(28), Some(28)], [Some(3), Some(4), Some(4)]] {
            let before = model(&dims, &[None], 17);
            let mut after = before.clone();
            add_batch_axis(&mut after);
            assert_eq!(after.proto, before.proto, "{dims:?}");
        }
    }
}
