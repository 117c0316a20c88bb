//! Softmax and the norms: each projects the gradient.

use super::super::tape::Backward;
use super::elementwise::times;
use super::operands::{list, refuse};
use crate::error::Result;
use crate::graph::{Attributes, float_attribute, ints_attribute, nearest_axis};
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;
use crate::runtime::kernels::DOMAIN;

pub fn softmax(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let y = &guarded(t, &node.output[0]);
    t.give(node, 0, |t, x| {
        let rank = t.shape(x)?.len();
        let axis = nearest_axis(node.int("axis").unwrap_or(if t.typing.opset < 13 { 1 } else { -1 }), rank);
        // Before opset 13 every axis from `axis` on is one distribution.
        let axes: Vec<usize> = if t.typing.opset < 13 { (axis..rank).collect() } else { vec![axis] };
        Ok(if node.op_type() == "Softmax" && axes == [rank - 1] && t.fuses() {
            t.fused("SoftmaxGradient", &[g, y], 1, vec![]).remove(0)
        } else if node.op_type() == "Softmax" {
            let gy = t.op("Mul", &[g, y]);
            let sum = t.reduce("ReduceSum", &gy, &axes, true);
            let p = t.op("Mul", &[y, &sum]);
            t.op("Sub", &[&gy, &p])
        } else {
            let sum = t.reduce("ReduceSum", g, &axes, true);
            let e = t.op("Exp", &[y]);
            let p = t.op("Mul", &[&e, &sum]);
            t.op("Sub", &[g, &p])
        })
    })
}

/// What a graph makes of the output of a Softmax whose rows are no numbers where they see nothing: PyTorch's exporters
/// put zeros in their place, and zero is their gradient, too. Else the output itself.
fn guarded(t: &Backward, y: &str) -> String {
    let nodes = &t.typing.graph.node;
    let is_nan: Vec<&str> = (nodes.iter())
        .filter(|n| n.op_type() == "IsNaN" && n.input.first().is_some_and(|x| x == y))
        .flat_map(|n| &n.output)
        .map(String::as_str)
        .collect();
    let of = |n: &&NodeProto| match &n.input[..] {
        [condition, _, other] => n.op_type() == "Where" && is_nan.contains(&condition.as_str()) && other == y,
        _ => false,
    };
    nodes.iter().find(of).and_then(|n| n.output.first()).map_or(y, String::as_str).to_string()
}

/// (x - mean) / deviation over some axes, and what its gradient is made of.
struct Standard {
    axes: Vec<usize>,
    centred: bool,
    /// The normalised value.
    normal: String,
    /// 1 / deviation.
    inverse: String,
}

impl Standard {
    /// Computes the statistics again.
    fn new(t: &mut Backward, x: &str, axes: Vec<usize>, centred: bool, epsilon: f32) -> Self {
        let difference = if centred {
            let mean = t.reduce("ReduceMean", x, &axes, true);
            t.op("Sub", &[x, &mean])
        } else {
            x.to_string()
        };
        let square = t.op("Mul", &[&difference, &difference]);
        let variance = t.reduce("ReduceMean", &square, &axes, true);
        let epsilon = t.scalar(epsilon);
        let shifted = t.op("Add", &[&variance, &epsilon]);
        let deviation = t.op("Sqrt", &[&shifted]);
        let inverse = t.op("Reciprocal", &[&deviation]);
        let normal = t.op("Mul", &[&difference, &inverse]);
        Standard { axes, centred, normal, inverse }
    }

    /// The gradient of the input, from that of the normalised value.
    fn backward(&self, t: &mut Backward, g: &str) -> String {
        let product = t.op("Mul", &[g, &self.normal]);
        let along = t.reduce("ReduceMean", &product, &self.axes, true);
        let projected = t.op("Mul", &[&self.normal, &along]);
        let mut rest = t.op("Sub", &[g, &projected]);
        if self.centred {
            let mean = t.reduce("ReduceMean", g, &self.axes, true);
            rest = t.op("Sub", &[&rest, &mean]);
        }
        t.op("Mul", &[&rest, &self.inverse])
    }
}

/// LayerNormalization (opset 17), RMSNormalization (opset 23) and ONNX Runtime's SimplifiedLayerNormalization.
pub fn layer_norm(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let shape = t.shape(x)?;
    let first = nearest_axis(node.int("axis").unwrap_or(-1), shape.len());
    let axes: Vec<usize> = (first..shape.len()).collect();
    let centred = node.op_type() == "LayerNormalization";
    if centred && t.fuses() && t.shape(w)? == shape[first..] {
        return fused_layer_norm(t, node, g);
    }
    // The operator's own statistics, which are of the element type of its computation (float32 unless it says
    // otherwise).
    let standard = if centred && t.kind == DataType::Float && node.int("stash_type").unwrap_or(1) == 1 {
        let (mean, inverse) = (t.forward_output(node, 1), t.forward_output(node, 2));
        let difference = t.op("Sub", &[x, &mean]);
        let normal = t.op("Mul", &[&difference, &inverse]);
        Standard { axes, centred, normal, inverse }
    } else {
        Standard::new(t, x, axes, centred, node.float("epsilon").unwrap_or(1e-5))
    };
    t.give(node, 2, |t, b| {
        let to = t.shape(b)?;
        Ok(t.unbroadcast(g, &shape, &to))
    })?;
    t.give(node, 1, |t, w| {
        let to = t.shape(w)?;
        let p = t.op("Mul", &[g, &standard.normal]);
        Ok(t.unbroadcast(&p, &shape, &to))
    })?;
    t.give(node, 0, |t, _| {
        let scaled = t.op("Mul", &[g, w]);
        Ok(standard.backward(t, &scaled))
    })
}

/// All three gradients in one pass; what was gathered for the input is added on the way.
fn fused_layer_norm(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let gathered = if t.requires_grad(x) { t.take_grad(x) } else { None };
    let inputs: Vec<&str> = [g, x, w].into_iter().chain(gathered.as_deref()).collect();
    let epsilon = float_attribute("epsilon", node.float("epsilon").unwrap_or(1e-5));
    let gradients = t.fused("LayerNormalizationGradient", &inputs, 3, vec![epsilon]);
    for (j, gradient) in gradients.into_iter().enumerate() {
        t.give(node, j, |t, x| {
            let to = t.shape(x)?;
            Ok(t.reshape(&gradient, &to))
        })?;
    }
    Ok(())
}

/// Offshoot's own attention. Query, key and value may be parts of one tensor, which then has one gradient.
pub fn attention(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let ([q, k, v], [output, sums]) = (&node.input[..], &node.output[..]) else {
        return Err(refuse(node, "this form"));
    };
    if node.domain() != DOMAIN || !t.fuses() {
        return Err(refuse(node, "a gradient of standard operators"));
    }
    // Each input's gradient is that of the first input of the same name.
    let inputs = [q, k, v];
    let mut distinct: Vec<&String> = Vec::new();
    let mut targets = Vec::new();
    for x in inputs {
        let at = distinct.iter().position(|d| *d == x).unwrap_or_else(|| {
            distinct.push(x);
            distinct.len() - 1
        });
        targets.push(at as i64);
    }
    let mut attributes: Vec<_> = node.attribute.clone();
    attributes.push(ints_attribute("gradients", &targets));
    let gradients = t.fused("AttentionGradient", &[g, q, k, v, output, sums], distinct.len(), attributes);
    for (gradient, x) in gradients.into_iter().zip(distinct) {
        let j = inputs.iter().position(|i| *i == x).unwrap_or(0);
        t.give(node, j, |_, _| Ok(gradient))?;
    }
    Ok(())
}

/// InstanceNormalization and GroupNormalization: [batch, channels, ...] normalised over groups of channels, then scaled
/// for each channel, or for each group (GroupNormalization of opset 18 to 20).
pub fn group_norm(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let shape = t.shape(&node.input[0])?;
    let [batch, channels, ..] = shape[..] else { return Err(refuse(node, "this rank")) };
    let pixels: usize = shape[2..].iter().product();
    let groups = match node.op_type() {
        "InstanceNormalization" => channels,
        _ => node.int("num_groups").unwrap_or(1).max(1) as usize,
    };
    let grouped = [batch, groups, channels / groups * pixels];
    // What one element of scale and bias covers.
    let scales: usize = t.shape(&node.input[1])?.iter().product();
    let covered = [batch, scales, channels * pixels / scales.max(1)];
    let x = t.reshape(&node.input[0], &grouped);
    let standard = Standard::new(t, &x, vec![2], true, node.float("epsilon").unwrap_or(1e-5));
    let g = t.reshape(g, &covered);
    t.give(node, 2, |t, _| Ok(t.reduce("ReduceSum", &g, &[0, 2], false)))?;
    t.give(node, 1, |t, _| {
        let normal = t.reshape(&standard.normal, &covered);
        let p = t.op("Mul", &[&g, &normal]);
        Ok(t.reduce("ReduceSum", &p, &[0, 2], false))
    })?;
    t.give(node, 0, |t, _| {
        let scale = t.reshape(&node.input[1], &[1, scales, 1]);
        let scaled = t.op("Mul", &[&g, &scale]);
        let scaled = t.reshape(&scaled, &grouped);
        let out = standard.backward(t, &scaled);
        Ok(t.reshape(&out, &shape))
    })
}

pub fn mean_variance(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    t.give(node, 0, |t, x| {
        let rank = t.shape(x)?.len();
        let axes = node.ints("axes").unwrap_or(&[0, 2, 3]).iter().map(|&a| nearest_axis(a, rank)).collect();
        let standard = Standard::new(t, x, axes, true, 0.0);
        Ok(standard.backward(t, g))
    })
}

/// x / ‖x‖ along an axis, by the sum of sizes (p = 1) or the length (p = 2).
pub fn lp_norm(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let y = &node.output[0];
    t.give(node, 0, |t, x| {
        let axis = [nearest_axis(node.int("axis").unwrap_or(-1), t.shape(x)?.len())];
        let first = node.int("p").unwrap_or(2) == 1;
        let size = t.reduce(if first { "ReduceL1" } else { "ReduceL2" }, x, &axis, true);
        let along = if first { t.op("Sign", &[x]) } else { y.to_string() };
        let product = t.op("Mul", &[g, y]);
        let sum = t.reduce("ReduceSum", &product, &axis, true);
        let projected = t.op("Mul", &[&along, &sum]);
        let rest = t.op("Sub", &[g, &projected]);
        Ok(t.op("Div", &[&rest, &size]))
    })
}

/// BatchNormalization with fixed statistics: scale and bias are trained, running means and variances are not.
pub fn batch_norm(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    if node.int("training_mode").unwrap_or(0) != 0 {
        return Err(refuse(node, "statistics of the batch (export the model in evaluation mode)"));
    }
    let shape = t.shape(&node.input[0])?;
    if shape.len() < 2 {
        return Err(refuse(node, "an input without channels"));
    }
    let mut per_channel = vec![1; shape.len()];
    per_channel[1] = shape[1];
    let axes: Vec<usize> = (0..shape.len()).filter(|&a| a != 1).collect();
    let epsilon = t.scalar(node.float("epsilon").unwrap_or(1e-5));
    let shifted = t.op("Add", &[&node.input[4], &epsilon]);
    let root = t.op("Sqrt", &[&shifted]);
    let deviation = t.reshape(&root, &per_channel);
    t.give(node, 2, |t, _| Ok(t.reduce("ReduceSum", g, &axes, false)))?;
    t.give(node, 1, |t, _| {
        let mean = t.reshape(&node.input[3], &per_channel);
        let difference = t.op("Sub", &[&node.input[0], &mean]);
        let normal = t.op("Div", &[&difference, &deviation]);
        let p = t.op("Mul", &[g, &normal]);
        Ok(t.reduce("ReduceSum", &p, &axes, false))
    })?;
    t.give(node, 0, |t, _| {
        let scale = t.reshape(&node.input[1], &per_channel);
        let factor = t.op("Div", &[&scale, &deviation]);
        Ok(t.op("Mul", &[g, &factor]))
    })
}

/// Reductions, and pooling over a whole image.
pub fn reduce(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let op = node.op_type();
    let global = matches!(op, "GlobalAveragePool" | "GlobalMaxPool");
    let axes = if global { None } else { list(t, node, "axes", 1)?.filter(|a| !a.is_empty()) };
    let y = &node.output[0];
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let axes: Vec<usize> = match axes {
            Some(list) => list.iter().map(|&a| nearest_axis(a, shape.len())).collect(),
            None if global => (2..shape.len()).collect(),
            None if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => return Err(refuse(node, "no axes")),
            None => (0..shape.len()).collect(),
        };
        let kept: Vec<usize> = (0..shape.len()).map(|i| if axes.contains(&i) { 1 } else { shape[i] }).collect();
        let mut g = t.reshape(g, &kept);
        let y = t.reshape(y, &kept);
        let slope = match op {
            "ReduceSum" | "ReduceMean" | "GlobalAveragePool" => {
                if op != "ReduceSum" {
                    g = times(t, &g, 1.0 / axes.iter().map(|&a| shape[a]).product::<usize>() as f32);
                }
                let target = t.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
                return Ok(t.op("Expand", &[&g, &target]));
            }
            "ReduceL1" => t.op("Sign", &[x]),
            "ReduceL2" => {
                g = t.op("Div", &[&g, &y]);
                x.to_string()
            }
            "ReduceSumSquare" => times(t, x, 2.0),
            "ReduceLogSum" => {
                let sum = t.op("Exp", &[&y]);
                g = t.op("Div", &[&g, &sum]);
                let target = t.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
                return Ok(t.op("Expand", &[&g, &target]));
            }
            "ReduceLogSumExp" => {
                let difference = t.op("Sub", &[x, &y]);
                t.op("Exp", &[&difference])
            }
            "ReduceMax" | "ReduceMin" | "GlobalMaxPool" => {
                // Elements that tie share the gradient, as in PyTorch.
                let equal = t.op("Equal", &[x, &y]);
                let hot = t.indicator(&equal);
                let count = t.reduce("ReduceSum", &hot, &axes, true);
                g = t.op("Div", &[&g, &count]);
                hot
            }
            _ => return Err(refuse(node, "a gradient")),
        };
        Ok(t.op("Mul", &[&slope, &g]))
    })
}
