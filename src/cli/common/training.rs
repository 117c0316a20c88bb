//! How a model is trained.

use std::path::PathBuf;

use clap::Args;

use super::values::{above_zero, positive, share};
use crate::data::Augmentation;
use crate::training::{LabelLoss, Operators, Precision, RateCurve};

/// How a model is trained.
#[derive(Args, Clone, Debug)]
pub struct TrainingFlags {
    /// Samples to validate on: a data set of its own [default: the one given with the data, else a part of it]
    #[arg(long, value_name = "PATH", help_heading = "Data", conflicts_with = "val_split")]
    pub val: Option<PathBuf>,
    /// Share of the samples that validates; 0 for none [default where none is given with the data: 0.1, at least eight
    /// samples, or a fifth where there are fewer than 40]
    #[arg(long, value_name = "SHARE", help_heading = "Data", value_parser = share)]
    pub val_split: Option<f64>,
    /// Random transforms of images: none, light, standard, deit, and settings such as flip=0.5,crop=0.35..1 [default:
    /// light]
    #[arg(long, value_name = "SPEC", help_heading = "Data")]
    pub augment: Option<Augmentation>,
    /// Mix pairs of images with this parameter of the beta distribution
    #[arg(long, value_name = "ALPHA", help_heading = "Data", default_value_t = 0.0, value_parser = positive)]
    pub mixup: f64,
    /// Paste parts of images into others with this parameter of the beta distribution
    #[arg(long, value_name = "ALPHA", help_heading = "Data", default_value_t = 0.0, value_parser = positive)]
    pub cutmix: f64,
    /// Keep the order of the data set
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    /// Exit with 1 where no epoch was better on the samples that validate than the model was before training
    #[arg(long, help_heading = "Data")]
    pub require_improvement: bool,

    /// Epochs
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: u32,
    /// Stop after this many updates
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Samples in a batch: images, texts, or pairs of texts
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Batches whose gradients are averaged for one update
    #[arg(long, value_name = "N", help_heading = "Training", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: u32,
    /// Optimiser
    #[arg(long, value_enum, help_heading = "Training", default_value_t)]
    pub optimizer: OptimizerKind,
    /// Highest learning rate [default: 5e-4, or the part of it at which one update does not raise the loss]
    ///
    /// Before the first update one is tried at 5e-4 and taken back; where the loss of its own images rises, the rate is
    /// divided by four, and tried again. Models that were fitted or trained well want small rates.
    #[arg(long, value_name = "RATE", help_heading = "Training", value_parser = positive)]
    pub lr: Option<f64>,
    /// Last learning rate of a schedule that falls
    #[arg(long, value_name = "RATE", help_heading = "Training", default_value_t = 1e-6, value_parser = positive)]
    pub min_lr: f64,
    /// What follows the warm-up
    #[arg(long, value_enum, help_heading = "Training", default_value_t)]
    pub schedule: RateCurve,
    /// Epochs in which the learning rate rises [default: a twentieth of all]
    #[arg(long, value_name = "EPOCHS", help_heading = "Training", value_parser = positive)]
    pub warmup: Option<f64>,
    /// Weight decay of matrices; norms, biases, tokens and positions have none
    #[arg(long, value_name = "W", help_heading = "Training", default_value_t = 0.05, value_parser = positive)]
    pub weight_decay: f64,
    /// Decay of AdamW's moments
    #[arg(long, value_name = "B1,B2", help_heading = "Training", value_delimiter = ',', num_args = 1,
        value_parser = share)]
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
    #[arg(long, value_enum, help_heading = "Loss", default_value_t, conflicts_with = "score_column")]
    pub loss: LabelLoss,
    /// Share of every label that is spread over all classes
    #[arg(long, value_name = "S", help_heading = "Loss", default_value_t = 0.1, value_parser = share,
        conflicts_with = "score_column")]
    pub label_smoothing: f64,
    /// Learn from this model; without labels, from it alone
    #[arg(long, value_name = "MODEL", help_heading = "Loss")]
    pub teacher: Option<PathBuf>,
    /// Share of the teacher in the loss [default: 1 without labels, else 0.5]
    #[arg(long, value_name = "SHARE", help_heading = "Loss", value_parser = share, requires = "teacher")]
    pub distill: Option<f64>,
    /// What logits of both are divided by [default: 2]
    #[arg(long, value_name = "T", help_heading = "Loss", value_parser = above_zero, requires = "teacher")]
    pub temperature: Option<f64>,
    /// Also compare a value of the graphs: a name, or STUDENT=TEACHER
    #[arg(long, value_name = "NAMES", help_heading = "Loss", requires = "teacher")]
    pub feature: Vec<String>,
    /// Weight of every compared value [default: 1]
    #[arg(long, value_name = "W", help_heading = "Loss", value_parser = above_zero, requires = "feature")]
    pub feature_weight: Option<f64>,
    /// Precision that a step computes in; weights and optimiser stay in float32
    #[arg(long, value_enum, help_heading = "Runtime", default_value_t)]
    pub precision: Precision,
    /// Operators that step graphs are made of [default: what the runtime has]
    #[arg(long, value_enum, help_heading = "Runtime")]
    pub operators: Option<Operators>,
}

impl TrainingFlags {
    /// Whether labels are left aside, wrong ones too: the teacher alone is learned from.
    pub fn ignores_labels(&self) -> bool {
        self.teacher.is_some() && self.distill.unwrap_or(0.0) >= 1.0
    }
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
