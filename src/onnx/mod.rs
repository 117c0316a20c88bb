//! The file: ONNX models decoded from a memory map and written back.
//!
//! Decoding copies no tensor: the payload of every initializer is a slice of the mapped file ([`Model::open`]), so
//! opening a model touches only the pages that hold its structure. Encoding streams the same slices to the output
//! ([`Model::write`]). External data is resolved inside the model's own folder, and every payload is checked against
//! its dims before anybody may use it.

mod bounds;
mod external;
mod model;
#[allow(missing_docs, clippy::all)]
pub mod proto;
mod source;
mod subgraphs;
mod tensor;
mod write;

pub use external::ExternalLinks;
pub(crate) use model::Payload;
pub use model::{FedValue, Like, Model, node_label};
pub use source::sha256;
pub use subgraphs::{subgraphs, subgraphs_mut, with_inner_nodes};
pub use tensor::{
    DataType, data_type, is_float, is_uniform, tensor_from_f32, tensor_from_i64, tensor_from_raw, tensor_info,
};
pub use tensor::{element_count, element_size, payload, squares_along, to_f32, to_i64};
pub use write::{encoded_len, replace_file};
