//! One function an operator: what it computes of known values.

use ndarray::{ArrayD, Axis, Dimension, IxDyn, Slice, concatenate};

use super::known::{ConstValue, LIMIT, Number};
use super::shapes::{broadcast_shape, elements, resolve_shape, slice_range, split_lengths};
use crate::axes::limits::MAX_RANK;
use crate::graph::{Attributes, nearest_border, resolve_axis};
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// Results of a node whose inputs are all known; `None` where this evaluator does not know the operator.
pub fn evaluate(node: &NodeProto, inputs: &[Option<ConstValue>]) -> Option<Vec<ConstValue>> {
    let x = inputs.first()?.as_ref()?;
    let args = Args { node, inputs, x };
    if node.op_type() == "Split" {
        return split(&args);
    }
    let (_, function) = FUNCTIONS.iter().find(|(op, _)| *op == node.op_type())?;
    function(&args).map(|value| vec![value])
}

/// A node and what goes into it.
struct Args<'a> {
    node: &'a NodeProto,
    inputs: &'a [Option<ConstValue>],
    /// The first input.
    x: &'a ConstValue,
}

type Function = fn(&Args) -> Option<ConstValue>;

/// What is known of operators with one output.
const FUNCTIONS: &[(&str, Function)] = &[
    ("Identity", |args| Some(args.x.clone())),
    ("Dropout", |args| Some(args.x.clone())),
    ("Neg", |args| args.unary(|v| -v)),
    ("Abs", |args| args.unary(f64::abs)),
    ("Floor", |args| args.unary(f64::floor)),
    ("Ceil", |args| args.unary(f64::ceil)),
    ("Round", |args| args.unary(f64::round_ties_even)),
    ("Sqrt", |args| args.unary(f64::sqrt)),
    ("Reciprocal", |args| args.unary(f64::recip)),
    ("Exp", |args| args.unary(f64::exp)),
    ("Log", |args| args.unary(f64::ln)),
    ("Not", |args| args.unary(|v| truth(v == 0.0))),
    ("Sign", |args| args.unary(|v| if v == 0.0 { 0.0 } else { v.signum() })),
    ("Clip", clip),
    ("Cast", cast),
    ("CastLike", |args| Some(ConstValue { number: args.input(1)?.number, data: args.x.data.mapv(f64::trunc) })),
    ("Add", |args| args.binary(|a, b| a + b)),
    ("Sub", |args| args.binary(|a, b| a - b)),
    ("Mul", |args| args.binary(|a, b| a * b)),
    ("Div", divide),
    ("Pow", |args| args.binary(f64::powf)),
    ("Mod", remainder),
    ("Min", |args| args.binary(f64::min)),
    ("Max", |args| args.binary(f64::max)),
    ("And", |args| args.binary(|a, b| truth((a != 0.0) && (b != 0.0)))),
    ("Or", |args| args.binary(|a, b| truth((a != 0.0) || (b != 0.0)))),
    ("Xor", |args| args.binary(|a, b| truth((a != 0.0) != (b != 0.0)))),
    ("Equal", |args| args.compare(|a, b| a == b)),
    ("Greater", |args| args.compare(|a, b| a > b)),
    ("Less", |args| args.compare(|a, b| a < b)),
    ("GreaterOrEqual", |args| args.compare(|a, b| a >= b)),
    ("LessOrEqual", |args| args.compare(|a, b| a <= b)),
    ("Where", choose),
    ("ReduceProd", |args| args.reduce(1.0, |a, b| a * b)),
    ("ReduceSum", |args| args.reduce(0.0, |a, b| a + b)),
    ("ReduceMax", |args| args.reduce(f64::NEG_INFINITY, f64::max)),
    ("ReduceMin", |args| args.reduce(f64::INFINITY, f64::min)),
    ("Reshape", reshape),
    ("Flatten", flatten),
    ("Squeeze", squeeze),
    ("Unsqueeze", unsqueeze),
    ("Transpose", transpose),
    ("Concat", concat),
    ("Slice", slice),
    ("Expand", expand),
    ("Tile", tile),
    ("Gather", gather),
    ("OneHot", one_hot),
    ("Range", range),
    ("ConstantOfShape", constant_of_shape),
    ("EyeLike", eye_like),
    ("NonZero", non_zero),
];

fn truth(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// A result as the graph would round it.
fn round(number: Number, v: f64) -> f64 {
    match number {
        Number::Float => v as f32 as f64,
        _ => v,
    }
}

impl Args<'_> {
    fn input(&self, i: usize) -> Option<&ConstValue> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// A list of integers that is an input, else an attribute.
    fn axes(&self) -> Option<Vec<i64>> {
        self.input(1).map(ConstValue::ints).or_else(|| self.node.ints("axes").map(<[i64]>::to_vec))
    }

    /// The first input in another shape.
    fn shaped(&self, shape: &[usize]) -> Option<ConstValue> {
        let data = self.x.data.as_standard_layout().into_owned();
        Some(self.x.with(data.into_shape_with_order(IxDyn(shape)).ok()?))
    }

    fn unary(&self, f: fn(f64) -> f64) -> Option<ConstValue> {
        Some(self.x.with(self.x.data.mapv(|v| round(self.x.number, f(v)))))
    }

    fn binary(&self, f: fn(f64, f64) -> f64) -> Option<ConstValue> {
        let y = self.input(1)?;
        Some(self.x.with(zip(&self.x.data, &y.data, |a, b| round(self.x.number, f(a, b)))?))
    }

    fn compare(&self, f: fn(f64, f64) -> bool) -> Option<ConstValue> {
        let y = self.input(1)?;
        Some(ConstValue { number: Number::Boolean, data: zip(&self.x.data, &y.data, |a, b| truth(f(a, b)))? })
    }

    fn reduce(&self, start: f64, f: fn(f64, f64) -> f64) -> Option<ConstValue> {
        let rank = self.x.data.ndim();
        let mut list: Vec<usize> = match self.axes() {
            Some(axes) => axes.iter().map(|&a| resolve_axis(a, rank)).collect::<Option<_>>()?,
            None => (0..rank).collect(),
        };
        list.sort_unstable();
        list.dedup();
        let keep = self.node.int("keepdims").unwrap_or(1) != 0;
        let mut data = self.x.data.clone();
        for &a in list.iter().rev() {
            data = data.fold_axis(Axis(a), start, |&m, &v| f(m, v));
            if keep {
                data = data.insert_axis(Axis(a));
            }
        }
        Some(self.x.with(data))
    }
}

fn zip(a: &ArrayD<f64>, b: &ArrayD<f64>, f: impl Fn(f64, f64) -> f64) -> Option<ArrayD<f64>> {
    let shape = broadcast_shape(a.shape(), b.shape())?;
    if elements(&shape) > LIMIT {
        return None;
    }
    let (a, b) = (a.broadcast(IxDyn(&shape))?, b.broadcast(IxDyn(&shape))?);
    Some(ndarray::Zip::from(&a).and(&b).map_collect(|&x, &y| f(x, y)))
}

/// A list of sizes, none of which is negative.
fn sizes(list: &ConstValue) -> Option<Vec<usize>> {
    list.ints().iter().map(|&v| usize::try_from(v).ok()).collect()
}

fn divide(args: &Args) -> Option<ConstValue> {
    match args.x.number {
        Number::Float => args.binary(|a, b| a / b),
        _ => args.binary(|a, b| if b == 0.0 { 0.0 } else { (a / b).trunc() }),
    }
}

fn remainder(args: &Args) -> Option<ConstValue> {
    if args.x.number != Number::Float && args.node.int("fmod").unwrap_or(0) == 0 {
        return args.binary(|a, b| if b == 0.0 { 0.0 } else { a - b * (a / b).floor() });
    }
    args.binary(|a, b| a % b)
}

fn choose(args: &Args) -> Option<ConstValue> {
    let (x, a, b) = (args.x, args.input(1)?, args.input(2)?);
    let shape = broadcast_shape(&broadcast_shape(x.data.shape(), a.data.shape())?, b.data.shape())?;
    if elements(&shape) > LIMIT {
        return None;
    }
    let shape = IxDyn(&shape);
    let (c, p, q) = (x.data.broadcast(shape.clone())?, a.data.broadcast(shape.clone())?, b.data.broadcast(shape)?);
    Some(a.with(ndarray::Zip::from(&c).and(&p).and(&q).map_collect(|&c, &p, &q| if c != 0.0 { p } else { q })))
}

fn clip(args: &Args) -> Option<ConstValue> {
    let bound = |i: usize, name: &str| {
        args.input(i).and_then(|k| k.data.first().copied()).or(args.node.float(name).map(f64::from))
    };
    let (low, high) = (bound(1, "min").unwrap_or(f64::NEG_INFINITY), bound(2, "max").unwrap_or(f64::INFINITY));
    Some(args.x.with(args.x.data.mapv(|v| v.max(low).min(high))))
}

fn cast(args: &Args) -> Option<ConstValue> {
    let number = Number::of(DataType::try_from(args.node.int("to")? as i32).ok()?);
    let data = args.x.data.mapv(|v| match number {
        Number::Float => v as f32 as f64,
        Number::Boolean => truth(v != 0.0),
        Number::Integer => v.trunc(),
    });
    Some(ConstValue { number, data })
}

fn concat(args: &Args) -> Option<ConstValue> {
    let all: Vec<&ConstValue> = args.inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let rank = args.x.data.ndim();
    let a = resolve_axis(args.node.int("axis")?, rank)?;
    // One value may stand there many times.
    if all.iter().any(|k| k.data.ndim() != rank) || all.iter().map(|k| k.data.len()).sum::<usize>() > LIMIT {
        return None;
    }
    let views: Vec<_> = all.iter().map(|k| k.data.view()).collect();
    Some(args.x.with(concatenate(Axis(a), &views).ok()?))
}

fn gather(args: &Args) -> Option<ConstValue> {
    let (x, indices) = (args.x, args.input(1)?);
    let a = resolve_axis(args.node.int("axis").unwrap_or(0), x.data.ndim())?;
    let n = x.data.shape()[a];
    let list: Vec<usize> = indices.ints().into_iter().map(|i| resolve_axis(i, n)).collect::<Option<_>>()?;
    if n == 0 || x.data.len() / n * list.len() > LIMIT {
        return None;
    }
    let mut shape = x.data.shape()[..a].to_vec();
    shape.extend(indices.data.shape());
    shape.extend(&x.data.shape()[a + 1..]);
    let picked = x.data.select(Axis(a), &list);
    Some(x.with(picked.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape)).ok()?))
}

fn squeeze(args: &Args) -> Option<ConstValue> {
    let old = args.x.data.shape();
    let list: Vec<usize> = match args.axes() {
        Some(axes) => axes.iter().map(|&a| resolve_axis(a, old.len())).collect::<Option<_>>()?,
        None => (0..old.len()).filter(|&i| old[i] == 1).collect(),
    };
    let shape: Vec<usize> = (0..old.len()).filter(|i| !list.contains(i)).map(|i| old[i]).collect();
    args.shaped(&shape)
}

fn unsqueeze(args: &Args) -> Option<ConstValue> {
    let list = args.axes()?;
    let rank = args.x.data.ndim() + list.len();
    if rank > MAX_RANK {
        return None;
    }
    let mut at: Vec<usize> = list.iter().map(|&a| resolve_axis(a, rank)).collect::<Option<_>>()?;
    at.sort_unstable();
    let mut data = args.x.data.clone();
    for a in at {
        if a > data.ndim() {
            return None;
        }
        data = data.insert_axis(Axis(a));
    }
    Some(args.x.with(data))
}

fn reshape(args: &Args) -> Option<ConstValue> {
    let allow_zero = args.node.int("allowzero").unwrap_or(0) != 0;
    args.shaped(&resolve_shape(args.x.data.shape(), &args.input(1)?.ints(), allow_zero)?)
}

fn flatten(args: &Args) -> Option<ConstValue> {
    let shape = args.x.data.shape();
    let a = nearest_border(args.node.int("axis").unwrap_or(1), shape.len());
    args.shaped(&[elements(&shape[..a]), elements(&shape[a..])])
}

fn transpose(args: &Args) -> Option<ConstValue> {
    let rank = args.x.data.ndim();
    let perm: Vec<usize> = match args.node.ints("perm") {
        Some(perm) => perm.iter().map(|&a| resolve_axis(a, rank)).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank || (0..perm.len()).any(|i| !perm.contains(&i)) {
        return None;
    }
    Some(args.x.with(args.x.data.clone().permuted_axes(perm).as_standard_layout().into_owned()))
}

fn expand(args: &Args) -> Option<ConstValue> {
    let shape = broadcast_shape(args.x.data.shape(), &sizes(args.input(1)?)?)?;
    if elements(&shape) > LIMIT {
        return None;
    }
    Some(args.x.with(args.x.data.broadcast(IxDyn(&shape))?.to_owned()))
}

fn tile(args: &Args) -> Option<ConstValue> {
    let mut data = args.x.data.clone();
    for (a, &n) in args.input(1)?.ints().iter().enumerate() {
        if a >= data.ndim() || n < 1 || data.len().saturating_mul(n as usize) > LIMIT {
            return None;
        }
        let views = vec![data.view(); n as usize];
        data = concatenate(Axis(a), &views).ok()?;
    }
    Some(args.x.with(data))
}

fn range(args: &Args) -> Option<ConstValue> {
    let scalar = |i: usize| args.input(i).and_then(|k| k.data.first().copied());
    let (start, end, step) = (scalar(0)?, scalar(1)?, scalar(2)?);
    let count = ((end - start) / step).ceil().max(0.0);
    if step == 0.0 || count.is_nan() || count > LIMIT as f64 {
        return None;
    }
    let data: Vec<f64> = (0..count as usize).map(|i| start + i as f64 * step).collect();
    Some(args.x.with(ArrayD::from_shape_vec(IxDyn(&[data.len()]), data).ok()?))
}

fn one_hot(args: &Args) -> Option<ConstValue> {
    let (x, values) = (args.x, args.input(2)?);
    let depth = args.input(1)?.ints().first().copied()?;
    let (off, on) = (*values.data.iter().next()?, *values.data.iter().nth(1)?);
    let depth = usize::try_from(depth).ok().filter(|d| d.saturating_mul(x.data.len()) <= LIMIT)?;
    let a = resolve_axis(args.node.int("axis").unwrap_or(-1), x.data.ndim() + 1)?;
    let mut shape = x.data.shape().to_vec();
    shape.insert(a, depth);
    let data = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
        let mut rest: Vec<usize> = at.as_array_view().to_vec();
        let class = rest.remove(a);
        let index = x.data[IxDyn(&rest)] as i64;
        if resolve_axis(index, depth) == Some(class) { on } else { off }
    });
    Some(values.with(data))
}

fn constant_of_shape(args: &Args) -> Option<ConstValue> {
    let shape = sizes(args.x)?;
    if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))? > LIMIT {
        return None;
    }
    let (number, v) = match args.node.tensor("value").and_then(ConstValue::read) {
        Some(k) => (k.number, k.data.first().copied().unwrap_or(0.0)),
        None => (Number::Float, 0.0),
    };
    Some(ConstValue { number, data: ArrayD::from_elem(IxDyn(&shape), v) })
}

fn eye_like(args: &Args) -> Option<ConstValue> {
    let [rows, columns] = args.x.data.shape() else { return None };
    let number = match args.node.int("dtype") {
        Some(kind) => Number::of(DataType::try_from(kind as i32).ok()?),
        None => args.x.number,
    };
    let diagonal = args.node.int("k").unwrap_or(0);
    let at = |i: usize, j: usize| truth(j as i64 - i as i64 == diagonal);
    let data = (0..*rows).flat_map(|i| (0..*columns).map(move |j| at(i, j))).collect();
    Some(ConstValue { number, data: ArrayD::from_shape_vec(IxDyn(&[*rows, *columns]), data).ok()? })
}

/// The places of what is not zero, one row an axis.
fn non_zero(args: &Args) -> Option<ConstValue> {
    let places: Vec<IxDyn> = args.x.data.indexed_iter().filter(|(_, v)| **v != 0.0).map(|(at, _)| at.clone()).collect();
    let rank = args.x.data.ndim();
    let data = (0..rank).flat_map(|axis| places.iter().map(move |at| at[axis] as f64)).collect();
    let data = ArrayD::from_shape_vec(IxDyn(&[rank, places.len()]), data).ok()?;
    Some(ConstValue { number: Number::Integer, data })
}

fn slice(args: &Args) -> Option<ConstValue> {
    let list = |name: &str, i: usize| {
        args.node.ints(name).map(<[i64]>::to_vec).or_else(|| args.input(i).map(ConstValue::ints))
    };
    let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
    let axes = list("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
    let mut data = args.x.data.clone();
    for (((&start, &end), &a), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let a = resolve_axis(a, data.ndim())?;
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
    Some(args.x.with(data))
}

fn split(args: &Args) -> Option<Vec<ConstValue>> {
    let data = &args.x.data;
    let a = resolve_axis(args.node.int("axis").unwrap_or(0), data.ndim())?;
    let lengths = split_lengths(args.node, data.shape()[a], args.input(1).map(ConstValue::ints))?;
    let mut at = 0;
    lengths
        .into_iter()
        .map(|n| {
            let part = data.slice_axis(Axis(a), Slice::from(at..at + n)).to_owned();
            at += n;
            Some(args.x.with(part))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, node};

    fn run(op: &str, inputs: &[ConstValue]) -> Vec<i64> {
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        evaluate(&node(op, &names, &["y"], vec![]), &inputs).unwrap()[0].ints()
    }

    #[test]
    fn integers_divide_towards_zero_and_modulo_takes_the_sign_of_the_divisor() {
        let (a, b) = (ConstValue::integers([7, -7]), ConstValue::integers([2, 2]));
        assert_eq!(run("Div", &[a.clone(), b]), [3, -3]);
        assert_eq!(run("Mod", &[a, ConstValue::integers([4, 4])]), [3, 1]);
    }

    #[test]
    fn a_slice_takes_open_ends_and_negative_steps() {
        let x = ConstValue::integers([0, 1, 2, 3, 4]);
        let s = |start, end, step| {
            run(
                "Slice",
                &[
                    x.clone(),
                    ConstValue::integers([start]),
                    ConstValue::integers([end]),
                    ConstValue::integers([0]),
                    ConstValue::integers([step]),
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
        let scalar = ConstValue { number: Number::Integer, data: ArrayD::zeros(IxDyn(&[])) };
        let concat = node("Concat", &["a", "b"], &["y"], vec![int_attribute("axis", 0)]);
        assert!(evaluate(&concat, &[Some(ConstValue::integers([1, 2])), Some(scalar)]).is_none());
    }

    #[test]
    fn clip_flatten_and_one_hot() {
        let bounds = [ConstValue::integers([1]), ConstValue::integers([3])];
        assert_eq!(run("Clip", &[ConstValue::integers([0, 2, 9]), bounds[0].clone(), bounds[1].clone()]), [1, 2, 3]);
        let one_hot = [ConstValue::integers([1, -1]), ConstValue::integers([3]), ConstValue::integers([0, 7])];
        assert_eq!(run("OneHot", &one_hot), [0, 7, 0, 0, 0, 7]);
        let x = ConstValue { number: Number::Integer, data: ArrayD::zeros(IxDyn(&[2, 3, 4])) };
        let flat =
            |a| evaluate(&node("Flatten", &["x"], &["y"], vec![int_attribute("axis", a)]), &[Some(x.clone())]).unwrap();
        assert_eq!(flat(-1)[0].data.shape(), [6, 4]);
        assert_eq!(flat(0)[0].data.shape(), [1, 24]);
    }
}
