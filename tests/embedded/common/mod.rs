//! What integration tests share: fixtures and their manifest.
#![allow(dead_code)]

pub mod binary;
pub mod curves;
pub mod declared;
pub mod densities;
pub mod determinism;
pub mod forms;
pub mod gradients;
pub mod hash;
pub mod image_size;
pub mod int8;
pub mod lengths;
pub mod nodes;
pub mod precision;
pub mod reports;
pub mod rules;
pub mod steps;
pub mod surgery;
pub mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array4;
use offshoot::onnx::Model;
use offshoot::runtime::{Options, Runtime, RuntimeKind};
use serde_json::Value;

/// The embedded runtime.
pub fn tract() -> Arc<Runtime> {
    Runtime::start(&Options { kind: RuntimeKind::Tract, ..Options::default() }).unwrap()
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tiny exported graph and what its exporting model says of itself.
pub struct Fixture {
    pub path: PathBuf,
    pub entry: Value,
}

impl Fixture {
    pub fn name(&self) -> &str {
        self.entry["file"].as_str().unwrap()
    }

    /// True where the runtime has all operators of the fixture.
    pub fn runs_on(&self, runtime: &Runtime) -> bool {
        let name = if runtime.kind == RuntimeKind::Tract { "tract" } else { "onnxruntime" };
        self.entry["runtimes"].as_array().is_none_or(|r| r.iter().any(|r| r == name))
    }

    /// The largest relative error of outputs that should be the same.
    pub fn tolerance(&self) -> f32 {
        self.entry["tolerance"].as_f64().unwrap_or(1e-5) as f32
    }

    /// Images [n, channels, height, width] with their axes as the fixture takes them.
    pub fn ordered(&self, x: Array4<f32>) -> Array4<f32> {
        match self.entry["channels_last"] == true {
            true => x.permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned(),
            false => x,
        }
    }

    /// Opens and prepares the fixture.
    pub fn open(&self) -> Model {
        let mut model = Model::open(&self.path).unwrap();
        offshoot::graph::prepare(&mut model).unwrap();
        model
    }
}

/// The fixtures of one folder's manifest.
fn listed(folder: &str) -> Vec<Fixture> {
    let folder = root().join("fixtures").join(folder);
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    manifest["fixtures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| Fixture { path: folder.join(e["file"].as_str().unwrap()), entry: e.clone() })
        .collect()
}

/// The exported graphs of the most common families.
pub fn fixtures() -> Vec<Fixture> {
    listed("graphs").into_iter().filter(|f| !f.name().starts_with("family-")).collect()
}

/// Those, a graph for every other form and family, and those of other exporters than PyTorch's.
pub fn all_fixtures() -> Vec<Fixture> {
    let mut all = listed("graphs");
    all.extend(listed("dialects"));
    all.extend(listed("exporters"));
    all
}
