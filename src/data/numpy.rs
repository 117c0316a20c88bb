//! Reads NumPy files: an `.npy` array of tensors, or an `.npz` archive of images and labels.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use memmap2::Mmap;
use ndarray::{ArrayD, ArrayView4, ArrayViewD, Axis, Ix4};
use ndarray_npy::{ReadableElement, ViewElement, ViewNpyExt};

use super::source::{Content, Labels, Opened, Role, unpacked_limit};
use crate::error::{Error, ErrorKind, Result};

const TENSOR_HINT: &str = "save a float32 array [images, channels, height, width], as `array` or under the name `x`";
const LABEL_HINT: &str = "save the labels as integers, one an image, under the name `y`";

/// The names under which images and labels are found, and the part of the data set that they are.
const NAMES: [(&str, &str, Option<Role>); 7] = [
    ("x", "y", None),
    ("x_train", "y_train", Some(Role::Training)),
    ("x_val", "y_val", Some(Role::Validation)),
    ("x_test", "y_test", Some(Role::Test)),
    ("train_images", "train_labels", Some(Role::Training)),
    ("val_images", "val_labels", Some(Role::Validation)),
    ("test_images", "test_labels", Some(Role::Test)),
];

/// Opens an `.npy` file, whose float32 values `[images, channels, height, width]` are read when they are asked for.
///
/// # Errors
///
/// `Format` if it holds anything else, `Io` if it cannot be read.
pub(super) fn open_npy(path: &Path, file: &File) -> Result<Opened> {
    // SAFETY: the map is only read, as bytes, each of which may have any value. As with every mapped file, nobody must
    // truncate it while it is in use.
    let map = unsafe { Mmap::map(file) }.map_err(|error| Error::io(path, error))?;
    mapped(path, &map)?;
    Ok(Opened::new(path, Content::Mapped(map)))
}

/// The tensors of a mapped `.npy` file.
pub(super) fn mapped<'a>(path: &Path, bytes: &'a [u8]) -> Result<ArrayView4<'a, f32>> {
    ArrayView4::view_npy(bytes).map_err(|error| not_tensors(path, error))
}

/// Opens an `.npz` archive, whose images are held in memory: `x`, `x_train` and `x_test` (or `x_val`), or its only array;
/// with labels under the same names with a `y`.
///
/// # Errors
///
/// `Format` if it is malformed or holds images or labels of other types or shapes, `Io` if it cannot be read.
pub(super) fn open_npz(path: &Path, file: File, with_labels: bool) -> Result<Vec<Opened>> {
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| broken(path, error))?;
    let members: Vec<String> = archive.file_names().map(str::to_owned).collect();
    let plain = |member: &String| member.strip_suffix(".npy").unwrap_or(member).to_owned();
    let member = |name: &str| members.iter().find(|member| plain(member) == name);
    // An `x` stands for all; else there may be several parts.
    let mut found: Vec<_> =
        NAMES.iter().filter_map(|&(images, labels, role)| Some((member(images)?, member(labels), role))).collect();
    if found.first().is_some_and(|(_, _, role)| role.is_none()) {
        found.truncate(1);
    }
    if let ([], [only]) = (&found[..], &members[..]) {
        found.push((only, None, None));
    }
    if found.is_empty() {
        let list: Vec<String> = members.iter().map(plain).collect();
        return Err(Error::new(
            ErrorKind::Format,
            format!("no array of this archive is named `x`; there are {} ({})", list.len(), list.join(", ")),
        )
        .at(path)
        .hint(TENSOR_HINT));
    }
    found
        .into_iter()
        .map(|(images, labels, role)| {
            let mut opened = Opened::new(path, read_images(path, &read_member(path, &mut archive, images)?)?);
            opened.role = role;
            opened.labels = match labels {
                _ if !with_labels => Labels::Ignored,
                Some(name) => Labels::Present(read_labels(path, name, &read_member(path, &mut archive, name)?)?),
                None => Labels::Absent(format!("it has no labels beside `{}`", plain(images))),
            };
            Ok(opened)
        })
        .collect()
}

/// Images are float32 tensors `[images, channels, height, width]`, or uint8 pictures `[images, height, width]` or
/// `[images, height, width, 1 or 3]`.
fn read_images(path: &Path, bytes: &[u8]) -> Result<Content> {
    let error = match ArrayView4::<f32>::view_npy(bytes) {
        Ok(tensors) => return Ok(Content::Loaded(tensors.to_owned())),
        Err(error) => error,
    };
    let Ok(pictures) = ArrayViewD::<u8>::view_npy(bytes) else {
        return Err(not_tensors(path, error));
    };
    let shape = pictures.shape().to_vec();
    match shape[..] {
        [_, _, _] => pictures.insert_axis(Axis(3)),
        [_, _, _, 1 | 3] => pictures,
        _ => {
            return Err(Error::new(
                ErrorKind::Format,
                format!("its uint8 array is {shape:?}, and pictures are [images, height, width] or [images, height, width, 1 or 3]"),
            )
            .at(path)
            .hint("save the channels as the last axis, or preprocessed float32 values [images, channels, height, width]"));
        }
    }
    .to_owned()
    .into_dimensionality::<Ix4>()
    .map(Content::Pixels)
    .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// Labels are integers of any type, `[images]` or `[images, 1]`.
fn read_labels(path: &Path, name: &str, bytes: &[u8]) -> Result<Vec<i64>> {
    let wrong = |problem: String| {
        Error::new(ErrorKind::Format, format!("its array `{name}` {problem}")).at(path).hint(LABEL_HINT)
    };
    let labels = integers::<i64>(bytes)
        .or_else(|_| integers::<i32>(bytes))
        .or_else(|_| integers::<u8>(bytes))
        .or_else(|_| integers::<i16>(bytes))
        .or_else(|_| integers::<i8>(bytes))
        .or_else(|_| integers::<u16>(bytes))
        .or_else(|_| integers::<u32>(bytes))
        .or_else(|_| integers::<u64>(bytes))
        .map_err(|error| wrong(format!("holds no integers: {error}")))?;
    if labels.shape().iter().skip(1).any(|&side| side != 1) || labels.ndim() == 0 {
        return Err(wrong(format!("is {:?}, and labels are [images]", labels.shape())));
    }
    Ok(labels.into_iter().collect())
}

/// The integers of an array. What an i64 cannot hold becomes -1, which is no label either.
fn integers<T>(bytes: &[u8]) -> Result<ArrayD<i64>, ndarray_npy::ViewNpyError>
where
    T: ViewElement + ReadableElement + Copy,
    i64: TryFrom<T>,
{
    Ok(ArrayViewD::<T>::view_npy(bytes)?.mapv(|label| i64::try_from(label).unwrap_or(-1)))
}

fn read_member(path: &Path, archive: &mut zip::ZipArchive<BufReader<File>>, name: &str) -> Result<Vec<u8>> {
    let member = archive.by_name(name).map_err(|error| broken(path, error))?;
    // Deflate packs at most about a thousand to one, so a size beyond that is a lie; and no header is believed before the
    // bytes that it speaks of are there.
    let size = member.size();
    let packed = member.compressed_size();
    if size / 1100 > packed + 64 || size > unpacked_limit(packed) {
        return Err(Error::new(
            ErrorKind::Format,
            format!("its array `{name}` claims an impossible size of {size} bytes"),
        )
        .at(path));
    }
    let mut bytes = Vec::new();
    member.take(size).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    Ok(bytes)
}

fn broken(path: &Path, error: zip::result::ZipError) -> Error {
    Error::new(ErrorKind::Format, format!("not a readable .npz (zip) archive: {error}")).at(path).hint(TENSOR_HINT)
}

fn not_tensors(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Format, format!("not a float32 array of four dimensions: {error}"))
        .at(path)
        .hint(TENSOR_HINT)
        .caused_by(error)
}
