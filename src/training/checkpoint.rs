//! Checkpoints: the whole state of a run in one safetensors file, written at once or not at all.
//!
//! Tensors stand under the names of the step graph's state; what is not a tensor (position, best result, seeds) is one
//! JSON text in the file's metadata. Everything random is a function of the seed and the position, so these are all
//! that a run needs.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use memmap2::Mmap;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Error, ErrorKind, Result};
use crate::metadata::CHECKPOINT;
use crate::onnx::replace_file;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Updates that were made.
    pub step: u64,
    /// The epoch that goes on.
    pub epoch: u64,
    /// Batches of that epoch that were used.
    pub batch: u64,
}

/// Writes tensors and a description to a temporary file beside `path`, then renames it.
///
/// # Errors
/// [`ErrorKind::Io`], for instance for a full disk; the old file is whole then.
pub fn save(path: &Path, tensors: &[(String, ArrayD<f32>)], description: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(description).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let Some(data) = tensor.as_slice() else { bail!(Internal, "the tensor `{name}` is not contiguous") };
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes(data));
        views.push((name.as_str(), view.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?));
    }
    let metadata = HashMap::from([(CHECKPOINT.to_string(), text)]);
    let data =
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    replace_file(path, |out| out.write_all(&data))?;
    Ok(())
}

/// The bytes of floats, little-endian.
fn bytes(data: &[f32]) -> &[u8] {
    const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are written as they lie in memory");
    // SAFETY: floats have no padding and every byte of them may be read; the length is that of the same memory.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), std::mem::size_of_val(data)) }
}

/// Reads a checkpoint back: its tensors and its description.
///
/// # Errors
/// [`ErrorKind::Io`] where it cannot be read, [`ErrorKind::Format`] where it is no checkpoint of Offshoot.
pub fn load<D: DeserializeOwned>(path: &Path) -> Result<(HashMap<String, ArrayD<f32>>, D)> {
    let wrong = |what: String| {
        Error::new(ErrorKind::Format, what).at(path).hint("give a checkpoint that `offshoot tune` wrote (⟦checkpoint⟧)")
    };
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the map is only read, as bytes; checkpoints are replaced, never written over.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&map).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let text = header.metadata().as_ref().and_then(|m| m.get(CHECKPOINT).cloned());
    let text = text.ok_or_else(|| wrong("the file holds no training run".into()))?;
    let description =
        serde_json::from_str(&text).map_err(|e| wrong(format!("its description is not understood: {e}")))?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let mut out = HashMap::new();
    for (name, view) in tensors.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!("the tensor `{name}` is of type {:?}, not float32", view.dtype())));
        }
        let data: Vec<f32> =
            view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        let array = ArrayD::from_shape_vec(IxDyn(view.shape()), data);
        out.insert(name, array.map_err(|e| wrong(e.to_string()))?);
    }
    Ok((out, description))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<(String, ArrayD<f32>)> {
        let ramp = ArrayD::from_shape_fn(IxDyn(&[2, 3]), |i| (i[0] * 3 + i[1]) as f32);
        vec![("w".into(), ramp), ("scalar".into(), ArrayD::from_elem(IxDyn(&[]), -0.5))]
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        let position = Position { step: 7, epoch: 1, batch: 3 };
        save(&path, &tensors(), &position).unwrap();
        let (found, at): (_, Position) = load(&path).unwrap();
        assert_eq!(at, position);
        for (name, tensor) in tensors() {
            assert_eq!(found[&name], tensor);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        assert_eq!(load::<Position>(&path).unwrap_err().kind(), ErrorKind::Io);
        save(&path, &tensors(), &Position::default()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], &whole[..9], b"no", &[0xff; 64]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(load::<Position>(&path).unwrap_err().kind(), ErrorKind::Format);
        }
        let foreign = safetensors::serialize(Vec::<(&str, TensorView)>::new(), None).unwrap();
        std::fs::write(&path, foreign).unwrap();
        assert!(load::<Position>(&path).unwrap_err().to_string().contains("no training run"));
    }
}
