//! Numbers that float16 does not hold: which values of a model come near the end of its range on images.

use std::collections::HashSet;
use std::sync::Arc;

use rayon::prelude::*;

use super::lengths::alike;
use super::subgraph::{Values, fixed_to};
use crate::axes::Typing;
use crate::error::Result;
use crate::graph::{Links, Names, data_inputs, element_types, node};
use crate::onnx::proto::type_proto::Value;
use crate::onnx::{DataType, Model, tensor_info};
use crate::runtime::Runtime;

/// Values of other images may be larger than those that were seen: up to half the largest number of float16 they are
/// left to it.
const NEAR: f32 = 32_752.0;
/// Views that are run as one task.
const CHUNK: usize = 32;

/// The values of a model of float32 that are beyond 32752 on some view, half of what float16 holds; views are batches
/// of one sample.
///
/// # Errors
/// [`ErrorKind::Runtime`](crate::error::ErrorKind::Runtime) where the runtime cannot run the model.
pub fn beyond_half(runtime: &Arc<Runtime>, model: &Model, views: &[&Values]) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for views in alike(views.iter().copied()) {
        found.extend(beyond_half_on(runtime, model, &views)?);
    }
    Ok(found)
}

/// The same on views of one shape.
fn beyond_half_on(runtime: &Arc<Runtime>, model: &Model, views: &[&Values]) -> Result<HashSet<String>> {
    let Some(first) = views.first() else { return Ok(HashSet::new()) };
    let mut probe = fixed_to(model, first);
    let image = Typing::new(&probe)?.image_size();
    let graph = probe.graph_mut();
    let mut names = Names::new(graph);
    let values: Vec<String> = {
        let (links, types) = (Links::new(graph), element_types(graph));
        let inputs = data_inputs(graph).into_iter().map(|v| v.name());
        let computed = links.downstream(inputs).through(|k| !matches!(graph.node[k].op_type(), "Shape" | "Size"));
        let made = computed.flat_map(|k| links.outputs(k)).filter(|o| !o.is_empty());
        made.filter(|o| types.get(o) == Some(&DataType::Float)).map(str::to_string).collect()
    };
    let mut probes = Vec::with_capacity(values.len());
    for value in &values {
        let [size, most] = ["size", "largest"].map(|what| names.fresh(&format!("{value}/{what}")));
        probes.push((
            [node("Abs", &[value], &[&size], vec![]), node("ReduceMax", &[&size], &[&most], vec![])],
            tensor_info(&most, DataType::Float, &[]),
        ));
    }
    graph.output.clear();
    for (nodes, mut output) in probes {
        graph.node.extend(nodes);
        // As many dimensions as the value has, of one element each.
        if let Some(Value::TensorType(t)) = output.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.shape = None;
        }
        graph.output.push(output);
    }
    let of_chunk = |chunk: &[&Values]| -> Result<Vec<f32>> {
        let mut session = runtime.load_for(chunk.len(), &probe, image)?;
        let mut largest = vec![0f32; values.len()];
        for view in chunk {
            let arrays: Vec<_> = view.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
            for (most, found) in largest.iter_mut().zip(session.run_on(&arrays)?) {
                *most = found.iter().fold(*most, |m, &v| if v.is_nan() { f32::INFINITY } else { m.max(v) });
            }
        }
        Ok(largest)
    };
    let chunks: Vec<Vec<f32>> = views.par_chunks(CHUNK).map(of_chunk).collect::<Result<_>>()?;
    let far = |i: &usize| chunks.iter().any(|largest| largest[*i] > NEAR);
    Ok((0..values.len()).filter(far).map(|i| values[i].clone()).collect())
}
