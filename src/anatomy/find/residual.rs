//! The residual stream: where layers begin and end in it.

use std::collections::HashSet;

use super::super::structure::{Attention, FeedForward};
use super::finder::BlockFinder;
use crate::onnx::proto::NodeProto;

/// True for the operators of ONNX Runtime that add to the residual stream and normalise the sum.
pub(super) fn is_skip_norm(node: &NodeProto) -> bool {
    matches!(node.op_type(), "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization")
}

impl<'m> BlockFinder<'_, 'm> {
    /// Gives every attention the FFN that follows it, and finds where layers begin and end in the residual stream.
    pub fn assign(&self, attentions: &mut [Attention], ffns: &[FeedForward]) {
        let sums: Vec<_> = ffns.iter().map(|f| self.residual_add(f.down)).collect();
        for a in attentions.iter_mut() {
            let (skip, sum) = self.residual_add(a.projection);
            a.residual_in = skip.as_deref().map(|skip| self.unscaled(skip).to_string());
            a.residual_out = sum.clone();
            a.sum = skip.zip(sum);
            a.residual_adds.extend(a.sum.clone());
        }
        let ends: HashSet<String> = attentions
            .iter()
            .filter_map(|a| a.residual_out.clone())
            .chain(sums.iter().filter_map(|s| s.1.clone()))
            .collect();
        let onto: Vec<Option<&str>> = sums.iter().map(|s| self.sum_behind(s.0.as_deref()?, &ends)).collect();
        let order: Vec<usize> = attentions.iter().map(|a| a.projection).collect();
        let mut taken = HashSet::new();
        let mut first = 0;
        while first < attentions.len() {
            // Attentions that branch from the same value stand side by side, and so do their FFNs.
            let mut last = first;
            while last + 1 < attentions.len()
                && attentions[first].residual_in.is_some()
                && attentions[last + 1].residual_in == attentions[first].residual_in
            {
                last += 1;
            }
            let from = first.checked_sub(1).map(|p| order[p]).unwrap_or(0);
            let until = order.get(last + 1).copied().unwrap_or(usize::MAX);
            for a in &mut attentions[first..=last] {
                let made = |f: &FeedForward| self.meet(&a.embedding, &self.weight[&f.down].made);
                // Both branches in one sum.
                let shared = (0..ffns.len()).find(|i| {
                    !taken.contains(i)
                        && a.residual_in.is_some()
                        && sums[*i] == (a.residual_in.clone(), a.residual_out.clone())
                });
                // Where branches of a model stand between each other, the FFN that adds to what the attention made.
                let joined = (0..ffns.len()).find(|i| {
                    !taken.contains(i)
                        && a.residual_out.is_some()
                        && onto[*i] == a.residual_out.as_deref()
                        && made(&ffns[*i])
                });
                let behind = (0..ffns.len()).find(|i| {
                    !taken.contains(i) && order[last] < ffns[*i].down && ffns[*i].down < until && made(&ffns[*i])
                });
                // Parallel blocks: the FFN branches from the same value as the attention, and may stand before it or
                // share its projection.
                let beside = || {
                    (0..ffns.len()).find(|i| {
                        !taken.contains(i)
                            && from < ffns[*i].down
                            && ffns[*i].down <= order[last]
                            && a.residual_in.is_some()
                            && sums[*i].0 == a.residual_in
                    })
                };
                let Some(i) = shared.or(joined).or(behind).or_else(beside) else { continue };
                taken.insert(i);
                let own = sums[i].0.clone().zip(sums[i].1.clone()).filter(|s| !a.residual_adds.contains(s));
                a.ffns = vec![FeedForward { sum: own.clone(), ..ffns[i].clone() }];
                a.residual_adds.extend(own);
                let position = |v: &Option<String>| v.as_deref().and_then(|v| self.links.maker(v));
                if position(&sums[i].1) > position(&a.residual_out) {
                    a.residual_out = sums[i].1.clone();
                }
            }
            first = last + 1;
        }
    }

    /// The one of some sums that a value is, or is a form of, behind a norm say: no weight is summed over on the way.
    fn sum_behind<'v>(&self, value: &str, sums: &'v HashSet<String>) -> Option<&'v str> {
        let start = match self.links.maker(value) {
            Some(k) => self.links.outputs(k).find(|o| *o == value)?,
            None => return None,
        };
        let is_form =
            |x: &str| !self.typing.is_constant(x) && self.links.maker(x).is_some_and(|k| !self.weight.contains_key(&k));
        let values = self.links.upstream([start]).along(|x| sums.contains(x) || is_form(x)).until(|x| sums.contains(x));
        let mut found = values.filter_map(|x| sums.get(x)).map(String::as_str);
        found.next().filter(|_| found.next().is_none())
    }

    /// True where a node is made from a value.
    pub fn is_made_from(&self, k: usize, value: &str) -> bool {
        // What stands before that value in the graph is not made from it.
        let first = self.links.maker(value).unwrap_or(0);
        let later = |x: &str| x == value || self.links.maker(x).is_some_and(|m| m >= first);
        let mut values = self.links.upstream(self.links.inputs(k)).along(later);
        values.any(|x| x == value || self.normalised_sum(x) == Some(value))
    }

    /// The sum of which a skip norm makes `value`, its fourth output.
    fn normalised_sum(&self, value: &str) -> Option<&'m str> {
        let node = self.links.maker(value).map(|m| self.node(m)).filter(|node| is_skip_norm(node))?;
        node.output.get(3).map(String::as_str)
    }

    /// The skip value and the sum of the first Add that joins what node `k` makes with something that `k` was made
    /// from.
    pub fn residual_add(&self, k: usize) -> (Option<String>, Option<String>) {
        let Some((skip, c)) = self.residual_join(k) else { return (None, None) };
        (Some(skip.to_string()), self.sum_of(c).map(str::to_string))
    }

    /// What a residual sum makes: the fourth output of a skip norm, whose first is already normalised.
    pub fn sum_of(&self, join: usize) -> Option<&'m str> {
        let node = self.node(join);
        let sum = if is_skip_norm(node) { node.output.get(3) } else { node.output.first() };
        sum.filter(|o| !o.is_empty()).map(String::as_str)
    }

    /// The skip value and the node of the sum, as [`BlockFinder::residual_add`] finds them.
    pub fn residual_join(&self, k: usize) -> Option<(&'m str, usize)> {
        let is_before = |x: &str| {
            // In half precision a skip may pass a Cast of its own.
            let cast =
                |node: &'m NodeProto| node.input.first().filter(|_| node.op_type() == "Cast").map(String::as_str);
            self.links.follow_back(self.unscaled(x), cast).any(|x| self.is_made_from(k, x))
        };
        let mut made: HashSet<&str> = self.links.outputs(k).collect();
        for c in self.links.downstream(self.links.outputs(k)) {
            let node = self.node(c);
            if matches!(node.op_type(), "Add" | "Sum") || is_skip_norm(node) {
                let skip = node
                    .input
                    .iter()
                    .find(|x| !made.contains(x.as_str()) && !self.typing.is_constant(x) && is_before(x));
                if let Some(skip) = skip {
                    return Some((skip.as_str(), c));
                }
            }
            made.extend(self.links.outputs(c));
        }
        None
    }

    /// What a skip is a multiple of: it may be weighed for the sum alone (LASR). A multiple that others take, too, is
    /// the stream itself.
    pub fn unscaled<'v>(&self, value: &'v str) -> &'v str
    where
        'm: 'v,
    {
        let weighed = |node: &'m NodeProto| {
            let mut computed = node.input.iter().filter(|x| !self.typing.is_constant(x));
            let alone = node.output.first().is_some_and(|o| self.links.users(o).len() == 1);
            let value = computed.next().filter(|_| node.op_type() == "Mul" && alone && computed.next().is_none());
            value.map(String::as_str)
        };
        self.links.follow_back(value, weighed).last().unwrap_or(value)
    }

    /// A layer has more than one query, and its queries and keys come from the same stream: going back from both, the
    /// first sums of the residual stream that are met have one in common, or the keys come from the sum that the
    /// attention adds to (a global query that all layers of a stage share).
    pub fn is_layer(&self, a: &Attention, sums: &HashSet<&str>) -> bool {
        if self.size(&a.queries) < 2 {
            return false;
        }
        let operands = a.softmax.first().map(|&k| self.score_operands(k)).unwrap_or_default();
        let [queries, keys] = operands[..] else { return true };
        let [(stream_q, varies_q), (stream_k, varies_k)] = [self.sources(queries, sums), self.sources(keys, sums)];
        varies_q
            && varies_k
            && (stream_q.intersection(&stream_k).next().is_some()
                || a.residual_in.as_deref().is_some_and(|e| stream_k.contains(e))
                || (stream_q.is_empty() && stream_k.is_empty()))
    }

    /// The sums that a value is made from most directly, and whether it depends on the model's input at all.
    fn sources<'s>(&self, value: &'m str, sums: &HashSet<&'s str>) -> (HashSet<&'s str>, bool) {
        let (mut found, mut varies) = (HashSet::new(), false);
        let values = self.links.upstream([value]).along(|x| !self.typing.is_constant(x));
        for x in values.until(|x| sums.contains(x)) {
            found.extend(sums.get(x).copied());
            varies |= sums.contains(x) || self.links.maker(x).is_none();
        }
        (found, varies)
    }
}
