//! What `--dtype` names.

use std::collections::HashSet;

use super::plan::Rounded;
use super::write::write;
use crate::error::Result;
use crate::graph::{self, FloatType};
use crate::onnx::Model;

/// The type that a file computes in, or that of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// float32.
    Fp32,
    /// float16: half the bytes; numbers up to 65,504.
    Fp16,
    /// bfloat16: half the bytes, the range of float32, 8 significant bits. Needs operator set 13.
    Bf16,
    /// Weights of products and embedding tables in int8, a quarter of the bytes; what is computed is float32.
    Int8,
    /// The same, and rows of activations are rounded in the graph, for products of bytes: for speed.
    #[cfg_attr(feature = "cli", value(name = "int8-rows"))]
    Int8Rows,
}

impl Dtype {
    /// The type that is computed in around the weights.
    pub fn float(self) -> FloatType {
        match self {
            Dtype::Fp16 => FloatType::Fp16,
            Dtype::Bf16 => FloatType::Bf16,
            Dtype::Fp32 | Dtype::Int8 | Dtype::Int8Rows => FloatType::Fp32,
        }
    }

    /// True where weights are rounded to int8.
    pub fn is_int8(self) -> bool {
        matches!(self, Dtype::Int8 | Dtype::Int8Rows)
    }

    /// What whoever writes a file in this type should know, where it was or was not looked at data for what float16
    /// does not hold.
    pub fn caution(self, looked: bool) -> Option<&'static str> {
        match self {
            Dtype::Int8 => Some(
                "int8 weights are rounded, and ONNX Runtime and OpenVINO round what they are multiplied with as well: \
                 `compare` says how near the child is to its ancestor",
            ),
            Dtype::Int8Rows => Some(
                "int8 weights and the rows that they are multiplied with are rounded: `compare` says how near the \
                 child is to its ancestor",
            ),
            _ => self.float().caution(looked),
        }
    }
}

/// What became of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// What users should know.
    pub warnings: Vec<String>,
    /// Which weights are in int8, and which are not.
    pub int8: Option<Rounded>,
}

/// Gives a prepared model a type; inputs and outputs are float32.
///
/// # Errors
/// Those of [`convert_but`].
pub fn convert(model: &mut Model, to: Dtype) -> Result<Converted> {
    convert_but(model, to, &HashSet::new())
}

/// [`convert`], but in float16 the nodes that make some values, or take them, compute in float32.
///
/// # Errors
/// Those of [`graph::convert_but`], of the [`Typing`](crate::axes::Typing), and of [`raise`](fn@super::raise).
pub fn convert_but(model: &mut Model, to: Dtype, wide: &HashSet<String>) -> Result<Converted> {
    let mut warnings: Vec<String> = graph::convert_but(model, to.float(), wide)?.into_iter().collect();
    let int8 = to.is_int8().then(|| write(model, to == Dtype::Int8Rows)).transpose()?;
    warnings.extend(int8.iter().flat_map(Rounded::notes));
    Ok(Converted { warnings, int8 })
}
