//! What integration tests share: fixtures and their manifest.
#![allow(dead_code)]

pub mod curves;
pub mod densities;
pub mod forms;
pub mod gradients;
pub mod hash;
pub mod image_size;
pub mod rules;
pub mod steps;
pub mod surgery;

use std::path::{Path, PathBuf};

use offshoot::onnx::Model;
use serde_json::Value;

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

    /// Opens and prepares the fixture.
    pub fn open(&self) -> Model {
        let mut model = Model::open(&self.path).unwrap();
        offshoot::graph::prepare(&mut model).unwrap();
        model
    }
}

/// All fixtures of the manifest.
pub fn fixtures() -> Vec<Fixture> {
    let folder = root().join("fixtures/graphs");
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    manifest["fixtures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| Fixture { path: folder.join(e["file"].as_str().unwrap()), entry: e.clone() })
        .collect()
}
