//! What is said of texts that became tokens.

use std::path::PathBuf;

use serde::Serialize;

use super::settings::{LengthReport, PaddingReport, PaddingSide};
use super::targets::LabelsReport;
use super::tokens::{Own, Side};

/// How texts became tokens, for JSON.
#[derive(Clone, Debug, Serialize)]
pub struct TextsReport {
    /// The tokenizer.
    pub tokenizer: PathBuf,
    /// The columns that texts come from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Tokens that a text has at most; none where nothing says so.
    pub max_length: Option<LengthReport>,
    /// Texts that were longer, and are cut.
    pub cut: usize,
    /// Where they are cut.
    pub cut_on: Side,
    /// Texts without a token of their own.
    pub empty: usize,
    /// Tokens that every text has with its padding.
    pub padded_to: usize,
    /// The side that padding is on.
    pub padded_on: Side,
    /// What padding is, where it is known.
    pub padding: Option<PaddingReport>,
    /// The place of the first token, where the model takes places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_position: Option<usize>,
    /// The classes, where a column of labels is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelsReport>,
    /// What the file of the tokenizer says of lengths, and does not count.
    #[serde(skip)]
    pub(super) own: Own,
    /// True where no input tells tokens from padding.
    #[serde(skip)]
    pub(super) unmasked: bool,
}

/// Texts that became arrays: what is said of them, and what is known beside the arrays.
#[derive(Clone, Debug)]
pub(crate) struct Tokenised {
    /// What is said of them.
    pub report: TextsReport,
    /// The names of the model's classes, by the configuration beside it.
    pub(in crate::data) model_classes: Option<Vec<String>>,
    /// Why there are no labels.
    pub(in crate::data) absent: String,
    /// The score of each pair, whose texts are samples of their own: the first ones, and behind them the second ones.
    pub(in crate::data) scores: Vec<f64>,
    /// What speaks against the side that padding is on.
    pub(in crate::data) padding_side: PaddingSide,
    /// What padding is in each array.
    pub(in crate::data) fill: Vec<(String, f32)>,
    /// True where the model takes any number of tokens.
    pub(in crate::data) any_length: bool,
}

impl Tokenised {
    /// The same with as many tokens each.
    pub fn padded_to(&self, tokens: usize) -> Tokenised {
        Tokenised { report: TextsReport { padded_to: tokens, ..self.report.clone() }, ..self.clone() }
    }
}

impl TextsReport {
    /// What is used, and what is assumed, in lines.
    pub fn lines(&self) -> Vec<String> {
        let mut line = format!("tokens by `{}`", self.tokenizer.display());
        if !self.columns.is_empty() {
            let columns: Vec<String> = self.columns.iter().map(|column| format!("`{column}`")).collect();
            line += &format!(" of {}", columns.join(" and "));
        }
        line += &match &self.max_length {
            Some(length) => format!(", at most {} of a text ({})", length.tokens, length.from),
            None => "; nothing says how many the model takes".into(),
        };
        line += &match self.cut {
            0 => ": none is cut".into(),
            cut => format!(": {cut} of the texts are cut"),
        };
        if self.cut > 0 && self.cut_on == Side::Left {
            line += " at their beginnings (truncation_side)";
        }
        if self.empty > 0 {
            line += &format!("; {} have no token but special ones", self.empty);
        }
        let padding = self.padding.as_ref().map(|padding| {
            let token = padding.token.as_ref().map_or(String::new(), |token| format!("`{token}`, "));
            format!(" with {token}{} ({})", padding.id, padding.from)
        });
        line +=
            &format!("; padded on the {} to {}{}", self.padded_on.name(), self.padded_to, padding.unwrap_or_default());
        let mut lines = vec![line];
        lines.extend(self.first_position.map(|first| format!("places of tokens count from {first}")));
        let length = self.own.length.map(|length| format!("cuts at {length}"));
        let pads = self.own.padding.as_ref().map(|_| match self.own.fixed {
            Some(length) => format!("pads to {length}"),
            None => "pads".into(),
        });
        let own: Vec<String> = length.into_iter().chain(pads).collect();
        if !own.is_empty() {
            lines.push(format!(
                "the file of the tokenizer {}, as somebody's last call may have asked for: that counts for nothing",
                own.join(" and ")
            ));
        }
        if self.unmasked {
            lines.push(format!(
                "no input tells tokens from padding: every text has {} tokens, as models without a mask are trained",
                self.padded_to
            ));
        }
        lines.extend(self.labels.as_ref().map(LabelsReport::line));
        lines
    }
}
