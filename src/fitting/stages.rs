//! A network in stages: cut where matrices are fitted, so that each stage runs on values that are kept from the one before.
//!
//! A stage ends with what enters the next matrix that is fitted; the matrix itself is left out, and what it makes is put in from
//! outside. So a fit never builds a session of its own, and what stands before a matrix is never run twice. Every session works on one
//! image with one thread; images are worked on side by side, and so results do not depend on the number of threads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayD;

use super::sites::Site;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Links};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Model, tensor_from_i64, tensor_info};
use crate::runtime::{Ports, Program, Runtime, State as Empty, fix_input, separate_skip_norms};

/// Values of one image, by name.
pub type Values = HashMap<String, ArrayD<f32>>;

/// The model for a batch of one image of fixed size, in float32, with shapes as constants and no norms fused with the sums before them.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a model of a fixed batch of several images, and those of typing.
pub fn pin(model: &Model) -> Result<Model> {
    let image = Typing::new(model)?.image_size();
    let mut out = model.clone();
    graph::prune(out.graph_mut());
    let (_, shape, _) = fix_input(out.graph_mut(), 1, image)?;
    if shape[0] != 1 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model takes batches of {} images only, and fits work image by image", shape[0]),
        )
        .at(&model.path)
        .hint("export it with an open batch size, or with a batch of one"));
    }
    graph::widen(out.graph_mut(), &[DataType::Float16, DataType::Bfloat16])?;
    // What a matrix makes and what the stream is have names of their own only where sums and norms are two nodes.
    let apart = separate_skip_norms(&Typing::new(&out)?)?;
    if let Some(graph) = apart {
        *out.graph_mut() = graph;
    }
    let typing = Typing::new(&out)?;
    let shapes: Vec<(usize, TensorProto)> = (typing.graph.node.iter().enumerate())
        .filter(|(_, n)| matches!(n.op_type(), "Shape" | "Size"))
        .filter_map(|(k, n)| {
            let output = n.output.first()?;
            let known = typing.known.get(output.as_str())?;
            Some((k, tensor_from_i64(output.clone(), known.data.shape(), &known.ints())))
        })
        .collect();
    drop(typing);
    let graph = out.graph_mut();
    let gone: HashSet<usize> = shapes.iter().map(|s| s.0).collect();
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        !gone.contains(&(k - 1))
    });
    graph.initializer.extend(shapes.into_iter().map(|s| s.1));
    graph.value_info.clear();
    Ok(out)
}

/// A part of a network as a program of its own, with as many sessions as there are threads that want one.
pub struct Part {
    runtime: Arc<Runtime>,
    model: Model,
    /// Values that it needs.
    pub feeds: Vec<String>,
    /// Values that it makes.
    pub results: Vec<String>,
    idle: Mutex<Vec<Program>>,
}

impl Part {
    /// The part of a pinned model between `feeds` and `results`.
    pub fn cut(
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
        feeds: Vec<String>,
        results: Vec<String>,
    ) -> Part {
        let mut model = model.clone();
        let declare = |name: &String| {
            let shape = typing.shape(name).unwrap_or_default();
            tensor_info(name.clone(), DataType::Float, &shape.into_iter().map(Some).collect::<Vec<_>>())
        };
        let graph = model.graph_mut();
        graph.input = feeds.iter().map(declare).collect();
        graph.output = results.iter().map(declare).collect();
        let fed: HashSet<&str> = feeds.iter().map(String::as_str).collect();
        graph.node.retain(|n| !n.output.iter().any(|o| fed.contains(o.as_str())));
        graph::prune(graph);
        // What no result needs is not fed.
        let feeds = graph.input.iter().map(|v| v.name().to_string()).collect();
        Part { runtime: runtime.clone(), model, feeds, results, idle: Mutex::default() }
    }

    /// Runs it on the values of one image.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn run(&self, values: &Values) -> Result<Vec<ArrayD<f32>>> {
        let feeds = self
            .feeds
            .iter()
            .map(|f| match values.get(f) {
                Some(v) => Ok((f.as_str(), v.view())),
                None => bail!(Internal, "the value `{f}` was not kept"),
            })
            .collect::<Result<Vec<_>>>()?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = idle().pop();
        let mut program = match ready {
            Some(program) => program,
            None => self.runtime.load_program(&self.model, Ports::default())?,
        };
        let results = program.run(&mut Empty::default(), &feeds)?;
        idle().push(program);
        Ok(results)
    }
}

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
    input: String,
}

impl Stages {
    /// Cuts a pinned model at `sites`, which stand in order; the last stage makes the values `end`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a site depends on a later one.
    pub fn new(
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
        sites: &[Site],
        end: &[String],
    ) -> Result<Stages> {
        let links = Links::new(typing.graph);
        let fixed = fixed(typing);
        let input = graph::data_inputs(typing.graph).first().map(|v| v.name().to_string()).unwrap_or_default();
        let mut made: HashMap<&str, usize> = HashMap::new();
        let mut plans: Vec<(Vec<usize>, Vec<&str>)> = Vec::new();
        for s in 0..=sites.len() {
            let targets: Vec<&str> = match sites.get(s) {
                Some(site) => site.skip.iter().chain([&site.input]).map(String::as_str).collect(),
                None => end.iter().map(String::as_str).collect(),
            };
            let put_in = |v: &str| sites[..s].iter().any(|site| site.output == v) || v == input;
            let mut nodes = Vec::new();
            let mut seen = HashSet::new();
            let mut todo = targets.clone();
            while let Some(v) = todo.pop() {
                if v.is_empty() || made.contains_key(v) || put_in(v) || fixed.contains(v) || !seen.insert(v) {
                    continue;
                }
                let Some(&k) = links.maker.get(v) else { bail!(Format, "nothing makes the value `{v}`") };
                if sites[s.min(sites.len())..].iter().any(|site| site.output == v) {
                    bail!(Unsupported, "the value `{v}` is needed before it can be fitted");
                }
                nodes.push(k);
                todo.extend(typing.graph.node[k].input.iter().map(String::as_str));
            }
            nodes.sort_unstable();
            nodes.dedup();
            for &k in &nodes {
                for o in typing.graph.node[k].output.iter().filter(|o| !o.is_empty()) {
                    made.insert(o, s);
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
                let mut list: Vec<&str> = all
                    .filter(|v| !v.is_empty() && !fixed.contains(v) && made.get(v).is_none_or(|&at| at < s))
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
            let mut done: Vec<String> =
                last.iter().filter(|(_, at)| **at + 1 == s).map(|(v, _)| v.to_string()).collect();
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
        Ok(Stages { stages, rests, input })
    }

    /// The values that the first stage starts from.
    pub fn start(&self, image: ArrayD<f32>) -> Values {
        HashMap::from([(self.input.clone(), image)])
    }

    /// Runs stage `s`; what no later stage needs is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
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

/// Values that depend on no image.
pub fn fixed<'m>(typing: &Typing<'m>) -> HashSet<&'m str> {
    let mut fixed: HashSet<&str> = typing.weights.keys().copied().collect();
    fixed.extend(typing.graph.initializer.iter().map(|t| t.name()));
    for node in &typing.graph.node {
        if node.attribute("value").is_some() && node.op_type() == "Constant"
            || node.input.iter().all(|x| x.is_empty() || fixed.contains(x.as_str()))
        {
            fixed.extend(node.output.iter().map(String::as_str));
        }
    }
    fixed
}
