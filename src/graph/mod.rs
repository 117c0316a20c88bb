//! An editable graph over the file: who makes a value, who uses it, attributes of nodes, and the edits that every later
//! stage is made of: pruning what nothing needs, cutting out submodels, and new nodes and initializers under fresh names.

mod activations;
mod axis;
mod batch;
mod dequantize;
mod functions;
mod input;
mod narrow;
mod types;

use std::collections::{HashMap, HashSet};

use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto::dimension::Value, type_proto,
};
use crate::onnx::{DataType, Model, node_label};
pub use axis::{nearest_axis, nearest_border, resolve_axis};
pub use batch::{add_batch_axis, has_added_batch, remove_batch_axis};
pub use dequantize::dequantize;
pub use input::{ImageInput, Values, is_integer};
pub(crate) use narrow::{Far, check_known, clamp, clipped};
pub use narrow::{FloatType, cast, convert, convert_but};
pub use types::{element_types, lift_constants, output_type, widen};

/// Typed access to the attributes of a node.
pub trait Attributes {
    /// The attribute called `name`.
    fn attribute(&self, name: &str) -> Option<&AttributeProto>;

    /// An integer attribute.
    fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).and_then(|a| a.i)
    }
    /// A float attribute.
    fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).and_then(|a| a.f)
    }
    /// A list of integers.
    fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }
    /// A string attribute.
    fn string(&self, name: &str) -> Option<&str> {
        self.attribute(name).and_then(|a| std::str::from_utf8(a.s()).ok())
    }
    /// A tensor attribute.
    fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name).and_then(|a| a.t.as_ref())
    }
}

impl Attributes for NodeProto {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name() == name)
    }
}

/// True where the node is of the default operator set.
pub fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

/// An integer attribute.
pub fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..Default::default()
    }
}

/// A float attribute.
pub fn float_attribute(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Float as i32),
        f: Some(value),
        ..Default::default()
    }
}

/// An attribute that is a list of integers.
pub fn ints_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..Default::default()
    }
}

/// A string attribute.
pub fn string_attribute(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.as_bytes().to_vec()),
        ..Default::default()
    }
}

/// An attribute that is a list of floats.
pub fn floats_attribute(name: &str, values: &[f32]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Floats as i32),
        floats: values.to_vec(),
        ..Default::default()
    }
}

/// A node of the default operator set; its name is that of its first output.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: outputs.first().map(|o| o.to_string()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        attribute: attributes,
        ..Default::default()
    }
}

/// Dims of a declared tensor value; `None` for a dim that is dynamic. `None` as a whole where no shape is declared.
pub fn declared_dims(info: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else {
        return None;
    };
    let dims = &tensor.shape.as_ref()?.dim;
    Some(
        dims.iter()
            .map(|d| match d.value {
                Some(Value::DimValue(n)) if n > 0 => Some(n as usize),
                _ => None,
            })
            .collect(),
    )
}

/// Element type of a declared tensor value.
pub fn declared_type(info: &ValueInfoProto) -> Option<i32> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.elem_type,
        _ => None,
    }
}

/// Declares a dim of a tensor value; does nothing where the value has no such dim.
pub fn declare_dim(info: &mut ValueInfoProto, axis: usize, size: usize) {
    if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(dim) = tensor.shape.as_mut().and_then(|s| s.dim.get_mut(axis))
    {
        dim.value = Some(Value::DimValue(size as i64));
    }
}

/// Who makes and who uses each value.
pub struct Links<'g> {
    /// The node that makes a value.
    pub maker: HashMap<&'g str, usize>,
    /// The nodes that use a value, in order; a node that uses it twice stands there once.
    pub users: HashMap<&'g str, Vec<usize>>,
}

impl<'g> Links<'g> {
    /// Reads the links of a graph.
    pub fn new(graph: &'g GraphProto) -> Self {
        let mut maker = HashMap::new();
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        for (k, node) in graph.node.iter().enumerate() {
            for x in node.input.iter().filter(|x| !x.is_empty()) {
                let list = users.entry(x).or_default();
                if list.last() != Some(&k) {
                    list.push(k);
                }
            }
            for o in node.output.iter().filter(|o| !o.is_empty()) {
                maker.insert(o.as_str(), k);
            }
        }
        Links { maker, users }
    }

    /// The nodes that use a value.
    pub fn users(&self, value: &str) -> &[usize] {
        self.users.get(value).map(Vec::as_slice).unwrap_or(&[])
    }
}

/// Brings a model that was just opened into the form that later stages work on: model-local functions are inlined,
/// activations that were fused into products stand by themselves, every use of a transposed weight has a Transpose of its own, a model
/// of a single picture has an axis of images ([`remove_batch_axis`] takes it away again), and nodes stand in topological order.
///
/// # Errors
/// [`ErrorKind::Format`] for a graph with a cycle or an undefined value, [`ErrorKind::Unsupported`] for control flow,
/// quantised operators, sparse initializers and text decoders with a cache of keys and values.
pub fn prepare(model: &mut Model) -> Result<()> {
    model.own_initializers();
    functions::inline(&mut model.proto)?;
    add_batch_axis(model);
    let path = model.path.clone();
    let named = |e: Error| if path.as_os_str().is_empty() { e } else { e.at(&path) };
    let graph = model.graph_mut();
    refuse(graph).map_err(&named)?;
    activations::separate(graph);
    separate_transposes(graph);
    sort(graph).map_err(&named)
}

/// Gives every user of a transposed weight a Transpose of its own. Exporters write one for all (an FFN that runs at several resolutions,
/// constants that were merged), and each use of a weight is resized by itself.
fn separate_transposes(graph: &mut GraphProto) {
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant").flat_map(|n| &n.output);
    let weights: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(constants.map(String::as_str)).collect();
    let links = Links::new(graph);
    let is_shared = |n: &NodeProto| {
        let of_weight = n.op_type() == "Transpose" && n.input.first().is_some_and(|x| weights.contains(x.as_str()));
        of_weight && n.output.first().is_some_and(|o| links.users(o).len() > 1)
    };
    let shared: Vec<(NodeProto, Vec<usize>)> = (graph.node.iter().filter(|n| is_shared(n)))
        .map(|n| (n.clone(), links.users(&n.output[0])[1..].to_vec()))
        .collect();
    if shared.is_empty() {
        return;
    }
    let mut names = Names::new(graph);
    let mut copies: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    for (node, users) in shared {
        for user in users {
            let output = names.fresh(&node.output[0]);
            for x in graph.node[user].input.iter_mut().filter(|x| **x == node.output[0]) {
                *x = output.clone();
            }
            let name = node.name.as_ref().map(|_| output.clone());
            copies.entry(user).or_default().push(NodeProto { name, output: vec![output], ..node.clone() });
        }
    }
    for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        graph.node.extend(copies.remove(&k).unwrap_or_default());
        graph.node.push(node);
    }
}

/// What Offshoot does not work on, said before any work is done.
fn refuse(graph: &GraphProto) -> Result<()> {
    if let Some(sparse) = graph.sparse_initializer.first() {
        let name = sparse.values.as_ref().map(|t| t.name()).unwrap_or("");
        return Err(Error::new(ErrorKind::Unsupported, format!("the initializer `{name}` is sparse"))
            .hint("write sparse initializers out as dense ones, and prune the descendant"));
    }
    if let Some((node, cache)) = cache_of_keys(graph) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model is a text decoder: its input `{cache}` is a cache of keys or values"),
        )
        .in_node(node_label(node))
        .hint(
            "Offshoot works on Vision Transformers; of a model that sees and writes, export the image encoder alone",
        ));
    }
    for node in &graph.node {
        let op = node.op_type();
        if matches!(op, "If" | "Loop" | "Scan") {
            return Err(Error::new(ErrorKind::Unsupported, format!("control flow (`{op}`) is not supported"))
                .in_node(node_label(node))
                .hint("export the model with fixed choices: tracing, or a simplifier, removes such nodes"));
        }
        if node.domain() == "com.microsoft.nchwc" {
            let why = format!("the model was laid out for one kind of processor (`{op}` of `com.microsoft.nchwc`)");
            return Err(Error::new(ErrorKind::Unsupported, why).in_node(node_label(node)).hint(
                "give the model as it was before ONNX Runtime's layout optimisation, or save it at its extended level",
            ));
        }
        if is_quantised(op) {
            return Err(Error::new(ErrorKind::Unsupported, format!("the model is quantised (`{op}`)"))
                .in_node(node_label(node))
                .hint(
                    "give the model as it was before quantisation (fp32, fp16 or bf16) or try --dequantize, and quantise the descendant",
                ));
        }
    }
    Ok(())
}

/// True for operators that compute on quantised values, or make them.
fn is_quantised(op: &str) -> bool {
    op.contains("Integer")
        || op.to_ascii_lowercase().contains("quantize")
        || ["QLinear", "QGemm", "QAttention", "QEmbedLayer", "QOrdered"].iter().any(|start| op.starts_with(start))
        || op.contains("NBits")
        || op.contains("Bnb4")
}

/// The node and the input of a cache: beside token numbers, a float input of four axes that goes into an attention, or is
/// joined to what was computed, and leaves the graph again.
fn cache_of_keys(graph: &GraphProto) -> Option<(&NodeProto, &str)> {
    let inputs = data_inputs(graph);
    let kind = |v: &ValueInfoProto| declared_type(v).and_then(|t| DataType::try_from(t).ok());
    let rank = |v: &ValueInfoProto| declared_dims(v).map_or(0, |d| d.len());
    if !inputs.iter().any(|v| matches!(kind(v), Some(DataType::Int64 | DataType::Int32)) && rank(v) <= 2) {
        return None;
    }
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16].map(Some);
    let caches: HashSet<&str> =
        inputs.iter().filter(|v| rank(v) == 4 && floats.contains(&kind(v))).map(|v| v.name()).collect();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    graph.node.iter().find_map(|node| {
        let joins = matches!(node.op_type(), "Concat") || node.op_type().ends_with("Attention");
        let cache = node.input.iter().find(|x| caches.contains(x.as_str()))?;
        (joins && node.output.iter().any(|o| outputs.contains(o.as_str()))).then_some((node, cache.as_str()))
    })
}

/// Sorts nodes topologically, stable where they are in order already.
pub(crate) fn sort(graph: &mut GraphProto) -> Result<()> {
    let mut ready: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(graph.input.iter().map(|v| v.name())).collect();
    let mut in_order = true;
    for node in &graph.node {
        if !node.input.iter().all(|x| x.is_empty() || ready.contains(x.as_str())) {
            in_order = false;
            break;
        }
        ready.extend(node.output.iter().map(String::as_str));
    }
    if in_order {
        return Ok(());
    }
    let links = Links::new(graph);
    let mut ready: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(graph.input.iter().map(|v| v.name())).collect();
    let mut waiting: Vec<usize> = vec![0; graph.node.len()];
    let mut queue = std::collections::BinaryHeap::new();
    for (k, node) in graph.node.iter().enumerate() {
        let mut missing: Vec<&String> =
            node.input.iter().filter(|x| !x.is_empty() && !ready.contains(x.as_str())).collect();
        missing.sort();
        missing.dedup();
        for x in &missing {
            if !links.maker.contains_key(x.as_str()) {
                return Err(
                    Error::new(ErrorKind::Format, format!("nothing makes its input `{x}`")).in_node(node_label(node))
                );
            }
        }
        waiting[k] = missing.len();
        if waiting[k] == 0 {
            queue.push(std::cmp::Reverse(k));
        }
    }
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(std::cmp::Reverse(k)) = queue.pop() {
        order.push(k);
        for o in graph.node[k].output.iter().filter(|o| !o.is_empty()) {
            if ready.insert(o) {
                for &u in links.users(o) {
                    waiting[u] -= 1;
                    if waiting[u] == 0 {
                        queue.push(std::cmp::Reverse(u));
                    }
                }
            }
        }
    }
    if order.len() != graph.node.len() {
        let stuck = (0..graph.node.len()).find(|&k| waiting[k] > 0).unwrap_or(0);
        return Err(Error::new(ErrorKind::Format, "the graph has a cycle")
            .in_node(node_label(&graph.node[stuck]))
            .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
    }
    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().filter_map(|k| nodes[k].take()).collect();
    Ok(())
}

/// Removes nodes, initializers and declarations that no output needs.
pub fn prune(graph: &mut GraphProto) {
    let mut live: HashSet<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    let mut keep = vec![false; graph.node.len()];
    for (k, node) in graph.node.iter().enumerate().rev() {
        if node.output.iter().any(|o| live.contains(o)) {
            keep[k] = true;
            live.extend(node.input.iter().cloned());
        }
    }
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        keep[k - 1]
    });
    graph.initializer.retain(|t| live.contains(t.name()));
    let made: HashSet<&str> = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    graph.value_info.retain(|v| made.contains(v.name()));
    let first = graph.input.first().map(|v| v.name().to_string());
    graph.input.retain(|v| live.contains(v.name()) || Some(v.name()) == first.as_deref());
}

/// Names for new values that no value of the graph has.
#[derive(Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Collects the names of a graph.
    pub fn new(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input));
        let taken = nodes
            .map(String::as_str)
            .chain(graph.initializer.iter().map(|t| t.name()))
            .chain(graph.input.iter().map(|v| v.name()))
            .map(str::to_string)
            .collect();
        Names { taken }
    }

    /// A free name that begins with `stem`.
    pub fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_string();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{stem}_{n}");
        }
        name
    }
}

/// The model's data inputs: inputs that are not initializers.
pub fn data_inputs(graph: &GraphProto) -> Vec<&ValueInfoProto> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph.input.iter().filter(|v| !weights.contains(v.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::tensor_info;

    fn chain() -> GraphProto {
        GraphProto {
            node: vec![
                node("Relu", &["b"], &["c"], vec![]),
                node("Relu", &["a"], &["b"], vec![]),
                node("Relu", &["a"], &["unused"], vec![]),
            ],
            input: vec![tensor_info("a", DataType::Float, &[None])],
            output: vec![tensor_info("c", DataType::Float, &[None])],
            ..Default::default()
        }
    }

    #[test]
    fn nodes_are_sorted_and_pruned() {
        let mut graph = chain();
        sort(&mut graph).unwrap();
        prune(&mut graph);
        let outputs: Vec<_> = graph.node.iter().map(|n| n.output[0].as_str()).collect();
        assert_eq!(outputs, ["b", "c"]);
    }

    #[test]
    fn every_use_of_a_transposed_weight_is_its_own() {
        let weight = crate::onnx::tensor_from_f32("w".to_string(), DataType::Float, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let mut graph = GraphProto {
            node: vec![
                node("Transpose", &["w"], &["t"], vec![]),
                node("Transpose", &["a"], &["data"], vec![]),
                node("MatMul", &["data", "t"], &["b"], vec![]),
                node("MatMul", &["b", "t"], &["c"], vec![]),
                node("Add", &["c", "data"], &["d"], vec![]),
            ],
            initializer: vec![weight],
            input: vec![tensor_info("a", DataType::Float, &[Some(2), Some(2)])],
            output: vec![tensor_info("d", DataType::Float, &[Some(2), Some(2)])],
            ..Default::default()
        };
        separate_transposes(&mut graph);
        sort(&mut graph).unwrap();
        let of_weight: Vec<_> = graph.node.iter().filter(|n| n.input == ["w"]).map(|n| n.output[0].clone()).collect();
        assert_eq!(of_weight, ["t", "t_2"]);
        let products: Vec<_> =
            graph.node.iter().filter(|n| n.op_type() == "MatMul").map(|n| n.input[1].as_str()).collect();
        assert_eq!(products, ["t", "t_2"]);
        // What is made from the image is computed once.
        assert_eq!(graph.node.len(), 6);
        let again = graph.clone();
        separate_transposes(&mut graph);
        assert_eq!(graph, again);
    }

    #[test]
    fn a_cycle_and_an_undefined_value_are_errors() {
        let mut graph = chain();
        graph.node[1].input[0] = "c".into();
        assert!(sort(&mut graph).unwrap_err().to_string().contains("cycle"));
        let mut graph = chain();
        graph.node[1].input[0] = "nowhere".into();
        assert!(sort(&mut graph).unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn quantised_and_control_flow_graphs_are_refused() {
        for op in
            ["MatMulInteger", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "If"]
        {
            let mut graph = chain();
            graph.node[0].op_type = Some(op.into());
            let error = refuse(&graph).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{op}");
            assert!(error.hint_text().is_some());
        }
    }
}
