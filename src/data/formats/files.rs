//! Picture files, each an image.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::super::decode;
use super::super::item::{Container, Sample};
use crate::error::Result;

/// The paths of picture files, which are read when they are asked for.
#[derive(Debug)]
pub(crate) struct Files(pub Vec<PathBuf>);

impl Container for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn sample(&self, index: usize) -> Result<Sample<'_>> {
        decode::read(&self.0[index]).map(Sample::picture)
    }

    fn name<'a>(&'a self, _: &Path, index: usize) -> Cow<'a, Path> {
        Cow::Borrowed(&self.0[index])
    }

    fn files(&self) -> Option<&[PathBuf]> {
        Some(&self.0)
    }
}
