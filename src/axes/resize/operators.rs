//! Operands and attributes that say sizes: one repair an operator.

use std::collections::HashMap;

use ndarray::{ArrayD, Axis};

use super::repair::Repair;
use super::weights::take;
use crate::axes::arithmetic::{ConstValue, slice_range};
use crate::axes::factors::{Dim, Factor};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, int_attribute, ints_attribute, nearest_axis, resolve_axis};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, data_type, element_count, payload, tensor_from_f32, tensor_from_i64, tensor_from_raw};
use crate::ops::{self, Mark};

/// Why a node cannot follow an axis that is resized.
fn stuck(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} at constant places of an axis that is resized")).hint(
        "keep the heads and the FFN of this layer, and the sizes of inputs; `inspect ⟦explain⟧ LAYER` shows what its \
            axes reach",
    )
}

impl Repair<'_, '_> {
    pub(super) fn split(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let a = nearest_axis(was.int("axis").unwrap_or(0), self.shape(&was.input[0]).len());
        let lengths: Vec<i64> = was.output.iter().map(|o| self.shape(o)[a] as i64).collect();
        if let Some(attribute) = node.attribute.iter_mut().find(|at| at.name() == "split") {
            attribute.ints = lengths;
        } else if let Some(operand) = node.input.get(1).filter(|x| !x.is_empty()).cloned()
            && self.operand(&operand)? != lengths
        {
            node.input[1] = self.builder.operand(&lengths);
        }
        Ok(())
    }

    pub(super) fn slice(&mut self, k: usize, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let old = |name: &str, j: usize| -> Option<Vec<i64>> {
            was.ints(name).map(<[i64]>::to_vec).or_else(|| self.typing.ints(was.input.get(j)?))
        };
        let (Some(mut starts), Some(mut ends)) = (old("starts", 1), old("ends", 2)) else { return Ok(()) };
        let shape = self.typing.shape(&was.input[0]).unwrap_or_default();
        let axes = old("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
        let mut changed = false;
        for (i, &a) in axes.iter().enumerate() {
            let a = nearest_axis(a, shape.len());
            let part = self.typing.parts.iter().find(|p| p.node == k && p.axis == a);
            let (first, last) = match (self.plan.cuts.get(&(k, a)), part) {
                (Some(&cut), _) => cut,
                (None, Some(part)) => {
                    let first: usize = part.before.iter().map(|d| self.factors.size(d)).sum();
                    (first, first + self.factors.size(&part.taken))
                }
                (None, None) => {
                    // Steps of more than one run to the end of an axis that has become longer.
                    let now = self.shape(&was.input[0]).get(a).copied().unwrap_or_default();
                    if now > shape[a] && ends[i] == shape[a] as i64 {
                        (ends[i], changed) = (now as i64, true);
                    }
                    continue;
                }
            };
            let Some((was_first, was_length)) = slice_range(shape[a], starts[i], ends[i], 1) else { continue };
            if was_first != first {
                (starts[i], changed) = (first as i64, true);
            }
            let to_the_end = was_first + was_length == shape[a] && (ends[i] < 0 || ends[i] >= shape[a] as i64);
            if was_first + was_length != last && !(to_the_end && ends[i] > shape[a] as i64) {
                (ends[i], changed) = (last as i64, true);
            }
        }
        if !changed {
            return Ok(());
        }
        if was.ints("starts").is_some() {
            for attribute in &mut node.attribute {
                match attribute.name() {
                    "starts" => attribute.ints = starts.clone(),
                    "ends" => attribute.ints = ends.clone(),
                    _ => {}
                }
            }
        } else {
            // Borders may be int32 where axes are: all operands of a Slice have one type.
            node.input[1] = self.builder.operand(&starts);
            node.input[2] = self.builder.operand(&ends);
            for (j, name) in [(3, "axes"), (4, "steps")] {
                if was.input.get(j).is_some_and(|x| !x.is_empty())
                    && let Some(values) = old(name, j)
                {
                    node.input[j] = self.builder.operand(&values);
                }
            }
        }
        Ok(())
    }

    /// The border of a grid of another size: what is added behind it follows.
    pub(super) fn pad(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let typing = self.typing;
        let dims = |value: &String| typing.dims.get(value.as_str());
        let (Some(from), Some(to)) = (dims(&was.input[0]), dims(&was.output[0])) else { return Ok(()) };
        let given = node.input.get(1).filter(|x| !x.is_empty()).and_then(|x| self.known.get(x)).map(ConstValue::ints);
        let Some(mut pads) = node.ints("pads").map(<[i64]>::to_vec).or(given) else { return Ok(()) };
        let axes = was.input.get(3).and_then(|x| typing.ints(x)).unwrap_or_else(|| (0..from.len() as i64).collect());
        let (half, mut changed) = (pads.len() / 2, false);
        for (i, &a) in axes.iter().enumerate().take(half) {
            let Some(a) = resolve_axis(a, from.len()) else { continue };
            let (Some(x), Some(y)) = (from.get(a), to.get(a)) else { continue };
            if !self.on_image(std::slice::from_ref(x)) && !self.on_image(std::slice::from_ref(y)) {
                continue;
            }
            let behind = self.factors.size(y) as i64 - self.factors.size(x) as i64 - pads[i];
            if behind != pads[half + i] {
                if behind < 0 {
                    bail!(Typing, "a border of {} elements cannot be taken from the new grid", -behind);
                }
                (pads[half + i], changed) = (behind, true);
            }
        }
        if !changed {
            return Ok(());
        }
        match node.attribute.iter_mut().find(|a| a.name() == "pads") {
            Some(attribute) => attribute.ints = pads,
            None => node.input[1] = self.builder.operand(&pads),
        }
        Ok(())
    }

    /// Constant places along a resized axis follow it, and with them the values that are put there: the place of a row
    /// that is gone goes, that of a row that stands there several times is as many places.
    pub(super) fn scatter(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let typing = self.typing;
        let (Some(dims), Some(shape)) = (typing.dims.get(was.output[0].as_str()), typing.shape(&was.input[1])) else {
            return Ok(());
        };
        let Some((&width, lead)) = shape.split_last().filter(|(width, _)| (1..=dims.len()).contains(*width)) else {
            return Ok(());
        };
        let moved: Vec<Option<Vec<usize>>> =
            dims[..width].iter().map(|d| self.plan.positions(&typing.factors, d)).collect();
        // Places that are computed were computed again.
        if moved.iter().all(Option::is_none) || !self.constants.contains(&node.input[1]) {
            return Ok(());
        }
        let stored = || typing.weights.get(was.input[1].as_str()).and_then(|t| ConstValue::read(t));
        let places = typing.known.get(was.input[1].as_str()).cloned().or_else(stored);
        let places = places.filter(|_| !self.on_image(&dims[..width])).ok_or_else(|| stuck("values are put"))?.ints();
        let places_of: Vec<HashMap<usize, Vec<i64>>> = (moved.into_iter().zip(dims))
            .map(|(list, d)| {
                let list = list.unwrap_or_else(|| (0..typing.factors.size(d)).collect());
                let mut of: HashMap<usize, Vec<i64>> = HashMap::new();
                list.into_iter().enumerate().for_each(|(new, old)| of.entry(old).or_default().push(new as i64));
                of
            })
            .collect();
        let (mut rows, mut sources): (Vec<Vec<i64>>, Vec<i64>) = Default::default();
        for (i, place) in places.chunks_exact(width).enumerate() {
            let mut new: Vec<Vec<i64>> = vec![Vec::new()];
            for ((&v, of), d) in place.iter().zip(&places_of).zip(dims) {
                let old = resolve_axis(v, typing.factors.size(d));
                let along = old.and_then(|old| of.get(&old)).map(Vec::as_slice).unwrap_or_default();
                new = new.iter().flat_map(|p| along.iter().map(move |&v| [&p[..], &[v]].concat())).collect();
            }
            sources.extend(vec![i as i64; new.len()]);
            rows.extend(new);
        }
        if rows.is_empty() {
            *node = graph::node("Identity", &[&node.input[0]], &[&node.output[0]], vec![]);
            return Ok(());
        }
        let places = tensor_from_i64("offshoot_places", &[rows.len(), width], &rows.concat());
        node.input[1] = self.builder.tensor(places);
        let (before, now) = (typing.shape(&was.input[2]).unwrap_or_default(), self.shape(&was.input[2]));
        // Values that have the resized axis themselves have followed it.
        if now.first() != before.first() && now.first() == Some(&rows.len()) {
            return Ok(());
        }
        if lead.len() != 1 || now.first() != lead.first() {
            return Err(stuck("values are put"));
        }
        if let Some(t) = typing.weights.get(was.input[2].as_str()).filter(|_| node.input[2] == was.input[2]) {
            let list: Vec<usize> = sources.iter().map(|&i| i as usize).collect();
            let (data, elements) = (payload(t), element_count(t)?.max(1));
            let kept = take(&data, &before, 0, &list, data.len() / elements);
            let shape = [&[list.len()], &before[1..]].concat();
            let kind = data_type(t).unwrap_or(DataType::Float);
            node.input[2] = self.builder.tensor(tensor_from_raw(was.input[2].clone(), kind, &shape, kept.into()));
            return Ok(());
        }
        if let Some((mut values, kind)) = self.constant_values(&was.input[2], &before) {
            let list: Vec<usize> = sources.iter().map(|&i| i as usize).collect();
            values.data = values.data.select(Axis(0), &list);
            let kept = values.tensor(&was.input[2], kind).ok_or_else(|| stuck("values are put"))?;
            node.input[2] = self.builder.tensor(kept);
            return Ok(());
        }
        let (list, along) = (self.builder.operand(&sources), vec![int_attribute("axis", 0)]);
        let kept = format!("{}/kept", was.input[2]);
        node.input[2] = self.builder.op_called("Gather", &[&node.input[2], &list], along, &kept);
        Ok(())
    }

    /// A value that is a constant of the file in another shape, or one number many times.
    fn constant_values(&self, value: &str, shape: &[usize]) -> Option<(ConstValue, DataType)> {
        let (mut at, mut in_order) = (value, true);
        let (constant, kind) = loop {
            if let Some(constant) = self.typing.constant_number(at) {
                break constant;
            }
            let node = &self.typing.graph.node[self.typing.links().maker(at)?];
            let keeps = ops::of(node).is(Mark::View) || node.op_type() == "Identity";
            if !keeps && node.op_type() != "Expand" {
                return None;
            }
            in_order &= keeps;
            at = node.input.first()?;
        };
        let data = match constant.data.len() {
            1 => ArrayD::from_elem(shape, *constant.data.first()?),
            _ if in_order => constant.data.to_shape(shape).ok()?.into_owned(),
            _ => return None,
        };
        Some((ConstValue { data, ..constant }, kind))
    }

    /// Constant places of single elements are for the old sizes.
    pub(super) fn scatter_elements(&self, was: &NodeProto) -> Result<()> {
        let dims = self.typing.dims.get(was.output[0].as_str()).map(Vec::as_slice).unwrap_or_default();
        let moved = dims.iter().any(|d| self.plan.positions(&self.typing.factors, d).is_some());
        match moved && was.input.get(1).is_some_and(|x| self.constants.contains(x)) {
            true => Err(stuck("elements are put")),
            false => Ok(()),
        }
    }

    /// True where one of the dimensions runs over the image: its new positions are no old ones.
    fn on_image(&self, dims: &[Dim]) -> bool {
        let factors = &self.typing.factors;
        let changed = |f: &Factor| self.plan.gathers.contains_key(f) && factors.spatial(*f).is_some();
        dims.iter().flat_map(|d| factors.all_leaves(d)).any(|f| changed(&f))
    }

    /// New scales for an operator that resizes by scales to a size that is no longer theirs. False where it resizes by
    /// sizes.
    pub(super) fn scales(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<bool> {
        let at = if was.op_type() == "Upsample" || was.input.len() == 2 { 1 } else { 2 };
        let Some(operand) = was.input.get(at).filter(|x| !x.is_empty()) else { return Ok(false) };
        let Some(old) = self
            .known
            .get(node.input[at].as_str())
            .cloned()
            .or_else(|| self.typing.weights.get(operand.as_str()).and_then(|t| ConstValue::read(t)))
        else {
            return Ok(false);
        };
        if old.data.is_empty() {
            return Ok(false);
        }
        let (from, to) = (self.shape(&was.input[0]), self.shape(&was.output[0]));
        let axes: Vec<usize> = match was.ints("axes").filter(|a| !a.is_empty()) {
            Some(list) => list.iter().filter_map(|&a| resolve_axis(a, from.len())).collect(),
            None => (0..from.len()).collect(),
        };
        if axes.len() != old.data.len() || axes.iter().any(|&a| a >= from.len() || a >= to.len()) {
            bail!(Typing, "its scales do not fit its axes");
        }
        let right = axes.iter().zip(&old.data).all(|(&a, &s)| (from[a] as f64 * s).floor() as usize == to[a]);
        if !right {
            let scales: Vec<f32> = axes.iter().map(|&a| to[a] as f32 / from[a].max(1) as f32).collect();
            let scales = tensor_from_f32("offshoot_scales", DataType::Float, &[scales.len()], &scales);
            node.input[at] = self.builder.tensor(scales);
        }
        Ok(true)
    }

    /// A window that covers a whole axis covers it at its new size.
    pub(super) fn pool(&self, was: &NodeProto, node: &mut NodeProto) {
        let (old, new) = (self.typing.shape(&was.input[0]).unwrap_or_default(), self.shape(&was.input[0]));
        let Some(kernel) = node.attribute.iter_mut().find(|a| a.name() == "kernel_shape") else { return };
        for (i, size) in kernel.ints.iter_mut().enumerate() {
            if let (Some(&before), Some(&now)) = (old.get(i + 2), new.get(i + 2))
                && *size == before as i64
                && before > 1
            {
                *size = now as i64;
            }
        }
    }

    /// Attributes that count groups or heads.
    pub(super) fn counts(&self, k: usize, node: &mut NodeProto) {
        if let Some(group) = self.typing.groups.get(&k) {
            let count = self.factors.size(group) as i64;
            node.attribute.retain(|a| a.name() != "group");
            node.attribute.push(int_attribute("group", count));
        }
        for ((_, attribute), heads) in self.typing.head_counts.iter().filter(|((at, _), _)| *at == k) {
            let count = self.factors.size(heads) as i64;
            node.attribute.retain(|a| a.name() != *attribute);
            node.attribute.push(int_attribute(attribute, count));
        }
        // `com.microsoft` Attention also counts the features of its queries, keys and values.
        const SIZES: &str = "qkv_hidden_sizes";
        let made = node.output.first().and_then(|o| self.typing.dims.get(o.as_str())?.last());
        if let (Some(_), Some(features)) = (node.ints(SIZES), made) {
            let size = self.factors.size(features) as i64;
            node.attribute.retain(|a| a.name() != SIZES);
            node.attribute.push(ints_attribute(SIZES, &[size; 3]));
        }
    }
}
