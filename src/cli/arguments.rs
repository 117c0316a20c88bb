//! The command line as a whole: help, man page and completions are made from it. The flags of a command stand in its
//! own file.

use clap::{Parser, Subcommand};

use super::commands::compare::CompareArgs;
use super::commands::condense::CondenseArgs;
use super::commands::density::DensityArgs;
use super::commands::doctor::DoctorArgs;
use super::commands::eval::EvalArgs;
use super::commands::grow::GrowArgs;
use super::commands::inspect::InspectArgs;
use super::commands::run::RunArgs;
use super::commands::shrink::ShrinkArgs;
use super::commands::study::StudyArgs;
use super::commands::tune::TuneArgs;

/// Grow small encoders (Vision Transformers and text models) out of big ones: ONNX in, ONNX out.
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
    Doctor(DoctorArgs),
    /// Show a model's layers, heads and FFNs without reading its weights
    #[command(after_help = "Example:\n  offshoot inspect models/fashion-vit.onnx --weights")]
    Inspect(InspectArgs),
    /// Measure the mean attention distance of every head
    #[command(
        after_help = "Example:\n  offshoot density models/fashion-vit.onnx --images fixtures/fashion-images.idx3-ubyte \
            --plot density.svg"
    )]
    Density(DensityArgs),
    /// Condense an ancestor into a learngene
    #[command(after_help = "Example:\n  offshoot condense models/fashion-vit.onnx --images \
            fixtures/fashion-images.idx3-ubyte -o gene.onnx")]
    Condense(CondenseArgs),
    /// Grow a descendant from a learngene or an ancestor
    #[command(after_help = "Examples:\n  offshoot grow gene.onnx --layers even:4 --heads 4 -o child.onnx\n  \
                      offshoot grow models/fashion-vit.onnx --images fixtures/fashion-png --layers 4 --width 2 -o \
                      child.onnx\n  \
                      offshoot grow models/fashion-vit.onnx --init weight-selection --layers 4 --heads 4 \
                      --embedding-dim 32 -o child.onnx")]
    Grow(Box<GrowArgs>),
    /// Make a model smaller in one go: on unlabelled images, without training
    #[command(
        after_help = "Examples:\n  offshoot shrink ancestor.onnx --images photographs/ --to 75% -o child.onnx\n  \
                      offshoot shrink ancestor.onnx --images photographs/ --to 85%,75%,50% -o children/\n  \
                      offshoot shrink ancestor.onnx --images photographs/ --budget macs=2G -o child.onnx"
    )]
    Shrink(ShrinkArgs),
    /// Train a model on labelled images, or on what a teacher says
    #[command(
        after_help = "Examples:\n  offshoot tune child.onnx --data flowers/ --classes 17 --epochs 20 -o tuned.onnx\n  \
                      offshoot tune child.onnx --data photographs/ --teacher ancestor.onnx -o tuned.onnx\n  \
                      offshoot tune child.onnx --data flowers/ --dry-run"
    )]
    Tune(Box<TuneArgs>),
    /// Do it all: density, condense, grow, tune, eval and a report
    #[command(
        after_help = "Example:\n  offshoot run models/fashion-vit.onnx --data fashion-mnist/ --layers even:4 --heads 4 \
            --epochs 3 -o child/"
    )]
    Run(Box<RunArgs>),
    /// Measure a classifier's accuracy on labelled images
    #[command(
        after_help = "Example:\n  offshoot eval models/fashion-vit.onnx --data fixtures/fashion-images.idx3-ubyte"
    )]
    Eval(EvalArgs),
    /// Run a grid of ancestors, methods, shapes and data sets, and make tables and plots of it
    #[command(after_help = "Examples:\n  offshoot study docs/studies/table2.toml --minutes 30\n  \
                      offshoot study docs/studies/table2.toml --quick --folder /tmp/smoke")]
    Study(StudyArgs),
    /// Compare the outputs, sizes and latencies of two models
    #[command(
        after_help = "Example:\n  offshoot compare ancestor.onnx child.onnx --images photographs --tolerance 1e-4"
    )]
    Compare(CompareArgs),
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
