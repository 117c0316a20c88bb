//! Logits instead of probabilities: where an activation stands behind a classifier, losses and teachers take what comes
//! before it. The file that is written keeps it.

use super::loss::Loss;
use crate::anatomy::{Activation, ActivationKind, activation, activations};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, declare_dim, element_types, int_attribute};
use crate::onnx::Model;
use crate::onnx::proto::GraphProto;

/// The model whose outputs [batch, classes] are logits; `None` where they are already. One output behind a Sigmoid
/// becomes the logits of two classes, 0 and its own: their Softmax is what the Sigmoid says of both, and their
/// cross-entropy is binary cross-entropy.
///
/// # Errors
/// [`ErrorKind::Format`] where the graph cannot be sorted afterwards.
pub fn with_logits(model: &Model, typing: &Typing) -> Result<Option<Model>> {
    let found = activations(typing);
    if found.is_empty() {
        return Ok(None);
    }
    let types = element_types(typing.graph);
    let mut b = Builder::new(typing.graph, typing.opset, "logits");
    let mut out = model.clone();
    let graph = out.graph_mut();
    for a in &found {
        let logits = match (types.get(a.logits.as_str()), types.get(a.made.as_str())) {
            (Some(from), Some(to)) if from != to => {
                b.op_with("Cast", &[&a.logits], vec![int_attribute("to", *to as i64)])
            }
            _ => a.logits.clone(),
        };
        let value = match a.next {
            Some(next) => {
                graph.node[next].input.iter_mut().filter(|x| **x == a.made).for_each(|x| *x = logits.clone());
                a.is_binary().then(|| rename(graph, &mut b, &a.output))
            }
            None => {
                rename(graph, &mut b, &a.output);
                Some(logits)
            }
        };
        match value {
            Some(own) if a.is_binary() => {
                let zero = b.op("Sub", &[&own, &own]);
                let both = b.op_with("Concat", &[&zero, &own], vec![int_attribute("axis", 1)]);
                b.op_as("Identity", &[&both], vec![], &a.output);
                graph.output.iter_mut().filter(|o| o.name() == a.output).for_each(|o| declare_dim(o, 1, 2));
            }
            Some(own) => b.op_as("Identity", &[&own], vec![], &a.output),
            None => {}
        }
    }
    b.finish(graph);
    graph.value_info.clear();
    graph::sort(graph)?;
    graph::prune(graph);
    Ok(Some(out))
}

/// Gives a value another name, so that its own is free; returns the new one.
fn rename(graph: &mut GraphProto, b: &mut Builder, value: &str) -> String {
    let fresh = b.names.fresh(&format!("{value}/before"));
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).filter(|x| *x == value).for_each(|x| *x = fresh.clone());
    }
    fresh
}

/// What is said of a model that ends in an activation.
pub fn said_of(a: &Activation) -> String {
    let taken = if a.is_binary() { "as two classes, 0 and 1, " } else { "" };
    format!("ends in {}: its logits are taken {taken}before it, and the file keeps it", a.kind)
}

/// Refuses cross-entropy between classes that do not exclude each other.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub(super) fn check(typing: &Typing, loss: &Loss) -> Result<()> {
    let named = |a: &Activation| loss.output.as_ref().is_none_or(|o| *o == a.output);
    let Some(a) = activation(typing).filter(|a| loss.is_exclusive() && named(a) && is_independent(a)) else {
        return Ok(());
    };
    let what = format!(
        "the model ends in a Sigmoid: each of its {} outputs is a yes or no of its own, and cross-entropy is for \
         classes that exclude each other",
        a.classes
    );
    Err(Error::new(ErrorKind::Usage, what).hint("give ⟦loss⟧ bce, binary cross-entropy of every class by itself"))
}

/// True where every class is a yes or no of its own.
pub fn is_independent(a: &Activation) -> bool {
    a.kind == ActivationKind::Sigmoid && !a.is_binary()
}
