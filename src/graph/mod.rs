//! An editable graph over the file: who makes a value, who uses it, attributes of nodes, and the edits that every later
//! stage is made of: pruning what nothing needs, cutting out submodels, and new nodes and initializers under fresh
//! names.

mod activations;
mod apart;
mod axis;
mod batch;
mod builder;
mod copies;
mod dequantize;
mod feed;
mod functions;
mod half_precision;
mod input;
mod links;
mod names;
mod nodes;
mod order;
mod prepare;
mod splice;
mod subgraphs;
mod types;
mod unfold;
mod values;
pub mod walk;

pub use apart::name_apart;
pub use axis::{nearest_axis, nearest_border, resolve_axis};
pub use batch::{add_batch_axis, has_added_batch, remove_batch_axis};
pub(crate) use builder::Builder;
pub use dequantize::dequantize;
pub(crate) use feed::axes_mut;
pub use feed::{Length, axis_name, decides, declared_axes, declared_inputs, feed, is_feed, take_feeds_back};
pub(crate) use half_precision::{Far, check_known, clamp, clipped, split_half_gemms};
pub use half_precision::{FloatType, cast, convert, convert_but};
pub(crate) use input::listed;
pub use input::{CutAway, ImageInput, SampleInputs, Values, check_output, cut, is_integer, read_own_axes};
pub use links::Links;
pub use names::Names;
pub use nodes::{
    Attributes, float_attribute, floats_attribute, int_attribute, ints_attribute, is_standard, node, string_attribute,
};
pub(crate) use order::sort;
pub use order::{fix_lengths, forget_shapes, prune};
pub use prepare::{prepare, prepare_written};
pub use splice::splice;
pub use subgraphs::{needed, rename, replace_use};
pub use types::{element_types, lift_constants, output_type, widen};
pub(crate) use unfold::int8_tensors;
pub use unfold::{LARGEST, LEAST, MIDDLE, Unfolded, int8_dtype, unfold};
pub use values::{data_inputs, declare_dim, declared_dims, declared_type};
