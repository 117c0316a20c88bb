//! Texts as samples: read from files of lines or tables, and cut into the tokens that a model's inputs take.

mod csv;
mod inputs;
mod places;
mod read;
mod report;
mod scale;
mod settings;
mod source;
mod targets;
#[cfg(feature = "text")]
mod tokenizer;
#[cfg(not(feature = "text"))]
#[path = "no_tokenizer.rs"]
mod tokenizer;
mod tokens;

pub(super) use inputs::Takes;
pub(crate) use inputs::token_inputs;
pub use places::PlaceTable;
pub(crate) use places::longest_text;
pub use report::TextsReport;
pub(crate) use report::Tokenised;
pub use scale::{Scale, ScoresReport};
pub(super) use settings::on_the_left;
pub use settings::{LengthReport, PaddingReport};
pub use source::Texts;
pub use targets::{LabelsBy, LabelsReport, Target};
pub use tokens::Side;
