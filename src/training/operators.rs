//! The operators that a training graph may be made of.

/// The operators that a training graph may be made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Operators {
    /// Standard operators only: any runtime runs the graph.
    #[default]
    Standard,
    /// Also `com.microsoft` operators that the stock library of ONNX Runtime registers, such as FusedMatMul.
    Contrib,
    /// Also Offshoot's own operators, which are registered with ONNX Runtime's session on the processor.
    Fused,
}
