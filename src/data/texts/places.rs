//! The table of places of a text model: how many tokens it can tell apart.

use super::inputs::{Places, Takes};
use crate::onnx::Model;

/// The learned table in which a text model looks up the place of each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceTable {
    /// The initializer.
    pub name: String,
    /// Its rows.
    pub rows: usize,
    /// True where the graph counts the places of real tokens by their ids, as RoBERTa does; then rows before the first
    /// place stand for padding.
    pub counted: bool,
    /// Rows before that of the first place.
    pub first: usize,
    /// The input that says the place of each token, where there is one.
    pub by: Option<String>,
}

impl PlaceTable {
    /// The table of a model that takes token ids; `None` where it takes none, or computes its places.
    pub fn of(model: &Model) -> Option<PlaceTable> {
        let takes = Takes::new(model).ok()?;
        let (Places { rows, counted }, name) = takes.places.zip(takes.table)?;
        // Those that are counted begin behind the number of padding.
        let first = if counted { 1 + takes.pad.unwrap_or(0) } else { 0 };
        Some(PlaceTable { name, rows, counted, first, by: takes.positions })
    }

    /// Tokens that it has places for.
    pub fn places(&self) -> usize {
        self.rows.saturating_sub(self.first)
    }
}

/// Tokens of a text at most, where the table of places or the declared axis says it.
pub(crate) fn longest_text(model: &Model) -> Option<usize> {
    let table = PlaceTable::of(model).map(|table| table.places());
    let fixed = Takes::new(model).ok().and_then(|takes| takes.fixed);
    table.into_iter().chain(fixed).min()
}
