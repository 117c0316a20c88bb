//! What a graph chooses by its shapes: the branch of an `If`, and what lists of values are made of.

use std::collections::{BTreeMap, HashMap};

use super::arithmetic::ConstValue;
use super::factors::Dim;

/// What a node chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The branch that is taken where the condition holds, or the other one.
    Branch(bool),
    /// So many parts of one value.
    Parts(usize, Lengths),
    /// A place in a list.
    Place(usize),
}

/// How long the parts of a value are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// All are alike.
    Equal,
    /// An operand says.
    Operand,
    /// As long as this.
    Fixed(Vec<i64>),
}

/// A value in a list.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub dims: Vec<Dim>,
    pub known: Option<ConstValue>,
}

/// What is chosen, and the lists that it is chosen from.
#[derive(Clone, Debug, Default)]
pub(super) struct Choices {
    /// By the first output of the node: what messages call it, and what it chooses.
    pub made: BTreeMap<String, (String, Choice)>,
    /// The lists that values are, by name.
    pub lists: HashMap<String, Vec<Piece>>,
}
