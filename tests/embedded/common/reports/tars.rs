//! WebDataset: which of the pictures of a sample is read was a matter of their order.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{json, offshoot, refused, text};

/// A tar archive with a picture and a depth map, which is grey all over, for each sample.
fn shard(folder: &Path, name: &str, fields: [&str; 2]) -> PathBuf {
    let path = folder.join(name);
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    let png = |picture: image::GrayImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    for class in [1, 8, 9] {
        for (number, picture) in fashion::pictures(class, 4).into_iter().enumerate() {
            let key = format!("{class}{number:03}");
            // As archives are made, sorted by name: `depth.png` comes before `png`.
            let mut members = [
                (fields[0], png(image::GrayImage::from_pixel(28, 28, image::Luma([128])))),
                (fields[1], png(picture)),
                ("cls", class.to_string().into_bytes()),
            ];
            members.sort();
            members.iter().for_each(|(field, bytes)| add(format!("{key}.{field}"), bytes));
        }
    }
    archive.finish().unwrap();
    path
}

fn evaluated(runtime: &str, data: &Path, more: &[&str]) -> Value {
    json(&[&["eval", ANCESTOR, "--data", text(data), "--runtime", runtime, "--json"], more].concat())
}

pub fn bare_extensions_come_first(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let expected = evaluated(runtime, &fashion::idx(folder.path(), &[1, 8, 9], 4), &[]);
    assert!(expected["top1"].as_f64().unwrap() > 0.9);
    let depth = shard(folder.path(), "depth.tar", ["depth.png", "png"]);
    let found = evaluated(runtime, &depth, &[]);
    assert_eq!((&found["top1"], &found["classes"]), (&expected["top1"], &expected["classes"]));
    assert_eq!(found["notes"], json!([]));
    assert!(evaluated(runtime, &depth, &["--image-column", "depth"])["top1"].as_f64().unwrap() < 0.5);

    let named = shard(folder.path(), "named.tar", ["depth.png", "rgb.png"]);
    let arguments = ["eval", ANCESTOR, "--data", text(&named), "--runtime", runtime];
    refused(&arguments, &["sample `1000` has several pictures", "depth.png, rgb.png", "--image-column NAME"]);
    let found = evaluated(runtime, &named, &["--image-column", "rgb"]);
    assert_eq!((&found["top1"], &found["classes"]), (&expected["top1"], &expected["classes"]));
    refused(
        &[&arguments[..], &["--image-column", "normal"]].concat(),
        &["no picture in a field `normal`, only in depth.png"],
    );

    // A dot in the stem: what follows the first one is a field.
    let dots = folder.path().join("dots.tar");
    let mut archive = tar::Builder::new(fs::File::create(&dots).unwrap());
    fashion::folder(&folder.path().join("one"), 8, 1);
    for name in ["n01.0000.png", "n02.0000.png"] {
        archive.append_path_with_name(folder.path().join("one/00.png"), name).unwrap();
    }
    archive.finish().unwrap();
    let density = offshoot(&["density", ANCESTOR, "--images", text(&dots), "--runtime", runtime]);
    assert!(density.status.success());
    let said = String::from_utf8(density.stderr).unwrap();
    assert!(said.contains("warning: ") && said.contains("read from the fields `0000.png`"), "{said}");
}
