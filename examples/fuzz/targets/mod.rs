//! What is fuzzed: each target takes bytes from a stranger and does with them what a command would, and panics where a
//! promise is broken that the types do not keep. Errors are fine; panics, endless loops and gigabytes are findings.
//!
//! libFuzzer (`fuzz/`) and the plain loop beside this file run the same targets, with the seeds and the mutations of
//! [`mutate`].

pub mod mutate;
pub mod seeds;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use offshoot::anatomy::{Anatomy, Roles};
use offshoot::axes::Typing;
use offshoot::axes::resize::{ResizePlan, resize};
use offshoot::data::{Dataset, ImageLayout, ImageSource, Loader, Preprocess, PreprocessFlags};
use offshoot::graph;
use offshoot::onnx::{Model, data_type, element_count, element_size, payload, tensor_from_raw, to_f32, to_i64};
use offshoot::training::{Loss, Operators, Precision, Recipe, Steps};
use prost::bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

/// A target.
pub struct Target {
    /// Its name, which is that of libFuzzer's binary.
    pub name: &'static str,
    /// Does with an input what a command would; true where nothing was wrong with it.
    pub run: fn(&[u8]) -> bool,
    /// Sound inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changes an input; the number says how.
    pub mutate: fn(&[u8], u64) -> Vec<u8>,
    /// Inputs for a short run.
    pub smoke: u64,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "decoder", run: decoder, seeds: seeds::small_models, mutate: mutate::message, smoke: 50_000 },
    Target { name: "tensors", run: tensors, seeds: seeds::tensors, mutate: mutate::bytes, smoke: 100_000 },
    Target { name: "external", run: external, seeds: seeds::external, mutate: mutate::bytes, smoke: 10_000 },
    Target { name: "anatomy", run: anatomy, seeds: seeds::models, mutate: mutate::model, smoke: 600 },
    Target { name: "autodiff", run: autodiff, seeds: seeds::models, mutate: mutate::model, smoke: 200 },
    Target { name: "readers", run: readers, seeds: seeds::files, mutate: mutate::file, smoke: 5_000 },
    Target { name: "preprocess", run: preprocess, seeds: seeds::transforms, mutate: mutate::bytes, smoke: 50_000 },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// Decodes a model; one that decodes is written again, and decodes to the same.
pub fn decoder(data: &[u8]) -> bool {
    let Ok(model) = Model::from_bytes(data.to_vec()) else { return false };
    let written = model.to_bytes();
    let again = Model::from_bytes(written.clone()).expect("what was written cannot be read");
    assert_eq!(again.to_bytes(), written, "what was written reads otherwise");
    true
}

/// Reads the elements of a tensor: as many as its dims say, and the same from its bytes alone.
pub fn tensors(data: &[u8]) -> bool {
    let Ok(model) = Model::from_bytes(with_initializer(data)) else { return false };
    for t in &model.graph().initializer {
        let count = element_count(t).expect("dims were checked");
        let bytes = payload(t);
        let Some((kind, size)) = data_type(t).and_then(|k| Some((k, element_size(k)?))) else { continue };
        assert_eq!(bytes.len(), count * size, "bytes of {kind:?}");
        let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
        let raw = tensor_from_raw(t.name(), kind, &dims, bytes);
        if let Ok(numbers) = to_f32(t) {
            assert_eq!(numbers.len(), count);
            let bits = |list: Vec<f32>| list.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(numbers), bits(to_f32(&raw).expect("raw floats")));
        }
        if let Ok(numbers) = to_i64(t) {
            assert_eq!(numbers.len(), count);
            assert_eq!(numbers, to_i64(&raw).expect("raw numbers"));
        }
    }
    true
}

/// A model whose one initializer is an encoded tensor.
fn with_initializer(tensor: &[u8]) -> Bytes {
    let field = |tag: u32, content: &[u8]| {
        let mut out = Vec::with_capacity(content.len() + 10);
        encode_key(tag, WireType::LengthDelimited, &mut out);
        encode_varint(content.len() as u64, &mut out);
        out.extend(content);
        out
    };
    field(7, &field(5, tensor)).into()
}

/// Opens a model whose weights lie in another file, and writes it: two bytes say how long the model is, the rest is the
/// file.
pub fn external(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return false };
    let (model, weights) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
    let folder = folder();
    let (path, out) = (folder.join("model.onnx"), folder.join("out.onnx"));
    fs::write(&path, model).expect("a file in the temporary folder");
    fs::write(folder.join(seeds::WEIGHTS), weights).expect("a file in the temporary folder");
    let Ok(opened) = Model::open(&path) else { return false };
    opened.write(&out).expect("a model that was opened cannot be written");
    let again = Model::open(&out).expect("what was written cannot be read");
    assert_eq!(again.to_bytes(), opened.to_bytes(), "what was written reads otherwise");
    true
}

/// What `inspect` does, and the heart of `grow`: the heads and FFNs of the first layer are resized, and the result is
/// typed again.
pub fn anatomy(data: &[u8]) -> bool {
    let Some(model) = prepared(data) else { return false };
    let Ok(typing) = Typing::new(&model) else { return false };
    let Ok(anatomy) = Anatomy::new(&typing) else { return false };
    typing.macs();
    anatomy.encoder_end(&typing);
    let roles = Roles::new(&typing);
    for a in anatomy.layers.iter().chain(&anatomy.others) {
        a.query_heads(&typing);
        roles.head_uses(a);
        roles.projection_uses(a);
        a.ffn().map(|f| roles.ffn_uses(f));
    }
    let Some(layer) = anatomy.layers.first() else { return true };
    let ffn = layer.ffn().and_then(|f| f.hidden.first().copied());
    for factor in layer.head_factors(&typing).into_iter().chain(ffn) {
        let size = typing.factors.factor_size(factor);
        // Numbers of heads beyond any model's only cost time.
        let mut plan = ResizePlan::default();
        if size <= 1 << 16
            && plan.gather(&typing.factors, factor, (0..size.div_ceil(2)).collect()).is_ok()
            && let Ok(graph) = resize(&typing, &plan)
        {
            let mut child = model.clone();
            child.proto.graph = Some(graph);
            let _ = Typing::with(&child, typing.assumption.clone());
        }
    }
    true
}

fn prepared(data: &[u8]) -> Option<Model> {
    let mut model = Model::from_bytes(data.to_vec()).ok()?;
    graph::prepare(&mut model).ok()?;
    Some(model)
}

/// Makes a step graph, of a kind that the length of the input says.
pub fn autodiff(data: &[u8]) -> bool {
    let Some(model) = prepared(data) else { return false };
    let Ok(typing) = Typing::new(&model) else { return false };
    let image = typing.image_size();
    drop(typing);
    let kind = data.len();
    let recipe = Recipe {
        batch: 2,
        loss: Loss::cross_entropy(0.1),
        accumulate: 1 + kind % 2,
        clip: (kind.is_multiple_of(3)).then_some(1.0),
        drop_path: if kind.is_multiple_of(5) { 0.1 } else { 0.0 },
        operators: [Operators::Standard, Operators::Contrib, Operators::Fused][kind % 3],
        precision: if kind.is_multiple_of(7) { Precision::Bf16 } else { Precision::F32 },
        ..Default::default()
    };
    let Ok(steps) = Steps::new(&model, image, &recipe, &[], &[]) else { return false };
    steps.step.ports();
    steps.step.model.to_bytes();
    true
}

/// Opens a file of images and reads some of them: the first byte says which name the file has, the rest is its content.
pub fn readers(data: &[u8]) -> bool {
    let Some((&kind, content)) = data.split_first() else { return false };
    let name = seeds::NAMES[usize::from(kind) % seeds::NAMES.len()];
    let written = folder().join(name);
    fs::write(&written, content).expect("a file in the temporary folder");
    // Labels lie beside the images that they belong to.
    let path = if name == seeds::LABELS { seeds::labelled_images(folder()) } else { written.clone() };
    let source = ImageSource::open(&path);
    let mut sound = source.is_ok();
    if let Ok(source) = source {
        source.fingerprint().expect("the file is there");
        let count = source.len();
        assert!(count > 0 && source.tensor_shape().is_none_or(|[n, ..]| n == count));
        let transform = (!source.is_tensors()).then(|| Preprocess::imagenet([8, 8]));
        let loader = Loader::new(source, transform).expect("pictures have a transform, tensors none");
        // The first ones and the last one; there is none behind it.
        for index in [0, 1, 2, count - 1] {
            sound &= index >= count || loader.image(index).is_ok();
        }
        assert!(loader.image(count).is_err());
    }
    if let Ok(dataset) = Dataset::open(&path, &Default::default()) {
        assert!(dataset.labels().is_none_or(|labels| labels.len() == dataset.len()));
        dataset.class_count();
        let split = dataset.split(0.2, 0);
        assert!(split.training.len() + split.validation.len() <= dataset.len());
    }
    fs::remove_file(written).expect("the file is there");
    sound
}

/// Applies a transform to a picture: two bytes are its sides, one says how many channels the model takes, the rest is
/// the transform as a model's metadata hold it.
pub fn preprocess(data: &[u8]) -> bool {
    let Some((&[width, height, kind], text)) = data.split_first_chunk::<3>() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let size = [usize::from(kind & 15), usize::from(kind >> 4)];
    let picture = image::DynamicImage::new_rgb8(width.into(), height.into());
    let channels = [3, 1, 3, 4][usize::from(kind) % 4];
    let transform = Preprocess::resolve(&PreprocessFlags::default(), Some(text), channels, size);
    let Ok(values) = transform.and_then(|t| t.apply(picture, ImageLayout::Nchw)) else { return false };
    assert_eq!(values.dim(), (channels, size[0], size[1]));
    true
}

/// A folder of this process, in memory where the system has such a place.
fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        let above = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let folder = above.join(format!("offshoot-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        folder
    });
    &FOLDER
}

/// Removes the files that targets left.
pub fn clean_up() {
    let _ = fs::remove_dir_all(folder());
}
