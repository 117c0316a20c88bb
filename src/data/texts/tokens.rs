//! Tokens of texts, whoever made them.

use serde::{Deserialize, Serialize};

/// The tokens of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// Their numbers in the vocabulary.
    pub ids: Vec<u32>,
    /// Which text of a pair they are of.
    pub types: Vec<u32>,
    /// Which of them the tokenizer added to the text.
    pub special: Vec<bool>,
}

/// The tokens of texts.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenRows {
    /// A row for each text, special tokens included.
    pub rows: Vec<Row>,
    /// Texts that were longer.
    pub cut: usize,
}

/// An end of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Its beginning.
    Left,
    /// Its end.
    #[default]
    Right,
}

impl Side {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Side::Left => "left",
            Side::Right => "right",
        }
    }
}

/// What the file of a tokenizer says of lengths, which may be what somebody's last call asked for, and counts for
/// nothing; and on which sides, which counts where its configuration is silent.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// Where it cuts.
    pub length: Option<usize>,
    /// On which side.
    pub cuts: Option<Side>,
    /// Whether it pads, and with what.
    pub padding: Option<(u32, String)>,
    /// The length that it pads to.
    pub fixed: Option<usize>,
    /// On which side.
    pub pads: Option<Side>,
}
