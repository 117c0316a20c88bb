//! Lengths: samples are cut to the tokens that they have, so that little of what is run is padding, and those of one
//! length are joined into batches, since a product of few rows takes most of its time to read its matrix.
//!
//! A network is pinned for every shape that batches have, and so lengths are rounded up: to powers of two, where there
//! are enough samples of that length, and to that of the longest sample.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis, Slice, concatenate};

use super::subgraph::{Values, sample, size};
use crate::graph::{data_inputs, declared_axes};
use crate::onnx::Model;
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::proto::tensor_shape_proto::dimension::Value as Size;

/// The least length that is told apart.
const LEAST: usize = 8;
/// So many samples make a length of their own worth while.
const ENOUGH: usize = 8;

/// Along which axes of its inputs tokens lie that a model takes any number of.
pub(super) struct TokenAxes {
    mask: String,
    /// Inputs and axes.
    axes: Vec<(String, usize)>,
}

impl TokenAxes {
    /// The axes that are as long as the mask of `sample` and bear the name that its axis bears. None where the model
    /// fixes their length or does not look at the mask, and where it is not sure which they are: another open axis is
    /// as long, or they have no names and an input has more axes than those of samples and tokens.
    pub(super) fn new(model: &Model, mask: &str, sample: &Values) -> Option<TokenAxes> {
        let inputs = data_inputs(model.graph());
        let name = |info: &ValueInfoProto, axis: usize| match &declared_axes(info)?.get(axis)?.value {
            Some(Size::DimValue(_)) => None,
            Some(Size::DimParam(name)) => Some(name.clone()),
            None => Some(String::new()),
        };
        let own = inputs.iter().find(|v| v.name() == mask).and_then(|info| name(info, 1))?;
        let length = sample.get(mask)?.len();
        if !model.graph().node.iter().any(|node| node.input.iter().any(|input| input == mask)) {
            return None;
        }
        let mut axes = Vec::new();
        for info in &inputs {
            let array = sample.get(info.name())?;
            let is_long = |axis: &usize| array.len_of(Axis(*axis)) == length;
            for axis in (1..array.ndim()).filter(is_long) {
                match name(info, axis) {
                    Some(name) if name != own || name.is_empty() && array.ndim() > 2 => return None,
                    Some(_) => axes.push((info.name().to_string(), axis)),
                    None => {}
                }
            }
        }
        Some(TokenAxes { mask: mask.to_string(), axes })
    }

    /// How long a sample is up to its last token that is real.
    fn length(&self, sample: &Values) -> usize {
        let last = |mask: &ArrayD<f32>| mask.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).last();
        sample.get(&self.mask).and_then(last).map_or(1, |last| last + 1)
    }

    /// Lengths of which there are few, ascending, so that none of these samples is longer than the last. Those of `fit`
    /// decide which.
    fn lengths(&self, fit: &[Values], held_out: &[Values]) -> Vec<usize> {
        let longest = fit.iter().chain(held_out).map(|s| self.length(s)).max().unwrap_or(1);
        let rounded = |length: usize| length.next_power_of_two().clamp(LEAST, longest.max(LEAST)).min(longest);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::from([(longest, ENOUGH)]);
        fit.iter().for_each(|sample| *counts.entry(rounded(self.length(sample))).or_default() += 1);
        // Samples of a length that few have are as long as the next ones.
        let (mut lengths, mut carried) = (Vec::new(), 0);
        for (length, count) in counts {
            carried += count;
            if carried >= ENOUGH {
                lengths.push(length);
                carried = 0;
            }
        }
        lengths
    }
}

/// How samples become batches.
pub(super) struct Batches {
    /// Along which axes samples may be cut, where they may.
    axes: Option<TokenAxes>,
    /// The lengths that there are, ascending.
    lengths: Vec<usize>,
    /// About how many tokens a batch has; a batch is one sample where the model takes one at a time.
    tokens: usize,
}

impl Batches {
    /// For samples of so many tokens each, padding and all; `tokens` is 1 where they are not to be joined.
    pub(super) fn new(
        axes: Option<TokenAxes>,
        length: usize,
        tokens: usize,
        fit: &[Values],
        held_out: &[Values],
    ) -> Batches {
        let lengths = axes.as_ref().map_or_else(|| vec![length], |axes| axes.lengths(fit, held_out));
        Batches { axes, lengths, tokens }
    }

    /// Batches of these samples, in the order of the first sample of each. Samples that are too few for a batch of
    /// their length are as long as the next ones, and the last ones are alone.
    pub(super) fn of(&self, samples: &[Values]) -> Vec<Values> {
        let longest = self.lengths.last().copied().unwrap_or(1);
        let own = |sample: &Values| {
            let length = self.axes.as_ref().map_or(longest, |axes| axes.length(sample));
            self.lengths.iter().copied().find(|l| *l >= length).unwrap_or(longest)
        };
        let own: Vec<usize> = samples.iter().map(own).collect();
        let (mut waiting, mut found) = (Vec::new(), Vec::new());
        for &length in &self.lengths {
            waiting.extend((0..samples.len()).filter(|&i| own[i] == length));
            waiting.sort_unstable();
            let size = (self.tokens / length.max(1)).max(1);
            while waiting.len() >= size {
                let batch: Vec<usize> = waiting.drain(..size).collect();
                found.push((batch[0], self.joined(samples, &batch, length)));
            }
        }
        found.extend(waiting.into_iter().map(|i| (i, self.joined(samples, &[i], longest))));
        found.sort_by_key(|(first, _)| *first);
        found.into_iter().map(|(_, batch)| batch).collect()
    }

    /// One batch, cut to a length.
    fn joined(&self, samples: &[Values], batch: &[usize], length: usize) -> Values {
        let Some(first) = batch.first().and_then(|&i| samples.get(i)) else { return Values::new() };
        let axis = |input: &String| self.axes.as_ref()?.axes.iter().find(|(name, _)| name == input).map(|(_, a)| *a);
        let of_input = |input: &String| {
            let axis = axis(input);
            let cut = |&i: &usize| {
                let array = samples.get(i)?.get(input)?.view();
                Some(match axis.filter(|axis| array.len_of(Axis(*axis)) > length) {
                    Some(axis) => array.slice_axis_move(Axis(axis), Slice::from(..length)),
                    None => array,
                })
            };
            let parts: Vec<_> = batch.iter().filter_map(cut).collect();
            Some((input.clone(), concatenate(Axis(0), &parts).ok()?))
        };
        first.keys().filter_map(of_input).collect()
    }
}

/// The samples of batches, a batch of one each.
pub(super) fn apart<'v>(batches: impl IntoIterator<Item = &'v Values>) -> Vec<Cow<'v, Values>> {
    let of_batch = |batch: &'v Values| -> Vec<Cow<'v, Values>> {
        match size(batch) {
            1 => vec![Cow::Borrowed(batch)],
            n => (0..n).map(|i| Cow::Owned(sample(batch, i))).collect(),
        }
    };
    batches.into_iter().flat_map(of_batch).collect()
}

/// Batches of the same shapes together: those of the longest samples first, and of these the largest.
pub(super) fn alike<'v>(samples: impl IntoIterator<Item = &'v Values>) -> Vec<Vec<&'v Values>> {
    let mut groups: BTreeMap<Vec<(&str, &[usize])>, Vec<&Values>> = BTreeMap::new();
    for sample in samples {
        let mut shapes: Vec<(&str, &[usize])> = sample.iter().map(|(name, v)| (name.as_str(), v.shape())).collect();
        shapes.sort_unstable();
        groups.entry(shapes).or_default().push(sample);
    }
    let mut groups: Vec<Vec<&Values>> = groups.into_values().collect();
    let sizes = |group: &Vec<&Values>| {
        let first = group.first()?;
        let (all, count) = (first.values().map(|v| v.len()).sum::<usize>(), size(first));
        Some((all / count.max(1), count))
    };
    groups.sort_by_key(|group| std::cmp::Reverse(sizes(group)));
    groups
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    /// A text of so many tokens in a batch of 40.
    fn text(tokens: usize) -> Values {
        let ids = ArrayD::from_shape_fn(IxDyn(&[1, 40]), |at| at[1] as f32);
        let mask = ids.mapv(|at| f32::from((at as usize) < tokens));
        Values::from([("ids".into(), ids), ("mask".into(), mask)])
    }

    #[test]
    fn batches_are_of_few_lengths_and_lose_no_token() {
        let axes = TokenAxes { mask: "mask".into(), axes: vec![("ids".into(), 1), ("mask".into(), 1)] };
        // Nine texts of up to 8 tokens, four of up to 16, which are too few, and nine of up to 32.
        let tokens = [vec![3, 8], vec![5; 7], vec![9, 16, 12, 10], vec![17, 30], vec![20; 7]].concat();
        let fit: Vec<Values> = tokens.iter().map(|&tokens| text(tokens)).collect();
        let held_out = [text(8), text(9), text(33), text(0)];
        let batches = Batches::new(Some(axes), 40, 32, &fit, &held_out);
        let shapes = |batches: &[Values]| -> Vec<Vec<usize>> {
            batches.iter().for_each(|b| assert_eq!(b["mask"].shape(), b["ids"].shape()));
            batches.iter().map(|b| b["ids"].shape().to_vec()).collect()
        };
        let real =
            |batch: &Values| -> Vec<usize> { batch["mask"].outer_iter().map(|row| row.sum() as usize).collect() };
        // The ninth of the short ones is with the long ones.
        let joined = batches.of(&fit);
        assert_eq!(shapes(&joined), [vec![vec![4, 8]; 2], vec![vec![1, 32]; 14]].concat());
        assert_eq!(joined.iter().flat_map(real).collect::<Vec<_>>(), tokens);
        let joined = batches.of(&held_out);
        assert_eq!(shapes(&joined), [[1, 32], [1, 32], [1, 33], [1, 32]]);
        assert_eq!(joined.iter().flat_map(real).collect::<Vec<_>>(), [8, 9, 33, 0]);
        // What may not be joined stays alone.
        let alone = Batches { tokens: 1, ..batches }.of(&fit);
        assert_eq!(shapes(&alone), [vec![vec![1, 8]; 9], vec![vec![1, 32]; 13]].concat());
    }

    #[test]
    fn the_longest_samples_come_first_and_batches_come_apart() {
        let sized =
            |count: usize, length: usize| Values::from([("ids".into(), ArrayD::zeros(IxDyn(&[count, length])))]);
        let batches = [sized(4, 8), sized(1, 32), sized(2, 32), sized(4, 8)];
        let shapes: Vec<&[usize]> = alike(&batches).iter().map(|group| group[0]["ids"].shape()).collect();
        assert_eq!(shapes, [[2, 32], [1, 32], [4, 8]]);
        let singles = apart(&batches);
        assert_eq!(singles.iter().map(|v| v["ids"].len()).collect::<Vec<_>>(), [8, 8, 8, 8, 32, 32, 32, 8, 8, 8, 8]);
        assert!(singles.iter().all(|v| size(v) == 1));
    }
}
