//! Which weights become int8, and why others do not.

use std::collections::{HashMap, HashSet};

use super::numbers::{Lies, Numbers, round};
use crate::axes::Typing;
use crate::graph::{Attributes, Links, data_inputs, declared_type, is_integer, is_standard};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, data_type, to_f32};
use crate::ops::{self, Mark, ShapeRule};

/// Matrices of fewer numbers are left alone: their scales and nodes take what their numbers save.
const SMALL: i64 = 128;
/// What is left in float32 and has so many numbers is named.
const LARGE: i64 = 1024;
/// A table of fewer rows is left alone: kinds of tokens, languages.
const FEW_ROWS: i64 = 32;
/// So many copies of a matrix in int8 take as much as the matrix in float32.
const COPIES: usize = 4;
/// Sums of products of a byte without a sign and one with a sign fit 32 bits up to this many: 255 x 127 x 66,000.
const LONGEST: i64 = 66_000;
/// Weights that are named in a line; `--json` names all.
const NAMED: usize = 3;

/// A weight that stays float32, and why.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Kept {
    /// Its name.
    pub tensor: String,
    /// Why.
    pub why: String,
    /// True for a convolution, which stays float32 in every model.
    #[serde(skip)]
    pub by_design: bool,
}

/// A weight that is written as a table and as a matrix, and how many bytes that takes more.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Twice {
    /// Its name.
    pub tensor: String,
    /// Those of its numbers and scales.
    pub bytes: usize,
}

/// Which weights are in int8, and which are not.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Rounded {
    /// Matrices of products.
    pub matrices: usize,
    /// Copies among them of matrices that several products read.
    pub copies: usize,
    /// Embedding tables.
    pub tables: usize,
    /// Whether rows of activations are rounded in the graph.
    pub rows: bool,
    /// Tables that are also matrices, such as those of tied embeddings.
    pub twice: Vec<Twice>,
    /// The operator set that was raised to 13.
    pub raised_from: Option<i64>,
    /// Large weights that stay float32.
    pub float32: Vec<Kept>,
}

impl Rounded {
    /// What users should know, a line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.matrices + self.tables == 0 {
            notes.push("no weight became int8: no product of data with a constant matrix was found".to_string());
        }
        if self.copies > 0 {
            notes.push(format!(
                "matrices that several layers share are written {} time(s) more: one in int8 for all would be slow in \
                 ONNX Runtime; ⟦dtype⟧ int8-rows shares them",
                self.copies
            ));
        }
        if !self.twice.is_empty() {
            let named: Vec<String> = self.twice.iter().map(|t| format!("`{}` ({} bytes)", t.tensor, t.bytes)).collect();
            notes.push(format!(
                "embedding tables that are also matrices of products are written once for each: {}; engines would \
                 unfold or turn one for both in every run",
                named.join(", ")
            ));
        }
        if let Some(from) = self.raised_from {
            notes.push(format!("the operator set was raised from {from} to 13, which int8 weights need"));
        }
        notes.extend(self.kept(false).map(|kept| format!("weights that stay float32: {kept}")));
        notes
    }

    /// What is as it should be, in a line: convolutions.
    pub fn by_design(&self) -> Option<String> {
        self.kept(true).map(|kept| format!("convolutions stay float32: {kept}"))
    }

    /// Weights that stay float32, in words.
    fn kept(&self, by_design: bool) -> Option<String> {
        let all = || self.float32.iter().filter(|k| k.by_design == by_design);
        let named: Vec<String> = all().take(NAMED).map(|k| format!("`{}` ({})", k.tensor, k.why)).collect();
        let more = match all().count().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more, which ⟦json⟧ names"),
        };
        (!named.is_empty()).then(|| format!("{}{more}", named.join(", ")))
    }
}

/// A node that is to read a weight in int8.
pub(super) struct Site {
    pub node: usize,
    /// Whether it reads data as well.
    of_data: bool,
    pub weight: String,
    pub lies: Lies,
}

/// What is to be done.
pub(super) struct Plan {
    pub sites: Vec<Site>,
    /// The weights in int8, by name and how they lie there.
    pub numbers: HashMap<(String, Lies), Numbers>,
    /// Values that only stand between a weight and the nodes that are to read it in int8.
    pub dropped: HashSet<String>,
    pub kept: Vec<Kept>,
}

impl Plan {
    /// Weights that lie as a table and as a matrix, by name.
    pub fn twice(&self) -> Vec<Twice> {
        let matrices = self.numbers.iter().filter(|((_, lies), _)| *lies != Lies::Rows);
        let tied = matrices.filter(|((name, _), _)| self.numbers.contains_key(&(name.clone(), Lies::Rows)));
        let size = |n: &Numbers| n.bytes.len() + size_of::<f32>() * n.scales.len();
        let mut twice: Vec<Twice> = tied.map(|((name, _), n)| Twice { tensor: name.clone(), bytes: size(n) }).collect();
        twice.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        twice
    }

    /// Chooses weights of a prepared graph of float32 whose constants were lifted.
    pub fn new(typing: &Typing, rows: bool) -> Plan {
        let graph = typing.graph;
        let links = Links::new(graph);
        let weights: HashMap<&str, &TensorProto> = (graph.initializer.iter())
            .filter(|t| data_type(t) == Some(DataType::Float) && t.dims.len() == 2)
            .map(|t| (t.name(), t))
            .collect();
        let look = Look { typing, links, weights };
        let mut sites: Vec<Site> = (0..graph.node.len()).filter_map(|k| look.site(k)).collect();
        // What is computed from constants alone is done once, and left alone where its weight has no other use.
        let of_data: HashSet<String> = sites.iter().filter(|s| s.of_data).map(|s| s.weight.clone()).collect();
        sites.retain(|s| of_data.contains(&s.weight));
        let mut plan = Plan { sites: Vec::new(), numbers: HashMap::new(), dropped: HashSet::new(), kept: Vec::new() };
        let mut of_weights: HashMap<&str, Vec<&Site>> = HashMap::new();
        sites.iter().for_each(|s| of_weights.entry(&s.weight).or_default().push(s));
        let mut why: HashMap<&str, String> = HashMap::new();
        // In the order of the file: what is told does not change from run to run.
        for t in graph.initializer.iter().filter(|t| of_weights.contains_key(t.name())) {
            let own = &of_weights[t.name()];
            match look.obstacle(t, own, rows) {
                Some(obstacle) => drop(why.insert(t.name(), obstacle)),
                None => match rounded(t, own) {
                    Ok(numbers) => {
                        plan.numbers.extend(numbers);
                        plan.dropped.extend(look.forms(t.name()).map(str::to_string));
                    }
                    Err(bad) => drop(why.insert(t.name(), bad)),
                },
            }
        }
        plan.kept = graph.initializer.iter().filter_map(|t| look.kept(t, &of_weights, &why)).collect();
        plan.sites = sites.into_iter().filter(|s| plan.numbers.contains_key(&(s.weight.clone(), s.lies))).collect();
        plan
    }
}

/// A weight, how it lies, and its numbers.
type OfWeight = ((String, Lies), Numbers);

/// A weight in int8, in each way that it is to lie, or why it cannot be.
fn rounded(t: &TensorProto, sites: &[&Site]) -> std::result::Result<Vec<OfWeight>, String> {
    let values = to_f32(t).map_err(|e| e.to_string())?;
    let dims = t.shape();
    let mut found: Vec<OfWeight> = Vec::new();
    for site in sites {
        if found.iter().all(|((_, lies), _)| *lies != site.lies) {
            let numbers = round(&values, [dims[0], dims[1]], site.lies)?;
            found.push(((t.name().to_string(), site.lies), numbers));
        }
    }
    Ok(found)
}

struct Look<'m, 't> {
    typing: &'t Typing<'m>,
    links: Links<'m>,
    weights: HashMap<&'m str, &'m TensorProto>,
}

/// True for a node that gives a matrix another name or its columns for rows.
fn is_form(node: &NodeProto) -> bool {
    is_standard(node)
        && match node.op_type() {
            "Identity" => true,
            "Cast" => node.int("to") == Some(DataType::Float as i64),
            "Transpose" => node.ints("perm").is_none_or(|perm| perm == [1, 0]),
            _ => false,
        }
}

impl<'m> Look<'m, '_> {
    fn graph(&self) -> &'m GraphProto {
        self.typing.graph
    }

    /// What a node reads in int8.
    fn site(&self, k: usize) -> Option<Site> {
        let node = &self.graph().node[k];
        let at = |j: usize| node.input.get(j).map(String::as_str);
        let is_data = |x: &str| !self.typing.is_constant(x);
        match node.op_type() {
            _ if !is_standard(node) => None,
            "MatMul" | "Gemm" if node.int("transA").unwrap_or(0) == 0 => {
                let (weight, turned) = self.matrix(at(1)?)?;
                let turned = turned != (node.int("transB").unwrap_or(0) != 0);
                let lies = if turned { Lies::Transposed } else { Lies::Columns };
                let large = weight.dims.iter().product::<i64>() >= SMALL;
                let of_data = is_data(at(0)?);
                large.then(|| Site { node: k, of_data, weight: weight.name().into(), lies })
            }
            "Gather" if node.int("axis").unwrap_or(0) == 0 && self.is_of_tokens(at(1)?) => {
                let (weight, turned) = self.matrix(at(0)?)?;
                let large = weight.dims[0] >= FEW_ROWS;
                let (weight, lies) = (weight.name().into(), Lies::Rows);
                (large && !turned).then_some(Site { node: k, of_data: true, weight, lies })
            }
            _ => None,
        }
    }

    /// The initializer that a value is a form of, and whether its columns are the rows.
    fn matrix(&self, value: &'m str) -> Option<(&'m TensorProto, bool)> {
        let step = |n: &'m NodeProto| is_form(n).then(|| n.input.first().map(String::as_str)).flatten();
        let line: Vec<&str> = self.links.follow_back(value, step).collect();
        let turns = |x: &&&str| self.links.maker(x).is_some_and(|k| self.graph().node[k].op_type() == "Transpose");
        let weight = *self.weights.get(*line.last()?)?;
        Some((weight, line[..line.len() - 1].iter().filter(turns).count() % 2 == 1))
    }

    /// True for numbers of tokens: an input of integers, in another shape or type at most.
    fn is_of_tokens(&self, value: &'m str) -> bool {
        let step = |n: &'m NodeProto| ops::of(n).is(Mark::Keeps).then(|| n.input.first().map(String::as_str)).flatten();
        let Some(begin) = self.links.follow_back(value, step).last() else { return false };
        let kind = |t: i32| DataType::try_from(t).is_ok_and(is_integer);
        data_inputs(self.graph()).iter().any(|v| v.name() == begin && declared_type(v).is_some_and(kind))
    }

    /// The values that are a weight under another name or transposed.
    fn forms(&self, weight: &'m str) -> impl Iterator<Item = &'m str> {
        let nodes = self.links.downstream([weight]).until(|k| !is_form(&self.graph().node[k]));
        let forms: Vec<&str> =
            nodes.filter(|&k| is_form(&self.graph().node[k])).flat_map(|k| self.links.outputs(k)).collect();
        [weight].into_iter().chain(forms)
    }

    /// Why a weight that products read cannot be in int8 all the same.
    fn obstacle(&self, t: &'m TensorProto, sites: &[&Site], rows: bool) -> Option<String> {
        let forms: HashSet<&str> = self.forms(t.name()).collect();
        if self.graph().output.iter().any(|o| forms.contains(o.name())) {
            return Some("it is an output".into());
        }
        let users = self.links.downstream([t.name()]).until(|k| !is_form(&self.graph().node[k]));
        let node = |k: usize| &self.graph().node[k];
        let other = users.filter(|&k| !is_form(node(k))).find(|&k| sites.iter().all(|s| s.node != k));
        if let Some(k) = other {
            return Some(format!("`{}` reads it as well", node(k).op_type()));
        }
        let twice = |s: &&&Site| node(s.node).input.iter().filter(|x| forms.contains(x.as_str())).count() > 1;
        if let Some(site) = sites.iter().find(twice) {
            return Some(format!("`{}` reads it twice", node(site.node).op_type()));
        }
        let products = sites.iter().filter(|s| s.lies != Lies::Rows).count();
        if !rows && products > COPIES {
            return Some(format!("{products} products share it: as many copies would be larger"));
        }
        let length = |s: &&&Site| if s.lies == Lies::Transposed { t.dims[1] } else { t.dims[0] };
        let long = sites.iter().filter(|s| s.lies != Lies::Rows).find(|s| length(s) > LONGEST);
        long.filter(|_| rows).map(|s| format!("sums over {} products would leave 32 bits", length(&s)))
    }

    /// A large weight that products or tables have and that stays float32.
    fn kept(
        &self,
        t: &'m TensorProto,
        sites: &HashMap<&str, Vec<&Site>>,
        why: &HashMap<&'m str, String>,
    ) -> Option<Kept> {
        let is_matrix = t.dims.iter().filter(|&&n| n > 1).count() > 1 && t.dims.iter().product::<i64>() >= LARGE;
        let told = |why: &str, by_design: bool| Kept { tensor: t.name().into(), why: why.into(), by_design };
        if let Some(why) = why.get(t.name()) {
            return Some(told(why, false));
        }
        if sites.contains_key(t.name()) || !is_matrix || data_type(t) != Some(DataType::Float) {
            return None;
        }
        let users = self.links.downstream([t.name()]).until(|k| !is_form(&self.graph().node[k]));
        let user = users.map(|k| &self.graph().node[k]).find(|n| !is_form(n))?;
        let reads = ops::of(user).shape == ShapeRule::Own || !ops::of(user).is_known();
        reads.then(|| told(&format!("`{}` reads it", user.op_type()), user.op_type() == "Conv"))
    }
}
