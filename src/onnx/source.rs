//! Files that payloads lie in, mapped read-only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// A mapped file, and what it was like when it was mapped.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub path: PathBuf,
    pub file: File,
    length: u64,
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// # Errors
    /// [`ErrorKind::Io`] where another program wrote over the file since.
    pub fn unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|e| Error::io(&self.path, e))?;
        if now.len() == self.length && now.modified().ok() == self.modified {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, "another program wrote over this file while it was read")
            .at(&self.path)
            .hint("run the command again when the file is complete; nothing was written"))
    }
}

/// SHA-256 of a file, in hexadecimal; of its external data nothing is read.
///
/// # Errors
/// [`ErrorKind::Io`] where the file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(map(path)?.0);
    Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
}

/// Maps a file read-only. The mapping lives as long as any slice of it.
pub(super) fn map(path: &Path) -> Result<(Bytes, MappedFile)> {
    // Opening a pipe would wait for a writer.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(Error::new(ErrorKind::Io, "not a file").at(path).hint("name an .onnx file"));
    }
    let file = File::open(path).map_err(|e| {
        let error = Error::io(path, e);
        match error.kind() {
            ErrorKind::Io if !path.exists() => error.hint("check the path of the model"),
            _ => error,
        }
    })?;
    let meta = file.metadata().map_err(|e| Error::io(path, e))?;
    let length = meta.len();
    let source = |file| MappedFile { path: path.to_path_buf(), file, length, modified: meta.modified().ok() };
    if length == 0 {
        return Ok((Bytes::new(), source(file)));
    }
    // SAFETY: the mapping is read-only and private. Offshoot replaces files by renaming, never in place, so its own
    // outputs cannot shrink a mapped input. Where another program does, the command line ends at the signal, and a
    // model that was written over is not written out.
    let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok((Bytes::from_owner(mapped), source(file)))
}
