//! Runs a model of one image input on the embedded runtime and writes what it says:
//! `outputs MODEL INPUT.npy OUTPUTS.npz`.
//!
//! `scripts/check/engines.py` compares it with ONNX Runtime and with other engines.

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use ndarray::Array4;
use ndarray_npy::{NpzWriter, read_npy};
use offshoot::onnx::Model;
use offshoot::runtime::{Options, Runtime, RuntimeKind};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, input, outputs] = &arguments[..] else {
        eprintln!("usage: outputs MODEL INPUT.npy OUTPUTS.npz");
        return ExitCode::from(2);
    };
    match run(model, input, outputs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &str, input: &str, outputs: &str) -> Result<(), Box<dyn Error>> {
    let mut model = Model::open(model)?;
    offshoot::graph::prepare(&mut model)?;
    let images: Array4<f32> = read_npy(input)?;
    let (batch, _, height, width) = images.dim();
    let runtime = Runtime::start(&Options { kind: RuntimeKind::Tract, threads: Some(1), ..Options::default() })?;
    let said = runtime.load(&model, batch, [height, width])?.run(images.view())?;
    let mut file = NpzWriter::new(File::create(outputs)?);
    for (i, output) in said.iter().enumerate() {
        file.add_array(format!("arr_{i}"), output)?;
    }
    file.finish()?;
    Ok(())
}
