//! Picture files: which files are pictures, and their pixels.

use std::fmt;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits};
use ndarray::Array3;

use super::jpeg;
use super::limits::{MAXIMAL_BYTES, MAXIMAL_SIDE};
use crate::error::{Error, ErrorKind, Result};

/// The extensions, in any case, of pictures that are read. Files of others are told by their content.
const EXTENSIONS: [&str; 20] = [
    "jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp", "png", "webp", "bmp", "dib", "tif", "tiff", "gif",
    "pbm", "pgm", "ppm", "pnm", "ico",
];

/// Extensions of pictures that are not read: they are counted with those that cannot be.
const FOREIGN: [&str; 13] =
    ["avif", "avifs", "heic", "heif", "hif", "jxl", "jp2", "j2k", "jpx", "qoi", "exr", "tga", "psd"];

/// Extensions of cameras' raw files. Many are TIFF files to a reader, which finds a thumbnail in them.
const RAW: [&str; 12] = ["dng", "cr2", "cr3", "nef", "nrw", "arw", "sr2", "srw", "orf", "rw2", "raf", "pef"];

/// How many bytes of a file tell what it is.
const HEAD: usize = 64;

/// A kind of picture that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign(pub &'static str);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pictures are not read", self.0)
    }
}

impl std::error::Error for Foreign {}

/// Whether a file is a picture, readable or not, by its name alone.
pub(super) fn has_picture_extension(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS) || has_extension(path, &FOREIGN) || has_extension(path, &RAW)
}

/// Whether a file is a picture, readable or not: by its name, else by its content.
pub(super) fn is_picture(path: &Path) -> bool {
    has_picture_extension(path) || is_picture_head(&head(path))
}

/// Whether bytes are the first of a picture, readable or not.
pub(super) fn is_picture_head(head: &[u8]) -> bool {
    is_readable(head) || foreign(head).is_some()
}

/// Whether a file is of a kind of pictures that is read: by its name, else by its content.
pub(super) fn is_readable_picture(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS) || (!has_extension(path, &RAW) && is_readable(&head(path)))
}

/// The kind of a picture that is not read.
pub(super) fn foreign_kind(path: &Path) -> Option<Foreign> {
    if has_extension(path, &RAW) { Some(Foreign("raw camera")) } else { foreign(&head(path)) }
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The first bytes of a file; none where it cannot be read.
fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    head
}

/// Whether bytes are the first of a picture that is read. Where a format's own mark is two letters, as text may begin,
/// what follows has to fit, too.
fn is_readable(head: &[u8]) -> bool {
    let word =
        |at: usize| head.get(at..at + 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match image::guess_format(head) {
        // The reserved word, and the length of a header of one of the versions.
        Ok(ImageFormat::Bmp) => word(6) == Some(0) && word(14).is_some_and(|length| (12..=124).contains(&length)),
        Ok(ImageFormat::Pnm) => is_netpbm(head),
        Ok(ImageFormat::Ico) => word(4).is_some_and(|count| count & 0xffff != 0) && head.get(9) == Some(&0),
        Ok(format) => format.reading_enabled(),
        Err(_) => false,
    }
}

/// Whether a text begins as a file of Netpbm does: two numbers follow the mark, or the fields of PAM.
fn is_netpbm(head: &[u8]) -> bool {
    let text: String = head[2..].iter().map(|&byte| char::from(byte)).collect();
    if !text.starts_with(|letter: char| letter.is_ascii_whitespace()) {
        return false;
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words: Vec<String> = lines.flat_map(str::split_ascii_whitespace).take(2).map(str::to_owned).collect();
    let numbers = words.iter().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit())).count();
    // A comment may fill all that was read.
    numbers == 2 || words.first().is_none_or(|word| word == "WIDTH")
}

/// The kind of a picture that is not read, by its first bytes.
fn foreign(head: &[u8]) -> Option<Foreign> {
    let brand = || head.get(8..12);
    let name = match head {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => match brand()? {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => "HEIC",
            b"mif1" | b"msf1" => "HEIF",
            b"crx " => "raw camera",
            _ => return None,
        },
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "JPEG XL",
        [0xff, 0x4f, 0xff, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] => "JPEG 2000",
        [b'q', b'o', b'i', b'f', ..] => "QOI",
        [0x76, 0x2f, 0x31, 0x01, ..] => "OpenEXR",
        [b'8', b'B', b'P', b'S', ..] => "Photoshop",
        [b'D', b'D', b'S', b' ', 124, ..] => "DDS",
        [b'I', b'I', b'+', 0, 8, ..] | [b'M', b'M', 0, b'+', 0, 8, ..] => "BigTIFF",
        _ if head.starts_with(b"#?RADIANCE") => "Radiance",
        _ if head.starts_with(b"farbfeld") => "farbfeld",
        _ => return None,
    };
    Some(Foreign(name))
}

/// Reads a picture file, which is no longer than a decoded picture may be.
///
/// # Errors
///
/// `Images` if it cannot be read.
pub(super) fn read(path: &Path) -> Result<DynamicImage> {
    if has_extension(path, &RAW) {
        return Err(undecodable(Foreign("raw camera")));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAXIMAL_BYTES).read_to_end(&mut bytes));
    read.map_err(undecodable)?;
    decode(&bytes)
}

/// Decodes a picture file upright, whichever way the camera was held.
///
/// # Errors
///
/// `Images` if it is damaged, not all there, or of another kind.
pub(super) fn decode(bytes: &[u8]) -> Result<DynamicImage> {
    if let Some(foreign) = foreign(&bytes[..bytes.len().min(HEAD)]) {
        return Err(undecodable(foreign).hint("convert such pictures to PNG or JPEG"));
    }
    let (decoder, orientation) = prepare(bytes).map_err(undecodable)?;
    let from_jpeg = match jpeg::is_jpeg(bytes) {
        true => jpeg::decode(bytes)
            .map_err(|_| Error::new(ErrorKind::Images, "cannot be decoded: the file ends before the picture does"))?,
        false => None,
    };
    let mut image = match from_jpeg {
        Some(image) => image,
        None => DynamicImage::from_decoder(decoder).map_err(undecodable)?,
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// A decoder with its limits, and how the picture is to be turned.
fn prepare(bytes: &[u8]) -> ImageResult<(impl ImageDecoder + '_, Orientation)> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAXIMAL_SIDE);
    limits.max_image_height = Some(MAXIMAL_SIDE);
    limits.max_alloc = Some(MAXIMAL_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // Broken metadata does not make the pixels unusable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

fn undecodable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Images, format!("cannot be decoded: {error}")).caused_by(error)
}

/// The bytes `[rows, columns, channels]` of a picture, with 1 or 3 channels.
pub(super) type Pixels = Array3<u8>;

/// The pixels of a picture, converted as Pillow does: transparency is ignored, and the luma of colours is that of ITU-R
/// 601-2.
pub(super) fn pixels(image: DynamicImage, channels: usize) -> Pixels {
    let shape = (image.height() as usize, image.width() as usize, channels);
    let bytes = if channels == 3 {
        image.into_rgb8().into_raw()
    } else if image.color().has_color() {
        image.into_rgb8().pixels().map(|pixel| luma(pixel.0)).collect()
    } else {
        image.into_luma8().into_raw()
    };
    // The bytes of a picture are as many as its shape says.
    Array3::from_shape_vec(shape, bytes).unwrap_or_default()
}

/// The luma of a colour, as Pillow computes it.
pub(super) fn luma(colour: [u8; 3]) -> u8 {
    let [red, green, blue] = colour.map(u32::from);
    ((19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use image::{Luma, Rgb, RgbImage, Rgba, RgbaImage};

    use super::super::testing::resize_fixture;
    use super::*;

    /// The formats that are read, but for JPEG.
    const OTHERS: [ImageFormat; 7] = [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::Gif,
        ImageFormat::Pnm,
        ImageFormat::Ico,
    ];

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/pictures").join(name)
    }

    /// A picture in a format that the crate writes.
    fn written(format: ImageFormat) -> Vec<u8> {
        let scene = image::open(fixture("baseline.jpg")).unwrap();
        // An icon has an alpha channel.
        let scene = if format == ImageFormat::Ico { scene.to_rgba8().into() } else { scene };
        let mut bytes = Cursor::new(Vec::new());
        scene.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// How many bytes a file may lack at its end and still be read; then it is the same picture.
    fn spare(name: &str, bytes: &[u8]) -> usize {
        let whole = decode(bytes).unwrap();
        let mut spare = 0;
        for length in (0..bytes.len()).rev() {
            if let Ok(picture) = decode(&bytes[..length]) {
                assert!(picture == whole, "{name}: another picture of {length} of {} bytes", bytes.len());
                spare = bytes.len() - length;
            }
        }
        spare
    }

    #[test]
    fn what_is_left_of_a_picture_is_no_picture() {
        for name in [
            "baseline.jpg",
            "progressive.jpg",
            "restarts.jpg",
            "no-subsampling.jpg",
            "grey.jpg",
            "grey-progressive.jpg",
        ] {
            let bytes = fs::read(fixture(name)).unwrap();
            // A missing end marker behind complete data is no loss; of the last byte of data, padding may be missing,
            // too.
            let spare = spare(name, &bytes);
            assert!((2..=3).contains(&spare), "{name}: {spare}");
        }
        assert_eq!(spare("cmyk.jpg", &fs::read(fixture("cmyk.jpg")).unwrap()), 0);
        assert!(spare("lossy.webp", &fs::read(fixture("lossy.webp")).unwrap()) < 20);
        for format in OTHERS {
            let bytes = written(format);
            let spare = spare(&format!("{format:?}"), &bytes);
            assert!(spare < bytes.len() / 10, "{format:?}: {spare} of {}", bytes.len());
        }
    }

    #[test]
    fn a_file_that_ends_between_its_scans_is_truncated() {
        for name in ["progressive.jpg", "grey-progressive.jpg"] {
            let bytes = fs::read(fixture(name)).unwrap();
            // Every scan but the last, whose tables and header are gone as well.
            let starts: Vec<usize> = (2..bytes.len()).filter(|&at| bytes[at - 2..at] == [0xff, 0xda]).collect();
            assert!(starts.len() > 4, "{name}");
            for &start in &starts[1..] {
                let cut = (0..start).rev().find(|&at| bytes[at] == 0xff && bytes[at + 1] == 0xc4).unwrap_or(start - 2);
                let error = decode(&bytes[..cut]).unwrap_err();
                assert!(error.to_string().contains("ends before the picture does"), "{error}");
            }
        }
    }

    #[test]
    fn pictures_are_told_by_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let told = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            (is_picture(&path), is_readable_picture(&path))
        };
        for format in OTHERS.into_iter().chain([ImageFormat::Jpeg]) {
            assert_eq!(told("0001", &written(format)), (true, true), "{format:?}");
        }
        for (bytes, kind) in [
            (&b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"[..], "AVIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
            (b"qoif\0\0\0\x05", "QOI"),
        ] {
            assert_eq!(told("0002", bytes), (true, false), "{kind}");
            let error = decode(bytes).unwrap_err();
            assert!(error.to_string().contains(&format!("{kind} pictures are not read")), "{error}");
        }
        // Words that begin as a format's mark does.
        for text in [
            "",
            "B",
            "BM",
            "BMW 3 series\nBMW 5 series\n",
            "P1\nP2\n",
            "P6 crossing\nP5 stop\n",
            "GI",
            "II",
            "\0\0\x01\0",
        ] {
            assert_eq!(told("classes", text.as_bytes()), (false, false), "{text:?}");
        }
        let raw = folder.path().join("x.NEF");
        fs::write(&raw, written(ImageFormat::Tiff)).unwrap();
        assert!(is_picture(&raw) && !is_readable_picture(&raw));
        assert!(read(&raw).unwrap_err().to_string().contains("raw camera pictures are not read"));
    }

    #[test]
    fn exif_orientation_is_applied() {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(16, 8, image::Rgb([200, 100, 50])).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let mut bytes = bytes.into_inner();
        // An EXIF segment, right after the start of the image, whose only entry is orientation 6, a quarter turn.
        let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        bytes.splice(2..2, exif.iter().copied());
        let image = decode(&bytes).unwrap();
        assert_eq!((image.width(), image.height()), (8, 16));
    }

    #[test]
    fn luma_is_that_of_pillow() {
        let grey = resize_fixture("source-grey");
        let bytes = |image: DynamicImage, channels| pixels(image, channels).into_raw_vec_and_offset().0;
        assert_eq!(bytes(resize_fixture("source"), 1), grey.as_bytes());
        assert_eq!(bytes(grey.clone(), 1), grey.as_bytes());
        // 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1.
        for (colour, luma) in [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([255, 255, 255], 255)] {
            let image = RgbImage::from_pixel(1, 1, Rgb(colour));
            assert_eq!(bytes(image.into(), 1), [luma]);
        }
    }

    #[test]
    fn transparency_is_ignored_and_depth_reduced() {
        let image = RgbaImage::from_pixel(1, 1, Rgba([10, 20, 30, 0]));
        assert_eq!(pixels(image.into(), 3), ndarray::array![[[10, 20, 30]]]);
        let image = image::ImageBuffer::from_pixel(1, 1, Luma([0x8080u16]));
        assert_eq!(pixels(DynamicImage::ImageLuma16(image), 3), ndarray::array![[[0x80, 0x80, 0x80]]]);
    }
}
