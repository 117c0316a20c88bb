//! Heads in one axis with the batch, whose number is computed back by a division of whole numbers: a child ran at some
//! batches and not at others. And places that index an axis of heads, which stayed those of the ancestor.

use std::fs;
use std::sync::Arc;

use ndarray::{Array4, Axis, Slice};
use offshoot::axes::batch_fault;
use offshoot::onnx::Model;
use offshoot::runtime::Runtime;
use serde_json::Value;

use crate::common::binary::{done, text};
use crate::common::hash::values;
use crate::common::root;

const FOLDER: &str = "fixtures/reports/joined";

/// Children with any number of heads say at every batch what PyTorch says where the other heads write nothing; with
/// more heads than there were, they say what the ancestor says.
pub fn every_batch_is_right(runtime: &Arc<Runtime>) {
    let golden: Vec<Value> =
        serde_json::from_slice(&fs::read(root().join(FOLDER).join("golden.json")).unwrap()).unwrap();
    assert_eq!(golden.len(), 5);
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let images = Array4::from_shape_vec((3, 3, 16, 16), values(3 * 3 * 256, 3)).unwrap();
    for entry in &golden {
        let model = format!("{FOLDER}/{}", entry["file"].as_str().unwrap());
        let outputs = entry["outputs"].as_object().unwrap();
        let all = outputs.len();
        for heads in 1..=2 * all {
            let expected: Vec<f64> =
                outputs[&heads.min(all).to_string()].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            done(&["grow", &model, "--no-images", "--heads", &heads.to_string(), "--force", "-o", text(&child)]);
            let grown = Model::open(&child).unwrap();
            assert_eq!(batch_fault(&grown), None, "{model} with {heads} heads");
            for batch in 1..=3 {
                let x = images.slice_axis(Axis(0), Slice::from(..batch));
                let found = runtime.load(&grown, batch, [16, 16]).and_then(|mut s| s.run(x));
                let found = found.unwrap_or_else(|e| panic!("{model} with {heads} heads, batch {batch}: {e}"));
                for (f, e) in found[0].iter().zip(&expected) {
                    let far = (f64::from(*f) - e).abs();
                    assert!(far < 1e-4, "{model} with {heads} heads, batch {batch}: {f}, not {e}");
                }
            }
        }
    }
}
