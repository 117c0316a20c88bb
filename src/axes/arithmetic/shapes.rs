//! Shapes that follow from shapes.

use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;

/// Elements of a shape; no more than a `usize` holds.
pub(in crate::axes) fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// The shape that two shapes broadcast to.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
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
