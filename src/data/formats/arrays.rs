//! Files of named arrays: an `.npz` archive, a folder of `.npy` files, or a `.safetensors` file.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD, IxDyn};
use ndarray_npy::{ViewElement, ViewNpyError, ViewNpyExt};
use safetensors::tensor::{Dtype, SafeTensors};

use super::find::is_folder;
use super::numpy::read_member;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::DataType;

const HINT: &str = "give an .npz archive, a folder of .npy files, or a .safetensors file, with an array for each input";

/// Whole numbers up to this size are held exactly, by float32.
const EXACT: i128 = 1 << 24;

/// A file of arrays, whose elements are read when they are asked for.
#[derive(Debug)]
pub(crate) struct ArrayFile {
    path: PathBuf,
    /// By name, sorted.
    arrays: Vec<(String, Place)>,
    /// The bytes of a safetensors file.
    bytes: Vec<u8>,
}

/// Where an array is.
#[derive(Debug)]
enum Place {
    /// The member of an archive.
    Member(String),
    /// An `.npy` file.
    File(PathBuf),
    /// The tensor of that name.
    Tensor,
    /// No file: its values.
    Held(ArrayD<f32>),
}

impl ArrayFile {
    /// Finds the arrays at a path, by the content of a file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for what cannot be read, [`ErrorKind::Format`] for a file of another kind or a malformed one.
    pub fn open(path: &Path) -> Result<ArrayFile> {
        let mut found = ArrayFile { path: path.to_path_buf(), arrays: Vec::new(), bytes: Vec::new() };
        let failed = |e| Error::io(path, e).hint(HINT);
        let wrong = |what: String| Error::new(ErrorKind::Format, what).at(path).hint(HINT);
        let name = |p: &Path| p.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if is_folder(path).map_err(|e| e.rehint(HINT))? {
            let files =
                std::fs::read_dir(path).and_then(|dir| dir.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>());
            let is_npy = |p: &PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"));
            found.arrays =
                files.map_err(failed)?.into_iter().filter(is_npy).map(|p| (name(&p), Place::File(p))).collect();
        } else {
            let file = File::open(path).map_err(failed)?;
            let mut head = Vec::new();
            (&file).take(9).read_to_end(&mut head).map_err(failed)?;
            match head.as_slice() {
                [b'P', b'K', 3 | 5, 4 | 6, ..] => {
                    let archive = zip::ZipArchive::new(BufReader::new(file));
                    let archive = archive.map_err(|e| wrong(format!("not a readable .npz (zip) archive: {e}")))?;
                    let plain = |m: &str| m.strip_suffix(".npy").unwrap_or(m).to_owned();
                    found.arrays = archive.file_names().map(|m| (plain(m), Place::Member(m.to_owned()))).collect();
                }
                [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => {
                    return Err(wrong("an .npy file does not name the input that its array is for".into())
                        .rehint(format!("put it into a folder, as {}.npy for an input of that name", name(path))));
                }
                [_, _, _, _, _, _, _, _, b'{'] => {
                    found.bytes = std::fs::read(path).map_err(failed)?;
                    let tensors = SafeTensors::deserialize(&found.bytes);
                    let tensors = tensors.map_err(|e| wrong(format!("not a readable safetensors file: {e}")))?;
                    let names: Vec<String> = tensors.names().into_iter().map(|n| n.to_string()).collect();
                    found.arrays = names.into_iter().map(|n| (n, Place::Tensor)).collect();
                }
                _ => return Err(wrong("neither an .npz archive nor a safetensors file".into())),
            }
        }
        found.arrays.sort_by(|a, b| a.0.cmp(&b.0));
        match found.arrays.is_empty() {
            true => Err(wrong("there are no arrays in it".into())),
            false => Ok(found),
        }
    }

    /// Arrays that were made of what lies at a path.
    pub fn held(path: &Path, arrays: Vec<(String, ArrayD<f32>)>) -> ArrayFile {
        let arrays = arrays.into_iter().map(|(name, values)| (name, Place::Held(values))).collect();
        ArrayFile { path: path.to_path_buf(), arrays, bytes: Vec::new() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the arrays.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.iter().map(|(name, _)| name.as_str())
    }

    /// The array of a name, whose elements have to be of type `kind`; of float32 for half precision. They become
    /// float32: whole numbers exactly, and those of float64 rounded.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for elements of another type and for whole numbers beyond 2^24; [`ErrorKind::Unsupported`]
    /// for a type that no array has; [`ErrorKind::Io`] and [`ErrorKind::Format`] for what cannot be read.
    pub fn read(&self, name: &str, kind: DataType) -> Result<ArrayD<f32>> {
        match kind {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 => self.elements::<f32>(name),
            DataType::Double => self.elements::<f64>(name),
            DataType::Bool => self.elements::<bool>(name),
            DataType::Int8 => self.elements::<i8>(name),
            DataType::Uint8 => self.elements::<u8>(name),
            DataType::Int16 => self.elements::<i16>(name),
            DataType::Uint16 => self.elements::<u16>(name),
            DataType::Int32 => self.elements::<i32>(name),
            DataType::Uint32 => self.elements::<u32>(name),
            DataType::Int64 => self.elements::<i64>(name),
            DataType::Uint64 => self.elements::<u64>(name),
            _ => bail!(
                Unsupported,
                "the input `{name}` is of {}, and takes no arrays",
                kind.as_str_name().to_lowercase()
            ),
        }
    }

    fn elements<T: Element>(&self, name: &str) -> Result<ArrayD<f32>> {
        let usage = |what: String| Error::new(ErrorKind::Usage, what).at(&self.path);
        let other = |found: String| {
            usage(format!("its array `{name}` is of {found}, and the input takes {}", T::NAME))
                .hint(format!("save it as `array.astype(\"{}\")`", T::NAME))
        };
        let broken = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Format, format!("its array `{name}` cannot be read: {e}")).at(&self.path)
        };
        let Some((_, place)) = self.arrays.iter().find(|(own, _)| own == name) else {
            bail!(Internal, "there is no array `{name}`")
        };
        let shape_and_values = match place {
            Place::Held(values) => return Ok(values.clone()),
            Place::Tensor => {
                let tensors = SafeTensors::deserialize(&self.bytes).map_err(|e| broken(&e))?;
                let tensor = tensors.tensor(name).map_err(|e| broken(&e))?;
                if tensor.dtype() != T::DTYPE {
                    return Err(other(format!("type {:?}", tensor.dtype())));
                }
                let values = T::read(tensor.data()).iter().map(|v| v.value()).collect();
                (tensor.shape().to_vec(), values)
            }
            Place::Member(_) | Place::File(_) => {
                let bytes = match place {
                    Place::File(file) => std::fs::read(file).map_err(|e| Error::io(file, e))?,
                    Place::Member(member) => {
                        let file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
                        let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| broken(&e))?;
                        read_member(&self.path, &mut archive, member).map_err(|e| e.rehint(HINT))?
                    }
                    Place::Tensor | Place::Held(_) => Vec::new(),
                };
                let view = ArrayViewD::<T>::view_npy(&bytes).map_err(|e| match e {
                    ViewNpyError::WrongDescriptor(found) => other(format!("type {found}")),
                    e => broken(&e),
                })?;
                (view.shape().to_vec(), view.iter().map(|v| v.value()).collect::<Option<Vec<f32>>>())
            }
        };
        let (shape, values) = shape_and_values;
        let Some(values) = values else {
            return Err(usage(format!(
                "its array `{name}` holds a whole number beyond {EXACT}, which is not held exactly"
            )));
        };
        ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|e| broken(&e))
    }
}

/// An element of an array.
trait Element: ViewElement + Copy {
    const NAME: &'static str;
    const DTYPE: Dtype;

    /// Elements in little-endian order.
    fn read(bytes: &[u8]) -> Vec<Self>;

    /// What float32 has for it; `None` for whole numbers that it does not hold.
    fn value(self) -> Option<f32>;
}

macro_rules! element {
    ($($type:ident $dtype:ident $name:literal $value:expr;)*) => {$(
        impl Element for $type {
            const NAME: &'static str = $name;
            const DTYPE: Dtype = Dtype::$dtype;

            fn read(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks().0.iter().map(|c| $type::from_le_bytes(*c)).collect()
            }

            fn value(self) -> Option<f32> {
                $value(self)
            }
        }
    )*};
}

fn whole(number: impl Into<i128>) -> Option<f32> {
    let number: i128 = number.into();
    (number.abs() <= EXACT).then_some(number as f32)
}

element! {
    f32 F32 "float32" Some;
    f64 F64 "float64" |v| Some(v as f32);
    i8 I8 "int8" whole;
    u8 U8 "uint8" whole;
    i16 I16 "int16" whole;
    u16 U16 "uint16" whole;
    i32 I32 "int32" whole;
    u32 U32 "uint32" whole;
    i64 I64 "int64" whole;
    u64 U64 "uint64" whole;
}

impl Element for bool {
    const NAME: &'static str = "bool";
    const DTYPE: Dtype = Dtype::BOOL;

    fn read(bytes: &[u8]) -> Vec<bool> {
        bytes.iter().map(|b| *b != 0).collect()
    }

    fn value(self) -> Option<f32> {
        Some(f32::from(u8::from(self)))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};
    use ndarray_npy::{NpzWriter, write_npy};
    use safetensors::tensor::TensorView;

    use super::*;

    /// The same two arrays in every kind of file.
    fn files(folder: &Path) -> [PathBuf; 3] {
        let ids = Array2::from_shape_fn((2, 3), |(i, j)| (10 * i + j) as i64);
        let mask = Array2::from_shape_fn((2, 3), |(i, j)| i + j < 3);
        let npz = folder.join("both.npz");
        let mut writer = NpzWriter::new_compressed(File::create(&npz).unwrap());
        writer.add_array("ids", &ids).unwrap();
        writer.add_array("mask", &mask).unwrap();
        writer.finish().unwrap();
        let many = folder.join("folder");
        std::fs::create_dir(&many).unwrap();
        write_npy(many.join("ids.npy"), &ids).unwrap();
        write_npy(many.join("mask.npy"), &mask).unwrap();
        std::fs::write(many.join("README.txt"), "not an array").unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bools: Vec<u8> = mask.iter().map(|&v| u8::from(v)).collect();
        let views = [
            ("ids", TensorView::new(Dtype::I64, vec![2, 3], &bytes).unwrap()),
            ("mask", TensorView::new(Dtype::BOOL, vec![2, 3], &bools).unwrap()),
        ];
        let safe = folder.join("both.safetensors");
        std::fs::write(&safe, safetensors::serialize(views, None).unwrap()).unwrap();
        [npz, many, safe]
    }

    #[test]
    fn every_kind_of_file_holds_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for path in files(folder.path()) {
            let file = ArrayFile::open(&path).unwrap();
            assert_eq!(file.names().collect::<Vec<_>>(), ["ids", "mask"], "{}", path.display());
            let ids = file.read("ids", DataType::Int64).unwrap();
            assert_eq!((ids.shape(), ids[[1, 2]]), (&[2, 3][..], 12.0));
            let mask = file.read("mask", DataType::Bool).unwrap();
            assert_eq!(mask.iter().sum::<f32>(), 5.0);
            for kind in [DataType::Int32, DataType::Float, DataType::Double, DataType::Bool, DataType::Uint64] {
                let error = file.read("ids", kind).unwrap_err();
                assert!(
                    error.kind() == ErrorKind::Usage && error.to_string().contains("and the input takes"),
                    "{error}"
                );
                assert!(error.hint_text().unwrap().contains("astype"), "{error}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_never_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let read = |numbers: Vec<i64>| {
            write_npy(folder.path().join("ids.npy"), &Array1::from(numbers)).unwrap();
            ArrayFile::open(folder.path()).unwrap().read("ids", DataType::Int64)
        };
        assert_eq!(read(vec![1 << 24, -(1 << 24)]).unwrap().iter().sum::<f32>(), 0.0);
        for number in [(1 << 24) + 1, i64::MIN, i64::MAX] {
            let error = read(vec![0, number]).unwrap_err();
            assert!(error.to_string().contains("`ids` holds a whole number beyond 16777216"), "{error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, content: &[u8], says: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let error = ArrayFile::open(&path).err().unwrap();
            assert!(error.to_string().contains(says), "{error}");
        };
        refused("text.npz", b"hello", "neither an .npz archive nor a safetensors file");
        refused("cut.npz", b"PK\x03\x04 and no more", "not a readable .npz");
        refused("cut.safetensors", b"\xff\0\0\0\0\0\0\0{\"ids", "not a readable safetensors file");
        refused("one.npy", b"\x93NUMPY\x01\0", "does not name the input");
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(ArrayFile::open(&empty).err().unwrap().to_string().contains("no arrays"));
        assert!(ArrayFile::open(&folder.path().join("missing")).is_err());
        // As large as a header likes, of no bytes.
        let mut header =
            b"\x93NUMPY\x01\0\x76\0{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999, 8), }".to_vec();
        header.resize(127, b' ');
        header.push(b'\n');
        std::fs::write(empty.join("ids.npy"), header).unwrap();
        let error = ArrayFile::open(&empty).unwrap().read("ids", DataType::Int64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    }
}
