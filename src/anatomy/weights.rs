//! What each weight is for: an operand of a contraction, a norm's scale, a bias, a token, a table.
//!
//! A weight is followed forward through everything that is computed from fixed values alone (lookups, transposes,
//! resampled tables, transforms) to the nodes where it meets the data. What it does there says what it is: its input
//! slot, the operator, and the axes that it carries. No name is looked at.

use std::collections::{HashMap, HashSet};

use super::structure::Anatomy;
use crate::axes::{Factor, Typing};
use crate::graph::{Links, walk};
use crate::onnx::proto::NodeProto;
use crate::onnx::{is_float, to_f32};
use crate::ops::{self, Mark, Slot};

/// The part that a weight plays. Where a weight plays several, the first of these counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightKind {
    /// What a contraction's weight operand is, or is computed from: matrices, kernels, learngene centroids, FFN
    /// transforms.
    Contraction,
    /// The scale of a norm, fused or decomposed.
    NormScale,
    /// The bias of a norm, fused or decomposed.
    NormBias,
    /// An additive bias.
    Bias,
    /// A vector that scales what a branch adds to the residual stream.
    LayerScale,
    /// A class token, register, learned query, or the table in which numbers of the data look tokens up.
    Token,
    /// A position table, added over the token axis.
    Position,
    /// A table added to attention scores that has a head axis: relative position biases.
    HeadTable,
    /// A mask, rotary or distance table, running statistic, preprocessing constant or scalar: never trained.
    Constant,
}

/// The kind of every floating-point weight that the graph uses, by the name of its initializer or constant.
pub fn weight_kinds(typing: &Typing) -> HashMap<String, WeightKind> {
    let mut kinds: HashMap<String, WeightKind> = HashMap::new();
    for (of_use, WeightUse { kind, .. }) in typing.uses.iter().zip(weight_uses(typing)) {
        if is_float(typing.weights[of_use.name.as_str()]) {
            kinds.entry(of_use.name.clone()).and_modify(|k| *k = (*k).min(kind)).or_insert(kind);
        }
    }
    kinds
}

/// What a use of a weight is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// Its kind; integer tensors are constants.
    pub kind: WeightKind,
    /// The nodes and input slots where it, or what is computed from it alone, meets the data.
    pub meets: Vec<(usize, usize)>,
}

/// What every use of a weight is for, in the order of [`Typing::uses`].
pub fn weight_uses(typing: &Typing) -> Vec<WeightUse> {
    let finder = WeightFinder::new(typing);
    (0..typing.uses.len()).map(|u| finder.weight_use(u)).collect()
}

/// Elements of the largest table of coordinates that is read: all pairs of a thousand tokens, three numbers each.
const LARGEST_TABLE: usize = 3 << 20;

struct WeightFinder<'t, 'm> {
    typing: &'t Typing<'m>,
    links: &'t Links<'m>,
    contractions: HashSet<usize>,
    /// Nodes between the product of queries and keys and the Softmax.
    scores: HashSet<usize>,
    heads: Vec<Factor>,
    embedding: Vec<Factor>,
}

impl<'t, 'm> WeightFinder<'t, 'm> {
    fn new(typing: &'t Typing<'m>) -> Self {
        let anatomy = Anatomy::new(typing).ok();
        let attentions = || anatomy.iter().flat_map(|a| a.layers.iter().chain(&a.others));
        let mut finder = WeightFinder {
            typing,
            links: typing.links(),
            contractions: typing.contractions.iter().map(|c| c.node).collect(),
            scores: HashSet::new(),
            heads: attentions()
                .flat_map(|a| std::iter::once(&a.heads).chain(a.head_mixers.iter().map(|m| &m.heads)))
                .flat_map(|h| typing.factors.all_leaves(h))
                .collect(),
            embedding: attentions().flat_map(|a| typing.factors.all_leaves(&a.embedding)).collect(),
        };
        let softmaxes = attentions().flat_map(|a| &a.softmax).filter(|k| !typing.fused.contains_key(k));
        let is_product = |x: &str| finder.links.maker(x).is_some_and(|k| finder.contractions.contains(&k));
        let scores = finder.links.upstream(softmaxes.flat_map(|&k| finder.links.outputs(k).take(1)));
        finder.scores = scores.along(|x| !typing.is_constant(x) && !is_product(x)).nodes().collect();
        finder
    }

    fn node(&self, k: usize) -> &'m NodeProto {
        &self.typing.graph.node[k]
    }

    /// Follows one use to the nodes where it meets the data.
    fn weight_use(&self, u: usize) -> WeightUse {
        let of_use = &self.typing.uses[u];
        let mut found = WeightUse { kind: WeightKind::Constant, meets: Vec::new() };
        if !is_float(self.typing.weights[of_use.name.as_str()]) {
            return found;
        }
        let mut only_waves = true;
        // Slots of nodes, each with whether a sine or cosine lies before it.
        let onward = |(k, j, wave): (usize, usize, bool)| {
            let outputs = self.node(k).output.iter().filter(|o| !o.is_empty());
            let met = self.by_slot(u, k, j).or_else(|| {
                let fixed = outputs.clone().all(|o| self.typing.is_constant(o));
                (!fixed).then(|| self.at_data(u, k, j))
            });
            if let Some(kind) = met {
                found.kind = found.kind.min(kind);
                found.meets.push((k, j));
                only_waves &= wave;
                return Vec::new();
            }
            let wave = wave || matches!(self.node(k).op_type(), "Sin" | "Cos");
            let slots = |user: usize, o| self.links.inputs(user).enumerate().filter(move |(_, x)| *x == o);
            let users = outputs.flat_map(|o| self.links.users(o).iter().map(move |&user| (user, o.as_str())));
            users.flat_map(|(user, o)| slots(user, o).map(move |(i, _)| (user, i, wave))).collect()
        };
        walk::search([(of_use.node, of_use.input, false)], onward).for_each(drop);
        found.meets.sort_unstable();
        found.meets.dedup();
        let computed = !found.meets.iter().any(|(k, _)| *k == of_use.node);
        if found.kind != WeightKind::Constant && computed && self.is_written_down(u, only_waves) {
            found.kind = WeightKind::Constant;
        }
        found
    }

    /// Coordinates and frequencies that something else is computed from, which are written down and never learned:
    /// different whole numbers, or steps or powers of one number that only sines and cosines take.
    fn is_written_down(&self, u: usize, only_waves: bool) -> bool {
        let tensor = self.typing.weights[self.typing.uses[u].name.as_str()];
        if self.count(u) > LARGEST_TABLE {
            return false;
        }
        let Ok(values) = to_f32(tensor) else { return false };
        let whole = values.iter().all(|v| v.fract() == 0.0);
        if !whole && !only_waves {
            return false;
        }
        let mut distinct = values;
        distinct.sort_by(f32::total_cmp);
        distinct.dedup_by(|a, b| (*a - *b).abs() <= 1e-5 * b.abs().max(1e-6));
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-3 * a.abs().max(b.abs());
        let (first, second) = match distinct[..] {
            [first, second, _, ..] => (first, second),
            _ => return false,
        };
        let steps = || distinct.windows(2).all(|w| near(w[1] - w[0], second - first));
        let powers = || first > 0.0 && distinct.windows(2).all(|w| near(w[1] / w[0], second / first));
        whole || steps() || powers()
    }

    /// Kinds that the node's input slot decides, whether or not the node depends on data.
    fn by_slot(&self, u: usize, k: usize, j: usize) -> Option<WeightKind> {
        use WeightKind::*;
        let node = self.node(k);
        match ops::of(node).slot(j) {
            Slot::Scale => return Some(NormScale),
            Slot::Shift => return Some(NormBias),
            Slot::Bias => return Some(Bias),
            Slot::Constant => return Some(Constant),
            Slot::Heads => return Some(self.head_table(u)),
            Slot::Data | Slot::Sizes | Slot::Places | Slot::Borders | Slot::Extent | Slot::Indices => {}
        }
        Some(match (node.op_type(), j) {
            // A learned query: one row in front of a matrix that is itself a weight.
            ("MatMul" | "Gemm", 0) if self.is_row(u) && self.maker(&node.input[0]).is_none() && self.is_fixed(k, 1) => {
                Token
            }
            // A bias behind a product of weights.
            ("Add", 0 | 1)
                if self.is_vector(u, k, j) && self.is_fixed(k, 1 - j) && self.is_product(&node.input[1 - j]) =>
            {
                Bias
            }
            _ => return None,
        })
    }

    /// What a fixed value does at a node that depends on data.
    fn at_data(&self, u: usize, k: usize, j: usize) -> WeightKind {
        use WeightKind::*;
        let node = self.node(k);
        let direct = self.typing.uses[u].node == k;
        if self.contractions.contains(&k) {
            return if direct || self.count(u) > 1 { Contraction } else { Constant };
        }
        if j == 0 && self.looks_up(k) {
            return if self.rotates(k) { Constant } else { Token };
        }
        if self.count(u) <= 1 || !self.trained_before(k, j) {
            return Constant;
        }
        if self.scores.contains(&k) {
            return self.head_table(u);
        }
        let other = node.input.get(1 - j.min(1)).map(String::as_str).unwrap_or("");
        match (node.op_type(), j) {
            ("Concat", _) => Token,
            ("Mul", _) if self.is_normalised(other) || self.is_deviation(other) => NormScale,
            ("Mul", _) if self.is_vector(u, k, j) && (self.on_embedding(k, j) || self.is_output(other)) => LayerScale,
            ("Add" | "Sum", _) if !self.is_vector(u, k, j) => Position,
            ("Add", _) if self.is_normalised(other) || self.is_scaled(other) => NormBias,
            ("Add" | "Sum", _) => Bias,
            // beta - mean * scale, as TensorFlow writes a norm.
            ("Sub", 0) if self.is_vector(u, k, j) => NormBias,
            _ => Constant,
        }
    }

    /// True where numbers of the data choose rows of a float table.
    fn looks_up(&self, k: usize) -> bool {
        let node = self.node(k);
        let is_table = |x: &String| self.typing.weights.get(x.as_str()).is_some_and(|t| is_float(t));
        ops::of(node).slot(1) == Slot::Indices && node.input.first().is_some_and(is_table) && !self.is_fixed(k, 1)
    }

    /// True where data is multiplied with what a node makes, as sines and cosines are that were looked up by position.
    fn rotates(&self, k: usize) -> bool {
        let moves = |k: usize| ops::of(self.node(k)).is(Mark::Keeps);
        let made = || self.links.outputs(k);
        let moved = self.links.downstream(made()).through(moves).flat_map(|k| self.links.outputs(k));
        let mut users = made().chain(moved).flat_map(|x| self.links.users(x)).filter(|&&k| !moves(k));
        users.all(|&k| self.node(k).op_type() == "Mul" && self.varying_operands(k) > 1)
    }

    fn count(&self, u: usize) -> usize {
        self.typing.uses[u].dims.iter().map(|d| self.typing.factors.size(d)).product()
    }

    fn head_table(&self, u: usize) -> WeightKind {
        let carries = self.typing.uses[u].dims.iter().any(|d| self.typing.factors.meet(d, &self.heads));
        if carries { WeightKind::HeadTable } else { WeightKind::Constant }
    }

    fn is_fixed(&self, k: usize, j: usize) -> bool {
        self.node(k).input.get(j).is_some_and(|x| self.typing.is_constant(x))
    }

    /// All elements lie along the last axis.
    fn is_row(&self, u: usize) -> bool {
        let last = self.typing.uses[u].dims.last().map(|d| self.typing.factors.size(d));
        self.count(u) > 1 && last == Some(self.count(u))
    }

    /// How many inputs of a node depend on data.
    fn varying_operands(&self, k: usize) -> usize {
        self.node(k).input.iter().filter(|x| !x.is_empty() && !self.typing.is_constant(x)).count()
    }

    /// The value in the slot has one axis of more than one element.
    fn is_vector(&self, u: usize, k: usize, j: usize) -> bool {
        let of_use = &self.typing.uses[u];
        let shape = match of_use.node == k && of_use.input == j {
            true => Some(of_use.dims.iter().map(|d| self.typing.factors.size(d)).collect()),
            false => self.typing.shape(&self.node(k).input[j]),
        };
        shape.is_some_and(|s: Vec<usize>| s.iter().filter(|&&n| n > 1).count() == 1)
    }

    /// A value that one of the weights' own contractions makes, seen through operators that only move elements.
    fn is_product(&self, value: &str) -> bool {
        self.maker(value).is_some_and(|k| self.contractions.contains(&k))
    }

    /// What a contraction with a weight makes, with or without its bias.
    fn is_output(&self, value: &str) -> bool {
        let Some(k) = self.maker(value) else { return false };
        let varying = || self.node(k).input.iter().filter(|x| !self.typing.is_constant(x));
        let product = |k: usize| self.contractions.contains(&k) && self.varying_operands(k) == 1;
        product(k)
            || (self.node(k).op_type() == "Add"
                && varying().count() == 1
                && varying().filter_map(|x| self.maker(x)).any(product))
    }

    /// The node that makes a value, seen through operators that only move elements.
    fn maker(&self, value: &str) -> Option<usize> {
        let moved = |node: &'m NodeProto| {
            let op = ops::of(node);
            node.input.first().filter(|_| op.is(Mark::Keeps) || op.name == "Expand").map(String::as_str)
        };
        self.links.follow_back(value, moved).last().and_then(|value| self.links.maker(value))
    }

    /// The data at this node has met a weight before: it is no image that is being prepared.
    fn trained_before(&self, k: usize, j: usize) -> bool {
        let others = self.links.inputs(k).enumerate().filter(|(i, _)| *i != j).map(|(_, x)| x);
        let mut data = self.links.upstream(others).along(|x| !self.typing.is_constant(x));
        data.any(|x| self.links.maker(x).is_some_and(|m| self.contractions.contains(&m) || self.looks_up(m)))
    }

    fn on_embedding(&self, k: usize, j: usize) -> bool {
        let node = self.node(k);
        let output = node.output.first().and_then(|o| self.typing.dims.get(o.as_str()));
        let (Some(output), Some(shape)) = (output, self.typing.shape(&node.input[j])) else { return false };
        let at = shape.iter().rev().position(|&n| n > 1).and_then(|i| output.len().checked_sub(i + 1));
        at.is_some_and(|a| {
            let leaves = self.typing.factors.leaves(&output[a]);
            !leaves.is_empty() && leaves.iter().all(|f| self.embedding.contains(f))
        })
    }

    /// A value less its mean, or over its deviation, or out of a fused norm.
    fn is_normalised(&self, value: &str) -> bool {
        let Some(k) = self.maker(value) else { return false };
        let node = self.node(k);
        match node.op_type() {
            "Div" | "Mul" => node.input.iter().any(|x| self.is_deviation(x)),
            "Sub" => node.input.get(1).is_some_and(|x| self.is_mean(x)),
            op => op.contains("Normalization"),
        }
    }

    /// A normalised value times a norm's scale.
    fn is_scaled(&self, value: &str) -> bool {
        let Some(node) = self.maker(value).map(|k| self.node(k)) else { return false };
        let varying = || node.input.iter().filter(|x| !self.typing.is_constant(x));
        node.op_type() == "Mul" && varying().count() == 1 && varying().any(|x| self.is_normalised(x))
    }

    fn is_mean(&self, value: &str) -> bool {
        self.maker(value).is_some_and(|k| matches!(self.node(k).op_type(), "ReduceMean" | "GlobalAveragePool"))
    }

    /// A standard deviation, root mean square or length that was computed from data, or the inverse of one.
    fn is_deviation(&self, value: &str) -> bool {
        let mut root = false;
        let computed = |x: &&str| !x.is_empty() && !self.typing.is_constant(x);
        let operand = |x: &&str| self.maker(x).and_then(|k| self.links.inputs(k).find(computed));
        // A deviation is a few operators away from its mean: more are something else.
        let line = std::iter::successors(Some(value).filter(computed), operand).take(8);
        for node in line.map_while(|x| self.maker(x)).map(|k| self.node(k)) {
            match node.op_type() {
                "ReduceL2" => return true,
                "ReduceMean" | "GlobalAveragePool" | "ReduceSum" | "ReduceSumSquare" => return root,
                "Sqrt" | "Pow" => root = true,
                _ if ops::of(node).is(Mark::Deviation) => {}
                _ => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::WeightKind::*;
    use super::*;
    use crate::onnx::{DataType, Model, element_count, tensor_from_f32, tensor_info};

    /// The kind that a parameter's name in the exporting model stands for, where the exporter kept it.
    fn named(name: &str, rank: usize) -> Option<WeightKind> {
        let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
        Some(match name {
            _ if has(&["onnx::MatMul_"]) => Contraction,
            _ if has(&["onnx::Concat_", "onnx::Reshape_"]) => Position,
            _ if name.starts_with("onnx::Add_") => {
                match rank {
                    1 => Bias,
                    // A position table without the class token's row.
                    3 => Position,
                    _ => HeadTable,
                }
            }
            _ if name.starts_with("cat_") => Bias,
            "permute" | "embedding" => Position,
            _ if name.starts_with("slice_") => Position,
            "expand" => Token,
            _ if has(&["rope", "Constant_", "noise"]) => Constant,
            _ if has(&["pos_embed", "position_embedding"]) => Position,
            _ if has(&["cls_token", "reg_token", "dist_token", "class_token", "class_embedding", "latent"]) => Token,
            _ if has(&["gamma", "lambda"]) => LayerScale,
            _ if has(&["norm", ".ln_", "encoder.ln."]) => {
                if name.ends_with("bias") {
                    NormBias
                } else {
                    NormScale
                }
            }
            _ if name.ends_with("bias") => Bias,
            _ if name.ends_with("weight") && rank > 1 => Contraction,
            _ if name.starts_with("val_") && rank == 2 => Contraction,
            _ => return None,
        })
    }

    fn fixtures() -> Vec<Model> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/graphs");
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        let onnx = |p: &std::path::PathBuf| p.extension().is_some_and(|e| e == "onnx");
        paths.iter().filter(|p| onnx(p)).map(|p| open(p.to_str().unwrap())).collect()
    }

    fn open(path: &str) -> Model {
        let mut model = Model::open(path).unwrap();
        crate::graph::prepare(&mut model).unwrap();
        model
    }

    #[test]
    fn kinds_are_those_of_the_exported_names() {
        let (mut checked, mut wrong, mut unknown) = (0, Vec::new(), Vec::new());
        for model in fixtures() {
            let file = model.path.file_name().unwrap().to_string_lossy().into_owned();
            // Other families give their parameters names of their own.
            if file.starts_with("family-") {
                continue;
            }
            let typing = Typing::new(&model).unwrap();
            for (name, kind) in weight_kinds(&typing) {
                let tensor = typing.weights[name.as_str()];
                if element_count(tensor).unwrap() == 1 {
                    assert_eq!(kind, Constant, "{file}: {name}");
                    continue;
                }
                match named(&name, tensor.dims.len()) {
                    Some(want) if want == kind => checked += 1,
                    Some(want) => wrong.push(format!("{file}: {name} {:?}: {kind:?}, not {want:?}", tensor.dims)),
                    None => unknown.push(format!("{file}: {name} {:?}: {kind:?}", tensor.dims)),
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(checked > 1200, "{checked}");
        // Values that the exporter computed: folded bias tables, masks and tokens, of known shapes.
        for line in &unknown {
            let want = match () {
                _ if line.contains("17, 17]") || line.contains("[1, 2, 16, 16]") || line.contains("[1, 4, 16, 16]") => {
                    HeadTable
                }
                _ if line.contains("[1, 4, 1, 16, 16]") => Constant,
                _ if line.contains("[1, 1, 24]") => Token,
                _ => panic!("{line}"),
            };
            assert!(line.ends_with(&format!("{want:?}")), "{line}");
        }
    }

    #[test]
    fn tables_that_token_numbers_look_up_are_of_tokens() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/texts");
        for file in ["bert-ts.onnx", "bert-dynamo.onnx"] {
            let mut model = open(folder.join(file).to_str().unwrap());
            let lengths = ["input_ids", "attention_mask", "token_type_ids"].map(|name| (name, &[2, 12][..]));
            crate::graph::fix_lengths(model.graph_mut(), lengths);
            let typing = Typing::new(&model).unwrap();
            let kinds = weight_kinds(&typing);
            let of = |part: &str| kinds.iter().find(|(name, _)| name.contains(part)).map(|(_, kind)| *kind);
            let found = ["word_embeddings", "token_type_embeddings", "position_embeddings"].map(of);
            assert_eq!(found, [Some(Token), Some(Token), Some(Position)], "{file}: {:?}", kinds.keys());
        }
    }

    #[test]
    fn every_trained_parameter_of_the_exporting_model_has_a_kind() {
        let manifest = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/graphs/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for model in fixtures() {
            let file = model.path.file_name().unwrap().to_string_lossy().into_owned();
            // Bias tables that the exporter folded into place have other sizes than their parameters.
            let entry = manifest["fixtures"].as_array().unwrap().iter().find(|e| e["file"] == *file).unwrap();
            if file.contains("beit") || file.contains("-swin-") || entry["folded"] == true {
                continue;
            }
            let typing = Typing::new(&model).unwrap();
            let kinds = weight_kinds(&typing);
            let trained = kinds.iter().filter(|(_, k)| **k != Constant);
            let elements: usize = trained.map(|(n, _)| element_count(typing.weights[n.as_str()]).unwrap()).sum();
            assert_eq!(elements as u64, entry["used_parameters"].as_u64().unwrap(), "{file}");
        }
    }

    #[test]
    fn what_no_fixture_has() {
        // Preprocessing, BatchNormalization, TensorFlow's norm, a transform of a weight, and a scalar.
        use crate::graph::{ints_attribute, node};
        let mut model = open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/fashion-vit.onnx"));
        let vector = |name: &str, dims: &[usize]| {
            tensor_from_f32(name, DataType::Float, dims, &vec![0.5; dims.iter().product()])
        };
        let graph = model.graph_mut();
        graph.initializer = vec![
            vector("mean", &[1, 3, 1, 1]),
            vector("std", &[1, 3, 1, 1]),
            vector("kernel", &[4, 3, 2, 2]),
            vector("scale", &[4]),
            vector("shift", &[4]),
            vector("running_mean", &[4]),
            vector("running_variance", &[4]),
            vector("epsilon", &[]),
            vector("gamma", &[4]),
            vector("beta", &[4]),
            vector("shared", &[6, 4]),
            vector("rows", &[6, 1]),
            vector("u", &[6, 2]),
            vector("v", &[2, 4]),
            vector("bias", &[6]),
        ];
        graph.node = vec![
            node("Sub", &["image", "mean"], &["centred"], vec![]),
            node("Div", &["centred", "std"], &["prepared"], vec![]),
            node("Conv", &["prepared", "kernel"], &["patches"], vec![ints_attribute("strides", &[2, 2])]),
            node(
                "BatchNormalization",
                &["patches", "scale", "shift", "running_mean", "running_variance"],
                &["normed"],
                vec![],
            ),
            node("Transpose", &["normed"], &["x"], vec![ints_attribute("perm", &[0, 2, 3, 1])]),
            node("ReduceMean", &["x"], &["m"], vec![ints_attribute("axes", &[-1])]),
            node("Sub", &["x", "m"], &["d"], vec![]),
            node("Mul", &["d", "d"], &["squares"], vec![]),
            node("ReduceMean", &["squares"], &["variance"], vec![ints_attribute("axes", &[-1])]),
            node("Add", &["variance", "epsilon"], &["sum"], vec![]),
            node("Sqrt", &["sum"], &["deviation"], vec![]),
            node("Reciprocal", &["deviation"], &["inverse"], vec![]),
            node("Mul", &["inverse", "gamma"], &["scaled"], vec![]),
            node("Mul", &["x", "scaled"], &["left"], vec![]),
            node("Mul", &["m", "scaled"], &["right"], vec![]),
            node("Sub", &["beta", "right"], &["rest"], vec![]),
            node("Add", &["left", "rest"], &["y"], vec![]),
            node("Mul", &["shared", "rows"], &["half"], vec![]),
            node("MatMul", &["u", "v"], &["low_rank"], vec![]),
            node("Add", &["half", "low_rank"], &["weight"], vec![]),
            node("Transpose", &["weight"], &["turned"], vec![ints_attribute("perm", &[1, 0])]),
            node("MatMul", &["y", "turned"], &["made"], vec![]),
            node("Add", &["made", "bias"], &["out"], vec![]),
        ];
        graph.input = vec![tensor_info("image", DataType::Float, &[None, Some(3), Some(4), Some(4)])];
        graph.output = vec![tensor_info("out", DataType::Float, &[None, Some(2), Some(2), Some(6)])];
        model.proto.opset_import[0].version = Some(17);
        let typing = Typing::new(&model).unwrap();
        let kinds = weight_kinds(&typing);
        for (name, want) in [
            ("mean", Constant),
            ("std", Constant),
            ("kernel", Contraction),
            ("scale", NormScale),
            ("shift", NormBias),
            ("running_mean", Constant),
            ("running_variance", Constant),
            ("epsilon", Constant),
            ("gamma", NormScale),
            ("beta", NormBias),
            ("shared", Contraction),
            ("rows", Contraction),
            ("u", Contraction),
            ("v", Contraction),
            ("bias", Bias),
        ] {
            assert_eq!(kinds[name], want, "{name}");
        }
    }
}
