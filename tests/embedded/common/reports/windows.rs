//! Another image size where windows do not fill the grid and tables of offsets are resampled in the graph (SAM of
//! transformers): the child was written and did not run, or ran with the offsets of the old grid.

use std::fs;
use std::sync::Arc;

use ndarray::{Array4, Axis, concatenate};
use offshoot::error::ErrorKind;
use offshoot::runtime::Runtime;
use serde_json::Value;

use crate::common::hash::values;
use crate::common::image_size::{at_size, open};
use crate::common::root;

const FOLDER: &str = "fixtures/reports/windows";

/// Children of every size say what a model of that size says (scripts/fixtures/windows.py), for one image and for two.
/// Where the exporter looked the offsets up itself, another size is refused.
pub fn children_of_other_sizes_are_right(runtime: &Arc<Runtime>) {
    let golden: Value = serde_json::from_slice(&fs::read(root().join(FOLDER).join("golden.json")).unwrap()).unwrap();
    let model = open("reports/windows/sam-ts.onnx");
    for (size, expected) in golden.as_object().unwrap() {
        let side: usize = size.parse().unwrap();
        let child = at_size(&model, [side, side]).unwrap_or_else(|e| panic!("{side}: {e}"));
        let x = Array4::from_shape_vec((1, 3, side, side), values(3 * side * side, 9)).unwrap();
        let both = concatenate(Axis(0), &[x.view(), x.view()]).unwrap();
        let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        for (batch, x) in [(1, &x), (2, &both)] {
            let found = runtime.load(&child, batch, [side, side]).and_then(|mut s| s.run(x.view()));
            let found = found.unwrap_or_else(|e| panic!("{side}, batch {batch}: {e}"));
            assert_eq!(found[0].len(), batch * expected.len(), "{side}");
            for (f, e) in found[0].iter().zip(expected.iter().cycle()) {
                assert!((f64::from(*f) - e).abs() < 2e-4, "{side}, batch {batch}: {f}, not {e}");
            }
        }
    }
    let folded = open("reports/windows/sam-dynamo.onnx");
    for side in [16, 24, 32, 56] {
        let error = at_size(&folded, [side, side]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("is trained for one size of the grid"), "{error}");
    }
}
