//! A model of several inputs as one of [rows](Rows): what training feeds is one array a sample.
//!
//! Nodes in front cut the row into the arrays and give each the type that its input declares; the rest of the graph is
//! as it was, and weights keep their names. Outputs along the tokens of a mask are zero where padding is, so that a
//! loss that compares two models sees nothing there.

use std::collections::HashMap;

use ndarray::{Array4, ArrayD, Axis, Slice};

use crate::anatomy::{sequence_axis, token_axis};
use crate::axes::{Typing, carry_value_info};
use crate::data::Rows;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    self, Builder, data_inputs, declared_dims, declared_type, element_types, int_attribute, ints_attribute, is_integer,
};
use crate::onnx::{DataType, Model, tensor_info};

/// What is the same with padding and without, of the largest number.
const SAME: f32 = 1e-4;
/// What the names of the input and of everything else that is put in begin with.
const ROW: &str = "offshoot_row";

/// The model as one that takes rows.
///
/// # Errors
/// [`ErrorKind::Usage`] for an input that rows have no array for; those of typing.
pub fn of_rows(model: &Model, rows: &Rows) -> Result<Model> {
    let inputs: Vec<_> = data_inputs(model.graph()).into_iter().cloned().collect();
    let batch = inputs.iter().find_map(|v| declared_dims(v)?.first().copied()).flatten();
    let masked = masked(model, rows)?;
    let mut out = model.clone();
    let mut b = Builder::new(model.graph(), model.opset(), ROW);
    for info in &inputs {
        let Some(place) = rows.places.iter().find(|p| p.input == info.name()) else {
            return Err(Error::new(ErrorKind::Usage, format!("it has no array for the input `{}`", info.name()))
                .at(&model.path)
                .hint("models that learn from each other take the same arrays"));
        };
        let part = b.slice(ROW, 2, place.range.start as i64, place.range.end as i64);
        let shape: Vec<i64> = std::iter::once(0).chain(place.shape.iter().map(|&n| n as i64)).collect();
        let shape = b.ints(&shape);
        let array = b.op("Reshape", &[&part, &shape]);
        let kind = declared_type(info).unwrap_or(DataType::Float as i32);
        b.op_as("Cast", &[&array], vec![int_attribute("to", kind.into())], info.name());
    }
    let mut inner = HashMap::new();
    if let Some(mask) = rows.mask.as_deref().filter(|_| !masked.is_empty()) {
        let real = b.op_with("Cast", &[mask], vec![int_attribute("to", DataType::Bool as i64)]);
        let types = element_types(model.graph());
        for (output, rank) in masked {
            let Some(kind) = types.get(output.as_str()).filter(|kind| !is_integer(**kind)) else { continue };
            b.kind = *kind;
            let zero = b.scalar(0.0);
            let own = format!("{ROW}/{output}");
            let shape: Vec<i64> = [0, 0].into_iter().chain(std::iter::repeat_n(1, rank.saturating_sub(2))).collect();
            let shape = b.ints(&shape);
            let along = b.op("Reshape", &[&real, &shape]);
            b.op_as("Where", &[&along, &own, &zero], vec![], &output);
            inner.insert(output, own);
        }
    }
    let target = out.graph_mut();
    let outputs = std::mem::take(&mut target.output);
    graph::rename(target, &inner);
    target.output = outputs;
    target.input.retain(|v| inputs.iter().all(|own| own.name() != v.name()));
    target.input.insert(0, tensor_info(ROW, DataType::Float, &[batch, Some(1), Some(rows.length), Some(1)]));
    b.finish(target);
    graph::forget_shapes(target);
    // Weights in int8 stay as the model has them.
    graph::prepare_written(&mut out).map_err(|e| e.at(&model.path))?;
    Ok(out)
}

/// A model of rows for texts that are cut to a length, with the same weights, input and outputs: behind the length an
/// output is zero, as it is where padding is. `None` where an output changes otherwise.
///
/// # Errors
/// Those of typing.
pub fn cut(model: &Model, rows: &Rows, length: usize) -> Result<Option<Model>> {
    let mut out = model.clone();
    let mut b = Builder::new(model.graph(), model.opset(), ROW);
    let (rows, mut arrays) = (rows.cut(length), HashMap::new());
    for place in &rows.places {
        let part = b.slice(ROW, 2, place.range.start as i64, place.range.end as i64);
        let shape = b.ints(&[0, length as i64]);
        arrays.insert(place.input.as_str(), b.op("Reshape", &[&part, &shape]));
    }
    for node in &mut out.graph_mut().node {
        let array = node.output.first().and_then(|output| arrays.get(output.as_str()));
        if let (Some(array), Some(input)) = (array, node.input.first_mut()) {
            input.clone_from(array);
        }
    }
    b.finish(out.graph_mut());
    out.graph_mut().value_info.clear();
    graph::prepare_written(&mut out)?;
    let (whole, short) = (Typing::new(model)?, Typing::new(&out)?);
    let mut b = Builder::new(short.graph, short.opset, ROW);
    let mut inner = HashMap::new();
    for output in &model.graph().output {
        let name = output.name();
        let (Some(wanted), Some(found)) = (whole.shape(name), short.shape(name)) else { return Ok(None) };
        if wanted == found {
            continue;
        }
        // Texts are the first axis, and tokens the second.
        let of_tokens = found.len() == wanted.len() && found.get(1) == Some(&length);
        if !of_tokens || (0..found.len()).any(|axis| axis != 1 && found[axis] != wanted[axis]) {
            return Ok(None);
        }
        let own = format!("{ROW}/{length}/{name}");
        let mut pads = vec![0; 2 * found.len()];
        pads[found.len() + 1] = wanted[1].saturating_sub(length) as i64;
        match short.opset < 11 {
            true => b.op_as("Pad", &[&own], vec![ints_attribute("pads", &pads)], name),
            false => {
                let pads = b.ints(&pads);
                b.op_as("Pad", &[&own, &pads], vec![], name);
            }
        }
        inner.insert(name.to_string(), own);
    }
    drop(short);
    let target = out.graph_mut();
    let outputs = std::mem::take(&mut target.output);
    graph::rename(target, &inner);
    target.output = outputs;
    // What is put in is called what it makes.
    for node in target.node.iter_mut().filter(|node| inner.contains_key(node.name())) {
        node.name = inner.get(node.name()).cloned();
    }
    b.finish(target);
    Ok(Some(out))
}

/// True where a model says the same of `short` texts with the padding that they have in their rows and cut to their
/// length, which is what `say` is asked for second.
///
/// # Errors
/// Those of saying it.
pub fn says_the_same(
    short: &[Array4<f32>],
    mut say: impl FnMut(&Array4<f32>, bool) -> Result<Vec<(String, ArrayD<f32>)>>,
) -> Result<bool> {
    for batch in short {
        let [padded, cut] = [say(batch, false)?, say(batch, true)?];
        if !same(&padded, &cut, batch.len_of(Axis(0))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True where values of the first `count` texts are the same with padding and without, by their names.
fn same(padded: &[(String, ArrayD<f32>)], cut: &[(String, ArrayD<f32>)], count: usize) -> bool {
    let of_texts = |value: &ArrayD<f32>| value.slice_axis(Axis(0), Slice::from(..count)).to_owned();
    padded.iter().zip(cut).all(|((name, a), (other, b))| {
        if name != other || a.shape() != b.shape() {
            return false;
        }
        if a.ndim() == 0 || a.len_of(Axis(0)) < count {
            return true;
        }
        let (a, b) = (of_texts(a), of_texts(b));
        let largest = a.iter().fold(0f32, |most, v| most.max(v.abs()));
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= SAME * largest)
    })
}

/// The model that takes arrays by their names again, with the weights and outputs of one that takes rows; `original` is
/// what that was made of.
pub fn of_inputs(model: &Model, original: &Model) -> Model {
    let mut out = model.clone();
    let inputs: Vec<_> = data_inputs(original.graph()).into_iter().cloned().collect();
    let is_own = |name: &str| inputs.iter().any(|v| v.name() == name);
    let of_row = |name: &str| name.starts_with(ROW);
    let graph = out.graph_mut();
    let outer: HashMap<String, String> = (graph.node.iter().flat_map(|n| &n.output))
        .filter_map(|o| Some((o.clone(), o.strip_prefix(ROW)?.strip_prefix('/')?.to_string())))
        .collect();
    let put_in = |name: &str| is_own(name) || (of_row(name) && !outer.contains_key(name));
    let is_where = |o: &str| outer.values().any(|own| own == o);
    graph.node.retain(|n| !n.output.iter().any(|o| put_in(o) || is_where(o)));
    graph.initializer.retain(|t| !of_row(t.name()));
    let others = std::mem::take(&mut graph.input).into_iter().filter(|v| v.name() != ROW);
    graph.input = inputs.iter().cloned().chain(others).collect();
    let outputs = std::mem::take(&mut graph.output);
    graph::rename(graph, &outer);
    graph.output = outputs;
    carry_value_info(original, &mut out);
    out
}

/// The outputs that lie along the tokens of the mask, and their ranks.
fn masked(model: &Model, rows: &Rows) -> Result<Vec<(String, usize)>> {
    let Some(mask) = &rows.mask else { return Ok(Vec::new()) };
    let mut fixed = model.clone();
    let shapes: Vec<(&str, Vec<usize>)> =
        rows.places.iter().map(|p| (p.input.as_str(), [&[0][..], &p.shape].concat())).collect();
    graph::fix_lengths(fixed.graph_mut(), shapes.iter().map(|(name, shape)| (*name, &shape[..])));
    let typing = Typing::new(&fixed)?;
    let Some(tokens) = sequence_axis(&typing, mask) else { return Ok(Vec::new()) };
    let names = model.graph().output.iter().map(|o| o.name());
    let along = names.filter(|name| token_axis(&typing, name) == Some(tokens));
    Ok(along.filter_map(|name| Some((name.to_string(), typing.dims.get(name)?.len()))).collect())
}
