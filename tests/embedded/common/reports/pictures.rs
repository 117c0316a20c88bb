//! Files of pictures: half a download that was a picture, names that were passed over, and what is no picture.

use std::fs;
use std::path::Path;

use image::{DynamicImage, ImageFormat};
use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, refused, text};
use crate::common::root;

fn evaluated(runtime: &str, data: &Path) -> Value {
    json(&["eval", ANCESTOR, "--data", text(data), "--runtime", runtime, "--json"])
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(root().join("fixtures/reports/pictures").join(name)).unwrap()
}

/// Files that were cut off are counted, and end a strict run; a file that lacks no more than its end marker is a
/// picture.
pub fn truncated_files_are_counted(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fashion::folder(&data.join("Bag"), 8, 3);
    let scene = image::load_from_memory(&fixture("baseline.jpg")).unwrap();
    let mut files: Vec<(&str, Vec<u8>)> =
        ["baseline.jpg", "progressive.jpg", "restarts.jpg", "cmyk.jpg", "lossy.webp"].map(|f| (f, fixture(f))).to_vec();
    for (name, format) in [
        ("cut.png", ImageFormat::Png),
        ("lossless.webp", ImageFormat::WebP),
        ("cut.gif", ImageFormat::Gif),
        ("cut.bmp", ImageFormat::Bmp),
        ("cut.tif", ImageFormat::Tiff),
        ("cut.ppm", ImageFormat::Pnm),
    ] {
        files.push((name, encoded(&scene, format)));
    }
    for share in [50, 90] {
        for (name, bytes) in &files {
            fs::write(data.join("Bag").join(format!("{share}-{name}")), &bytes[..bytes.len() * share / 100]).unwrap();
        }
    }
    let found = evaluated(runtime, &data);
    assert_eq!((&found["images"], &found["skipped"]), (&json!(3), &json!(2 * files.len())));
    let strict = ["eval", ANCESTOR, "--data", text(&data), "--runtime", runtime, "--strict"];
    refused(&strict, &["50-baseline.jpg`: cannot be decoded"]);

    let whole = folder.path().join("whole/Bag");
    fs::create_dir_all(&whole).unwrap();
    for (name, bytes) in &files[..3] {
        assert_eq!(bytes[bytes.len() - 2..], [0xff, 0xd9]);
        fs::write(whole.join(name), &bytes[..bytes.len() - 2]).unwrap();
    }
    let strict =
        ["eval", ANCESTOR, "--data", text(whole.parent().unwrap()), "--runtime", runtime, "--strict", "--json"];
    assert_eq!(json(&strict)["images"], 3);
}

/// Files are told by their content: none that can be read is passed over, those of other kinds are counted and named,
/// and what is no picture is neither.
pub fn files_are_told_by_their_content(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [plain, data] = ["plain", "mixed"].map(|name| folder.path().join(name));
    for (class, name) in [(8, "Bag"), (4, "Coat")] {
        fashion::folder(&plain.join(name), class, 8);
        let pictures = fashion::pictures(class, 8).into_iter().map(DynamicImage::from);
        fs::create_dir_all(data.join(name)).unwrap();
        let formats = [
            ("0.pgm", ImageFormat::Pnm),
            ("1.dib", ImageFormat::Bmp),
            ("2.jfif", ImageFormat::Png),
            ("3.PNM", ImageFormat::Pnm),
            ("4", ImageFormat::Png),
            ("5.data", ImageFormat::Tiff),
            ("6.jpe", ImageFormat::WebP),
            ("7.ico", ImageFormat::Ico),
        ];
        for (picture, (file, format)) in pictures.zip(formats) {
            // ICO and WebP have no grey pictures.
            let picture = if file.starts_with(['6', '7']) { picture.to_rgba8().into() } else { picture };
            fs::write(data.join(name).join(file), encoded(&picture, format)).unwrap();
        }
    }
    let notes = [
        ("README.md", "# Pictures"),
        ("labels.txt", "BMW 0\nBag 1\n"),
        ("Bag/classes", "P1\nP2\n"),
        ("Bag/.hidden.png", "none"),
        ("Coat/Thumbs.db", "\u{1}\u{2}"),
    ];
    for (name, content) in notes {
        fs::write(data.join(name), content).unwrap();
    }
    let strict =
        |data: &Path| json(&["eval", ANCESTOR, "--data", text(data), "--runtime", runtime, "--strict", "--json"]);
    let (found, expected) = (strict(&data), strict(&plain));
    for key in ["images", "skipped", "top1", "classes"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    assert!((found["loss"].as_f64().unwrap() - expected["loss"].as_f64().unwrap()).abs() < 1e-6);
    assert_eq!(expected["images"], 16);

    let avif = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf";
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    fs::write(data.join("Bag/x.avif"), avif).unwrap();
    fs::write(data.join("Bag/y.jpg"), avif).unwrap();
    fs::write(data.join("Coat/z.heic"), heic).unwrap();
    let found = evaluated(runtime, &data);
    assert_eq!((&found["images"], &found["skipped"]), (&json!(16), &json!(3)));
    assert_eq!(found["skipped_kinds"], json!({"AVIF": 2, "HEIC": 1}));
    let output = done(&["eval", ANCESTOR, "--data", text(&data), "--runtime", runtime]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("3 image(s) could not be read and were left out (2 AVIF, 1 HEIC); the first: "), "{said}");
    refused(
        &["eval", ANCESTOR, "--data", text(&data), "--runtime", runtime, "--strict"],
        &["Bag/x.avif`: cannot be decoded: AVIF pictures are not read", "convert such pictures"],
    );
    // Without labels, too.
    let density = ["density", ANCESTOR, "--images", text(&data), "--runtime", runtime];
    assert!(String::from_utf8(done(&density).stderr).unwrap().contains("(2 AVIF, 1 HEIC)"));
}

/// A class without a picture that is read would move the labels of those behind it.
pub fn empty_classes_are_errors(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    fashion::folder(&folder.path().join("Bag"), 8, 2);
    let coat = folder.path().join("Coat");
    fs::create_dir(&coat).unwrap();
    let arguments = ["eval", ANCESTOR, "--data", text(folder.path()), "--runtime", runtime];
    fs::write(coat.join("README.txt"), "none yet").unwrap();
    refused(&arguments, &["Coat`: this folder of a class holds no pictures"]);
    fs::write(coat.join("1.heic"), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap();
    refused(&arguments, &["Coat`: this folder of a class holds no pictures that can be read (`1.heic`: HEIC"]);
}
