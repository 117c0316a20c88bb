//! Training steps on the embedded runtime.

use offshoot::training::Operators;

use crate::common::{curves, steps, tract};

/// Curves of a few dialects; the ONNX Runtime group has them all.
#[test]
fn loss_curves_equal_pytorch() {
    let runtime = tract();
    let few = ["fashion-vit", "timm-vit-unfused-ts17", "timm-swin-ts17", "hf-vit-ts17", "timm-beit-ts13"];
    let entries: Vec<_> =
        curves::golden().into_iter().filter(|e| few.iter().any(|f| e["file"].as_str().unwrap().contains(f))).collect();
    assert_eq!(entries.len(), few.len());
    for recompute in [false, true] {
        let wrong = curves::check_all(&runtime, &entries, Operators::Standard, recompute);
        assert!(wrong.is_empty(), "recompute {recompute}: {wrong:#?}");
    }
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

#[test]
fn a_session_trains_without_a_command_line() {
    use offshoot::data::DatasetOptions;
    use offshoot::opening::Opening;
    use offshoot::training::{Data, HoldOut, Options, Recipe, RunOptions, RunRecord, Setup};

    let root = crate::common::root();
    let opening = Opening { pictures: Some(Default::default()), ..Opening::default() };
    let model = opening.open(&root.join("models/fashion-vit.onnx"), None).unwrap().model;
    let images = root.join("fixtures/fashion-images.idx3-ubyte");
    let cut = HoldOut { share: Some(0.2), ..HoldOut::default() };
    let data = Data::open(&images, None, &DatasetOptions::default(), cut, &()).unwrap();
    let options = Options {
        recipe: Recipe { batch: 16, ..Recipe::default() },
        plan: RunOptions { steps: Some(2), learning_rate: Some(1e-4), ..RunOptions::default() },
        ..Options::default()
    };
    let mut setup = Setup::new(tract(), model, data, None, options, &()).unwrap();
    let (mut session, prepared) = setup.session(&()).unwrap();
    assert_eq!((session.images(), prepared.batch), ([240, 60], None));
    let mut record = RunRecord::default();
    let summary = session.fit(&mut record).unwrap();
    assert_eq!((record.steps.len(), session.trainer.updates), (2, 2));
    // The bundled ancestor was trained on such images.
    assert!(summary.start.unwrap().val_top1.unwrap() > 0.8);
}

/// Where a layer is computed again, nothing inside of it is read by the backward pass: it need not be kept.
#[test]
fn values_inside_of_layers_are_computed_again() {
    use std::collections::{HashMap, HashSet};

    use offshoot::anatomy::Anatomy;
    use offshoot::axes::Typing;
    use offshoot::training::{Memory, Recipe, Steps, trainable_form};

    let mut model = offshoot::onnx::Model::open(crate::common::root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let (form, _, _) = trainable_form(&model, 4, [28, 28]).unwrap();
    let typing = Typing::new(&form).unwrap();
    let forward: HashSet<&str> = typing.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let outside: HashSet<String> = Anatomy::new(&typing)
        .unwrap()
        .layers
        .into_iter()
        .flat_map(|l| [l.residual_in.unwrap(), l.residual_out.unwrap()])
        .collect();
    let kept = |recompute: bool| -> (usize, usize) {
        let recipe = Recipe { batch: 4, recompute, ..Recipe::default() };
        let step = Steps::new(&model, [28, 28], &recipe, &[], &[]).unwrap().step;
        let graph = step.model.graph();
        let is_forward = |n: &offshoot::onnx::proto::NodeProto| n.output.iter().any(|o| forward.contains(o.as_str()));
        let read: HashSet<&str> = (graph.node.iter().filter(|n| !is_forward(n)).flat_map(|n| &n.input))
            .map(String::as_str)
            .filter(|x| forward.contains(x) && !typing.is_constant(x) && !outside.contains(*x))
            .collect();
        let mut operators: HashMap<&str, usize> = HashMap::new();
        graph.node.iter().for_each(|n| *operators.entry(n.op_type()).or_default() += 1);
        (read.len(), operators["Softmax"])
    };
    let ((all, once), (few, twice)) = (kept(false), kept(true));
    // Behind the last layer there is a norm and the classifier.
    assert!(all > 8 * 10 && few < 12, "{all} and {few}");
    assert_eq!((once, twice), (8, 16));
    let memory = |recompute: bool| {
        Memory::estimate(&model, [28, 28], &Recipe { batch: 4, recompute, ..Recipe::default() }).unwrap().per_image
    };
    assert!(memory(true) * 4 < memory(false), "{} and {}", memory(true), memory(false));
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
