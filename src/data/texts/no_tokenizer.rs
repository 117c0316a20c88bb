//! What stands for a tokenizer where the feature `text` is off: none can be opened.

use std::path::Path;

use super::read::Text;
use super::tokens::{Own, Side, TokenRows};
use crate::error::{Error, ErrorKind, Result};

/// There is none.
pub(super) enum Tokenizer {}

impl Tokenizer {
    pub fn open(path: &Path) -> Result<Tokenizer> {
        Err(Error::new(ErrorKind::Unsupported, "this build reads no tokenizers")
            .at(path)
            .hint("build it with the feature `text`, which the default build has, or give token ids with ⟦inputs⟧"))
    }

    pub fn own(&self) -> Own {
        match *self {}
    }

    pub fn id(&self, _: &str) -> Option<u32> {
        match *self {}
    }

    pub fn largest(&self) -> u32 {
        match *self {}
    }

    pub fn tokens(&self, _: &[Text], _: Option<usize>, _: Side) -> Result<TokenRows> {
        match *self {}
    }
}
