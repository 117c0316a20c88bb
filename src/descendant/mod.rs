//! Descendants: models of another scale that inherit a learngene.
//!
//! Layers that are not wanted are by-passed in the residual stream. Slot i of a layer's heads receives the centroid of
//! cluster i mod m, big clusters first (priority weight-sharing); its output rows follow by the chosen rule. FFN
//! neurons follow their clusters in the same way, or are kept by the size of what they pass on. Everything else is
//! inherited as it is. The methods that Cluster-Learngene is compared with are other ways to fill the same shapes
//! ([`Init`]). Weights that layers share may get a small learnable transform in each ([`Transform`]), which
//! [`simplify`] computes away once it is trained.

mod choice;
mod constant_folding;
mod decided;
mod depth;
mod grow;
mod inherit;
mod init;
mod initialise;
mod input_size;
mod joined;
mod layers;
mod numbers;
mod oracle;
mod plan;
mod scales;
mod simplify;
mod spared;
mod subject;
mod taps;
mod transform;
mod verification;
mod verify;

pub use choice::{FfnWidth, Heads, LayerHeads, Layers};
pub use constant_folding::{fold_constants, has_fixed_size};
pub use depth::{Shallow, keep_layers};
pub use grow::grow;
pub(crate) use grow::mixed_elsewhere;
pub use init::{Inherit, Init, LayerSource};
pub use input_size::{resize_image, resize_tokens};
pub use plan::{BatchAxis, Descendant, DescendantPlan, GrowOptions, PlannedLayer, Projection};
pub use simplify::simplify;
pub use transform::{DEFAULT_RANK, Transform};
pub use verification::{Check, Checked, Outcome, Verification};
pub use verify::{Case, Grown, MACS_PER_SECOND, Verifier, cost, predicted_seconds};
