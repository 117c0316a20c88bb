//! Elementwise operators: the gradient is scaled by the slope, and broadcasting is undone.

use super::super::tape::Backward;
use super::operands::refuse;
use crate::error::Result;
use crate::graph::{Attributes, string_attribute};
use crate::onnx::proto::NodeProto;

/// Arithmetic and selection among broadcast operands.
pub fn broadcast(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, y) = (node.input[0].as_str(), node.output[0].as_str());
    let second = node.input.get(1).map(String::as_str).unwrap_or("");
    match node.op_type() {
        "Add" | "Sum" => {
            for j in 0..node.input.len() {
                t.give_broadcast(node, j, |_| g.to_string())?;
            }
            Ok(())
        }
        "Mean" => {
            let share = t.scalar(1.0 / node.input.len() as f32);
            for j in 0..node.input.len() {
                t.give_broadcast(node, j, |t| t.op("Mul", &[g, &share]))?;
            }
            Ok(())
        }
        "Sub" => {
            t.give_broadcast(node, 0, |_| g.to_string())?;
            t.give_broadcast(node, 1, |t| t.op("Neg", &[g]))
        }
        "Mul" => {
            t.give_broadcast(node, 0, |t| t.op("Mul", &[g, second]))?;
            t.give_broadcast(node, 1, |t| t.op("Mul", &[g, x]))
        }
        "Div" => {
            t.give_broadcast(node, 0, |t| t.op("Div", &[g, second]))?;
            t.give_broadcast(node, 1, |t| {
                let p = t.op("Mul", &[g, y]);
                let q = t.op("Div", &[&p, second]);
                t.op("Neg", &[&q])
            })
        }
        "Max" | "Min" => extremum(t, node, g),
        "PRelu" => {
            let zero = t.scalar(0.0);
            let below = t.op("Less", &[x, &zero]);
            t.give(node, 0, |t, _| {
                let scaled = t.op("Mul", &[g, second]);
                Ok(t.op("Where", &[&below, &scaled, g]))
            })?;
            t.give_broadcast(node, 1, |t| {
                let p = t.op("Mul", &[g, x]);
                t.only_where(&below, &p)
            })
        }
        "Where" => {
            let zero = t.scalar(0.0);
            t.give_broadcast(node, 1, |t| t.op("Where", &[x, g, &zero]))?;
            t.give_broadcast(node, 2, |t| t.op("Where", &[x, &zero, g]))
        }
        "Expand" => t.give_broadcast(node, 0, |_| g.to_string()),
        _ => Err(refuse(node, "a gradient")),
    }
}

/// Operands that tie for the largest or smallest value share the gradient, as in PyTorch.
fn extremum(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let y = node.output[0].as_str();
    let chosen: Vec<String> = node
        .input
        .iter()
        .map(|x| {
            let equal = t.op("Equal", &[x, y]);
            t.indicator(&equal)
        })
        .collect();
    let refs: Vec<&str> = chosen.iter().map(String::as_str).collect();
    let count = t.op("Sum", &refs);
    let share = t.op("Div", &[g, &count]);
    for (j, chosen) in chosen.iter().enumerate() {
        t.give_broadcast(node, j, |t| t.op("Mul", &[&share, chosen]))?;
    }
    Ok(())
}

/// x^c, with d/dx = c x^(c-1) and d/dc = x^c ln x (zero where x is not positive).
pub fn power(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, exponent, y) = (node.input[0].as_str(), node.input[1].as_str(), node.output[0].as_str());
    let constant = t.typing.known.get(exponent).filter(|k| k.data.len() == 1);
    let constant = constant.and_then(|k| k.data.first().copied());
    t.give_broadcast(node, 0, |t| {
        let slope = match constant {
            Some(c) => {
                let factor = t.scalar(c as f32);
                if c == 2.0 {
                    t.op("Mul", &[x, &factor])
                } else {
                    let less = t.scalar(c as f32 - 1.0);
                    let p = t.op("Pow", &[x, &less]);
                    t.op("Mul", &[&p, &factor])
                }
            }
            None => {
                let one = t.scalar(1.0);
                let less = t.op("Sub", &[exponent, &one]);
                let p = t.op("Pow", &[x, &less]);
                t.op("Mul", &[&p, exponent])
            }
        };
        t.op("Mul", &[g, &slope])
    })?;
    t.give_broadcast(node, 1, |t| {
        let (zero, one) = (t.scalar(0.0), t.scalar(1.0));
        let positive = t.op("Greater", &[x, &zero]);
        let safe = t.op("Where", &[&positive, x, &one]);
        let log = t.op("Log", &[&safe]);
        let slope = t.op("Mul", &[y, &log]);
        let p = t.op("Mul", &[g, &slope]);
        t.only_where(&positive, &p)
    })
}

/// Functions of one value: y = f(x), with the slope from x or y.
pub fn unary(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let y = node.output[0].as_str();
    t.give(node, 0, |t, x| {
        if node.op_type() == "Gelu" && t.fuses() {
            let form = string_attribute("approximate", node.string("approximate").unwrap_or("none"));
            return Ok(t.fused("GeluGradient", &[g, x], 1, vec![form]).remove(0));
        }
        let slope = match node.op_type() {
            "Neg" => return Ok(t.op("Neg", &[g])),
            "Exp" => return Ok(t.op("Mul", &[g, y])),
            "Log" => return Ok(t.op("Div", &[g, x])),
            "Sqrt" => {
                let half = t.scalar(0.5);
                let h = t.op("Mul", &[g, &half]);
                return Ok(t.op("Div", &[&h, y]));
            }
            "Reciprocal" => {
                let square = t.op("Mul", &[y, y]);
                let p = t.op("Mul", &[g, &square]);
                return Ok(t.op("Neg", &[&p]));
            }
            "Sin" => t.op("Cos", &[x]),
            "Cos" => {
                let sine = t.op("Sin", &[x]);
                t.op("Neg", &[&sine])
            }
            "Tan" => {
                let square = t.op("Mul", &[y, y]);
                plus(t, &square, 1.0)
            }
            "Atan" => {
                let square = t.op("Mul", &[x, x]);
                let shifted = plus(t, &square, 1.0);
                t.op("Reciprocal", &[&shifted])
            }
            "Abs" => t.op("Sign", &[x]),
            "Erf" => erf_slope(t, x),
            "Tanh" => tanh_slope(t, y),
            "Sigmoid" => sigmoid_slope(t, y),
            "Softplus" => t.op("Sigmoid", &[x]),
            "Softsign" => softsign_slope(t, x),
            "HardSigmoid" => hard_sigmoid_slope(t, node, x),
            "HardSwish" => hard_swish_slope(t, x),
            "Mish" => mish_slope(t, x),
            "Swish" => swish_slope(t, [x, y], node.float("alpha").unwrap_or(1.0)),
            "QuickGelu" => swish_slope(t, [x, y], node.float("alpha").unwrap_or(1.702)),
            "Gelu" if node.string("approximate") == Some("tanh") => gelu_tanh(t, x),
            "Gelu" => gelu(t, x),
            _ => return gated(t, node, x, g),
        };
        Ok(t.op("Mul", &[g, &slope]))
    })
}

/// Functions that are the identity, or a multiple of it, on one side of a threshold.
fn gated(t: &mut Backward, node: &NodeProto, x: &str, g: &str) -> Result<String> {
    let y = node.output[0].as_str();
    let zero = t.scalar(0.0);
    if node.op_type() == "Clip" {
        let inside = t.op("Equal", &[x, y]);
        return Ok(t.only_where(&inside, g));
    }
    let threshold = match node.op_type() {
        "ThresholdedRelu" => t.scalar(node.float("alpha").unwrap_or(1.0)),
        _ => zero.clone(),
    };
    let above = t.op("Greater", &[x, &threshold]);
    // Slopes above and below.
    let (over, under) = match node.op_type() {
        "Relu" | "ThresholdedRelu" => return Ok(t.only_where(&above, g)),
        "LeakyRelu" => (1.0, t.scalar(node.float("alpha").unwrap_or(0.01))),
        "Elu" => (1.0, plus(t, y, node.float("alpha").unwrap_or(1.0))),
        "Selu" => {
            let alpha = node.float("alpha").unwrap_or(1.673_263_2);
            let gamma = node.float("gamma").unwrap_or(1.050_701);
            (gamma, plus(t, y, alpha * gamma))
        }
        "Celu" => {
            let scaled = times(t, x, 1.0 / node.float("alpha").unwrap_or(1.0));
            let below = t.op("Min", &[&scaled, &zero]);
            (1.0, t.op("Exp", &[&below]))
        }
        _ => return Err(refuse(node, "a gradient")),
    };
    let over = t.scalar(over);
    let slope = t.op("Where", &[&above, &over, &under]);
    Ok(t.op("Mul", &[g, &slope]))
}

fn plus(t: &mut Backward, x: &str, c: f32) -> String {
    let c = t.scalar(c);
    t.op("Add", &[x, &c])
}

pub fn times(t: &mut Backward, x: &str, c: f32) -> String {
    let c = t.scalar(c);
    t.op("Mul", &[x, &c])
}

/// low < x < high.
fn between(t: &mut Backward, x: &str, low: f32, high: f32) -> String {
    let (low, high) = (t.scalar(low), t.scalar(high));
    let above = t.op("Greater", &[x, &low]);
    let below = t.op("Less", &[x, &high]);
    t.op("And", &[&above, &below])
}

fn tanh_slope(t: &mut Backward, y: &str) -> String {
    let square = t.op("Mul", &[y, y]);
    let one = t.scalar(1.0);
    t.op("Sub", &[&one, &square])
}

fn sigmoid_slope(t: &mut Backward, y: &str) -> String {
    let one = t.scalar(1.0);
    let rest = t.op("Sub", &[&one, y]);
    t.op("Mul", &[y, &rest])
}

/// The slope of erf x: 2/sqrt(π) exp(-x²).
fn erf_slope(t: &mut Backward, x: &str) -> String {
    let square = t.op("Mul", &[x, x]);
    let minus = t.op("Neg", &[&square]);
    let bell = t.op("Exp", &[&minus]);
    times(t, &bell, std::f32::consts::FRAC_2_SQRT_PI)
}

/// The slope of x / (1 + |x|): 1 / (1 + |x|)².
fn softsign_slope(t: &mut Backward, x: &str) -> String {
    let size = t.op("Abs", &[x]);
    let shifted = plus(t, &size, 1.0);
    let square = t.op("Mul", &[&shifted, &shifted]);
    t.op("Reciprocal", &[&square])
}

/// The slope of clip(a x + b, 0, 1): a inside, 0 outside.
fn hard_sigmoid_slope(t: &mut Backward, node: &NodeProto, x: &str) -> String {
    let (a, b) = (node.float("alpha").unwrap_or(0.2), node.float("beta").unwrap_or(0.5));
    let inside = between(t, x, -b / a, (1.0 - b) / a);
    let hot = t.indicator(&inside);
    times(t, &hot, a)
}

/// The slope of x clip(x/6 + 1/2, 0, 1): x/3 + 1/2 between -3 and 3, and 0 or 1 outside.
fn hard_swish_slope(t: &mut Backward, x: &str) -> String {
    let third = times(t, x, 1.0 / 3.0);
    let line = plus(t, &third, 0.5);
    let (three, one) = (t.scalar(3.0), t.scalar(1.0));
    let above = t.op("Greater", &[x, &three]);
    let inside = between(t, x, -3.0, 3.0);
    let line = t.only_where(&inside, &line);
    t.op("Where", &[&above, &one, &line])
}

/// The slope of x tanh(softplus x).
fn mish_slope(t: &mut Backward, x: &str) -> String {
    let softplus = t.op("Softplus", &[x]);
    let tanh = t.op("Tanh", &[&softplus]);
    let slope = tanh_slope(t, &tanh);
    let sigmoid = t.op("Sigmoid", &[x]);
    let inner = t.op("Mul", &[&slope, &sigmoid]);
    let second = t.op("Mul", &[x, &inner]);
    t.op("Add", &[&tanh, &second])
}

/// The slope of y = x s(αx), where s is the sigmoid: s + α y (1 - s).
fn swish_slope(t: &mut Backward, [x, y]: [&str; 2], alpha: f32) -> String {
    let scaled = times(t, x, alpha);
    let sigmoid = t.op("Sigmoid", &[&scaled]);
    let one = t.scalar(1.0);
    let rest = t.op("Sub", &[&one, &sigmoid]);
    let p = t.op("Mul", &[y, &rest]);
    let second = times(t, &p, alpha);
    t.op("Add", &[&sigmoid, &second])
}

/// The slope of x Φ(x): Φ(x) + x φ(x).
fn gelu(t: &mut Backward, x: &str) -> String {
    let scaled = times(t, x, std::f32::consts::FRAC_1_SQRT_2);
    let erf = t.op("Erf", &[&scaled]);
    let shifted = plus(t, &erf, 1.0);
    let distribution = times(t, &shifted, 0.5);
    let square = t.op("Mul", &[&scaled, &scaled]);
    let minus = t.op("Neg", &[&square]);
    let bell = t.op("Exp", &[&minus]);
    let density = times(t, &bell, 1.0 / (2.0 * std::f32::consts::PI).sqrt());
    let second = t.op("Mul", &[x, &density]);
    t.op("Add", &[&distribution, &second])
}

/// The slope of x/2 (1 + tanh u) with u = sqrt(2/π) (x + 0.044715 x³).
fn gelu_tanh(t: &mut Backward, x: &str) -> String {
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let square = t.op("Mul", &[x, x]);
    let cubic = times(t, &square, 0.044715);
    let inner = plus(t, &cubic, 1.0);
    let scaled = times(t, x, root);
    let u = t.op("Mul", &[&scaled, &inner]);
    let tanh = t.op("Tanh", &[&u]);
    let thrice = times(t, &cubic, 3.0);
    let slope = plus(t, &thrice, 1.0);
    let slope = times(t, &slope, root);
    let outer = tanh_slope(t, &tanh);
    let p = t.op("Mul", &[&outer, &slope]);
    let second = t.op("Mul", &[x, &p]);
    let first = plus(t, &tanh, 1.0);
    let sum = t.op("Add", &[&first, &second]);
    times(t, &sum, 0.5)
}
