//! Images for calibration, evaluation and training: found, decoded, transformed and handed out in batches.
//!
//! [`ImageSource`] opens a folder of pictures or a file of images. [`Preprocess`] is the evaluation transform (resize,
//! centre crop, normalise) that the model was trained for. [`Loader`] joins the two and streams batches from a
//! background thread, so that the inference runtime never waits and memory does not grow with the number of pictures.
//!
//! For training, a [`Dataset`] is a source with labels and a split, an [`Augmentation`] says which random transforms
//! come before normalisation, and [`TrainingLoader`] streams shuffled, augmented and mixed batches.

mod arrays;
mod beside;
mod classes;
mod configs;
mod dataset;
mod decode;
mod feeds;
mod folders;
mod formats;
mod input;
mod item;
mod jpeg;
mod limits;
mod loader;
mod random;
mod rows;
mod samples;
mod shape;
mod source;
mod tables;
#[cfg(test)]
mod testing;
mod texts;
mod training_loader;
mod transforms;

pub(crate) use arrays::check_names;
pub use arrays::{ArrayReport, Arrays, ArraysReport, TokensReport};
pub(crate) use beside::{folders as folders_beside, json as json_beside};
pub use classes::{ClassesBy, Correspondence, Matched, class_names};
pub use dataset::{Dataset, DatasetOptions, Split};
pub(crate) use feeds::inputs_in_words;
pub use feeds::{FedReport, Feed};
pub(crate) use formats::ArrayFile;
pub use formats::parquet_codecs;
pub use input::{InputReport, declare, fix_size, takes_size};
pub use loader::{Batch, Batches, Loader};
pub use rows::{Place, Rows};
pub use samples::{Inputs, Samples};
pub use shape::{ImageLayout, InputShape};
pub use source::{ImageSource, Skipped};
pub use texts::{
    LabelsBy, LabelsReport, LengthReport, PaddingReport, PlaceTable, Scale, ScoresReport, Side, Target, Texts,
    TextsReport,
};
pub(crate) use texts::{Tokenised, longest_text, token_inputs};
pub use training_loader::{TrainingBatch, TrainingBatches, TrainingLoader, TrainingOptions};
pub use transforms::{
    Augmentation, ChannelOrder, Crop, EraseMode, InputTransform, Interpolation, Preprocess, PreprocessFlags,
    RandAugment, Resize,
};
