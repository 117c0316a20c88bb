//! Constants: what depends on no input. Whatever tells weights from data asks here.
//!
//! They are found once for a typing, when somebody first asks: many typings only try an image size or a batch. The
//! three evaluators (`axes::arithmetic` for shapes, `descendant::simplify` for weights, the runtime for all else)
//! compute values of constants, and do not ask which values are.

use std::collections::HashSet;

use super::typing::Typing;
use crate::graph::{is_feed, needed};
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

impl<'m> Typing<'m> {
    /// True where a value depends on no input but by shapes, which are assumed: a weight, a known value, or what is
    /// computed from constants alone and is the same in every run.
    pub fn is_constant(&self, value: &str) -> bool {
        self.constants().contains(value)
    }

    /// All constants.
    pub(crate) fn constants(&self) -> &HashSet<&'m str> {
        self.constants.get_or_init(|| self.constants_so_far())
    }

    /// The constants, as far as the graph is typed.
    pub(super) fn constants_so_far(&self) -> HashSet<&'m str> {
        let fed = self.fed();
        let known = self.known.keys().filter(|x| !fed.contains(*x));
        let mut found: HashSet<&str> = self.weights.keys().chain(known).copied().collect();
        for node in &self.graph.node {
            if self.keeps_constant(node, |x| found.contains(x)) {
                found.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
            }
        }
        found
    }

    /// Values that are computed from those which inputs were fed: they are known, and no constants.
    pub(crate) fn fed(&self) -> &HashSet<&'m str> {
        self.fed.get_or_init(|| {
            let mut found = HashSet::new();
            // Most models are fed nothing.
            if !self.graph.node.iter().any(is_feed) {
                return found;
            }
            for node in &self.graph.node {
                let of_values = !matches!(node.op_type(), "Shape" | "Size");
                if is_feed(node) || (of_values && needed(node).any(|x| found.contains(x))) {
                    found.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
                }
            }
            found
        })
    }

    /// True where a node makes constants of operands that are `constant`, whatever that means to whoever asks. An
    /// operator that is not known may draw random numbers, and what an input is fed is none.
    pub(crate) fn keeps_constant(&self, node: &NodeProto, constant: impl Fn(&str) -> bool) -> bool {
        needed(node).all(constant) && ops::of(node).is_known() && !self.is_random(node) && !is_feed(node)
    }

    /// True where the results of a node differ from one run to the next: it draws random numbers. So does a Dropout
    /// that says it is being trained (its third input, since operator set 12) and drops some share (its second).
    pub(crate) fn is_random(&self, node: &NodeProto) -> bool {
        let says = |j: usize, default: bool| match node.input.get(j).filter(|x| !x.is_empty()) {
            Some(x) => self.known.get(x.as_str()).is_none_or(|k| k.data.iter().any(|&v| v != 0.0)),
            None => default,
        };
        ops::of(node).is(Mark::Random) || node.op_type() == "Dropout" && says(2, false) && says(1, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node;
    use crate::onnx::proto::{GraphProto, ModelProto};
    use crate::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw, tensor_info};

    #[test]
    fn what_is_computed_from_weights_is_constant_and_what_is_drawn_at_random_is_not() {
        let flag = |name: &str, v: u8| tensor_from_raw(name, DataType::Bool, &[], vec![v].into());
        let share = |name: &str, v: f32| tensor_from_f32(name.to_string(), DataType::Float, &[], &[v]);
        let model = Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(4)])],
                initializer: vec![
                    tensor_from_f32("w", DataType::Float, &[4], &[1.0, 2.0, 3.0, 4.0]),
                    flag("on", 1),
                    flag("off", 0),
                    share("half", 0.5),
                    share("none", 0.0),
                ],
                node: vec![
                    node("Neg", &["w"], &["computed"], vec![]),
                    node("Shape", &["x"], &["shape"], vec![]),
                    node("Add", &["x", "w"], &["sum"], vec![]),
                    node("Cast", &["sum"], &["mode"], vec![crate::graph::int_attribute("to", DataType::Bool as i64)]),
                    node("Dropout", &["w", "half", "off"], &["kept"], vec![]),
                    node("Dropout", &["w"], &["old"], vec![]),
                    node("Dropout", &["w", "none", "on"], &["whole"], vec![]),
                    node("Dropout", &["w", "half", "on"], &["dropped"], vec![]),
                    node("Dropout", &["w", "", "on"], &["half dropped"], vec![]),
                    node("Dropout", &["half", "half", "on"], &["scalar"], vec![]),
                    node("Dropout", &["w", "half", "mode"], &["perhaps"], vec![]),
                    node("Neg", &["dropped"], &["behind"], vec![]),
                ],
                ..Default::default()
            }),
            ..Default::default()
        });
        let typing = Typing::with(&model, Default::default()).unwrap();
        for value in ["w", "computed", "shape", "kept", "old", "whole"] {
            assert!(typing.is_constant(value), "{value}");
        }
        for value in ["x", "sum", "mode", "dropped", "half dropped", "scalar", "perhaps", "behind", ""] {
            assert!(!typing.is_constant(value), "{value}");
            assert!(value == "x" || !typing.known.contains_key(value), "{value}");
        }
        // They have no inputs, or none that says so.
        let drawn: Vec<&str> = ops::marked(Mark::Random).map(|op| op.name).collect();
        assert!(drawn.contains(&"RandomNormal") && drawn.contains(&"Bernoulli"), "{drawn:?}");
        for op in drawn {
            assert!(!typing.keeps_constant(&node(op, &[], &["y"], vec![]), |_| true), "{op}");
        }
        assert!(typing.keeps_constant(&node("Constant", &[], &["y"], vec![]), |_| true));
    }
}
