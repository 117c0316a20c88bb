//! Operators of ONNX's newest operator sets: what they make has the dimensions and the numbers that ONNX's own
//! reference evaluator says.

use std::path::Path;

use ndarray::{Array4, ArrayD, IxDyn};
use offshoot::axes::{Assumption, Typing};
use offshoot::onnx::Model;
use offshoot::runtime::{Options, Runtime, RuntimeKind};

use crate::common::surgery::{error, run};

/// The embedded runtime has nothing for it, and it is made of no other operators.
const TYPED_ONLY: [&str; 1] = ["bitcast"];

#[test]
fn the_newest_operators_compute_what_onnx_says() {
    let folder = Path::new("fixtures/operators");
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let runtime =
        Runtime::start(&Options { kind: RuntimeKind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    let floats = |value: &serde_json::Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let mut computed = 0;
    for (name, said) in golden.as_object().unwrap() {
        let model = Model::open(folder.join(format!("{name}.onnx"))).unwrap();
        let assumption = Assumption { batch: 1, image: [1, 1] };
        let typing = Typing::with(&model, assumption).unwrap_or_else(|e| panic!("{name}: {e}"));
        typing.check_consistent().unwrap_or_else(|e| panic!("{name}: {e}"));
        let outputs = said["outputs"].as_array().unwrap().iter().map(|output| {
            let shape: Vec<usize> =
                output["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            ArrayD::from_shape_vec(IxDyn(&shape), floats(&output["values"])).unwrap()
        });
        let outputs: Vec<ArrayD<f32>> = outputs.collect();
        for (info, output) in model.graph().output.iter().zip(&outputs) {
            assert_eq!(typing.shape(info.name()).unwrap(), output.shape(), "{name}: {}", info.name());
        }
        if TYPED_ONLY.contains(&name.as_str()) {
            continue;
        }
        let x = floats(&said["x"]);
        let x = Array4::from_shape_vec((1, x.len(), 1, 1), x).unwrap();
        let found = run(&runtime, &model, &x).unwrap_or_else(|e| panic!("{name}: {e}"));
        let error = error(&found, &outputs);
        assert!(error < 1e-5, "{name}: {error}");
        computed += 1;
    }
    assert!(computed >= 14, "only {computed} graphs were computed");
}
