//! Images for calibration, evaluation and training: found, decoded, transformed and handed out in batches.
//!
//! [`ImageSource`] opens a folder of pictures or a file of images. [`Preprocess`] is the evaluation transform (resize, centre
//! crop, normalise) that the model was trained for. [`Loader`] joins the two and streams batches from a background thread, so
//! that the inference runtime never waits and memory does not grow with the number of pictures.
//!
//! For training, a [`Dataset`] is a source with labels and a split, an [`Augmentation`] says which random transforms come
//! before normalisation, and [`TrainingLoader`] streams shuffled, augmented and mixed batches.

mod augment;
mod cifar;
mod classes;
mod configs;
mod idx;
mod input;
mod jpeg;
mod labelled;
mod loader;
mod mix;
mod numpy;
mod operations;
mod parquet;
mod pictures;
mod preprocess;
mod random;
mod source;
mod training;
mod webdataset;

pub use augment::{Augmentation, Crop, EraseMode, RandAugment};
pub use classes::{ClassesBy, Correspondence, Matched, class_names};
pub use input::{InputReport, declare, fix_size, takes_size};
pub use labelled::{Dataset, DatasetOptions, Split};
pub use loader::{Batch, Batches, InputShape, Loader};
pub use parquet::codecs as parquet_codecs;
pub use preprocess::{ChannelOrder, Interpolation, Layout, Preprocess, PreprocessFlags, Resize, View};
pub use source::{ImageSource, Skipped};
pub use training::{TrainingBatch, TrainingBatches, TrainingLoader, TrainingOptions};
