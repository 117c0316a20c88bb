//! Runs models in rten, for scripts/lib/engines.py: `rten-outputs INPUT.npy OUTPUTS.npz ROUNDS FILE ...`.
//!
//! Each file is run once, and the outputs of the last are written; then they run in turn, ROUNDS times, and the milliseconds of
//! processor time are printed as JSON, one list a file.

use std::error::Error;
use std::fs::File;
use std::sync::Arc;

use cpu_time::ProcessTime;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzWriter, read_npy};
use rten::{Model, ModelOptions, RunOptions, ThreadPool, Value};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, outputs, rounds, files @ ..] = &arguments[..] else {
        return Err("usage: rten-outputs INPUT.npy OUTPUTS.npz ROUNDS FILE ...".into());
    };
    let rounds: usize = rounds.parse()?;
    let x: ArrayD<f32> = read_npy(input)?;
    let x = Tensor::from_data(x.shape(), x.iter().copied().collect::<Vec<f32>>());
    let one = RunOptions::default().with_thread_pool(Some(Arc::new(ThreadPool::with_num_threads(1))));
    let run =
        |model: &Model| model.run(vec![(model.input_ids()[0], x.view().into())], model.output_ids(), Some(one.clone()));
    let models = files.iter().map(|f| ModelOptions::with_all_ops().prepack_weights(true).load_file(f));
    let models: Vec<Model> = models.collect::<Result<_, _>>()?;
    let mut said: Vec<Value> = Vec::new();
    for model in &models {
        said = run(model)?;
    }
    let mut file = NpzWriter::new(File::create(outputs)?);
    for (i, output) in said.into_iter().enumerate() {
        let output: Tensor<f32> = output.try_into()?;
        let array = ArrayD::from_shape_vec(IxDyn(output.shape()), output.iter().copied().collect())?;
        file.add_array(format!("arr_{i}"), &array)?;
    }
    file.finish()?;
    let mut times = vec![Vec::new(); files.len()];
    for _ in 0..rounds {
        for (model, of_file) in models.iter().zip(&mut times) {
            let begun = ProcessTime::now();
            run(model)?;
            of_file.push(1e3 * begun.elapsed().as_secs_f64());
        }
    }
    if rounds > 0 {
        println!("{times:?}");
    }
    Ok(())
}
