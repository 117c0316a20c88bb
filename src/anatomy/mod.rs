//! Anatomy: the Vision Transformer in the typed graph.
//!
//! An attention is a Softmax, and its heads are the leading factors of the Softmax's output that the next weight
//! contraction (the output projection) sums over. Batch, windows and shifts are never summed over, so Swin needs
//! nothing special. Where weights mix the heads of scores or probabilities (talking heads), the heads before and after
//! are factors that go together; where several heads of queries share keys and values, the heads are those of the keys.
//! An FFN is a hidden factor made by weight contractions from the residual stream and summed over by one that returns
//! to it. The residual stream is whatever output projections make. No name and no template is looked at.

mod classes;
mod find;
mod mixers;
mod parts;
mod pooling;
mod repeats;
mod roles;
mod softmax;
mod structure;
mod token_axes;
mod tokens;
mod weights;

pub use classes::{
    Activation, ActivationKind, activation, activations, check_classes, class_factor, class_factors, other_outputs,
    ranking, unit_norms,
};
pub use mixers::normed;
pub use parts::layers_of_part;
pub use pooling::{EMBEDDING, Pooled, Pooling, pooled};
pub use roles::{Roles, Summed, of_head};
pub(crate) use softmax::{in_usual_order, score_axes};
pub use structure::{Anatomy, Attention, FeedForward, Mixing, Stack};
pub use token_axes::{TokenAxis, token_axes};
pub use tokens::{Grid, TokenPositions, sequence_axis, sequences, token_axis};
pub use weights::{WeightKind, WeightUse, weight_kinds, weight_uses};
