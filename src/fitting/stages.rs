//! A network in stages: cut where matrices are fitted, so that each stage runs on values that are kept from the one
//! before.
//!
//! A stage ends with what enters the next matrix that is fitted; the matrix itself is left out, and what it makes is
//! put in from outside. So a fit never builds a session of its own, and what stands before a matrix is never run twice.
//! Every session works on one image with one thread; images are worked on side by side, and so results do not depend on
//! the number of threads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::subgraph::{Subgraph, Values};
use super::targets::TargetLinear;
use crate::axes::Typing;
use crate::error::Result;
use crate::graph;
use crate::onnx::{DataType, Model};
use crate::runtime::Runtime;

/// One stage.
struct Stage {
    part: Option<Subgraph>,
    /// Values that no later stage needs.
    done: Vec<String>,
}

/// A network that is run from fit to fit.
pub struct Stages {
    stages: Vec<Stage>,
    rests: Vec<(Vec<String>, Vec<String>)>,
}

impl Stages {
    /// Cuts a pinned model at `linear layers`, which stand in order; the last stage makes the values `end`. Values that
    /// are no floats, such as masks of booleans, are not kept: each stage makes those that it needs. The input `kept`
    /// is never dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) where a linear layer depends on a later one.
    pub fn new(
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
        linears: &[TargetLinear],
        end: &[String],
        kept: Option<&str>,
    ) -> Result<Stages> {
        let cuts = Cuts::new(typing, linears, end)?;
        let last = cuts.last_uses();
        let stage = |s: usize| {
            let results = cuts.results(s);
            let feeds: Vec<String> = cuts.needs[s].iter().map(|v| v.to_string()).collect();
            let part = (!results.is_empty()).then(|| Subgraph::cut(runtime, typing, model, feeds, results));
            let is_done = |(v, at): &(&&str, &usize)| **at + 1 == s && kept != Some(**v);
            let mut done: Vec<String> = last.iter().filter(is_done).map(|(v, _)| v.to_string()).collect();
            done.sort_unstable();
            Stage { part, done }
        };
        let rests = (0..linears.len()).map(|s| (cuts.feeds_behind(s, linears), end.to_vec())).collect();
        Ok(Stages { stages: (0..=linears.len()).map(stage).collect(), rests })
    }

    /// Runs stage `s`; what no later stage needs is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`](crate::error::ErrorKind::Runtime).
    pub fn advance(&self, s: usize, values: &mut Values) -> Result<()> {
        let stage = &self.stages[s];
        for v in &stage.done {
            values.remove(v);
        }
        if let Some(part) = &stage.part {
            let results = part.run(values)?;
            values.extend(part.results.iter().cloned().zip(results));
        }
        Ok(())
    }

    /// What stage `s` starts from.
    pub fn feeds(&self, s: usize) -> &[String] {
        self.stages.get(s).and_then(|s| s.part.as_ref()).map_or(&[], |p| &p.feeds)
    }

    /// Everything behind linear layer `s`, as one part that starts from the values that are kept there.
    pub fn rest(&self, runtime: &Arc<Runtime>, typing: &Typing, model: &Model, s: usize) -> Subgraph {
        let (feeds, results) = self.rests[s].clone();
        Subgraph::cut(runtime, typing, model, feeds, results)
    }
}

/// Where a network is cut into stages.
struct Cuts<'g, 'm> {
    typing: &'g Typing<'m>,
    /// The stage that makes each value.
    made: HashMap<&'g str, usize>,
    /// For each stage its nodes, and what it is run for.
    plans: Vec<(Vec<usize>, Vec<&'g str>)>,
    /// For each stage what it needs from before it.
    needs: Vec<Vec<&'g str>>,
}

impl<'g, 'm> Cuts<'g, 'm> {
    fn new(typing: &'g Typing<'m>, linears: &'g [TargetLinear], end: &'g [String]) -> Result<Cuts<'g, 'm>> {
        let links = typing.links();
        let inputs: HashSet<&str> = graph::data_inputs(typing.graph).into_iter().map(|v| v.name()).collect();
        let types = graph::element_types(typing.graph);
        let is_kept = |v: &str| types.get(v).is_none_or(|t| *t == DataType::Float);
        let mut cuts = Cuts { typing, made: HashMap::new(), plans: Vec::new(), needs: Vec::new() };
        for s in 0..=linears.len() {
            let targets: Vec<&str> = match linears.get(s) {
                Some(linear) => linear.skip.iter().chain([&linear.input]).map(String::as_str).collect(),
                None => end.iter().map(String::as_str).collect(),
            };
            let put_in = |v: &str| linears[..s].iter().any(|linear| linear.output == v) || inputs.contains(v);
            let mut nodes = Vec::new();
            let made = &cuts.made;
            let is_there = |v: &str| (made.contains_key(v) && is_kept(v)) || put_in(v) || typing.is_constant(v);
            for v in links.upstream(targets.iter().copied()).along(|v| !is_there(v)) {
                let Some(k) = links.maker(v) else { bail!(Format, "nothing makes the value `{v}`") };
                if linears[s.min(linears.len())..].iter().any(|linear| linear.output == v) {
                    bail!(Unsupported, "the value `{v}` is needed before it can be fitted");
                }
                nodes.push(k);
            }
            nodes.sort_unstable();
            nodes.dedup();
            for &k in &nodes {
                for o in typing.graph.node[k].output.iter().filter(|o| !o.is_empty()) {
                    cuts.made.entry(o).or_insert(s);
                }
            }
            cuts.plans.push((nodes, targets));
        }
        cuts.needs = (0..cuts.plans.len()).map(|s| cuts.needs(s)).collect();
        Ok(cuts)
    }

    /// What a stage needs from before it.
    fn needs(&self, s: usize) -> Vec<&'g str> {
        let nodes = || self.plans[s].0.iter().map(|&k| &self.typing.graph.node[k]);
        let own: HashSet<&str> = nodes().flat_map(|n| &n.output).map(String::as_str).collect();
        let mut list: Vec<&str> = nodes()
            .flat_map(|n| &n.input)
            .map(String::as_str)
            .filter(|v| !v.is_empty() && !self.typing.is_constant(v) && !own.contains(v))
            .filter(|v| self.made.get(v).is_none_or(|&at| at < s))
            .collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// The last stage that uses each value.
    fn last_uses(&self) -> HashMap<&'g str, usize> {
        let uses = self.needs.iter().zip(&self.plans).enumerate();
        uses.flat_map(|(s, (needs, plan))| needs.iter().chain(&plan.1).map(move |v| (*v, s))).collect()
    }

    /// What a stage makes that later ones or a fit need.
    fn results(&self, s: usize) -> Vec<String> {
        let (nodes, targets) = &self.plans[s];
        let is_needed = |o: &str| self.needs[s + 1..].iter().any(|n| n.contains(&o)) || targets.contains(&o);
        let made = nodes.iter().flat_map(|&k| &self.typing.graph.node[k].output);
        let mut results: Vec<String> = made.filter(|o| is_needed(o)).cloned().collect();
        results.dedup();
        results
    }

    /// What all that is behind a linear layer starts from.
    fn feeds_behind(&self, s: usize, linears: &[TargetLinear]) -> Vec<String> {
        let mut feeds: Vec<String> = self.needs[s + 1..]
            .iter()
            .flatten()
            .filter(|v| self.made.get(*v).is_none_or(|&at| at <= s))
            .filter(|v| linears[s + 1..].iter().all(|linear| linear.output != **v))
            .map(|v| v.to_string())
            .collect();
        feeds.sort_unstable();
        feeds.dedup();
        feeds
    }
}
