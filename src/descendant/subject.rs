//! A model that is run to be verified, and how what it says is compared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ndarray::{ArrayD, Axis, Slice};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::oracle::units;
use crate::anatomy::Anatomy;
use crate::axes::{Dim, Factor, Typing};
use crate::data::Inputs;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, FloatType, SampleInputs, data_inputs, declared_dims, declared_type, is_integer};
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{DataType, Model, data_type, tensor_from_f32, to_f32};
use crate::runtime::{Device, Embedded, Runtime, RuntimeKind, Session};

/// Samples in the largest batch that is tried.
pub(super) const MOST: usize = 3;

/// A model that is run, loaded once for each batch.
pub(super) struct Subject {
    pub model: Model,
    image: [usize; 2],
    /// Of its image, where it takes one.
    pub shape: Option<[usize; 4]>,
    /// Samples in a batch, where the file fixes them.
    pub fixed: Option<usize>,
    /// The inputs that take no fractions, by their names.
    pub whole_numbers: Vec<String>,
    /// The names and shapes of arrays that inputs are given; none where it is an image alone.
    arrays: Option<Arrays>,
    /// The outputs that samples and feeds alone make.
    outputs: Vec<String>,
    /// Which of them are given back.
    given: Vec<bool>,
    /// Whether it runs on tract, whose panics are errors.
    embedded: bool,
    /// The output that was picked.
    of: Option<String>,
    runtime: Arc<Runtime>,
    loaded: HashMap<usize, Loaded>,
}

enum Loaded {
    Library(Box<Session>),
    Embedded(Embedded),
}

/// Names and shapes.
type Arrays = Vec<(String, Vec<usize>)>;

/// The part of a model that these arrays and feeds alone are needed for, or the image where there are none; or of that
/// what an output needs.
fn fed(model: &Model, arrays: Option<&Arrays>, of: Option<&str>) -> Result<Model> {
    let mut fed = model.clone();
    let names: Option<Vec<String>> = arrays.map(|a| a.iter().map(|(name, _)| name.clone()).collect());
    graph::cut(&mut fed, names.as_deref().map_or(SampleInputs::Image, SampleInputs::Inputs), of)?;
    Ok(fed)
}

/// The arrays among samples that a model has inputs for by name: a picture has another one.
fn for_inputs(model: &Model, samples: &Inputs) -> Option<Arrays> {
    let inputs = data_inputs(model.graph());
    let is_input = |name: &str| inputs.iter().any(|v| v.name() == name);
    let own = samples.arrays.iter().filter(|(name, _)| is_input(name));
    let own: Arrays = own.map(|(name, array)| (name.clone(), array.shape().to_vec())).collect();
    (!own.is_empty()).then_some(own)
}

/// A model as long as arrays.
fn fixed(mut model: Model, arrays: Option<&Arrays>) -> Model {
    if let Some(arrays) = arrays {
        graph::fix_lengths(model.graph_mut(), arrays.iter().map(|(name, shape)| (name.as_str(), &shape[..])));
    }
    model
}

impl Subject {
    /// The model, to be run in float32; of one output, where that is picked. It is as long as the samples, where these
    /// are arrays.
    pub fn new(runtime: &Arc<Runtime>, model: &Model, samples: Option<&Inputs>, of: Option<&str>) -> Result<Subject> {
        let mut model = model.clone();
        graph::convert(&mut model, FloatType::Fp32)?;
        let arrays = samples.and_then(|samples| for_inputs(&model, samples));
        let model = fixed(model, arrays.as_ref());
        let fed = fed(&model, arrays.as_ref(), of)?;
        let (shape, image) = {
            let typing = Typing::new(&fed)?;
            (typing.image_input().map(|(shape, _)| shape), typing.image_size())
        };
        if shape.is_none() && arrays.is_none() {
            let what =
                "the model takes no images, and there are no samples of its inputs; on some (⟦inputs⟧, ⟦texts⟧) it is";
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("give samples of its inputs: ⟦inputs⟧ PATH, or ⟦texts⟧ PATH"));
        }
        let kind = |t: Option<i32>| t.and_then(|t| DataType::try_from(t).ok());
        let float = |t: Option<i32>| {
            let kinds = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];
            kind(t).is_none_or(|kind| kinds.contains(&kind))
        };
        let floats: Vec<bool> = fed.graph().output.iter().map(|o| float(declared_type(o))).collect();
        let any = floats.contains(&true);
        let inputs = data_inputs(fed.graph());
        let is_whole =
            |v: &&&ValueInfoProto| kind(declared_type(v)).is_some_and(|t| is_integer(t) || t == DataType::Bool);
        Ok(Subject {
            image,
            shape,
            fixed: inputs.iter().filter_map(|v| *declared_dims(v)?.first()?).next(),
            outputs: fed.graph().output.iter().map(|o| o.name().to_owned()).collect(),
            whole_numbers: inputs.iter().filter(is_whole).map(|v| v.name().to_owned()).collect(),
            arrays,
            given: floats.into_iter().map(|float| float || !any).collect(),
            embedded: runtime.kind == RuntimeKind::Tract,
            of: of.map(str::to_owned),
            runtime: runtime.clone(),
            loaded: HashMap::new(),
            model,
        })
    }

    /// True for an input that takes fractions. Pictures are called otherwise than the only input, which takes them.
    pub fn takes_fractions(&self, input: &str) -> bool {
        match &self.arrays {
            Some(_) => !self.whole_numbers.iter().any(|name| name == input),
            None => self.whole_numbers.is_empty(),
        }
    }

    /// The same, to be run on tract.
    pub fn on_tract(self) -> Subject {
        Subject { embedded: true, ..self }
    }

    /// The same, in the types of the file.
    pub fn in_its_types(self, model: &Model) -> Subject {
        Subject { model: fixed(model.clone(), self.arrays.as_ref()), ..self }
    }

    /// The same with other weights.
    fn with_weights(&self, model: Model) -> Subject {
        let (whole_numbers, arrays) = (self.whole_numbers.clone(), self.arrays.clone());
        let (outputs, given, of) = (self.outputs.clone(), self.given.clone(), self.of.clone());
        let (runtime, loaded) = (self.runtime.clone(), HashMap::new());
        Subject { model, whole_numbers, arrays, outputs, given, of, runtime, loaded, ..*self }
    }

    pub fn anatomy(&self) -> Result<Anatomy> {
        Anatomy::new(&Typing::new(&self.model)?)
    }

    /// The outputs that have an axis of heads or of neurons, such as attention maps.
    pub fn outputs_of_units(&self) -> Result<Vec<String>> {
        let typing = Typing::new(&self.model)?;
        let units: HashSet<Factor> = units(&typing, &Anatomy::new(&typing)?).into_iter().collect();
        let has_units = |dims: &Vec<Dim>| {
            dims.iter().any(|d| typing.factors.all_leaves(d).iter().any(|&f| units.contains(&typing.factors.root(f))))
        };
        let names = self.model.graph().output.iter().map(ValueInfoProto::name);
        Ok(names.filter(|name| typing.dims.get(name).is_some_and(has_units)).map(str::to_owned).collect())
    }

    /// Leaves outputs out of what [`Subject::run`] gives back; false where none remain.
    pub fn leave_out(&mut self, outputs: &[String]) -> bool {
        for (given, output) in self.given.iter_mut().zip(&self.outputs) {
            *given &= !outputs.contains(output);
        }
        self.given.contains(&true)
    }

    /// The outputs for a batch of samples. Whole numbers among them, such as the place of the largest, are left out
    /// where there are others: rounding decides between two that are close.
    pub fn run(&mut self, samples: &Inputs) -> Result<Vec<ArrayD<f32>>> {
        let count = samples.len();
        // ONNX Runtime's sessions for the processor leave an open batch open.
        let open = !self.embedded && self.runtime.device == Device::Cpu;
        let batch = self.fixed.unwrap_or(if open { MOST } else { count });
        if !self.loaded.contains_key(&batch) {
            let fed = fed(&self.model, self.arrays.as_ref(), self.of.as_deref())?;
            let loaded = match self.embedded {
                true => Loaded::Embedded(Embedded::load(&fed, batch, self.image)?),
                false => Loaded::Library(Box::new(self.runtime.load(&fed, batch, self.image)?)),
            };
            self.loaded.insert(batch, loaded);
        }
        let outputs = match self.loaded.get_mut(&batch) {
            Some(Loaded::Library(session)) => session.run_on(&samples.views())?,
            Some(Loaded::Embedded(tract)) => {
                // A batch that the file fixes is filled up with its last sample.
                let rows: Vec<usize> = (0..tract.batch).map(|i| i.min(count - 1)).collect();
                let mut outputs = tract.run_on(&samples.select(&rows).views())?;
                for output in outputs.iter_mut().filter(|o| o.ndim() > 0 && o.len_of(Axis(0)) == tract.batch) {
                    output.slice_axis_inplace(Axis(0), Slice::from(..count));
                }
                outputs
            }
            None => Vec::new(),
        };
        Ok(outputs.into_iter().zip(&self.given).filter(|(_, given)| **given).map(|(output, _)| output).collect())
    }
}

/// The largest difference of any output, relative to the largest element of that output. What is no number in the first
/// may be none in the second.
pub(super) fn difference(a: &[ArrayD<f32>], b: &[ArrayD<f32>]) -> f64 {
    if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.shape() != b.shape()) {
        return f64::INFINITY;
    }
    let pairs = a.iter().zip(b).map(|(a, b)| {
        let largest = a.iter().filter(|v| v.is_finite()).fold(1e-6f64, |m, &v| m.max(f64::from(v.abs())));
        let apart = a.iter().zip(b).map(|(&x, &y)| match x == y || (x.is_nan() && y.is_nan()) {
            true => 0.0,
            false => (f64::from(x) - f64::from(y)).abs(),
        });
        let far = apart.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        far / largest
    });
    pairs.fold(0.0, f64::max)
}

/// What `together`, of `n` images, says of the image `at`: as many rows as `alone` has.
pub(super) fn rows(alone: &[ArrayD<f32>], together: &[ArrayD<f32>], n: usize, at: usize) -> Vec<ArrayD<f32>> {
    let cut = |(one, all): (&ArrayD<f32>, &ArrayD<f32>)| {
        let own = one.shape().first().copied().unwrap_or(0);
        match own > 0 && all.shape().first() == Some(&(n * own)) {
            true => all.slice_axis(Axis(0), Slice::from(at * own..(at + 1) * own)).to_owned(),
            // One value for the whole batch says nothing of an image.
            false if all.shape() == one.shape() => one.clone(),
            false => all.clone(),
        }
    };
    alone.iter().zip(together).map(cut).collect()
}

/// What a model says of samples that differ by `share` of their largest element. Where no input takes fractions, its
/// weights differ instead, each by that share of itself.
pub(super) fn nudged(subject: &mut Subject, samples: &Inputs, share: f32) -> Result<Vec<ArrayD<f32>>> {
    let mut random = StdRng::seed_from_u64(2);
    let mut samples = samples.clone();
    let mut any = false;
    for (_, array) in samples.arrays.iter_mut().filter(|(name, _)| subject.takes_fractions(name)) {
        let largest = array.iter().fold(0f32, |m, v| m.max(v.abs()));
        array.mapv_inplace(|v| v + largest * random.random_range(-share..share));
        any = true;
    }
    if any {
        return subject.run(&samples);
    }
    let mut model = subject.model.clone();
    for tensor in model.graph_mut().initializer.iter_mut().filter(|t| data_type(t) == Some(DataType::Float)) {
        let near = |v: f32, share: f32| Some(v * (1.0 + share)).filter(|v| v.is_finite()).unwrap_or(v);
        let values: Vec<f32> =
            to_f32(tensor)?.into_iter().map(|v| near(v, random.random_range(-share..share))).collect();
        *tensor = tensor_from_f32(tensor.name(), DataType::Float, &tensor.shape(), &values);
    }
    subject.with_weights(model).run(&samples)
}

#[cfg(test)]
mod tests {
    use ndarray::IxDyn;

    use super::*;

    fn array(shape: &[usize], values: &[f32]) -> ArrayD<f32> {
        ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap()
    }

    #[test]
    fn differences_are_those_of_the_worst_output() {
        let a = [array(&[2], &[100.0, 1.0]), array(&[1, 2], &[0.5, f32::NAN])];
        assert_eq!(difference(&a, &a), 0.0, "what is no number in both is the same");
        assert_eq!(difference(&a, &[a[0].clone(), array(&[1, 2], &[0.25, f32::NAN])]), 0.5);
        assert_eq!(difference(&a, &[a[0].clone(), array(&[1, 2], &[f32::NAN, f32::NAN])]), f64::INFINITY);
        assert_eq!(difference(&a, &[a[0].clone(), array(&[2, 1], &[0.5, f32::NAN])]), f64::INFINITY);
        let mask = [array(&[2], &[f32::NEG_INFINITY, 2.0])];
        assert_eq!(difference(&mask, &mask), 0.0);
        assert_eq!(difference(&mask, &[array(&[2], &[0.0, 2.0])]), f64::INFINITY);
    }

    #[test]
    fn rows_of_an_image_are_cut_out() {
        let alone = [array(&[2, 1], &[1.0, 2.0]), array(&[], &[7.0])];
        let together = [array(&[4, 1], &[1.0, 2.0, 3.0, 4.0]), array(&[], &[8.0])];
        assert_eq!(rows(&alone, &together, 2, 0)[0], alone[0]);
        assert_eq!(rows(&alone, &together, 2, 1)[0], array(&[2, 1], &[3.0, 4.0]));
        assert_eq!(rows(&alone, &together, 2, 0)[1], alone[1], "a value for all of the batch is none of an image");
        // As many rows as one image has, and others beside it: not what it should be.
        let odd = [array(&[3, 1], &[1.0, 2.0, 3.0]), array(&[], &[7.0])];
        assert_eq!(difference(&alone, &rows(&alone, &odd, 2, 0)), f64::INFINITY);
    }
}
