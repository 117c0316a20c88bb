//! Configurations beside a model: where they are looked for, and their JSON.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// The folders that the configurations of a model may lie in: its own and, where that is called `onnx`, as in the
/// repositories that Optimum writes, the one above. None for a model that lies nowhere.
pub(crate) fn folders(model: &Path) -> Vec<PathBuf> {
    if model.as_os_str().is_empty() {
        return Vec::new();
    }
    let own = match model.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut folders = vec![own.clone()];
    // A model that is named from inside of its folder has no parent in its path.
    if let Ok(whole) = fs::canonicalize(&own)
        && whole.file_name().is_some_and(|name| name == "onnx")
    {
        let above = own.parent().filter(|_| own.file_name().is_some_and(|name| name == "onnx"));
        folders.push(match above {
            Some(above) if above.as_os_str().is_empty() => PathBuf::from("."),
            Some(above) => above.to_path_buf(),
            None => own.join(".."),
        });
    }
    folders
}

/// The bytes of a file of at most `most` bytes, if there is one.
///
/// # Errors
/// `Format` for what is no file or is larger, `Io` for what cannot be read; with the hint.
pub(super) fn bytes(path: &Path, most: u64, hint: &str) -> Result<Option<Vec<u8>>> {
    let fault = |text: String| Error::new(ErrorKind::Format, text).at(path).hint(hint);
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error).hint(hint)),
        // Opening a pipe would wait for a writer.
        Ok(found) if !found.is_file() => return Err(fault("not a file".into())),
        Ok(found) if found.len() > most => {
            return Err(fault(format!("{} bytes are more than a configuration has ({most})", found.len())));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|e| Error::io(path, e).hint(hint))?;
    Ok(Some(bytes))
}

/// The JSON of a file of at most `most` bytes, if there is one.
///
/// # Errors
/// Those of [`bytes`], and `Format` for what is no JSON.
pub(crate) fn json(path: &Path, most: u64, hint: &str) -> Result<Option<Value>> {
    let fault =
        |e: serde_json::Error| Error::new(ErrorKind::Format, format!("not JSON: {e}")).at(path).hint(hint).caused_by(e);
    let Some(bytes) = bytes(path, most, hint)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(fault)
}
