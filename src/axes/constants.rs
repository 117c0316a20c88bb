//! Constants: what depends on no input. Whatever tells weights from data asks here.
//!
//! They are noted while the graph is typed, node by node. The three evaluators (`axes::arithmetic` for shapes,
//! `descendant::simplify` for weights, the runtime for all else) compute values of constants, and do not ask which
//! values are.

use std::collections::HashSet;

use super::Typing;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

impl<'m> Typing<'m> {
    /// True where a value depends on no input but by shapes, which are assumed: a weight, a known value, or what is
    /// computed from constants alone.
    pub fn is_constant(&self, value: &str) -> bool {
        self.constants.contains(value)
    }

    /// All constants.
    pub(crate) fn constants(&self) -> &HashSet<&'m str> {
        &self.constants
    }

    /// True where a node makes constants of operands that are `constant`, whatever that means to whoever asks.
    pub(crate) fn keeps_constant(&self, node: &NodeProto, constant: impl Fn(&str) -> bool) -> bool {
        !ops::of(node).is(Mark::Random) && node.input.iter().all(|x| x.is_empty() || constant(x))
    }

    /// Notes the constants among the results of a node that was typed.
    pub(super) fn note_constants(&mut self, node: &'m NodeProto) {
        let follows = self.keeps_constant(node, |x| self.is_constant(x));
        for o in node.output.iter().filter(|o| !o.is_empty()) {
            if follows || self.known.contains_key(o.as_str()) {
                self.constants.insert(o);
            }
        }
    }
}
