//! Operators that move elements: the gradient moves them back, and adds up what was taken several times.

use super::super::tape::Backward;
use super::operands::{list, refuse};
use crate::axes::arithmetic::slice_range;
use crate::error::Result;
use crate::graph::{Attributes, int_attribute, nearest_axis, resolve_axis, string_attribute};
use crate::onnx::proto::NodeProto;
use crate::onnx::{is_float, to_i64};

/// A one-hot matrix of more elements than this is not worth its memory.
const LARGEST_ONE_HOT: usize = 1 << 22;

pub fn reshape(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        Ok(t.reshape(g, &shape))
    })
}

pub fn transpose(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    t.give(node, 0, |t, x| {
        let rank = t.shape(x)?.len();
        let perm: Vec<usize> = match node.ints("perm").filter(|p| !p.is_empty()) {
            Some(p) => p.iter().map(|&a| nearest_axis(a, rank)).collect(),
            None => (0..rank).rev().collect(),
        };
        let inverse: Vec<usize> = (0..rank).map(|i| perm.iter().position(|&p| p == i).unwrap_or(i)).collect();
        Ok(t.transpose(g, &inverse))
    })
}

pub fn tile(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let repeats = list(t, node, "repeats", 1)?.unwrap_or_default();
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let split: Vec<usize> = repeats.iter().zip(&shape).flat_map(|(&r, &n)| [r as usize, n]).collect();
        let apart = t.reshape(g, &split);
        let axes: Vec<usize> = (0..shape.len()).map(|i| 2 * i).collect();
        Ok(t.reduce("ReduceSum", &apart, &axes, false))
    })
}

pub fn concat(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let rank = t.shape(&node.output[0])?.len();
    let axis = nearest_axis(node.int("axis").unwrap_or(0), rank);
    let mut at = 0;
    for j in 0..node.input.len() {
        let length = t.shape(&node.input[j])?[axis];
        t.give(node, j, |t, _| Ok(t.part(g, axis, at, length)))?;
        at += length;
    }
    Ok(())
}

pub fn split(t: &mut Backward, node: &NodeProto, given: &[Option<String>]) -> Result<()> {
    t.give(node, 0, |t, x| {
        let whole = t.shape(x)?;
        let axis = nearest_axis(node.int("axis").unwrap_or(0), whole.len());
        if let Some(parts) = given.iter().cloned().collect::<Option<Vec<_>>>() {
            return Ok(t.concat(&parts, axis));
        }
        let (mut at, mut sum) = (0, None::<String>);
        for (output, g) in node.output.iter().zip(given) {
            let length = t.shape(output)?[axis];
            if let Some(g) = g {
                let part = t.pad(g, &whole, axis, at, length);
                sum = Some(match sum {
                    Some(sum) => t.op("Add", &[&sum, &part]),
                    None => part,
                });
            }
            at += length;
        }
        sum.ok_or_else(|| refuse(node, "no gradient"))
    })
}

pub fn slice(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
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
            let axis = nearest_axis(axis, whole.len());
            let Some((first, length)) = slice_range(whole[axis], starts[i], ends[i], steps[i]) else {
                return Err(refuse(node, "a step of zero"));
            };
            if steps[i] == 1 {
                shape[axis] = whole[axis];
                out = t.pad(&out, &shape, axis, first, length);
            } else {
                let taken =
                    (0..length as i64).map(|k| Some((first as i64 + k * steps[i]) as usize)).collect::<Vec<_>>();
                out = put_back(t, &out, &mut shape, axis, whole[axis], &taken);
            }
        }
        Ok(out)
    })
}

/// The gradient of n elements along an axis of which the k-th result was a copy of element `taken[k]`, or of none.
///
/// Each element is the sum of a few gathered ones, so that no runtime needs an operator that scatters: the positions at
/// which an element was taken stand in a table [n, most], filled up with the position of a zero.
fn put_back(t: &mut Backward, g: &str, shape: &mut [usize], axis: usize, n: usize, taken: &[Option<usize>]) -> String {
    let mut positions: Vec<Vec<i64>> = vec![Vec::new(); n];
    for (k, element) in taken.iter().enumerate() {
        if let Some(list) = element.and_then(|e| positions.get_mut(e)) {
            list.push(k as i64);
        }
    }
    let most = positions.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut source = g.to_string();
    if positions.iter().any(|p| p.len() < most) {
        let mut one = shape.to_vec();
        one[axis] = 1;
        let zero = t.zeros(&one);
        source = t.concat(&[source, zero], axis);
    }
    let table: Vec<i64> =
        positions.iter().flat_map(|p| (0..most).map(|i| p.get(i).copied().unwrap_or(taken.len() as i64))).collect();
    shape[axis] = n;
    let dims = [n, most];
    let indices = t.integers(if most == 1 { &dims[..1] } else { &dims }, &table);
    let gathered = t.op_with("Gather", &[&source, &indices], vec![int_attribute("axis", axis as i64)]);
    if most == 1 { gathered } else { t.reduce("ReduceSum", &gathered, &[axis + 1], false) }
}

/// The gradient of a table of n rows of which row `taken[k]` was the k-th result. `g` is [before, results, after].
fn rows(t: &mut Backward, g: &str, [before, after]: [usize; 2], n: usize, taken: &[usize]) -> String {
    let mut counts = vec![0; n];
    taken.iter().for_each(|&r| counts[r] += 1);
    let most = counts.iter().max().copied().unwrap_or(0);
    let g = t.reshape(g, &[before, taken.len(), after]);
    if n * most <= 8 * (taken.len() + 1) {
        let some: Vec<Option<usize>> = taken.iter().map(|&r| Some(r)).collect();
        return put_back(t, &g, &mut [before, taken.len(), after], 1, n, &some);
    }
    // Few rows are taken very often, or few of many rows are taken.
    if n * taken.len() <= LARGEST_ONE_HOT || t.typing.opset < 16 || before > 1 {
        let mut hot = vec![0.0; n * taken.len()];
        taken.iter().enumerate().for_each(|(k, &r)| hot[r * taken.len() + k] = 1.0);
        let hot = t.floats(&[n, taken.len()], &hot);
        return t.op("MatMul", &[&hot, &g]);
    }
    let indices: Vec<i64> = taken.iter().map(|&r| r as i64).collect();
    let indices = t.integers(&[taken.len(), 1], &indices);
    let (zeros, g) = (t.zeros(&[n, after]), t.reshape(&g, &[taken.len(), after]));
    t.op_with("ScatterND", &[&zeros, &indices, &g], vec![string_attribute("reduction", "add")])
}

/// Indices that the graph holds, however many; `None` where they are computed.
fn constant_indices(t: &Backward, name: &str) -> Option<Vec<i64>> {
    if let Some(known) = t.typing.known.get(name) {
        return Some(known.ints());
    }
    t.typing.weights.get(name).filter(|w| !is_float(w)).and_then(|w| to_i64(w).ok())
}

pub fn gather(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let name = node.input[1].as_str();
    let (shape, count) = (t.shape(&node.input[0])?, t.shape(name)?.iter().product::<usize>());
    let axis = nearest_axis(node.int("axis").unwrap_or(0), shape.len());
    let n = shape[axis];
    let (before, after) = (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
    let Some(indices) = constant_indices(t, name) else {
        return t.give(node, 0, |t, _| {
            let flat = t.reshape(name, &[count]);
            let g = t.reshape(g, &[before, count, after]);
            let table = if before > 1 || t.typing.opset < 16 || n * count <= LARGEST_ONE_HOT {
                let (depth, values) = (t.ints(&[n as i64]), t.floats(&[2], &[0.0, 1.0]));
                let hot = t.op_with("OneHot", &[&flat, &depth, &values], vec![int_attribute("axis", 0)]);
                t.op("MatMul", &[&hot, &g])
            } else {
                let (column, g) = (t.reshape(&flat, &[count, 1]), t.reshape(&g, &[count, after]));
                let zeros = t.zeros(&[n, after]);
                t.op_with("ScatterND", &[&zeros, &column, &g], vec![string_attribute("reduction", "add")])
            };
            Ok(t.reshape(&table, &shape))
        });
    };
    let Some(taken) = indices.iter().map(|&i| resolve_axis(i, n)).collect::<Option<Vec<_>>>() else {
        return Err(refuse(node, "indices that are out of range"));
    };
    t.give(node, 0, |t, _| {
        let table = if let [row] = taken[..] {
            let one = t.reshape(g, &[before, 1, after]);
            t.pad(&one, &[before, n, after], 1, row, 1)
        } else {
            rows(t, g, [before, after], n, &taken)
        };
        Ok(t.reshape(&table, &shape))
    })
}

pub fn gather_nd(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (shape, at) = (t.shape(&node.input[0])?, t.shape(&node.input[1])?);
    let batches = node.int("batch_dims").unwrap_or(0).max(0) as usize;
    let Some(&last) = at.last().filter(|&&l| batches + l <= shape.len() && batches < at.len()) else {
        return Err(refuse(node, "indices of this shape"));
    };
    let (indexed, rest) = shape.split_at(batches + last);
    let (n, after) = (indexed.iter().product::<usize>(), rest.iter().product::<usize>());
    let Some(indices) = constant_indices(t, &node.input[1]) else {
        if batches > 0 || t.typing.opset < 16 {
            return Err(refuse(node, "indices that are computed"));
        }
        return t.give(node, 0, |t, x| {
            let zeros = t.zeros_like(x)?;
            Ok(t.op_with("ScatterND", &[&zeros, &node.input[1], g], vec![string_attribute("reduction", "add")]))
        });
    };
    let in_batch = at[batches..].iter().product::<usize>() / last.max(1);
    let taken: Option<Vec<usize>> = indices
        .chunks_exact(last.max(1))
        .enumerate()
        .map(|(k, tuple)| {
            let start = k / in_batch.max(1);
            tuple
                .iter()
                .zip(&indexed[batches..])
                .try_fold(start, |flat, (&i, &size)| Some(flat * size + resolve_axis(i, size)?))
        })
        .collect();
    let Some(taken) = taken else { return Err(refuse(node, "indices that are out of range")) };
    t.give(node, 0, |t, _| {
        let table = rows(t, g, [1, after], n, &taken);
        Ok(t.reshape(&table, &shape))
    })
}

pub fn gather_elements(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (shape, at) = (t.shape(&node.input[0])?, t.shape(&node.input[1])?);
    let axis = nearest_axis(node.int("axis").unwrap_or(0), shape.len());
    let Some(indices) = constant_indices(t, &node.input[1]) else {
        if t.typing.opset < 16 {
            return Err(refuse(node, "indices that are computed"));
        }
        return t.give(node, 0, |t, x| {
            let zeros = t.zeros_like(x)?;
            let attributes = vec![string_attribute("reduction", "add"), int_attribute("axis", axis as i64)];
            Ok(t.op_with("ScatterElements", &[&zeros, &node.input[1], g], attributes))
        });
    };
    let taken: Option<Vec<usize>> = indices
        .iter()
        .enumerate()
        .map(|(k, &i)| {
            // The element's own place, with the index along the axis.
            let mut rest = k;
            let mut place = vec![0; at.len()];
            for (p, &size) in place.iter_mut().zip(&at).rev() {
                *p = rest % size;
                rest /= size;
            }
            place[axis] = resolve_axis(i, shape[axis])?;
            Some(place.iter().zip(&shape).fold(0, |flat, (&p, &size)| flat * size + p))
        })
        .collect();
    let Some(taken) = taken else { return Err(refuse(node, "indices that are out of range")) };
    t.give(node, 0, |t, _| {
        let elements = rows(t, g, [1, 1], shape.iter().product(), &taken);
        Ok(t.reshape(&elements, &shape))
    })
}

/// ScatterND and ScatterElements: what was written over has no gradient, what was written has that of its place.
pub fn scatter(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (indices, updates) = (node.input[1].as_str(), node.input[2].as_str());
    let added = match node.string("reduction").unwrap_or("none") {
        "none" => false,
        "add" => true,
        _ => return Err(refuse(node, "this reduction")),
    };
    let elements = node.op_type() == "ScatterElements";
    let axis = int_attribute("axis", node.int("axis").unwrap_or(0));
    t.give(node, 0, |t, _| {
        if added {
            return Ok(g.to_string());
        }
        let zeros = t.zeros_like(updates)?;
        let attributes = if elements { vec![axis.clone()] } else { vec![] };
        Ok(t.op_with(node.op_type(), &[g, indices, &zeros], attributes))
    })?;
    t.give(node, 2, |t, _| {
        Ok(match elements {
            true => t.op_with("GatherElements", &[g, indices], vec![axis.clone()]),
            false => t.op("GatherND", &[g, indices]),
        })
    })
}

pub fn pad(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let mode = node.string("mode").filter(|m| !m.is_empty()).unwrap_or("constant");
    let pads = list(t, node, "pads", 1)?.unwrap_or_default();
    t.give(node, 0, |t, x| {
        let whole = t.shape(x)?;
        let mut shape = t.shape(&node.output[0])?;
        let axes = list(t, node, "axes", 3)?.unwrap_or_else(|| (0..whole.len() as i64).collect());
        let mut out = g.to_string();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = nearest_axis(axis, whole.len());
            let (n, before, behind) = (whole[axis] as i64, pads[i], pads[i + axes.len()]);
            if before == 0 && behind == 0 {
                continue;
            }
            if mode == "constant" && before >= 0 && behind >= 0 {
                out = t.part(&out, axis, before as usize, whole[axis]);
                shape[axis] = whole[axis];
                continue;
            }
            // What each result was a copy of.
            let source = |k: i64| -> Option<usize> {
                let at = k - before;
                let inside = match mode {
                    "edge" => at.clamp(0, n - 1),
                    "wrap" => at.rem_euclid(n),
                    "reflect" if n == 1 => 0,
                    "reflect" => {
                        let folded = at.rem_euclid(2 * n - 2);
                        folded.min(2 * n - 2 - folded)
                    }
                    _ => at,
                };
                usize::try_from(inside).ok().filter(|&s| s < n as usize)
            };
            let taken: Vec<Option<usize>> = (0..n + before + behind).map(source).collect();
            out = put_back(t, &out, &mut shape, axis, whole[axis], &taken);
        }
        Ok(out)
    })
}

/// Blocks of pixels as channels, and back.
pub fn depth_space(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let b = node.int("blocksize").unwrap_or(1);
    t.give(node, 0, |t, x| {
        let shape = t.shape(x)?;
        let block = vec![int_attribute("blocksize", b)];
        if node.op_type() == "SpaceToDepth" {
            return Ok(t.op_with("DepthToSpace", &[g], block));
        }
        if node.string("mode").unwrap_or("DCR") == "DCR" {
            return Ok(t.op_with("SpaceToDepth", &[g], block));
        }
        let ([n, c, h, w], b) = (shape[..].try_into().unwrap_or([0; 4]), b.max(1) as usize);
        let apart = t.reshape(g, &[n, c / (b * b), h, b, w, b]);
        let back = t.transpose(&apart, &[0, 1, 3, 5, 2, 4]);
        Ok(t.reshape(&back, &shape))
    })
}

/// Trilu is its own gradient; a running sum is one that runs the other way.
pub fn same(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    t.give(node, 0, |t, _| {
        let mut inputs = vec![g];
        inputs.extend(node.input[1..].iter().map(String::as_str));
        let mut attributes = node.attribute.clone();
        if node.op_type() == "CumSum" {
            attributes.retain(|a| a.name() != "reverse");
            attributes.push(int_attribute("reverse", 1 - node.int("reverse").unwrap_or(0)));
        }
        Ok(t.op_with(node.op_type(), &inputs, attributes))
    })
}
