//! Files with float16 are opened as anybody would open them, before they are written and where they are judged.

use std::path::Path;

use super::named;
use crate::cli::common::RuntimeFlags;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::graph::element_types;
use crate::onnx::{DataType, Model};
use crate::parallel;
use crate::runtime::{Plain, opens_plain};

/// Checks that a plain session of ONNX Runtime opens a file, where the model in it has float16; says so where that
/// cannot be checked.
pub fn check(file: &Path, model: &Model, runtime: &RuntimeFlags) -> Result<()> {
    if !has_float16(model) || !parallel::is_first() {
        return Ok(());
    }
    opens(file, file, runtime)
}

/// Writes a model as [`output::write_model`] does, where its file passes the [`check`].
pub fn write_model(path: &Path, model: &Model, runtime: &RuntimeFlags) -> Result<u64> {
    match has_float16(model) {
        true => output::write_accepted(path, model, &|file| opens(file, path, runtime)),
        false => output::write_model(path, model),
    }
}

/// Opens a file that is to be called `path`.
fn opens(file: &Path, path: &Path, runtime: &RuntimeFlags) -> Result<()> {
    let offshoot = std::env::current_exe().map_err(|e| Error::io("offshoot", e))?;
    if let Plain::NotChecked(why) = named(path, opens_plain(&offshoot, file, runtime.onnxruntime.as_deref()))? {
        let path = path.display();
        output::note(&format!("not checked whether a plain session of ONNX Runtime opens {path}: {why}"));
    }
    Ok(())
}

fn has_float16(model: &Model) -> bool {
    element_types(model.graph()).values().any(|&kind| kind == DataType::Float16)
}
