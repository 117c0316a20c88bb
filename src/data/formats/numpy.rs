//! Reads NumPy files: an `.npy` array of tensors, or an `.npz` archive of images and labels.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ndarray::{Array4, ArrayD, ArrayView4, ArrayViewD, Axis, Ix4};
use ndarray_npy::{ReadableElement, ViewElement, ViewNpyExt};

use super::super::item::{Container, Labels, Opened, Role, Sample};
use super::super::limits::unpacked_limit;
use super::pixels::PixelArray;
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

/// An `.npy` file of tensors, which are read when they are asked for.
#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    fn tensors(&self) -> Result<ArrayView4<'_, f32>> {
        let tensors = ArrayView4::view_npy(&self.map).map_err(|error| not_tensors(&self.path, error))?;
        some_pixels(&self.path, tensors.shape())?;
        Ok(tensors)
    }
}

impl Container for Mapped {
    fn len(&self) -> usize {
        self.tensors().map_or(0, |tensors| tensors.len_of(Axis(0)))
    }

    fn sample(&self, index: usize) -> Result<Sample<'_>> {
        Ok(Sample::tensor(self.tensors()?.index_axis_move(Axis(0), index)))
    }

    fn tensor_shape(&self) -> Option<[usize; 3]> {
        self.tensors().ok().map(|tensors| image_shape(&tensors))
    }
}

/// Tensors `[images, channels, height, width]` in memory.
#[derive(Debug)]
struct Loaded(Array4<f32>);

impl Container for Loaded {
    fn len(&self) -> usize {
        self.0.len_of(Axis(0))
    }

    fn sample(&self, index: usize) -> Result<Sample<'_>> {
        Ok(Sample::tensor(self.0.view().index_axis_move(Axis(0), index)))
    }

    fn tensor_shape(&self) -> Option<[usize; 3]> {
        Some(image_shape(&self.0.view()))
    }
}

fn image_shape(tensors: &ArrayView4<f32>) -> [usize; 3] {
    let (_, channels, height, width) = tensors.dim();
    [channels, height, width]
}

/// Opens an `.npy` file, whose float32 values `[images, channels, height, width]` are read when they are asked for.
///
/// # Errors
///
/// `Format` if it holds anything else, `Io` if it cannot be read.
pub(super) fn open_npy(path: &Path, file: &File) -> Result<Opened> {
    // SAFETY: the map is only read, as bytes, each of which may have any value. As with every mapped file, nobody must
    // truncate it while it is in use.
    let map = unsafe { Mmap::map(file) }.map_err(|error| Error::io(path, error))?;
    let mapped = Mapped { path: path.to_path_buf(), map };
    mapped.tensors()?;
    Ok(Opened::new(path, mapped))
}

/// As many images as the header likes would come of no bytes at all.
fn some_pixels(path: &Path, shape: &[usize]) -> Result<()> {
    match shape {
        [images, sides @ ..] if *images > 0 && sides.contains(&0) => {
            Err(Error::new(ErrorKind::Format, format!("its array is {shape:?}: images of no pixels"))
                .at(path)
                .hint("save the array again: it is damaged, or no images"))
        }
        _ => Ok(()),
    }
}

/// Opens an `.npz` archive, whose images are held in memory: `x`, `x_train` and `x_test` (or `x_val`), or its only
/// array; with labels under the same names with a `y`.
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
            let mut opened = read_images(path, &read_member(path, &mut archive, images)?)?;
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
fn read_images(path: &Path, bytes: &[u8]) -> Result<Opened> {
    let error = match ArrayView4::<f32>::view_npy(bytes) {
        Ok(tensors) => {
            some_pixels(path, tensors.shape())?;
            return Ok(Opened::new(path, Loaded(tensors.to_owned())));
        }
        Err(error) => error,
    };
    let Ok(pictures) = ArrayViewD::<u8>::view_npy(bytes) else {
        return Err(not_tensors(path, error));
    };
    let shape = pictures.shape().to_vec();
    some_pixels(path, &shape)?;
    match shape[..] {
        [_, _, _] => pictures.insert_axis(Axis(3)),
        [_, _, _, 1 | 3] => pictures,
        _ => {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "its uint8 array is {shape:?}, and pictures are [images, height, width] or [images, height, \
                    width, 1 or 3]"
                ),
            )
            .at(path)
            .hint(
                "save the channels as the last axis, or preprocessed float32 values [images, channels, height, \
                width]",
            ));
        }
    }
    .to_owned()
    .into_dimensionality::<Ix4>()
    .map(|pictures| Opened::new(path, PixelArray(pictures)))
    .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// Labels are integers of any type, `[images]` or `[images, 1]`.
fn read_labels(path: &Path, name: &str, bytes: &[u8]) -> Result<Vec<i64>> {
    let name = name.strip_suffix(".npy").unwrap_or(name);
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

pub(super) fn read_member(path: &Path, archive: &mut zip::ZipArchive<BufReader<File>>, name: &str) -> Result<Vec<u8>> {
    let member = archive.by_name(name).map_err(|error| broken(path, error))?;
    // Deflate packs at most about a thousand to one, so a size beyond that is a lie; and no header is believed before
    // the bytes that it speaks of are there.
    let size = member.size();
    let packed = member.compressed_size();
    if size / 1100 > packed + 64 || size > unpacked_limit(packed) {
        return Err(Error::new(
            ErrorKind::Format,
            format!("its array `{name}` claims {size} bytes, more than {packed} packed ones may be"),
        )
        .at(path)
        .hint("if the array is right, save it with `numpy.savez`, which does not pack"));
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

#[cfg(test)]
mod tests {
    use ndarray::{Array, Array1, Array2, Array3, Dimension};
    use ndarray_npy::{NpzWriter, WritableElement};

    use super::super::super::decode;
    use super::super::super::item::{IMAGE, Item};
    use super::*;

    struct Archive(tempfile::NamedTempFile, NpzWriter<File>);

    impl Archive {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            let writer = NpzWriter::new_compressed(file.reopen().unwrap());
            Archive(file, writer)
        }

        fn with<A: WritableElement, D: Dimension>(mut self, name: &str, array: Array<A, D>) -> Self {
            self.1.add_array(name, &array).unwrap();
            self
        }

        fn open(self) -> Result<Vec<Opened>> {
            self.1.finish().unwrap();
            open_npz(self.0.path(), self.0.reopen().unwrap(), true)
        }
    }

    /// Found by fuzzing: as many images as the header says, of no bytes.
    #[test]
    fn images_of_no_pixels_are_errors() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for shape in [(5, 0, 2, 2), (5, 1, 2, 0), (0, 1, 2, 2)] {
            let array = Array4::<f32>::zeros(shape);
            ndarray_npy::write_npy(file.path(), &array).unwrap();
            let opened = [
                open_npy(file.path(), &file.reopen().unwrap()).map(|_| ()),
                Archive::new().with("x", array).open().map(|_| ()),
                Archive::new().with("x", Array4::<u8>::zeros((shape.0, shape.2, shape.3, 1))).open().map(|_| ()),
            ];
            for (i, opened) in opened.into_iter().enumerate() {
                let pixels = shape.0 == 0 || (i == 2 && shape.3 > 0);
                match opened {
                    Ok(()) => assert!(pixels, "{shape:?}"),
                    Err(e) => assert!(!pixels && e.to_string().contains("no pixels"), "{shape:?}: {e}"),
                }
            }
        }
    }

    fn tensors() -> Array4<f32> {
        Array4::from_elem((3, 1, 2, 2), 0.5)
    }

    fn labels(opened: &Opened) -> &[i64] {
        let Labels::Present(labels) = &opened.labels else { panic!("no labels") };
        labels
    }

    /// The bytes `[images, rows, columns, channels]` of pictures.
    fn pixels(opened: &Opened) -> Array4<u8> {
        let picture = |index| match opened.content.sample(index).unwrap().take(IMAGE).unwrap() {
            Item::Picture(picture) => {
                let channels = usize::from(picture.color().channel_count());
                decode::pixels(picture, channels)
            }
            Item::Tensor(_) => panic!("a tensor"),
        };
        let pictures: Vec<_> = (0..opened.content.len()).map(picture).collect();
        let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
        ndarray::stack(Axis(0), &views).unwrap()
    }

    #[test]
    fn labels_are_integers_of_any_type() {
        fn check<A: WritableElement + Copy + TryFrom<u8, Error: std::fmt::Debug>>() {
            let values = Array1::from_iter([0u8, 7, 100].map(|label| A::try_from(label).unwrap()));
            let column = values.clone().insert_axis(Axis(1));
            assert_eq!(labels(&Archive::new().with("x", tensors()).with("y", values).open().unwrap()[0]), [0, 7, 100]);
            assert_eq!(labels(&Archive::new().with("x", tensors()).with("y", column).open().unwrap()[0]), [0, 7, 100]);
        }
        check::<u8>();
        check::<i8>();
        check::<u16>();
        check::<i16>();
        check::<u32>();
        check::<i32>();
        check::<u64>();
        check::<i64>();
        let huge = Archive::new().with("x", tensors()).with("y", Array1::from_elem(3, u64::MAX));
        assert_eq!(labels(&huge.open().unwrap()[0]), [-1; 3]);
        let error = Archive::new().with("x", tensors()).with("y", Array1::from_elem(3, 1.0f32)).open().err().unwrap();
        assert!(error.to_string().contains("`y` holds no integers"), "{error}");
        let error = Archive::new().with("x", tensors()).with("y", Array2::<u8>::eye(3)).open().err().unwrap();
        assert!(error.to_string().contains("`y` is [3, 3]"), "{error}");
    }

    #[test]
    fn pictures_are_bytes() {
        let grey = Array3::from_shape_fn((2, 3, 4), |(n, y, x)| (n * 100 + y * 10 + x) as u8);
        let opened = Archive::new().with("x", grey.clone()).open().unwrap();
        assert_eq!(pixels(&opened[0]), grey.insert_axis(Axis(3)));
        assert!(matches!(opened[0].labels, Labels::Absent(_)));
        let colour = Array4::from_elem((2, 3, 4, 3), 9u8);
        let opened = Archive::new().with("x", colour.clone()).open().unwrap();
        assert_eq!(pixels(&opened[0]), colour);
        let error = Archive::new().with("x", Array4::from_elem((2, 3, 4, 5), 9u8)).open().err().unwrap();
        assert!(error.to_string().contains("[2, 3, 4, 5]"), "{error}");
        assert!(error.hint_text().unwrap().contains("last axis"));
    }

    #[test]
    fn parts_have_their_roles() {
        let part = || Array3::from_elem((2, 3, 3), 1u8);
        let y = || Array1::from_iter([0u8, 1]);
        let keras =
            Archive::new().with("y_test", y()).with("x_test", part()).with("x_train", part()).with("y_train", y());
        let roles: Vec<_> = keras.open().unwrap().iter().map(|opened| opened.role).collect();
        assert_eq!(roles, [Some(Role::Training), Some(Role::Test)]);
        let one = Archive::new().with("x", part()).with("x_train", part()).open().unwrap();
        assert_eq!((one.len(), one[0].role), (1, None));
    }
}
