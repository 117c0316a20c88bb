//! One vector a sample out of the states of its tokens. Real tokens count, and padding does not.

use super::tokens::{sequence_axis, token_axis};
use crate::axes::{Typing, carry_value_info};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, element_types, int_attribute};
use crate::onnx::{DataType, Model, tensor_info};

/// The output that [`pooled`] gives a model, as those who export encoders of sentences call it.
pub const EMBEDDING: &str = "sentence_embedding";

/// The operator set that places of tokens are counted with (CumSum).
const COUNTED_SINCE: i64 = 11;

/// How the tokens of an encoder become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The first token.
    ClassToken,
    /// The mean of the tokens; of a picture, of its patches.
    Mean,
    /// The last token, which alone has seen all others where attention is causal.
    Last,
}

impl Pooling {
    /// As flags name it.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::ClassToken => "class-token",
            Pooling::Mean => "mean",
            Pooling::Last => "last",
        }
    }

    /// What is taken, in words.
    fn words(self) -> &'static str {
        match self {
            Pooling::ClassToken => "first token",
            Pooling::Mean => "mean",
            Pooling::Last => "last token",
        }
    }

    /// Adds the nodes that pool `states` [samples, tokens, width] to [samples, width]. Padding is where `mask`
    /// [samples, tokens] is zero; without a mask all tokens are real. A sample without a real token becomes zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for the first or last of masked tokens before operator set 11.
    pub(crate) fn over(self, b: &mut Builder, states: &str, mask: Option<&str>) -> Result<String> {
        let Some(mask) = mask else {
            let place = match self {
                Pooling::Mean => return Ok(b.reduce("ReduceMean", states, &[1], false)),
                Pooling::ClassToken => b.slice(states, 1, 0, 1),
                Pooling::Last => b.slice(states, 1, -1, i64::MAX),
            };
            return Ok(b.reduce("ReduceSum", &place, &[1], false));
        };
        let to_float = vec![int_attribute("to", b.kind as i64)];
        let real = b.op_with("Cast", &[mask], to_float.clone());
        let count = b.reduce("ReduceSum", &real, &[1], true);
        let one = b.scalar(1.0);
        let weight = match self {
            Pooling::Mean => {
                let count = b.op("Max", &[&count, &one]);
                b.op("Div", &[&real, &count])
            }
            _ if b.opset < COUNTED_SINCE => {
                let what = format!("the {} cannot be told from padding in operator set {}", self.words(), b.opset);
                return Err(Error::new(ErrorKind::Unsupported, what).hint(format!(
                    "export the model with operator set {COUNTED_SINCE} or later, or pool by the mean"
                )));
            }
            Pooling::ClassToken | Pooling::Last => {
                let axis = b.integers(&[], &[1]);
                let place = b.op("CumSum", &[&real, &axis]);
                let wanted = if self == Pooling::Last { count } else { one };
                let is_wanted = b.op("Equal", &[&place, &wanted]);
                let is_wanted = b.op_with("Cast", &[&is_wanted], to_float);
                b.op("Mul", &[&is_wanted, &real])
            }
        };
        let shape = b.ints(&[0, 0, 1]);
        let weight = b.op("Reshape", &[&weight, &shape]);
        let weighted = b.op("Mul", &[states, &weight]);
        Ok(b.reduce("ReduceSum", &weighted, &[1], false))
    }
}

/// A model whose one output is the [`EMBEDDING`] of a sample: its states of tokens, pooled over the real ones.
#[derive(Clone, Debug)]
pub struct Pooled {
    /// The model.
    pub model: Model,
    /// What was made of what.
    pub note: String,
}

/// Pools the states of tokens that a model gives, where `ids` takes tokens and `mask` tells them from padding. None
/// for a model that gives the [`EMBEDDING`] already.
///
/// # Errors
/// [`ErrorKind::Usage`] where no output or several have states of tokens, [`ErrorKind::Unsupported`] for the first or
/// last of masked tokens before operator set 11, and those of typing.
pub fn pooled(model: &Model, pooling: Pooling, ids: &str, mask: Option<&str>) -> Result<Option<Pooled>> {
    let typing = Typing::new(model)?;
    let tokens = sequence_axis(&typing, ids);
    let rank = |name: &str| typing.dims.get(name).map_or(0, Vec::len);
    let names: Vec<&str> = model.graph().output.iter().map(|o| o.name()).collect();
    let is_states = |name: &&str| rank(name) == 3 && tokens.is_some() && token_axis(&typing, name) == tokens;
    let found: Vec<&str> = names.iter().copied().filter(is_states).collect();
    let states = match found[..] {
        _ if names.contains(&EMBEDDING) => return Ok(None),
        [states] => states,
        [] => {
            let what = format!("no output has states of tokens to pool: {}", names.join(", "));
            return Err(
                Error::new(ErrorKind::Usage, what).hint("leave ⟦pooling⟧ out, or name other outputs with ⟦of⟧ NAME")
            );
        }
        _ => {
            let what = format!("several outputs have states of tokens: {}", found.join(", "));
            return Err(Error::new(ErrorKind::Usage, what).hint("name the one to pool with ⟦of⟧ NAME"));
        }
    };
    if typing.dims.contains_key(EMBEDDING) {
        bail!(
            Unsupported,
            "the model has a value called `{EMBEDDING}`, which is no output, and pooling needs the name"
        );
    }
    let width = typing.shape(states).and_then(|shape| shape.last().copied());
    let kind = element_types(model.graph()).get(states).copied().unwrap_or(DataType::Float);
    let mut b = Builder::new(model.graph(), typing.opset, "pooling");
    b.kind = kind;
    let vector = pooling.over(&mut b, states, mask)?;
    b.op_as("Identity", &[&vector], vec![], EMBEDDING);
    let mut out = model.clone();
    let graph = out.graph_mut();
    b.finish(graph);
    graph.output = vec![tensor_info(EMBEDDING, kind, &[None, width])];
    graph::sort(graph)?;
    graph::prune(graph);
    carry_value_info(model, &mut out);
    let over = if mask.is_some() { "real tokens" } else { "tokens" };
    let left_out: Vec<String> = names.iter().filter(|name| **name != states).map(|name| format!("`{name}`")).collect();
    let left_out = match left_out.is_empty() {
        true => String::new(),
        false => format!("; {} left out", left_out.join(", ")),
    };
    let note = format!("`{EMBEDDING}` is the {} of `{states}` over {over}{left_out}", pooling.words());
    Ok(Some(Pooled { model: out, note }))
}
