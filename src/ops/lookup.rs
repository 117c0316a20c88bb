//! Where the row of an operator is found.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::row::{Mark, Op, ShapeRule};
use super::table::TABLE;
use crate::onnx::proto::NodeProto;

/// The row of the operators that have none.
static OTHER: Op = Op::new("", "", ShapeRule::Own);

static BY_NAME: LazyLock<HashMap<&str, Vec<&Op>>> = LazyLock::new(|| {
    let mut rows: HashMap<&str, Vec<&Op>> = HashMap::with_capacity(TABLE.len());
    for op in TABLE {
        rows.entry(op.name).or_default().push(op);
    }
    rows
});

/// What is known of a node's operator. One of a domain that has no such operator is taken for its namesake.
pub fn of(node: &NodeProto) -> &'static Op {
    let rows = BY_NAME.get(node.op_type()).map_or(&[][..], Vec::as_slice);
    rows.iter().find(|op| op.is_of(node)).or(rows.first()).copied().unwrap_or(&OTHER)
}

/// What is known of the operator of this name.
pub fn named(name: &str) -> &'static Op {
    BY_NAME.get(name).and_then(|rows| rows.first()).copied().unwrap_or(&OTHER)
}

/// The operators that are marked so, in the order of the table.
pub fn marked(mark: Mark) -> impl Iterator<Item = &'static Op> {
    TABLE.iter().filter(move |op| op.is(mark))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::graph::node;
    use crate::ops::row::Slot;

    #[test]
    fn an_operator_has_one_row() {
        let mut seen = HashSet::new();
        for op in TABLE {
            assert!(seen.insert((op.domain, op.name)), "{} stands there twice", op.name);
        }
    }

    #[test]
    fn a_row_is_found_by_domain_and_by_name() {
        let in_domain =
            |domain: &str, name: &str| NodeProto { domain: Some(domain.into()), ..node(name, &["x"], &["y"], vec![]) };
        assert_eq!(of(&in_domain("", "Attention")).domain, "");
        assert_eq!(of(&in_domain("ai.onnx", "Attention")).domain, "");
        assert_eq!(of(&in_domain("com.microsoft", "Attention")).domain, "com.microsoft");
        let namesake = in_domain("com.example", "LayerNormalization");
        assert_eq!(of(&namesake).shape, ShapeRule::Broadcast);
        assert!(!of(&namesake).is_of(&namesake));
        assert_eq!(of(&in_domain("", "Unheard")).marks, &[]);
    }

    #[test]
    fn slots_behind_the_last_are_alike() {
        let attention = named("MultiHeadAttention");
        assert_eq!([2, 3, 4, 9].map(|j| attention.slot(j)), [Slot::Data, Slot::Bias, Slot::Heads, Slot::Heads]);
        assert_eq!(named("Reshape").slot(1), Slot::Sizes);
        assert_eq!(named("Reshape").slot(2), Slot::Data);
    }
}
