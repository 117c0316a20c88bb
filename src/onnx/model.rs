//! A model and where it came from.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::bounds;
use super::external::{self, ExternalLinks};
use super::proto::tensor_shape_proto::Dimension;
use super::proto::{self, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use super::source::{MappedFile, map};
use super::subgraphs::{subgraphs, with_inner_nodes};
use super::tensor::{self, DataType, data_type};
use super::write::{self, encoded_len};
use crate::error::{Error, ErrorKind, Result};

/// The file layer caps a model's own structure (nodes, names, small attributes); weights are slices and do not count.
const MAX_NODES: usize = 1 << 20;
/// The first IR version in which an initializer need not be an input as well.
const OWN_INITIALIZERS: i64 = 4;

/// An ONNX model and where it came from.
#[derive(Clone, Debug)]
pub struct Model {
    /// The decoded model. Payloads of initializers are slices of the mapped file.
    pub proto: ModelProto,
    /// The file that it was read from; empty for a model made in memory.
    pub path: PathBuf,
    /// Bytes of the file and its external data.
    pub bytes: u64,
    /// The files that payloads lie in.
    pub(super) sources: Arc<Vec<MappedFile>>,
    /// Where metadata come from that are not the file's own, by their key.
    suppliers: HashMap<String, Vec<String>>,
    /// Inputs that stand in the graph as values.
    pub(crate) fed: Vec<FedValue>,
    /// True where samples of a batch were found to change each other when it runs, whatever its graph shows: a batch
    /// of one stays one.
    pub(crate) is_of_singles: bool,
    /// The IR version of the file.
    ir_version: i64,
}

/// An input that was given a value, which stands in the graph in its place until the model is written.
#[derive(Clone, Debug)]
pub struct FedValue {
    /// What the file declares of the input.
    pub info: ValueInfoProto,
    /// Its place among the inputs, when it was taken from there.
    pub place: usize,
    /// The value, in words.
    pub value: String,
    /// Axes that are as long as one of another input.
    pub like: Vec<Like>,
}

/// An axis of an input that is as long as one of another input.
#[derive(Clone, Debug)]
pub struct Like {
    /// The axis.
    pub axis: usize,
    /// The other input.
    pub input: String,
    /// The axis of the other input.
    pub of: usize,
    /// What the other input declared of it.
    pub declared: Dimension,
}

impl Model {
    /// Opens the ONNX model at `path` without reading its weights. Weights that it lists among its inputs are weights
    /// alone from then on, which takes IR version 4: an older version is raised.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the file cannot be mapped, [`ErrorKind::Format`] where it is no ONNX model, is
    /// truncated, or holds a tensor whose payload disagrees with its dims, and [`ErrorKind::Unsupported`] for external
    /// data outside the model's folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::open_with(path, ExternalLinks::Refuse)
    }

    /// [`Model::open`], with a choice about external data that links outside the model's folder.
    pub fn open_with(path: impl AsRef<Path>, links: ExternalLinks) -> Result<Model> {
        let path = path.as_ref();
        let (bytes, source) = map(path)?;
        let mut sources = vec![source];
        if bytes.is_empty() {
            return Err(not_onnx(path, "the file is empty"));
        }
        let size = bytes.len() as u64;
        bounds::check(&bytes).map_err(|e| e.at(path))?;
        let mut proto = ModelProto::decode(bytes).map_err(|e| not_onnx(path, &e.to_string()))?;
        let Some(graph) = &proto.graph else {
            return Err(not_onnx(path, "it has no graph"));
        };
        if proto.ir_version.is_none() && graph.node.is_empty() {
            return Err(not_onnx(path, "it has neither an IR version nor nodes"));
        }
        if graph.node.len() > MAX_NODES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} nodes are more than the limit of {MAX_NODES}", graph.node.len()),
            )
            .at(path));
        }
        let external = external::resolve(&mut proto, path, links, &mut sources)?;
        check(&proto).map_err(|e| e.at(path))?;
        let (bytes, sources) = (size + external, Arc::new(sources));
        Ok(Model { path: path.to_path_buf(), bytes, sources, ..Model::bare(proto) })
    }

    /// Decodes a model from bytes in memory.
    ///
    /// # Errors
    /// As [`Model::open`]; external data is refused.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Model> {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        let path = PathBuf::new();
        bounds::check(&bytes)?;
        let proto = ModelProto::decode(bytes).map_err(|e| not_onnx(&path, &e.to_string()))?;
        if proto.graph.is_none() {
            return Err(not_onnx(&path, "it has no graph"));
        }
        if tensors(&proto).any(tensor::is_external) {
            bail!(Unsupported, "a model in memory cannot have external data");
        }
        check(&proto)?;
        Ok(Model { path, bytes: size, ..Model::bare(proto) })
    }

    /// A model of no file.
    fn bare(proto: ModelProto) -> Model {
        Model {
            path: PathBuf::new(),
            bytes: 0,
            sources: Arc::default(),
            suppliers: HashMap::new(),
            fed: Vec::new(),
            is_of_singles: false,
            ir_version: proto.ir_version(),
            proto,
        }
    }

    /// A model made in memory.
    pub fn from_proto(proto: ModelProto) -> Model {
        Model { bytes: encoded_len(&proto), ..Model::bare(proto) }
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        // `open`, `from_bytes` and every rewriting step keep a graph; an empty one stands in for a model made by hand.
        static EMPTY: std::sync::LazyLock<GraphProto> = std::sync::LazyLock::new(GraphProto::default);
        self.proto.graph.as_ref().unwrap_or(&EMPTY)
    }

    /// The main graph, to be edited.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto.graph.get_or_insert_with(GraphProto::default)
    }

    /// The IR version of the file; what is written of a model that was prepared has at least 4.
    pub fn ir_version(&self) -> i64 {
        self.ir_version
    }

    /// Takes initializers out of the inputs. IR version 3 lists every weight there, and later ones may: such an entry
    /// declares a shape that surgery changes, and a weight that is made on the way has none.
    pub(crate) fn own_initializers(&mut self) {
        self.proto.ir_version = Some(self.ir_version.max(OWN_INITIALIZERS));
        if let Some(graph) = &mut self.proto.graph {
            let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
            graph.input.retain(|v| !weights.contains(v.name()));
        }
    }

    /// The version of the default operator set.
    pub fn opset(&self) -> i64 {
        self.proto
            .opset_import
            .iter()
            .filter(|o| matches!(o.domain(), "" | "ai.onnx"))
            .map(|o| o.version())
            .max()
            .unwrap_or(1)
    }

    /// A value of the model's `metadata_props`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto.metadata_props.iter().find(|p| p.key() == key).map(|p| p.value())
    }

    /// Sets a value of the model's `metadata_props`.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        self.proto.metadata_props.retain(|p| p.key() != key);
        self.proto
            .metadata_props
            .push(proto::StringStringEntryProto { key: Some(key.to_string()), value: Some(value.into()) });
    }

    /// Sets a value of the model's `metadata_props` that the file does not hold, and remembers who supplied it:
    /// `flags`, the path of a configuration. What is made of the model then holds the value itself.
    pub fn supply_metadata(&mut self, key: &str, value: impl Into<String>, suppliers: Vec<String>) {
        self.set_metadata(key, value);
        self.suppliers.insert(key.to_string(), suppliers);
    }

    /// Who supplied a value of the metadata, the strongest first; nobody for the file's own.
    pub fn suppliers(&self, key: &str) -> &[String] {
        self.suppliers.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Writes the model to `path`, through a temporary file that replaces it at the end. Models past 2 GB get their
    /// weights in one file of external data beside it (`NAME.data`).
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the file cannot be written, and where a file that weights come from was written over
    /// since it was opened; nothing is left behind then.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<u64> {
        self.write_accepted(path, &|_| Ok(()))
    }

    /// Writes the model as [`Model::write`] does, where `accept` takes its file, which has a temporary name beside
    /// `path` then.
    ///
    /// # Errors
    /// Those of [`Model::write`] and of `accept`; nothing is left behind, and an older file at `path` is untouched.
    pub fn write_accepted(&self, path: impl AsRef<Path>, accept: &dyn Fn(&Path) -> Result<()>) -> Result<u64> {
        write::write(&self.proto, path.as_ref(), &self.sources, accept)
    }

    /// The encoded model, for a runtime that takes bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(encoded_len(&self.proto) as usize);
        // Writing to a vector cannot fail.
        let _ = write::encode(&self.proto, &mut out);
        out
    }

    /// The encoded model without its weights, and the weights where they lie: for a runtime that takes tensors or files
    /// in memory. Of the weights no copy is made, and no message grows past the 2 GB of protobuf.
    pub(crate) fn into_parts(mut self) -> (Vec<u8>, Vec<Payload>) {
        let mut payloads = Vec::new();
        for tensor in &mut self.graph_mut().initializer {
            let Some(bytes) = external::take(tensor) else { continue };
            let file = payloads.len().to_string();
            external::refer(tensor, &file, 0, bytes.len());
            let (name, kind) = (tensor.name().to_string(), data_type(tensor));
            payloads.push(Payload { name, kind, dims: tensor.dims.clone(), file, bytes });
        }
        (self.to_bytes(), payloads)
    }
}

/// A weight apart from its message.
pub(crate) struct Payload {
    /// The initializer.
    pub name: String,
    /// Its element type, where it is one that is known.
    pub kind: Option<DataType>,
    /// Its shape.
    pub dims: Vec<i64>,
    /// What the message calls the file that holds it.
    pub file: String,
    /// Its values, in little-endian order.
    pub bytes: Bytes,
}

fn not_onnx(path: &Path, why: &str) -> Error {
    let error = Error::new(ErrorKind::Format, format!("not an ONNX model, or truncated ({why})"))
        .hint("give a file that `onnx.checker.check_model` accepts; a download that broke off ends early");
    if path.as_os_str().is_empty() { error } else { error.at(path) }
}

/// Checks what later stages rely on: payload lengths and unique value names.
fn check(model: &ModelProto) -> Result<()> {
    for node in nodes(model) {
        for t in node_tensors(node) {
            tensor::check(t).map_err(|e| e.in_node(node_label(node)))?;
        }
    }
    let Some(graph) = &model.graph else { return Ok(()) };
    let mut names = HashSet::new();
    for t in &graph.initializer {
        tensor::check(t)?;
        if !names.insert(t.name()) {
            bail!(Format, "two initializers are called `{}`", t.name());
        }
    }
    let mut makers: HashMap<&str, &NodeProto> = HashMap::new();
    for node in &graph.node {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = makers.insert(output, node) {
                let is_output = graph.output.iter().any(|o| o.name() == output.as_str());
                let message = format!("two nodes make a value called `{output}`, `{}` and this one", node_label(first));
                return Err(Error::new(ErrorKind::Format, message).in_node(node_label(node)).hint(match is_output {
                    // torch 2.15 writes that where an output bears the name of a value inside the graph.
                    true => format!(
                        "export the model again with another name for the output `{output}` (output_names): a value \
                         inside has that name too"
                    ),
                    false => "export the model again: `onnx.checker.check_model` refuses it, too".into(),
                }));
            }
            if !names.insert(output) {
                bail!(Format, "a node makes a value called `{output}`, and so is an initializer");
            }
        }
    }
    Ok(())
}

/// The nodes of the graph and of the functions, and those inside them: all may become nodes of the graph.
fn nodes(model: &ModelProto) -> Vec<&NodeProto> {
    with_inner_nodes(model.graph.iter().flat_map(|g| &g.node).chain(model.functions.iter().flat_map(|f| &f.node)))
}

/// Tensors among the attributes of a node, whatever type they say that they are, and weights of graphs inside it.
fn node_tensors(node: &NodeProto) -> impl Iterator<Item = &TensorProto> {
    let weights = subgraphs(node).flat_map(|g| &g.initializer);
    node.attribute.iter().filter_map(|a| a.t.as_ref()).chain(weights)
}

/// The tensors that a graph may come to use.
fn tensors(model: &ModelProto) -> impl Iterator<Item = &TensorProto> {
    model.graph.iter().flat_map(|g| &g.initializer).chain(nodes(model).into_iter().flat_map(node_tensors))
}

/// How messages call a node: its name, or its operator and first output.
pub fn node_label(node: &NodeProto) -> String {
    match node.name() {
        "" => format!("{} -> {}", node.op_type(), node.output.first().map(String::as_str).unwrap_or("")),
        name => name.to_string(),
    }
}
