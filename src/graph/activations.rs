//! Products with an activation in them, taken apart.
//!
//! ONNX Runtime's optimiser writes a convolution or Gemm and the activation behind it as one node (`com.microsoft`
//! FusedConv and FusedGemm, its own contract). It does so again whenever it loads a model, so nothing is lost by
//! writing two.

use super::names::Names;
use super::nodes::{Attributes, float_attribute, node as new_node};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{DataType, tensor_from_f32};

/// The attributes of the fused nodes that their product does not have.
const OWN: &[&str] = &["activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma"];

/// Takes every FusedConv and FusedGemm apart. One with an activation that is not known stays as it is.
pub(super) fn separate(graph: &mut GraphProto) {
    let fused = |n: &NodeProto| n.domain() == "com.microsoft" && matches!(n.op_type(), "FusedConv" | "FusedGemm");
    if !graph.node.iter().any(fused) {
        return;
    }
    let mut names = Names::new(graph);
    for mut node in std::mem::take(&mut graph.node) {
        if !fused(&node) || !is_known(&node) {
            graph.node.push(node);
            continue;
        }
        let Some(output) = node.output.first().cloned() else { continue };
        let params = parameters(&node);
        let activation = node.string("activation").unwrap_or_default().to_string();
        let product = names.fresh(&format!("{output}_product"));
        // FusedConv adds its fourth operand before the activation.
        let added = (node.op_type() == "FusedConv" && node.input.len() > 3).then(|| node.input.split_off(3).remove(0));
        let sum = added.filter(|z| !z.is_empty()).map(|z| {
            let sum = names.fresh(&format!("{output}_sum"));
            new_node("Add", &[&product, &z], &[&sum], vec![])
        });
        let last = sum.as_ref().map_or(&product, |s| &s.output[0]).clone();
        let mut inputs = vec![last];
        let attributes = match activation.as_str() {
            "LeakyRelu" => vec![float_attribute("alpha", params[0])],
            "HardSigmoid" => vec![float_attribute("alpha", params[0]), float_attribute("beta", params[1])],
            "Clip" => {
                for bound in &params[..2] {
                    let name = names.fresh("offshoot_bound");
                    graph.initializer.push(tensor_from_f32(name.clone(), DataType::Float, &[], &[*bound]));
                    inputs.push(name);
                }
                vec![]
            }
            _ => vec![],
        };
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let end = new_node(&activation, &inputs, &[&output], attributes);
        node.op_type = Some(node.op_type().trim_start_matches("Fused").to_string());
        node.domain = None;
        node.output = vec![product];
        node.attribute.retain(|a| !OWN.contains(&a.name()));
        graph.node.push(node);
        graph.node.extend(sum);
        graph.node.push(end);
    }
}

fn is_known(node: &NodeProto) -> bool {
    let wanted = match node.string("activation") {
        Some("Relu" | "Tanh" | "Sigmoid") => 0,
        Some("LeakyRelu") => 1,
        Some("HardSigmoid" | "Clip") => 2,
        _ => return false,
    };
    parameters(node).len() >= wanted && node.output.len() == 1
}

/// What the activation is given: a list, or attributes of their own.
fn parameters(node: &NodeProto) -> Vec<f32> {
    match node.attribute("activation_params") {
        Some(list) => list.floats.clone(),
        None => ["alpha", "beta", "gamma"].iter().map_while(|n| node.float(&format!("activation_{n}"))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{floats_attribute, string_attribute};

    fn fused(op: &str, inputs: &[&str], activation: &str, params: &[f32]) -> GraphProto {
        let mut node = new_node(op, inputs, &["y"], vec![string_attribute("activation", activation)]);
        node.domain = Some("com.microsoft".into());
        node.attribute.push(floats_attribute("activation_params", params));
        GraphProto { node: vec![node], ..Default::default() }
    }

    fn written(graph: &GraphProto) -> Vec<String> {
        let line = |n: &NodeProto| format!("{}({}) -> {}", n.op_type(), n.input.join(", "), n.output.join(", "));
        graph.node.iter().map(line).collect()
    }

    #[test]
    fn a_product_and_its_activation_are_two_nodes() {
        let mut graph = fused("FusedConv", &["x", "w", "b"], "Relu", &[]);
        separate(&mut graph);
        assert_eq!(written(&graph), ["Conv(x, w, b) -> y_product", "Relu(y_product) -> y"]);
        assert!(graph.node.iter().all(|n| n.domain().is_empty() && n.attribute.is_empty()));
    }

    #[test]
    fn what_a_convolution_adds_comes_before_the_activation() {
        let mut graph = fused("FusedConv", &["x", "w", "", "z"], "Clip", &[0.0, 6.0]);
        separate(&mut graph);
        let lines = ["Conv(x, w, ) -> y_product", "Add(y_product, z) -> y_sum"];
        assert_eq!(written(&graph)[..2], lines);
        assert_eq!(graph.node[2].op_type(), "Clip");
        assert_eq!(graph.node[2].input[0], "y_sum");
        assert_eq!(graph.initializer.len(), 2);
    }

    #[test]
    fn an_activation_that_is_not_known_stays() {
        for (activation, params) in [("Warp", &[][..]), ("LeakyRelu", &[])] {
            let mut graph = fused("FusedGemm", &["x", "w"], activation, params);
            separate(&mut graph);
            assert_eq!(written(&graph), ["FusedGemm(x, w) -> y"]);
        }
    }
}
