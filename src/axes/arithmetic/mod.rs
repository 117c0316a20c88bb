//! Shape arithmetic: the small integers (and a few floats and booleans) that graphs compute from shapes.
//!
//! Nothing else of a model is ever computed. Values are kept as f64, which holds every integer that a shape can have;
//! results of floating-point operators are rounded to f32 as the graph would.

use ndarray::{ArrayD, Axis, Dimension, IxDyn, Slice, concatenate};

use super::MAX_RANK;
use crate::graph::Attributes;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{
    DataType, data_type, element_count, is_float, tensor_from_f32, tensor_from_i64, tensor_from_raw, to_f32, to_i64,
};

/// The type that a known value has in the graph, as far as arithmetic depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Any integer type.
    Integer,
    /// Any floating-point type.
    Float,
    /// Booleans, as 0 and 1.
    Boolean,
}

/// A known value.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its type.
    pub number: Number,
    /// Its elements.
    pub data: ArrayD<f64>,
}

/// Values beyond this many elements are not computed.
pub const LIMIT: usize = 65536;

impl Known {
    /// A one-dimensional integer value.
    pub fn integers(values: impl IntoIterator<Item = i64>) -> Self {
        let data: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        Known { number: Number::Integer, data: ArrayD::from_shape_vec(IxDyn(&[data.len()]), data).unwrap_or_default() }
    }

    /// Reads a tensor of the file.
    pub fn read(t: &TensorProto) -> Option<Known> {
        let shape: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
        if element_count(t).ok()? > LIMIT {
            return None;
        }
        let (number, data): (_, Vec<f64>) = if is_float(t) {
            (Number::Float, to_f32(t).ok()?.into_iter().map(f64::from).collect())
        } else {
            let number = if data_type(t) == Some(DataType::Bool) { Number::Boolean } else { Number::Integer };
            (number, to_i64(t).ok()?.into_iter().map(|v| v as f64).collect())
        };
        Some(Known { number, data: ArrayD::from_shape_vec(IxDyn(&shape), data).ok()? })
    }

    /// The value as a tensor of a file; `None` for element types that are not floating-point numbers, int64, int32 or bool.
    pub fn tensor(&self, name: &str, kind: DataType) -> Option<TensorProto> {
        let (shape, ints) = (self.data.shape(), self.ints());
        Some(match kind {
            DataType::Int64 => tensor_from_i64(name, shape, &ints),
            DataType::Int32 => {
                let bytes: Vec<u8> = ints.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
                tensor_from_raw(name, kind, shape, bytes.into())
            }
            DataType::Bool => {
                let bytes: Vec<u8> = ints.iter().map(|&v| u8::from(v != 0)).collect();
                tensor_from_raw(name, kind, shape, bytes.into())
            }
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => {
                let elements: Vec<f32> = self.data.iter().map(|&v| v as f32).collect();
                tensor_from_f32(name, kind, shape, &elements)
            }
            _ => return None,
        })
    }

    /// The elements as integers.
    pub fn ints(&self) -> Vec<i64> {
        self.data.iter().map(|&v| v as i64).collect()
    }

    fn with(&self, data: ArrayD<f64>) -> Known {
        Known { number: self.number, data }
    }
}

/// The value of a Constant node.
pub fn constant(node: &NodeProto) -> Option<Known> {
    let attribute = node.attribute.first()?;
    let scalar = |number, v| Some(Known { number, data: ArrayD::from_elem(IxDyn(&[]), v) });
    let list = |number, v: Vec<f64>| Some(Known { number, data: ArrayD::from_shape_vec(IxDyn(&[v.len()]), v).ok()? });
    match attribute.name() {
        "value" => Known::read(attribute.t.as_ref()?),
        "value_int" => scalar(Number::Integer, attribute.i() as f64),
        "value_float" => scalar(Number::Float, attribute.f() as f64),
        "value_ints" => list(Number::Integer, attribute.ints.iter().map(|&v| v as f64).collect()),
        "value_floats" => list(Number::Float, attribute.floats.iter().map(|&v| v as f64).collect()),
        _ => None,
    }
}

/// Elements of a shape; no more than a `usize` holds.
pub(super) fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    (0..rank)
        .map(|i| {
            let at = |s: &[usize]| (i + s.len()).checked_sub(rank).map(|k| s[k]).unwrap_or(1);
            match (at(a), at(b)) {
                (x, y) if x == y => Some(x),
                (1, y) => Some(y),
                (x, 1) => Some(x),
                _ => None,
            }
        })
        .collect()
}

fn zip(a: &ArrayD<f64>, b: &ArrayD<f64>, f: impl Fn(f64, f64) -> f64) -> Option<ArrayD<f64>> {
    let shape = broadcast_shape(a.shape(), b.shape())?;
    if elements(&shape) > LIMIT {
        return None;
    }
    let (a, b) = (a.broadcast(IxDyn(&shape))?, b.broadcast(IxDyn(&shape))?);
    Some(ndarray::Zip::from(&a).and(&b).map_collect(|&x, &y| f(x, y)))
}

fn axis(a: i64, rank: usize) -> Option<usize> {
    let a = if a < 0 { a + rank as i64 } else { a };
    (0..rank as i64).contains(&a).then_some(a as usize)
}

/// Results of a node whose inputs are all known; `None` where this evaluator does not know the operator.
pub fn evaluate(node: &NodeProto, inputs: &[Option<Known>]) -> Option<Vec<Known>> {
    let op = node.op_type();
    let input = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let axes =
        |i: usize| -> Option<Vec<i64>> { input(i).map(Known::ints).or_else(|| node.ints("axes").map(<[i64]>::to_vec)) };
    let round = |number: Number, v: f64| match number {
        Number::Float => v as f32 as f64,
        _ => v,
    };
    if op == "Split" {
        return split(node, input(0)?, input(1));
    }
    let x = input(0)?;
    let unary = |f: fn(f64) -> f64| Some(x.with(x.data.mapv(|v| round(x.number, f(v)))));
    let binary = |f: fn(f64, f64) -> f64| -> Option<Known> {
        let y = input(1)?;
        Some(x.with(zip(&x.data, &y.data, |a, b| round(x.number, f(a, b)))?))
    };
    let compare = |f: fn(f64, f64) -> bool| -> Option<Known> {
        let y = input(1)?;
        Some(Known { number: Number::Boolean, data: zip(&x.data, &y.data, |a, b| f(a, b) as u8 as f64)? })
    };
    let reduce = |start: f64, f: fn(f64, f64) -> f64| -> Option<Known> {
        let rank = x.data.ndim();
        let mut list: Vec<usize> = match axes(1) {
            Some(a) => a.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?,
            None => (0..rank).collect(),
        };
        list.sort_unstable();
        list.dedup();
        let keep = node.int("keepdims").unwrap_or(1) != 0;
        let mut data = x.data.clone();
        for &a in list.iter().rev() {
            data = data.fold_axis(Axis(a), start, |&m, &v| f(m, v));
            if keep {
                data = data.insert_axis(Axis(a));
            }
        }
        Some(x.with(data))
    };
    let integer = x.number != Number::Float;
    let out = match op {
        "Identity" | "Dropout" => Some(x.clone()),
        "Neg" => unary(|v| -v),
        "Abs" => unary(f64::abs),
        "Floor" => unary(f64::floor),
        "Ceil" => unary(f64::ceil),
        "Round" => unary(f64::round_ties_even),
        "Sqrt" => unary(f64::sqrt),
        "Reciprocal" => unary(f64::recip),
        "Exp" => unary(f64::exp),
        "Log" => unary(f64::ln),
        "Not" => unary(|v| (v == 0.0) as u8 as f64),
        "Sign" => unary(|v| if v == 0.0 { 0.0 } else { v.signum() }),
        "Add" => binary(|a, b| a + b),
        "Sub" => binary(|a, b| a - b),
        "Mul" => binary(|a, b| a * b),
        "Div" if integer => binary(|a, b| if b == 0.0 { 0.0 } else { (a / b).trunc() }),
        "Div" => binary(|a, b| a / b),
        "Pow" => binary(f64::powf),
        "Mod" if integer && node.int("fmod").unwrap_or(0) == 0 => {
            binary(|a, b| if b == 0.0 { 0.0 } else { a - b * (a / b).floor() })
        }
        "Mod" => binary(|a, b| a % b),
        "Min" => binary(f64::min),
        "Max" => binary(f64::max),
        "And" => binary(|a, b| ((a != 0.0) && (b != 0.0)) as u8 as f64),
        "Or" => binary(|a, b| ((a != 0.0) || (b != 0.0)) as u8 as f64),
        "Xor" => binary(|a, b| ((a != 0.0) != (b != 0.0)) as u8 as f64),
        "Equal" => compare(|a, b| a == b),
        "Greater" => compare(|a, b| a > b),
        "Less" => compare(|a, b| a < b),
        "GreaterOrEqual" => compare(|a, b| a >= b),
        "LessOrEqual" => compare(|a, b| a <= b),
        "ReduceProd" => reduce(1.0, |a, b| a * b),
        "ReduceSum" => reduce(0.0, |a, b| a + b),
        "ReduceMax" => reduce(f64::NEG_INFINITY, f64::max),
        "ReduceMin" => reduce(f64::INFINITY, f64::min),
        "Where" => {
            let (a, b) = (input(1)?, input(2)?);
            let shape = broadcast_shape(&broadcast_shape(x.data.shape(), a.data.shape())?, b.data.shape())?;
            if elements(&shape) > LIMIT {
                return None;
            }
            let shape = IxDyn(&shape);
            let (c, p, q) =
                (x.data.broadcast(shape.clone())?, a.data.broadcast(shape.clone())?, b.data.broadcast(shape)?);
            Some(a.with(ndarray::Zip::from(&c).and(&p).and(&q).map_collect(|&c, &p, &q| if c != 0.0 { p } else { q })))
        }
        "Cast" | "CastLike" => {
            let to = match op {
                "CastLike" => return Some(vec![Known { number: input(1)?.number, data: x.data.mapv(f64::trunc) }]),
                _ => DataType::try_from(node.int("to")? as i32).ok()?,
            };
            use DataType::*;
            Some(match to {
                Float | Float16 | Bfloat16 | Double => {
                    Known { number: Number::Float, data: x.data.mapv(|v| v as f32 as f64) }
                }
                Bool => Known { number: Number::Boolean, data: x.data.mapv(|v| (v != 0.0) as u8 as f64) },
                _ => Known { number: Number::Integer, data: x.data.mapv(f64::trunc) },
            })
        }
        "Concat" => {
            let all: Vec<&Known> = inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
            let a = axis(node.int("axis")?, x.data.ndim())?;
            // One value may stand there many times.
            if all.iter().any(|k| k.data.ndim() != x.data.ndim())
                || all.iter().map(|k| k.data.len()).sum::<usize>() > LIMIT
            {
                return None;
            }
            let views: Vec<_> = all.iter().map(|k| k.data.view()).collect();
            Some(x.with(concatenate(Axis(a), &views).ok()?))
        }
        "Gather" => {
            let indices = input(1)?;
            let a = axis(node.int("axis").unwrap_or(0), x.data.ndim())?;
            let n = x.data.shape()[a] as i64;
            let list: Vec<usize> = indices
                .ints()
                .into_iter()
                .map(|i| if i < 0 { i + n } else { i })
                .map(|i| (0..n).contains(&i).then_some(i as usize))
                .collect::<Option<_>>()?;
            if n == 0 || x.data.len() / n as usize * list.len() > LIMIT {
                return None;
            }
            let mut shape = x.data.shape()[..a].to_vec();
            shape.extend(indices.data.shape());
            shape.extend(&x.data.shape()[a + 1..]);
            let picked = x.data.select(Axis(a), &list);
            Some(x.with(picked.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape)).ok()?))
        }
        "Slice" => slice(node, x, inputs),
        "Squeeze" => {
            let rank = x.data.ndim();
            let list: Vec<usize> = match axes(1) {
                Some(a) => a.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?,
                None => (0..rank).filter(|&i| x.data.shape()[i] == 1).collect(),
            };
            let shape: Vec<usize> = (0..rank).filter(|i| !list.contains(i)).map(|i| x.data.shape()[i]).collect();
            Some(x.with(x.data.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape)).ok()?))
        }
        "Unsqueeze" => {
            let list = axes(1)?;
            let rank = x.data.ndim() + list.len();
            if rank > MAX_RANK {
                return None;
            }
            let mut at: Vec<usize> = list.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?;
            at.sort_unstable();
            let mut data = x.data.clone();
            for a in at {
                if a > data.ndim() {
                    return None;
                }
                data = data.insert_axis(Axis(a));
            }
            Some(x.with(data))
        }
        "Reshape" | "Flatten" => {
            let target = match op {
                "Flatten" => {
                    let s = x.data.shape();
                    let a = node.int("axis").unwrap_or(1);
                    let a = (if a < 0 { a + s.len() as i64 } else { a }).clamp(0, s.len() as i64) as usize;
                    vec![elements(&s[..a]), elements(&s[a..])]
                }
                _ => resolve_shape(x.data.shape(), &input(1)?.ints(), node.int("allowzero").unwrap_or(0) != 0)?,
            };
            Some(x.with(x.data.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&target)).ok()?))
        }
        "Transpose" => {
            let perm: Vec<usize> = match node.ints("perm") {
                Some(p) => p.iter().map(|&a| axis(a, x.data.ndim())).collect::<Option<_>>()?,
                None => (0..x.data.ndim()).rev().collect(),
            };
            if perm.len() != x.data.ndim() || (0..perm.len()).any(|i| !perm.contains(&i)) {
                return None;
            }
            Some(x.with(x.data.clone().permuted_axes(perm).as_standard_layout().into_owned()))
        }
        "Expand" => {
            let target: Vec<usize> =
                input(1)?.ints().iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>()?;
            let shape = broadcast_shape(x.data.shape(), &target)?;
            if elements(&shape) > LIMIT {
                return None;
            }
            Some(x.with(x.data.broadcast(IxDyn(&shape))?.to_owned()))
        }
        "Tile" => {
            let mut data = x.data.clone();
            for (a, &n) in input(1)?.ints().iter().enumerate() {
                if a >= data.ndim() || n < 1 || data.len().saturating_mul(n as usize) > LIMIT {
                    return None;
                }
                let views = vec![data.view(); n as usize];
                data = concatenate(Axis(a), &views).ok()?;
            }
            Some(x.with(data))
        }
        "Range" => {
            let scalar = |i: usize| input(i).and_then(|k| k.data.first().copied());
            let (start, end, step) = (scalar(0)?, scalar(1)?, scalar(2)?);
            let count = ((end - start) / step).ceil().max(0.0);
            if step == 0.0 || count.is_nan() || count > LIMIT as f64 {
                return None;
            }
            let data: Vec<f64> = (0..count as usize).map(|i| start + i as f64 * step).collect();
            Some(x.with(ArrayD::from_shape_vec(IxDyn(&[data.len()]), data).ok()?))
        }
        "Clip" => {
            let bound = |i: usize, name: &str| {
                input(i).and_then(|k| k.data.first().copied()).or(node.float(name).map(f64::from))
            };
            let (low, high) = (bound(1, "min").unwrap_or(f64::NEG_INFINITY), bound(2, "max").unwrap_or(f64::INFINITY));
            Some(x.with(x.data.mapv(|v| v.max(low).min(high))))
        }
        "OneHot" => {
            let (depth, values) = (input(1)?.ints().first().copied()?, input(2)?);
            let (off, on) = (*values.data.iter().next()?, *values.data.iter().nth(1)?);
            let depth = usize::try_from(depth).ok().filter(|d| d.saturating_mul(x.data.len()) <= LIMIT)?;
            let a = axis(node.int("axis").unwrap_or(-1), x.data.ndim() + 1)?;
            let mut shape = x.data.shape().to_vec();
            shape.insert(a, depth);
            let data = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
                let mut rest: Vec<usize> = at.as_array_view().to_vec();
                let class = rest.remove(a);
                let index = x.data[IxDyn(&rest)] as i64;
                let index = if index < 0 { index + depth as i64 } else { index };
                if index == class as i64 { on } else { off }
            });
            Some(values.with(data))
        }
        "ConstantOfShape" => {
            let shape: Vec<usize> = x.ints().iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>()?;
            if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))? > LIMIT {
                return None;
            }
            let (number, v) = match node.tensor("value").and_then(Known::read) {
                Some(k) => (k.number, k.data.first().copied().unwrap_or(0.0)),
                None => (Number::Float, 0.0),
            };
            Some(Known { number, data: ArrayD::from_elem(IxDyn(&shape), v) })
        }
        _ => None,
    };
    out.map(|k| vec![k])
}

/// The target of a Reshape with its 0 and -1 resolved.
pub fn resolve_shape(from: &[usize], target: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let total = elements(from);
    let mut out = Vec::with_capacity(target.len());
    let mut infer = None;
    for (i, &v) in target.iter().enumerate() {
        out.push(match v {
            0 if !allow_zero => *from.get(i)?,
            -1 if infer.is_none() => {
                infer = Some(i);
                1
            }
            v => usize::try_from(v).ok()?,
        });
    }
    let known = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    match infer {
        Some(i) if known > 0 && total.is_multiple_of(known) => out[i] = total / known,
        Some(_) => return None,
        None if known != total => return None,
        None => {}
    }
    Some(out)
}

/// First element, number of elements and step of a Slice along one axis of size `n`.
pub fn slice_range(n: usize, start: i64, end: i64, step: i64) -> Option<(usize, usize)> {
    let n = n as i64;
    if step == 0 {
        return None;
    }
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    if step > 0 {
        let (a, b) = (wrap(start).clamp(0, n), wrap(end).clamp(0, n));
        let count = if b > a { (b - a - 1) / step + 1 } else { 0 };
        Some((a as usize, count as usize))
    } else {
        let (a, b) = (wrap(start).clamp(-1, n - 1), wrap(end).clamp(-1, n - 1));
        let count = if a > b { (a - b - 1) as u64 / step.unsigned_abs() + 1 } else { 0 };
        Some((a.max(0) as usize, count as usize))
    }
}

fn slice(node: &NodeProto, x: &Known, inputs: &[Option<Known>]) -> Option<Known> {
    let list = |name: &str, i: usize| -> Option<Vec<i64>> {
        node.ints(name).map(<[i64]>::to_vec).or_else(|| inputs.get(i).and_then(Option::as_ref).map(Known::ints))
    };
    let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
    let axes = list("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
    let mut data = x.data.clone();
    for (((&start, &end), &a), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let a = axis(a, data.ndim())?;
        let (first, count) = slice_range(data.shape()[a], start, end, step)?;
        if step > 0 {
            let last = first.saturating_add(count.saturating_mul(step as usize)).min(data.shape()[a]);
            data = data
                .slice_axis(Axis(a), Slice::new(first as isize, Some(last.max(first) as isize), step as isize))
                .to_owned();
        } else {
            let list: Vec<usize> = (0..count).map(|i| first - i * step.unsigned_abs() as usize).collect();
            data = data.select(Axis(a), &list);
        }
    }
    Some(x.with(data))
}

fn split(node: &NodeProto, x: &Known, lengths: Option<&Known>) -> Option<Vec<Known>> {
    let a = axis(node.int("axis").unwrap_or(0), x.data.ndim())?;
    let lengths = split_lengths(node, x.data.shape()[a], lengths.map(Known::ints))?;
    let mut at = 0;
    lengths
        .into_iter()
        .map(|n| {
            let part = x.data.slice_axis(Axis(a), Slice::from(at..at + n)).to_owned();
            at += n;
            Some(x.with(part))
        })
        .collect()
}

/// Lengths of the outputs of a Split along an axis of size `n`.
pub fn split_lengths(node: &NodeProto, n: usize, given: Option<Vec<i64>>) -> Option<Vec<usize>> {
    let given = given.or_else(|| node.ints("split").map(<[i64]>::to_vec));
    let lengths: Vec<usize> = match given {
        Some(list) => list.iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>()?,
        None => {
            let parts = node.int("num_outputs").map_or(node.output.len(), |v| v as usize);
            if parts != node.output.len() {
                return None;
            }
            let size = n.div_ceil(parts.max(1));
            (0..parts).map(|i| size.min(n.saturating_sub(i.saturating_mul(size)))).collect()
        }
    };
    let total = lengths.iter().try_fold(0usize, |s, &v| s.checked_add(v))?;
    (total == n && lengths.len() == node.output.len()).then_some(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, node};

    fn run(op: &str, inputs: &[Known]) -> Vec<i64> {
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        evaluate(&node(op, &names, &["y"], vec![]), &inputs).unwrap()[0].ints()
    }

    #[test]
    fn integers_divide_towards_zero_and_modulo_takes_the_sign_of_the_divisor() {
        let (a, b) = (Known::integers([7, -7]), Known::integers([2, 2]));
        assert_eq!(run("Div", &[a.clone(), b]), [3, -3]);
        assert_eq!(run("Mod", &[a, Known::integers([4, 4])]), [3, 1]);
    }

    #[test]
    fn a_slice_takes_open_ends_and_negative_steps() {
        let x = Known::integers([0, 1, 2, 3, 4]);
        let s = |start, end, step| {
            run(
                "Slice",
                &[
                    x.clone(),
                    Known::integers([start]),
                    Known::integers([end]),
                    Known::integers([0]),
                    Known::integers([step]),
                ],
            )
        };
        assert_eq!(s(1, i64::MAX, 1), [1, 2, 3, 4]);
        assert_eq!(s(-2, i64::MAX, 1), [3, 4]);
        assert_eq!(s(0, 5, 2), [0, 2, 4]);
        assert_eq!(s(-1, i64::MIN, -1), [4, 3, 2, 1, 0]);
    }

    #[test]
    fn operands_of_different_rank_are_not_joined() {
        let scalar = Known { number: Number::Integer, data: ArrayD::zeros(IxDyn(&[])) };
        let concat = node("Concat", &["a", "b"], &["y"], vec![int_attribute("axis", 0)]);
        assert!(evaluate(&concat, &[Some(Known::integers([1, 2])), Some(scalar)]).is_none());
    }

    #[test]
    fn clip_flatten_and_one_hot() {
        let bounds = [Known::integers([1]), Known::integers([3])];
        assert_eq!(run("Clip", &[Known::integers([0, 2, 9]), bounds[0].clone(), bounds[1].clone()]), [1, 2, 3]);
        let one_hot = [Known::integers([1, -1]), Known::integers([3]), Known::integers([0, 7])];
        assert_eq!(run("OneHot", &one_hot), [0, 7, 0, 0, 0, 7]);
        let x = Known { number: Number::Integer, data: ArrayD::zeros(IxDyn(&[2, 3, 4])) };
        let flat =
            |a| evaluate(&node("Flatten", &["x"], &["y"], vec![int_attribute("axis", a)]), &[Some(x.clone())]).unwrap();
        assert_eq!(flat(-1)[0].data.shape(), [6, 4]);
        assert_eq!(flat(0)[0].data.shape(), [1, 24]);
    }

    #[test]
    fn reshape_resolves_its_target() {
        assert_eq!(resolve_shape(&[2, 6], &[0, 2, -1], false), Some(vec![2, 2, 3]));
        assert_eq!(resolve_shape(&[2, 6], &[5, -1], false), None);
        assert_eq!(resolve_shape(&[2, 6], &[4, 4], false), None);
    }

    #[test]
    fn uneven_split_by_number_of_outputs() {
        let n = node("Split", &["x"], &["a", "b"], vec![int_attribute("num_outputs", 2)]);
        assert_eq!(split_lengths(&n, 5, None), Some(vec![3, 2]));
    }
}
