//! Time and memory of training steps: forward, backward and optimiser, on random images.
//!
//!     cargo bench --bench training -- MODEL BATCH STEPS [fused|contrib|standard] [recompute]
//!
//! prints one JSON line: median and fastest milliseconds of a step, and the peak of resident memory in bytes.

use std::time::Instant;

use ndarray::{Array2, Array4};
use offshoot::axes::Typing;
use offshoot::onnx::Model;
use offshoot::runtime::{Options, Runtime};
use offshoot::training::{Operators, Recipe, TARGETS, Trainer};
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [model, batch, steps, rest @ ..] = &arguments[..] else {
        eprintln!("usage: cargo bench --bench training -- MODEL BATCH STEPS [fused|contrib|standard] [recompute]");
        return Ok(());
    };
    let operators = match rest.first().map(String::as_str) {
        Some("standard") => Operators::Standard,
        Some("contrib") => Operators::Contrib,
        _ => Operators::Fused,
    };
    let (batch, steps): (usize, usize) = (batch.parse()?, steps.parse()?);
    let mut model = Model::open(model)?;
    offshoot::graph::prepare(&mut model)?;
    let image = Typing::new(&model)?.image_size();
    let runtime = Runtime::start(&Options::default())?;
    let recompute = rest.get(1).is_some_and(|r| r == "recompute");
    let recipe = Recipe { batch, operators, recompute, ..Recipe::default() };
    let mut trainer = Trainer::new(&runtime, &model, image, &recipe, &[], &[])?;
    let mut random = StdRng::seed_from_u64(0);
    let Some((_, classes)) = trainer.classes.clone() else { return Err("the model has no classes".into()) };
    let (input, shape) = {
        let typing = Typing::new(&model)?;
        let (shape, _) = typing.image_input().ok_or("no image input")?;
        (offshoot::graph::data_inputs(model.graph())[0].name().to_string(), shape)
    };
    let images =
        Array4::from_shape_simple_fn((batch, shape[1], shape[2], shape[3]), || random.random_range(-2.0..2.0f32));
    let mut targets = Array2::<f32>::zeros((batch, classes));
    for mut row in targets.outer_iter_mut() {
        row[random.random_range(0..classes)] = 1.0;
    }
    let mut milliseconds = Vec::new();
    let mut losses = Vec::new();
    for step in 0..steps + 2 {
        let start = Instant::now();
        let feeds = vec![(input.as_str(), images.view().into_dyn()), (TARGETS, targets.view().into_dyn())];
        losses.push(trainer.step(&[feeds], 1e-4, 0.0)?.loss);
        if step >= 2 {
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    milliseconds.sort_by(f64::total_cmp);
    let peak = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| s.lines().find(|l| l.starts_with("VmHWM")).map(str::to_string))
        .and_then(|l| l.split_whitespace().nth(1).and_then(|k| k.parse::<u64>().ok()))
        .map(|k| k * 1024);
    println!(
        "{}",
        serde_json::json!({
            "runtime": runtime.describe(), "batch": batch, "median_ms": milliseconds[milliseconds.len() / 2],
            "fastest_ms": milliseconds[0], "peak_bytes": peak, "first_loss": losses[0], "last_loss": losses.last(),
        })
    );
    Ok(())
}
