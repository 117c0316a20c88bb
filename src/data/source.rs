//! Finds images at a path and reads them one by one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode::Foreign;
use super::formats::{Files, Found, Opener, find, is_folder};
use super::item::{Container, IMAGE, Item, Opened};
use super::shape::InputShape;
use super::transforms::{Preprocess, PreprocessFlags};
use crate::error::{Error, ErrorKind, Result};

/// Images found at a path: picture files, pictures in archives, or a NumPy array of tensors.
///
/// Picture files, `.npy` arrays, tar shards and Parquet files are read when an image is asked for. IDX and CIFAR files,
/// `.npz` archives, and gzipped tar shards are held in memory.
#[derive(Debug)]
pub struct ImageSource {
    path: PathBuf,
    parts: Vec<SourceFile>,
    notes: Vec<String>,
    skipped: Mutex<BTreeMap<usize, Unread>>,
}

/// A file of the source, or a folder of pictures.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    content: Box<dyn Container>,
    /// How many images the parts before this one hold.
    first: usize,
    /// How many images this part holds.
    count: usize,
}

/// The images of a source that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many they are.
    pub count: usize,
    /// What was wrong with the first of them, in the order of the source; it names the file.
    pub first: Option<String>,
    /// How many of them are of each kind of pictures that is never read, such as AVIF.
    pub kinds: BTreeMap<String, usize>,
}

impl Skipped {
    /// Adds the images that another process could not read.
    pub fn add(&mut self, other: Skipped) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
        other.kinds.into_iter().for_each(|(kind, count)| *self.kinds.entry(kind).or_default() += count);
    }
}

/// Why an image could not be read.
#[derive(Debug)]
struct Unread {
    message: String,
    /// The kind of picture that it is, if such are never read.
    kind: Option<Foreign>,
}

impl ImageSource {
    /// Opens what is at `path`: a folder that is searched for pictures, recursively and in the order of the paths (if
    /// there are none, for the files that follow), a single picture, an IDX file (plain or gzipped), an `.npy` file, an
    /// `.npz` archive with an array `x` or only one array, a CIFAR file, a tar archive of pictures (plain or gzipped),
    /// or a Parquet file with an image column. Files other than pictures are recognised by their content.
    ///
    /// # Errors
    ///
    /// `Images` if nothing is there, if there are no images in it, or if its kind is unknown; `Format` if a file is
    /// malformed, or a NumPy file holds other values than float32 of four dimensions or uint8 pictures; `Io` if it
    /// cannot be read. Pictures are not decoded yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let opener = Opener::default();
        let mut opened = if is_folder(path)? {
            match find(path)? {
                Found { pictures, archives } if pictures.is_empty() && !archives.is_empty() => archives
                    .iter()
                    .map(|file| opener.open(file))
                    .collect::<Result<Vec<_>>>()?
                    .into_iter()
                    .flatten()
                    .collect(),
                Found { pictures, .. } => vec![Opened::new(path, Files(pictures))],
            }
        } else {
            opener.open(path)?
        };
        let notes = opened.iter_mut().flat_map(|opened| std::mem::take(&mut opened.notes)).collect();
        let source = ImageSource::new(path, opened.into_iter().map(|opened| (opened.path, opened.content)))?;
        Ok(source.with_notes(notes))
    }

    /// The source made of the given parts, in their order.
    ///
    /// # Errors
    ///
    /// `Images` if there are no images, `Format` if tensors of different shapes, or tensors and pictures, meet.
    pub(super) fn new(path: &Path, contents: impl IntoIterator<Item = (PathBuf, Box<dyn Container>)>) -> Result<Self> {
        let mut parts: Vec<SourceFile> = Vec::new();
        for (path, content) in contents {
            let first = parts.last().map_or(0, |part| part.first + part.count);
            let count = content.len();
            let part = SourceFile { path, content, first, count };
            if let Some(before) = parts.first()
                && before.content.tensor_shape() != part.content.tensor_shape()
            {
                let describe = |part: &SourceFile| match part.content.tensor_shape() {
                    Some([channels, height, width]) => format!("tensors of {channels} x {height} x {width}"),
                    None => "pictures".into(),
                };
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("it holds {}, and `{}` {}", describe(&part), before.path.display(), describe(before)),
                )
                .at(&part.path)
                .hint("images of one data set are all pictures, or tensors of one shape"));
            }
            parts.push(part);
        }
        let source = ImageSource { path: path.to_path_buf(), parts, notes: Vec::new(), skipped: Mutex::default() };
        if source.is_empty() {
            return Err(Error::new(ErrorKind::Images, "there are no images in it").at(path));
        }
        Ok(source)
    }

    /// Keeps what was assumed of the parts; what was assumed of several is said once.
    pub(super) fn with_notes(mut self, mut notes: Vec<String>) -> Self {
        notes.dedup();
        self.notes = notes;
        self
    }

    /// What was assumed when the source was opened, a line each; the user should see them.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of images, readable or not.
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.count)
    }

    /// Whether there are no images; never so after [`ImageSource::open`] succeeded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the images are tensors that must not be preprocessed.
    pub fn is_tensors(&self) -> bool {
        self.tensor_shape().is_some()
    }

    /// The shape `[images, channels, height, width]` of the tensors; `None` if the images are pictures.
    pub fn tensor_shape(&self) -> Option<[usize; 4]> {
        let [channels, height, width] = self.parts.first()?.content.tensor_shape()?;
        Some([self.len(), channels, height, width])
    }

    /// The transform that prepares the images for a model with the given input: that of [`Preprocess::resolve`] for
    /// pictures, none for tensors, which are `[images, channels, height, width]` whatever the layout of the model.
    ///
    /// # Errors
    ///
    /// Those of [`Preprocess::resolve`]; `Usage` if flags are given for tensors; `Images` if tensors do not have the
    /// shape of the model's input.
    pub fn preprocess(
        &self,
        flags: &PreprocessFlags,
        metadata: Option<&str>,
        input: InputShape,
    ) -> Result<Option<Preprocess>> {
        let Some([_, channels, height, width]) = self.tensor_shape() else {
            return Preprocess::resolve(flags, metadata, input.channels, [input.height, input.width]).map(Some);
        };
        if !flags.is_empty() {
            return Err(tensors_are_final(&self.path));
        }
        if [channels, height, width] != [input.channels, input.height, input.width] {
            return Err(Error::new(
                ErrorKind::Images,
                format!(
                    "the images are {channels} x {height} x {width}, and the model takes {} x {} x {}",
                    input.channels, input.height, input.width
                ),
            )
            .at(&self.path)
            .hint(
                "the axes are [images, channels, height, width]; ⟦input-size⟧ HxW is the size of a model that takes \
                any",
            ));
        }
        Ok(None)
    }

    /// Checks that pictures come with a transform that makes sense, and tensors without one.
    ///
    /// # Errors
    ///
    /// `Usage` if not.
    pub(super) fn check_preprocess(&self, preprocess: Option<&Preprocess>) -> Result<()> {
        match preprocess {
            Some(_) if self.is_tensors() => Err(tensors_are_final(&self.path)),
            None if !self.is_tensors() => bail!(Usage, "pictures need a transform that prepares them for the model"),
            Some(preprocess) => preprocess.check(),
            None => Ok(()),
        }
    }

    /// How many images each part holds.
    pub(super) fn counts(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|part| part.count)
    }

    /// What could not be read so far.
    pub fn skipped(&self) -> Skipped {
        let skipped = self.lock_skipped();
        let first = skipped.values().next().map(|unread| unread.message.clone());
        let mut kinds = BTreeMap::new();
        skipped
            .values()
            .filter_map(|unread| unread.kind)
            .for_each(|kind| *kinds.entry(kind.0.to_owned()).or_default() += 1);
        Skipped { count: skipped.len(), first, kinds }
    }

    /// A hash of what is at the path, for records of what a result was computed from.
    ///
    /// SHA-256, in hexadecimal: of the relative path and the length of every picture, tar or Parquet file, or of the
    /// bytes of an IDX, CIFAR or NumPy file.
    ///
    /// # Errors
    ///
    /// `Io` if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut before = None;
        for part in &self.parts {
            if let Some(digest) = part.content.digest() {
                hasher.update(digest);
                continue;
            }
            match part.content.files() {
                Some(files) => files.iter().for_each(|file| self.hash_name(file, &mut hasher)),
                None if part.content.is_known_by_name() => self.hash_name(&part.path, &mut hasher),
                // Several parts may come from one file.
                None if before == Some(&part.path) => {}
                None => hash_bytes(&part.path, &mut hasher)?,
            }
            before = Some(&part.path);
        }
        Ok(hexadecimal(hasher))
    }

    fn hash_name(&self, file: &Path, hasher: &mut Sha256) {
        // A broken link is hashed as an empty file: it is skipped when images are read, so it is no error here.
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        for part in self.relative(file) {
            hasher.update(part.as_encoded_bytes());
            hasher.update(b"/");
        }
        hasher.update([0]);
        hasher.update(length.to_le_bytes());
    }

    /// The parts of the path of `file` below the folder that was opened, or its name if it was opened itself.
    fn relative<'a>(&self, file: &'a Path) -> impl Iterator<Item = &'a std::ffi::OsStr> {
        let relative = file.strip_prefix(&self.path).unwrap_or(file);
        let name = relative.as_os_str().is_empty().then(|| file.file_name());
        relative.iter().chain(name.flatten())
    }

    /// The part that holds image `index`, and its index there.
    fn part(&self, index: usize) -> Result<(&SourceFile, usize)> {
        let next = self.parts.partition_point(|part| part.first <= index);
        match self.parts.get(next.wrapping_sub(1)) {
            Some(part) if index - part.first < part.count => Ok((part, index - part.first)),
            _ => bail!(Usage, "there is no image {index}, only {}", self.len()),
        }
    }

    /// Reads image `index`.
    ///
    /// # Errors
    ///
    /// `Images` if it cannot be decoded, `Usage` if there is none.
    pub(super) fn read(&self, index: usize) -> Result<Item<'_>> {
        let (part, index_of_part) = self.part(index)?;
        let sample = part.content.sample(index_of_part).and_then(|sample| sample.take(IMAGE));
        sample.map_err(|error| error.at(self.file(index)))
    }

    /// Names image `index` for messages: its file if it has one of its own, else its place in the file.
    pub(super) fn file(&self, index: usize) -> Cow<'_, Path> {
        let Ok((part, index)) = self.part(index) else {
            return Cow::Borrowed(&self.path);
        };
        part.content.name(&part.path, index)
    }

    /// Remembers that image `index` could not be used; however often it is tried, it counts once.
    pub(super) fn skip(&self, index: usize, error: &Error) {
        let kind = std::error::Error::source(error).and_then(|source| source.downcast_ref()).copied();
        self.lock_skipped().insert(index, Unread { message: error.to_string(), kind });
    }

    fn lock_skipped(&self) -> MutexGuard<'_, BTreeMap<usize, Unread>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tensors_are_final(path: &Path) -> Error {
    Error::new(ErrorKind::Usage, "images in a NumPy file are fed to the model as they are, and cannot be preprocessed")
        .at(path)
        .hint("drop ⟦mean⟧, ⟦std⟧, ⟦crop-ratio⟧, ⟦interpolation⟧ and ⟦resize⟧")
}

fn hash_bytes(path: &Path, hasher: &mut Sha256) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    loop {
        let bytes = reader.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        hasher.update(bytes);
        let length = bytes.len();
        reader.consume(length);
    }
}

pub(super) fn hexadecimal(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use ndarray::{Array, Array3, Array4, Axis};
    use ndarray_npy::{NpzWriter, write_npy};

    use super::super::testing::{idx, write_picture};
    use super::*;

    fn tensors() -> Array4<f32> {
        Array::from_shape_fn((2, 3, 4, 5), |(n, c, h, w)| (n * 1000 + c * 100 + h * 10 + w) as f32)
    }

    fn first_tensor(source: &ImageSource) -> Array3<f32> {
        match source.read(0).unwrap() {
            Item::Tensor(tensor) => tensor.to_owned(),
            Item::Picture(_) => panic!("a picture"),
        }
    }

    fn write_npz(path: &Path, arrays: &[(&str, Array4<f32>)]) {
        let mut writer = NpzWriter::new_compressed(File::create(path).unwrap());
        for (name, array) in arrays {
            writer.add_array(*name, array).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn folders_are_searched_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["b/2.PNG", "b/1.png", "a.bmp", ".hidden/x.png", ".y.png"] {
            write_picture(&root.join(name), 3, 2, [1, 2, 3]);
        }
        fs::write(root.join("notes.txt"), "no picture").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
            std::os::unix::fs::symlink(root.join("nowhere"), root.join("z.png")).unwrap();
        }
        let source = ImageSource::open(root).unwrap();
        let names: Vec<_> =
            (0..source.len()).map(|index| source.file(index).strip_prefix(root).unwrap().to_owned()).collect();
        let mut expected = vec!["a.bmp", "b/1.png", "b/2.PNG"];
        if cfg!(unix) {
            expected.push("z.png");
            assert_eq!(source.read(3).err().unwrap().kind(), ErrorKind::Images);
        }
        assert_eq!(names, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert!(!source.is_tensors());
    }

    #[test]
    fn missing_paths_and_empty_folders_are_image_errors() {
        let folder = tempfile::tempdir().unwrap();
        let error = ImageSource::open(folder.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        let error = ImageSource::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains(".jpg"), "{error}");
        let text = folder.path().join("notes.txt");
        fs::write(&text, "no picture").unwrap();
        let error = ImageSource::open(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
    }

    #[test]
    fn a_single_picture_is_a_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.png");
        write_picture(&path, 3, 2, [1, 2, 3]);
        assert_eq!(ImageSource::open(&path).unwrap().len(), 1);
    }

    #[test]
    fn idx_images_are_grey_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images");
        let bytes = idx([0x0803, 1, 2, 3], &[1, 2, 3, 4, 5, 6]);
        fs::write(&path, bytes).unwrap();
        let source = ImageSource::open(&path).unwrap();
        let Item::Picture(image) = source.read(0).unwrap() else {
            panic!("a tensor");
        };
        assert_eq!((image.width(), image.height()), (3, 2));
        assert_eq!(image.as_bytes(), [1, 2, 3, 4, 5, 6]);
        fs::write(&path, idx([0x0803, 0, 2, 3], &[])).unwrap();
        assert_eq!(ImageSource::open(&path).unwrap_err().kind(), ErrorKind::Images);
    }

    #[test]
    fn arrays_are_read_from_npy_and_npz() {
        let folder = tempfile::tempdir().unwrap();
        let expected = tensors().index_axis_move(Axis(0), 0);
        let npy = folder.path().join("images.npy");
        write_npy(&npy, &tensors()).unwrap();
        let named = folder.path().join("named.npz");
        write_npz(&named, &[("a", tensors() + 1.0), ("x", tensors())]);
        let only = folder.path().join("only.npz");
        write_npz(&only, &[("arr_0", tensors())]);
        for path in [npy, named, only] {
            let source = ImageSource::open(&path).unwrap();
            assert_eq!(source.tensor_shape(), Some([2, 3, 4, 5]));
            assert!(source.is_tensors());
            assert_eq!(first_tensor(&source), expected);
        }
    }

    #[test]
    fn a_header_that_lies_about_its_shape_allocates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lie.npz");
        let mut header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104, 1, 1, 1), }".to_vec();
        header.resize(118, b' ');
        let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        npy.extend(header);
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        archive.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&npy).unwrap();
        archive.finish().unwrap();
        let error = ImageSource::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    }

    #[test]
    fn arrays_in_fortran_order_are_read_rightly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.npy");
        write_npy(&path, &tensors().reversed_axes()).unwrap();
        let source = ImageSource::open(&path).unwrap();
        let expected = tensors().reversed_axes().index_axis_move(Axis(0), 0);
        assert_eq!(first_tensor(&source), expected);
    }

    #[test]
    fn other_arrays_are_format_errors_with_hints() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.npy");
        let check = |path: &Path, message: &str| {
            let error = ImageSource::open(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format);
            assert!(error.to_string().contains(message), "{error}");
            assert!(error.hint_text().is_some());
        };
        write_npy(&path, &tensors().mapv(f64::from)).unwrap();
        check(&path, "f8");
        write_npy(&path, &tensors().index_axis_move(Axis(0), 0)).unwrap();
        check(&path, "ndim 3");
        write_npy(&path, &tensors()).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        check(&path, "missing 8 bytes");
        let two = folder.path().join("two.npz");
        write_npz(&two, &[("a", tensors()), ("b", tensors())]);
        check(&two, "(a, b)");
        fs::write(&two, b"PK\x03\x04 and no more").unwrap();
        check(&two, "zip");
    }

    #[test]
    fn fingerprints_follow_names_and_lengths() {
        let folder = tempfile::tempdir().unwrap();
        let fingerprint = || ImageSource::open(folder.path()).unwrap().fingerprint();
        write_picture(&folder.path().join("a.bmp"), 3, 2, [1, 2, 3]);
        let before = fingerprint().unwrap();
        assert_eq!(before.len(), 64);
        write_picture(&folder.path().join("a.bmp"), 3, 2, [3, 2, 1]);
        assert_eq!(fingerprint().unwrap(), before);
        write_picture(&folder.path().join("a.bmp"), 3, 3, [1, 2, 3]);
        assert_ne!(fingerprint().unwrap(), before);
    }

    #[test]
    fn fingerprints_of_arrays_follow_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.npy");
        write_npy(&path, &tensors()).unwrap();
        let before = ImageSource::open(&path).unwrap().fingerprint().unwrap();
        write_npy(&path, &(tensors() + 1.0)).unwrap();
        let after = ImageSource::open(&path).unwrap().fingerprint().unwrap();
        assert_ne!(before, after);
    }
}
