//! How a graph is walked. No other file does it by hand: a caller says where a walk begins and which way it may take.
//!
//! - [`Links::upstream`] goes back from values to everything that they are made from, and yields *values*, inputs and
//!   initializers among them; [`Upstream::nodes`] yields the nodes that make them.
//! - [`Links::downstream`] goes on from values to everything that is made from them, and yields *nodes* in their order.
//! - [`Links::follow_back`] and [`Links::follow`] go along a single line of nodes, where only one way is of interest.
//! - [`search`] visits states of any kind, where a place in the graph is not all that matters.
//!
//! All are iterators that do no more work than is asked for: `find` and `any` end a walk. They visit nothing twice, and
//! so take time that is linear in what they pass, and end in a graph with a cycle. Where a walk may go is said by
//! predicates: `along` keeps it off values and `through` off nodes, as if the graph did not have them; what `until`
//! holds for is visited, and not gone past.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::Hash;

use super::links::Links;
use super::subgraphs::needed;
use crate::onnx::proto::NodeProto;

impl<'g> Links<'g> {
    /// Some values and everything that they are made from. Each comes before what it is made from; of what a node
    /// takes, the last input comes first, with all that is behind it.
    pub fn upstream<'l>(
        &'l self,
        from: impl IntoIterator<Item = &'g str>,
    ) -> Upstream<'l, 'g, impl Fn(&'g str) -> bool, impl Fn(&'g str) -> bool> {
        let open = from.into_iter().collect();
        let (along, until) = (|_: &'g str| true, |_: &'g str| false);
        let (seen, passed) = (HashSet::new(), HashSet::new());
        Upstream { links: self, along, until, nearest: false, open, seen, passed, last: None }
    }

    /// The nodes that use some values, and those that use what they make, in the order of the graph.
    pub fn downstream<'l>(
        &'l self,
        from: impl IntoIterator<Item = &'g str>,
    ) -> Downstream<'l, 'g, impl Fn(&'g str) -> bool, impl Fn(usize) -> bool, impl Fn(usize) -> bool> {
        let from = from.into_iter().collect();
        let (along, through, until) = (|_: &'g str| true, |_| true, |_| false);
        let (open, seen) = (BTreeSet::new(), HashSet::new());
        Downstream { links: self, along, through, until, from, open, seen, last: None }
    }

    /// A value, and the values that it leads back to one by one: `step` names the input of a node that its output is a
    /// form of, and `None` ends the line.
    pub fn follow_back<'v>(
        &self,
        value: &'v str,
        mut step: impl FnMut(&'g NodeProto) -> Option<&'g str>,
    ) -> impl Iterator<Item = &'v str>
    where
        'g: 'v,
    {
        let line = std::iter::successors(Some(value), move |x| step(&self.nodes[self.maker(x)?]));
        line.take(self.nodes.len() + 1)
    }

    /// The nodes that a value passes one by one, by their first outputs, as long as each value has one user. Nodes that
    /// do not `count` are no users.
    pub fn follow(&self, value: &str, counts: impl Fn(&NodeProto) -> bool) -> impl Iterator<Item = usize> {
        let user = move |value: &str| {
            let mut users = self.users(value).iter().copied().filter(|&k| counts(&self.nodes[k]));
            users.next().filter(|_| users.next().is_none())
        };
        let line = std::iter::successors(user(value), move |&k| user(self.nodes[k].output.first()?));
        line.take(self.nodes.len())
    }
}

/// A walk back through a graph: see [`Links::upstream`].
pub struct Upstream<'l, 'g, A, U> {
    links: &'l Links<'g>,
    along: A,
    until: U,
    nearest: bool,
    open: VecDeque<&'g str>,
    seen: HashSet<&'g str>,
    /// Nodes whose inputs were taken already.
    passed: HashSet<usize>,
    /// What made the value that came last, until the walk goes past it.
    last: Option<usize>,
}

impl<'l, 'g, A: FnMut(&'g str) -> bool, U: FnMut(&'g str) -> bool> Upstream<'l, 'g, A, U> {
    /// Visits no other values than these.
    pub fn along<B: FnMut(&'g str) -> bool>(self, along: B) -> Upstream<'l, 'g, B, U> {
        let Upstream { links, until, nearest, open, seen, passed, last, .. } = self;
        Upstream { links, along, until, nearest, open, seen, passed, last }
    }

    /// Does not go past these values.
    pub fn until<B: FnMut(&'g str) -> bool>(self, until: B) -> Upstream<'l, 'g, A, B> {
        let Upstream { links, along, nearest, open, seen, passed, last, .. } = self;
        Upstream { links, along, until, nearest, open, seen, passed, last }
    }

    /// Visits values in the order of their distance, and those of one node in the order of its inputs.
    pub fn nearest_first(self) -> Self {
        Upstream { nearest: true, ..self }
    }

    /// Does not go past the value that came last.
    pub fn stop(&mut self) {
        self.last = None;
    }

    /// The nodes that make the values, each once.
    pub fn nodes(self) -> impl Iterator<Item = usize> {
        let links = self.links;
        let mut seen = HashSet::new();
        self.filter_map(|x| links.maker(x)).filter(move |&k| seen.insert(k))
    }
}

impl<'g, A: FnMut(&'g str) -> bool, U: FnMut(&'g str) -> bool> Iterator for Upstream<'_, 'g, A, U> {
    type Item = &'g str;

    fn next(&mut self) -> Option<&'g str> {
        if let Some(k) = self.last.take()
            && self.passed.insert(k)
        {
            self.open.extend(needed(&self.links.nodes[k]));
        }
        while let Some(x) = if self.nearest { self.open.pop_front() } else { self.open.pop_back() } {
            if !x.is_empty() && self.seen.insert(x) && (self.along)(x) {
                self.last = self.links.maker(x).filter(|_| !(self.until)(x));
                return Some(x);
            }
        }
        None
    }
}

/// A walk forward through a graph: see [`Links::downstream`].
pub struct Downstream<'l, 'g, A, T, U> {
    links: &'l Links<'g>,
    along: A,
    through: T,
    until: U,
    /// Values whose users are to be visited.
    from: Vec<&'g str>,
    open: BTreeSet<usize>,
    seen: HashSet<usize>,
    /// The node that came last, until the walk goes past it.
    last: Option<usize>,
}

impl<'l, 'g, A, T, U> Downstream<'l, 'g, A, T, U>
where
    A: FnMut(&'g str) -> bool,
    T: FnMut(usize) -> bool,
    U: FnMut(usize) -> bool,
{
    /// Goes on from no other values than these.
    pub fn along<B: FnMut(&'g str) -> bool>(self, along: B) -> Downstream<'l, 'g, B, T, U> {
        let Downstream { links, through, until, from, open, seen, last, .. } = self;
        Downstream { links, along, through, until, from, open, seen, last }
    }

    /// Visits no other nodes than these.
    pub fn through<B: FnMut(usize) -> bool>(self, through: B) -> Downstream<'l, 'g, A, B, U> {
        let Downstream { links, along, until, from, open, seen, last, .. } = self;
        Downstream { links, along, through, until, from, open, seen, last }
    }

    /// Does not go past these nodes.
    pub fn until<B: FnMut(usize) -> bool>(self, until: B) -> Downstream<'l, 'g, A, T, B> {
        let Downstream { links, along, through, from, open, seen, last, .. } = self;
        Downstream { links, along, through, until, from, open, seen, last }
    }

    /// Does not go past the node that came last.
    pub fn stop(&mut self) {
        self.last = None;
    }

    /// True where every way that the walk has taken leads into the node that came last.
    pub fn is_bottleneck(&self) -> bool {
        self.open.is_empty()
    }
}

impl<'g, A, T, U> Iterator for Downstream<'_, 'g, A, T, U>
where
    A: FnMut(&'g str) -> bool,
    T: FnMut(usize) -> bool,
    U: FnMut(usize) -> bool,
{
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.from.extend(self.last.take().into_iter().flat_map(|k| self.links.outputs(k)));
        for value in self.from.drain(..).filter(|value| (self.along)(value)) {
            for &k in self.links.users(value) {
                if !self.seen.contains(&k) && (self.through)(k) {
                    self.seen.insert(k);
                    self.open.insert(k);
                }
            }
        }
        let k = self.open.pop_first()?;
        self.last = (!(self.until)(k)).then_some(k);
        Some(k)
    }
}

/// Every state that follows from some, each once; of what follows from one state, the last comes first. `next` is asked
/// once for each.
pub fn search<S: Copy + Eq + Hash, N: IntoIterator<Item = S>>(
    start: impl IntoIterator<Item = S>,
    mut next: impl FnMut(S) -> N,
) -> impl Iterator<Item = S> {
    let mut open: Vec<S> = start.into_iter().collect();
    let mut seen = HashSet::new();
    std::iter::from_fn(move || {
        while let Some(state) = open.pop() {
            if seen.insert(state) {
                open.extend(next(state));
                return Some(state);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::super::nodes::node;
    use super::*;
    use crate::onnx::proto::GraphProto;

    /// ```text
    /// x ─ Relu ─ a ─┬─ Exp ── b ─┬─ Add ── d ─ Split ─┬─ e
    ///               └─ Mul ── c ─┘                    └─ f ─ Clip (no lower border) ─ g
    ///            w ──┘                             most ──────┘
    /// ```
    fn graph() -> GraphProto {
        GraphProto {
            node: vec![
                node("Relu", &["x"], &["a"], vec![]),
                node("Exp", &["a"], &["b"], vec![]),
                node("Mul", &["a", "w"], &["c"], vec![]),
                node("Add", &["b", "c"], &["d"], vec![]),
                node("Split", &["d"], &["e", "f"], vec![]),
                node("Clip", &["f", "", "most"], &["g"], vec![]),
            ],
            ..Default::default()
        }
    }

    fn cycle() -> GraphProto {
        let node = |x: &str, y: &str| node("Relu", &[x], &[y], vec![]);
        GraphProto { node: vec![node("c", "a"), node("a", "b"), node("b", "c")], ..Default::default() }
    }

    #[test]
    fn upstream_meets_each_value_once_with_inputs_and_weights() {
        let graph = graph();
        let links = Links::new(&graph);
        let values: Vec<&str> = links.upstream(["g"]).collect();
        // The last input first, and `a`, which two ways lead to, once; the input that Clip leaves out is none.
        assert_eq!(values, ["g", "most", "f", "d", "c", "w", "a", "x", "b"]);
        let near: Vec<&str> = links.upstream(["g"]).nearest_first().collect();
        assert_eq!(near, ["g", "f", "most", "d", "b", "c", "a", "w", "x"]);
        assert_eq!(links.upstream(["d", "b"]).nodes().collect::<Vec<_>>(), [1, 0, 3, 2]);
        // A node that is reached by two of its outputs is one node.
        assert_eq!(links.upstream(["e", "f"]).nodes().collect::<Vec<_>>(), [4, 3, 2, 0, 1]);
    }

    #[test]
    fn predicates_say_where_a_walk_upstream_ends() {
        let graph = graph();
        let links = Links::new(&graph);
        assert_eq!(links.upstream(["d"]).along(|v| v != "a").collect::<Vec<_>>(), ["d", "c", "w", "b"]);
        assert_eq!(links.upstream(["d"]).until(|v| v == "a").collect::<Vec<_>>(), ["d", "c", "w", "a", "b"]);
        assert_eq!(links.upstream(["d"]).along(|v| v != "d").count(), 0, "the start is held to it, too");
        let mut walk = links.upstream(["d"]);
        let mut met = Vec::new();
        while let Some(value) = walk.next() {
            met.push(value);
            if value == "c" {
                walk.stop();
            }
        }
        assert_eq!(met, ["d", "c", "b", "a", "x"]);
    }

    #[test]
    fn downstream_meets_each_node_once_in_order() {
        let graph = graph();
        let links = Links::new(&graph);
        assert_eq!(links.downstream(["a"]).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(links.downstream(["w", "b"]).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(links.downstream(["a"]).along(|v| v != "f").collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(links.downstream(["a"]).through(|k| k != 3).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(links.downstream(["a"]).until(|k| k == 3).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(links.downstream(["e", "most"]).collect::<Vec<_>>(), [5]);
        assert_eq!(links.downstream([""]).count(), 0, "an input that is left out leads nowhere");
    }

    #[test]
    fn a_bottleneck_has_no_way_around_it() {
        let graph = graph();
        let links = Links::new(&graph);
        let mut walk = links.downstream(["a"]);
        let mut narrow = Vec::new();
        while let Some(k) = walk.next() {
            narrow.push((k, walk.is_bottleneck()));
        }
        assert_eq!(narrow, [(1, false), (2, false), (3, true), (4, true), (5, true)]);
    }

    #[test]
    fn lines_are_followed_while_there_is_one_way() {
        let graph = graph();
        let links = Links::new(&graph);
        let back = links.follow_back("g", |n| n.input.first().filter(|_| n.op_type() != "Add").map(String::as_str));
        assert_eq!(back.collect::<Vec<_>>(), ["g", "f", "d"]);
        assert_eq!(links.follow("x", |_| true).collect::<Vec<_>>(), [0], "two nodes use what Relu makes");
        assert_eq!(links.follow("x", |n| n.op_type() != "Exp").collect::<Vec<_>>(), [0, 2, 3, 4]);
        assert_eq!(links.follow("f", |_| true).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn unknown_names_lead_nowhere() {
        let graph = graph();
        let links = Links::new(&graph);
        assert_eq!(links.upstream(["nowhere", ""]).collect::<Vec<_>>(), ["nowhere"]);
        assert_eq!(links.upstream(["nowhere"]).nodes().count(), 0);
        assert_eq!(links.downstream(["nowhere"]).count(), 0);
        assert_eq!(links.follow_back("nowhere", |_| Some("x")).collect::<Vec<_>>(), ["nowhere"]);
        assert_eq!(links.follow("nowhere", |_| true).count(), 0);
        let empty = GraphProto::default();
        assert_eq!(Links::new(&empty).upstream(["x"]).count(), 1);
    }

    #[test]
    fn a_cycle_ends() {
        let graph = cycle();
        let links = Links::new(&graph);
        assert_eq!(links.upstream(["a"]).collect::<Vec<_>>(), ["a", "c", "b"]);
        assert_eq!(links.downstream(["a"]).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(links.follow_back("a", |n| n.input.first().map(String::as_str)).count(), 4);
        assert_eq!(links.follow("a", |_| true).count(), 3);
        assert_eq!(search([0], |k| [(k + 1) % 5]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_ladder_of_diamonds_takes_linear_time() {
        // 2^200 ways lead through it.
        let (mut nodes, mut value) = (Vec::new(), "v0".to_string());
        for i in 1..=200 {
            let next = format!("v{i}");
            let sides = [format!("l{i}"), format!("r{i}")];
            sides.iter().for_each(|side| nodes.push(node("Relu", &[&value], &[side], vec![])));
            nodes.push(node("Add", &[&sides[0], &sides[1]], &[&next], vec![]));
            value = next;
        }
        let links = Links::of(&nodes);
        assert_eq!(links.upstream([value.as_str()]).count(), 601);
        assert_eq!(links.downstream(["v0"]).count(), 600);
        let next = |x| links.maker(x).into_iter().flat_map(|k| links.inputs(k)).collect::<Vec<_>>();
        assert_eq!(search([value.as_str()], next).count(), 601);
    }
}
