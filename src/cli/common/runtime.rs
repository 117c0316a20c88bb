//! What graphs run on.

use std::path::PathBuf;

use clap::Args;

use super::{OpenFlags, TransformFlags};
use crate::runtime::{Device, Options, RuntimeKind};

/// Which runtime runs graphs, and where.
#[derive(Args, Clone, Debug, Default)]
pub struct RuntimeFlags {
    /// Runtime that runs graphs
    #[arg(long, value_enum, default_value_t, help_heading = "Runtime")]
    pub runtime: RuntimeKind,
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

/// How a model is opened, fed with images, and run.
#[derive(Args, Clone, Debug)]
pub struct RunFlags {
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

impl RunFlags {
    /// The same for a command that judges a file: weights in int8 are run as they are.
    pub fn as_written(&self) -> RunFlags {
        RunFlags { open: OpenFlags { written: true, ..self.open.clone() }, ..self.clone() }
    }
}
