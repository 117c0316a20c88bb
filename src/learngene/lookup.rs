//! The lookups by which layers share centroids: written out as plain weights, or kept for those that are named.

use std::collections::{HashMap, HashSet};

use crate::axes::resize::take;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Names};
use crate::metadata::SHARE_PREFIX;
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{DataType, data_type, element_count, payload, tensor_from_i64, tensor_from_raw, to_i64};

/// A lookup of centroids: the nodes and their operands.
struct Lookup {
    gather: usize,
    data: usize,
    slots: usize,
    axis: usize,
}

fn lookups(graph: &GraphProto) -> Vec<Lookup> {
    let position: HashMap<&str, usize> = graph.initializer.iter().enumerate().map(|(i, t)| (t.name(), i)).collect();
    graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, n)| n.op_type() == "Gather" && n.name().starts_with(SHARE_PREFIX))
        .filter_map(|(gather, n)| {
            let data = *position.get(n.input.first()?.as_str())?;
            let slots = *position.get(n.input.get(1)?.as_str())?;
            let axis = usize::try_from(n.int("axis").unwrap_or(0)).ok()?;
            (axis < graph.initializer[data].dims.len()).then_some(Lookup { gather, data, slots, axis })
        })
        .collect()
}

/// What a lookup gives.
fn look_up(data: &TensorProto, slots: &[i64], axis: usize) -> Result<TensorProto> {
    let mut dims = data.shape();
    let list: Vec<usize> =
        slots.iter().map(|&s| usize::try_from(s).ok().filter(|&s| s < dims[axis])).collect::<Option<_>>().ok_or_else(
            || Error::new(ErrorKind::Format, format!("slots {slots:?} name centroids that `{}` lacks", data.name())),
        )?;
    let bytes = payload(data);
    let size = bytes.len() / element_count(data)?.max(1);
    let taken = take(&bytes, &dims, axis, &list, size);
    dims[axis] = list.len();
    let kind = data_type(data).unwrap_or(DataType::Float);
    Ok(tensor_from_raw(data.name(), kind, &dims, taken.into()))
}

/// Writes every looked-up weight out, so that a deployer sees plain weights.
pub(crate) fn bake(graph: &mut GraphProto) -> Result<()> {
    let found = lookups(graph);
    if found.is_empty() {
        return Ok(());
    }
    let mut baked: HashMap<String, TensorProto> = HashMap::new();
    let mut gone = Vec::new();
    for lookup in &found {
        let gather = &graph.node[lookup.gather];
        let tensor = look_up(&graph.initializer[lookup.data], &to_i64(&graph.initializer[lookup.slots])?, lookup.axis)?;
        let gathered = gather.output[0].clone();
        gone.push(lookup.gather);
        let reshape = graph.node.iter().enumerate().find(|(_, n)| n.op_type() == "Reshape" && n.input[0] == gathered);
        let Some((k, reshape)) = reshape else {
            bail!(Format, "the lookup `{gathered}` of the learngene has lost its Reshape");
        };
        let target = graph.initializer.iter().find(|t| t.name() == reshape.input[1]);
        let Some(target) = target else { bail!(Format, "the Reshape of `{gathered}` has no constant shape") };
        let dims = to_i64(target)?;
        let name = reshape.output[0].clone();
        gone.push(k);
        let elements = element_count(&tensor)?;
        let tensor = TensorProto { name: Some(name.clone()), dims, ..tensor };
        if element_count(&tensor)? != elements {
            bail!(Format, "the lookup `{name}` of the learngene does not fit its shape");
        }
        baked.insert(name, tensor);
    }
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        !gone.contains(&(k - 1))
    });
    let mut list: Vec<TensorProto> = baked.into_values().collect();
    list.sort_by(|a, b| a.name().cmp(b.name()));
    // The plain weight has its old name back where that is free.
    let mut names = Names::new(graph);
    let old: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_string()).collect();
    for mut t in list {
        let shared = t.name().to_string();
        let plain = shared.strip_prefix(SHARE_PREFIX).unwrap_or(&shared).to_string();
        let name = if old.contains(&plain) { shared.clone() } else { names.fresh(&plain) };
        for node in &mut graph.node {
            node.input.iter_mut().filter(|x| **x == shared).for_each(|x| *x = name.clone());
        }
        t.name = Some(name);
        graph.initializer.push(t);
    }
    Ok(())
}

/// Drops centroids that no slot names.
pub(crate) fn compact(graph: &mut GraphProto) -> Result<()> {
    let mut names = Names::new(graph);
    for lookup in lookups(graph) {
        let slots = to_i64(&graph.initializer[lookup.slots])?;
        let mut used: Vec<i64> = slots.clone();
        used.sort_unstable();
        used.dedup();
        if used.len() as i64 == graph.initializer[lookup.data].dims[lookup.axis] {
            continue;
        }
        let renumbered: Vec<i64> =
            slots.iter().map(|s| used.iter().position(|u| u == s).unwrap_or_default() as i64).collect();
        let data = look_up(&graph.initializer[lookup.data], &used, lookup.axis)?;
        let name = names.fresh(&format!("{}/used", graph.initializer[lookup.data].name()));
        let slots_name = names.fresh(&format!("{}/used", graph.initializer[lookup.slots].name()));
        graph.initializer.push(TensorProto { name: Some(name.clone()), ..data });
        graph.initializer.push(tensor_from_i64(slots_name.clone(), &[renumbered.len()], &renumbered));
        let gather = &mut graph.node[lookup.gather];
        gather.input[0] = name;
        gather.input[1] = slots_name;
    }
    Ok(())
}
