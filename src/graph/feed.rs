//! Inputs that were given a value: it stands in the graph in their place, and they are back before a model is written.
//!
//! Everything else then works on a model that takes its picture alone. The value keeps the name of the input, and is
//! repeated for each sample of a batch, however large that is.

use std::collections::HashSet;

use super::links::Links;
use super::names::Names;
use super::nodes::{int_attribute, node};
use super::order::prune;
use super::subgraphs::replace_use;
use super::types::element_types;
use super::values::declared_type;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::FEED_PREFIX;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value};
use crate::onnx::proto::{NodeProto, TensorProto, ValueInfoProto, type_proto};
use crate::onnx::{FedValue, Like, Model, tensor_from_i64};
use crate::ops::{self, Slot};

/// How long an axis of a value becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many elements.
    Of(usize),
    /// As many as an axis of another input has.
    Like(String, usize),
}

/// Puts a value in the place of an input: a tensor each of whose axes is as long as `lengths` says, or has one element
/// that is repeated so often. `said` is the value in words.
///
/// # Errors
/// [`ErrorKind::Internal`] where the model has no such input, or no other one that an axis is as long as.
pub fn feed(model: &mut Model, input: &str, value: TensorProto, lengths: &[Length], said: String) -> Result<()> {
    let graph = model.graph_mut();
    let missing = |name: &str| Error::new(ErrorKind::Internal, format!("there is no input `{name}` to feed"));
    let place = graph.input.iter().position(|v| v.name() == input).ok_or_else(|| missing(input))?;
    let mut like = Vec::new();
    for (axis, length) in lengths.iter().enumerate() {
        let Length::Like(other, of) = length else { continue };
        let info = graph.input.iter().find(|v| v.name() == other.as_str());
        let declared = info.and_then(declared_axes).and_then(|d| d.get(*of)).cloned().ok_or_else(|| missing(other))?;
        like.push(Like { axis, input: other.clone(), of: *of, declared });
    }
    let (nodes, initializers) = made(input, value, lengths);
    let info = graph.input.remove(place);
    graph.node.splice(0..0, nodes);
    graph.initializer.extend(initializers);
    model.fed.push(FedValue { info, place, value: said, like });
    Ok(())
}

/// The nodes and tensors that make a value under the name of its input.
fn made(input: &str, value: TensorProto, lengths: &[Length]) -> (Vec<NodeProto>, Vec<TensorProto>) {
    let stem = format!("{FEED_PREFIX}{input}");
    let own = |what: &str| format!("{stem}/{what}");
    let value = TensorProto { name: Some(own("value")), ..value };
    let whole = value.dims.iter().zip(lengths).all(|(&n, length)| *length == Length::Of(n as usize));
    let (mut nodes, mut tensors) = (Vec::new(), Vec::new());
    let last = match whole {
        true => node("Identity", &[value.name()], &[input], vec![]),
        false => {
            let mut parts = Vec::new();
            for (axis, length) in lengths.iter().enumerate() {
                let part = own(&format!("length{axis}"));
                match length {
                    Length::Of(n) => tensors.push(tensor_from_i64(part.clone(), &[1], &[*n as i64])),
                    Length::Like(other, of) => {
                        let [shape, at] = ["shape", "axis"].map(|what| own(&format!("{what}{axis}")));
                        tensors.push(tensor_from_i64(at.clone(), &[1], &[*of as i64]));
                        nodes.push(node("Shape", &[other], &[&shape], vec![]));
                        nodes.push(node("Gather", &[&shape, &at], &[&part], vec![]));
                    }
                }
                parts.push(part);
            }
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let shape = own("shape");
            nodes.push(node("Concat", &parts, &[&shape], vec![int_attribute("axis", 0)]));
            node("Expand", &[value.name(), &shape], &[input], vec![])
        }
    };
    nodes.push(NodeProto { name: Some(stem), ..last });
    tensors.push(value);
    (nodes, tensors)
}

/// True for nodes that make the value of an input that was fed.
pub fn is_feed(node: &NodeProto) -> bool {
    node.name().starts_with(FEED_PREFIX)
}

/// True where shapes, or the branch that is taken, are computed from a value.
pub fn decides<'g>(links: &Links<'g>, value: &'g str) -> bool {
    let has_values = |k: usize| !matches!(links.nodes[k].op_type(), "Shape" | "Size");
    let mut reached: HashSet<&str> = HashSet::from([value]);
    links.downstream([value]).through(has_values).any(|k| {
        let node = &links.nodes[k];
        let is_condition = node.op_type() == "If";
        let op = ops::of(node);
        let mut taken = (0..).zip(&node.input).filter(|(_, x)| reached.contains(x.as_str()));
        let decides = taken.any(|(j, _)| is_condition || op.slot(j).is_of_shape() || op.slot(j) == Slot::Extent);
        reached.extend(links.outputs(k).filter(|o| !o.is_empty()));
        decides
    })
}

/// Gives a model that is about to be written the inputs back that were fed: as the file declares them, but for axes
/// whose like has changed.
pub fn take_feeds_back(model: &mut Model) {
    if model.fed.is_empty() {
        return;
    }
    let inputs = declared_inputs(model);
    let fed = std::mem::take(&mut model.fed);
    let graph = model.graph_mut();
    // What a child computes in half precision takes the input behind a cast.
    let kinds = element_types(graph);
    let kind = |name: &str| kinds.get(name).map(|&kind| kind as i32);
    let kinds: Vec<_> =
        fed.iter().map(|f| kind(f.info.name()).filter(|k| Some(*k) != declared_type(&f.info))).collect();
    graph.node.retain(|n| !is_feed(n));
    let mut names = Names::new(graph);
    for (input, kind) in fed.iter().map(|f| f.info.name()).zip(kinds) {
        let Some(kind) = kind else { continue };
        let cast = names.fresh(&format!("{input}_cast"));
        graph.node.iter_mut().for_each(|n| replace_use(n, input, &cast));
        graph.node.insert(0, node("Cast", &[input], &[&cast], vec![int_attribute("to", kind.into())]));
    }
    prune(graph);
    graph.input = inputs;
}

/// The inputs that a model has in its file, with those that were fed.
pub fn declared_inputs(model: &Model) -> Vec<ValueInfoProto> {
    let mut inputs = model.graph().input.clone();
    for fed in model.fed.iter().rev() {
        let mut info = fed.info.clone();
        for like in &fed.like {
            let of = model.graph().input.iter().find(|v| v.name() == like.input);
            let now = of.and_then(declared_axes).and_then(|d| d.get(like.of)).filter(|d| **d != like.declared).cloned();
            if let (Some(now), Some(own)) = (now, axes_mut(&mut info).and_then(|d| d.get_mut(like.axis))) {
                *own = now;
            }
        }
        inputs.insert(fed.place.min(inputs.len()), info);
    }
    inputs
}

/// What a value declares of its axes.
pub fn declared_axes(info: &ValueInfoProto) -> Option<&[Dimension]> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(&tensor.shape.as_ref()?.dim),
        _ => None,
    }
}

/// The name that the file gives to an axis of no fixed size.
pub fn axis_name(axis: &Dimension) -> Option<&str> {
    match &axis.value {
        Some(Value::DimParam(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// What a value declares of its axes, to be changed.
pub(crate) fn axes_mut(info: &mut ValueInfoProto) -> Option<&mut Vec<Dimension>> {
    match info.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(&mut tensor.shape.as_mut()?.dim),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto};
    use crate::onnx::{DataType, tensor_info};

    fn model() -> Model {
        Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![
                    tensor_info("mask", DataType::Int64, &[None, Some(4)]),
                    tensor_info("x", DataType::Float, &[None, Some(4)]),
                    tensor_info("sizes", DataType::Int64, &[Some(2)]),
                ],
                output: vec![tensor_info("y", DataType::Float, &[None, None])],
                node: vec![
                    node("Cast", &["mask"], &["seen"], vec![int_attribute("to", DataType::Float as i64)]),
                    node("Mul", &["x", "seen"], &["masked"], vec![]),
                    node("Reshape", &["masked", "sizes"], &["y"], vec![]),
                ],
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn names(model: &Model) -> Vec<&str> {
        model.graph().input.iter().map(|v| v.name()).collect()
    }

    #[test]
    fn what_is_fed_comes_back_as_it_was() {
        let before = model();
        let mut fed = before.clone();
        let batch = Length::Like("x".into(), 0);
        feed(&mut fed, "mask", tensor_from_i64("", &[1, 1], &[1]), &[batch, Length::Of(4)], "ones".into()).unwrap();
        feed(&mut fed, "sizes", tensor_from_i64("", &[2], &[2, 6]), &[Length::Of(2)], "2,6".into()).unwrap();
        assert_eq!(names(&fed), ["x"]);
        let links = Links::new(fed.graph());
        assert_eq!(["mask", "sizes"].map(|input| decides(&links, input)), [false, true]);
        assert!(fed.graph().node.iter().filter(|n| is_feed(n)).all(|n| n.output[0] != "x"));
        take_feeds_back(&mut fed);
        assert_eq!(fed.proto, before.proto);
        assert!(fed.fed.is_empty());
    }

    /// A batch that was fixed or opened meanwhile is that of every input; other axes stay.
    #[test]
    fn axes_that_are_alike_stay_alike() {
        let mut fed = model();
        let batch = Length::Like("x".into(), 0);
        feed(&mut fed, "mask", tensor_from_i64("", &[1, 4], &[1; 4]), &[batch, Length::Of(4)], "".into()).unwrap();
        crate::graph::declare_dim(&mut fed.graph_mut().input[0], 0, 5);
        take_feeds_back(&mut fed);
        assert_eq!(names(&fed), ["mask", "x", "sizes"]);
        let dims = |k: usize| crate::graph::declared_dims(&fed.graph().input[k]).unwrap();
        assert_eq!([dims(0), dims(1)], [[Some(5), Some(4)], [Some(5), Some(4)]]);
    }
}
