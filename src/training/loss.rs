//! Losses as parts of the graph: what is minimised, made of standard operators behind the model's outputs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::anatomy::check_classes;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, element_types, int_attribute};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Model, tensor_info};

/// The input that holds the target distribution of each image: [batch, classes].
pub const TARGETS: &str = "targets";

/// The value that is minimised, a scalar: the mean over the batch.
pub const LOSS: &str = "loss";

/// One term of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Term {
    /// Cross-entropy between the targets and the softmax of an output [batch, classes], with label smoothing: a share
    /// of every target distribution is spread evenly over the classes.
    CrossEntropy {
        /// Share that is spread, 0 to 1.
        smoothing: f32,
    },
    /// Binary cross-entropy of every class by itself between the targets and the sigmoid of an output [batch, classes],
    /// the mean over the classes, with the same label smoothing.
    BinaryCrossEntropy {
        /// Share that is spread, 0 to 1.
        smoothing: f32,
    },
    /// Mean squared difference between an output [batch, classes] and the targets.
    SquaredError,
    /// Kullback-Leibler divergence from the teacher's softened distribution to the student's, times the temperature
    /// squared (Hinton, Vinyals and Dean 2015), for an output [batch, classes].
    Distillation {
        /// What logits are divided by.
        temperature: f32,
        /// The student's output or value.
        student: String,
        /// The teacher's output or value.
        teacher: String,
    },
    /// Mean squared difference between the targets and the cosines of an output's rows, [2 pairs, width], of which two
    /// that follow each other are a pair (CosineSimilarityLoss of sentence-transformers).
    Cosine {
        /// The output.
        embedding: String,
    },
    /// Mean squared difference between a value of the student and one of the teacher, of the same shape.
    Imitation {
        /// The student's output or value.
        student: String,
        /// The teacher's output or value.
        teacher: String,
    },
}

/// A weighted sum of terms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Weights and terms.
    pub terms: Vec<(f32, Term)>,
    /// The output that classes are read from; the first where it is not named.
    pub output: Option<String>,
}

impl Loss {
    /// Plain cross-entropy.
    pub fn cross_entropy(smoothing: f32) -> Self {
        Loss { terms: vec![(1.0, Term::CrossEntropy { smoothing })], output: None }
    }

    /// True where labels of classes are needed.
    pub fn needs_classes(&self) -> bool {
        let needs =
            |t: &Term| matches!(t, Term::CrossEntropy { .. } | Term::BinaryCrossEntropy { .. } | Term::SquaredError);
        self.terms.iter().any(|(_, t)| needs(t))
    }

    /// True where labels are needed, or cosines that pairs are to have.
    pub fn needs_targets(&self) -> bool {
        self.needs_classes() || self.terms.iter().any(|(_, t)| matches!(t, Term::Cosine { .. }))
    }

    /// True where a term takes classes that exclude each other.
    pub(super) fn is_exclusive(&self) -> bool {
        self.terms.iter().any(|(_, t)| matches!(t, Term::CrossEntropy { .. }))
    }

    /// The teacher's values that are needed, each once, in order.
    pub fn teacher_values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for (_, term) in &self.terms {
            if let Term::Distillation { teacher, .. } | Term::Imitation { teacher, .. } = term
                && !values.contains(teacher)
            {
                values.push(teacher.clone());
            }
        }
        values
    }

    /// The student's values that are compared with a teacher's, each once, in order.
    pub fn student_values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for (_, term) in &self.terms {
            if let Term::Distillation { student, .. } | Term::Imitation { student, .. } = term
                && !values.contains(student)
            {
                values.push(student.clone());
            }
        }
        values
    }

    /// The output that classes are read from.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the model has no such output.
    pub fn class_output(&self, model: &Model) -> Result<String> {
        let outputs: Vec<&str> = model.graph().output.iter().map(|o| o.name()).collect();
        match &self.output {
            None => match outputs.first() {
                Some(o) => Ok(o.to_string()),
                None => bail!(Unsupported, "the model has no output"),
            },
            Some(name) if outputs.contains(&name.as_str()) => Ok(name.clone()),
            Some(name) => Err(Error::new(ErrorKind::Usage, format!("the model has no output `{name}`"))
                .hint(format!("its outputs are {}", outputs.join(", ")))),
        }
    }

    /// Adds the loss to a graph of fixed batch size, which has been typed before: inputs for targets and for the
    /// teacher's values, and the scalar [`LOSS`].
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for values that the model lacks or whose shapes do not fit the loss.
    pub fn append(&self, model: &mut Model, typing: &Typing) -> Result<()> {
        if self.terms.is_empty() {
            bail!(Usage, "there is no loss to minimise");
        }
        let mut terms = Terms {
            loss: self,
            model,
            typing,
            types: element_types(typing.graph),
            b: Builder::new(typing.graph, typing.opset, "loss"),
            inputs: Vec::new(),
        };
        let mut sum: Option<String> = None;
        for (weight, term) in &self.terms {
            let value = terms.value(*weight, term)?;
            sum = Some(match sum {
                None => value,
                Some(before) => terms.b.op("Add", &[&before, &value]),
            });
        }
        let Terms { mut b, inputs, .. } = terms;
        let graph = model.graph_mut();
        if graph.node.iter().any(|n| n.output.iter().any(|o| o == LOSS))
            || graph.input.iter().any(|i| i.name() == TARGETS)
        {
            bail!(Unsupported, "the model has a value called `{LOSS}` or `{TARGETS}`, which training needs for itself");
        }
        b.op_as("Identity", &[&sum.unwrap_or_default()], vec![], LOSS);
        b.finish(graph);
        for (name, shape) in inputs {
            let dims: Vec<Option<usize>> = shape.iter().map(|&d| Some(d)).collect();
            graph.input.push(tensor_info(name, DataType::Float, &dims));
        }
        graph.output.push(tensor_info(LOSS, DataType::Float, &[]));
        graph::sort(graph)
    }
}

/// Terms of a loss on their way into a graph.
struct Terms<'a, 'm> {
    loss: &'a Loss,
    model: &'a Model,
    typing: &'a Typing<'m>,
    types: HashMap<&'m str, DataType>,
    b: Builder,
    /// Names and shapes of inputs that the terms read.
    inputs: Vec<(String, Vec<usize>)>,
}

impl Terms<'_, '_> {
    /// An input, which several terms may read.
    fn declare(&mut self, name: String, shape: &[usize]) -> String {
        if self.inputs.iter().all(|(n, _)| *n != name) {
            self.inputs.push((name.clone(), shape.to_vec()));
        }
        name
    }

    /// A value in float32: those inside a graph of half precision are compared as its outputs are.
    fn float(&mut self, x: &str) -> String {
        match self.types.get(x) {
            Some(DataType::Float) | None => x.to_string(),
            Some(_) => self.b.op_with("Cast", &[x], vec![int_attribute("to", DataType::Float as i64)]),
        }
    }

    /// The value of a term, times its weight.
    fn value(&mut self, weight: f32, term: &Term) -> Result<String> {
        let typing = self.typing;
        Ok(match term {
            Term::CrossEntropy { smoothing } => {
                let (logits, shape) = self.classes()?;
                let targets = self.declare(TARGETS.into(), &shape);
                cross_entropy(&mut self.b, [&logits, &targets], *smoothing, shape, weight)
            }
            Term::BinaryCrossEntropy { smoothing } => {
                let (logits, [batch, classes]) = self.classes()?;
                let targets = self.declare(TARGETS.into(), &[batch, classes]);
                let target = smooth(&mut self.b, &targets, *smoothing, classes);
                binary_cross_entropy(&mut self.b, &logits, &target, batch * classes, weight)
            }
            Term::SquaredError => {
                let (logits, shape) = self.classes()?;
                let targets = self.declare(TARGETS.into(), &shape);
                squares(&mut self.b, &logits, &targets, weight)
            }
            Term::Cosine { embedding } => {
                let [pairs, width] = pairs(typing, embedding)?;
                let targets = self.declare(TARGETS.into(), &[pairs, 1]);
                let embedding = self.float(embedding);
                let cosines = cosines(&mut self.b, &embedding, [pairs, width]);
                squares(&mut self.b, &cosines, &targets, weight)
            }
            Term::Distillation { temperature, student, teacher } => {
                let [batch, classes] = matrix(typing, student)?;
                let teacher = self.declare(teacher_input(teacher), &[batch, classes]);
                let student = self.float(student);
                divergence(&mut self.b, [&teacher, &student], *temperature, batch, weight)
            }
            Term::Imitation { student, teacher } => {
                let shape = shape(typing, student)?;
                let teacher = self.declare(teacher_input(teacher), &shape);
                let student = self.float(student);
                squares(&mut self.b, &student, &teacher, weight)
            }
        })
    }

    /// The output that classes are read from, and its shape [batch, classes].
    fn classes(&self) -> Result<(String, [usize; 2])> {
        let logits = self.loss.class_output(self.model)?;
        let shape = matrix(self.typing, &logits)?;
        Ok((logits, shape))
    }
}

/// The input that holds a value of the teacher.
pub fn teacher_input(value: &str) -> String {
    format!("teacher/{value}")
}

fn shape(typing: &Typing, value: &str) -> Result<Vec<usize>> {
    typing.dims.get(value).and(typing.shape(value)).ok_or_else(|| {
        let outputs: Vec<&str> = typing.graph.output.iter().map(|o| o.name()).collect();
        Error::new(ErrorKind::Usage, format!("the model computes no value `{value}`"))
            .hint(format!("its outputs are {}; any other value of its graph can be named too", outputs.join(", ")))
    })
}

fn matrix(typing: &Typing, value: &str) -> Result<[usize; 2]> {
    check_classes(typing, value)?;
    let found = shape(typing, value)?;
    found.as_slice().try_into().map_err(|_| {
        Error::new(ErrorKind::Usage, format!("`{value}` has the shape {found:?}, and classes need [batch, classes]"))
            .hint("give a classifier (⟦classes⟧ N adds one), or ⟦teacher⟧ MODEL for a regression to its output")
    })
}

/// Cross-entropy of logits and targets [batch, classes], the mean over the batch.
fn cross_entropy(
    b: &mut Builder,
    [logits, targets]: [&str; 2],
    smoothing: f32,
    [batch, classes]: [usize; 2],
    weight: f32,
) -> String {
    let log = b.log_softmax(logits);
    let target = smooth(b, targets, smoothing, classes);
    let product = b.op("Mul", &[&target, &log]);
    let total = b.reduce_all("ReduceSum", &product);
    b.scaled(&total, -weight / batch as f32)
}

/// Kullback-Leibler divergence of the student's softened distribution from the teacher's, the mean over the batch.
fn divergence(b: &mut Builder, [teacher, student]: [&str; 2], temperature: f32, batch: usize, weight: f32) -> String {
    let [p, q] = [teacher, student].map(|x| {
        let x = b.scaled(x, 1.0 / temperature);
        b.log_softmax(&x)
    });
    let (probability, difference) = (b.op("Exp", &[&p]), b.op("Sub", &[&p, &q]));
    let product = b.op("Mul", &[&probability, &difference]);
    let total = b.reduce_all("ReduceSum", &product);
    b.scaled(&total, weight * temperature * temperature / batch as f32)
}

/// Binary cross-entropy of `count` logits and as many targets, the mean.
fn binary_cross_entropy(b: &mut Builder, logits: &str, target: &str, count: usize, weight: f32) -> String {
    // The cross-entropy of two classes each, whose logits are 0 and that of the class: it does not
    // overflow.
    let logit = b.reshape(logits, &[count, 1]);
    let zero = b.op("Sub", &[&logit, &logit]);
    let yes = b.reshape(target, &[count, 1]);
    let one = b.scalar(1.0);
    let no = b.op("Sub", &[&one, &yes]);
    let side_by_side = |b: &mut Builder, x: [&str; 2]| b.op_with("Concat", &x, vec![int_attribute("axis", 1)]);
    let (both, wanted) = (side_by_side(b, [&zero, &logit]), side_by_side(b, [&no, &yes]));
    let log = b.log_softmax(&both);
    let product = b.op("Mul", &[&wanted, &log]);
    let total = b.reduce_all("ReduceSum", &product);
    b.scaled(&total, -weight / count as f32)
}

/// The number of pairs that the rows of a value are, and how wide it is.
fn pairs(typing: &Typing, value: &str) -> Result<[usize; 2]> {
    match shape(typing, value)?[..] {
        [rows, width] if rows % 2 == 0 => Ok([rows / 2, width]),
        [rows, _] => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the file fixes batches of {rows}, an odd number, and its batch axis cannot be opened"),
        )
        .hint("both texts of a pair are in one batch: export the model with an open batch axis")),
        ref found => {
            Err(Error::new(ErrorKind::Usage, format!("`{value}` has the shape {found:?}, and is no vector a text"))
                .hint("⟦pooling⟧ says how states of tokens become one vector"))
        }
    }
}

/// What the squares of a vector's numbers add up to at least, so that one of zeros has a cosine: that of PyTorch.
const LEAST_SQUARE: f32 = 1e-16;

/// The cosines of the rows 2i and 2i + 1 of a matrix, [pairs, 1].
fn cosines(b: &mut Builder, x: &str, [pairs, width]: [usize; 2]) -> String {
    let both = b.reshape(x, &[pairs, 2, width]);
    let [first, second] = [0, 1].map(|k| b.slice(&both, 1, k, k + 1));
    let mut product = |x: &str, y: &str| {
        let product = b.op("Mul", &[x, y]);
        b.reduce("ReduceSum", &product, &[2], false)
    };
    let [across, first, second] = [product(&first, &second), product(&first, &first), product(&second, &second)];
    let [first, second] = [first, second].map(|square| {
        let least = b.scalar(LEAST_SQUARE);
        let square = b.op("Max", &[&square, &least]);
        b.op("Sqrt", &[&square])
    });
    let norms = b.op("Mul", &[&first, &second]);
    b.op("Div", &[&across, &norms])
}

/// (1 - s) t + s / classes.
fn smooth(b: &mut Builder, targets: &str, smoothing: f32, classes: usize) -> String {
    if smoothing == 0.0 {
        return targets.to_string();
    }
    let kept = b.scaled(targets, 1.0 - smoothing);
    let spread = b.scalar(smoothing / classes as f32);
    b.op("Add", &[&kept, &spread])
}

fn squares(b: &mut Builder, x: &str, target: &str, weight: f32) -> String {
    let difference = b.op("Sub", &[x, target]);
    let square = b.op("Mul", &[&difference, &difference]);
    let mean = b.reduce_all("ReduceMean", &square);
    b.scaled(&mean, weight)
}

/// The gradient of the loss with respect to itself.
pub(super) fn seed() -> (String, TensorProto) {
    let name = "loss_seed".to_string();
    (name.clone(), crate::onnx::tensor_from_f32(name, DataType::Float, &[], &[1.0]))
}
