//! Finds images at a path and reads them one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageReader, ImageResult, Limits, RgbImage};
use memmap2::Mmap;
use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis};
use ndarray_npy::ViewNpyExt;
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

use super::idx;
use crate::error::{Error, ErrorKind, Result};

/// The extensions, in any case, by which picture files are recognised.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"];

/// The sides and the memory that one picture may ask for, so that a malicious file cannot exhaust the machine.
const MAXIMAL_SIDE: u32 = 65_535;
pub(super) const MAXIMAL_BYTES: u64 = 512 << 20;

const SOURCE_HINT: &str = "--images takes a folder of pictures, an IDX file, or an .npy or .npz file";
const TENSOR_HINT: &str = "save a float32 array [images, channels, height, width], as `array` or under the name `x`";

/// Images found at a path: picture files, an IDX file, or a NumPy array of tensors.
///
/// Picture files and `.npy` arrays are read when an image is asked for. IDX files and `.npz` archives, which may be
/// compressed, are held in memory.
#[derive(Debug)]
pub struct ImageSource {
    path: PathBuf,
    content: Content,
    skipped: Mutex<BTreeMap<usize, String>>,
}

#[derive(Debug)]
enum Content {
    Files(Vec<PathBuf>),
    Grey(Array3<u8>),
    Mapped(Mmap),
    Loaded(Array4<f32>),
}

/// The images of a source that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many they are.
    pub count: usize,
    /// What was wrong with the first of them, in the order of the source; it names the file.
    pub first: Option<String>,
}

/// An image as the source holds it.
pub(super) enum Item<'a> {
    /// A picture that is still to be preprocessed.
    Picture(DynamicImage),
    /// Values `[channels, height, width]` that are fed to the model as they are.
    Tensor(ArrayView3<'a, f32>),
}

impl ImageSource {
    /// Opens what is at `path`: a folder that is searched for pictures, recursively and in the order of the paths, a
    /// single picture, an IDX file (plain or gzipped), an `.npy` file, or an `.npz` archive with an array `x` or only
    /// one array. Files other than pictures are recognised by their content.
    ///
    /// # Errors
    ///
    /// `Images` if nothing is there, if there are no images in it, or if its kind is unknown; `Format` if an IDX or
    /// NumPy file is malformed or holds other values than float32 of four dimensions; `Io` if it cannot be read.
    /// Pictures are not decoded yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let content = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Content::Files(find_pictures(path)?),
            Ok(_) => open_file(path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::Images, "no such file or folder").at(path).hint(SOURCE_HINT));
            }
            Err(error) => return Err(Error::io(path, error)),
        };
        let source = ImageSource { path: path.to_path_buf(), content, skipped: Mutex::default() };
        if let Content::Mapped(_) | Content::Loaded(_) = source.content {
            source.tensors()?;
        }
        if source.is_empty() {
            return Err(Error::new(ErrorKind::Images, "there are no images in it").at(path));
        }
        Ok(source)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of images, readable or not.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Files(files) => files.len(),
            Content::Grey(images) => images.len_of(Axis(0)),
            _ => self.tensor_shape().map_or(0, |shape| shape[0]),
        }
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
        let tensors = self.tensors().ok().flatten()?;
        Some(tensors.dim().into())
    }

    /// What could not be read so far.
    pub fn skipped(&self) -> Skipped {
        let skipped = self.lock_skipped();
        Skipped { count: skipped.len(), first: skipped.values().next().cloned() }
    }

    /// A hash of what is at the path, for records of what a result was computed from.
    ///
    /// SHA-256, in hexadecimal: of the relative path and the length of every picture file, or of the bytes of an IDX or
    /// NumPy file.
    ///
    /// # Errors
    ///
    /// `Io` if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        if let Content::Files(files) = &self.content {
            for file in files {
                // A broken link is hashed as an empty file: it is skipped when images are read, so it is no error here.
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                for part in self.relative(file) {
                    hasher.update(part.as_encoded_bytes());
                    hasher.update(b"/");
                }
                hasher.update([0]);
                hasher.update(length.to_le_bytes());
            }
        } else {
            let failed = |error| Error::io(&self.path, error);
            let mut reader = BufReader::with_capacity(1 << 20, File::open(&self.path).map_err(failed)?);
            loop {
                let bytes = reader.fill_buf().map_err(failed)?;
                if bytes.is_empty() {
                    break;
                }
                hasher.update(bytes);
                let length = bytes.len();
                reader.consume(length);
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The parts of the path of `file` below the folder that was opened, or its name if it was opened itself.
    fn relative<'a>(&self, file: &'a Path) -> impl Iterator<Item = &'a std::ffi::OsStr> {
        let relative = file.strip_prefix(&self.path).unwrap_or(file);
        let name = relative.as_os_str().is_empty().then(|| file.file_name());
        relative.iter().chain(name.flatten())
    }

    /// Reads image `index`, which is below [`ImageSource::len`].
    ///
    /// # Errors
    ///
    /// `Images` if it cannot be decoded.
    pub(super) fn read(&self, index: usize) -> Result<Item<'_>> {
        match &self.content {
            Content::Files(files) => {
                let file = &files[index];
                decode(file).map(Item::Picture).map_err(|error| {
                    Error::new(ErrorKind::Images, format!("cannot be decoded: {error}")).at(file).caused_by(error)
                })
            }
            Content::Grey(images) => {
                let image = images.index_axis(Axis(0), index);
                let (rows, columns) = image.dim();
                GrayImage::from_raw(columns as u32, rows as u32, image.iter().copied().collect())
                    .map(|image| Item::Picture(DynamicImage::ImageLuma8(image)))
                    .ok_or_else(|| Error::new(ErrorKind::Internal, "an IDX image lost its pixels"))
            }
            Content::Mapped(_) | Content::Loaded(_) => self
                .tensors()?
                .map(|tensors| Item::Tensor(tensors.index_axis_move(Axis(0), index)))
                .ok_or_else(|| Error::new(ErrorKind::Internal, "the tensors are gone")),
        }
    }

    /// Names image `index` for messages: its file if it has one of its own, else the source.
    pub(super) fn file(&self, index: usize) -> &Path {
        match &self.content {
            Content::Files(files) => &files[index],
            _ => &self.path,
        }
    }

    /// Remembers that image `index` could not be used; however often it is tried, it counts once.
    pub(super) fn skip(&self, index: usize, error: &Error) {
        self.lock_skipped().insert(index, error.to_string());
    }

    fn lock_skipped(&self) -> MutexGuard<'_, BTreeMap<usize, String>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tensors(&self) -> Result<Option<ArrayView4<'_, f32>>> {
        match &self.content {
            Content::Mapped(bytes) => {
                ArrayView4::view_npy(bytes).map(Some).map_err(|error| not_tensors(&self.path, error))
            }
            Content::Loaded(array) => Ok(Some(array.view())),
            Content::Files(_) | Content::Grey(_) => Ok(None),
        }
    }
}

fn has_picture_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The picture files below `folder`, sorted by path. Hidden entries and links that lead back to a folder around them
/// are left out; broken links to pictures are kept, so that they are counted as unreadable.
fn find_pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let visible = |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if entry.file_type().is_file() && has_picture_extension(entry.path()) => {
                files.push(entry.into_path());
            }
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_path_buf();
                let missing = error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
                if !missing {
                    return Err(Error::io(path, error.into()));
                } else if has_picture_extension(&path) {
                    files.push(path);
                }
            }
        }
    }
    if files.is_empty() {
        return Err(Error::new(
            ErrorKind::Images,
            format!("there are no pictures in this folder; looked for files that end in .{}", EXTENSIONS.join(", .")),
        )
        .at(folder)
        .hint("name the folder that holds the pictures, or an IDX, .npy or .npz file"));
    }
    files.sort();
    Ok(files)
}

fn open_file(path: &Path) -> Result<Content> {
    let failed = |error| Error::io(path, error);
    let file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    (&file).take(16).read_to_end(&mut head).map_err(failed)?;
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => Content::Grey(idx::read(path, true)?),
        [0, 0, ..] => Content::Grey(idx::read(path, false)?),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => {
            // SAFETY: the map is only read, as bytes, each of which may have any value. As with every mapped file,
            // nobody must truncate it while it is in use.
            Content::Mapped(unsafe { Mmap::map(&file) }.map_err(failed)?)
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Content::Loaded(read_npz(path, file)?),
        head if has_picture_extension(path) || image::guess_format(head).is_ok() => {
            Content::Files(vec![path.to_path_buf()])
        }
        _ => {
            return Err(Error::new(ErrorKind::Images, "neither a picture nor an IDX, .npy or .npz file")
                .at(path)
                .hint(SOURCE_HINT));
        }
    })
}

fn read_npz(path: &Path, file: File) -> Result<Array4<f32>> {
    let broken = |error: zip::result::ZipError| {
        Error::new(ErrorKind::Format, format!("not a readable .npz (zip) archive: {error}")).at(path).hint(TENSOR_HINT)
    };
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let names: Vec<String> = archive.file_names().map(str::to_string).collect();
    let plain = |name: &String| name.strip_suffix(".npy").unwrap_or(name).to_string();
    let name = match names.iter().find(|name| plain(name) == "x") {
        Some(name) => name.clone(),
        None if names.len() == 1 => names[0].clone(),
        None => {
            let list: Vec<String> = names.iter().map(plain).collect();
            return Err(Error::new(
                ErrorKind::Format,
                format!("no array of this archive is named `x`; there are {} ({})", list.len(), list.join(", ")),
            )
            .at(path)
            .hint(TENSOR_HINT));
        }
    };
    let member = archive.by_name(&name).map_err(broken)?;
    // Deflate packs at most about a thousand to one, so a size beyond that is a lie; and no header is believed before the
    // bytes that it speaks of are there.
    let size = member.size();
    if size / 1100 > member.compressed_size() + 64 {
        return Err(Error::new(
            ErrorKind::Format,
            format!("its array `{name}` claims an impossible size of {size} bytes"),
        )
        .at(path));
    }
    let mut bytes = Vec::new();
    member.take(size).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    let array = ArrayView4::<f32>::view_npy(&bytes).map_err(|error| not_tensors(path, error))?;
    Ok(array.to_owned())
}

fn not_tensors(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Format, format!("not a float32 array of four dimensions: {error}"))
        .at(path)
        .hint(TENSOR_HINT)
        .caused_by(error)
}

/// Decodes a picture file upright, whichever way the camera was held.
fn decode(path: &Path) -> ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAXIMAL_SIDE);
    limits.max_image_height = Some(MAXIMAL_SIDE);
    limits.max_alloc = Some(MAXIMAL_BYTES);
    let mut reader = ImageReader::open(path)?.with_guessed_format()?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // Broken metadata does not make the pixels unusable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = match jpeg(path) {
        Some(image) => image,
        None => DynamicImage::from_decoder(decoder)?,
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// The pixels of a JPEG file of the usual kinds from a decoder that upsamples colour as libjpeg does, which is what models saw
/// when they were trained: three times nearer to Pillow's pixels on photographs than the general decoder.
fn jpeg(path: &Path) -> Option<DynamicImage> {
    let mut head = [0; 3];
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut head).ok()?;
    if head != [0xff, 0xd8, 0xff] {
        return None;
    }
    let mut decoder = jpeg_decoder::Decoder::new(BufReader::new(File::open(path).ok()?));
    decoder.set_max_decoding_buffer_size(MAXIMAL_BYTES as usize);
    let pixels = decoder.decode().ok()?;
    let info = decoder.info()?;
    let (width, height) = (info.width.into(), info.height.into());
    match info.pixel_format {
        jpeg_decoder::PixelFormat::L8 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        jpeg_decoder::PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use ndarray::Array;
    use ndarray_npy::{NpzWriter, write_npy};

    use super::*;

    /// Writes a plain picture of one colour.
    pub(crate) fn write_picture(path: &Path, width: u32, height: u32, colour: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, image::Rgb(colour)).save(path).unwrap();
    }

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
        let bytes = idx::tests::encode([0x0803, 1, 2, 3], &[1, 2, 3, 4, 5, 6]);
        fs::write(&path, bytes).unwrap();
        let source = ImageSource::open(&path).unwrap();
        let Item::Picture(image) = source.read(0).unwrap() else {
            panic!("a tensor");
        };
        assert_eq!((image.width(), image.height()), (3, 2));
        assert_eq!(image.as_bytes(), [1, 2, 3, 4, 5, 6]);
        fs::write(&path, idx::tests::encode([0x0803, 0, 2, 3], &[])).unwrap();
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
        std::io::Write::write_all(&mut archive, &npy).unwrap();
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
    fn exif_orientation_is_applied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turned.jpg");
        write_picture(&path, 16, 8, [200, 100, 50]);
        let mut bytes = fs::read(&path).unwrap();
        // An EXIF segment, right after the start of the image, whose only entry is orientation 6, a quarter turn.
        let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        bytes.splice(2..2, exif.iter().copied());
        fs::write(&path, bytes).unwrap();
        let image = decode(&path).unwrap();
        assert_eq!((image.width(), image.height()), (8, 16));
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
