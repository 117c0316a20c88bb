//! Reads IDX image files, the format of MNIST and its descendants, plain or gzipped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ndarray::Array3;

use crate::error::{Error, ErrorKind, Result};

/// Unsigned bytes in three dimensions.
const MAGIC: u32 = 0x0000_0803;

/// Reads the grey images, `[images, rows, columns]`, of the IDX file at `path`.
///
/// The lengths in the header are not believed: memory grows with what the file really yields, and never beyond one byte
/// more than the header announces.
///
/// # Errors
///
/// `Io` if the file cannot be read or its gzip stream is broken, `Format` if it holds no three-dimensional bytes, or
/// more or fewer of them than it says.
pub(super) fn read(path: &Path, gzipped: bool) -> Result<Array3<u8>> {
    let file = BufReader::new(File::open(path).map_err(|error| Error::io(path, error))?);
    if gzipped { parse(MultiGzDecoder::new(file)) } else { parse(file) }.map_err(|error| error.at(path))
}

fn parse(mut reader: impl Read) -> Result<Array3<u8>> {
    let mut header = [0; 16];
    reader.read_exact(&mut header).map_err(read_error)?;
    let [magic, images, rows, columns] =
        [0, 4, 8, 12].map(|start| header[start..start + 4].iter().fold(0, |word, &byte| word << 8 | u32::from(byte)));
    if magic != MAGIC {
        return Err(Error::new(
            ErrorKind::Format,
            format!("not an IDX image file: its magic is {magic:#010x}, not {MAGIC:#010x}"),
        )
        .hint("give the file of the images (such as `t10k-images-idx3-ubyte.gz`), not the labels"));
    }
    let announced = [images, rows, columns]
        .iter()
        .try_fold(1u64, |product, &side| product.checked_mul(side.into()))
        .filter(|&bytes| bytes < isize::MAX as u64);
    let Some(announced) = announced else {
        bail!(Format, "the IDX header announces an impossible {images} images of {rows} x {columns}");
    };
    let mut pixels = Vec::new();
    reader.take(announced + 1).read_to_end(&mut pixels).map_err(read_error)?;
    if pixels.len() as u64 != announced {
        let verdict = if (pixels.len() as u64) < announced {
            format!("only {} are there", pixels.len())
        } else {
            "there are more".to_owned()
        };
        bail!(
            Format,
            "the IDX header announces {images} images of {rows} x {columns}, {announced} bytes, but {verdict}"
        );
    }
    Array3::from_shape_vec((images as usize, rows as usize, columns as usize), pixels)
        .map_err(|error| Error::new(ErrorKind::Format, error.to_string()))
}

fn read_error(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ErrorKind::Format,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot be read as an IDX file: {error}")).caused_by(error)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use ndarray::array;

    use super::*;

    /// An IDX file with the given header words and pixels.
    pub(crate) fn encode(words: [u32; 4], pixels: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.extend(pixels);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_bytes(bytes: &[u8], gzipped: bool) -> Result<Array3<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path(), gzipped)
    }

    #[test]
    fn plain_and_gzipped_files_agree() {
        let bytes = encode([MAGIC, 2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let expected = array![[[1, 2, 3]], [[4, 5, 6]]];
        assert_eq!(read_bytes(&bytes, false).unwrap(), expected);
        assert_eq!(read_bytes(&gzip(&bytes), true).unwrap(), expected);
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let huge = [MAGIC, u32::MAX, u32::MAX, u32::MAX];
        for (words, pixels, message) in [
            ([MAGIC, 2, 1, 3], &[0; 5][..], "only 5 are there"),
            ([MAGIC, 2, 1, 3], &[0; 7], "there are more"),
            ([MAGIC, u32::MAX, 1, 1], &[0; 7], "only 7 are there"),
            (huge, &[0; 7], "impossible"),
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
        let bytes = encode([MAGIC, 2, 1, 3], &[0; 6]);
        assert!(read_bytes(&bytes[..10], false).is_err());
        let zipped = gzip(&bytes);
        assert!(read_bytes(&zipped[..zipped.len() - 9], true).is_err());
    }
}
