//! Model-local functions: every call is replaced by the function's body, so that later stages see one flat graph.

use std::collections::HashMap;

use prost::Message;

use super::subgraphs::rename_captured;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{AttributeProto, FunctionProto, ModelProto, NodeProto};
use crate::onnx::{subgraphs_mut, with_inner_nodes};

/// Calls may nest, but a function that calls itself would never end.
const MAX_DEPTH: usize = 64;
/// Bodies of functions multiply when calls nest; this bounds the flat graph, and the calls, which may come to nothing.
const MAX_NODES: usize = 1 << 20;
/// And so do names and lists, which are copied with every call. Payloads are shared.
const MAX_BYTES: usize = 1 << 28;

type Key = (String, String, String);

/// Inlines all calls of model-local functions and drops the functions.
pub(super) fn inline(model: &mut ModelProto) -> Result<()> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let functions: HashMap<Key, FunctionProto> = std::mem::take(&mut model.functions)
        .into_iter()
        .map(|f| ((f.domain().to_string(), f.name().to_string(), f.overload().to_string()), f))
        .collect();
    for f in functions.values() {
        for import in &f.opset_import {
            if !model.opset_import.iter().any(|o| o.domain() == import.domain()) {
                model.opset_import.push(import.clone());
            }
        }
    }
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    let mut inliner = Inliner { functions: &functions, calls: 0, nodes: 0, bytes: 0, out: Vec::new() };
    for node in std::mem::take(&mut graph.node) {
        inliner.node(node, 0)?;
    }
    graph.node = inliner.out;
    let domains: Vec<&str> = functions.keys().map(|k| k.0.as_str()).collect();
    let used: Vec<String> = with_inner_nodes(&graph.node).into_iter().map(|n| n.domain().to_string()).collect();
    model
        .opset_import
        .retain(|o| !domains.contains(&o.domain()) || o.domain().is_empty() || used.iter().any(|d| d == o.domain()));
    Ok(())
}

struct Inliner<'f> {
    functions: &'f HashMap<Key, FunctionProto>,
    calls: usize,
    nodes: usize,
    bytes: usize,
    out: Vec<NodeProto>,
}

fn too_large(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("model-local functions expand to more than {what}"))
        .hint("no exporter nests its functions so: inline them with `onnx.inliner`, if the model is sound")
}

/// Bytes that a copy of a node takes, about.
fn copied(node: &NodeProto) -> usize {
    let tensors = node.attribute.iter().filter_map(|a| a.t.as_ref());
    let shared: usize = tensors.filter_map(|t| t.raw_data.as_ref()).map(|raw| raw.len()).sum();
    node.encoded_len().saturating_sub(shared)
}

impl Inliner<'_> {
    fn node(&mut self, mut node: NodeProto, depth: usize) -> Result<()> {
        let key = (node.domain().to_string(), node.op_type().to_string(), node.overload().to_string());
        let Some(function) = self.functions.get(&key) else {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return Err(too_large(format!("{MAX_NODES} nodes")));
            }
            for graph in subgraphs_mut(&mut node) {
                let outer = std::mem::take(&mut self.out);
                for inner in std::mem::take(&mut graph.node) {
                    self.node(inner, depth)?;
                }
                graph.node = std::mem::replace(&mut self.out, outer);
            }
            self.out.push(node);
            return Ok(());
        };
        if depth >= MAX_DEPTH {
            return Err(Error::new(ErrorKind::Format, format!("function `{}` calls itself", function.name()))
                .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
        }
        self.calls += 1;
        if self.calls > MAX_NODES {
            return Err(too_large(format!("{MAX_NODES} calls")));
        }
        let call = self.calls;
        let mut rename: HashMap<&str, String> = HashMap::new();
        for (k, formal) in function.input.iter().enumerate() {
            rename.insert(formal, node.input.get(k).cloned().unwrap_or_default());
        }
        for (k, formal) in function.output.iter().enumerate() {
            if let Some(actual) = node.output.get(k).filter(|o| !o.is_empty()) {
                rename.insert(formal, actual.clone());
            }
        }
        for inner in &function.node {
            let mut inner = inner.clone();
            let renamed = |value: &str| match rename.get(value) {
                Some(actual) => actual.clone(),
                None => format!("{}/{call}/{value}", function.name()),
            };
            for value in inner.input.iter_mut().chain(inner.output.iter_mut()).filter(|v| !v.is_empty()) {
                *value = renamed(value);
            }
            subgraphs_mut(&mut inner).for_each(|graph| rename_captured(graph, &renamed));
            inner.name = inner.name.as_ref().map(|n| format!("{}/{call}/{n}", function.name()));
            fill_in(&mut inner, &|name| {
                node.attribute.iter().chain(&function.attribute_proto).find(|given| given.name() == name)
            });
            self.bytes += copied(&inner);
            if self.bytes > MAX_BYTES {
                return Err(too_large(format!("{} MB of names and attributes", MAX_BYTES >> 20)));
            }
            self.node(inner, depth + 1)?;
        }
        Ok(())
    }
}

/// Puts the attributes of a call where a function's body refers to them; one that is not given is left out.
fn fill_in<'a>(node: &mut NodeProto, given: &dyn Fn(&str) -> Option<&'a AttributeProto>) {
    node.attribute.retain_mut(|a| {
        let Some(reference) = a.ref_attr_name.take().filter(|r| !r.is_empty()) else { return true };
        let Some(given) = given(&reference) else { return false };
        *a = AttributeProto { name: a.name.take(), ..given.clone() };
        true
    });
    subgraphs_mut(node).flat_map(|graph| &mut graph.node).for_each(|inner| fill_in(inner, given));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node;
    use crate::onnx::proto::GraphProto;

    fn call(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto { domain: Some("local".into()), ..node(op, inputs, outputs, vec![]) }
    }

    #[test]
    fn nested_calls_are_flattened() {
        let function = |name: &str, body: Vec<NodeProto>| FunctionProto {
            name: Some(name.into()),
            domain: Some("local".into()),
            input: vec!["x".into()],
            output: vec!["y".into()],
            node: body,
            ..Default::default()
        };
        let mut model = ModelProto {
            functions: vec![
                function("inner", vec![node("Relu", &["x"], &["t"], vec![]), node("Neg", &["t"], &["y"], vec![])]),
                function("outer", vec![call("inner", &["x"], &["u"]), call("inner", &["u"], &["y"])]),
            ],
            graph: Some(GraphProto { node: vec![call("outer", &["a"], &["b"])], ..Default::default() }),
            ..Default::default()
        };
        inline(&mut model).unwrap();
        let nodes = &model.graph.unwrap().node;
        let ops: Vec<_> = nodes.iter().map(|n| n.op_type()).collect();
        assert_eq!(ops, ["Relu", "Neg", "Relu", "Neg"]);
        assert_eq!(nodes[0].input[0], "a");
        assert_eq!(nodes[3].output[0], "b");
        assert_eq!(nodes[1].output[0], nodes[2].input[0]);
    }

    #[test]
    fn recursion_is_an_error() {
        let mut model = ModelProto {
            functions: vec![FunctionProto {
                name: Some("f".into()),
                domain: Some("local".into()),
                node: vec![call("f", &[], &[])],
                ..Default::default()
            }],
            graph: Some(GraphProto { node: vec![call("f", &[], &[])], ..Default::default() }),
            ..Default::default()
        };
        assert!(inline(&mut model).unwrap_err().to_string().contains("calls itself"));
    }
    /// Functions that each call the next one twice.
    fn doubling(levels: usize, names: usize, last: Vec<NodeProto>) -> ModelProto {
        let name = |k: usize| format!("{k}{}", "f".repeat(names));
        let function = |k: usize| FunctionProto {
            name: Some(name(k)),
            domain: Some("local".into()),
            node: if k == levels { last.clone() } else { vec![call(&name(k + 1), &[], &[]); 2] },
            ..Default::default()
        };
        ModelProto {
            functions: (0..=levels).map(function).collect(),
            graph: Some(GraphProto { node: vec![call(&name(0), &[], &[])], ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn calls_that_come_to_nothing_are_bounded() {
        let error = inline(&mut doubling(60, 1, vec![])).unwrap_err();
        assert!(error.to_string().contains("calls"), "{error}");
    }

    #[test]
    fn names_that_grow_with_every_call_are_bounded() {
        let error = inline(&mut doubling(18, 10_000, vec![node("Relu", &["x"], &["y"], vec![])])).unwrap_err();
        assert!(error.to_string().contains("256 MB of names"), "{error}");
    }
}
