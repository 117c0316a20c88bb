//! Changes of inputs. A number decides them, so that an input is known by its seed and its number.
//!
//! Changed bytes alone seldom get past the decoder: [`model`] changes the graph that bytes are decoded to, as damage or
//! malice would.

use offshoot::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use offshoot::onnx::proto::{tensor_shape_proto::dimension::Value, type_proto};
use offshoot::onnx::{data_type, element_size};
use prost::Message;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

type Random = Xoshiro256PlusPlus;

/// Numbers at which something changes.
const NUMBERS: [i64; 22] = [
    0,
    1,
    -1,
    2,
    3,
    -2,
    4,
    7,
    16,
    64,
    100,
    127,
    255,
    256,
    4096,
    65_536,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

/// Operators that a node may turn into, beside those that its model has.
const OPERATORS: [&str; 46] = [
    "MatMul",
    "Gemm",
    "Einsum",
    "Conv",
    "ConvTranspose",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Slice",
    "Concat",
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterND",
    "Expand",
    "Tile",
    "Pad",
    "Resize",
    "Softmax",
    "LayerNormalization",
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "Shape",
    "Size",
    "Range",
    "Where",
    "ConstantOfShape",
    "Constant",
    "Cast",
    "Attention",
    "RotaryEmbedding",
    "AveragePool",
    "MaxPool",
    "GlobalAveragePool",
    "DepthToSpace",
    "SpaceToDepth",
    "TopK",
    "OneHot",
    "Trilu",
];

fn generator(seed: u64) -> Random {
    Random::seed_from_u64(seed)
}

fn pick<'a, T>(list: &'a [T], random: &mut Random) -> Option<&'a T> {
    (!list.is_empty()).then(|| &list[random.random_range(0..list.len())])
}

fn pick_mut<'a, T>(list: &'a mut [T], random: &mut Random) -> Option<&'a mut T> {
    (!list.is_empty()).then(|| random.random_range(0..list.len())).map(|i| &mut list[i])
}

fn number(random: &mut Random) -> i64 {
    match random.random_range(0..4) {
        0 => random.random_range(-4..40),
        _ => NUMBERS[random.random_range(0..NUMBERS.len())],
    }
}

/// Changes some bytes.
pub fn bytes(data: &[u8], seed: u64) -> Vec<u8> {
    let random = &mut generator(seed);
    let mut out = data.to_vec();
    for _ in 0..random.random_range(1..6) {
        change_bytes(&mut out, random);
    }
    out
}

fn change_bytes(out: &mut Vec<u8>, random: &mut Random) {
    if out.is_empty() {
        out.push(random.random());
        return;
    }
    // Headers come first.
    let end = if random.random() { out.len() } else { out.len().min(64) };
    let at = random.random_range(0..end);
    let length = random.random_range(1..=(out.len() - at).min(32));
    match random.random_range(0..9) {
        0 => out[at] ^= 1 << random.random_range(0..8),
        1 => out[at] = random.random(),
        2 => out[at] = out[at].wrapping_add(random.random_range(0..5)).wrapping_sub(2),
        3 => drop(out.drain(at..at + length)),
        4 => {
            let part = out[at..at + length].to_vec();
            let to = random.random_range(0..=out.len());
            out.splice(to..to, part);
        }
        5 => out.truncate(at),
        6 => {
            let part = out[at..at + length].to_vec();
            let to = random.random_range(0..=out.len() - length);
            out[to..to + length].copy_from_slice(&part);
        }
        7 => {
            // A number of one to eight bytes, in either order.
            let n = [1, 2, 4, 8][random.random_range(0..4)].min(out.len() - at);
            let number = number(random);
            let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
            out[at..at + n].copy_from_slice(if random.random() { &little[..n] } else { &big[8 - n..] });
        }
        _ => {
            let mut number = number(random) as u64;
            let mut varint = Vec::new();
            while number > 0x7f {
                varint.push(number as u8 | 0x80);
                number >>= 7;
            }
            varint.push(number as u8);
            out.splice(at..at + 1, varint);
        }
    }
}

/// Changes bytes of a model, or what they are decoded to.
pub fn message(data: &[u8], seed: u64) -> Vec<u8> {
    if seed.is_multiple_of(4) { model(data, seed) } else { bytes(data, seed) }
}

/// Changes the graph of a model.
pub fn model(data: &[u8], seed: u64) -> Vec<u8> {
    let random = &mut generator(seed);
    let decoded = ModelProto::decode(data).ok();
    let Some(mut model) = decoded.filter(|m| m.graph.is_some()) else { return bytes(data, seed) };
    for _ in 0..random.random_range(1..4) {
        change_model(&mut model, random);
    }
    model.encode_to_vec()
}

fn change_model(model: &mut ModelProto, random: &mut Random) {
    let imports = model.opset_import.len();
    let Some(graph) = model.graph.as_mut() else { return };
    match random.random_range(0..20) {
        0 if imports > 0 => model.opset_import[random.random_range(0..imports)].version = Some(number(random)),
        1 => drop(graph.input.pop()),
        2 | 3 => {
            let lists = [&mut graph.input, &mut graph.output, &mut graph.value_info];
            let list = lists.into_iter().nth(random.random_range(0..3));
            list.and_then(|l| pick_mut(l, random)).into_iter().for_each(|v| change_value(v, random));
        }
        4..8 => {
            if let Some(t) = pick_mut(&mut graph.initializer, random) {
                change_tensor(t, random);
            }
        }
        8 => {
            let body = model.functions.first_mut().and_then(|f| pick_mut(&mut f.node, random));
            if let Some(node) = body {
                change_node(node, &[], random);
            }
        }
        _ => change_nodes(graph, random),
    }
}

fn change_nodes(graph: &mut GraphProto, random: &mut Random) {
    let count = graph.node.len();
    if count == 0 {
        return;
    }
    let (a, b) = (random.random_range(0..count), random.random_range(0..count));
    match random.random_range(0..12) {
        0 => drop(graph.node.remove(a)),
        1 => graph.node.swap(a, b),
        2 => {
            // Behind itself, under the names of others.
            let mut copy = graph.node[a].clone();
            copy.output.iter_mut().for_each(|o| o.push('\''));
            graph.node.insert(a + 1, copy);
        }
        3 => graph.node[a].op_type = graph.node[b].op_type.clone(),
        4 => graph.node[a].op_type = pick(&OPERATORS, random).map(|o| o.to_string()),
        5 => graph.node[a].attribute = graph.node[b].attribute.clone(),
        6 => {
            // Around the node.
            let (from, to) = (graph.node[a].output.first().cloned(), graph.node[a].input.first().cloned());
            let users = graph.node.iter_mut().flat_map(|n| &mut n.input);
            users.filter(|x| Some(&**x) == from.as_ref()).for_each(|x| *x = to.clone().unwrap_or_default());
        }
        _ => {
            // Values that are near are more often of a shape that fits.
            let near = graph.node[a.saturating_sub(6)..].iter().take(8).flat_map(|n| n.output.iter().chain(&n.input));
            let mut names: Vec<String> = near.cloned().collect();
            names.extend(pick(&graph.initializer, random).map(|t| t.name().to_string()));
            change_node(&mut graph.node[a], &names, random);
        }
    }
}

fn change_node(node: &mut NodeProto, names: &[String], random: &mut Random) {
    match random.random_range(0..9) {
        0 => drop(node.input.pop()),
        1 => node.input.push(pick(names, random).cloned().unwrap_or_default()),
        2 => pick_mut(&mut node.input, random).into_iter().for_each(String::clear),
        3 | 4 => {
            if let (Some(x), Some(name)) = (pick_mut(&mut node.input, random), pick(names, random)) {
                *x = name.clone();
            }
        }
        5 => drop(node.output.pop()),
        6 if !node.attribute.is_empty() => {
            node.attribute.swap_remove(random.random_range(0..node.attribute.len()));
        }
        7 => node.domain = pick(&["", "ai.onnx", "com.microsoft", "local"], random).map(|d| d.to_string()),
        _ => pick_mut(&mut node.attribute, random).into_iter().for_each(|a| change_attribute(a, random)),
    }
}

fn change_attribute(a: &mut AttributeProto, random: &mut Random) {
    if let Some(t) = &mut a.t {
        return change_tensor(t, random);
    }
    if let Some(s) = a.s.as_mut() {
        return change_bytes(s, random);
    }
    match random.random_range(0..6) {
        0 => drop(a.ints.pop()),
        1 => a.ints.push(number(random)),
        2 => a.f = pick(&[0.0, -1.0, f32::NAN, f32::INFINITY, 1e30], random).copied(),
        3 => a.name = Some("axes".into()),
        _ if a.ints.is_empty() => a.i = Some(number(random)),
        _ => pick_mut(&mut a.ints, random).into_iter().for_each(|v| *v = number(random)),
    }
}

fn change_tensor(t: &mut TensorProto, random: &mut Random) {
    match random.random_range(0..6) {
        0 => t.dims.push(1),
        1 if t.dims.len() > 1 => {
            let (a, b) = (random.random_range(0..t.dims.len()), random.random_range(0..t.dims.len()));
            t.dims.swap(a, b);
        }
        2 => {
            // Two dims become one.
            if let (Some(last), Some(n)) = (t.dims.pop(), t.dims.last_mut()) {
                *n = n.saturating_mul(last);
            }
        }
        3 => {
            // Other dims, with as many elements as they ask for.
            let n = random.random_range(0..5);
            pick_mut(&mut t.dims, random).into_iter().for_each(|d| *d = n);
            let count = t.dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d)).unwrap_or(0).clamp(0, 1 << 16);
            let size = data_type(t).and_then(element_size).unwrap_or(1);
            let mut raw = t.raw_data.take().unwrap_or_default().to_vec();
            raw.resize(count as usize * size, 0);
            t.raw_data = Some(raw.into());
        }
        4 => {
            // A whole number, where the elements are such.
            let number = number(random).to_le_bytes();
            let mut raw = t.raw_data.take().unwrap_or_default().to_vec();
            let words = raw.len() / 8;
            if words > 0 {
                let at = 8 * random.random_range(0..words);
                raw[at..at + 8].copy_from_slice(&number);
            }
            t.raw_data = Some(raw.into());
        }
        _ => t.data_type = Some(random.random_range(0..24)),
    }
}

fn change_value(v: &mut ValueInfoProto, random: &mut Random) {
    let Some(type_proto::Value::TensorType(tensor)) = v.r#type.as_mut().and_then(|t| t.value.as_mut()) else { return };
    let kind = random.random_range(0..24);
    let dims = tensor.shape.as_mut().map(|s| &mut s.dim);
    match (random.random_range(0..7), dims) {
        (0, _) => tensor.shape = None,
        (1, _) => tensor.elem_type = Some(kind),
        (2, Some(dims)) => drop(dims.pop()),
        (3, Some(dims)) => dims.push(Default::default()),
        (_, Some(dims)) => {
            let value = if random.random() { Value::DimValue(number(random)) } else { Value::DimParam("n".into()) };
            if let Some(d) = pick_mut(dims, random) {
                d.value = Some(value);
            }
        }
        _ => v.r#type = None,
    }
}

/// [`bytes`] of a file of images: in a tar archive, the checksums of the headers are put right again.
pub fn file(data: &[u8], seed: u64) -> Vec<u8> {
    let mut out = bytes(data, seed);
    for header in out.get_mut(1..).unwrap_or_default().chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    out
}
