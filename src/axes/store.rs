//! Where new weights lie until they are written: in memory while they are few, then in a file without a name that is
//! mapped, so that growing a large model takes no more memory than its largest tensors.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::onnx::proto::TensorProto;

/// Bytes that stay in memory.
const IN_MEMORY: usize = 128 << 20;
/// A payload below this stays in memory in any case.
const MIN_STORED: usize = 64 << 10;

/// Keeps payloads of new tensors.
#[derive(Default)]
pub(super) struct Store {
    in_memory: Mutex<usize>,
}

impl Store {
    /// The same tensor, with its payload in a mapped file where memory has been used up.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::error::ErrorKind::Io) where the folder of temporary files has no room.
    pub fn keep(&self, mut tensor: TensorProto) -> Result<TensorProto> {
        let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= MIN_STORED) else { return Ok(tensor) };
        let fits = {
            let mut used = self.in_memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let fits = *used + raw.len() <= IN_MEMORY;
            *used += if fits { raw.len() } else { 0 };
            fits
        };
        tensor.raw_data = Some(if fits { raw } else { stored(&raw)? });
        Ok(tensor)
    }
}

/// The payload in a file of its own that nobody else can open, and that is gone with its last slice.
fn stored(raw: &[u8]) -> Result<Bytes> {
    let fail = |e| {
        Error::io(std::env::temp_dir(), e)
            .hint("give the folder of temporary files (TMPDIR) room for the child's weights")
    };
    let mut file: File = tempfile::tempfile().map_err(fail)?;
    file.write_all(raw).map_err(fail)?;
    // SAFETY: the mapping is read-only, and the file has no name: nobody else can write to it or truncate it.
    let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
    Ok(Bytes::from_owner(mapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DataType, tensor_from_raw};

    #[test]
    fn payloads_survive_when_memory_is_used_up() {
        let store = Store { in_memory: Mutex::new(IN_MEMORY) };
        let bytes: Vec<u8> = (0..MIN_STORED * 2).map(|i| (i % 251) as u8).collect();
        let tensor = tensor_from_raw("w", DataType::Uint8, &[bytes.len()], bytes.clone().into());
        let kept = store.keep(tensor.clone()).unwrap();
        assert_eq!(kept, tensor);
        assert_ne!(kept.raw_data.unwrap().as_ptr(), tensor.raw_data.unwrap().as_ptr());
        let small = tensor_from_raw("s", DataType::Uint8, &[4], vec![1, 2, 3, 4].into());
        assert_eq!(store.keep(small.clone()).unwrap(), small);
    }
}
