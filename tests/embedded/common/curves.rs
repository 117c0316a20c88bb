//! Loss curves of 50 steps against PyTorch's (fixtures/training/curves.json, made by scripts/golden/curve.py).

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayD, IxDyn};
use offshoot::axes::Typing;
use offshoot::onnx::Model;
use offshoot::runtime::Runtime;
use offshoot::training::{Feeds, Loss, Operators, RateCurve, Recipe, Schedule, TARGETS, Term, Trainer, teacher_input};
use serde_json::Value;

use super::hash::{hash, values};
use super::root;

const STEPS: u64 = 50;
const BATCHES: u32 = 5;
/// Seeds of the hash; batches count on from there.
const INPUT: u32 = 1000;
const TARGET: u32 = 2000;
const LABEL: u32 = 3000;

/// The curves that PyTorch made.
pub fn golden() -> Vec<Value> {
    let text = std::fs::read(root().join("fixtures/training/curves.json")).unwrap();
    serde_json::from_slice::<Vec<Value>>(&text).unwrap()
}

/// Trains one model as the script did; returns the largest relative difference of a loss.
pub fn check(runtime: &Arc<Runtime>, entry: &Value, operators: Operators, recompute: bool) -> Result<f64, String> {
    let file = entry["file"].as_str().unwrap();
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let (batch, classes) = (number(&entry["batch"]), entry["classes"].as_u64().map_or(0, |n| n as usize));
    let image: Vec<usize> = entry["image"].as_array().unwrap().iter().map(number).collect();
    let mut model = Model::open(root().join(file)).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let output = model.graph().output[0].name().to_string();
    let imitation = Term::Imitation { student: output.clone(), teacher: output.clone() };
    let loss = match classes {
        0 => Loss { terms: vec![(1.0, imitation)], output: None },
        _ => Loss::cross_entropy(0.1),
    };
    let recipe = Recipe { batch, loss, weight_decay: 0.05, operators, recompute, ..Recipe::default() };
    let trained: Vec<&str> = entry["trained"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let frozen = frozen(&model, &image, batch, &trained);
    let mut trainer = Trainer::new(runtime, &model, [image[1], image[2]], &recipe, &[], &frozen)
        .map_err(|e| format!("{file}: {e}"))?;
    let schedule = Schedule { shape: RateCurve::Cosine, rate: 1e-3, minimum: 1e-5, warmup: 5, total: STEPS };
    let shape = {
        let typing = Typing::new(&model).unwrap();
        let mut shape = typing.shape(&output).unwrap();
        shape[0] = batch;
        shape
    };
    let input = trainer.input.clone();
    let mut worst = 0f64;
    for step in 0..STEPS {
        let k = (step % u64::from(BATCHES)) as u32;
        let x = Array4::from_shape_vec(
            (batch, image[0], image[1], image[2]),
            values(batch * image.iter().product::<usize>(), INPUT + k),
        )
        .unwrap();
        let target = match classes {
            0 => ArrayD::from_shape_vec(IxDyn(&shape), values(shape.iter().product(), TARGET + k)).unwrap(),
            _ => {
                let mut hot = Array2::<f32>::zeros((batch, classes));
                for i in 0..batch {
                    hot[[i, hash(i, LABEL + k) as usize % classes]] = 1.0;
                }
                hot.into_dyn()
            }
        };
        let of_teacher = teacher_input(&output);
        let name = if classes == 0 { of_teacher.as_str() } else { TARGETS };
        let feeds: Feeds = vec![(input.as_str(), x.view().into_dyn()), (name, target.view())];
        let loss = trainer.step(&[feeds], schedule.at(step), 0.0).map_err(|e| format!("{file}: {e}"))?.loss;
        let expected = entry["losses"][step as usize].as_f64().unwrap();
        worst = worst.max((loss - expected).abs() / expected.abs());
    }
    Ok(worst)
}

/// What PyTorch did not train is frozen here too.
fn frozen(model: &Model, image: &[usize], batch: usize, trained: &[&str]) -> Vec<String> {
    let (form, _, _) = offshoot::training::trainable_form(model, batch, [image[1], image[2]]).unwrap();
    let typing = Typing::new(&form).unwrap();
    let all = offshoot::training::Selection::new(&typing, &[], &[]).unwrap();
    all.trained.into_iter().map(|w| w.name).filter(|n| !trained.contains(&n.as_str())).collect()
}

/// Checks models, in parallel; returns what differs by more than 1e-3.
pub fn check_all(
    runtime: &Arc<Runtime>,
    entries: &[Value],
    operators: Operators,
    recompute: bool,
) -> HashMap<String, String> {
    entries
        .iter()
        .filter_map(|entry| {
            let file = entry["file"].as_str().unwrap().to_string();
            match check(runtime, entry, operators, recompute) {
                Ok(worst) if worst < 1e-3 => None,
                Ok(worst) => Some((file, format!("a loss differs by {worst:.1e}"))),
                Err(e) => Some((file, e)),
            }
        })
        .collect()
}
