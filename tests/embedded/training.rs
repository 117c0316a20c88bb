//! Training steps on the embedded runtime.

use std::sync::Arc;

use offshoot::runtime::{Kind, Options, Runtime};
use offshoot::training::Operators;

use crate::common::{curves, steps};

fn tract() -> Arc<Runtime> {
    Runtime::start(&Options { kind: Kind::Tract, ..Options::default() }).unwrap()
}

/// Curves of a few dialects; the ONNX Runtime group has them all.
#[test]
fn loss_curves_equal_pytorch() {
    let runtime = tract();
    let few = ["fashion-vit", "timm-vit-unfused-ts17", "timm-swin-ts17", "hf-vit-ts17", "timm-beit-ts13"];
    let entries: Vec<_> =
        curves::golden().into_iter().filter(|e| few.iter().any(|f| e["file"].as_str().unwrap().contains(f))).collect();
    assert_eq!(entries.len(), few.len());
    let wrong = curves::check_all(&runtime, &entries, Operators::Standard);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn parts_of_a_step_are_what_they_are_by_hand() {
    let runtime = tract();
    steps::accumulation(&runtime, Operators::Standard);
    steps::updates_by_hand(&runtime, Operators::Standard);
    steps::stochastic_depth(&runtime, Operators::Standard);
    steps::distillation(&runtime, Operators::Standard);
    steps::not_finite(&runtime, Operators::Standard);
}

/// By hand, for two layers that are all contractions: what shapes tell of a step's memory.
#[test]
fn memory_grows_with_the_batch() {
    use offshoot::training::{Memory, Recipe};
    let mut model = offshoot::onnx::Model::open(crate::common::root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let recipe = Recipe { batch: 4, ..Recipe::default() };
    let memory = Memory::estimate(&model, [28, 28], &recipe).unwrap();
    // Value, two moments, twice, and a gradient, of 405,002 parameters.
    assert_eq!(memory.state, 405_002 * 4 * 7);
    // The same for any batch, and more than the tokens that enter and leave every layer.
    assert_eq!(memory.per_image, Memory::estimate(&model, [28, 28], &Recipe { batch: 8, ..recipe }).unwrap().per_image);
    assert!(memory.per_image > 8 * 2 * 50 * 64 * 4);
    assert_eq!(memory.batch(memory.state * 10 / 9 + 11 * memory.per_image), 9);
}
