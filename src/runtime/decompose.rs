//! Fused attention operators taken apart into standard ones, where probabilities are asked for or a runtime lacks the operator.

use std::collections::HashMap;

use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Names, int_attribute, ints_attribute, node as new_node};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, data_type, node_label, tensor_from_f32, tensor_from_i64};

/// A graph without the fused operators that were asked for.
pub struct Decomposed {
    /// The graph.
    pub graph: GraphProto,
    /// The probabilities [batch, heads, queries, keys] that took the place of each fused node, by the node's old index.
    pub probabilities: HashMap<usize, String>,
}

/// Takes the fused attention operators `nodes` apart.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for masks and caches of forms that have no decomposition here; it names the node.
pub fn decompose_attention(typing: &Typing, nodes: &[usize]) -> Result<Decomposed> {
    let mut graph = typing.graph.clone();
    let mut names = Names::new(&graph);
    let mut out = Vec::with_capacity(graph.node.len() + 12 * nodes.len());
    let mut initializers = Vec::new();
    let mut probabilities = HashMap::new();
    for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        if !nodes.contains(&k) {
            out.push(node);
            continue;
        }
        let label = node_label(&node);
        let mut work =
            Work { typing, k, node: &node, names: &mut names, out: &mut out, initializers: &mut initializers };
        let p = work.decompose().map_err(|e| e.in_node(label))?;
        probabilities.insert(k, p);
    }
    graph.node = out;
    graph.initializer.extend(initializers);
    graph.value_info.clear();
    Ok(Decomposed { graph, probabilities })
}

struct Work<'a, 'm> {
    typing: &'a Typing<'m>,
    k: usize,
    node: &'a NodeProto,
    names: &'a mut Names,
    out: &'a mut Vec<NodeProto>,
    initializers: &'a mut Vec<TensorProto>,
}

impl Work<'_, '_> {
    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<crate::onnx::proto::AttributeProto>) -> String {
        let stem = format!("{}_{}", self.node.output[0], op.to_lowercase());
        let output = self.names.fresh(&stem);
        self.out.push(new_node(op, inputs, &[&output], attributes));
        output
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.names.fresh("offshoot_shape");
        self.initializers.push(tensor_from_i64(name.clone(), &[values.len()], values));
        name
    }

    /// [batch, tokens, heads x dim] as [batch, heads, tokens, dim].
    fn separate(&mut self, x: &str, heads: usize) -> String {
        let shape = self.ints(&[0, 0, heads as i64, -1]);
        let x = self.op("Reshape", &[x, &shape], vec![]);
        self.op("Transpose", &[&x], vec![ints_attribute("perm", &[0, 2, 1, 3])])
    }

    fn input(&self, j: usize) -> Option<&str> {
        self.node.input.get(j).map(String::as_str).filter(|x| !x.is_empty())
    }

    fn refuse(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("`{}` with {what} cannot be taken apart", self.node.op_type()))
            .hint("export without fused attention (timm: `set_fused_attn(False)`; transformers: `attn_implementation=\"eager\"`)")
    }

    fn decompose(&mut self) -> Result<String> {
        let typing = self.typing;
        let fused = &typing.fused[&self.k];
        let heads = typing.factors.size(&fused.heads);
        let microsoft = self.node.domain() == "com.microsoft";
        if self.node.int("is_causal").unwrap_or(0) != 0 || self.node.int("unidirectional").unwrap_or(0) != 0 {
            return Err(self.refuse("a causal mask"));
        }
        if self.node.float("softcap").unwrap_or(0.0) != 0.0 {
            return Err(self.refuse("a soft cap"));
        }
        let used = self.node.output.iter().skip(1).any(|o| !o.is_empty());
        if used {
            return Err(self.refuse("more than one output"));
        }
        let (q, k, v, mask, rank);
        match (self.node.op_type(), microsoft) {
            ("Attention", true) => {
                if (3..self.node.input.len()).any(|j| self.input(j).is_some()) {
                    return Err(self.refuse("a mask"));
                }
                let (x, w) = (self.node.input[0].clone(), self.node.input[1].clone());
                let mut packed = self.op("MatMul", &[&x, &w], vec![]);
                if let Some(bias) = self.input(2).map(str::to_string) {
                    packed = self.op("Add", &[&packed, &bias], vec![]);
                }
                let parts: Vec<String> = (0..3).map(|i| self.names.fresh(&format!("{packed}_{i}"))).collect();
                let parts_ref: Vec<&str> = parts.iter().map(String::as_str).collect();
                let width = typing.shape(&w).and_then(|s| s.last().copied()).unwrap_or(0) as i64 / 3;
                let mut attributes = vec![int_attribute("axis", 2)];
                if typing.opset < 13 {
                    attributes.push(ints_attribute("split", &[width; 3]));
                    self.out.push(new_node("Split", &[&packed], &parts_ref, attributes));
                } else {
                    let lengths = self.ints(&[width; 3]);
                    self.out.push(new_node("Split", &[&packed, &lengths], &parts_ref, attributes));
                }
                (q, k, v) = (parts[0].clone(), parts[1].clone(), parts[2].clone());
                (mask, rank) = (None, 3);
            }
            ("MultiHeadAttention", _) => {
                if [4, 6, 7].iter().any(|&j| self.input(j).is_some()) || self.input(2).is_none() {
                    return Err(self.refuse("a padding mask, a cache or packed operands"));
                }
                let mut operands: Vec<String> = (0..3).map(|j| self.node.input[j].clone()).collect();
                if let Some(bias) = self.input(3).map(str::to_string) {
                    let width = typing.shape(&operands[0]).and_then(|s| s.last().copied()).unwrap_or(0) as i64;
                    for (i, operand) in operands.iter_mut().enumerate() {
                        let (start, end) = (self.ints(&[width * i as i64]), self.ints(&[width * (i as i64 + 1)]));
                        let part = self.op("Slice", &[&bias, &start, &end], vec![]);
                        *operand = self.op("Add", &[operand, &part], vec![]);
                    }
                }
                let [a, b, c] = &operands[..] else { return Err(self.refuse("packed operands")) };
                (q, k, v) = (a.clone(), b.clone(), c.clone());
                (mask, rank) = (self.input(5).map(str::to_string), 3);
            }
            _ => {
                if [4, 5, 6].iter().any(|&j| self.input(j).is_some()) {
                    return Err(self.refuse("a cache"));
                }
                (q, k, v) = (self.node.input[0].clone(), self.node.input[1].clone(), self.node.input[2].clone());
                rank = typing.shape(&q).map(|s| s.len()).unwrap_or(4);
                mask = self.input(3).map(str::to_string);
            }
        }
        let (mut q, mut k, mut v) = (q, k, v);
        let key_heads = match self.node.int("kv_num_heads") {
            Some(n) if rank == 3 => n as usize,
            _ if rank == 4 => typing.shape(&self.node.input[1]).map(|s| s[1]).unwrap_or(heads),
            _ => heads,
        };
        if rank == 3 {
            (q, k, v) = (self.separate(&q, heads), self.separate(&k, key_heads), self.separate(&v, key_heads));
        }
        if key_heads != heads {
            return Err(self.refuse("grouped key heads"));
        }
        let head_dim = self.head_dim(heads, rank);
        let scale = self.node.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (head_dim as f32).sqrt());
        let kind = self.float_kind();
        let constant = self.names.fresh("offshoot_scale");
        self.initializers.push(tensor_from_f32(constant.clone(), kind, &[], &[scale]));
        let scaled = self.op("Mul", &[&q, &constant], vec![]);
        let keys = self.op("Transpose", &[&k], vec![ints_attribute("perm", &[0, 1, 3, 2])]);
        let mut scores = self.op("MatMul", &[&scaled, &keys], vec![]);
        if let Some(mask) = mask {
            let boolean = self.is_boolean(&mask);
            scores = if boolean {
                let lowest = self.names.fresh("offshoot_masked");
                self.initializers.push(tensor_from_f32(lowest.clone(), kind, &[], &[-1e30]));
                self.op("Where", &[&mask, &scores, &lowest], vec![])
            } else {
                self.op("Add", &[&scores, &mask], vec![])
            };
        }
        let probabilities = self.op("Softmax", &[&scores], vec![int_attribute("axis", -1)]);
        let mixed = self.op("MatMul", &[&probabilities, &v], vec![]);
        let output = self.node.output[0].clone();
        if rank == 3 {
            let merged = self.op("Transpose", &[&mixed], vec![ints_attribute("perm", &[0, 2, 1, 3])]);
            let shape = self.ints(&[0, 0, -1]);
            self.out.push(new_node("Reshape", &[&merged, &shape], &[&output], vec![]));
        } else {
            self.out.push(new_node("Identity", &[&mixed], &[&output], vec![]));
        }
        Ok(probabilities)
    }

    fn head_dim(&self, heads: usize, rank: usize) -> usize {
        let packed = self.node.op_type() == "Attention" && self.node.domain() == "com.microsoft";
        let (name, parts) = if packed { (&self.node.input[1], 3) } else { (&self.node.input[0], 1) };
        let last = self.typing.shape(name).and_then(|s| s.last().copied()).unwrap_or(1);
        if rank == 4 { last } else { last / parts / heads.max(1) }
    }

    /// The floating-point type of the model, from its weights.
    fn float_kind(&self) -> DataType {
        self.typing
            .graph
            .initializer
            .iter()
            .filter(|t| crate::onnx::is_float(t) && t.dims.len() > 1)
            .find_map(data_type)
            .unwrap_or(DataType::Float)
    }

    /// Masks of fused operators are boolean or added; what made the mask tells which.
    fn is_boolean(&self, mask: &str) -> bool {
        let maker = self.typing.graph.node.iter().find(|n| n.output.iter().any(|o| o == mask));
        if let Some(t) = self.typing.weights.get(mask) {
            return data_type(t) == Some(DataType::Bool);
        }
        match maker {
            Some(n) => {
                matches!(
                    n.op_type(),
                    "Not" | "And" | "Or" | "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual"
                ) || (n.op_type() == "Cast" && n.int("to") == Some(DataType::Bool as i64))
                    || (matches!(n.op_type(), "Expand" | "Unsqueeze" | "Reshape" | "Slice" | "Identity" | "Transpose")
                        && self.is_boolean(&n.input[0]))
            }
            None => false,
        }
    }
}
