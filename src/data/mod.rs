//! Images for calibration and evaluation: found, decoded, preprocessed and handed out in batches.
//!
//! [`ImageSource`] opens a folder of pictures, an IDX file or a NumPy array. [`Preprocess`] is the evaluation transform
//! (resize, centre crop, normalise) that the model was trained for. [`Loader`] joins the two and streams batches from a
//! background thread, so that the inference runtime never waits and memory does not grow with the number of pictures.

mod idx;
mod loader;
mod preprocess;
mod source;

pub use loader::{Batch, Batches, InputShape, Loader};
pub use preprocess::{Interpolation, Layout, Preprocess, PreprocessFlags, Resize};
pub use source::{ImageSource, Skipped};
