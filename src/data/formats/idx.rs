//! Reads IDX files of images and of labels, the format of MNIST and its descendants, plain or gzipped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ndarray::{Array3, Axis};

use super::super::item::{Labels, Opened};
use super::super::limits::unpacked_limit;
use super::pixels::PixelArray;
use crate::error::{Error, ErrorKind, Result};

/// Unsigned bytes in three dimensions: images, rows, columns.
const IMAGES: u32 = 0x0000_0803;

/// Unsigned bytes in one dimension.
const LABELS: u32 = 0x0000_0801;

/// Opens the file at `path`, which is held in memory, with the labels that lie beside it if they are wanted.
///
/// # Errors
///
/// `Io` if a file cannot be read or its gzip stream is broken, `Format` if it is no IDX file of its kind.
pub(super) fn open(path: &Path, with_labels: bool) -> Result<Opened> {
    let mut opened = Opened::new(path, PixelArray(images(path)?.insert_axis(Axis(3))));
    if with_labels {
        opened.labels = match labels_beside(path) {
            Some(beside) => Labels::Present(labels(&beside)?.into_iter().map(i64::from).collect()),
            None => Labels::Absent("no file of labels (`idx1` for `idx3` in its name) lies beside it".into()),
        };
    }
    Ok(opened)
}

/// Reads the grey images, `[images, rows, columns]`, of the IDX file at `path`.
///
/// The lengths in the header are not believed: memory grows with what the file really yields, and never beyond one byte
/// more than the header announces.
///
/// # Errors
///
/// `Io` if the file cannot be read or its gzip stream is broken, `Format` if it holds no three-dimensional bytes, or
/// more or fewer of them than it says.
fn images(path: &Path) -> Result<Array3<u8>> {
    let (sides, pixels) = read(path, |reader, limit| {
        parse::<3>(
            reader,
            limit,
            IMAGES,
            "image",
            "give the file of the images (such as `t10k-images-idx3-ubyte.gz`), not the labels",
        )
    })?;
    Array3::from_shape_vec(sides, pixels).map_err(|error| Error::new(ErrorKind::Format, error.to_string()).at(path))
}

/// Reads the labels of the IDX file at `path`.
///
/// # Errors
///
/// As [`images`].
fn labels(path: &Path) -> Result<Vec<u8>> {
    let (_, labels) = read(path, |reader, limit| {
        parse::<1>(reader, limit, LABELS, "label", "give the labels that were published with the images")
    })?;
    Ok(labels)
}

/// The file of the labels that belong to the file of images at `path`, if it is there: its name has `labels` for
/// `images` and `idx1` for `idx3`, and may be gzipped or not.
fn labels_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let renamed = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = renamed.strip_suffix(".gz").unwrap_or(&renamed);
    let candidates = [renamed.clone(), plain.to_owned(), format!("{plain}.gz")];
    candidates.iter().filter(|candidate| *candidate != name).map(|name| path.with_file_name(name)).find(|p| p.is_file())
}

fn read<T>(path: &Path, parse: impl FnOnce(&mut dyn Read, u64) -> Result<T>) -> Result<T> {
    let failed = |error| Error::io(path, error);
    let gzipped = has_magic(path, &[0x1f, 0x8b])?;
    let file = File::open(path).map_err(failed)?;
    let limit = unpacked_limit(file.metadata().map_err(failed)?.len());
    let mut file = BufReader::new(file);
    if gzipped { parse(&mut MultiGzDecoder::new(file), limit) } else { parse(&mut file, u64::MAX) }
        .map_err(|error| error.at(path))
}

/// Whether a file begins with the given bytes.
fn has_magic(path: &Path, magic: &[u8]) -> Result<bool> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(magic.len() as u64).read_to_end(&mut head))
        .map_err(|error| Error::io(path, error))?;
    Ok(head == magic)
}

/// The sides and the bytes of an IDX file of `N` dimensions.
fn parse<const N: usize>(
    reader: &mut dyn Read,
    limit: u64,
    expected: u32,
    kind: &str,
    hint: &str,
) -> Result<([usize; N], Vec<u8>)> {
    let mut word = || {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(read_error)?;
        Ok(u32::from_be_bytes(bytes))
    };
    let magic = word()?;
    if magic != expected {
        return Err(Error::new(
            ErrorKind::Format,
            format!("not an IDX {kind} file: its magic is {magic:#010x}, not {expected:#010x}"),
        )
        .hint(hint));
    }
    let mut sides = [0; N];
    for side in &mut sides {
        *side = word()?;
    }
    let listed = sides.map(|side| side.to_string()).join(" x ");
    let announced = sides
        .iter()
        .try_fold(1u64, |product, &side| product.checked_mul(side.into()))
        .filter(|&bytes| bytes < isize::MAX as u64);
    let Some(announced) = announced else {
        return Err(damaged(format!("the IDX header announces an impossible {listed} bytes")));
    };
    // As many images as the header likes would come of no bytes at all.
    if announced == 0 && sides[0] > 0 {
        return Err(damaged(format!("the IDX header announces {listed} bytes: images of no pixels")));
    }
    if announced > limit {
        return Err(damaged(format!(
            "the IDX header announces {listed} bytes, more than a gzipped file of this size may unpack to"
        )));
    }
    let mut bytes = Vec::new();
    reader.take(announced + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 != announced {
        let verdict = if (bytes.len() as u64) < announced {
            format!("only {} are there", bytes.len())
        } else {
            "there are more".to_owned()
        };
        return Err(damaged(format!("the IDX header announces {listed} = {announced} bytes, but {verdict}")));
    }
    Ok((sides.map(|side| side as usize), bytes))
}

fn damaged(what: String) -> Error {
    Error::new(ErrorKind::Format, what).hint("fetch the file again: it is damaged, or no IDX file")
}

fn read_error(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ErrorKind::Format,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot be read as an IDX file: {error}")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::data::testing::{gzip, idx as encode};

    fn read_bytes(bytes: &[u8], gzipped: bool) -> Result<Array3<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(has_magic(file.path(), &[0x1f, 0x8b]).unwrap(), gzipped);
        images(file.path())
    }

    #[test]
    fn plain_and_gzipped_files_agree() {
        let bytes = encode([IMAGES, 2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let expected = array![[[1, 2, 3]], [[4, 5, 6]]];
        assert_eq!(read_bytes(&bytes, false).unwrap(), expected);
        assert_eq!(read_bytes(&gzip(&bytes), true).unwrap(), expected);
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let huge = [IMAGES, u32::MAX, u32::MAX, u32::MAX];
        for (words, pixels, message) in [
            ([IMAGES, 2, 1, 3], &[0; 5][..], "only 5 are there"),
            ([IMAGES, 2, 1, 3], &[0; 7], "there are more"),
            ([IMAGES, 1 << 20, 1, 1], &[0; 7], "only 7 are there"),
            ([IMAGES, u32::MAX, 1, 1], &[0; 7], " 4294967295 x 1 x 1"),
            (huge, &[0; 7], "impossible"),
            // Found by fuzzing: as many images as the header says, of no bytes.
            ([IMAGES, u32::MAX, 0, 3], &[], "no pixels"),
            ([0x0801, 2, 1, 3], &[0; 6], "not an IDX image file"),
        ] {
            for gzipped in [false, true] {
                let plain = encode(words, pixels);
                let bytes = if gzipped { gzip(&plain) } else { plain };
                let error = read_bytes(&bytes, gzipped).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Format);
                assert!(error.to_string().contains(message), "{error}");
            }
        }
    }

    #[test]
    fn truncated_files_are_errors() {
        let bytes = encode([IMAGES, 2, 1, 3], &[0; 6]);
        assert!(read_bytes(&bytes[..10], false).is_err());
        let zipped = gzip(&bytes);
        assert!(read_bytes(&zipped[..zipped.len() - 9], true).is_err());
    }
}
