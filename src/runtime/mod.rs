//! Running graphs: one session type over ONNX Runtime (loaded when it is found) and tract (built in, by the feature
//! `tract`).
//!
//! Both stand behind one API, so that probes, evaluation and training steps are plain ONNX graphs that run on either.
//! The choice is made once per process.

mod batch;
mod decompose;
mod embedded;
mod evaluate;
mod gpu;
pub(crate) mod kernels;
mod library;
mod plain;
mod program;
mod recent;
mod session;
mod start;
mod tract;

pub use decompose::{decompose_attention, differentiable, separate_skip_norms};
pub use embedded::Embedded;
pub use evaluate::can_evaluate;
pub use gpu::{Gpu, gpu};
pub use library::{Library, candidates, find};
pub use plain::{Plain, opens_plain};
pub use program::{DeviceTensors, Ports, Program};
pub use session::{Session, SessionInput, suggested_batch};
pub(crate) use session::{fix_input, fix_inputs};
#[cfg(feature = "cli")]
pub(crate) use start::refuse_telemetry;
pub use start::{Device, Options, Runtime, RuntimeKind};
