//! Which weights are trained, which are not and why, and how deep in the network each one lies.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use wildmatch::WildMatch;

use crate::anatomy::{Anatomy, WeightKind, weight_kinds};
use crate::axes::{Typing, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::FEED_PREFIX;
use crate::onnx::proto::TensorProto;
use crate::onnx::{element_count, is_float};

/// A weight that training changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainedWeight {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The part that it plays.
    pub kind: WeightKind,
    /// True where weight decay applies: operands of contractions of two or more axes. Norms, biases, tokens and
    /// positions have none.
    pub decays: bool,
    /// 0 before the first layer, 1 to n in the layers, n + 1 behind the last.
    pub depth: usize,
}

/// A weight that training leaves as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrozenWeight {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: String,
}

/// All floating-point weights of a model, sorted out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Selection {
    /// Weights that are trained, in the order of the file.
    pub trained: Vec<TrainedWeight>,
    /// Weights that are not.
    pub frozen: Vec<FrozenWeight>,
    /// Layers of the model.
    pub layers: usize,
}

impl Selection {
    /// Sorts the weights of a typed model by the part that they play. Patterns (`*` and `?`) override: `train` adds
    /// weights, `freeze` takes weights away and wins.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a pattern that no weight matches, and where nothing is left to train.
    pub fn new(typing: &Typing, train: &[String], freeze: &[String]) -> Result<Selection> {
        let kinds = weight_kinds(typing);
        let (depths, layers) = depths(typing);
        let patterns = |list: &[String]| list.iter().map(|p| WildMatch::new(p)).collect::<Vec<_>>();
        let (train_patterns, freeze_patterns) = (patterns(train), patterns(freeze));
        let mut out = Selection { layers, ..Selection::default() };
        for tensor in &typing.graph.initializer {
            let name = tensor.name();
            let Some(&kind) = kinds.get(name).filter(|_| !name.starts_with(FEED_PREFIX)) else { continue };
            let shape = tensor.shape();
            let asked = train_patterns.iter().any(|p| p.matches(name));
            let frozen = freeze_patterns.iter().any(|p| p.matches(name));
            let reason = if frozen {
                Some("⟦freeze⟧".to_string())
            } else if !is_trainable(tensor) && !is_bias_of_one(typing, tensor) {
                Some("a scalar".to_string())
            } else if kind == WeightKind::Constant && !asked {
                Some("a constant: mask, rotary or distance table, statistic or preprocessing".to_string())
            } else {
                None
            };
            match reason {
                Some(reason) => out.frozen.push(FrozenWeight { name: name.into(), shape, reason }),
                None => out.trained.push(TrainedWeight {
                    name: name.into(),
                    decays: kind == WeightKind::Contraction && shape.len() > 1,
                    shape,
                    kind,
                    depth: depths.get(name).copied().unwrap_or(0),
                }),
            }
        }
        for (flag, list, matchers) in [("⟦train⟧", train, &train_patterns), ("⟦freeze⟧", freeze, &freeze_patterns)]
        {
            for (text, pattern) in list.iter().zip(matchers) {
                if !kinds.keys().any(|name| pattern.matches(name)) {
                    return Err(Error::new(ErrorKind::Usage, format!("no weight matches `{flag} {text}`"))
                        .hint("`offshoot tune ⟦dry-run⟧` lists the weights; * and ? stand for any characters"));
                }
            }
        }
        if out.trained.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no weight is left to train").hint("narrow ⟦freeze⟧"));
        }
        Ok(out)
    }

    /// Names of the trained weights.
    pub fn names(&self) -> HashSet<String> {
        self.trained.iter().map(|w| w.name.clone()).collect()
    }

    /// Elements that are trained.
    pub fn parameters(&self) -> usize {
        self.trained.iter().map(|w| w.shape.iter().product::<usize>()).sum()
    }
}

/// True for the bias of a contraction that makes one channel, as a classifier behind one Sigmoid has it: no scalar,
/// though it has one element.
fn is_bias_of_one(typing: &Typing, tensor: &TensorProto) -> bool {
    let mut uses = typing.uses.iter().filter(|u| u.name == tensor.name()).peekable();
    let is_bias = |u: &Use| u.input == 2 && matches!(typing.graph.node[u.node].op_type(), "Gemm" | "Conv");
    is_float(tensor) && tensor.dims == [1] && uses.peek().is_some() && uses.all(is_bias)
}

/// Where layers begin, and where the last one ends, as places in the order of nodes.
pub(super) struct Layers {
    starts: Vec<usize>,
    end: usize,
}

impl Layers {
    /// Finds the layers; none in a graph without any.
    pub(super) fn new(typing: &Typing) -> Layers {
        let Ok(anatomy) = Anatomy::new(typing) else { return Layers { starts: Vec::new(), end: usize::MAX } };
        let links = typing.links();
        let position = |v: &Option<String>| v.as_deref().and_then(|v| links.maker(v));
        Layers {
            starts: anatomy.layers.iter().map(|l| position(&l.residual_in).unwrap_or(0)).collect(),
            end: anatomy.layers.last().and_then(|l| position(&l.residual_out)).unwrap_or(usize::MAX),
        }
    }

    /// The layer that a node lies in: 0 before the first one, 1 to n in the layers, n + 1 behind the last.
    pub(super) fn depth(&self, node: usize) -> usize {
        match node > self.end {
            true => self.starts.len() + 1,
            false => self.starts.iter().filter(|&&s| s < node).count(),
        }
    }
}

/// Depth of every weight, by where it first meets the data, and the number of layers.
fn depths<'m>(typing: &Typing<'m>) -> (HashMap<&'m str, usize>, usize) {
    let layers = Layers::new(typing);
    let links = typing.links();
    let mut depths = HashMap::new();
    for &name in typing.weights.keys() {
        // Through everything that is computed from weights alone.
        let is_data = |k: usize| !links.outputs(k).any(|o| typing.is_constant(o));
        let first = links.downstream([name]).find(|&k| is_data(k));
        depths.insert(name, layers.depth(first.unwrap_or(usize::MAX)));
    }
    (depths, layers.starts.len())
}

/// Weights that training may change as far as their type goes: floating-point tensors of more than one element.
pub fn is_trainable(t: &TensorProto) -> bool {
    is_float(t) && element_count(t).is_ok_and(|n| n > 1)
}
