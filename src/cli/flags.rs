//! The one table of flags: help, man page and completions are made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::data::{Interpolation, PreprocessFlags, Resize};
use crate::descendant::{FfnWidth, Heads, Inherit, Init, Layers, Projection, Transform};
use crate::learngene::{Centroid, FfnCentroid, FfnRule, Order, Rules};
use crate::onnx::ExternalLinks;
use crate::runtime::{Device, Kind, Options};

/// Grow small Vision Transformers out of big ones: ONNX in, ONNX out.
#[derive(Debug, Parser)]
#[command(
    name = "offshoot",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 a check or target was not met, 2 bad usage or bad input, 3 internal fault.\n\
                  Data goes to stdout, everything else to stderr; NO_COLOR is honoured."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which runtime libraries and devices were found
    #[command(after_help = "Example:\n  offshoot doctor --json")]
    Doctor(Doctor),
    /// Show a model's layers, heads and FFNs without reading its weights
    #[command(after_help = "Example:\n  offshoot inspect models/fashion-vit.onnx --weights")]
    Inspect(Inspect),
    /// Measure the mean attention distance of every head
    #[command(
        after_help = "Example:\n  offshoot density models/fashion-vit.onnx --images fixtures/fashion-images.idx3-ubyte --plot density.svg"
    )]
    Density(Density),
    /// Condense an ancestor into a learngene
    #[command(
        after_help = "Example:\n  offshoot condense models/fashion-vit.onnx --images fixtures/fashion-images.idx3-ubyte -o gene.onnx"
    )]
    Condense(Condense),
    /// Grow a descendant from a learngene or an ancestor
    #[command(after_help = "Examples:\n  offshoot grow gene.onnx --layers even:4 --heads 4 -o child.onnx\n  \
                      offshoot grow models/fashion-vit.onnx --images fixtures/fashion-png --layers 4 --width 2 -o child.onnx\n  \
                      offshoot grow models/fashion-vit.onnx --init weight-selection --layers 4 --heads 4 --embedding-dim 32 -o child.onnx")]
    Grow(Grow),
    /// Compare the outputs, sizes and latencies of two models
    #[command(
        after_help = "Example:\n  offshoot compare ancestor.onnx child.onnx --images photographs --tolerance 1e-4"
    )]
    Compare(Compare),
    /// Print shell completions
    #[command(after_help = "Example:\n  offshoot completions bash > /etc/bash_completion.d/offshoot")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page
    #[command(after_help = "Example:\n  offshoot man > offshoot.1")]
    Man,
}

/// Which runtime runs graphs, and where.
#[derive(Args, Clone, Debug, Default)]
pub struct RuntimeFlags {
    /// Runtime that runs graphs
    #[arg(long, value_enum, default_value_t, help_heading = "Runtime")]
    pub runtime: Kind,
    /// Shared library of ONNX Runtime, or the folder that holds it
    #[arg(long, value_name = "PATH", help_heading = "Runtime")]
    pub onnxruntime: Option<PathBuf>,
    /// Device that graphs run on
    #[arg(long, value_enum, default_value_t, help_heading = "Runtime")]
    pub device: Device,
    /// Threads of the runtime [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Runtime", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl RuntimeFlags {
    /// As options of the library.
    pub fn options(&self) -> Options {
        Options {
            kind: self.runtime,
            library: self.onnxruntime.clone(),
            device: self.device,
            threads: self.threads.map(usize::from),
        }
    }
}

/// How images are prepared.
#[derive(Args, Clone, Debug, Default)]
pub struct TransformFlags {
    /// Mean of each channel after scaling to [0, 1], or one for all
    #[arg(
        long,
        value_name = "M,M,M",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, or one for all
    #[arg(
        long,
        value_name = "S,S,S",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub std: Option<Vec<f32>>,
    /// Share of the resized image that the centre crop keeps
    #[arg(long, value_name = "R", help_heading = "Preprocessing", allow_negative_numbers = true)]
    pub crop_ratio: Option<f32>,
    /// Interpolation of the resize: bicubic, bilinear, lanczos or nearest
    #[arg(long, value_name = "KIND", help_heading = "Preprocessing")]
    pub interpolation: Option<Interpolation>,
    /// What is resized: short-side (aspect ratio kept) or square
    #[arg(long, value_name = "RULE", help_heading = "Preprocessing")]
    pub resize: Option<Resize>,
    /// Use the first N images only
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

impl TransformFlags {
    /// As options of the library.
    pub fn preprocess(&self) -> PreprocessFlags {
        PreprocessFlags {
            mean: self.mean.clone(),
            std: self.std.clone(),
            crop_ratio: self.crop_ratio,
            interpolation: self.interpolation,
            resize: self.resize,
        }
    }
}

/// How a model file is opened.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OpenFlags {
    /// Follow links that lead external data outside the model's folder
    #[arg(long)]
    pub allow_external_links: bool,
}

impl OpenFlags {
    /// As an option of the library.
    pub fn links(self) -> ExternalLinks {
        if self.allow_external_links { ExternalLinks::Accept } else { ExternalLinks::Refuse }
    }
}

/// How clusters are made.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterFlags {
    /// Heads whose densities lie this close are neighbours, in pixels; 0 keeps every head [default: 10 at 224 pixels, scaled to
    /// the image]
    #[arg(long, value_name = "PIXELS", help_heading = "Clustering", value_parser = pixels)]
    pub eps: Option<f64>,
    /// The same for sharing FFNs between adjacent layers; 0 shares none
    #[arg(long, value_name = "PIXELS", help_heading = "Clustering", value_parser = pixels)]
    pub ffn_eps: Option<f64>,
    /// Heads that make a neighbourhood dense
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Clustering", value_parser = clap::value_parser!(u16).range(1..))]
    pub min_heads: u16,
    /// What stands for a cluster of heads
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub centroid: Centroid,
    /// What stands for a cluster of FFNs
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub ffn_centroid: FfnCentroid,
    /// When adjacent layers share an FFN
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub ffn_rule: FfnRule,
    /// Groups of layers that share an FFN, such as 6-7,9-11, instead of a rule
    #[arg(long, value_name = "GROUPS", help_heading = "Clustering")]
    pub ffn_clusters: Option<String>,
}

impl ClusterFlags {
    /// As options of the library.
    pub fn rules(&self) -> Rules {
        Rules {
            eps: self.eps,
            ffn_eps: self.ffn_eps,
            min_heads: self.min_heads.into(),
            centroid: self.centroid,
            ffn_centroid: self.ffn_centroid,
            ffn_rule: self.ffn_rule,
            ffn_clusters: self.ffn_clusters.clone(),
        }
    }

    /// True where a flag asks for clusters.
    pub fn any(&self) -> bool {
        self.rules() != Rules { min_heads: 1, ..Rules::default() }
    }
}

fn pixels(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("a distance in pixels is a number from 0 on".into()),
    }
}

/// `offshoot doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    pub runtime: RuntimeFlags,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `offshoot inspect`.
#[derive(Args, Debug)]
pub struct Inspect {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub open: OpenFlags,
    /// List the initializers of every head and FFN
    #[arg(long)]
    pub weights: bool,
    /// Explain a layer: the weights, axes and shape operands that each of its factors reaches
    #[arg(long, value_name = "LAYER")]
    pub explain: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `offshoot density`.
#[derive(Args, Debug)]
pub struct Density {
    /// The model
    pub model: PathBuf,
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: PathBuf,
    /// Write a plot of density against depth (SVG)
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// `offshoot condense`.
#[derive(Args, Debug)]
pub struct Condense {
    /// The ancestor
    pub model: PathBuf,
    /// Images that densities are measured on: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: PathBuf,
    /// The learngene to write
    #[arg(short, long, value_name = "GENE.onnx")]
    pub output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print the learngene's description as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// `offshoot grow`.
#[derive(Args, Debug)]
pub struct Grow {
    /// A learngene, or an ancestor (with --images or --no-images)
    pub model: PathBuf,
    /// The descendant to write; with --batch the folder for relative outputs
    #[arg(short, long, value_name = "CHILD.onnx")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub shape: ShapeFlags,
    /// Keep shared weights shared in the file (centroids with an index list, one FFN a group)
    #[arg(long)]
    pub tied: bool,
    /// Grow several descendants from a TOML list of [[descendant]] tables
    #[arg(long, value_name = "LIST.toml", conflicts_with_all = ["layers", "heads", "width", "ffn_width", "classes", "order", "projection", "tied", "init", "inherit", "share", "embedding_dim", "transform", "transform_rank"])]
    pub batch: Option<PathBuf>,
    /// Print the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Check that the descendant does not depend on the order of its heads before it is written
    #[arg(long)]
    pub verify: bool,
    /// Images to condense an ancestor on the way: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// Grow from an ancestor without densities: every head is its own cluster
    #[arg(long, conflicts_with = "images")]
    pub no_images: bool,
    /// Seed of what is drawn at random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// The shape of a descendant.
#[derive(Args, Clone, Debug, Default)]
pub struct ShapeFlags {
    /// Layers: N (the first N), last:N, even:N, or a list such as 0,2,5
    #[arg(long, value_name = "LAYERS", help_heading = "Shape")]
    pub layers: Option<Layers>,
    /// Heads: N, one number a layer, incrementing or decrementing
    #[arg(long, value_name = "HEADS", help_heading = "Shape", conflicts_with = "width")]
    pub heads: Option<Heads>,
    /// Ancestor heads divided by descendant heads (0.5 is twice the heads)
    #[arg(long, value_name = "W", help_heading = "Shape", allow_negative_numbers = true)]
    pub width: Option<f64>,
    /// FFN neurons: a number or a share such as 50%
    #[arg(long, value_name = "N|P%", help_heading = "Shape")]
    pub ffn_width: Option<FfnWidth>,
    /// Replace the classifier by a new one of this many classes
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
    /// embedding is. To keep the usual proportion, divide the heads (--heads or --width) and --ffn-width by as much. Norms then
    /// take their statistics over fewer channels, which the plan reports.
    #[arg(long, value_name = "N", help_heading = "Shape")]
    pub embedding_dim: Option<usize>,
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
    /// Learnable transform of weights that layers share: FFNs of a learngene, or whole layers with weight-transformation
    /// [default: none; affine]
    ///
    /// The shared weight then stands in the file once, and each layer's own is computed from it. At the start a transform changes
    /// nothing.
    #[arg(long, value_enum, help_heading = "Initialisation")]
    pub transform: Option<Transform>,
    /// Rank of the low-rank part of an affine transform [default: 4]
    #[arg(long, value_name = "R", help_heading = "Initialisation")]
    pub transform_rank: Option<usize>,
}

/// `offshoot compare`.
#[derive(Args, Debug)]
pub struct Compare {
    /// The model to compare with
    pub a: PathBuf,
    /// The model to judge
    pub b: PathBuf,
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: PathBuf,
    /// Exit with 1 where the relative error is above this
    #[arg(long, value_name = "E", value_parser = tolerance)]
    pub tolerance: Option<f64>,
    /// Runs that the latency is the median of
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("a tolerance is a number from 0 on".into()),
    }
}
