//! A model that is run to be verified, and how what it says is compared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayView4, Axis, Slice};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::oracle::units;
use crate::anatomy::Anatomy;
use crate::axes::{Dim, Factor, Typing, declared_batch};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, FloatType, Given, data_inputs, declared_type, is_integer};
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{DataType, Model};
use crate::runtime::{Device, Embedded, Kind, Runtime, Session};

/// Images in the largest batch that is tried.
pub(super) const MOST: usize = 3;

/// A model that is run, loaded once for each batch.
pub(super) struct Subject {
    pub model: Model,
    image: [usize; 2],
    /// Of its input.
    pub shape: [usize; 4],
    /// Images in a batch, where the file fixes them.
    pub fixed: Option<usize>,
    /// Whether its input takes whole numbers.
    pub whole_numbers: bool,
    /// The outputs that images and feeds alone make.
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

/// The part of a model that images and feeds alone are needed for, or of that what an output needs.
fn fed(model: &Model, of: Option<&str>) -> Result<Model> {
    let mut fed = model.clone();
    graph::cut(&mut fed, Given::Image, of)?;
    Ok(fed)
}

impl Subject {
    /// The model, to be run in float32; of one output, where that is picked.
    pub fn new(runtime: &Arc<Runtime>, model: &Model, of: Option<&str>) -> Result<Subject> {
        let mut model = model.clone();
        graph::convert(&mut model, FloatType::Fp32)?;
        let fed = fed(&model, of)?;
        let (shape, image) = {
            let typing = Typing::new(&fed)?;
            let Some((shape, _)) = typing.image_input() else {
                return Err(Error::new(ErrorKind::Unsupported, "the model does not take one batch of images"));
            };
            (shape, typing.image_size())
        };
        let input = data_inputs(fed.graph()).into_iter().next().and_then(declared_type);
        let float = |t: Option<i32>| {
            let kind = t.and_then(|t| DataType::try_from(t).ok());
            matches!(kind, Some(DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double) | None)
        };
        let floats: Vec<bool> = fed.graph().output.iter().map(|o| float(declared_type(o))).collect();
        let any = floats.contains(&true);
        Ok(Subject {
            image,
            shape,
            fixed: declared_batch(&fed),
            outputs: fed.graph().output.iter().map(|o| o.name().to_owned()).collect(),
            whole_numbers: input.and_then(|t| DataType::try_from(t).ok()).is_some_and(is_integer),
            given: floats.into_iter().map(|float| float || !any).collect(),
            embedded: runtime.kind == Kind::Tract,
            of: of.map(str::to_owned),
            runtime: runtime.clone(),
            loaded: HashMap::new(),
            model,
        })
    }

    /// The same, to be run on tract.
    pub fn on_tract(self) -> Subject {
        Subject { embedded: true, ..self }
    }

    /// The same, in the types of the file.
    pub fn in_its_types(self, model: &Model) -> Subject {
        Subject { model: model.clone(), ..self }
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

    /// The outputs for a batch of images. Whole numbers among them, such as the place of the largest, are left out
    /// where there are others: rounding decides between two that are close.
    pub fn run(&mut self, images: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
        let count = images.len_of(Axis(0));
        // ONNX Runtime's sessions for the processor leave an open batch open.
        let open = !self.embedded && self.runtime.device == Device::Cpu;
        let batch = self.fixed.unwrap_or(if open { MOST } else { count });
        if !self.loaded.contains_key(&batch) {
            let fed = fed(&self.model, self.of.as_deref())?;
            let loaded = match self.embedded {
                true => Loaded::Embedded(Embedded::load(&fed, batch, self.image)?),
                false => Loaded::Library(Box::new(self.runtime.load(&fed, batch, self.image)?)),
            };
            self.loaded.insert(batch, loaded);
        }
        let outputs = match self.loaded.get_mut(&batch) {
            Some(Loaded::Library(session)) => session.run(images)?,
            Some(Loaded::Embedded(tract)) => {
                // A batch that the file fixes is filled up with its last image.
                let rows: Vec<usize> = (0..tract.batch).map(|i| i.min(count - 1)).collect();
                let mut outputs = tract.run(images.select(Axis(0), &rows).view())?;
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

/// Images that differ by `share` of their largest element.
pub(super) fn nudged(images: ArrayView4<f32>, share: f32) -> Array4<f32> {
    let largest = images.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut random = StdRng::seed_from_u64(2);
    images.mapv(|v| v + largest * random.random_range(-share..share))
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
