//! Sound inputs that fuzzing starts from: the fixtures of the repository, and small files made here.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use image::{DynamicImage, ImageFormat, RgbImage};
use offshoot::data::Preprocess;
use offshoot::onnx::proto::attribute_proto::AttributeType;
use offshoot::onnx::proto::tensor_proto::{DataLocation, DataType};
use offshoot::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto,
};
use offshoot::onnx::{tensor_from_f32, tensor_from_i64, tensor_info};
use prost::Message;

/// The names that files of images get; what they are is told by their content, apart from these.
pub const NAMES: [&str; 5] = ["images", "data_batch.bin", "shard.tar", "picture.png", LABELS];

/// The file of the labels of some images.
pub const LABELS: &str = "train-labels-idx1-ubyte";

/// The file that external data lie in.
pub const WEIGHTS: &str = "weights";

/// The largest fixture that is a seed, in bytes.
const MAXIMAL: u64 = 100_000;

fn fixtures() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The crate itself, or `fuzz/` in it.
    [root.join("fixtures"), root.join("../fixtures")].into_iter().find(|p| p.is_dir()).unwrap_or_default()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap_or_default()
}

/// The models among the fixtures.
pub fn models() -> Vec<Vec<u8>> {
    static MODELS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let files = walkdir::WalkDir::new(fixtures()).sort_by_file_name().into_iter().flatten();
        let small = |e: &walkdir::DirEntry| e.metadata().is_ok_and(|m| m.len() <= MAXIMAL);
        let models = files.filter(|e| e.path().extension().is_some_and(|x| x == "onnx") && small(e));
        models.filter_map(|e| fs::read(e.path()).ok()).collect()
    });
    MODELS.clone()
}

/// The same cut down to a few nodes and small tensors, and one with everything that a model may hold.
pub fn small_models() -> Vec<Vec<u8>> {
    let cut = models().into_iter().filter_map(|bytes| {
        let mut model = ModelProto::decode(&bytes[..]).ok()?;
        let graph = model.graph.as_mut()?;
        graph.node.truncate(6);
        graph.initializer.retain(|t| t.encoded_len() < 100);
        graph.initializer.truncate(6);
        graph.value_info.truncate(3);
        model.functions.truncate(1);
        model.functions.iter_mut().for_each(|f| f.node.truncate(3));
        Some(model.encode_to_vec()).filter(|b| b.len() < 8000)
    });
    cut.chain([everything().encode_to_vec()]).collect()
}

fn everything() -> ModelProto {
    let sparse = SparseTensorProto {
        values: Some(tensor_from_f32("values", DataType::Float, &[2], &[1.0, 2.0])),
        indices: Some(tensor_from_i64("indices", &[2], &[0, 3])),
        dims: vec![4],
    };
    let attribute = |name: &str, kind: AttributeType| AttributeProto {
        name: Some(name.into()),
        r#type: Some(kind as i32),
        ..Default::default()
    };
    let body = GraphProto { node: vec![offshoot::graph::node("Relu", &["x"], &["b"], vec![])], ..Default::default() };
    let attributes = vec![
        AttributeProto { g: Some(body.clone()), ..attribute("then_branch", AttributeType::Graph) },
        AttributeProto { graphs: vec![body], ..attribute("branches", AttributeType::Graphs) },
        AttributeProto { floats: vec![1.0, f32::NAN], ..attribute("floats", AttributeType::Floats) },
        AttributeProto { strings: vec![b"a".to_vec()], ..attribute("strings", AttributeType::Strings) },
        AttributeProto { sparse_tensor: Some(sparse.clone()), ..attribute("sparse", AttributeType::SparseTensor) },
        AttributeProto {
            tensors: vec![tensor_from_i64("t", &[2], &[1, -1])],
            ..attribute("tensors", AttributeType::Tensors)
        },
    ];
    let function = FunctionProto {
        name: Some("f".into()),
        domain: Some("local".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![offshoot::graph::node("Relu", &["a"], &["b"], vec![])],
        ..Default::default()
    };
    let call = NodeProto { domain: Some("local".into()), ..offshoot::graph::node("f", &["x"], &["z"], vec![]) };
    let graph = GraphProto {
        name: Some("g".into()),
        doc_string: Some("d".into()),
        node: vec![offshoot::graph::node("If", &["x"], &["y"], attributes), call],
        initializer: TYPES.iter().map(|&kind| of_type(kind, true)).collect(),
        sparse_initializer: vec![sparse],
        input: vec![tensor_info("x", DataType::Float, &[None, Some(3), Some(8), Some(8)])],
        output: vec![tensor_info("y", DataType::Float, &[None, Some(2)])],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        producer_name: Some("p".into()),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        metadata_props: vec![entry("k", "v")],
        functions: vec![function],
        graph: Some(graph),
        ..Default::default()
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

const TYPES: [DataType; 18] = {
    use DataType::*;
    [
        Float,
        Uint8,
        Int8,
        Uint16,
        Int16,
        Int32,
        Int64,
        String,
        Bool,
        Float16,
        Double,
        Uint32,
        Uint64,
        Complex64,
        Complex128,
        Bfloat16,
        Float8e4m3fn,
        Int4,
    ]
};

/// A tensor of two by three elements, raw or in the field of its type.
fn of_type(kind: DataType, raw: bool) -> TensorProto {
    use DataType::*;
    let count = if matches!(kind, Complex64 | Complex128) { 12 } else { 6 };
    let mut t = TensorProto {
        name: Some(format!("{kind:?}")),
        dims: vec![2, 3],
        data_type: Some(kind as i32),
        ..Default::default()
    };
    match (kind, raw, offshoot::onnx::element_size(kind)) {
        (String, ..) => t.string_data = vec![b"s".to_vec(); count],
        (_, true, size) => t.raw_data = Some(vec![3; size.map_or(3, |n| 6 * n)].into()),
        (Float | Complex64, ..) => t.float_data = vec![1.5; count],
        (Double | Complex128, ..) => t.double_data = vec![1.5; count],
        (Int64, ..) => t.int64_data = vec![-1; count],
        (Uint32 | Uint64, ..) => t.uint64_data = vec![7; count],
        _ => t.int32_data = vec![7; count],
    }
    t
}

/// Encoded tensors of every type.
pub fn tensors() -> Vec<Vec<u8>> {
    TYPES.iter().flat_map(|&kind| [true, false].map(|raw| of_type(kind, raw).encode_to_vec())).collect()
}

/// Models with external data: the length of the model, the model, the file of the data.
pub fn external() -> Vec<Vec<u8>> {
    let places: [&[(&str, &str)]; 5] = [
        &[("location", WEIGHTS)],
        &[("location", WEIGHTS), ("offset", "0"), ("length", "24")],
        &[("location", WEIGHTS), ("offset", "24"), ("checksum", "0")],
        &[("location", "./weights"), ("offset", "8"), ("length", "24")],
        &[("location", "model.onnx"), ("offset", "0"), ("length", "24")],
    ];
    let seed = |(place, constant): (&[(&str, &str)], bool)| {
        let tensor = TensorProto {
            raw_data: None,
            external_data: place.iter().map(|(k, v)| entry(k, v)).collect(),
            data_location: Some(DataLocation::External as i32),
            ..of_type(DataType::Float, true)
        };
        let value = AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(tensor.clone()),
            ..Default::default()
        };
        let node = offshoot::graph::node("Constant", &[], &["c"], vec![value]);
        let model = ModelProto {
            ir_version: Some(8),
            graph: Some(GraphProto {
                node: if constant { vec![node] } else { vec![] },
                initializer: if constant { vec![] } else { vec![tensor] },
                ..Default::default()
            }),
            ..Default::default()
        };
        let model = model.encode_to_vec();
        [&(model.len() as u16).to_le_bytes()[..], &model, &[1; 48]].concat()
    };
    places.into_iter().flat_map(|p| [(p, false), (p, true)]).map(seed).collect()
}

/// Files of images of every kind: the place of the name in [`NAMES`], and the content.
pub fn files() -> Vec<Vec<u8>> {
    let idx = |count: usize| {
        let mut bytes = fixture("fashion-images.idx3-ubyte");
        bytes.truncate(16 + count * 784);
        if let Some(field) = bytes.get_mut(4..8) {
            field.copy_from_slice(&(count as u32).to_be_bytes());
        }
        bytes
    };
    let gzipped = {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let written = out.write_all(&idx(1));
        written.and_then(|()| out.finish()).unwrap_or_default()
    };
    let mut shard = Vec::new();
    let packed = fixture("datasets/webdataset.tar.gz");
    let _ = flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut shard);
    let npy = {
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4, 4), }";
        [b"\x93NUMPY\x01\0\x76\0", format!("{text:<117}\n").as_bytes(), &[0; 4 * 96]].concat()
    };
    let mut files = vec![
        (0, idx(2)),
        (0, gzipped),
        (0, npy),
        (0, fixture("datasets/keras.npz")),
        (0, fixture("datasets/hugging-face.parquet")),
        (0, packed),
        (1, [&[3][..], &[9; 3072], &[4], &[100; 3072]].concat()),
        (1, [&[3, 77][..], &[9; 3072]].concat()),
        (2, shard),
        (3, fixture("fashion-png/000-ankle-boot.png")),
        (4, [0, 0, 8, 1, 0, 0, 0, 2, 1, 2].to_vec()),
    ];
    let picture = DynamicImage::from(RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 128])));
    use ImageFormat::*;
    for format in [Jpeg, Png, WebP, Bmp, Tiff, Gif] {
        let mut out = Cursor::new(Vec::new());
        if picture.write_to(&mut out, format).is_ok() {
            files.push((3, out.into_inner()));
        }
    }
    files.into_iter().map(|(kind, bytes)| [&[kind], &bytes[..]].concat()).collect()
}

/// Writes the images that [`LABELS`] belong to.
pub fn labelled_images(folder: &Path) -> PathBuf {
    let path = folder.join(LABELS.replace("labels", "images").replace("idx1", "idx3"));
    let header = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2];
    fs::write(&path, [&header[..], &[5; 8]].concat()).expect("a file in the temporary folder");
    path
}

/// Transforms, each behind the sides of a picture and the size of the model's input.
pub fn transforms() -> Vec<Vec<u8>> {
    let grey = Preprocess { channels: 1, mean: vec![0.5], std: vec![0.5], ..Preprocess::imagenet([8, 8]) };
    let texts = [Preprocess::imagenet([8, 8]), grey].map(|t| serde_json::to_vec(&t).unwrap_or_default());
    let sides = [[20, 30, 0x88], [1, 200, 0x24], [7, 5, 0xf1], [0, 3, 0x21]];
    texts.iter().flat_map(|t| sides.iter().map(move |s| [&s[..], t].concat())).collect()
}
