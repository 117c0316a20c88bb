//! One gradient rule an operator. A rule emits standard operators, and only for inputs that need a gradient.

use super::tape::Tape;
use crate::axes::arithmetic::slice_range;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, int_attribute};
use crate::onnx::is_float;
use crate::onnx::proto::NodeProto;

/// Gives the inputs of a node their gradients. `given` holds what has been gathered for each output.
pub(super) fn backward(t: &mut Tape, node: &NodeProto, given: &[Option<String>]) -> Result<()> {
    let op = node.op_type();
    if op == "Split" {
        return split(t, node, given);
    }
    let Some(g) = given.first().cloned().flatten() else {
        return Err(refuse(node, "a gradient through this output"));
    };
    let (x, y) = (node.input.first().map(String::as_str).unwrap_or(""), node.output[0].as_str());
    let second = || node.input.get(1).map(String::as_str).unwrap_or("");
    match op {
        "Identity" | "Cast" | "Dropout" => t.give(node, 0, |_, _| Ok(g)),
        "Add" | "Sum" => {
            for j in 0..node.input.len() {
                t.give_broadcast(node, j, |_| g.clone())?;
            }
            Ok(())
        }
        "Sub" => {
            t.give_broadcast(node, 0, |_| g.clone())?;
            t.give_broadcast(node, 1, |t| t.op("Neg", &[&g]))
        }
        "Mul" => {
            t.give_broadcast(node, 0, |t| t.op("Mul", &[&g, second()]))?;
            t.give_broadcast(node, 1, |t| t.op("Mul", &[&g, x]))
        }
        "Div" => {
            t.give_broadcast(node, 0, |t| t.op("Div", &[&g, second()]))?;
            t.give_broadcast(node, 1, |t| {
                let p = t.op("Mul", &[&g, y]);
                let q = t.op("Div", &[&p, second()]);
                t.op("Neg", &[&q])
            })
        }
        "Pow" => power(t, node, &g),
        // y = f(x), with f'(x) from x or y.
        "Neg" => t.give(node, 0, |t, _| Ok(t.op("Neg", &[&g]))),
        "Sqrt" => t.give(node, 0, |t, _| {
            let half = t.scalar(0.5);
            let h = t.op("Mul", &[&g, &half]);
            Ok(t.op("Div", &[&h, y]))
        }),
        "Reciprocal" => t.give(node, 0, |t, _| {
            let square = t.op("Mul", &[y, y]);
            let p = t.op("Mul", &[&g, &square]);
            Ok(t.op("Neg", &[&p]))
        }),
        "Exp" => t.give(node, 0, |t, _| Ok(t.op("Mul", &[&g, y]))),
        "Log" => t.give(node, 0, |t, x| Ok(t.op("Div", &[&g, x]))),
        "Sin" => t.give(node, 0, |t, x| {
            let c = t.op("Cos", &[x]);
            Ok(t.op("Mul", &[&g, &c]))
        }),
        "Cos" => t.give(node, 0, |t, x| {
            let s = t.op("Sin", &[x]);
            let p = t.op("Mul", &[&g, &s]);
            Ok(t.op("Neg", &[&p]))
        }),
        "Erf" => t.give(node, 0, |t, x| {
            let square = t.op("Mul", &[x, x]);
            let minus = t.op("Neg", &[&square]);
            let bell = t.op("Exp", &[&minus]);
            let factor = t.scalar(std::f32::consts::FRAC_2_SQRT_PI);
            let slope = t.op("Mul", &[&bell, &factor]);
            Ok(t.op("Mul", &[&g, &slope]))
        }),
        "Tanh" => t.give(node, 0, |t, _| {
            let square = t.op("Mul", &[y, y]);
            let one = t.scalar(1.0);
            let slope = t.op("Sub", &[&one, &square]);
            Ok(t.op("Mul", &[&g, &slope]))
        }),
        "Sigmoid" => t.give(node, 0, |t, _| {
            let one = t.scalar(1.0);
            let rest = t.op("Sub", &[&one, y]);
            let slope = t.op("Mul", &[y, &rest]);
            Ok(t.op("Mul", &[&g, &slope]))
        }),
        "Relu" => t.give(node, 0, |t, x| {
            let zero = t.scalar(0.0);
            let on = t.op("Greater", &[x, &zero]);
            Ok(t.op("Where", &[&on, &g, &zero]))
        }),
        "Abs" => t.give(node, 0, |t, x| {
            let sign = t.op("Sign", &[x]);
            Ok(t.op("Mul", &[&g, &sign]))
        }),
        "Clip" => t.give(node, 0, |t, x| {
            let zero = t.scalar(0.0);
            let inside = t.op("Equal", &[x, y]);
            Ok(t.op("Where", &[&inside, &g, &zero]))
        }),
        "HardSigmoid" => {
            let (a, b) = (node.float("alpha").unwrap_or(0.2), node.float("beta").unwrap_or(0.5));
            t.give(node, 0, |t, x| {
                let slope = inside(t, x, -b / a, (1.0 - b) / a, &g);
                let a = t.scalar(a);
                Ok(t.op("Mul", &[&slope, &a]))
            })
        }
        "HardSwish" => t.give(node, 0, |t, x| hard_swish(t, x, &g)),
        "Gelu" => t.give(node, 0, |t, x| Ok(gelu(t, x, &g, node.string("approximate") == Some("tanh")))),
        "Softmax" | "LogSoftmax" => softmax(t, node, &g),
        "LayerNormalization" | "RMSNormalization" => layer_norm(t, node, &g),
        "BatchNormalization" => batch_norm(t, node, &g),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => t.give(node, 0, |t, x| {
            let shape = t.shape(x)?;
            Ok(t.reshape(&g, &shape))
        }),
        "Transpose" => t.give(node, 0, |t, x| {
            let rank = t.shape(x)?.len();
            let perm: Vec<usize> = match node.ints("perm").filter(|p| !p.is_empty()) {
                Some(p) => p.iter().map(|&a| wrap(a, rank)).collect(),
                None => (0..rank).rev().collect(),
            };
            let inverse: Vec<usize> = (0..rank).map(|i| perm.iter().position(|&p| p == i).unwrap_or(i)).collect();
            Ok(t.transpose(&g, &inverse))
        }),
        "Expand" => t.give_broadcast(node, 0, |_| g.clone()),
        "Tile" => tile(t, node, &g),
        "Where" => {
            t.give_broadcast(node, 1, |t| {
                let zero = t.scalar(0.0);
                t.op("Where", &[x, &g, &zero])
            })?;
            t.give_broadcast(node, 2, |t| {
                let zero = t.scalar(0.0);
                t.op("Where", &[x, &zero, &g])
            })
        }
        "Concat" => concat(t, node, &g),
        "Slice" => slice(t, node, &g),
        "Gather" => gather(t, node, &g),
        "Pad" => pad(t, node, &g),
        "ReduceSum" | "ReduceMean" | "ReduceL2" | "ReduceMax" | "GlobalAveragePool" => reduce(t, node, &g),
        "MatMul" => matmul(t, node, &g),
        "Gemm" => gemm(t, node, &g),
        "Conv" => conv(t, node, &g),
        "Resize" => resize(t, node, &g),
        _ => Err(refuse(node, "a gradient")),
    }
}

fn refuse(node: &NodeProto, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("`{}` has no rule for {what}", node.op_type()))
        .hint("freeze the weights before this node, or export the model with standard operators")
}

fn wrap(a: i64, rank: usize) -> usize {
    (if a < 0 { a + rank as i64 } else { a }).clamp(0, rank.max(1) as i64 - 1) as usize
}

/// A list of integers that is an attribute or a known input.
fn list(t: &Tape, node: &NodeProto, name: &str, j: usize) -> Result<Option<Vec<i64>>> {
    if let Some(list) = node.ints(name) {
        return Ok(Some(list.to_vec()));
    }
    match node.input.get(j).filter(|x| !x.is_empty()) {
        None => Ok(None),
        Some(x) => match t.typing.known.get(x.as_str()) {
            Some(known) => Ok(Some(known.ints())),
            None => Err(refuse(node, "a shape operand that is not constant")),
        },
    }
}

fn power(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let exponent = t.typing.known.get(node.input[1].as_str()).filter(|k| k.data.len() == 1);
    let Some(c) = exponent.and_then(|k| k.data.first().copied()) else {
        return Err(refuse(node, "an exponent that is not a constant"));
    };
    t.give(node, 0, |t, x| {
        let factor = t.scalar(c as f32);
        let slope = if c == 2.0 {
            t.op("Mul", &[x, &factor])
        } else {
            let less = t.scalar(c as f32 - 1.0);
            let p = t.op("Pow", &[x, &less]);
            t.op("Mul", &[&p, &factor])
        };
        Ok(t.op("Mul", &[g, &slope]))
    })
}

/// The gradient where low < x < high, zero elsewhere.
fn inside(t: &mut Tape, x: &str, low: f32, high: f32, g: &str) -> String {
    let (low, high, zero) = (t.scalar(low), t.scalar(high), t.scalar(0.0));
    let above = t.op("Greater", &[x, &low]);
    let below = t.op("Less", &[x, &high]);
    let both = t.op("And", &[&above, &below]);
    t.op("Where", &[&both, g, &zero])
}

/// x · clip(x/6 + 1/2, 0, 1): the slope is 1 above 3 and x/3 + 1/2 between.
fn hard_swish(t: &mut Tape, x: &str, g: &str) -> Result<String> {
    let (third, half, three, zero) = (t.scalar(1.0 / 3.0), t.scalar(0.5), t.scalar(3.0), t.scalar(0.0));
    let p = t.op("Mul", &[x, &third]);
    let slope = t.op("Add", &[&p, &half]);
    let sloped = t.op("Mul", &[g, &slope]);
    let between = inside(t, x, -3.0, 3.0, &sloped);
    let above = t.op("GreaterOrEqual", &[x, &three]);
    let whole = t.op("Where", &[&above, g, &zero]);
    Ok(t.op("Add", &[&between, &whole]))
}

fn gelu(t: &mut Tape, x: &str, g: &str, tanh: bool) -> String {
    let (half, one) = (t.scalar(0.5), t.scalar(1.0));
    let slope = if tanh {
        // u = sqrt(2/π) (x + 0.044715 x³); y = x/2 (1 + tanh u).
        let (a, b) = (t.scalar((2.0 / std::f32::consts::PI).sqrt()), t.scalar(0.044715));
        let square = t.op("Mul", &[x, x]);
        let bs = t.op("Mul", &[&square, &b]);
        let inner = t.op("Add", &[&bs, &one]);
        let ax = t.op("Mul", &[x, &a]);
        let u = t.op("Mul", &[&ax, &inner]);
        let th = t.op("Tanh", &[&u]);
        let three = t.scalar(3.0);
        let bs3 = t.op("Mul", &[&bs, &three]);
        let du_inner = t.op("Add", &[&bs3, &one]);
        let du = t.op("Mul", &[&du_inner, &a]);
        let th2 = t.op("Mul", &[&th, &th]);
        let sech = t.op("Sub", &[&one, &th2]);
        let p = t.op("Mul", &[&sech, &du]);
        let xp = t.op("Mul", &[x, &p]);
        let first = t.op("Add", &[&th, &one]);
        let sum = t.op("Add", &[&first, &xp]);
        t.op("Mul", &[&sum, &half])
    } else {
        // Φ(x) + x φ(x).
        let (root, norm) = (t.scalar(0.5f32.sqrt()), t.scalar(1.0 / (2.0 * std::f32::consts::PI).sqrt()));
        let scaled = t.op("Mul", &[x, &root]);
        let erf = t.op("Erf", &[&scaled]);
        let shifted = t.op("Add", &[&erf, &one]);
        let cdf = t.op("Mul", &[&shifted, &half]);
        let square = t.op("Mul", &[&scaled, &scaled]);
        let minus = t.op("Neg", &[&square]);
        let bell = t.op("Exp", &[&minus]);
        let pdf = t.op("Mul", &[&bell, &norm]);
        let xp = t.op("Mul", &[x, &pdf]);
        t.op("Add", &[&cdf, &xp])
    };
    t.op("Mul", &[g, &slope])
}

fn softmax(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let y = &node.output[0];
    t.give(node, 0, |t, x| {
        let rank = t.shape(x)?.len();
        let axis = wrap(node.int("axis").unwrap_or(if t.typing.opset < 13 { 1 } else { -1 }), rank);
        // Before opset 13 every axis from `axis` on is one distribution.
        let axes: Vec<usize> = if t.typing.opset < 13 { (axis..rank).collect() } else { vec![axis] };
        Ok(if node.op_type() == "Softmax" {
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

/// LayerNormalization (opset 17) and RMSNormalization (opset 23): statistics are computed again from the input.
fn layer_norm(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let centred = node.op_type() == "LayerNormalization";
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let shape = t.shape(x)?;
    let first = wrap(node.int("axis").unwrap_or(-1), shape.len());
    let axes: Vec<usize> = (first..shape.len()).collect();
    let epsilon = t.scalar(node.float("epsilon").unwrap_or(1e-5));
    let difference = if centred {
        let mean = t.reduce("ReduceMean", x, &axes, true);
        t.op("Sub", &[x, &mean])
    } else {
        x.to_string()
    };
    let square = t.op("Mul", &[&difference, &difference]);
    let variance = t.reduce("ReduceMean", &square, &axes, true);
    let shifted = t.op("Add", &[&variance, &epsilon]);
    let deviation = t.op("Sqrt", &[&shifted]);
    let normal = t.op("Div", &[&difference, &deviation]);
    t.give(node, 2, |t, b| {
        let to = t.shape(b)?;
        Ok(t.unbroadcast(g, &shape, &to))
    })?;
    t.give(node, 1, |t, w| {
        let to = t.shape(w)?;
        let p = t.op("Mul", &[g, &normal]);
        Ok(t.unbroadcast(&p, &shape, &to))
    })?;
    t.give(node, 0, |t, _| {
        let gw = t.op("Mul", &[g, w]);
        let product = t.op("Mul", &[&gw, &normal]);
        let along = t.reduce("ReduceMean", &product, &axes, true);
        let projected = t.op("Mul", &[&normal, &along]);
        let mut rest = t.op("Sub", &[&gw, &projected]);
        if centred {
            let mean = t.reduce("ReduceMean", &gw, &axes, true);
            rest = t.op("Sub", &[&rest, &mean]);
        }
        Ok(t.op("Div", &[&rest, &deviation]))
    })
}

/// BatchNormalization with fixed statistics: scale and bias are trained, running means and variances are not.
fn batch_norm(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let shape = t.shape(&node.input[0])?;
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
        let p = t.op("Mul", &[g, &scale]);
        Ok(t.op("Div", &[&p, &deviation]))
    })
}

fn tile(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let repeats = list(t, node, "repeats", 1)?.unwrap_or_default();
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let split: Vec<usize> = repeats.iter().zip(&shape).flat_map(|(&r, &n)| [r as usize, n]).collect();
        let apart = t.reshape(g, &split);
        let axes: Vec<usize> = (0..shape.len()).map(|i| 2 * i).collect();
        Ok(t.reduce("ReduceSum", &apart, &axes, false))
    })
}

fn concat(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let rank = t.shape(&node.output[0])?.len();
    let axis = wrap(node.int("axis").unwrap_or(0), rank);
    let mut at = 0;
    for j in 0..node.input.len() {
        let length = t.shape(&node.input[j])?[axis];
        t.give(node, j, |t, _| Ok(part(t, g, axis, at, length)))?;
        at += length;
    }
    Ok(())
}

/// Elements `start` to `start + length` along an axis.
fn part(t: &mut Tape, x: &str, axis: usize, start: usize, length: usize) -> String {
    let (a, b, axis) = (t.ints(&[start as i64]), t.ints(&[(start + length) as i64]), t.ints(&[axis as i64]));
    t.op("Slice", &[x, &a, &b, &axis])
}

fn split(t: &mut Tape, node: &NodeProto, given: &[Option<String>]) -> Result<()> {
    t.give(node, 0, |t, x| {
        let axis = wrap(node.int("axis").unwrap_or(0), t.shape(x)?.len());
        let mut parts = Vec::new();
        for (o, g) in node.output.iter().zip(given) {
            parts.push(match g {
                Some(g) => g.clone(),
                None => {
                    let shape = t.shape(o)?;
                    t.zeros(&shape)
                }
            });
        }
        let refs: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(t.op_with("Concat", &refs, vec![int_attribute("axis", axis as i64)]))
    })
}

fn slice(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let (Some(starts), Some(ends)) = (list(t, node, "starts", 1)?, list(t, node, "ends", 2)?) else {
        return Err(refuse(node, "a slice without borders"));
    };
    let axes = list(t, node, "axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list(t, node, "steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    t.give(node, 0, |t, x| {
        let whole = t.shape(x)?;
        let mut shape = t.shape(&node.output[0])?;
        let mut out = g.to_string();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = wrap(axis, whole.len());
            let n = whole[axis];
            let range = slice_range(n, starts[i], ends[i], steps[i]);
            let Some((first, length)) = range.filter(|_| steps[i] > 0) else {
                return Err(refuse(node, "a step backwards"));
            };
            let step = steps[i] as usize;
            if step > 1 {
                // Every step-th element: a new axis of zeros behind it, then what overhangs is cut.
                let mut apart = shape.clone();
                apart.insert(axis + 1, 1);
                out = t.reshape(&out, &apart);
                out = t.pad(&out, &wide(&apart, axis + 1, step), axis + 1, 0, 1);
                shape[axis] = length * step;
                out = t.reshape(&out, &shape);
                let room = n - first;
                if shape[axis] > room {
                    out = part(t, &out, axis, 0, room);
                    shape[axis] = room;
                }
            }
            let length = shape[axis];
            shape[axis] = n;
            out = t.pad(&out, &shape, axis, first, length);
        }
        Ok(out)
    })
}

fn wide(shape: &[usize], axis: usize, n: usize) -> Vec<usize> {
    let mut wide = shape.to_vec();
    wide[axis] = n;
    wide
}

/// The gradient of a table is a product with a one-hot matrix of the (constant) indices.
fn gather(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let Some(indices) = t.typing.known.get(node.input[1].as_str()).map(|k| k.ints()) else {
        return Err(refuse(node, "indices that are not constant"));
    };
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let axis = wrap(node.int("axis").unwrap_or(0), shape.len());
        let n = shape[axis];
        let index = |i: i64| (if i < 0 { i + n as i64 } else { i }) as usize;
        if let [i] = indices[..] {
            let mut one = shape.clone();
            one[axis] = 1;
            let g = t.reshape(g, &one);
            return Ok(t.pad(&g, &shape, axis, index(i), 1));
        }
        let (before, after) = (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
        let mut hot = vec![0.0; n * indices.len()];
        indices.iter().enumerate().for_each(|(k, &i)| hot[index(i) * indices.len() + k] = 1.0);
        let hot = t.floats(&[n, indices.len()], &hot);
        let rows = t.reshape(g, &[before, indices.len(), after]);
        let table = t.op("MatMul", &[&hot, &rows]);
        Ok(t.reshape(&table, &shape))
    })
}

fn pad(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    if !matches!(node.string("mode").unwrap_or("constant"), "constant" | "") {
        return Err(refuse(node, "padding that repeats the input"));
    }
    let pads = list(t, node, "pads", 1)?.unwrap_or_default();
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let axes = list(t, node, "axes", 3)?.unwrap_or_else(|| (0..shape.len() as i64).collect());
        let mut out = g.to_string();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = wrap(axis, shape.len());
            let (before, behind) = (pads[i], pads[i + axes.len()]);
            if before < 0 || behind < 0 {
                return Err(refuse(node, "negative padding"));
            }
            if before > 0 || behind > 0 {
                out = part(t, &out, axis, before as usize, shape[axis]);
            }
        }
        Ok(out)
    })
}

fn reduce(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let op = node.op_type();
    let axes = match op {
        "GlobalAveragePool" => None,
        _ => list(t, node, "axes", 1)?.filter(|a| !a.is_empty()),
    };
    let y = &node.output[0];
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let axes: Vec<usize> = match axes {
            Some(list) => list.iter().map(|&a| wrap(a, shape.len())).collect(),
            None if op == "GlobalAveragePool" => (2..shape.len()).collect(),
            None if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => return Ok(g.to_string()),
            None => (0..shape.len()).collect(),
        };
        let kept: Vec<usize> = (0..shape.len()).map(|i| if axes.contains(&i) { 1 } else { shape[i] }).collect();
        let mut g = t.reshape(g, &kept);
        match op {
            "ReduceL2" => {
                let y = t.reshape(y, &kept);
                let q = t.op("Div", &[&g, &y]);
                return Ok(t.op("Mul", &[x, &q]));
            }
            "ReduceMax" => {
                // Elements that tie share the gradient.
                let y = t.reshape(y, &kept);
                let equal = t.op("Equal", &[x, &y]);
                let hot = t.op_with("Cast", &[&equal], vec![int_attribute("to", 1)]);
                let count = t.reduce("ReduceSum", &hot, &axes, true);
                let share = t.op("Div", &[&g, &count]);
                return Ok(t.op("Mul", &[&hot, &share]));
            }
            "ReduceSum" => {}
            _ => {
                let n: usize = axes.iter().map(|&a| shape[a]).product();
                let n = t.scalar(1.0 / n as f32);
                g = t.op("Mul", &[&g, &n]);
            }
        }
        let target = t.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
        Ok(t.op("Expand", &[&g, &target]))
    })
}

fn matmul(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let (a, b) = (node.input[0].as_str(), node.input[1].as_str());
    let (sa, sb, so) = (t.shape(a)?, t.shape(b)?, t.shape(&node.output[0])?);
    if sa.len() < 2 || sb.len() < 2 {
        return Err(refuse(node, "vectors"));
    }
    if sb.len() == 2 {
        // A weight: one product of two matrices over all rows.
        let rows: usize = sa[..sa.len() - 1].iter().product();
        let g2 = t.reshape(g, &[rows, sb[1]]);
        t.give(node, 0, |t, _| {
            let p = t.op_with("Gemm", &[&g2, b], vec![int_attribute("transB", 1)]);
            Ok(t.reshape(&p, &sa))
        })?;
        return t.give(node, 1, |t, _| {
            let a2 = t.reshape(a, &[rows, sb[0]]);
            Ok(t.op_with("Gemm", &[&a2, &g2], vec![int_attribute("transA", 1)]))
        });
    }
    t.give(node, 0, |t, _| {
        let bt = t.transposed(b, sb.len());
        let p = t.op("MatMul", &[g, &bt]);
        let mut from = so.clone();
        from[so.len() - 1] = sb[sb.len() - 2];
        Ok(t.unbroadcast(&p, &from, &sa))
    })?;
    t.give(node, 1, |t, _| {
        let at = t.transposed(a, sa.len());
        let p = t.op("MatMul", &[&at, g]);
        let mut from = so.clone();
        from[so.len() - 2] = sa[sa.len() - 1];
        Ok(t.unbroadcast(&p, &from, &sb))
    })
}

fn gemm(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    let (ta, tb) = (flag("transA"), flag("transB"));
    let (alpha, beta) = (node.float("alpha").unwrap_or(1.0), node.float("beta").unwrap_or(1.0));
    let (a, b) = (node.input[0].as_str(), node.input[1].as_str());
    let product = |t: &mut Tape, x: &str, y: &str, tx: bool, ty: bool| {
        let mut attributes = vec![int_attribute("transA", tx as i64), int_attribute("transB", ty as i64)];
        if alpha != 1.0 {
            attributes.push(crate::onnx::proto::AttributeProto {
                name: Some("alpha".into()),
                r#type: Some(crate::onnx::proto::attribute_proto::AttributeType::Float as i32),
                f: Some(alpha),
                ..Default::default()
            });
        }
        t.op_with("Gemm", &[x, y], attributes)
    };
    t.give(node, 0, |t, _| Ok(if ta { product(t, b, g, tb, true) } else { product(t, g, b, false, !tb) }))?;
    t.give(node, 1, |t, _| Ok(if tb { product(t, g, a, true, ta) } else { product(t, a, g, !ta, false) }))?;
    t.give(node, 2, |t, c| {
        let (from, to) = (t.shape(&node.output[0])?, t.shape(c)?);
        let sum = t.unbroadcast(g, &from, &to);
        if beta == 1.0 {
            return Ok(sum);
        }
        let beta = t.scalar(beta);
        Ok(t.op("Mul", &[&sum, &beta]))
    })
}

/// A patch embedding (stride = kernel, no padding): a product over patches.
fn conv(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let (sx, sw, so) = (t.shape(x)?, t.shape(w)?, t.shape(&node.output[0])?);
    let kernel = &sw[2..];
    let is = |name: &str, value: i64| node.ints(name).is_none_or(|v| v.iter().all(|&e| e == value));
    let strides: Vec<usize> =
        node.ints("strides").map(|s| s.iter().map(|&v| v as usize).collect()).unwrap_or(vec![1; kernel.len()]);
    let patches = kernel.len() == 2
        && strides == kernel
        && is("pads", 0)
        && is("dilations", 1)
        && node.int("group").unwrap_or(1) == 1
        && sx[2] == so[2] * kernel[0]
        && sx[3] == so[3] * kernel[1];
    t.give(node, 2, |t, _| {
        let axes: Vec<usize> = (0..so.len()).filter(|&a| a != 1).collect();
        Ok(t.reduce("ReduceSum", g, &axes, false))
    })?;
    if !patches {
        if t.needs(w) || t.needs(x) {
            return Err(refuse(node, "a convolution that is no patch embedding"));
        }
        return Ok(());
    }
    let [batch, channels, ..] = sx[..] else { return Err(refuse(node, "this rank")) };
    let (out, rows, columns) = (so[1], so[2], so[3]);
    let count = channels * kernel[0] * kernel[1];
    let flat = {
        let last = t.transpose(g, &[0, 2, 3, 1]);
        t.reshape(&last, &[batch * rows * columns, out])
    };
    t.give(node, 1, |t, _| {
        let apart = t.reshape(x, &[batch, channels, rows, kernel[0], columns, kernel[1]]);
        let together = t.transpose(&apart, &[0, 2, 4, 1, 3, 5]);
        let pixels = t.reshape(&together, &[batch * rows * columns, count]);
        let p = t.op_with("Gemm", &[&flat, &pixels], vec![int_attribute("transA", 1)]);
        Ok(t.reshape(&p, &sw))
    })?;
    t.give(node, 0, |t, _| {
        let weights = t.reshape(w, &[out, count]);
        let pixels = t.op("Gemm", &[&flat, &weights]);
        let apart = t.reshape(&pixels, &[batch, rows, columns, channels, kernel[0], kernel[1]]);
        let together = t.transpose(&apart, &[0, 3, 1, 4, 2, 5]);
        Ok(t.reshape(&together, &sx))
    })
}

/// Resampling is linear along each axis: the gradient is a product with the transposed matrix of its coefficients.
fn resize(t: &mut Tape, node: &NodeProto, g: &str) -> Result<()> {
    let interpolation = Interpolation::read(node)?;
    t.give(node, 0, |t, x| {
        let (from, mut shape) = (t.shape(x)?, t.shape(&node.output[0])?);
        let mut out = g.to_string();
        let resized: Vec<usize> = (0..from.len()).filter(|&a| from[a] != shape[a]).collect();
        for axis in resized {
            let (n, m) = (from[axis], shape[axis]);
            let scale = interpolation.scale(t, node, axis, from.len()).unwrap_or(m as f64 / n as f64);
            let matrix = interpolation.matrix(n, m, scale);
            let mut transposed = vec![0.0; n * m];
            for i in 0..m {
                (0..n).for_each(|j| transposed[j * m + i] = matrix[i * n + j] as f32);
            }
            let matrix = t.floats(&[n, m], &transposed);
            let (before, after) =
                (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
            let rows = t.reshape(&out, &[before, m, after]);
            let product = t.op("MatMul", &[&matrix, &rows]);
            shape[axis] = n;
            out = t.reshape(&product, &shape);
        }
        Ok(out)
    })
}

/// How a Resize (opset 11 to 19) takes its samples.
struct Interpolation {
    mode: String,
    coordinates: String,
    cubic: f64,
    antialias: bool,
    exclude_outside: bool,
}

impl Interpolation {
    fn read(node: &NodeProto) -> Result<Self> {
        let mode = node.string("mode").unwrap_or("nearest").to_string();
        let coordinates = node.string("coordinate_transformation_mode").unwrap_or("half_pixel").to_string();
        let known = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"];
        if !matches!(mode.as_str(), "linear" | "cubic") || !known.contains(&coordinates.as_str()) {
            return Err(refuse(node, &format!("mode `{mode}` with coordinates `{coordinates}`")));
        }
        Ok(Interpolation {
            mode,
            coordinates,
            cubic: node.float("cubic_coeff_a").unwrap_or(-0.75) as f64,
            antialias: node.int("antialias").unwrap_or(0) != 0,
            exclude_outside: node.int("exclude_outside").unwrap_or(0) != 0,
        })
    }

    /// The scale that the node itself gives for an axis; sizes give none.
    fn scale(&self, t: &Tape, node: &NodeProto, axis: usize, rank: usize) -> Option<f64> {
        let name = node.input.get(2).filter(|x| !x.is_empty())?;
        let known = t
            .typing
            .known
            .get(name.as_str())
            .cloned()
            .or_else(|| crate::axes::arithmetic::Known::read(t.typing.weights.get(name.as_str())?))?;
        (known.data.len() == rank).then(|| known.data.iter().nth(axis).copied()).flatten()
    }

    fn kernel(&self, x: f64) -> f64 {
        let x = x.abs();
        let a = self.cubic;
        match (self.mode.as_str(), x) {
            ("linear", x) => (1.0 - x).max(0.0),
            (_, x) if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            (_, x) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            _ => 0.0,
        }
    }

    /// Coefficients [m, n] of m samples of n elements.
    fn matrix(&self, n: usize, m: usize, scale: f64) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        let reach = if self.mode == "linear" { 1.0 } else { 2.0 };
        let stretch = if self.antialias && scale < 1.0 { 1.0 / scale } else { 1.0 };
        for i in 0..m {
            let x = i as f64;
            let at = match self.coordinates.as_str() {
                "align_corners" if m > 1 => x * (n - 1) as f64 / (m - 1) as f64,
                "align_corners" => 0.0,
                "asymmetric" => x / scale,
                "pytorch_half_pixel" if m == 1 => 0.0,
                _ => (x + 0.5) / scale - 0.5,
            };
            let (first, last) = ((at - reach * stretch).ceil() as i64, (at + reach * stretch).floor() as i64);
            let inside = |j: i64| (0..n as i64).contains(&j);
            let weights: Vec<(i64, f64)> = (first..=last)
                .filter(|&j| inside(j) || !(self.antialias || self.exclude_outside))
                .map(|j| (j, self.kernel((j as f64 - at) / stretch)))
                .collect();
            let total: f64 = weights.iter().map(|w| w.1).sum();
            for (j, w) in weights {
                // Samples outside are those at the border.
                out[i * n + j.clamp(0, n as i64 - 1) as usize] += w / total;
            }
        }
        out
    }
}

/// Weights that training may change as far as their type goes: floating-point tensors of more than one element.
pub fn is_trainable(t: &crate::onnx::proto::TensorProto) -> bool {
    is_float(t) && crate::onnx::element_count(t).is_ok_and(|n| n > 1)
}
