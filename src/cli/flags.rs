//! The one table of flags: help, man page and completions are made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::data::{Augmentation, ChannelOrder, Interpolation, PreprocessFlags, Resize};
use crate::descendant::{BatchAxis, FfnWidth, Heads, Inherit, Init, Layers, Projection, Transform};
use crate::fitting::Budget;
use crate::graph::FloatType;
use crate::learngene::{
    Algorithm, Centroid, Eps, FfnCentroid, FfnRule, NeuronRules, Order, Rules, Similarities, Similarity,
};
use crate::onnx::ExternalLinks;
use crate::opening::Opening;
use crate::runtime::{Device, Kind, Options};
use crate::training::{Operators, Pooling, Precision, Shape as Schedule};

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
    Grow(Box<Grow>),
    /// Make a model smaller in one go: on unlabelled images, without training
    #[command(
        after_help = "Examples:\n  offshoot shrink ancestor.onnx --images photographs/ --to 75% -o child.onnx\n  \
                      offshoot shrink ancestor.onnx --images photographs/ --to 85%,75%,50% -o children/\n  \
                      offshoot shrink ancestor.onnx --images photographs/ --budget macs=2G -o child.onnx"
    )]
    Shrink(Shrink),
    /// Train a model on labelled images, or on what a teacher says
    #[command(
        after_help = "Examples:\n  offshoot tune child.onnx --data flowers/ --classes 17 --epochs 20 -o tuned.onnx\n  \
                      offshoot tune child.onnx --data photographs/ --teacher ancestor.onnx -o tuned.onnx\n  \
                      offshoot tune child.onnx --data flowers/ --dry-run"
    )]
    Tune(Box<Tune>),
    /// Do it all: density, condense, grow, tune, eval and a report
    #[command(
        after_help = "Example:\n  offshoot run models/fashion-vit.onnx --data fashion-mnist/ --layers even:4 --heads 4 --epochs 3 -o child/"
    )]
    Run(Box<RunAll>),
    /// Measure a classifier's accuracy on labelled images
    #[command(
        after_help = "Example:\n  offshoot eval models/fashion-vit.onnx --data fixtures/fashion-images.idx3-ubyte"
    )]
    Eval(Eval),
    /// Run a grid of ancestors, methods, shapes and data sets, and make tables and plots of it
    #[command(after_help = "Examples:\n  offshoot study docs/studies/table2.toml --minutes 30\n  \
                      offshoot study docs/studies/table2.toml --quick --folder /tmp/smoke")]
    Study(Study),
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
    /// On a GPU, multiply matrices of float32 in TF32: faster, with 10 bits of mantissa
    #[arg(long, help_heading = "Runtime")]
    pub tf32: bool,
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
            tf32: self.tf32,
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
    /// Order in which the model takes colours: rgb or bgr; --mean and --std are in the same
    #[arg(long, value_name = "ORDER", help_heading = "Preprocessing")]
    pub channel_order: Option<ChannelOrder>,
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
            channel_order: self.channel_order,
        }
    }
}

/// How a model file is opened.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OpenFlags {
    /// Follow links that lead external data outside the model's folder
    #[arg(long)]
    pub allow_external_links: bool,
    /// Make the weights of a quantised model float numbers, and leave the quantisation of its activations out
    #[arg(long)]
    pub dequantize: bool,
    /// Image size of a model that takes images of any size: N or HEIGHTxWIDTH [default: what its metadata, a configuration beside it, or
    /// its position tables say]
    #[arg(long, value_name = "N|HxW", value_parser = image_size)]
    pub input_size: Option<[usize; 2]>,
}

impl OpenFlags {
    /// As the library has it, for a model that is fed with no pictures.
    pub fn opening(self) -> Opening {
        let links = if self.allow_external_links { ExternalLinks::Accept } else { ExternalLinks::Refuse };
        Opening { links, dequantize: self.dequantize, input_size: self.input_size, pictures: None }
    }
}

/// How clusters are made.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterFlags {
    /// What makes heads alike: density, attention, output, prediction, or several joined by + [default: density]
    ///
    /// density: mean attention distances, in pixels (the paper). attention: Jensen-Shannon divergence of mean attention maps, in bits.
    /// output: one minus the linear CKA of their outputs. prediction: what the layer's output loses when one is predicted from the other.
    /// Several are scaled to a mean of one and averaged.
    #[arg(long, value_name = "KIND", help_heading = "Clustering")]
    pub similarity: Option<Similarities>,
    /// How heads are clustered: dbscan, agglomerative:K or kmeans:K, where K clusters a layer may be auto [default: dbscan]
    #[arg(long, value_name = "HOW", help_heading = "Clustering")]
    pub cluster: Option<Algorithm>,
    /// Heads this close are neighbours for dbscan, densities in pixels; 0 keeps every head, auto takes the clusters of the best
    /// silhouette [default: 10 at 224 pixels, scaled to the image; auto for other similarities]
    #[arg(long, value_name = "DISTANCE", help_heading = "Clustering")]
    pub eps: Option<Eps>,
    /// Layers whose densities lie this close share an FFN, in pixels; 0 shares none, auto takes the largest gap [default: as for the
    /// densities of heads]
    #[arg(long, value_name = "PIXELS", help_heading = "Clustering")]
    pub ffn_eps: Option<Eps>,
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
    /// Cluster the neurons of every FFN too: dbscan, agglomerative:K or kmeans:K, where K clusters a layer may be a share (50%) or auto
    /// [default: neurons are not clustered]
    #[arg(long, value_name = "HOW", help_heading = "Clustering")]
    pub neuron_cluster: Option<Algorithm>,
    /// What makes neurons alike: output, prediction, or output+prediction [default: output]
    ///
    /// output: the mean squared difference of their outputs, as a share of their mean squares. prediction: what the layer's output loses
    /// when one is predicted from the other.
    #[arg(long, value_name = "KIND", help_heading = "Clustering", requires = "neuron_cluster")]
    pub neuron_similarity: Option<Similarities>,
    /// Neurons this close are neighbours for dbscan; auto takes the clusters of the best silhouette [default: auto]
    #[arg(long, value_name = "DISTANCE", help_heading = "Clustering", requires = "neuron_cluster")]
    pub neuron_eps: Option<Eps>,
}

impl ClusterFlags {
    /// As options of the library.
    pub fn rules(&self) -> Rules {
        Rules {
            similarity: self.similarity.clone().unwrap_or_default(),
            algorithm: self.cluster.unwrap_or_default(),
            eps: self.eps,
            ffn_eps: self.ffn_eps,
            min_heads: self.min_heads.into(),
            centroid: self.centroid,
            ffn_centroid: self.ffn_centroid,
            ffn_rule: self.ffn_rule,
            ffn_clusters: self.ffn_clusters.clone(),
            neurons: self.neuron_cluster.map(|algorithm| NeuronRules {
                similarity: self.neuron_similarity.clone().unwrap_or(Similarities(vec![Similarity::Output])),
                algorithm,
                eps: self.neuron_eps,
            }),
        }
    }

    /// True where a flag asks for clusters.
    pub fn any(&self) -> bool {
        self.rules() != Rules { min_heads: 1, ..Rules::default() }
    }
}

/// `open`, or a number of images.
pub fn batch_axis(text: &str) -> Result<BatchAxis, String> {
    match (text, text.parse()) {
        ("open", _) => Ok(BatchAxis::Open),
        (_, Ok(images @ 1..=65536)) => Ok(BatchAxis::Fixed(images)),
        _ => Err("a batch axis is `open`, or a number of images".into()),
    }
}

/// A height and a width; one number for both.
pub fn image_size(text: &str) -> Result<[usize; 2], String> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.parse(), width.parse()) {
        (Ok(h @ 1..=65536), Ok(w @ 1..=65536)) => Ok([h, w]),
        _ => Err("an image size is a number of pixels, or HEIGHTxWIDTH".into()),
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
    /// Cluster nothing: keep the ancestor whole and measure in which order heads and neurons go, and what that costs
    ///
    /// `grow` and `shrink` then make descendants of any size from it, fitted where images are given.
    #[arg(long)]
    pub fitted: bool,
    /// Random views of the images that the order is measured on (with --fitted)
    #[arg(long, value_name = "N", default_value_t = 192, requires = "fitted", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub crops: u32,
    /// Seed of the views (with --fitted)
    #[arg(long, value_name = "N", default_value_t = 0, requires = "fitted")]
    pub seed: u64,
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

/// Whether a model is run to see that it is right.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct VerifyFlags {
    /// Verify also where that is predicted to take two seconds or more
    ///
    /// What is checked, by name: `runs` on an image; `batches` of two and three; `samples`, an image alone and among others; `permuted`,
    /// heads and neurons in another order. Of a descendant also `full-size`, its ancestor grown whole, and `removed`, its ancestor with
    /// the rows of what was removed at zero. In float16 also `half-precision`, on tract, which computes in it. Exit code 1 where one fails.
    #[arg(long, help_heading = "Verification", conflicts_with = "no_verify")]
    pub verify: bool,
    /// Verify nothing
    #[arg(long, help_heading = "Verification")]
    pub no_verify: bool,
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
    #[arg(long, value_name = "LIST.toml", conflicts_with_all = ["layers", "heads", "width", "ffn_width", "classes", "order", "projection", "tied", "init", "inherit", "share", "embedding_dim", "image_size", "transform", "transform_rank"])]
    pub batch: Option<PathBuf>,
    /// Compute what is constant at a fixed image size once and write it down
    ///
    /// Resized position tables, shape operands, masks and rotary tables become plain weights. An image size that the model
    /// leaves open is fixed with --image-size.
    #[arg(long, conflicts_with_all = ["tied", "transform"])]
    pub fold: bool,
    /// Images in a batch of the descendant: open for any number, or N [default: as the model has it]
    ///
    /// A batch that the file fixes, as PyTorch's dynamo exporter does by default, is opened wherever shapes hold it.
    #[arg(long, value_name = "open|N", value_parser = batch_axis)]
    pub batch_axis: Option<BatchAxis>,
    /// Floating-point type that the descendant computes in; its inputs and outputs are float32 [default: as the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// Print the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
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
    pub verification: VerifyFlags,
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
    /// Layers: N (the first N), last:N, even:N, or a list such as 0,2,5; of one of several stacks vision:even:N
    ///
    /// Where a model has several stacks of layers (towers of pictures and of text, an encoder beside a decoder; `inspect` names them), each
    /// may be named, as in vision:even:2,text:0,3. Layers of a named stack count from 0 within it, and stacks that are not named keep
    /// theirs. Without a name layers count over all stacks, and a choice that would leave a stack none is refused.
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
    /// embedding is. To keep the usual proportion, divide the heads (--heads or --width) and --ffn-width by as much. Norms then
    /// take their statistics over fewer channels, which the plan reports.
    #[arg(long, value_name = "N", help_heading = "Shape")]
    pub embedding_dim: Option<usize>,
    /// Another image size, in pixels: N or HEIGHTxWIDTH
    ///
    /// Position tables are resampled (antialiased bicubic), relative position biases interpolated, rotary tables and masks made
    /// again. Patches and windows keep their size. A model that takes images of any size goes on doing so.
    #[arg(long, value_name = "N|HxW", help_heading = "Shape", value_parser = image_size)]
    pub image_size: Option<[usize; 2]>,
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

/// `offshoot shrink`.
#[derive(Args, Debug)]
pub struct Shrink {
    /// The ancestor, or a learngene that carries the order of removal (condense --fitted, shrink --save-learngene)
    pub model: PathBuf,
    /// Images that it is calibrated on, a few dozen or more: a folder, an IDX file, or an .npz or .npy of prepared tensors
    ///
    /// A learngene that carries the order of removal gives descendants without images too, which are then not fitted.
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// The descendant to write; with several sizes, the folder for them
    #[arg(short, long, value_name = "CHILD.onnx", required_unless_present_any = ["dry_run", "save_learngene"])]
    pub output: Option<PathBuf>,
    /// Share of the parameters of all heads and FFNs to keep; several, such as 85%,75%,50%, give several descendants
    #[arg(long, value_name = "P%", value_delimiter = ',', value_parser = kept_share, required_unless_present_any = ["budget", "dry_run", "save_learngene"], conflicts_with = "budget")]
    pub to: Vec<f64>,
    /// What the whole model may cost instead: params=12M, macs=2G, bytes=20MB or latency=8ms (on this machine, one image)
    #[arg(long, value_name = "WHAT=N", value_parser = budget)]
    pub budget: Option<Budget>,
    /// Also write the ancestor as a learngene with the order in which its heads and neurons go, and what that costs
    #[arg(long, value_name = "GENE.onnx")]
    pub save_learngene: Option<PathBuf>,
    /// Write a report (HTML, one file); with several sizes, of the last
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Write the frontier of error against size, operations and time as a plot (SVG)
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Memory for the streams of tokens that the fit keeps; what is above it goes to a scratch file [default: 4GB]
    #[arg(long, value_name = "BYTES", value_parser = amount)]
    pub memory_limit: Option<f64>,
    /// Random views of the images that matrices are fitted on
    #[arg(long, value_name = "N", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub crops: u32,
    /// Seed of the views and of which images are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Exit with 1 and write nothing where the squared error on held-out images, relative to the values, is above this
    #[arg(long, value_name = "E", value_parser = tolerance)]
    pub max_error: Option<f64>,
    /// Print what each size would cost and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Layers that may be thinned, such as 0,1,5 [default: all]
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', help_heading = "Levers")]
    pub only_layers: Option<Vec<usize>>,
    /// Keep all heads
    #[arg(long, help_heading = "Levers")]
    pub no_heads: bool,
    /// Keep all FFN neurons
    #[arg(long, help_heading = "Levers")]
    pub no_ffn: bool,
    /// Keep all layers
    #[arg(long, help_heading = "Levers")]
    pub no_layers: bool,
    /// Cut the dimensions of heads at every size [default: at 60 % and below]
    #[arg(long, help_heading = "Levers", conflicts_with = "no_head_dim")]
    pub head_dim: bool,
    /// Keep the dimensions of all heads
    #[arg(long, help_heading = "Levers")]
    pub no_head_dim: bool,
    /// Heads that every layer keeps at least
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_heads: u32,
    /// Neurons that every FFN keeps at least
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(2..))]
    pub min_ffn: u32,
    /// Floating-point type that the descendant computes in; its inputs and outputs are float32 [default: as the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// Leave what is constant at the model's image size to be computed at every run
    #[arg(long)]
    pub no_fold: bool,
    /// FFNs keep a multiple of this many neurons
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub multiple_of: u32,
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

fn kept_share(text: &str) -> Result<f64, String> {
    let number = |t: &str| t.trim().parse::<f64>().ok();
    let share = match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|p| p / 100.0),
        None => number(text),
    };
    share.filter(|s| *s > 0.0 && *s <= 1.0).ok_or_else(|| "a share is above 0 and up to 100%, such as 75%".into())
}

/// A number with a unit: 12M, 20MB, 2G.
fn amount(text: &str) -> Result<f64, String> {
    let amount = text.trim().trim_end_matches('B');
    let (digits, scale) = match amount.chars().last() {
        Some('k' | 'K') => (&amount[..amount.len() - 1], 1e3),
        Some('M') => (&amount[..amount.len() - 1], 1e6),
        Some('G') => (&amount[..amount.len() - 1], 1e9),
        _ => (amount, 1.0),
    };
    let number = digits.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.map(|n| n * scale).ok_or_else(|| format!("`{text}` is no number such as 12M, 20MB or 2G"))
}

fn budget(text: &str) -> Result<Budget, String> {
    let wrong = || "a budget is params=12M, macs=2G, bytes=20MB or latency=8ms".to_string();
    let (what, value) = text.split_once('=').ok_or_else(wrong)?;
    match what.trim() {
        "params" => Ok(Budget::Parameters(amount(value)?)),
        "macs" => Ok(Budget::Macs(amount(value)?)),
        "bytes" => Ok(Budget::Bytes(amount(value)?)),
        "latency" => Ok(Budget::Latency(amount(value.trim().strip_suffix("ms").ok_or_else(wrong)?)?)),
        _ => Err(wrong()),
    }
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
    pub verification: VerifyFlags,
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

/// Labelled images.
#[derive(Args, Clone, Debug, Default)]
pub struct DataFlags {
    /// Data set: a folder with a folder per class, IDX files, an .npz with x and y, CIFAR binaries, WebDataset tars, or Parquet
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Parquet's column of images [default: image or img], or the field of a tar's samples [default: a bare extension]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub image_column: Option<String>,
    /// Parquet's column of labels [default: label, labels or fine_label]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub label_column: Option<String>,
    /// Stop at an image that cannot be read, instead of leaving it out
    #[arg(long, help_heading = "Data")]
    pub strict: bool,
}

/// How a model is trained.
#[derive(Args, Clone, Debug)]
pub struct TrainingFlags {
    /// Validation images: a data set of its own [default: the one given with the data, else a part of it]
    #[arg(long, value_name = "PATH", help_heading = "Data", conflicts_with = "val_split")]
    pub val: Option<PathBuf>,
    /// Share of the images that validates; 0 for none [default where none is given with the data: 0.1, at least eight images, or a
    /// fifth where there are fewer than 40]
    #[arg(long, value_name = "SHARE", help_heading = "Data", value_parser = share)]
    pub val_split: Option<f64>,
    /// Random transforms: none, light, standard, deit, and settings such as flip=0.5,crop=0.35..1
    #[arg(long, value_name = "SPEC", help_heading = "Data", default_value = "light")]
    pub augment: Augmentation,
    /// Mix pairs of images with this parameter of the beta distribution
    #[arg(long, value_name = "ALPHA", help_heading = "Data", default_value_t = 0.0, value_parser = positive)]
    pub mixup: f64,
    /// Paste parts of images into others with this parameter of the beta distribution
    #[arg(long, value_name = "ALPHA", help_heading = "Data", default_value_t = 0.0, value_parser = positive)]
    pub cutmix: f64,
    /// Keep the order of the data set
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    /// Exit with 1 where no epoch was better on the validation images than the model was before training
    #[arg(long, help_heading = "Data")]
    pub require_improvement: bool,

    /// Epochs
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: u32,
    /// Stop after this many updates
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Images in a batch
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Batches whose gradients are averaged for one update
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: u32,
    /// Optimiser
    #[arg(long, value_enum, help_heading = "Training", default_value_t)]
    pub optimizer: OptimizerKind,
    /// Highest learning rate [default: 5e-4, or the part of it at which one update does not raise the loss]
    ///
    /// Before the first update one is tried at 5e-4 and taken back; where the loss of its own images rises, the rate is divided by four, and
    /// tried again. Models that were fitted or trained well want small rates.
    #[arg(long, value_name = "RATE", help_heading = "Training", value_parser = positive)]
    pub lr: Option<f64>,
    /// Last learning rate of a schedule that falls
    #[arg(long, value_name = "RATE", help_heading = "Training", default_value_t = 1e-6, value_parser = positive)]
    pub min_lr: f64,
    /// What follows the warm-up
    #[arg(long, value_enum, help_heading = "Training", default_value_t)]
    pub schedule: Schedule,
    /// Epochs in which the learning rate rises [default: a twentieth of all]
    #[arg(long, value_name = "EPOCHS", help_heading = "Training", value_parser = positive)]
    pub warmup: Option<f64>,
    /// Weight decay of matrices; norms, biases, tokens and positions have none
    #[arg(long, value_name = "W", help_heading = "Training", default_value_t = 0.05, value_parser = positive)]
    pub weight_decay: f64,
    /// Decay of AdamW's moments
    #[arg(long, value_name = "B1,B2", help_heading = "Training", value_delimiter = ',', num_args = 1, value_parser = share)]
    pub betas: Option<Vec<f64>>,
    /// Momentum of SGD
    #[arg(long, value_name = "M", help_heading = "Training", default_value_t = 0.9, value_parser = share)]
    pub momentum: f64,
    /// The learning rate of a layer is that of the layer above it times this
    #[arg(long, value_name = "D", help_heading = "Training", default_value_t = 1.0, value_parser = share)]
    pub layer_decay: f64,
    /// Clip the norm of all gradients together
    #[arg(long, value_name = "NORM", help_heading = "Training", value_parser = above_zero)]
    pub clip: Option<f64>,
    /// Keep a moving average of the weights with this decay; it is validated and written
    #[arg(long, value_name = "DECAY", help_heading = "Training", value_parser = share)]
    pub ema: Option<f64>,
    /// Stochastic depth: probability that the last residual branch is dropped
    #[arg(long, value_name = "P", help_heading = "Training", default_value_t = 0.0, value_parser = share)]
    pub drop_path: f64,
    /// Compute the values inside of layers again for the backward pass instead of keeping them: less memory, more time
    #[arg(long, help_heading = "Training")]
    pub recompute: bool,
    /// Train these weights too (* and ? in names)
    #[arg(long, value_name = "PATTERN", help_heading = "Training")]
    pub train: Vec<String>,
    /// Leave these weights as they are (* and ? in names)
    #[arg(long, value_name = "PATTERN", help_heading = "Training")]
    pub freeze: Vec<String>,
    /// Seed of everything random
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 0)]
    pub seed: u64,

    /// Loss on the labels; it takes logits, also where the model ends in Softmax, LogSoftmax or Sigmoid
    #[arg(long, value_enum, help_heading = "Loss", default_value_t)]
    pub loss: LossKind,
    /// Share of every label that is spread over all classes
    #[arg(long, value_name = "S", help_heading = "Loss", default_value_t = 0.1, value_parser = share)]
    pub label_smoothing: f64,
    /// Learn from this model; without labels, from it alone
    #[arg(long, value_name = "MODEL", help_heading = "Loss")]
    pub teacher: Option<PathBuf>,
    /// Share of the teacher in the loss [default: 1 without labels, else 0.5]
    #[arg(long, value_name = "SHARE", help_heading = "Loss", value_parser = share, requires = "teacher")]
    pub distill: Option<f64>,
    /// What logits of both are divided by
    #[arg(long, value_name = "T", help_heading = "Loss", default_value_t = 2.0, value_parser = above_zero)]
    pub temperature: f64,
    /// Also compare a value of the graphs: a name, or STUDENT=TEACHER
    #[arg(long, value_name = "NAMES", help_heading = "Loss", requires = "teacher")]
    pub feature: Vec<String>,
    /// Weight of every compared value
    #[arg(long, value_name = "W", help_heading = "Loss", default_value_t = 1.0, value_parser = above_zero)]
    pub feature_weight: f64,
    /// Precision that a step computes in; weights and optimiser stay in float32
    #[arg(long, value_enum, help_heading = "Runtime", default_value_t)]
    pub precision: Precision,
    /// Operators that step graphs are made of [default: what the runtime has]
    #[arg(long, value_enum, help_heading = "Runtime")]
    pub operators: Option<Operators>,
}

/// `offshoot tune`.
#[derive(Args, Debug)]
pub struct Tune {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// Replace the classifier by one of this many classes; a model without one is cut after its encoder and gets one
    #[arg(long, value_name = "N")]
    pub classes: Option<usize>,
    /// What a new classifier behind an encoder looks at
    #[arg(long, value_enum)]
    pub pooling: Option<Pooling>,
    #[command(flatten)]
    pub training: TrainingFlags,
    /// The tuned model to write: the best by validation; the last stands beside it as NAME.last.onnx
    #[arg(short, long, value_name = "TUNED.onnx")]
    pub output: Option<PathBuf>,
    /// Floating-point type that the tuned model computes in; its inputs and outputs are float32 [default: as the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// Overwrite existing outputs
    #[arg(long)]
    pub force: bool,
    /// List what is trained and what is not, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the step graph and STEP.json, which describes it, and train nothing
    #[arg(long, value_name = "STEP.onnx", conflicts_with_all = ["dry_run", "resume"])]
    pub emit_step: Option<PathBuf>,

    /// Write a JSON line for every update and every validation
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub metrics: Option<PathBuf>,
    /// Write a plot of loss and accuracy (SVG)
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Write a report (HTML, one file)
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    pub report: Option<PathBuf>,
    /// Checkpoint [default: beside the output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub checkpoint: Option<PathBuf>,
    /// Updates between checkpoints; there is one at the end of every epoch
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Go on from the checkpoint
    #[arg(long, help_heading = "Output")]
    pub resume: bool,

    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// `offshoot run`.
#[derive(Args, Debug)]
pub struct RunAll {
    /// The ancestor
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// The folder for everything that is written
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Images that densities are measured on [default: 256 of the training images]
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// Overwrite what an earlier run wrote into the folder
    #[arg(long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub shape: ShapeFlags,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub training: TrainingFlags,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// `offshoot study`.
#[derive(Args, Debug)]
pub struct Study {
    /// The study, a TOML file
    pub study: PathBuf,
    /// Folder of results: cells in cells/, tables and plots beside it [default: results/ beside the study]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// A smoke run: one seed, one epoch, few images
    #[arg(long)]
    pub quick: bool,
    /// Begin no cell after so many minutes; 0 makes the tables of what is there
    #[arg(long, value_name = "N", value_parser = positive)]
    pub minutes: Option<f64>,
    /// Check the study, list its cells and compute none
    #[arg(long)]
    pub dry_run: bool,
    /// Compute nothing: move the study's cells from cells/ into one file, STUDY.cells.jsonl, which is read as they are
    #[arg(long, conflicts_with_all = ["minutes", "dry_run", "json"])]
    pub pack: bool,
    /// Print the tables as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// `offshoot eval`.
#[derive(Args, Debug)]
pub struct Eval {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// Which images: all, or the part for validation that the data come with or that --val-split cuts off
    #[arg(long, value_enum, default_value_t, help_heading = "Data")]
    pub part: Part,
    /// Share of the images that validates, as `tune` cuts it off with the same seed
    #[arg(long, value_name = "SHARE", help_heading = "Data", value_parser = share)]
    pub val_split: Option<f64>,
    /// Seed of the split
    #[arg(long, value_name = "N", help_heading = "Data", default_value_t = 0)]
    pub seed: u64,
    /// Images in a batch [default: by their size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Exit with 1 where the top-1 accuracy is below this share
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub at_least: Option<f64>,
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

/// A part of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The images that the data come with for validation, else all.
    #[default]
    Auto,
    /// All images.
    All,
    /// The images for validation.
    Validation,
    /// The images for training.
    Training,
}

/// How parameters follow gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OptimizerKind {
    /// AdamW, as torch computes it.
    #[default]
    Adamw,
    /// SGD with momentum, as torch computes it.
    Sgd,
}

/// The loss on labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LossKind {
    /// Cross-entropy.
    #[default]
    CrossEntropy,
    /// Binary cross-entropy of every class by itself.
    Bce,
    /// Mean squared difference between logits and one-hot labels.
    Mse,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if (0.0..=1.0).contains(&v) => Ok(v),
        _ => Err("a share is a number from 0 to 1".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("this is a number from 0 on".into()),
    }
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v > 0.0 => Ok(v),
        _ => Err("this is a number above 0".into()),
    }
}
