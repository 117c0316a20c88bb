//! Shape arithmetic: the small integers (and a few floats and booleans) that graphs compute from shapes.
//!
//! Nothing else of a model is ever computed. Values are kept as f64, which holds every integer that a shape can have;
//! results of floating-point operators are rounded to f32 as the graph would.

mod functions;
mod known;
mod shapes;

pub use functions::evaluate;
pub use known::{ConstValue, LIMIT, Number, constant};
pub(super) use shapes::elements;
pub use shapes::{broadcast_shape, resolve_shape, slice_range, split_lengths};
