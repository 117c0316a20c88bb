//! Limits beyond which a graph is no network: of its values, and of lists in it.

/// Elements of a value, an empty dimension counted as one: far more than any model has. Beyond it sizes are not
/// computed with.
pub(super) const MAX_ELEMENTS: usize = 1 << 40;
/// Dimensions of a value, and axes in a list.
pub(crate) const MAX_RANK: usize = 64;
