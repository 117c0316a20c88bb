//! The two products of an attention, and the head dimensions that they sum over and make.

use crate::anatomy::{Attention, in_usual_order};
use crate::axes::{Factor, Typing};
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

/// The products of an attention that is not fused, and the dimensions that they sum over and make.
pub(super) struct HeadFactors {
    pub scores: usize,
    pub mix: usize,
    /// Of queries and keys, and of values.
    pub factors: [Factor; 2],
}

/// Finds them; `None` where heads are mixed or shared, or where a dimension is made of parts (a rotation).
pub(super) fn head_factors(typing: &Typing, layer: &Attention) -> Option<HeadFactors> {
    let [softmax] = layer.softmax[..] else { return None };
    if typing.fused.contains_key(&softmax) || !layer.head_mixers.is_empty() || !layer.queries_per_kv_head.is_empty() {
        return None;
    }
    let node = &typing.graph.node[softmax];
    if !in_usual_order(typing, node) {
        return None;
    }
    let (scores, mix) =
        (producing_contraction(typing, node.input.first()?)?, consuming_contraction(typing, node.output.first()?)?);
    let summed = &typing.contractions.iter().find(|c| c.node == scores)?.summed;
    match (&typing.factors.leaves(summed)[..], &typing.factors.leaves(&layer.head_dim)[..]) {
        (&[q], &[v]) => Some(HeadFactors { scores, mix, factors: [q, v] }),
        _ => None,
    }
}

/// The product of two computed values that a value is made of, by operators that keep its elements apart. A mask that
/// is made from an input is computed, too, but from no product.
fn producing_contraction<'m>(typing: &Typing<'m>, value: &str) -> Option<usize> {
    // Shapes that are computed are known, and no data.
    let data = |x: &&String| !x.is_empty() && !typing.is_constant(x) && !typing.known.contains_key(x.as_str());
    let operand = |node: &'m NodeProto| {
        let computed: Vec<&str> = node.input.iter().filter(data).map(String::as_str).collect();
        if let [only] = computed[..] {
            return Some(only);
        }
        let mut of_products = computed.into_iter().filter(|x| producing_contraction(typing, x).is_some());
        of_products.next().filter(|_| of_products.next().is_none())
    };
    for value in typing.links().follow_back(value, operand).take(32) {
        let k = typing.links().maker(value)?;
        let node = &typing.graph.node[k];
        if typing.contractions.iter().any(|c| c.node == k) {
            return node.input.iter().all(|x| !typing.is_constant(x)).then_some(k);
        }
        let op = ops::of(node);
        if !op.is(Mark::Arithmetic) && !op.is(Mark::Heads) && op.name != "Where" {
            return None;
        }
    }
    None
}

/// The product with another computed value that a value goes into.
fn consuming_contraction(typing: &Typing, value: &str) -> Option<usize> {
    for k in typing.links().follow(value, |node| !["Shape", "Size"].contains(&node.op_type())).take(16) {
        let node = &typing.graph.node[k];
        if typing.contractions.iter().any(|c| c.node == k) {
            return Some(k);
        }
        if !ops::of(node).is(Mark::Heads) && node.op_type() != "Dropout" {
            return None;
        }
    }
    None
}
