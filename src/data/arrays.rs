//! Arrays as samples: one for each input of a model, by name.
//!
//! An array has the element type and the rank that its input declares, and its first axis is the sample. Values are
//! held as float32 on the way to the model, which takes whole numbers exactly; the runtime casts them to the model's
//! type. Where an input is called `attention_mask`, tokens at its zeros are padding, and count nowhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, Axis, Ix2, Slice};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::feeds::{FedReport, in_words, inputs_in_words, kind_name};
use super::formats::ArrayFile;
use super::samples::{Inputs, Samples};
use super::source::hexadecimal;
use super::tables::no_row;
use super::texts::{LabelsReport, Side, Takes, TextsReport, Tokenised, on_the_left};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, data_inputs, declared_axes, declared_dims, declared_type, is_integer};
use crate::onnx::proto::tensor_shape_proto::dimension::Value as Size;
use crate::onnx::{DataType, Model};
use crate::parallel;

/// The input whose zeros are padding.
const MASK: &str = "attention_mask";
/// An array beside those of the inputs: ones for tokens such as the first and the last, which stand for no content.
pub(super) const SPECIAL: &str = "special_tokens_mask";
/// An array beside those of the inputs: the class of each sample.
pub(super) const LABELS: &str = "y";

/// Samples that are arrays by the names of a model's inputs. Clones share them.
#[derive(Clone, Debug)]
pub struct Arrays {
    held: Arc<HeldArrays>,
    count: usize,
    /// What is known of the texts that became them, where some did.
    texts: Option<Box<Tokenised>>,
}

#[derive(Debug)]
struct HeldArrays {
    path: std::path::PathBuf,
    inputs: Vec<Input>,
    /// The place of the mask among the inputs.
    mask: Option<usize>,
    /// The input that tokens lie along, and where they are special.
    special: Option<(usize, ArrayD<f32>)>,
    /// The class of each sample.
    labels: Option<Vec<i64>>,
}

/// The array of an input.
#[derive(Debug)]
struct Input {
    name: String,
    kind: DataType,
    values: ArrayD<f32>,
}

/// What a model is fed with, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ArraysReport {
    /// Samples that are used.
    pub samples: usize,
    /// The arrays, in the order of the model's inputs.
    pub arrays: Vec<ArrayReport>,
    /// Which tokens count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensReport>,
    /// How they came from texts, where they did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextsReport>,
    /// Inputs that were given a value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fed: Vec<FedReport>,
    /// The outputs that count.
    pub outputs: Vec<String>,
}

/// An array, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ArrayReport {
    /// The input that takes it.
    pub input: String,
    /// The type of its elements.
    pub r#type: String,
    /// The shape of one sample.
    pub shape: Vec<usize>,
}

/// Which tokens count, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct TokensReport {
    /// The input whose zeros are padding; none where padding counts like any token.
    pub mask: Option<String>,
    /// True where the file says which tokens are special.
    pub special_tokens: bool,
    /// Tokens that are not padding.
    pub real: usize,
    /// All tokens.
    pub of: usize,
}

impl HeldArrays {
    /// The same with what each array, by its name, becomes.
    fn each(&self, change: impl Fn(&str, &ArrayD<f32>) -> ArrayD<f32>) -> HeldArrays {
        let input = |i: &Input| Input { name: i.name.clone(), kind: i.kind, values: change(&i.name, &i.values) };
        HeldArrays {
            path: self.path.clone(),
            inputs: self.inputs.iter().map(input).collect(),
            mask: self.mask,
            special: self.special.as_ref().map(|(place, values)| (*place, change(SPECIAL, values))),
            labels: self.labels.clone(),
        }
    }
}

impl Input {
    /// True for token numbers, which are whole numbers; features and pictures have no padding to speak of.
    fn is_tokens(&self) -> bool {
        self.values.ndim() == 2 && is_integer(self.kind)
    }
}

impl Arrays {
    /// Reads the arrays that a model's data inputs take.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an array that is missing, or of another type, rank or length, where the hint lists the
    /// inputs; for numbers that are no rows of the tables that they are looked up in, and for texts that are longer
    /// than the table of places.
    /// [`ErrorKind::Unsupported`] for an input that no array can be for. Those of reading.
    pub(crate) fn read(file: &ArrayFile, model: &Model) -> Result<Arrays> {
        let inputs = data_inputs(model.graph());
        let wrong = |what: String| Error::new(ErrorKind::Usage, what).at(file.path()).hint(listed(model));
        let mut found: Vec<Input> = Vec::new();
        let mut named: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for info in inputs {
            let name = info.name().to_string();
            if !file.names().any(|own| own == name) {
                return Err(wrong(format!("it has no array for the input `{name}`")));
            }
            let kind = declared_type(info).and_then(|t| DataType::try_from(t).ok());
            let (Some(kind), Some(dims)) = (kind, declared_dims(info).filter(|d| !d.is_empty())) else {
                bail!(Unsupported, "the input `{name}` declares no type or no axis of samples, and takes no arrays");
            };
            let values = file.read(&name, kind)?;
            if values.ndim() != dims.len() {
                let words = in_words(info);
                return Err(wrong(format!(
                    "its array `{name}` has {} dimensions, and the input is {words}",
                    values.ndim()
                )));
            }
            let fits = dims.iter().zip(values.shape()).skip(1).all(|(d, &n)| d.is_none_or(|d| d == n));
            if !fits || values.is_empty() {
                return Err(wrong(format!(
                    "its array `{name}` is {:?}, and the input is {}",
                    values.shape(),
                    in_words(info)
                )));
            }
            if let Some(first) = found.first().filter(|f| f.values.len_of(Axis(0)) != values.len_of(Axis(0))) {
                let (own, other) = (values.len_of(Axis(0)), first.values.len_of(Axis(0)));
                return Err(wrong(format!("its array `{name}` holds {own} samples, and `{}` {other}", first.name)));
            }
            // Axes that bear one name are as long as each other.
            for (axis, d) in declared_axes(info).unwrap_or_default().iter().enumerate().skip(1) {
                let Some(Size::DimParam(axis_name)) = d.value.as_ref().filter(|v| !matches!(v, Size::DimValue(_)))
                else {
                    continue;
                };
                let own = values.shape()[axis];
                match named.get(axis_name).filter(|_| !axis_name.is_empty()) {
                    Some((length, other)) if *length != own => {
                        return Err(wrong(format!(
                            "axis `{axis_name}` is {own} long in its array `{name}`, and {length} in `{other}`"
                        )));
                    }
                    _ => drop(named.insert(axis_name.clone(), (own, name.clone()))),
                }
            }
            found.push(Input { name, kind, values });
        }
        let is_mask = |i: &Input| {
            let plain = i.name.split(':').next().unwrap_or_default();
            plain == MASK && i.values.ndim() == 2 && (is_integer(i.kind) || i.kind == DataType::Bool)
        };
        let mask = found.iter().position(is_mask);
        if let Some(what) = found.iter().find_map(|i| no_row(model, &i.name, &i.values)) {
            return Err(
                wrong(what).rehint("give the numbers that belong to the model, such as ids of its own tokenizer")
            );
        }
        if let Some(what) = too_long(model, &found, mask) {
            return Err(wrong(what).rehint("cut the texts before they are padded"));
        }
        let special = special(file, &found, mask)?;
        let count = found.first().map_or(0, |i| i.values.len_of(Axis(0)));
        if count == 0 {
            bail!(Unsupported, "the model has no inputs that arrays could be for");
        }
        let labels = labels(file, &found, count)?;
        let path = file.path().to_path_buf();
        let held = HeldArrays { path, inputs: found, mask, special, labels };
        Ok(Arrays { held: Arc::new(held), count, texts: None })
    }

    /// The class of each sample, where the file has an array `y` that is no input.
    pub fn labels(&self) -> Option<&[i64]> {
        self.held.labels.as_deref().map(|all| &all[..self.count])
    }

    /// Why they have no labels.
    pub(super) fn no_labels(&self) -> String {
        self.texts.as_ref().map_or(format!("it holds no array `{LABELS}`"), |texts| texts.absent.clone())
    }

    /// Whose classes the labels are, where texts had some beside them.
    pub(super) fn classes(&self) -> Option<&LabelsReport> {
        self.texts()?.labels.as_ref()
    }

    /// The score of each pair of texts, where these had some: that of sample i and of the one as many places behind it
    /// as there are scores.
    pub fn scores(&self) -> &[f64] {
        self.texts.as_ref().map_or(&[], |texts| &texts.scores)
    }

    /// How texts became them, where they did.
    pub fn texts(&self) -> Option<&TextsReport> {
        self.texts.as_ref().map(|texts| &texts.report)
    }

    /// The names of the model's classes, by the configuration beside it, where they came from texts.
    pub fn model_classes(&self) -> Option<&[String]> {
        self.texts.as_ref()?.model_classes.as_deref()
    }

    /// True where they came from texts and the model takes these at any length.
    pub(super) fn takes_any_length(&self) -> bool {
        self.texts.as_ref().is_some_and(|texts| texts.any_length)
    }

    /// Tokens that every text has with its padding, where they came from texts.
    pub fn text_length(&self) -> Option<usize> {
        self.texts().map(|texts| texts.padded_to)
    }

    /// The same texts with as many tokens each, padding included, where they have fewer.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where their tokenizer has padding on the left, and nobody asked for a side.
    pub fn padded(self, tokens: usize) -> Result<Arrays> {
        let Some(texts) = self.texts.as_ref().filter(|texts| texts.report.padded_to < tokens) else { return Ok(self) };
        if let Some(from) = texts.padding_side.left_by {
            return Err(on_the_left(from, &texts.report.tokenizer));
        }
        let longer = |name: &str, values: &ArrayD<f32>| {
            let fill = texts.fill.iter().find(|(own, _)| own == name).map_or(0.0, |(_, fill)| *fill);
            let mut shape = values.shape().to_vec();
            shape[1] = tokens;
            let mut out = ArrayD::from_elem(shape, fill);
            let own = values.len_of(Axis(1));
            let place = match texts.report.padded_on {
                Side::Right => 0..own,
                Side::Left => tokens - own..tokens,
            };
            out.slice_axis_mut(Axis(1), Slice::from(place)).assign(values);
            out
        };
        let padded = self.held.each(longer);
        let texts = texts.padded_to(tokens);
        Ok(Arrays { held: Arc::new(padded), count: self.count, texts: Some(Box::new(texts)) })
    }

    /// The shortest text by itself, and the same with padding, where the side of padding is to be checked.
    ///
    /// # Errors
    /// Those of [`Self::padded`].
    pub(crate) fn to_check(&self) -> Result<Option<[Arrays; 2]>> {
        let Some(texts) = self.texts.as_ref().filter(|texts| texts.padding_side.is_unusual) else { return Ok(None) };
        let lengths = self.tokens().unwrap_or_default();
        let Some((sample, &own)) = lengths.iter().enumerate().min_by_key(|(_, own)| **own) else { return Ok(None) };
        let one = self.only(&[sample]);
        let real = one.select(&[0]).real;
        let places: Vec<usize> =
            real.iter().flatten().enumerate().filter(|(_, real)| **real).map(|(at, _)| at).collect();
        let held = one.held.each(|_, values| values.select(Axis(1), &places));
        let alone = Arrays { held: Arc::new(held), count: 1, texts: Some(Box::new(texts.padded_to(own))) };
        // Texts of one length may be beside longer ones later.
        let most = texts.report.max_length.as_ref().map_or(own + 1, |length| length.tokens);
        let padded = alone.clone().padded(texts.report.padded_to.max(most.min(own + 1)))?;
        Ok((padded.text_length() > Some(own)).then_some([alone, padded]))
    }

    /// The first of these inputs whose array is another one in `other`, or is not there.
    pub fn differs_from(&self, other: &Arrays) -> Option<&str> {
        let same = |i: &&Input| other.held.inputs.iter().any(|o| o.name == i.name && o.values == i.values);
        self.held.inputs.iter().find(|i| !same(i)).map(|i| i.name.as_str())
    }

    /// Says which texts they came from.
    pub(crate) fn of_texts(self, texts: Option<Tokenised>) -> Self {
        Arrays { texts: texts.map(Box::new), ..self }
    }

    /// True where they came from texts.
    pub fn are_texts(&self) -> bool {
        self.texts.is_some()
    }

    /// Keeps the first `count` samples.
    pub fn limit(self, count: usize) -> Self {
        Arrays { count: self.count.min(count), ..self }
    }

    /// Some of the samples alone, by their places.
    pub fn only(&self, samples: &[usize]) -> Arrays {
        let mut only = self.held.each(|_, values| values.select(Axis(0), samples));
        only.labels = only.labels.map(|all| samples.iter().map(|&i| all[i]).collect());
        Arrays { held: Arc::new(only), count: samples.len(), texts: self.texts.clone() }
    }

    /// A model whose axes that it leaves open are as long as those of the arrays, but for the batch.
    pub fn fixed(&self, model: &Model) -> Model {
        let mut model = model.clone();
        let shapes = self.held.inputs.iter().map(|i| (i.name.as_str(), i.values.shape()));
        graph::fix_lengths(model.graph_mut(), shapes);
        model
    }

    /// The shape of one sample of each input, in their order.
    pub fn shapes(&self) -> Vec<(&str, &[usize])> {
        self.held.inputs.iter().map(|i| (i.name.as_str(), &i.values.shape()[1..])).collect()
    }

    /// Some samples, by their places.
    pub fn select(&self, samples: &[usize]) -> Inputs {
        let chosen = |values: &ArrayD<f32>| values.select(Axis(0), samples);
        let held = &self.held;
        let is_set = |values: ArrayD<f32>| values.mapv(|v| v != 0.0).into_dimensionality::<Ix2>().ok();
        let real: Option<Array2<bool>> = held.mask.and_then(|m| is_set(chosen(&held.inputs[m].values)));
        let special = held.special.as_ref().and_then(|(_, values)| is_set(chosen(values)));
        let content = match (&real, special) {
            (real, None) => real.clone(),
            (None, Some(special)) => Some(special.mapv(|s| !s)),
            (Some(real), Some(special)) => {
                Some(Array2::from_shape_fn(real.dim(), |at| real[at] && !special.get(at).copied().unwrap_or(false)))
            }
        };
        let arrays = held.inputs.iter().map(|i| (i.name.clone(), chosen(&i.values))).collect();
        Inputs { arrays, real, content }
    }

    /// The first sample, and the next one that is another; none where all are the same.
    pub(crate) fn two_that_differ(&self) -> Option<Inputs> {
        let is_other = |sample: &usize| {
            let same = |i: &Input| i.values.index_axis(Axis(0), 0) == i.values.index_axis(Axis(0), *sample);
            !self.held.inputs.iter().all(same)
        };
        (1..self.count).find(is_other).map(|other| self.select(&[0, other]))
    }

    /// What tokens are counted by, where there are some: the mask, else their numbers.
    fn counted(&self) -> Option<&ArrayD<f32>> {
        let numbers = self.held.inputs.iter().find(|i| i.is_tokens())?;
        Some(&self.held.mask.map_or(numbers, |mask| &self.held.inputs[mask]).values)
    }

    /// Tokens that every sample has with its padding, where samples are texts.
    pub fn length(&self) -> Option<usize> {
        self.counted().map(|counted| counted.len_of(Axis(1)))
    }

    /// How many tokens of each sample are no padding, where samples are texts: token numbers, which are whole numbers,
    /// along one axis.
    pub fn tokens(&self) -> Option<Vec<usize>> {
        let all = self.held.mask.is_none();
        let rows = self.counted()?.outer_iter().take(self.count);
        Some(rows.map(|row| row.iter().filter(|v| all || **v != 0.0).count()).collect())
    }

    /// The path that they were read from.
    pub fn path(&self) -> &Path {
        &self.held.path
    }

    /// A hash of the arrays, for records of what a result was computed from: SHA-256, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for input in &self.held.inputs {
            hasher.update(input.name.as_bytes());
            hasher.update(format!("{:?}", input.values.shape()));
            input.values.iter().for_each(|v| hasher.update(v.to_le_bytes()));
        }
        hexadecimal(hasher)
    }

    /// What a model is fed with.
    pub fn report(&self, model: &Model) -> ArraysReport {
        let array = |i: &Input| ArrayReport {
            input: i.name.clone(),
            r#type: kind_name(i.kind),
            shape: i.values.shape()[1..].to_vec(),
        };
        let tokens = self.counted().zip(self.tokens()).map(|(counted, real)| TokensReport {
            mask: self.mask().map(str::to_string),
            special_tokens: self.held.special.is_some(),
            real: real.iter().sum(),
            of: self.count * counted.len_of(Axis(1)),
        });
        ArraysReport {
            samples: self.count,
            arrays: self.held.inputs.iter().map(array).collect(),
            tokens,
            texts: self.texts().cloned(),
            fed: FedReport::of(model),
            outputs: model.graph().output.iter().map(|o| o.name().to_string()).collect(),
        }
    }
}

impl ArraysReport {
    /// What is used, and what is assumed, in lines.
    pub fn lines(&self) -> Vec<String> {
        let array = |a: &ArrayReport| format!("`{}` {} {:?}", a.input, a.r#type, a.shape);
        let arrays: Vec<String> = self.arrays.iter().map(array).collect();
        let mut lines = vec![format!("{} samples of {}", self.samples, arrays.join(", "))];
        lines.extend(self.texts.iter().flat_map(TextsReport::lines));
        lines.extend(self.tokens.as_ref().map(|t| match &t.mask {
            Some(mask) => {
                format!("`{mask}` says which tokens are real: {} of {}; padding counts nowhere", t.real, t.of)
            }
            None => format!("no input is called `{MASK}`: padding, where there is some, counts like any token"),
        }));
        let rounded: Vec<String> =
            self.arrays.iter().filter(|a| a.r#type == "double").map(|a| format!("`{}`", a.input)).collect();
        if !rounded.is_empty() {
            lines.push(format!("{} is rounded to float32", rounded.join(", ")));
        }
        lines
    }

    /// What is assumed of special tokens, where there are tokens.
    pub fn special_line(&self) -> Option<String> {
        let tokens = self.tokens.as_ref()?;
        Some(match tokens.special_tokens {
            true => format!("`{SPECIAL}` says which tokens are special: they are left out"),
            false => format!("special tokens count; an array `{SPECIAL}` in the file leaves them out"),
        })
    }
}

impl Samples for Arrays {
    fn len(&self) -> usize {
        self.count
    }

    fn batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_> {
        self.chunks((0..self.count).collect(), size)
    }

    fn own_batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_> {
        self.chunks(parallel::share(self.count).collect(), size)
    }

    fn token_input(&self) -> Option<&str> {
        let place = self.held.mask.or(self.held.special.as_ref().map(|s| s.0))?;
        Some(&self.held.inputs[place].name)
    }

    fn mask(&self) -> Option<&str> {
        self.held.mask.map(|m| self.held.inputs[m].name.as_str())
    }

    fn check_any(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn advice(&self) -> &'static str {
        match self.are_texts() {
            true => "check the model's weights",
            false => "check the arrays of ⟦inputs⟧ and the model's weights",
        }
    }
}

impl Arrays {
    fn chunks(&self, samples: Vec<usize>, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_> {
        let size = size.max(1);
        let count = samples.len().div_ceil(size);
        let chunk = move |i: usize| Ok(self.select(&samples[i * size..((i + 1) * size).min(samples.len())]));
        Box::new((0..count).map(chunk))
    }
}

/// What is wrong with the length of texts, where the model has a table of places.
fn too_long(model: &Model, inputs: &[Input], mask: Option<usize>) -> Option<String> {
    let takes = Takes::new(model).ok()?;
    let ids = inputs.iter().find(|input| input.name == takes.ids)?;
    let length = |row: ndarray::ArrayViewD<f32>| row.iter().filter(|v| **v != 0.0).count();
    let real = mask.and_then(|mask| inputs[mask].values.outer_iter().map(length).max()).unwrap_or(0);
    let what = takes.too_long(*ids.values.shape().get(1)?, real)?;
    Some(format!("its array `{}` {what}", ids.name))
}

/// Checks that every array is for an input of a model.
///
/// # Errors
/// [`ErrorKind::Usage`]; the hint lists the inputs.
pub(crate) fn check_names(file: &ArrayFile, model: &Model) -> Result<()> {
    let inputs = data_inputs(model.graph());
    let is_input = |name: &str| inputs.iter().any(|v| v.name() == name);
    if let Some(fed) = model.fed.iter().map(|f| f.info.name()).find(|fed| file.names().any(|name| name == *fed)) {
        return Err(Error::new(ErrorKind::Usage, format!("it has an array for `{fed}`, which ⟦feed⟧ gives a value"))
            .at(file.path())
            .hint("leave out one of the two"));
    }
    match file.names().find(|name| ![SPECIAL, LABELS].contains(name) && !is_input(name)) {
        Some(name) => {
            Err(Error::new(ErrorKind::Usage, format!("the model has no input `{name}`, which it has an array for"))
                .at(file.path())
                .hint(listed(model)))
        }
        None => Ok(()),
    }
}

/// The inputs of a model in a sentence.
fn listed(model: &Model) -> String {
    format!("⟦inputs⟧ takes an array for each input, by its name: {}", inputs_in_words(model))
}

/// The array that says which tokens are special, where the file has one that is no input: it is as large as the mask,
/// else as the first input of whole numbers [samples, tokens].
fn special(file: &ArrayFile, inputs: &[Input], mask: Option<usize>) -> Result<Option<(usize, ArrayD<f32>)>> {
    if !file.names().any(|name| name == SPECIAL) || inputs.iter().any(|i| i.name == SPECIAL) {
        return Ok(None);
    }
    let along = mask.or_else(|| inputs.iter().position(|i| i.values.ndim() == 2 && is_integer(i.kind)));
    let values = whole_numbers(file, SPECIAL)?;
    match along {
        Some(place) if inputs[place].values.shape() == values.shape() => Ok(Some((place, values))),
        _ => Err(Error::new(ErrorKind::Usage, format!("its array `{SPECIAL}` is {:?}", values.shape()))
            .at(file.path())
            .hint("it has a row for each sample, and a number for each token")),
    }
}

/// The array of labels, where the file has one that is no input: a class for each of so many samples.
fn labels(file: &ArrayFile, inputs: &[Input], count: usize) -> Result<Option<Vec<i64>>> {
    if !file.names().any(|name| name == LABELS) || inputs.iter().any(|i| i.name == LABELS) {
        return Ok(None);
    }
    let values = whole_numbers(file, LABELS)?;
    match values.shape() {
        [n] | [n, 1] if *n == count => Ok(Some(values.iter().map(|&v| v as i64).collect())),
        shape => Err(Error::new(
            ErrorKind::Usage,
            format!("its array `{LABELS}` is {shape:?}, and there are {count} samples"),
        )
        .at(file.path())
        .hint("labels are one whole number a sample: its class, from 0")),
    }
}

/// An array of whole numbers of any type, or of booleans.
fn whole_numbers(file: &ArrayFile, name: &str) -> Result<ArrayD<f32>> {
    let kinds = [
        DataType::Int32,
        DataType::Uint8,
        DataType::Int8,
        DataType::Int16,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Bool,
    ];
    let first = file.read(name, DataType::Int64);
    kinds.iter().fold(first, |found, &kind| found.or_else(|e| file.read(name, kind).map_err(|_| e)))
}
