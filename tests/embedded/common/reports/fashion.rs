//! The bundled images and model, in the forms in which people hold such things.

use std::fs;
use std::path::{Path, PathBuf};

use image::GrayImage;
use offshoot::onnx::Model;

use crate::common::root;

pub const ANCESTOR: &str = "models/fashion-vit.onnx";

/// The names of the classes, in the order of the labels.
pub const NAMES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// The first `count` images of a class.
pub fn pictures(class: u8, count: usize) -> Vec<GrayImage> {
    let images = fs::read(root().join("fixtures/fashion-images.idx3-ubyte")).unwrap();
    let labels = fs::read(root().join("fixtures/fashion-labels.idx1-ubyte")).unwrap();
    let of_class = labels[8..].iter().enumerate().filter(|&(_, &label)| label == class).map(|(index, _)| index);
    let picture = |index: usize| GrayImage::from_raw(28, 28, images[16 + 784 * index..][..784].to_vec()).unwrap();
    let found: Vec<_> = of_class.take(count).map(picture).collect();
    assert_eq!(found.len(), count);
    found
}

/// Writes the first `count` images of a class as PNG files into a new folder.
pub fn folder(path: &Path, class: u8, count: usize) {
    fs::create_dir_all(path).unwrap();
    for (number, picture) in pictures(class, count).into_iter().enumerate() {
        picture.save(path.join(format!("{number:02}.png"))).unwrap();
    }
}

/// Writes the first `count` images of each of the classes as an IDX file, and their labels beside it.
pub fn idx(folder: &Path, classes: &[u8], count: usize) -> PathBuf {
    let total = (classes.len() * count) as u32;
    let mut images = [0x0803u32, total, 28, 28].map(u32::to_be_bytes).concat();
    let mut labels = [0x0801u32, total].map(u32::to_be_bytes).concat();
    for &class in classes {
        pictures(class, count).iter().for_each(|picture| images.extend(picture.as_raw()));
        labels.extend(vec![class; count]);
    }
    let path = folder.join("some-images.idx3-ubyte");
    fs::write(&path, images).unwrap();
    fs::write(folder.join("some-labels.idx1-ubyte"), labels).unwrap();
    path
}

/// A copy of a model with other metadata: the key is set, or taken away.
pub fn with_metadata(model: impl AsRef<Path>, key: &str, value: Option<&str>, copy: &Path) {
    let mut model = Model::open(model).unwrap();
    match value {
        Some(value) => model.set_metadata(key, value),
        None => model.proto.metadata_props.retain(|entry| entry.key() != key),
    }
    model.write(copy).unwrap();
}
