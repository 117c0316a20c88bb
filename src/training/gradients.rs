//! A graph with its gradients: the walk back over the graph, from what is differentiated to the weights.

use std::collections::{HashMap, HashSet};

use super::operators::Operators;
use super::rules;
use super::tape::{Backward, float};
use crate::axes::Typing;
use crate::error::Result;
use crate::graph::{Builder, element_types};
use crate::onnx::node_label;
use crate::onnx::proto::{GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use crate::ops::{self, Mark};
use crate::runtime::kernels::DOMAIN;

/// A graph with its gradients.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Forward and backward in one graph. Its outputs are those of the forward graph; append what you need.
    pub graph: GraphProto,
    /// The value that holds the gradient of each trained weight, by the weight's name. A weight that does not influence
    /// the outputs has none.
    pub of: HashMap<String, String>,
    /// Operator sets that the backward nodes need beside the default one; a model may import some of them already.
    pub imports: Vec<OperatorSetIdProto>,
}

impl Gradients {
    /// Differentiates a typed graph of fixed batch size, in the form that
    /// [`differentiable`](crate::runtime::differentiable) gives.
    ///
    /// `seeds` are pairs of a value of the graph and the value that holds the gradient of the loss with respect to it,
    /// which must be an input, an initializer or made by `extra`: nodes that stand behind the forward graph (the loss).
    /// A seed has the shape and the element type of its value.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) for an operator without a gradient rule on the
    /// way; it names the node.
    pub fn new(
        typing: &Typing,
        trained: &HashSet<String>,
        seeds: &[(String, String)],
        extra: (Vec<NodeProto>, Vec<TensorProto>),
        operators: Operators,
    ) -> Result<Gradients> {
        let mut graph = typing.graph.clone();
        graph.node.extend(extra.0);
        graph.initializer.extend(extra.1);
        let types = element_types(typing.graph);
        let mut needs: HashSet<&str> = trained.iter().map(String::as_str).collect();
        // Results of shape arithmetic depend on shapes alone; integers and booleans have no gradient.
        let sloped = |node: &NodeProto| {
            !ops::of(node).is(Mark::Flat) && !node.output.iter().any(|o| typing.known.contains_key(o.as_str()))
        };
        for node in typing.graph.node.iter().filter(|n| sloped(n)) {
            if node.input.iter().any(|x| needs.contains(x.as_str())) {
                needs
                    .extend(node.output.iter().map(String::as_str).filter(|o| types.get(o).is_some_and(|t| float(*t))));
            }
        }
        let builder = Builder::new(&graph, typing.opset, "gradient");
        let mut tape = Backward::new(typing, operators, types, builder, needs);
        for (value, gradient) in seeds {
            tape.accumulate(value, gradient.clone());
        }
        for (k, node) in typing.graph.node.iter().enumerate().rev() {
            let wanted = sloped(node) && node.input.iter().any(|x| tape.requires_grad(x));
            if !wanted || !node.output.iter().any(|o| tape.has_grad(o)) {
                continue;
            }
            tape.go_to(k, node);
            let given: Vec<Option<String>> = node.output.iter().map(|o| tape.grad(o)).collect();
            rules::backward(&mut tape, node, &given).map_err(|e| e.in_node(node_label(node)))?;
        }
        let mut of = HashMap::new();
        for weight in trained {
            if let Some(gradient) = tape.grad(weight) {
                of.insert(weight.clone(), gradient);
            }
        }
        let graph = tape.finish(graph, &of);
        let imports = ["com.microsoft", DOMAIN]
            .into_iter()
            .filter(|domain| graph.node.iter().any(|n| n.domain() == *domain))
            .map(|domain| OperatorSetIdProto { domain: Some(domain.into()), version: Some(1) })
            .collect();
        Ok(Gradients { graph, of, imports })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tape::FEW_KERNELS;
    use super::*;
    use crate::axes::Assumption;
    use crate::error::ErrorKind;
    use crate::graph::{int_attribute, node as new_node};
    use crate::onnx::proto::ModelProto;
    use crate::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw, tensor_info};

    fn model(nodes: Vec<NodeProto>, weights: &[(&str, [usize; 2], DataType)]) -> Model {
        let import = OperatorSetIdProto { domain: None, version: Some(17) };
        let graph = GraphProto {
            node: nodes,
            initializer: weights
                .iter()
                .map(|(n, s, kind)| tensor_from_f32(*n, *kind, s, &vec![0.5; s[0] * s[1]]))
                .collect(),
            input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(3)])],
            output: vec![tensor_info("y", DataType::Float, &[Some(2), Some(5)])],
            ..Default::default()
        };
        Model::from_proto(ModelProto { opset_import: vec![import], graph: Some(graph), ..Default::default() })
    }

    fn differentiate(model: &Model, trained: &[&str]) -> Result<Gradients> {
        let typing = Typing::with(model, Assumption::default())?;
        let trained = trained.iter().map(|s| s.to_string()).collect();
        let seed = tensor_from_f32("seed", DataType::Float, &[2, 5], &[1.0; 10]);
        Gradients::new(&typing, &trained, &[("y".into(), "seed".into())], (vec![], vec![seed]), Operators::Standard)
    }

    /// x W1, squashed, W2.
    fn two_layers() -> Model {
        let nodes = vec![
            new_node("MatMul", &["x", "w1"], &["h"], vec![]),
            new_node("Tanh", &["h"], &["t"], vec![]),
            new_node("MatMul", &["t", "w2"], &["y"], vec![]),
        ];
        model(nodes, &[("w1", [3, 4], DataType::Float), ("w2", [4, 5], DataType::Float)])
    }

    fn backward(gradients: &Gradients) -> Vec<&str> {
        gradients.graph.node.iter().filter(|n| n.name().starts_with("gradient_")).map(|n| n.op_type()).collect()
    }

    #[test]
    fn nothing_is_computed_for_what_is_not_trained() {
        let model = two_layers();
        let last = differentiate(&model, &["w2"]).unwrap();
        assert_eq!(backward(&last), ["Gemm"]);
        assert!(!last.of.contains_key("w1"));
        let both = differentiate(&model, &["w1", "w2"]).unwrap();
        let operators = backward(&both);
        // The input's own gradient would be a third product with a weight.
        assert_eq!(operators.iter().filter(|o| **o == "Gemm").count(), 3, "{operators:?}");
        assert!(differentiate(&model, &[]).unwrap().of.is_empty());
    }

    /// The gradient of what was dropped is zero, and which values those were changes from run to run.
    #[test]
    fn what_is_dropped_at_random_is_refused() {
        let dropped = |share: f32, training: bool| {
            let mut model = two_layers();
            let graph = model.graph_mut();
            graph.node.insert(2, new_node("Dropout", &["t", "share", "training"], &["d"], vec![]));
            graph.node[3].input[0] = "d".into();
            graph.initializer.push(tensor_from_f32("share", DataType::Float, &[], &[share]));
            graph.initializer.push(tensor_from_raw("training", DataType::Bool, &[], vec![u8::from(training)].into()));
            differentiate(&model, &["w1"])
        };
        let error = dropped(0.5, true).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("evaluation mode"), "{error}");
        for (share, training) in [(0.5, false), (0.0, true)] {
            assert!(dropped(share, training).is_ok(), "{share} {training}");
        }
    }

    #[test]
    fn a_weight_that_is_used_twice_gets_the_sum() {
        let nodes = vec![
            new_node("MatMul", &["x", "w"], &["h"], vec![]),
            new_node("MatMul", &["x", "w"], &["k"], vec![]),
            new_node("Add", &["h", "k"], &["y"], vec![]),
        ];
        let gradients = differentiate(&model(nodes, &[("w", [3, 5], DataType::Float)]), &["w"]).unwrap();
        let sum = gradients.graph.node.iter().find(|n| n.output[0] == gradients.of["w"]).unwrap();
        assert_eq!(sum.op_type(), "Add");
    }

    #[test]
    fn results_of_shape_arithmetic_are_constants() {
        let nodes = vec![
            new_node("MatMul", &["x", "w"], &["h"], vec![]),
            new_node("Shape", &["h"], &["s"], vec![]),
            new_node("Reshape", &["h", "s"], &["y"], vec![]),
        ];
        let graph = differentiate(&model(nodes, &[("w", [3, 5], DataType::Float)]), &["w"]).unwrap().graph;
        assert!(graph.node.iter().all(|n| n.op_type() != "Shape"));
        let shape = graph.initializer.iter().find(|t| t.name() == "s").unwrap();
        assert_eq!(crate::onnx::to_i64(shape).unwrap(), [2, 5]);
    }

    #[test]
    fn zeros_around_a_gradient_are_not_constants() {
        let nodes = vec![
            new_node("MatMul", &["x", "w"], &["h"], vec![]),
            new_node("Split", &["h"], &["a", "b"], vec![int_attribute("axis", 1)]),
            new_node("MatMul", &["b", "v"], &["y"], vec![]),
        ];
        let model = model(nodes, &[("w", [3, 4], DataType::Float), ("v", [2, 5], DataType::Float)]);
        let gradients = differentiate(&model, &["w"]).unwrap();
        assert!(backward(&gradients).contains(&"Pad"), "{:?}", backward(&gradients));
        let constants = gradients.graph.initializer.iter().filter(|t| t.name().starts_with("gradient_constant"));
        for t in constants.filter(|t| t.data_type() == DataType::Float as i32) {
            assert!(crate::onnx::element_count(t).unwrap() <= 1, "{} {:?}", t.name(), t.dims);
        }
    }

    #[test]
    fn gradients_in_bfloat16_are_concatenated() {
        let cast = |from: &str, to: &str, kind: DataType| {
            new_node("Cast", &[from], &[to], vec![int_attribute("to", kind as i64)])
        };
        let nodes = vec![
            cast("x", "c", FEW_KERNELS),
            new_node("MatMul", &["c", "w"], &["h"], vec![]),
            new_node("Split", &["h"], &["a", "b", "d"], vec![int_attribute("axis", 1)]),
            new_node("MatMul", &["b", "v"], &["z"], vec![]),
            cast("z", "y", DataType::Float),
        ];
        let model = model(nodes, &[("w", [3, 6], FEW_KERNELS), ("v", [2, 5], FEW_KERNELS)]);
        let gradients = differentiate(&model, &["w"]).unwrap();
        let concat = gradients.graph.node.iter().find(|n| n.op_type() == "Concat").unwrap();
        let constant = |x: &String| gradients.graph.initializer.iter().any(|t| t.name() == x && t.dims == [2, 2]);
        assert_eq!(concat.input.iter().map(constant).collect::<Vec<_>>(), [true, false, true]);
        assert!(!backward(&gradients).contains(&"Pad"));
    }

    #[test]
    fn gradients_have_the_element_type_of_their_value() {
        let half = DataType::Float16;
        let nodes = vec![
            new_node("Cast", &["x"], &["h"], vec![int_attribute("to", half as i64)]),
            new_node("MatMul", &["h", "w"], &["p"], vec![]),
            new_node("Sigmoid", &["p"], &["s"], vec![]),
            new_node("Cast", &["s"], &["y"], vec![int_attribute("to", DataType::Float as i64)]),
        ];
        let gradients = differentiate(&model(nodes, &[("w", [3, 5], half)]), &["w"]).unwrap();
        let types = element_types(&gradients.graph);
        assert_eq!(types[gradients.of["w"].as_str()], half);
        let one = gradients.graph.initializer.iter().find(|t| t.name().starts_with("gradient_constant")).unwrap();
        assert_eq!(one.data_type(), half as i32);
    }

    #[test]
    fn an_operator_without_a_rule_is_named() {
        let nodes = vec![
            new_node("MatMul", &["x", "w"], &["h"], vec![]),
            NodeProto { name: Some("the_node".into()), ..new_node("Shrink", &["h"], &["y"], vec![]) },
        ];
        let error = differentiate(&model(nodes, &[("w", [3, 5], DataType::Float)]), &["w"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("the_node") && error.to_string().contains("Shrink"), "{error}");
        assert!(error.hint_text().is_some());
    }
}
