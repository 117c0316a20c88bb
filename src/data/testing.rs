//! Files for the tests of this folder.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, ImageFormat, RgbImage};

/// Writes a plain picture of one colour.
pub(super) fn write_picture(path: &Path, width: u32, height: u32, colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(width, height, image::Rgb(colour)).save(path).unwrap();
}

/// The bytes of a PNG file of one colour.
pub(super) fn png(colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(5, 4, image::Rgb(colour)).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive of files: names and bytes.
pub(super) fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An IDX file with the given header words and pixels.
pub(super) fn idx(words: [u32; 4], pixels: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(pixels);
    bytes
}

/// A CIFAR file of one record a label, whose red is the label, whose green 100 and whose blue counts up.
pub(super) fn cifar(labels: &[&[u8]]) -> Vec<u8> {
    labels
        .iter()
        .flat_map(|label| {
            let red = vec![label[label.len() - 1]; 1024];
            let blue: Vec<u8> = (0..1024).map(|pixel| (pixel % 251) as u8).collect();
            [label.to_vec(), red, vec![100; 1024], blue].concat()
        })
        .collect()
}

/// A picture of `fixtures/resize`.
pub(super) fn resize_fixture(name: &str) -> DynamicImage {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/resize");
    image::open(folder.join(name).with_extension("png")).unwrap()
}
