//! Training is ONNX to ONNX: a graph is differentiated in reverse, and the gradients are standard operators of a graph again.
//!
//! An operator is one gradient rule ([`Gradients::new`] refuses operators without one, by name). Broadcasting is undone in one place.
//! Nothing is computed for values that no trained weight needs, and gradients of weights that are used several times add up.

pub mod kernels;
mod rules;
mod tape;

pub use rules::is_trainable;
pub use tape::Gradients;

/// The operators that a training graph may be made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operators {
    /// Standard operators only: any runtime runs the graph.
    #[default]
    Standard,
    /// Also `com.microsoft` operators that the stock library of ONNX Runtime registers, such as FusedMatMul.
    Contrib,
    /// Also Offshoot's own operators, which are registered with ONNX Runtime's session on the processor.
    Fused,
}
