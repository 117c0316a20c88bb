//! Opens a file of any format, which its first bytes tell; its name decides only where they do not.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use super::super::decode::{has_picture_extension, is_picture_head};
use super::super::item::{Labels, Opened, ReadOptions};
use super::files::Files;
use super::find::{FileKind, SOURCE_HINT, is_kind};
use super::parquet::Cache;
use super::{cifar, idx, numpy, parquet, webdataset};
use crate::error::{Error, ErrorKind, Result};

/// How files are opened.
#[derive(Default)]
pub(crate) struct Opener {
    options: ReadOptions,
    /// The row groups of Parquet files that are kept in memory.
    cache: Arc<Cache>,
}

impl Opener {
    /// Opens files with these options.
    pub fn new(options: ReadOptions) -> Self {
        Opener { options, cache: Arc::default() }
    }

    /// Whether labels are wanted.
    pub fn wants_labels(&self) -> bool {
        self.options.labels
    }

    /// Opens a file of any kind that is no folder. An archive may hold several parts.
    pub fn open(&self, path: &Path) -> Result<Vec<Opened>> {
        let failed = |error| Error::io(path, error);
        let file = File::open(path).map_err(failed)?;
        let mut head = Vec::new();
        (&file).take(512).read_to_end(&mut head).map_err(failed)?;
        if is_kind(path, FileKind::Cifar) {
            return Ok(vec![self.checked(cifar::open(path)?)]);
        }
        let opened = match head.as_slice() {
            [0x1f, 0x8b, ..] => {
                // What is broken here fails where the whole is read.
                let mut unpacked = Vec::new();
                let _ = MultiGzDecoder::new(head.as_slice()).take(512).read_to_end(&mut unpacked);
                if webdataset::is_tar(&unpacked) || is_kind(path, FileKind::Tar) {
                    webdataset::open(path, true, &self.options)?
                } else {
                    idx::open(path, self.options.labels)?
                }
            }
            head if webdataset::is_tar(head) || is_kind(path, FileKind::Tar) => {
                webdataset::open(path, false, &self.options)?
            }
            head if is_picture_head(head) => Opened::new(path, Files(vec![path.to_path_buf()])),
            [0, 0, ..] => idx::open(path, self.options.labels)?,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => numpy::open_npy(path, &file)?,
            [b'P', b'K', 3 | 5, 4 | 6, ..] => return numpy::open_npz(path, file, self.options.labels),
            [b'P', b'A', b'R', b'1', ..] => parquet::open(path, &file, &self.options, &self.cache)?,
            _ if has_picture_extension(path) => Opened::new(path, Files(vec![path.to_path_buf()])),
            _ => {
                return Err(Error::new(
                    ErrorKind::Images,
                    "neither a picture nor an IDX, NumPy, CIFAR, tar or Parquet file",
                )
                .at(path)
                .hint(SOURCE_HINT));
            }
        };
        Ok(vec![self.checked(opened)])
    }

    fn checked(&self, mut opened: Opened) -> Opened {
        if !self.options.labels {
            opened.labels = Labels::Ignored;
        }
        opened
    }
}
