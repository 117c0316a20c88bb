//! What the first nodes of a graph do to its image: exporters put the normalisation of pictures into the graph, and
//! whoever feeds it has to know which numbers stand for a picture.

use std::collections::{HashMap, HashSet};

use super::feed::{axis_name, declared_axes};
use super::links::Links;
use super::nodes::{Attributes, int_attribute};
use super::order::prune;
use super::subgraphs::needed;
use super::values::{data_inputs, declared_dims, declared_type};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Model, element_count, to_f32, to_i64};
use crate::ops::{self, Mark};

/// The numbers that stand for a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// 0 to 255.
    Bytes,
    /// 0 to 1.
    Unit,
    /// Nothing in the graph tells.
    Unknown,
}

/// The image input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInput {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub kind: Option<DataType>,
    /// What its values are, by its type and by what is done with them first.
    pub values: Values,
    /// True where the graph begins by reversing the order of the channels.
    pub reverses_channels: bool,
}

/// Divisors from here on are for values up to 255; those of values up to 1 are below 1.
const BYTES: f64 = 16.0;
/// Nodes that the walk from the input passes at most.
const MAX_STEPS: usize = 32;

impl ImageInput {
    /// The image input of a graph: the first of four dimensions.
    pub fn of(graph: &GraphProto) -> Option<ImageInput> {
        let input = data_inputs(graph).into_iter().find(|v| declared_dims(v).is_some_and(|d| d.len() == 4))?;
        let kind = declared_type(input).and_then(|t| DataType::try_from(t).ok());
        let (values, reverses_channels) = first_nodes(graph, input.name());
        let values = if kind.is_some_and(is_integer) { Values::Bytes } else { values };
        Some(ImageInput { name: input.name().to_string(), kind, values, reverses_channels })
    }
}

/// What was cut away of a model that is fed with images, and with what else was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutAway {
    /// The outputs that are left out.
    pub outputs: Vec<String>,
    /// The inputs that they are made from and that nothing is given for; none where another output was picked.
    pub inputs: Vec<String>,
    /// The output that was picked.
    pub of: Option<String>,
    /// What samples are given of, in words.
    sampled: String,
    /// The inputs that were fed.
    fed: Vec<String>,
}

/// What a model is given samples of.
#[derive(Clone, Copy, Debug, Default)]
pub enum SampleInputs<'a> {
    /// The image, where it takes one.
    #[default]
    Image,
    /// The inputs of these names.
    Inputs(&'a [String]),
    /// Those of these names, which take tokens.
    Tokens(&'a [String]),
}

/// Cuts away the outputs that need other inputs than those that are `given`, and these inputs; of the rest all but
/// `of`, where one is picked. Inputs that were [fed](super::feed) are none, and neither is one whose batch alone is
/// needed: see [`read_own_axes`]. `None` where there is nothing to cut. The nodes of the graph have to be in order.
///
/// # Errors
/// [`ErrorKind::Usage`] where there is no output `of`, [`ErrorKind::Unsupported`] where it, or every output, needs
/// another input.
pub fn cut(model: &mut Model, given: SampleInputs, of: Option<&str>) -> Result<Option<CutAway>> {
    let fed: Vec<String> = model.fed.iter().map(|f| f.info.name().to_string()).collect();
    let graph = model.graph_mut();
    let all: Vec<String> = graph.output.iter().map(|v| v.name().to_string()).collect();
    of.map_or(Ok(()), |of| check_output(graph, of))?;
    let image: Vec<String> = ImageInput::of(graph).into_iter().map(|input| input.name).collect();
    let sampled = match given {
        SampleInputs::Image => &image[..],
        SampleInputs::Inputs(names) | SampleInputs::Tokens(names) => names,
    };
    let others: Vec<&str> =
        data_inputs(graph).into_iter().map(|v| v.name()).filter(|&name| sampled.iter().all(|x| x != name)).collect();
    // What takes no image is fed otherwise.
    let others = if sampled.is_empty() { Vec::new() } else { others };
    if others.is_empty() && of.is_none_or(|_| all.len() == 1) {
        return Ok(None);
    }
    let others: Vec<String> = others.into_iter().map(str::to_string).collect();
    read_own_axes(graph, sampled);
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let links = Links::new(graph);
    let needy: HashSet<usize> = links.downstream(others.iter().copied()).collect();
    let needs_others = |x: &str| others.contains(&x) || links.maker(x).is_some_and(|k| needy.contains(&k));
    let wanted = all.iter().filter(|o| of.is_none_or(|of| of == *o));
    let kept: HashSet<String> = wanted.filter(|o| !needs_others(o)).cloned().collect();
    if kept.is_empty() {
        return Err(needs_more(graph, given, of, &others));
    }
    let inputs = others.into_iter().map(str::to_string).collect();
    let outputs = all.into_iter().filter(|o| !kept.contains(o)).collect();
    graph.output.retain(|v| kept.contains(v.name()));
    prune(graph);
    let used: HashSet<String> = graph.node.iter().flat_map(needed).map(str::to_string).collect();
    let is_image = |name: &str| matches!(given, SampleInputs::Image) && image.iter().any(|x| x == name);
    graph.input.retain(|v| is_image(v.name()) || used.contains(v.name()));
    let sampled = match given {
        SampleInputs::Image => "images".to_string(),
        SampleInputs::Inputs(_) | SampleInputs::Tokens(_) => {
            listed(&graph.input.iter().map(|v| v.name().to_string()).collect::<Vec<_>>())
        }
    };
    // What was fed and is needed no more is no input of what remains either.
    model.fed.retain(|f| used.contains(f.info.name()));
    Ok(Some(CutAway { outputs, inputs, of: of.map(str::to_string), sampled, fed }))
}

/// Lets a graph read lengths of axes off its `own` inputs, where it reads them off others and the file gives both axes
/// one name: an exporter that is told that pictures and texts have one batch reads it off either. True where that
/// changes anything.
pub fn read_own_axes(graph: &mut GraphProto, own: &[String]) -> bool {
    let mut axes: HashMap<String, (String, usize)> = HashMap::new();
    let mut others: HashMap<String, Vec<Option<String>>> = HashMap::new();
    for info in data_inputs(graph) {
        let names: Vec<Option<String>> =
            declared_axes(info).into_iter().flatten().map(|axis| axis_name(axis).map(str::to_string)).collect();
        match own.iter().any(|name| name == info.name()) {
            true => {
                for (at, name) in names.into_iter().enumerate().filter_map(|(at, name)| Some((at, name?))) {
                    axes.entry(name).or_insert_with(|| (info.name().to_string(), at));
                }
            }
            false => drop(others.insert(info.name().to_string(), names)),
        }
    }
    let mut changed = false;
    for node in graph.node.iter_mut().filter(|node| node.op_type() == "Shape") {
        let (first, end) = (node.int("start").unwrap_or(0), node.int("end"));
        let names = node.input.first().and_then(|x| others.get(x)).filter(|_| end == Some(first + 1));
        let name = names.zip(usize::try_from(first).ok()).and_then(|(names, at)| names.get(at)?.as_ref());
        if let Some((input, at)) = name.and_then(|name| axes.get(name)) {
            node.input = vec![input.clone()];
            node.attribute = vec![int_attribute("start", *at as i64), int_attribute("end", *at as i64 + 1)];
            changed = true;
        }
    }
    changed
}

/// Checks that a graph has an output.
///
/// # Errors
/// [`ErrorKind::Usage`] where there is none of this name.
pub fn check_output(graph: &GraphProto, of: &str) -> Result<()> {
    let all: Vec<String> = graph.output.iter().map(|v| v.name().to_string()).collect();
    match all.iter().any(|o| o == of) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Usage, format!("the model has no output `{of}`"))
            .hint(format!("its outputs are {}", listed(&all)))),
    }
}

/// The error where what is wanted needs inputs that nothing is given for.
fn needs_more(graph: &GraphProto, given: SampleInputs, of: Option<&str>, others: &[&str]) -> Error {
    let links = Links::new(graph);
    let behind: Option<HashSet<&str>> = of.map(|of| links.upstream([of]).collect());
    let needed = others.iter().filter(|x| behind.as_ref().is_none_or(|b| b.contains(**x)));
    let needed: Vec<String> = needed.map(|x| x.to_string()).collect();
    let what = of.map_or("every output needs".to_string(), |of| format!("the output `{of}` needs"));
    let first = needed.first().map(String::as_str).unwrap_or_default();
    let feed =
        format!("give them with ⟦feed⟧, such as ⟦feed⟧ {first}=ones, or export the model with these as constants");
    let (beside, hint) = match given {
        SampleInputs::Image => ("inputs beside the image", feed),
        SampleInputs::Inputs(_) => {
            ("inputs that ⟦inputs⟧ has no array for", format!("add arrays of these names, or {feed}"))
        }
        SampleInputs::Tokens(_) => {
            ("inputs that are not made of tokens", format!("give arrays for all of them with ⟦inputs⟧, or {feed}"))
        }
    };
    Error::new(ErrorKind::Unsupported, format!("{what} {beside}: {}", listed(&needed))).hint(hint)
}

impl CutAway {
    /// What was cut away, in one line.
    pub fn note(&self) -> String {
        let outputs = listed(&self.outputs);
        if let Some(of) = &self.of {
            return match self.outputs.len() {
                0 => format!("`{of}` needs no {}: what it does not need is left out", listed(&self.inputs)),
                1 => format!("`{of}` is the output that counts: {outputs} is left out"),
                _ => format!("`{of}` is the output that counts: {outputs} are left out"),
            };
        }
        let inputs = listed(&self.inputs);
        let given = match &self.fed[..] {
            [] => self.sampled.clone(),
            fed => format!("{} and {}", self.sampled, listed(fed)),
        };
        match &self.outputs[..] {
            [] => format!("no output needs {inputs}, and nothing is given for it: it is left out"),
            [_] => format!("only {given} are fed: {outputs}, made from {inputs}, is left out"),
            _ => format!("only {given} are fed: {outputs}, made from {inputs}, are left out"),
        }
    }
}

/// Names in a list for messages.
pub(crate) fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// True for whole numbers.
pub fn is_integer(kind: DataType) -> bool {
    use DataType::*;
    matches!(kind, Uint8 | Int8 | Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64)
}

/// What is computed from the image before anything but a scaling, a shift or a move of pixels is done with it.
fn first_nodes(graph: &GraphProto, input: &str) -> (Values, bool) {
    let links = Links::new(graph);
    let (mut value, mut affine, mut reverses) = (input, Affine { scale: vec![1.0], shift: vec![0.0] }, false);
    // Whoever asks for the shape does nothing with the values.
    for k in links.follow(input, |n| n.op_type() != "Shape").take(MAX_STEPS) {
        let node = &graph.node[k];
        let is_first = node.input.first().is_some_and(|x| x == value);
        match node.op_type() {
            _ if is_first && ops::of(node).is(Mark::Image) => {}
            "Gather" if is_first => {
                let order = node.input.get(1).and_then(|x| constant(graph, &links, x)).and_then(|t| to_i64(t).ok());
                match order.as_deref() {
                    Some([2, 1, 0]) => reverses = !reverses,
                    _ => break,
                }
            }
            "Slice" if is_first => {
                let steps = node.input.get(4).and_then(|x| constant(graph, &links, x)).and_then(|t| to_i64(t).ok());
                reverses ^= steps.is_some_and(|s| s.contains(&-1));
            }
            _ if ops::of(node).is(Mark::Arithmetic) => {
                let other = node.input.iter().find(|x| *x != value);
                let Some(numbers) = other.and_then(|x| constant(graph, &links, x)).and_then(numbers) else { break };
                if !affine.then(node.op_type(), is_first, &numbers) {
                    break;
                }
            }
            _ => break,
        }
        let Some(output) = node.output.first() else { break };
        value = output;
    }
    (affine.values(), reverses)
}

/// A constant, behind casts and reshapes.
fn constant<'g>(graph: &'g GraphProto, links: &Links<'g>, name: &'g str) -> Option<&'g TensorProto> {
    let moves = |node: &NodeProto| ops::of(node).is(Mark::Keeps) && !matches!(node.op_type(), "Flatten" | "Transpose");
    let moved = |node: &'g NodeProto| node.input.first().filter(|_| moves(node)).map(String::as_str);
    let name = links.follow_back(name, moved).take(4).last()?;
    let written = graph.initializer.iter().find(|t| t.name() == name);
    let node = links.maker(name).map(|k| &graph.node[k]).filter(|node| node.op_type() == "Constant");
    written.or_else(|| node?.tensor("value"))
}

/// One number for all channels, or one for each.
fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    let is_list = tensor.dims.iter().filter(|&&d| d != 1).count() <= 1;
    if !is_list || !element_count(tensor).is_ok_and(|n| (1..=4).contains(&n)) {
        return None;
    }
    let floats = to_f32(tensor).map(|v| v.into_iter().map(f64::from).collect());
    floats.ok().or_else(|| Some(to_i64(tensor).ok()?.into_iter().map(|n| n as f64).collect()))
}

/// scale * x + shift, for all channels or for each.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl Affine {
    /// Puts an operation with numbers behind it; false where that is no affine function.
    fn then(&mut self, op: &str, is_first: bool, numbers: &[f64]) -> bool {
        let count = self.scale.len().max(numbers.len());
        let grow = |list: &Vec<f64>| (0..count).map(|c| list.get(c).or(list.first()).copied().unwrap_or(0.0)).collect();
        (self.scale, self.shift) = (grow(&self.scale), grow(&self.shift));
        for (c, (scale, shift)) in self.scale.iter_mut().zip(&mut self.shift).enumerate() {
            let n = numbers.get(c).or(numbers.first()).copied().unwrap_or(0.0);
            match (op, is_first) {
                ("Add", _) => *shift += n,
                ("Sub", true) => *shift -= n,
                ("Sub", false) => (*scale, *shift) = (-*scale, n - *shift),
                ("Mul", _) => (*scale, *shift) = (*scale * n, *shift * n),
                ("Div", true) => (*scale, *shift) = (*scale / n, *shift / n),
                _ => return false,
            }
        }
        true
    }

    /// Which values it normalises.
    fn values(&self) -> Values {
        let all = |test: fn(f64, f64) -> bool| {
            let mut parts =
                self.scale.iter().zip(&self.shift).map(|(scale, shift)| (-shift / scale, 1.0 / scale.abs()));
            parts.all(|(mean, std)| mean.is_finite() && std.is_finite() && test(mean, std))
        };
        // Deviations of bytes, or no more than means near 127, as Caffe had it.
        if all(|mean, std| std >= BYTES || (std == 1.0 && (80.0..180.0).contains(&mean))) {
            Values::Bytes
        } else if all(|mean, std| (0.1..=0.6).contains(&std) && (0.2..=0.8).contains(&mean)) {
            Values::Unit
        } else {
            Values::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, node};
    use crate::onnx::proto::{ModelProto, tensor_shape_proto::dimension::Value as Size};
    use crate::onnx::{tensor_from_f32, tensor_from_i64, tensor_info};

    /// What is known of an input whose first nodes are these; constants are called by their values.
    fn values(kind: DataType, nodes: &[(&str, &[f32])]) -> (Values, bool) {
        let mut graph =
            GraphProto { input: vec![tensor_info("x", kind, &[None, Some(3), None, None])], ..Default::default() };
        for (k, (op, constant)) in nodes.iter().enumerate() {
            let (from, to, operand) = (format!("v{k}"), format!("v{}", k + 1), format!("c{k}"));
            let from = if k == 0 { "x".to_string() } else { from };
            let (name, first) = op.split_once(' ').map_or((*op, true), |(op, _)| (op, false));
            let shape = if constant.len() == 1 { vec![] } else { vec![constant.len(), 1, 1] };
            let t = match name {
                "Gather" => {
                    tensor_from_i64(operand.clone(), &[3], &constant.iter().map(|&v| v as i64).collect::<Vec<_>>())
                }
                _ => tensor_from_f32(operand.clone(), DataType::Float, &shape, constant),
            };
            graph.initializer.push(t);
            let inputs = if first { [from.as_str(), &operand] } else { [operand.as_str(), &from] };
            let attributes = if name == "Gather" { vec![int_attribute("axis", 1)] } else { vec![] };
            let inputs = if matches!(name, "Cast" | "Conv" | "Relu") { &inputs[..1] } else { &inputs[..] };
            graph.node.push(node(name, inputs, &[&to], attributes));
        }
        let found = ImageInput::of(&graph).unwrap();
        (found.values, found.reverses_channels)
    }

    #[test]
    fn an_axis_of_one_name_is_read_off_the_input_that_is_given() {
        let info = |name: &str, axes: &[&str]| {
            let mut info = tensor_info(name, DataType::Float, &vec![None; axes.len()]);
            let declared = crate::graph::axes_mut(&mut info).unwrap();
            declared.iter_mut().zip(axes).for_each(|(axis, name)| axis.value = Some(Size::DimParam(name.to_string())));
            info
        };
        let shape = |first: i64| vec![int_attribute("start", first), int_attribute("end", first + 1)];
        let graph = || GraphProto {
            node: vec![
                node("Shape", &["texts"], &["batch"], shape(0)),
                node("Shape", &["texts"], &["length"], shape(1)),
                node("Expand", &["pictures", "batch"], &["image"], vec![]),
                node("Expand", &["texts", "length"], &["text"], vec![]),
            ],
            input: vec![info("texts", &["n", "tokens"]), info("pictures", &["rows", "n"])],
            output: ["image", "text"].map(|name| tensor_info(name, DataType::Float, &[None])).to_vec(),
            ..GraphProto::default()
        };
        let own = ["pictures".to_string()];
        let mut read = graph();
        assert!(read_own_axes(&mut read, &own) && !read_own_axes(&mut read.clone(), &own));
        assert_eq!(
            (read.node[0].input[0].as_str(), read.node[0].int("start"), read.node[0].int("end")),
            (own[0].as_str(), Some(1), Some(2))
        );
        assert_eq!(read.node[1..], graph().node[1..]);
        let mut model = Model::from_proto(ModelProto { graph: Some(graph()), ..ModelProto::default() });
        let cut = cut(&mut model, SampleInputs::Inputs(&own), None).unwrap().unwrap();
        assert_eq!((cut.outputs, model.graph().node.len(), model.graph().input.len()), (vec!["text".into()], 2, 1));
    }

    #[test]
    fn normalisations_are_told_by_their_numbers() {
        use Values::*;
        let float = |nodes: &[(&str, &[f32])]| values(DataType::Float, nodes).0;
        // Rescaling, as Keras and timm's exports begin.
        assert_eq!(float(&[("Div", &[255.0]), ("Conv", &[0.0])]), Bytes);
        assert_eq!(
            float(&[("Mul", &[1.0 / 255.0]), ("Sub", &[0.485, 0.456, 0.406]), ("Div", &[0.229, 0.224, 0.225])]),
            Bytes
        );
        assert_eq!(float(&[("Cast", &[0.0]), ("Mul", &[1.0 / 127.5]), ("Add", &[-1.0])]), Bytes);
        // Means alone, as Caffe has them, and means with deviations.
        assert_eq!(float(&[("Sub", &[103.9, 116.8, 123.7]), ("Conv", &[0.0])]), Bytes);
        assert_eq!(float(&[("Sub", &[123.7, 116.8, 103.9]), ("Div", &[58.4, 57.1, 57.4])]), Bytes);
        assert_eq!(float(&[("Sub 2", &[127.0]), ("Relu", &[0.0])]), Bytes);
        // Values from 0 to 1.
        assert_eq!(float(&[("Sub", &[0.5]), ("Div", &[0.5])]), Unit);
        assert_eq!(float(&[("Mul", &[2.0]), ("Sub", &[1.0]), ("Conv", &[0.0])]), Unit);
        // None of these: no normalisation, one of normalised values, a scale of features.
        assert_eq!(float(&[("Conv", &[0.0]), ("Div", &[255.0])]), Unknown);
        assert_eq!(float(&[("Mul", &[0.458, 0.448, 0.45]), ("Add", &[-0.03, -0.088, -0.188])]), Unknown);
        assert_eq!(float(&[("Relu", &[0.0])]), Unknown);
        assert_eq!(float(&[("Div", &[0.0])]), Unknown);
        assert_eq!(values(DataType::Uint8, &[("Cast", &[0.0]), ("Conv", &[0.0])]).0, Bytes);
        assert_eq!(values(DataType::Float, &[("Gather", &[2.0, 1.0, 0.0]), ("Div", &[255.0])]), (Bytes, true));
    }
}
