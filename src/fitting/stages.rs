//! A network in stages: cut where matrices are fitted, so that each stage runs on values that are kept from the one
//! before.
//!
//! A stage ends with what enters the next matrix that is fitted; the matrix itself is left out, and what it makes is
//! put in from outside. So a fit never builds a session of its own, and what stands before a matrix is never run twice.
//! Every session works on one image with one thread; images are worked on side by side, and so results do not depend on
//! the number of threads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::part::{Part, Values};
use super::targets::Site;
use crate::axes::Typing;
use crate::error::Result;
use crate::graph;
use crate::onnx::{DataType, Model};
use crate::runtime::Runtime;

/// One stage.
struct Stage {
    part: Option<Part>,
    /// Values that no later stage needs.
    done: Vec<String>,
}

/// A network that is run from fit to fit.
pub struct Stages {
    stages: Vec<Stage>,
    rests: Vec<(Vec<String>, Vec<String>)>,
}

impl Stages {
    /// Cuts a pinned model at `sites`, which stand in order; the last stage makes the values `end`. Values that are no
    /// floats, such as masks of booleans, are not kept: each stage makes those that it needs. The input `kept` is never
    /// dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) where a site depends on a later one.
    pub fn new(
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
        sites: &[Site],
        end: &[String],
        kept: Option<&str>,
    ) -> Result<Stages> {
        let links = typing.links();
        let inputs: HashSet<&str> = graph::data_inputs(typing.graph).into_iter().map(|v| v.name()).collect();
        let types = graph::element_types(typing.graph);
        let is_kept = |v: &str| types.get(v).is_none_or(|t| *t == DataType::Float);
        let mut made: HashMap<&str, usize> = HashMap::new();
        let mut plans: Vec<(Vec<usize>, Vec<&str>)> = Vec::new();
        for s in 0..=sites.len() {
            let targets: Vec<&str> = match sites.get(s) {
                Some(site) => site.skip.iter().chain([&site.input]).map(String::as_str).collect(),
                None => end.iter().map(String::as_str).collect(),
            };
            let put_in = |v: &str| sites[..s].iter().any(|site| site.output == v) || inputs.contains(v);
            let mut nodes = Vec::new();
            let is_there = |v: &str| (made.contains_key(v) && is_kept(v)) || put_in(v) || typing.is_constant(v);
            for v in links.upstream(targets.iter().copied()).along(|v| !is_there(v)) {
                let Some(k) = links.maker(v) else { bail!(Format, "nothing makes the value `{v}`") };
                if sites[s.min(sites.len())..].iter().any(|site| site.output == v) {
                    bail!(Unsupported, "the value `{v}` is needed before it can be fitted");
                }
                nodes.push(k);
            }
            nodes.sort_unstable();
            nodes.dedup();
            for &k in &nodes {
                for o in typing.graph.node[k].output.iter().filter(|o| !o.is_empty()) {
                    made.entry(o).or_insert(s);
                }
            }
            plans.push((nodes, targets));
        }
        // What a stage needs from before it.
        let needs: Vec<Vec<&str>> = plans
            .iter()
            .enumerate()
            .map(|(s, (nodes, _))| {
                let all = nodes.iter().flat_map(|&k| &typing.graph.node[k].input).map(String::as_str);
                let own: HashSet<&str> =
                    nodes.iter().flat_map(|&k| &typing.graph.node[k].output).map(String::as_str).collect();
                let mut list: Vec<&str> = all
                    .filter(|v| !v.is_empty() && !typing.is_constant(v) && !own.contains(v))
                    .filter(|v| made.get(v).is_none_or(|&at| at < s))
                    .collect();
                list.sort_unstable();
                list.dedup();
                list
            })
            .collect();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (s, list) in needs.iter().enumerate() {
            for v in list.iter().chain(&plans[s].1) {
                last.insert(v, s);
            }
        }
        let mut stages = Vec::new();
        for (s, (nodes, targets)) in plans.iter().enumerate() {
            let mut results: Vec<String> = nodes
                .iter()
                .flat_map(|&k| &typing.graph.node[k].output)
                .filter(|o| needs[s + 1..].iter().any(|n| n.contains(&o.as_str())) || targets.contains(&o.as_str()))
                .cloned()
                .collect();
            results.dedup();
            let feeds: Vec<String> = needs[s].iter().map(|v| v.to_string()).collect();
            let part = (!results.is_empty()).then(|| Part::cut(runtime, typing, model, feeds, results));
            let is_done = |(v, at): &(&&str, &usize)| **at + 1 == s && kept != Some(**v);
            let mut done: Vec<String> = last.iter().filter(is_done).map(|(v, _)| v.to_string()).collect();
            done.sort_unstable();
            stages.push(Stage { part, done });
        }
        let rests = (0..sites.len())
            .map(|s| {
                let mut feeds: Vec<String> = needs[s + 1..]
                    .iter()
                    .flatten()
                    .filter(|v| made.get(*v).is_none_or(|&at| at <= s))
                    .filter(|v| sites[s + 1..].iter().all(|site| site.output != **v))
                    .map(|v| v.to_string())
                    .collect();
                feeds.sort_unstable();
                feeds.dedup();
                (feeds, end.to_vec())
            })
            .collect();
        Ok(Stages { stages, rests })
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

    /// Everything behind site `s`, as one part that starts from the values that are kept there.
    pub fn rest(&self, runtime: &Arc<Runtime>, typing: &Typing, model: &Model, s: usize) -> Part {
        let (feeds, results) = self.rests[s].clone();
        Part::cut(runtime, typing, model, feeds, results)
    }
}
