//! The bundled ancestor in front of which other preprocessing stands, as people export it. Its logits are known, and so
//! what is right is known for every form.

use std::path::Path;

use image::{DynamicImage, RgbImage};
use offshoot::graph::{data_inputs, declared_dims, node};
use offshoot::graph::{int_attribute, ints_attribute};
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_info, to_f32};

use super::fashion::{self, ANCESTOR};
use crate::common::root;

/// The transform that the ancestor was trained with.
pub const MEAN: f32 = 0.286;
pub const STD: f32 = 0.353;

/// The ancestor for three channels, of which it takes these shares, without metadata of its transform.
pub fn rgb(shares: [f32; 3]) -> Model {
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    model.proto.metadata_props.retain(|entry| entry.key() != "offshoot.preprocess");
    let graph = model.graph_mut();
    let weight = graph.node.iter().find(|n| n.op_type() == "Conv").unwrap().input[1].clone();
    let tensor = graph.initializer.iter_mut().find(|t| t.name() == weight).unwrap();
    let dims = tensor.shape();
    let own = to_f32(tensor).unwrap();
    let size = dims[2] * dims[3];
    let all: Vec<f32> =
        own.chunks(size).flat_map(|k| shares.iter().flat_map(|s| k.iter().map(move |v| v * s))).collect();
    *tensor = tensor_from_f32(weight, DataType::Float, &[dims[0], 3, dims[2], dims[3]], &all);
    let name = input(&model);
    model.graph_mut().input = vec![tensor_info(name, DataType::Float, &[None, Some(3), Some(28), Some(28)])];
    model
}

fn input(model: &Model) -> String {
    data_inputs(model.graph())[0].name().to_string()
}

/// Puts nodes in front of a model: `steps` are operators with an operand each, from the new input to the old. An
/// operand is a constant of float32, or one of the axes that an operator takes as an attribute or as integers.
pub fn before(mut model: Model, kind: DataType, dims: &[Option<usize>], steps: &[(&str, Vec<f32>)]) -> Model {
    let old = input(&model);
    let graph = model.graph_mut();
    let mut nodes: Vec<NodeProto> = Vec::new();
    let value = |k: usize| match k {
        0 => "picture".to_string(),
        k if k == steps.len() => old.clone(),
        k => format!("before_{k}"),
    };
    for (k, (op, numbers)) in steps.iter().enumerate() {
        let (from, to, operand) = (value(k), value(k + 1), format!("operand_{k}"));
        let whole: Vec<i64> = numbers.iter().map(|&n| n as i64).collect();
        let made = match *op {
            "Cast" => node(op, &[&from], &[&to], vec![int_attribute("to", DataType::Float as i64)]),
            "Transpose" => node(op, &[&from], &[&to], vec![ints_attribute("perm", &whole)]),
            "Gather" | "Unsqueeze" => {
                graph.initializer.push(tensor_from_i64(operand.clone(), &[whole.len()], &whole));
                let axis = if *op == "Gather" { vec![int_attribute("axis", 1)] } else { vec![] };
                node(op, &[&from, &operand], &[&to], axis)
            }
            _ => {
                graph.initializer.push(tensor_from_f32(operand.clone(), DataType::Float, &[numbers.len()], numbers));
                node(op, &[&from, &operand], &[&to], vec![])
            }
        };
        nodes.push(made);
    }
    graph.node.splice(0..0, nodes);
    graph.input = vec![tensor_info("picture", kind, dims)];
    model
}

/// What is behind bytes in a graph that normalises them itself.
pub fn normalising() -> Vec<(&'static str, Vec<f32>)> {
    vec![("Div", vec![255.0]), ("Sub", vec![MEAN]), ("Div", vec![STD])]
}

/// The model without an axis of images: its output loses that too.
pub fn single(mut model: Model) -> Model {
    let output = model.graph().output[0].name().to_string();
    let graph = model.graph_mut();
    let last = graph.node.iter_mut().find(|n| n.output.contains(&output)).unwrap();
    last.output.iter_mut().filter(|o| **o == output).for_each(|o| *o = "batch_of_one".into());
    graph.initializer.push(tensor_from_i64("first_axis".to_string(), &[1], &[0]));
    graph.node.push(node("Squeeze", &["batch_of_one", "first_axis"], &[&output], vec![]));
    graph.output = vec![tensor_info(output, DataType::Float, &[Some(10)])];
    model
}

/// A folder for each of some classes with coloured pictures, whose green and blue are these shares of their red.
pub fn coloured(folder: &Path, [green, blue]: [f32; 2]) {
    for class in 0..10u8 {
        let name = fashion::NAMES[usize::from(class)].replace('/', "-");
        std::fs::create_dir_all(folder.join(&name)).unwrap();
        for (number, grey) in fashion::pictures(class, 3).into_iter().enumerate() {
            let shade = |v: u8, share: f32| (f32::from(v) * share) as u8;
            let colour = RgbImage::from_fn(28, 28, |x, y| {
                let [red] = grey.get_pixel(x, y).0;
                image::Rgb([red, shade(red, green), shade(red, blue)])
            });
            DynamicImage::from(colour).save(folder.join(&name).join(format!("{number}.png"))).unwrap();
        }
    }
}

/// The shape that the only input of a file declares, and its type.
pub fn declared(path: &Path) -> (Vec<Option<usize>>, DataType) {
    let model = Model::open(path).unwrap();
    let info = data_inputs(model.graph())[0];
    let kind = offshoot::graph::declared_type(info).unwrap();
    (declared_dims(info).unwrap(), DataType::try_from(kind).unwrap())
}
