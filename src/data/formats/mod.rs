//! Files of images: a format is one file that implements [`Container`](super::item::Container), and `open` knows them
//! by their first bytes.

mod arrays;
mod cifar;
mod columns;
mod files;
mod find;
mod float16;
mod idx;
mod numpy;
mod open;
mod parquet;
mod pixels;
mod webdataset;

pub(crate) use arrays::ArrayFile;
pub(super) use columns::{class_names, column_names, text_column, value_column};
pub(super) use files::Files;
pub(super) use find::{Found, find, is_folder};
pub(super) use float16::Float16;
pub(super) use open::Opener;
pub use parquet::codecs as parquet_codecs;
