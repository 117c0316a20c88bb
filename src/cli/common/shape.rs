//! The shape of a descendant, and how its weights come about.

use clap::Args;

use super::values::{image_size, tokens};
use crate::descendant::{FfnWidth, Heads, Inherit, Init, Layers, Projection, Transform};
use crate::learngene::Order;

/// The shape of a descendant.
#[derive(Args, Clone, Debug, Default)]
pub struct ShapeFlags {
    /// Layers: N (the first N), last:N, even:N, or a list such as 0,2,5; of one of several stacks vision:even:N
    ///
    /// Where a model has several stacks of layers (towers of pictures and of text, an encoder beside a decoder;
    /// `inspect` names them), each may be named, as in vision:even:2,text:0,3. Layers of a named stack count from 0
    /// within it, and stacks that are not named keep theirs. Without a name layers count over all stacks, and a choice
    /// that would leave a stack none is refused.
    #[arg(long, value_name = "LAYERS", help_heading = "Shape")]
    pub layers: Option<Layers>,
    /// Heads: N, a share such as 50% (rounded, at least one), one number a layer, incrementing or decrementing
    #[arg(long, value_name = "HEADS", help_heading = "Shape", conflicts_with = "width")]
    pub heads: Option<Heads>,
    /// Ancestor heads divided by descendant heads (0.5 is twice the heads)
    #[arg(long, value_name = "W", help_heading = "Shape", allow_negative_numbers = true)]
    pub width: Option<f64>,
    /// FFN neurons: a number or a share such as 50%
    #[arg(long, value_name = "N|P%", help_heading = "Shape")]
    pub ffn_width: Option<FfnWidth>,
    /// Replace the classifier by a new one of this many classes, with the activation of the old one behind it
    #[arg(long, value_name = "N", help_heading = "Shape")]
    pub classes: Option<usize>,
    /// Order in which clusters fill the slots of a layer
    #[arg(long, value_enum, help_heading = "Shape")]
    pub order: Option<Order>,
    /// How the output projection follows the heads
    #[arg(long, value_enum, help_heading = "Shape")]
    pub projection: Option<Projection>,
    /// Channels of the residual stream (weight-selection and from-scratch)
    ///
    /// Heads, their width and the FFNs stay as they are: an attention is (heads x head width) wide inside whatever the
    /// embedding is. To keep the usual proportion, divide the heads (--heads or --width) and --ffn-width by as much.
    /// Norms then take their statistics over fewer channels, which the plan reports.
    #[arg(long, value_name = "N", help_heading = "Shape")]
    pub embedding_dim: Option<usize>,
    /// Another image size, in pixels: N or HEIGHTxWIDTH
    ///
    /// Position tables are resampled (antialiased bicubic), relative position biases interpolated, rotary tables and
    /// masks made again. Patches and windows keep their size. A model that takes images of any size goes on doing so.
    #[arg(long, value_name = "N|HxW", help_heading = "Shape", value_parser = image_size)]
    pub image_size: Option<[usize; 2]>,
    /// Tokens of a text or sequence: a fixed number of them
    ///
    /// A learned position table keeps its first rows; where it has fewer, they are interpolated linearly between the
    /// first and the last. Of a model that computes its positions nothing but the shape changes. The child takes texts
    /// of up to N tokens, padded to N; --max-length cuts texts alone.
    #[arg(long, value_name = "N", help_heading = "Shape", value_parser = tokens)]
    pub tokens: Option<usize>,
    /// How the weights come about [default: cluster-learngene]
    ///
    /// Every method but cluster-learngene takes the ancestor, clusters nothing and needs no images.
    #[arg(long, value_enum, value_name = "METHOD", help_heading = "Initialisation")]
    pub init: Option<Init>,
    /// Layers that inherit: front:N, middle:N or last:N of pretrain-finetune (the others are random), or N of
    /// heuristic-learngene and auto-learngene [default: all; half of the ancestor's]
    #[arg(long, value_name = "N", help_heading = "Initialisation")]
    pub inherit: Option<Inherit>,
    /// Consecutive layers that share weights with weight-transformation [default: 2]
    #[arg(long, value_name = "N", help_heading = "Initialisation")]
    pub share: Option<usize>,
    /// Learnable transform of weights that layers share: FFNs of a learngene, or whole layers with
    /// weight-transformation [default: none; affine]
    ///
    /// The shared weight then stands in the file once, and each layer's own is computed from it. At the start a
    /// transform changes nothing.
    #[arg(long, value_enum, help_heading = "Initialisation")]
    pub transform: Option<Transform>,
    /// Rank of the low-rank part of an affine transform [default: 4]
    #[arg(long, value_name = "R", help_heading = "Initialisation")]
    pub transform_rank: Option<usize>,
}
