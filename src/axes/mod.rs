//! Axis typing: what every dimension of every value is made of.
//!
//! Exporters write the same network in dozens of ways; what they cannot change is which axis is contracted with which.
//! One walk over the graph types every dimension as a product of [factors](factors::Factors). An operator is one rule
//! (`rules`) that says which of its dimensions are the same and which are parts of others. Shape arithmetic is
//! evaluated on the way for one assumed input; nothing else is computed, and no weight is read but the first elements
//! of those that are used several times. With the factor of an attention head or of an FFN's hidden axis at hand,
//! [`resize`] changes every weight, shape operand and slice that depends on it.
//!
//! Every *use* of an initializer has factors of its own: exporters merge equal constants of different layers (zero
//! biases, index tables), and those must stay independent. A matrix of learned numbers that several contractions take
//! is that of one module, called several times, and has the same channels in all of them (`shared`).

pub mod arithmetic;
mod batch;
pub mod branches;
mod build;
mod choices;
mod constants;
pub mod factors;
mod limits;
mod opening;
pub mod resize;
mod rules;
mod shared;
mod sizes;
mod store;
mod typing;
mod value_info;

pub(crate) use batch::mixed_axes;
pub use batch::{
    BatchFault, batch_fault, batch_fault_of_all, declared_batch, fix_batch, fix_batches, open_batch, takes_any_batch,
};
pub use factors::{Dim, Factor, Factors, ImageAxis, Mismatch, Spatial};
pub use rules::explicit_einsum;
pub(crate) use rules::window_length;
pub use typing::{
    Assumption, AxisSlice, Conflict, Contraction, Fused, SizeFrom, Typing, Use, channels_last, holds_unread,
};
pub use value_info::carry_value_info;
