//! Lengths: samples are cut to the tokens that they have, so that little of what is run is padding.
//!
//! A network is pinned for every length that samples have, and so lengths are rounded up: to powers of two, where there
//! are enough samples of that length, and to that of the longest sample.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis, Slice};

use super::part::Values;
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

    /// Cuts samples to lengths of which there are few. Those of `fit` decide which.
    pub(super) fn cut(&self, fit: &mut [Values], held_out: &mut [Values]) {
        let longest = fit.iter().chain(&*held_out).map(|s| self.length(s)).max().unwrap_or(1);
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
        for sample in fit.iter_mut().chain(held_out) {
            let own = self.length(sample);
            let length = lengths.iter().copied().find(|l| *l >= own).unwrap_or(longest);
            for (input, axis) in &self.axes {
                if let Some(array) = sample.get_mut(input).filter(|array| array.len_of(Axis(*axis)) > length) {
                    *array = array.slice_axis(Axis(*axis), Slice::from(..length)).to_owned();
                }
            }
        }
    }
}

/// Samples of the same shapes together, the largest first.
pub(super) fn alike<'v>(samples: impl IntoIterator<Item = &'v Values>) -> Vec<Vec<&'v Values>> {
    let mut groups: BTreeMap<Vec<(&str, &[usize])>, Vec<&Values>> = BTreeMap::new();
    for sample in samples {
        let mut shapes: Vec<(&str, &[usize])> = sample.iter().map(|(name, v)| (name.as_str(), v.shape())).collect();
        shapes.sort_unstable();
        groups.entry(shapes).or_default().push(sample);
    }
    let mut groups: Vec<Vec<&Values>> = groups.into_values().collect();
    let size = |group: &Vec<&Values>| group.first().map_or(0, |s| s.values().map(|v| v.len()).sum::<usize>());
    groups.sort_by_key(|group| std::cmp::Reverse(size(group)));
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
    fn samples_are_cut_to_few_lengths_and_lose_no_token() {
        let axes = TokenAxes { mask: "mask".into(), axes: vec![("ids".into(), 1), ("mask".into(), 1)] };
        // Nine texts of up to 8 tokens, four of up to 16, which are too few, and nine of up to 32.
        let tokens = [vec![3, 8], vec![5; 7], vec![9, 16, 12, 10], vec![17, 30], vec![20; 7]].concat();
        let mut fit: Vec<Values> = tokens.iter().map(|&tokens| text(tokens)).collect();
        let mut held_out = [text(8), text(9), text(33), text(0)];
        axes.cut(&mut fit, &mut held_out);
        let long = |sample: &Values| sample["ids"].shape()[1];
        let lengths: Vec<usize> = fit.iter().map(long).collect();
        assert_eq!(lengths, [vec![8; 9], vec![32; 13]].concat());
        assert_eq!(held_out.iter().map(long).collect::<Vec<_>>(), [8, 32, 33, 8]);
        for (sample, tokens) in fit.iter().chain(&held_out).zip(tokens.iter().chain(&[8, 9, 33, 0])) {
            assert_eq!(sample["mask"].shape(), sample["ids"].shape());
            assert_eq!(sample["mask"].sum() as usize, *tokens);
        }
        let sizes: Vec<usize> = alike(fit.iter().chain(&held_out)).iter().map(|group| group.len()).collect();
        assert_eq!(sizes, [1, 14, 11]);
    }
}
