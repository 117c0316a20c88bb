//! Values that are given for inputs other than the image: `--feed NAME=VALUE|FILE`.
//!
//! A value has the element type that the model declares, and its shape. What the batch is long is not said: a value
//! is that of one sample, and repeated for each. Nothing is rounded, cut or broadcast to make it fit.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ndarray::ArrayD;
use ndarray_npy::{ReadNpyError, ReadNpyExt, ReadableElement};
use serde::Serialize;

use super::formats::Float16;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    self, ImageInput, Length, Links, data_inputs, decides, declared_axes, declared_dims, declared_type,
};
use crate::onnx::proto::tensor_shape_proto::Dimension;
use crate::onnx::proto::tensor_shape_proto::dimension::Value as Size;
use crate::onnx::proto::{TensorProto, ValueInfoProto};
use crate::onnx::{DataType, FedValue, Model, tensor_from_f32, tensor_from_raw};

/// A value for an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// The input.
    pub input: String,
    value: Value,
}

/// What is given.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// A number for every element, and what it is called.
    Every(f64, String),
    /// A list of numbers.
    List(Vec<f64>),
    /// An `.npy` file.
    File(PathBuf),
}

impl FromStr for Feed {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Feed, String> {
        let form = "`NAME=VALUE` gives an input a number, ones, zeros, a list such as 1,16,16, or an .npy file";
        let Some((input, value)) = text.split_once('=').filter(|(input, _)| !input.is_empty()) else {
            return Err(form.into());
        };
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| !n.is_nan());
        let bare = value.trim().strip_prefix('[').and_then(|v| v.strip_suffix(']'));
        let value = match (value.trim(), bare) {
            ("ones", _) => Value::Every(1.0, "ones".into()),
            ("zeros", _) => Value::Every(0.0, "zeros".into()),
            (word, None) if number(word).is_some() => Value::Every(number(word).unwrap_or_default(), word.into()),
            (word, None) if Path::new(word).extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) => {
                Value::File(word.into())
            }
            (list, bare) => match bare.unwrap_or(list).split(',').map(number).collect() {
                Some(numbers) => Value::List(numbers),
                None => return Err(format!("`{list}` is no value: {form}")),
            },
        };
        Ok(Feed { input: input.into(), value })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Every(_, said) => f.write_str(said),
            Value::List(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(f64::to_string).collect();
                write!(f, "[{}]", numbers.join(", "))
            }
            Value::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// An input that was fed, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct FedReport {
    /// Its name.
    pub input: String,
    /// The shape that the model declares; none for an open axis.
    pub shape: Option<Vec<Option<usize>>>,
    /// The value of one sample, in words.
    pub value: String,
    /// True where shapes, or what the graph does, are computed from the value.
    pub decides: bool,
}

impl FedReport {
    /// Those of a model.
    pub fn of(model: &Model) -> Vec<FedReport> {
        if model.fed.is_empty() {
            return Vec::new();
        }
        let links = Links::new(model.graph());
        let report = |fed: &FedValue| FedReport {
            input: fed.info.name().to_string(),
            shape: declared_dims(&fed.info),
            value: fed.value.clone(),
            decides: decides(&links, fed.info.name()),
        };
        model.fed.iter().map(report).collect()
    }

    /// What is assumed, in one line.
    pub fn line(&self) -> String {
        let FedReport { input, value, .. } = self;
        match self.decides {
            true => format!(
                "`{input}` is {value} for every sample: shapes are computed from it, and what is said here holds for \
                 this value"
            ),
            false => format!("`{input}` is {value} for every sample"),
        }
    }
}

impl Feed {
    /// Puts the value in the place of its input.
    ///
    /// A number fills the shape that the input declares. A list or a file has that shape, or that of one sample: with
    /// one row, or for a file no axis, where the batch is.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the model has no such input, or feeds it otherwise, and where the value is of another
    /// rank, length or element type; the hint lists the inputs. [`ErrorKind::Io`] and [`ErrorKind::Format`] for a file
    /// that cannot be read.
    pub fn give(&self, model: &mut Model) -> Result<()> {
        let (tensor, lengths) = FedInput::new(model, self)?.value(&self.value)?;
        graph::feed(model, &self.input, tensor, &lengths, self.value.to_string())
    }
}

/// What an axis is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Axis {
    /// As long as the file says.
    Fixed(usize),
    /// That of samples, as long as that of another input; with the length that the file says.
    Batch(String, Option<usize>),
    /// As long as an axis of another input, whose name it bears.
    Like(String, usize),
    /// As long as the value.
    Open,
}

/// An input that is given a value.
struct FedInput<'m> {
    info: &'m ValueInfoProto,
    kind: DataType,
    axes: Vec<Axis>,
    /// All inputs, in words.
    inputs: String,
}

impl<'m> FedInput<'m> {
    fn new(model: &'m Model, feed: &Feed) -> Result<FedInput<'m>> {
        let name = feed.input.as_str();
        let (inputs, all) = (data_inputs(model.graph()), graph::declared_inputs(model));
        let list = format!("its inputs are {}", all.iter().map(in_words).collect::<Vec<_>>().join(", "));
        let wrong = |what: String| Error::new(ErrorKind::Usage, what).hint(list.clone());
        if model.fed.iter().any(|f| f.info.name() == name) {
            return Err(wrong(format!("the input `{name}` is fed twice")));
        }
        let Some(info) = inputs.iter().find(|v| v.name() == name) else {
            return Err(wrong(format!("the model has no input `{name}` to feed")));
        };
        let image = ImageInput::of(model.graph()).map(|input| input.name);
        if image.as_deref() == Some(name) {
            return Err(wrong(format!("`{name}` is the image, which takes no fixed value")));
        }
        let Some(other) = inputs
            .iter()
            .find(|v| image.as_ref().is_some_and(|image| v.name() == image))
            .or_else(|| inputs.iter().find(|v| v.name() != name))
        else {
            return Err(wrong(format!("`{name}` is the only input, and nothing would be left to feed")));
        };
        let kind = declared_type(info).and_then(|t| DataType::try_from(t).ok());
        let (Some(kind), Some(_)) = (kind, declared_axes(info)) else {
            return Err(wrong(format!("the input `{name}` declares no type or no shape")));
        };
        Ok(FedInput { info, kind, axes: axes(info, other), inputs: list })
    }

    fn wrong(&self, what: String) -> Error {
        Error::new(ErrorKind::Usage, what).hint(self.inputs.clone())
    }

    /// The tensor of a value, and how long its axes become.
    fn value(&self, value: &Value) -> Result<(TensorProto, Vec<Length>)> {
        let name = self.info.name();
        match value {
            Value::Every(number, _) => {
                if let Some(axis) = self.axes.iter().skip(1).position(|a| *a == Axis::Open) {
                    let words = in_words(self.info);
                    return Err(self.wrong(format!(
                        "one number does not say how long axis {} of {words} is: give a list or an .npy file",
                        axis + 1
                    )));
                }
                let lengths = self.axes.iter().map(|axis| axis.length(1)).collect();
                Ok((self.tensor(&vec![1; self.axes.len()], &[*number])?, lengths))
            }
            Value::List(numbers) => {
                let shape = self.shape_of(numbers.len()).ok_or_else(|| {
                    let words = in_words(self.info);
                    self.wrong(format!("a list of {} numbers does not fill a sample of {words}", numbers.len()))
                })?;
                let lengths = self.lengths(&shape)?;
                Ok((self.tensor(&shape, numbers)?, lengths))
            }
            Value::File(path) => {
                let (mut shape, bytes) = read(path, self.kind).map_err(|e| e.hint(self.inputs.clone()))?;
                let batch = matches!(self.axes.first(), Some(Axis::Batch(..)));
                if batch && shape.len() + 1 == self.axes.len() {
                    shape.insert(0, 1);
                }
                if shape.len() != self.axes.len() {
                    let ranks = format!("has {} dimensions, and {} is to be fed", shape.len(), in_words(self.info));
                    return Err(self.wrong(format!("its array {ranks}")).at(path));
                }
                let lengths = self.lengths(&shape).map_err(|e| e.at(path))?;
                Ok((tensor_from_raw(name, self.kind, &shape, bytes.into()), lengths))
            }
        }
    }

    /// The shape of so many numbers, where that is decided.
    fn shape_of(&self, count: usize) -> Option<Vec<usize>> {
        let fixed = |axis: &Axis| match axis {
            Axis::Fixed(n) => Some(*n),
            Axis::Batch(..) => Some(1),
            Axis::Like(..) | Axis::Open => None,
        };
        let known: usize = self.axes.iter().filter_map(fixed).product();
        let open = self.axes.iter().filter(|a| fixed(a).is_none()).count();
        // A batch that the file fixes may be given whole.
        let whole = self.axes.first().and_then(|a| if let Axis::Batch(_, n) = a { *n } else { None });
        let (rest, batch) = match whole {
            Some(n) if open == 0 && count == known.checked_mul(n)? => (1, n),
            _ if open == 0 && count == known => (1, 1),
            _ if open == 1 && known > 0 && count > 0 && count.is_multiple_of(known) => (count / known, 1),
            _ => return None,
        };
        let length = |axis: &Axis| if let Axis::Batch(..) = axis { batch } else { fixed(axis).unwrap_or(rest) };
        Some(self.axes.iter().map(length).collect())
    }

    /// How long the axes of a value of this shape become.
    fn lengths(&self, shape: &[usize]) -> Result<Vec<Length>> {
        let fits = |(axis, &n): (&Axis, &usize)| match axis {
            Axis::Fixed(own) => n == *own,
            Axis::Batch(_, own) => n == 1 || Some(n) == *own,
            Axis::Like(..) | Axis::Open => n > 0,
        };
        if !self.axes.iter().zip(shape).all(fits) {
            let words = in_words(self.info);
            let row = match self.axes.first() {
                Some(Axis::Batch(_, None)) => ", with one row that is repeated for each sample",
                _ => "",
            };
            return Err(self.wrong(format!("an array {shape:?} does not fit {words}{row}")));
        }
        let length = |(axis, &n): (&Axis, &usize)| match axis {
            Axis::Batch(_, Some(own)) if n == *own && n > 1 => Length::Of(n),
            Axis::Batch(..) => axis.length(n),
            _ => Length::Of(n),
        };
        Ok(self.axes.iter().zip(shape).map(length).collect())
    }

    /// Numbers in the type of the input.
    fn tensor(&self, shape: &[usize], numbers: &[f64]) -> Result<TensorProto> {
        let name = self.info.name();
        if self.kind == DataType::Double {
            let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
            return Ok(tensor_from_raw(name, self.kind, shape, bytes.into()));
        }
        if matches!(self.kind, DataType::Float | DataType::Float16 | DataType::Bfloat16) {
            let numbers: Vec<f32> = numbers.iter().map(|&v| v as f32).collect();
            return Ok(tensor_from_f32(name, self.kind, shape, &numbers));
        }
        let mut bytes = Vec::new();
        for &number in numbers {
            let whole = integer(self.kind, number)
                .ok_or_else(|| self.wrong(format!("{number} is no {} of the input `{name}`", kind_name(self.kind))))?;
            bytes.extend(whole);
        }
        Ok(tensor_from_raw(name, self.kind, shape, bytes.into()))
    }
}

impl Axis {
    /// How long the axis becomes, where a value has so many elements there.
    fn length(&self, count: usize) -> Length {
        match self {
            Axis::Fixed(n) => Length::Of(*n),
            Axis::Batch(input, _) => Length::Like(input.clone(), 0),
            Axis::Like(input, axis) => Length::Like(input.clone(), *axis),
            Axis::Open => Length::Of(count),
        }
    }
}

/// The axes of an input beside another, which samples come in by.
fn axes(info: &ValueInfoProto, other: &ValueInfoProto) -> Vec<Axis> {
    let (own, of_other) = (declared_axes(info).unwrap_or_default(), declared_axes(other).unwrap_or_default());
    let fixed = |d: &Dimension| match d.value {
        Some(Size::DimValue(n)) => usize::try_from(n).ok().filter(|&n| n > 0),
        _ => None,
    };
    let named = |d: &Dimension| match &d.value {
        Some(Size::DimParam(name)) if !name.is_empty() => Some(name.clone()),
        _ => None,
    };
    // A float input of two axes holds the patches of one image.
    let patches = of_other.len() == 2 && declared_type(other) == Some(DataType::Float as i32);
    let batched = !patches && !of_other.is_empty();
    let batch = of_other.first().and_then(fixed);
    let axis = |(i, d): (usize, &Dimension)| match (fixed(d), named(d)) {
        (Some(n), _) if i == 0 && batched && own.len() > 1 && batch == Some(n) => {
            Axis::Batch(other.name().into(), Some(n))
        }
        (Some(n), _) => Axis::Fixed(n),
        (None, _) if i == 0 && batched => Axis::Batch(other.name().into(), None),
        (None, name) => match name.and_then(|name| of_other.iter().position(|o| named(o).as_ref() == Some(&name))) {
            Some(at) => Axis::Like(other.name().into(), at),
            None => Axis::Open,
        },
    };
    own.iter().enumerate().map(axis).collect()
}

/// The inputs of a model for messages.
pub(crate) fn inputs_in_words(model: &Model) -> String {
    let words: Vec<String> = data_inputs(model.graph()).into_iter().map(in_words).collect();
    words.join(", ")
}

/// An input for messages: its name, type and axes.
pub(super) fn in_words(info: &ValueInfoProto) -> String {
    let size = |d: &Dimension| match &d.value {
        Some(Size::DimValue(n)) => n.to_string(),
        Some(Size::DimParam(name)) if !name.is_empty() => name.clone(),
        _ => "?".into(),
    };
    let kind = declared_type(info).and_then(|t| DataType::try_from(t).ok()).map_or("?".into(), kind_name);
    let axes: Vec<String> = declared_axes(info).unwrap_or_default().iter().map(size).collect();
    format!("`{}` {kind} [{}]", info.name(), axes.join(", "))
}

/// An element type for messages.
pub(super) fn kind_name(kind: DataType) -> String {
    kind.as_str_name().to_lowercase()
}

/// The bytes of a whole number in an element type; `None` where it is none of that type.
fn integer(kind: DataType, number: f64) -> Option<Vec<u8>> {
    // Beyond this a double does not hold every whole number.
    const EXACT: f64 = (1u64 << 53) as f64;
    if number.fract() != 0.0 || number.abs() > EXACT {
        return None;
    }
    let n = number as i64;
    Some(match kind {
        DataType::Bool => vec![u8::try_from(n).ok().filter(|&n| n <= 1)?],
        DataType::Int8 => i8::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Uint8 => u8::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Int16 => i16::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Uint16 => u16::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Int32 => i32::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Uint32 => u32::try_from(n).ok()?.to_le_bytes().to_vec(),
        DataType::Int64 => n.to_le_bytes().to_vec(),
        DataType::Uint64 => u64::try_from(n).ok()?.to_le_bytes().to_vec(),
        _ => return None,
    })
}

/// The error of a file that cannot be read.
fn missing(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(path, error).hint("give the path of an .npy file, or a number, ones, zeros or a list")
}

/// The shape and the bytes of an `.npy` file of an element type. Half precision may be written as float32, which is the
/// only way for bfloat16.
fn read(path: &Path, kind: DataType) -> Result<(Vec<usize>, Vec<u8>)> {
    fn of<T>(path: &Path, kind: DataType, bytes: impl Fn(T) -> Vec<u8>) -> Result<(Vec<usize>, Vec<u8>)>
    where
        T: ReadableElement + Copy,
    {
        let file = File::open(path).map_err(missing(path))?;
        let array = ArrayD::<T>::read_npy(BufReader::new(file)).map_err(|error| match error {
            ReadNpyError::Io(error) => missing(path)(error),
            ReadNpyError::WrongDescriptor(found) => {
                let what = format!("its array is of type {found}, and the input takes {}", kind_name(kind));
                Error::new(ErrorKind::Usage, what).at(path)
            }
            error => Error::new(ErrorKind::Format, format!("not a readable .npy array: {error}"))
                .at(path)
                .hint("save it with `numpy.save`"),
        })?;
        Ok((array.shape().to_vec(), array.iter().flat_map(|&v| bytes(v)).collect()))
    }
    match kind {
        DataType::Float => of::<f32>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Double => of::<f64>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Float16 => of::<f32>(path, kind, |v| half::f16::from_f32(v).to_le_bytes().to_vec())
            .or_else(|_| of::<Float16>(path, kind, |v| v.0.to_le_bytes().to_vec())),
        DataType::Bfloat16 => of::<f32>(path, kind, |v| half::bf16::from_f32(v).to_le_bytes().to_vec()),
        DataType::Bool => of::<bool>(path, kind, |v| vec![u8::from(v)]),
        DataType::Int8 => of::<i8>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Uint8 => of::<u8>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Int16 => of::<i16>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Uint16 => of::<u16>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Int32 => of::<i32>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Uint32 => of::<u32>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Int64 => of::<i64>(path, kind, |v| v.to_le_bytes().to_vec()),
        DataType::Uint64 => of::<u64>(path, kind, |v| v.to_le_bytes().to_vec()),
        _ => bail!(Unsupported, "an input of {} takes no .npy file", kind_name(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto};
    use crate::onnx::tensor_info;

    #[test]
    fn values_are_read_from_text() {
        let value = |text: &str| format!("x={text}").parse::<Feed>().map(|feed| feed.value);
        assert_eq!(value("ones"), Ok(Value::Every(1.0, "ones".into())));
        assert_eq!(value("-0.5"), Ok(Value::Every(-0.5, "-0.5".into())));
        for list in ["1,16,16", "[1,16,16]", " [1, 16, 16] "] {
            assert_eq!(value(list), Ok(Value::List(vec![1.0, 16.0, 16.0])), "{list}");
        }
        assert_eq!(value("[3]"), Ok(Value::List(vec![3.0])));
        assert_eq!(value("a/b.npy"), Ok(Value::File("a/b.npy".into())));
        for text in ["", "[]", "1,", "many", "1,two", "a.npz", "nan"] {
            assert!(value(text).is_err(), "{text}");
        }
        for text in ["x", "=1", ""] {
            assert!(text.parse::<Feed>().is_err(), "{text}");
        }
    }

    fn model(kind: DataType, dims: &[Option<usize>]) -> Model {
        let input =
            vec![tensor_info("image", DataType::Float, &[None, Some(3), None, None]), tensor_info("m", kind, dims)];
        Model::from_proto(ModelProto { graph: Some(GraphProto { input, ..Default::default() }), ..Default::default() })
    }

    /// Dimensions of the tensor that stands in the place of the input.
    fn dims(kind: DataType, dims: &[Option<usize>], text: &str) -> Option<Vec<i64>> {
        let mut model = model(kind, dims);
        format!("m={text}").parse::<Feed>().unwrap().give(&mut model).ok()?;
        assert!(model.graph().input.iter().all(|v| v.name() == "image"));
        model.graph().initializer.iter().find(|t| t.name().ends_with("value")).map(|t| t.dims.clone())
    }

    #[test]
    fn half_precision_is_read_in_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let (half, single) = (folder.path().join("half.npy"), folder.path().join("single.npy"));
        // As NumPy 2.5 writes `np.array([1, -2], "float16")`.
        let header = format!("{:<117}\n", "{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }");
        let bytes = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), &[0x00, 0x3c, 0x00, 0xc0]].concat();
        std::fs::write(&half, bytes).unwrap();
        ndarray_npy::write_npy(&single, &ndarray::arr1(&[1.0f32, -2.0])).unwrap();
        let expected = (vec![2], vec![0x00, 0x3c, 0x00, 0xc0]);
        assert_eq!(read(&half, DataType::Float16).unwrap(), expected);
        assert_eq!(read(&single, DataType::Float16).unwrap(), expected);
        assert_eq!(read(&half, DataType::Float).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn values_fill_one_sample() {
        use DataType::{Bool, Float, Int64, Uint8};
        assert_eq!(dims(Int64, &[None, Some(2)], "4,6"), Some(vec![1, 2]));
        assert_eq!(dims(Int64, &[None, Some(2)], "4,6,4,6"), None);
        assert_eq!(dims(Int64, &[Some(2)], "4,6"), Some(vec![2]));
        assert_eq!(dims(Float, &[None, Some(2), Some(2)], "0.5"), Some(vec![1, 1, 1]));
        // An axis that bears the name of one of the image's is as long as that.
        assert_eq!(dims(Float, &[None, Some(2), None], "ones"), Some(vec![1, 1, 1]));
        assert_eq!(dims(Float, &[None, Some(2), None, None, None], "ones"), None);
        assert_eq!(dims(Float, &[None, Some(2), None], "1,2,3,4"), Some(vec![1, 2, 2]));
        assert_eq!(dims(Int64, &[None, Some(2)], "0.5"), None);
        assert_eq!((dims(Bool, &[None], "1"), dims(Bool, &[None], "2")), (Some(vec![1]), None));
        assert_eq!((dims(Uint8, &[None], "255"), dims(Uint8, &[None], "256")), (Some(vec![1]), None));
    }
}
