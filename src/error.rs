//! One error type for the whole crate.
//!
//! An [`Error`] has a [kind](ErrorKind) that decides the exit code, a message, and, where they are known, the file and
//! the graph node that it is about, and a hint that says what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::options;

/// The result type of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the coarsest terms that a caller may want to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command line, or the arguments of a library call, ask for something that makes no sense.
    Usage,
    /// A file could not be read or written.
    Io,
    /// A file is not what it claims to be: truncated, malformed, or of another format.
    Format,
    /// The input is well formed, and Offshoot refuses or does not know it.
    Unsupported,
    /// The axes of a graph contradict each other.
    Typing,
    /// The graph holds no Vision Transformer that Offshoot can work on.
    Anatomy,
    /// Images are missing or cannot be used.
    Images,
    /// The inference runtime could not be loaded or failed.
    Runtime,
    /// A check or target was not met.
    Check,
    /// A fault of Offshoot itself.
    Internal,
}

/// An error with its kind, its place and a hint.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    path: Option<PathBuf>,
    node: Option<String>,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), path: None, node: None, hint: None, source: None }
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// Says something better than the hint that it has.
    pub fn rehint(self, hint: impl Into<String>) -> Self {
        Error { hint: Some(hint.into()), ..self }
    }

    /// Names the file that the error is about, unless one is named already.
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the graph node that the error is about, unless one is named already.
    pub fn in_node(mut self, node: impl Into<String>) -> Self {
        self.node.get_or_insert(node.into());
        self
    }

    /// Keeps the error that caused this one.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An input or output error on `path`.
    pub fn io(path: impl AsRef<Path>, error: std::io::Error) -> Self {
        Error::new(ErrorKind::Io, error.to_string()).at(path).caused_by(error)
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, if anything is known.
    pub fn hint_text(&self) -> Option<String> {
        Some(options::named(self.marked_hint()?).into_owned())
    }

    /// The hint with its options marked, as [`options`] has them.
    pub fn marked_hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// What the error says, with its options marked: for texts that others show.
    pub fn marked(&self) -> String {
        let path = self.path.as_ref().map(|path| format!("`{}`: ", path.display())).unwrap_or_default();
        let node = self.node.as_ref().map(|node| format!("in node `{node}`: ")).unwrap_or_default();
        format!("{path}{node}{}", self.message)
    }

    /// The process exit code that stands for this error: 1 for a check that was not met, 3 for an internal fault, else
    /// 2.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Check => 1,
            ErrorKind::Internal => 3,
            _ => 2,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&options::named(&self.marked()))
    }
}

/// Returns early with an [`Error`] of the given kind and formatted message.
#[macro_export]
#[doc(hidden)]
macro_rules! bail {
    ($kind:ident, $($message:tt)*) => {
        return Err($crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($message)*)))
    };
}
