//! Density: the mean attention distance of every head.
//!
//! d(l, h) = 1/N Σ_i Σ_j A(l, h)[i, j] · T[i, j], where A are the attention probabilities, T the distance of patches
//! i and j in pixels, and the sums run over patches: other tokens count on neither side and rows are not renormalised
//! (Cluster-Learngene, equation 4). Windows are averaged. Of a sequence of tokens T is the distance in tokens, and the
//! sums run over those that are no padding and not special, as far as that is known. The measure is appended to the
//! graph itself, so that only [samples, heads] leaves the runtime, never the attention maps.

mod attention;
mod densities;
mod maps;
mod probe;

pub use attention::{attention_distances, divergence};
pub use densities::{Densities, Unit, measure, obstacle, probe};
pub use maps::{AttentionMap, attention_maps, attention_matrices};
