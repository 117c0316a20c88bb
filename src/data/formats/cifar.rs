//! Reads the binary files of CIFAR-10 and CIFAR-100.
//!
//! A record is the label (for CIFAR-100 a coarse and a fine one), a byte each, and the three planes of a picture of 32
//! x 32 pixels (<https://www.cs.toronto.edu/~kriz/cifar.html>). Nothing in a file says which of the two it is; its
//! length does.

use std::io::Read;
use std::path::Path;

use ndarray::Array4;

use super::super::item::{Labels, Opened};
use super::pixels::PixelArray;
use crate::error::{Error, ErrorKind, Result};

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// The longest list of class names that is read, in bytes.
const MAXIMAL_NAMES: u64 = 1 << 16;

struct Variant {
    /// How many classes each of the label bytes tells apart; the last one counts.
    classes: &'static [u8],
    names: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant { classes: &[10], names: "batches.meta.txt" },
    Variant { classes: &[20, 100], names: "fine_label_names.txt" },
];

impl Variant {
    fn record(&self) -> usize {
        self.classes.len() + PIXELS
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        bytes.len().is_multiple_of(self.record())
            && bytes.chunks_exact(self.record()).all(|record| record.iter().zip(self.classes).all(|(byte, n)| byte < n))
    }
}

/// Opens the file at `path`, which is held in memory.
///
/// # Errors
///
/// `Format` if it holds no whole number of records of either kind, `Io` if it cannot be read.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let Some(variant) = VARIANTS.iter().find(|variant| variant.fits(&bytes)) else {
        return Err(Error::new(
            ErrorKind::Format,
            format!(
                "no CIFAR file: its {} bytes are not records of {} bytes (CIFAR-10) or {} bytes (CIFAR-100) with valid \
                 labels",
                bytes.len(),
                VARIANTS[0].record(),
                VARIANTS[1].record()
            ),
        )
        .at(path)
        .hint("give the binary version, unpacked and whole"));
    };
    let bytes_of_label = variant.classes.len();
    let records = bytes.chunks_exact(variant.record());
    let count = records.len();
    let labels = records.clone().map(|record| i64::from(record[bytes_of_label - 1])).collect();
    let pixels = records.flat_map(|record| &record[bytes_of_label..]).copied().collect();
    let planes = Array4::from_shape_vec((count, 3, SIDE, SIDE), pixels)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let mut opened = Opened::new(path, PixelArray(planes.permuted_axes([0, 2, 3, 1])));
    opened.labels = Labels::Present(labels);
    opened.classes = names(&path.with_file_name(variant.names), variant.classes[bytes_of_label - 1]);
    Ok(opened)
}

/// The names of the classes, if the list is there and has as many as there are classes.
fn names(path: &Path, count: u8) -> Option<Vec<String>> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAXIMAL_NAMES).read_to_string(&mut text).ok()?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    (names.len() == usize::from(count)).then_some(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::DynamicImage;

    use super::super::super::item::Item;
    use super::*;
    use crate::data::ImageSource;
    use crate::data::testing::cifar as encode;

    fn open_bytes(bytes: &[u8]) -> Result<Opened> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.bin");
        fs::write(&path, bytes).unwrap();
        open(&path)
    }

    fn labels(opened: &Opened) -> &[i64] {
        let Labels::Present(labels) = &opened.labels else { panic!("no labels") };
        labels
    }

    #[test]
    fn both_kinds_are_told_apart() {
        let ten = open_bytes(&encode(&[&[3], &[0], &[9]])).unwrap();
        assert_eq!(labels(&ten), [3, 0, 9]);
        let hundred = open_bytes(&encode(&[&[3, 99], &[19, 0]])).unwrap();
        assert_eq!(labels(&hundred), [99, 0]);
        // 3,074 records of CIFAR-10 are as long as 3,073 of CIFAR-100.
        let ambiguous: Vec<&[u8]> = vec![&[7]; 3074];
        assert_eq!(labels(&open_bytes(&encode(&ambiguous)).unwrap()).len(), 3074);
        let ambiguous: Vec<&[u8]> = vec![&[7, 77]; 3073];
        assert_eq!(labels(&open_bytes(&encode(&ambiguous)).unwrap()).len(), 3073);
    }

    #[test]
    fn planes_become_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test_batch.bin");
        fs::write(&path, encode(&[&[0], &[5]])).unwrap();
        let source = ImageSource::open(&path).unwrap();
        let Item::Picture(DynamicImage::ImageRgb8(picture)) = source.read(1).unwrap() else { panic!("no RGB picture") };
        assert_eq!(picture.get_pixel(0, 0).0, [5, 100, 0]);
        assert_eq!(picture.get_pixel(2, 1).0, [5, 100, 34]);
    }

    #[test]
    fn truncated_files_and_labels_out_of_range_are_errors() {
        let whole = encode(&[&[3], &[4]]);
        for bytes in [&whole[..whole.len() - 1], &encode(&[&[10]]), &encode(&[&[1, 100]]), &encode(&[&[20, 1]])] {
            let error = open_bytes(bytes).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Format);
            assert!(error.to_string().contains("3073 bytes (CIFAR-10)"), "{error}");
        }
    }

    #[test]
    fn names_are_read_where_they_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.bin");
        fs::write(&path, encode(&[&[0, 1]])).unwrap();
        let list = folder.path().join("fine_label_names.txt");
        fs::write(&list, "apple\nbear\n").unwrap();
        assert_eq!(open(&path).unwrap().classes, None);
        let hundred: Vec<String> = (0..100).map(|class| format!("class {class}")).collect();
        fs::write(&list, hundred.join("\n") + "\n\n").unwrap();
        assert_eq!(open(&path).unwrap().classes, Some(hundred));
    }
}
