//! Weights with their axes gathered, mixed or spread, and their places in the graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use rayon::prelude::*;

use super::plan::{LinearCombination, ResizePlan};
use crate::axes::store::Store;
use crate::axes::typing::{Typing, Use};
use crate::error::Result;
use crate::graph::{self, Names};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{DataType, data_type, element_count, payload, subgraphs, tensor_from_f32, tensor_from_raw, to_f32};

/// The new tensors, by use.
pub(super) fn weights(typing: &Typing, plan: &ResizePlan) -> Result<Vec<(usize, TensorProto)>> {
    let store = Store::default();
    typing
        .uses
        .par_iter()
        .enumerate()
        .filter_map(|(u, of_use)| {
            let changed = changed_weight(typing, plan, u, of_use).transpose()?;
            Some(changed.and_then(|t| Ok((u, store.keep(t)?))))
        })
        .collect()
}

fn changed_weight(typing: &Typing, plan: &ResizePlan, u: usize, of_use: &Use) -> Result<Option<TensorProto>> {
    let tensor = typing.weights[of_use.name.as_str()];
    let lists: Vec<Option<Vec<usize>>> = of_use.dims.iter().map(|d| plan.positions(&typing.factors, d)).collect();
    let mut mixtures: BTreeMap<usize, LinearCombination> = BTreeMap::new();
    for (a, dim) in of_use.dims.iter().enumerate() {
        if let Some(mixture) = plan.mixtures.get(&(u, a)) {
            mixtures.insert(a, mixture.clone());
        } else if plan.is_spread(&typing.factors, (u, a), dim) {
            mixtures.insert(a, plan.mixed(&typing.factors, (u, a), dim));
        }
    }
    let replaced = plan.replaced.get(&u);
    if mixtures.is_empty() && replaced.is_none() && lists.iter().all(Option::is_none) {
        return Ok(None);
    }
    let kind = data_type(tensor).unwrap_or(DataType::Float);
    let mut shape = tensor.shape();
    if let Some(elements) = replaced {
        for (n, list) in shape.iter_mut().zip(&lists) {
            *n = list.as_ref().map_or(*n, Vec::len);
        }
        if shape.iter().product::<usize>() != elements.len() {
            bail!(Internal, "new elements of `{}` do not have the shape {shape:?}", of_use.name);
        }
        return Ok(Some(tensor_from_f32(of_use.name.clone(), kind, &shape, elements)));
    }
    let mut data = payload(tensor);
    let size = data.len() / element_count(tensor)?.max(1);
    for (a, list) in lists.iter().enumerate() {
        if let Some(list) = list.as_ref().filter(|_| !mixtures.contains_key(&a)) {
            data = take(&data, &shape, a, list, size).into();
            shape[a] = list.len();
        }
    }
    let mut tensor = tensor_from_raw(of_use.name.clone(), kind, &shape, data);
    for (&a, mixture) in &mixtures {
        let mixed = mix(&to_f32(&tensor)?, &shape, a, mixture);
        shape[a] = mixture.len();
        tensor = tensor_from_f32(of_use.name.clone(), kind, &shape, &mixed);
    }
    Ok(Some(tensor))
}

/// Gathers along an axis of a tensor given as bytes.
pub(crate) fn take(data: &[u8], shape: &[usize], axis: usize, list: &[usize], element: usize) -> Vec<u8> {
    let inner = shape[axis + 1..].iter().product::<usize>() * element;
    match inner {
        // Single elements: copies of a length that is known.
        2 => return take_elements::<2>(data, shape[axis], list),
        4 => return take_elements::<4>(data, shape[axis], list),
        8 => return take_elements::<8>(data, shape[axis], list),
        _ => {}
    }
    let block = shape[axis] * inner;
    let mut out = Vec::with_capacity(data.len() / shape[axis].max(1) * list.len());
    if block > 0 {
        for outer in data.chunks_exact(block) {
            for &i in list {
                out.extend_from_slice(&outer[i * inner..(i + 1) * inner]);
            }
        }
    }
    out
}

/// [`take`] of the last axis, of so many elements of N bytes.
fn take_elements<const N: usize>(data: &[u8], length: usize, list: &[usize]) -> Vec<u8> {
    let elements = data.as_chunks::<N>().0;
    let mut out = vec![0; data.len() / length.max(1) * list.len()];
    if !out.is_empty() {
        let rows = out.as_chunks_mut::<N>().0.chunks_exact_mut(list.len());
        for (row, old) in rows.zip(elements.chunks_exact(length)) {
            for (to, &i) in row.iter_mut().zip(list) {
                *to = old[i];
            }
        }
    }
    out
}

pub(crate) fn mix(data: &[f32], shape: &[usize], axis: usize, mixture: &LinearCombination) -> Vec<f32> {
    let inner = shape[axis + 1..].iter().product::<usize>();
    let block = shape[axis] * inner;
    let mut out = Vec::with_capacity(data.len() / shape[axis].max(1) * mixture.len());
    for outer in data.chunks_exact(block.max(1)) {
        for terms in mixture {
            match terms[..] {
                [(i, 1.0)] => out.extend_from_slice(&outer[i * inner..(i + 1) * inner]),
                _ => {
                    let at = out.len();
                    out.resize(at + inner, 0.0);
                    for &(i, c) in terms {
                        for (o, x) in out[at..].iter_mut().zip(&outer[i * inner..(i + 1) * inner]) {
                            *o += c * x;
                        }
                    }
                }
            }
        }
    }
    out
}

/// Puts changed tensors into the graph: under the old name where every use of it changed alike, else as clones.
pub(super) fn place(typing: &Typing, changed: Vec<(usize, TensorProto)>, names: &mut Names, out: &mut GraphProto) {
    let constants: HashSet<&str> = typing
        .graph
        .node
        .iter()
        .filter(|n| n.op_type() == "Constant")
        .flat_map(|n| n.output.iter().map(String::as_str))
        .collect();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for u in &typing.uses {
        *uses.entry(u.name.as_str()).or_default() += 1;
    }
    // What stands inside a node is found there by its name.
    let inside = typing.graph.node.iter().filter(|n| subgraphs(n).next().is_some()).flat_map(graph::needed);
    let outputs: HashSet<&str> = typing.graph.output.iter().map(|o| o.name()).chain(inside).collect();
    let mut by_name: BTreeMap<String, Vec<(usize, TensorProto)>> = BTreeMap::new();
    for (u, t) in changed {
        by_name.entry(typing.uses[u].name.clone()).or_default().push((u, t));
    }
    let mut positions: HashMap<String, usize> =
        out.initializer.iter().enumerate().map(|(i, t)| (t.name().to_string(), i)).collect();
    for (name, list) in by_name {
        let keeps_name = list.len() == uses[name.as_str()]
            && list.windows(2).all(|w| w[0].1 == w[1].1)
            && !constants.contains(name.as_str())
            && !outputs.contains(name.as_str());
        if keeps_name {
            if let (Some(&at), Some((_, t))) = (positions.get(&name), list.into_iter().next()) {
                out.initializer[at] = t;
            }
            continue;
        }
        let mut clones: Vec<(TensorProto, String)> = Vec::new();
        for (u, t) in list {
            let known =
                clones.iter().find(|(c, _)| c.dims == t.dims && c.raw_data == t.raw_data).map(|(_, n)| n.clone());
            let clone = known.unwrap_or_else(|| {
                let fresh = names.fresh(&format!("{name}_{}", clones.len() + 1));
                clones.push((t, fresh.clone()));
                fresh
            });
            let of_use = &typing.uses[u];
            out.node[of_use.node].input[of_use.input] = clone;
        }
        for (t, fresh) in clones {
            positions.insert(fresh.clone(), out.initializer.len());
            out.initializer.push(TensorProto { name: Some(fresh), ..t });
        }
    }
}

/// Puts new operands into the graph, equal ones once.
pub(super) fn put_operands(operands: &BTreeMap<(usize, usize), TensorProto>, names: &mut Names, out: &mut GraphProto) {
    let mut made: Vec<(&TensorProto, String)> = Vec::new();
    for (&(node, input), tensor) in operands {
        let name = match made.iter().find(|(t, _)| t.dims == tensor.dims && t.raw_data == tensor.raw_data) {
            Some((_, name)) => name.clone(),
            None => {
                let name = names.fresh(tensor.name());
                out.initializer.push(TensorProto { name: Some(name.clone()), ..tensor.clone() });
                made.push((tensor, name.clone()));
                name
            }
        };
        out.node[node].input[input] = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_gathered_along_any_axis() {
        let data: Vec<u8> = (0..12).collect();
        assert_eq!(take(&data, &[2, 3, 2], 1, &[2, 0], 1), [4, 5, 0, 1, 10, 11, 6, 7]);
        assert_eq!(take(&data, &[3, 4], 0, &[1, 1], 1), [4, 5, 6, 7, 4, 5, 6, 7]);
        assert_eq!(take(&data, &[3, 2], 1, &[1], 2), [2, 3, 6, 7, 10, 11]);
    }

    #[test]
    fn rows_are_mixed() {
        let mixture = vec![vec![(0, 0.5), (1, 0.5)], vec![(1, 1.0)]];
        assert_eq!(mix(&[1.0, 2.0, 3.0, 4.0], &[2, 2], 0, &mixture), [2.0, 3.0, 3.0, 4.0]);
        assert_eq!(mix(&[1.0, 2.0, 3.0, 4.0], &[2, 2], 1, &mixture), [1.5, 2.0, 3.5, 4.0]);
    }
}
