//! What happens to pixels between the file and the model.

mod augment;
mod draw;
pub(super) mod mixup;
mod ops;
mod preprocess;
mod rand_augment;

pub use augment::{Augmentation, Crop, EraseMode};
pub(super) use preprocess::BYTES;
pub use preprocess::{ChannelOrder, InputTransform, Interpolation, Preprocess, PreprocessFlags, Resize};
pub use rand_augment::RandAugment;
