//! The table of operators: one row each, in the order of the files of typing and gradient rules.

use super::row::Mark::*;
use super::row::ShapeRule::*;
use super::row::Slot::{Bias, Borders, Constant, Data, Extent, Indices, Places, Scale, Shift, Sizes};
use super::row::Type::*;
use super::row::{ANY, Op, ShapeRule, Slot};

/// An operator of the default domain.
const fn op(name: &'static str, shape: ShapeRule) -> Op {
    Op::new("", name, shape)
}

/// An operator of ONNX Runtime's own domain.
const fn microsoft(name: &'static str, shape: ShapeRule) -> Op {
    Op::new("com.microsoft", name, shape)
}

/// An operator of Offshoot's own domain, which training graphs hold.
const fn offshoot(name: &'static str, shape: ShapeRule) -> Op {
    Op::new("offshoot", name, shape)
}

/// A row is a line where it fits one.
#[rustfmt::skip]
pub(super) static TABLE: &[Op] = &[
    // Elementwise, of one operand
    op("Abs", Same).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Neg", Same).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Sign", Same).halves(9, 13).cuda(13).marks(&[Elementwise, Flat]),
    op("Floor", Same).halves(1, 13).marks(&[Elementwise, Flat]),
    op("Ceil", Same).halves(1, 13).marks(&[Elementwise, Flat]),
    op("Round", Same).halves(11, 22).marks(&[Elementwise, Image, Flat]),
    op("Reciprocal", Same).marks(&[NormStep, Deviation]),
    op("Sqrt", Same).cuda(13).marks(&[NormStep]),
    op("Exp", Same).cuda(13),
    op("Log", Same),
    op("Sin", Same).cuda(22),
    op("Cos", Same).cuda(22),
    op("Tan", Same),
    op("Atan", Same),
    op("Erf", Same).halves(9, 13).cuda(13).marks(&[Elementwise]),
    op("Tanh", Same).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Sigmoid", Same).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Relu", Same).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Gelu", Same).halves(20, 20).cuda(20).marks(&[Elementwise]),
    op("Swish", Same).halves(24, 24).marks(&[Elementwise]),
    op("HardSwish", Same).halves(14, 22).cuda(22).marks(&[Elementwise]),
    op("Elu", Same).halves(1, 22).marks(&[Elementwise, Activation]),
    op("Selu", Same).halves(1, 22).marks(&[Elementwise, Activation]),
    op("Mish", Same).halves(18, 22).cuda(22).marks(&[Elementwise, Activation]),
    op("LeakyRelu", Same).halves(1, 16).marks(&[Elementwise, Activation]),
    op("Softplus", Same).cuda(22).marks(&[Activation]),
    op("Celu", Same).marks(&[Activation]),
    op("HardSigmoid", Same).halves(1, 22).cuda(22).marks(&[Elementwise]),
    op("ThresholdedRelu", Same).halves(10, 22).marks(&[Elementwise]),
    op("Softsign", Same).halves(1, 22).cuda(22).marks(&[Elementwise]),
    op("Shrink", Same),
    op("Clip", Same).halves(1, 13).marks(&[Elementwise, Deviation]),
    op("Not", Same).makes(Bool),
    op("IsNaN", Same).halves(9, 13).cuda(13).makes(Bool).marks(&[Elementwise]),
    op("IsInf", Same).halves(20, 20).makes(Bool).marks(&[Elementwise]),
    op("Cast", Same).halves(1, 13).cuda(13).makes(Attribute("to")).marks(&[Keeps, Image, NormStep, Heads]),
    op("CastLike", Same).halves(15, 15).makes(Of(1)),
    op("BitCast", Same).makes(Attribute("to")),
    op("Identity", Same).halves(1, 13).cuda(13).marks(&[Moves, MovesQuantised, Keeps, Image, NormStep, Heads]),
    op("Dropout", Same).halves(1, 13).marks(&[Moves]),
    microsoft("Gelu", Same).float16().cuda(ANY).marks(&[Elementwise]),
    microsoft("QuickGelu", Same).float16().cuda(ANY),
    // Elementwise, of several operands
    op("Add", Broadcast).takes(2).halves(1, 13).cuda(13)
        .marks(&[Elementwise, Arithmetic, NormStep, Deviation, HeadDim]),
    op("Sub", Broadcast).takes(2).halves(1, 13).cuda(13).marks(&[Elementwise, Arithmetic, NormStep, Deviation]),
    op("Mul", Broadcast).takes(2).halves(1, 13).cuda(13).marks(&[Elementwise, Arithmetic, NormStep, HeadDim]),
    op("Div", Broadcast).takes(2).halves(1, 13).cuda(13)
        .marks(&[Elementwise, Arithmetic, NormStep, Deviation, HeadDim]),
    op("Pow", Broadcast).takes(2).cuda(15).marks(&[NormStep]),
    op("Mod", Broadcast).takes(2).halves(10, 13).cuda(13).marks(&[Elementwise]),
    op("Min", Broadcast).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Max", Broadcast).halves(1, 13).cuda(13).marks(&[Elementwise, Deviation]),
    op("Sum", Broadcast).halves(1, 13).cuda(13).marks(&[Elementwise]),
    op("Mean", Broadcast).halves(1, 13).marks(&[Elementwise]),
    op("PRelu", Broadcast).takes(2).halves(1, 16).marks(&[Elementwise]),
    op("Where", Broadcast).takes(3).halves(9, 16).cuda(16).makes(Of(1)).marks(&[Moves]),
    op("Equal", Broadcast).takes(2).halves(11, 13).makes(Bool).marks(&[Elementwise]),
    op("Greater", Broadcast).takes(2).halves(1, 13).makes(Bool).marks(&[Elementwise]),
    op("Less", Broadcast).takes(2).halves(1, 13).makes(Bool).marks(&[Elementwise]),
    op("GreaterOrEqual", Broadcast).takes(2).halves(12, 16).makes(Bool).marks(&[Elementwise]),
    op("LessOrEqual", Broadcast).takes(2).halves(12, 16).makes(Bool).marks(&[Elementwise]),
    op("And", Broadcast).takes(2).makes(Bool),
    op("Or", Broadcast).takes(2).makes(Bool),
    op("Xor", Broadcast).takes(2).makes(Bool),
    op("BitShift", Broadcast),
    op("SwiGLU", Broadcast).takes(2).halves(28, 28).marks(&[Elementwise, Composite, Recent]),
    microsoft("BiasGelu", Broadcast).float16().cuda(ANY).slots(&[Data, Bias]).marks(&[Composite]),
    microsoft("FastGelu", Broadcast).float16().cuda(ANY).slots(&[Data, Bias]).marks(&[Composite]),
    // Movement
    op("Reshape", Own).halves(1, 13).cuda(13).slots(&[Data, Sizes])
        .marks(&[Moves, MovesQuantised, Keeps, View, Image, Heads, HeadDim]),
    op("Flatten", Own).halves(1, 13).cuda(13).marks(&[Moves, MovesQuantised, Keeps, View]),
    op("Squeeze", Own).halves(1, 13).cuda(13).slots(&[Data, Places])
        .marks(&[Moves, MovesQuantised, Keeps, View, Image, HeadDim]),
    op("Unsqueeze", Own).halves(1, 13).cuda(13).slots(&[Data, Places])
        .marks(&[Moves, MovesQuantised, Keeps, View, Image, HeadDim]),
    op("Transpose", Own).halves(1, 13).cuda(13).marks(&[Moves, MovesQuantised, Keeps, Image, Heads, HeadDim]),
    op("Concat", Own).halves(1, 13).cuda(13).marks(&[Moves, MovesQuantised]),
    op("Split", Own).halves(1, 13).cuda(13).slots(&[Data, Sizes]).marks(&[Moves, MovesQuantised, HeadDim]),
    op("Slice", Own).halves(1, 13).cuda(13).slots(&[Data, Sizes, Sizes, Places, Places])
        .marks(&[Moves, MovesQuantised, HeadDim]),
    op("Expand", Own).halves(8, 13).cuda(13).slots(&[Data, Sizes]).marks(&[Moves, MovesQuantised]),
    op("Tile", Own).halves(1, 13).cuda(13).slots(&[Data, Places]).marks(&[Moves]),
    op("Pad", Own).halves(1, 13).slots(&[Data, Borders]).marks(&[Moves]),
    op("Trilu", Same).halves(14, 14).cuda(16).marks(&[Moves]),
    op("DepthToSpace", Own).halves(1, 13).marks(&[Moves]),
    op("SpaceToDepth", Own).halves(1, 13).marks(&[Moves]),
    // Indexing
    op("Gather", Own).halves(1, 13).cuda(13).slots(&[Data, Indices]).marks(&[Moves, MovesQuantised, HeadDim]),
    op("GatherElements", Own).halves(11, 13).cuda(13).slots(&[Data, Indices]).marks(&[Moves]),
    op("GatherND", Own).halves(11, 13).cuda(13).slots(&[Data, Indices]).marks(&[Moves]),
    op("ScatterElements", Same).needs(3).halves(11, 13).cuda(16).marks(&[Moves]),
    op("ScatterND", Own).needs(3).halves(11, 13).cuda(16).marks(&[Moves]),
    op("Compress", Own).marks(&[Moves, Counts]),
    op("NonZero", Own).makes(Int64).marks(&[Counts]),
    op("TopK", Own),
    op("OneHot", Own).makes(Of(2)),
    // Contraction
    op("MatMul", Own).takes(2).halves(1, 13).cuda(13).marks(&[HeadDim]),
    op("Gemm", Own).halves(1, 13).cuda(13).slots(&[Data, Data, Bias]).marks(&[HeadDim]),
    op("Einsum", Own).halves(12, 28).marks(&[HeadDim]),
    op("Conv", Own).halves(1, 22).cuda(22).slots(&[Data, Data, Bias]).marks(&[HeadDim, Window]),
    op("ConvTranspose", Own).halves(1, 22).slots(&[Data, Data, Bias]).marks(&[Window]),
    microsoft("FusedMatMul", Own).float16().cuda(ANY),
    microsoft("TransposeMatMul", Own).cuda(ANY),
    microsoft("FusedConv", Own).float16(),
    offshoot("Linear", Own),
    op("CausalConvWithState", Own).halves(27, 27).slots(&[Data, Data, Bias, Constant]).marks(&[Composite, Recent]),
    // Normalisation
    op("LayerNormalization", Broadcast).needs(2).halves(17, 17).cuda(17).slots(&[Data, Scale, Shift])
        .marks(&[LayerNorm]),
    op("RMSNormalization", Broadcast).needs(2).halves(23, 23).cuda(23).slots(&[Data, Scale]).marks(&[LayerNorm]),
    op("SimplifiedLayerNormalization", Broadcast).needs(2).halves(17, 17).cuda(17).slots(&[Data, Scale])
        .marks(&[LayerNorm]),
    op("BatchNormalization", Channels).needs(5).halves(1, 14).slots(&[Data, Scale, Shift, Constant, Constant]),
    op("InstanceNormalization", Channels).needs(3).halves(1, 22).slots(&[Data, Scale, Shift]),
    op("GroupNormalization", Channels).needs(3).halves(18, 18).slots(&[Data, Scale, Shift]),
    op("LpNormalization", Same),
    op("MeanVarianceNormalization", Same),
    op("Softmax", Same).halves(1, 13).cuda(13),
    op("LogSoftmax", Same).halves(1, 13),
    op("Hardmax", Same).halves(1, 13).marks(&[Flat]),
    microsoft("SimplifiedLayerNormalization", Broadcast).needs(2).float16().slots(&[Data, Scale]).marks(&[LayerNorm]),
    microsoft("SkipLayerNormalization", Broadcast).float16().cuda(ANY).slots(&[Data, Data, Scale, Shift, Bias])
        .marks(&[Composite]),
    microsoft("SkipSimplifiedLayerNormalization", Broadcast).float16().slots(&[Data, Data, Scale, Bias])
        .marks(&[Composite]),
    // Reduction
    op("ReduceSum", Reduce).cuda(13),
    op("ReduceMean", Reduce).cuda(13),
    op("ReduceMax", Reduce).halves(1, 13).marks(&[Elementwise]),
    op("ReduceMin", Reduce).halves(1, 13).marks(&[Elementwise]),
    op("ReduceProd", Reduce),
    op("ReduceL1", Reduce).cuda(18),
    op("ReduceL2", Reduce),
    op("ReduceSumSquare", Reduce).cuda(18),
    op("ReduceLogSum", Reduce),
    op("ReduceLogSumExp", Reduce),
    op("ArgMax", Reduce).halves(1, 13).makes(Int64),
    op("ArgMin", Reduce).halves(1, 13).makes(Int64),
    op("CumSum", Same),
    op("CumProd", Same).marks(&[Composite, Recent]),
    // Resampling
    op("AveragePool", Own).halves(1, 22).cuda(22).marks(&[Window]),
    op("MaxPool", Own).halves(1, 22).marks(&[MovesQuantised, Window]),
    op("LpPool", Own).marks(&[Window]),
    op("GlobalAveragePool", Own).halves(1, 22),
    op("GlobalMaxPool", Own).halves(1, 22),
    op("Col2Im", Own),
    op("Resize", Own).halves(10, 13).slots(&[Data]).then(Extent).marks(&[Image]),
    op("Upsample", Own).slots(&[Data]).then(Extent).marks(&[Image]),
    op("GridSample", Own).takes(2).halves(16, 22),
    op("RoiAlign", Own).needs(3).halves(10, 22),
    // Recurrence
    op("LSTM", Own).needs(3).halves(1, 22).slots(&[Data, Data, Data, Bias]),
    op("GRU", Own).needs(3).halves(1, 22).slots(&[Data, Data, Data, Bias]),
    // Attention
    op("Attention", Own).halves(23, 23).cuda(23).slots(&[Data, Data, Data]).then(Slot::Heads).marks(&[Rounds]),
    op("LinearAttention", Own).halves(27, 27).slots(&[Data, Data, Data, Constant]).marks(&[Composite, Recent]),
    op("RotaryEmbedding", Same).halves(23, 23).slots(&[Data]).then(Constant).marks(&[Composite]),
    microsoft("Attention", Own).float16().slots(&[Data, Data, Bias]).then(Slot::Heads),
    microsoft("MultiHeadAttention", Own).float16().slots(&[Data, Data, Data, Bias]).then(Slot::Heads),
    microsoft("PackedAttention", Own).slots(&[Data, Data, Bias]).then(Slot::Heads),
    microsoft("PackedMultiHeadAttention", Own).slots(&[Data, Data, Data, Bias]).then(Slot::Heads),
    microsoft("RotaryEmbedding", Same).float16().slots(&[Data]).then(Constant).marks(&[Composite]),
    microsoft("RemovePadding", Own),
    microsoft("RestorePadding", Own),
    offshoot("Attention", Own).slots(&[Data, Data, Data]).then(Slot::Heads),
    // Values that are made
    op("Constant", Own).cuda(13),
    op("ConstantOfShape", Own).cuda(13).slots(&[Sizes]).marks(&[Flat]),
    op("Shape", Own).cuda(13).makes(Int64),
    op("Size", Own).cuda(13).makes(Int64),
    op("Range", Own).then(Extent),
    op("EyeLike", Same).makes(Attribute("dtype")).marks(&[Flat]),
    op("RandomUniform", Own).marks(&[Random]),
    op("RandomNormal", Own).marks(&[Random]),
    op("RandomUniformLike", Own).marks(&[Random]),
    op("RandomNormalLike", Own).marks(&[Random]),
    op("Bernoulli", Own).marks(&[Random]),
    op("Multinomial", Own).marks(&[Random]),
    // Quantised
    op("DynamicQuantizeLinear", Own).marks(&[Dequantised]),
    op("QuantizeLinear", Own).marks(&[Dequantised]),
    op("DequantizeLinear", Same).needs(2).makes(Of(1)).slots(&[Data]).then(Constant).marks(&[Dequantised]),
    op("MatMulInteger", Own).needs(2).makes(Int32).slots(&[Data, Data]).then(Constant).marks(&[Dequantised]),
    op("ConvInteger", Own).marks(&[Dequantised]),
    op("QLinearMatMul", Own).marks(&[Dequantised]),
    op("QLinearConv", Own).marks(&[Dequantised]),
    microsoft("QGemm", Own).marks(&[Dequantised]),
    microsoft("QLinearAdd", Own).marks(&[Dequantised]),
    microsoft("QLinearMul", Own).marks(&[Dequantised]),
    microsoft("QLinearSigmoid", Own).marks(&[Dequantised]),
    microsoft("QLinearLeakyRelu", Own).marks(&[Dequantised]),
    microsoft("QLinearSoftmax", Own).marks(&[Dequantised]),
    microsoft("QLinearAveragePool", Own).marks(&[Dequantised]),
    microsoft("QLinearGlobalAveragePool", Own).marks(&[Dequantised]),
    microsoft("QLinearConcat", Own).marks(&[Dequantised]),
    microsoft("QLinearWhere", Own).marks(&[Dequantised]),
];
