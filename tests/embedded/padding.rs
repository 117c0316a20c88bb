//! Attention without padding (`com.microsoft` PackedAttention, PackedMultiHeadAttention), which no runtime has on the
//! processor: surgery on it is the same as on the operators that it stands for.

use std::collections::HashMap;

use offshoot::anatomy::{Anatomy, Roles};
use offshoot::axes::Typing;
use offshoot::axes::resize::{ResizePlan, resize};
use offshoot::density::probe;
use offshoot::descendant::{GrowOptions, Heads, grow};
use offshoot::error::ErrorKind;
use offshoot::graph::node;
use offshoot::learngene::Learngene;
use offshoot::onnx::proto::{GraphProto, NodeProto};
use offshoot::onnx::{DataType, Model, tensor_from_raw};
use offshoot::runtime::differentiable;

use crate::common::{Fixture, all_fixtures};

fn fixture(name: &str) -> Fixture {
    all_fixtures().into_iter().find(|f| f.name() == name).unwrap()
}

fn microsoft(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let mut made = node(op, inputs, outputs, vec![]);
    made.domain = Some("com.microsoft".into());
    made
}

/// Every Attention and MultiHeadAttention as its counterpart without padding.
fn packed(graph: &GraphProto) -> GraphProto {
    let mut out = graph.clone();
    out.node.clear();
    let counts = [17i32; 2].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    out.initializer.push(tensor_from_raw("token_counts", DataType::Int32, &[2], counts.into()));
    for n in &graph.node {
        let operands = match n.op_type() {
            "Attention" => 1,
            "MultiHeadAttention" => 3,
            _ => {
                out.node.push(n.clone());
                continue;
            }
        };
        let result = n.output[0].clone();
        let mut attention = n.clone();
        attention.op_type = Some(format!("Packed{}", n.op_type()));
        attention.output = vec![format!("{result}_kept")];
        for (j, x) in n.input[..operands].iter().enumerate() {
            let [kept, offsets, lengths, most] =
                ["kept", "offsets", "lengths", "most"].map(|part| format!("{result}_{part}_{x}"));
            out.node.push(microsoft("RemovePadding", &[x, "token_counts"], &[&kept, &offsets, &lengths, &most]));
            attention.input[j] = kept;
        }
        let first = &out.node[out.node.len() - operands].output;
        let (offsets, lengths) = (first[1].clone(), first[2].clone());
        attention.input.extend([offsets.clone(), lengths]);
        out.node.push(attention);
        out.node.push(microsoft("RestorePadding", &[&format!("{result}_kept"), &offsets], &[&result]));
    }
    out
}

fn with(model: &Model, graph: GraphProto) -> Model {
    let mut out = model.clone();
    *out.graph_mut() = graph;
    out
}

/// What surgery may change, by names: operands, attributes and weights of all nodes but the attentions' own operands.
fn contents(graph: &GraphProto) -> HashMap<String, Vec<u8>> {
    use prost::Message;
    let weights = graph.initializer.iter().map(|t| (t.name().to_string(), t.encode_to_vec()));
    let nodes = graph.node.iter().map(|n| (format!("node {}", n.output[0]), n.encode_to_vec()));
    weights.chain(nodes).collect()
}

#[test]
fn attention_without_padding_is_resized_as_what_it_stands_for() {
    for name in ["microsoft.onnx", "microsoft-multi-head.onnx"] {
        let plain = fixture(name).open();
        let unpadded = with(&plain, packed(plain.graph()));
        let halved = |model: &Model| {
            let typing = Typing::new(model).unwrap();
            assert!(typing.conflicts.is_empty(), "{name}");
            let anatomy = Anatomy::new(&typing).unwrap();
            let mut plan = ResizePlan::default();
            for layer in &anatomy.layers {
                assert_eq!(layer.head_count(&typing), 4, "{name}");
                assert_eq!(typing.factors.size(&layer.queries), 17, "{name}");
                plan.gather(&typing.factors, layer.head_factors(&typing)[0], vec![2, 0]).unwrap();
                assert!(!Roles::new(&typing).summing(layer).unwrap().is_empty());
            }
            assert_eq!(anatomy.layers.len(), 2, "{name}");
            assert_eq!((anatomy.grid.unwrap().patches, anatomy.prefix_tokens), ([4, 4], 1), "{name}");
            resize(&typing, &plan).unwrap()
        };
        let truth = packed(&halved(&plain));
        assert_eq!(contents(&halved(&unpadded)), contents(&truth), "{name}");
    }
}

#[test]
fn a_child_without_padding_has_the_weights_of_one_with_padding() {
    for name in ["microsoft.onnx", "microsoft-multi-head.onnx"] {
        let plain = fixture(name).open();
        let grown = |model: &Model| {
            let typing = Typing::new(model).unwrap();
            let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
            let child = grow(model, &gene, &GrowOptions { heads: Heads::Count(2), ..GrowOptions::default() }).unwrap();
            let mut tensors: Vec<_> =
                child.model.graph().initializer.iter().map(|t| (t.dims.clone(), t.raw_data().to_vec())).collect();
            tensors.retain(|(dims, _)| dims.len() == 2 || dims.len() == 1 && dims[0] > 2);
            tensors.sort();
            tensors
        };
        assert_eq!(grown(&plain), grown(&with(&plain, packed(plain.graph()))), "{name}");
    }
}

#[test]
fn densities_and_gradients_of_attention_without_padding_are_refused() {
    let plain = fixture("microsoft.onnx").open();
    let unpadded = with(&plain, packed(plain.graph()));
    let typing = Typing::new(&unpadded).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    for error in [probe(&unpadded, &typing, &anatomy).unwrap_err(), differentiable(&typing).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("PackedAttention"), "{error}");
        assert!(error.to_string().contains("CUDA"), "{error}");
    }
}
