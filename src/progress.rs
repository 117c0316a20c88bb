//! Who is told how long work goes. The library says what it found, what it assumed and how far it is; the command line
//! prints it.

/// Whoever listens; `()` does not.
pub trait Listener: Sync {
    /// A line for a person.
    fn note(&self, _text: &str) {}
    /// Something that a person should know.
    fn warn(&self, _text: &str) {}
    /// So many parts of a stage are done, of all that it has.
    fn progress(&self, _stage: &'static str, _done: usize, _of: usize) {}
    /// A stage is over.
    fn over(&self) {}
}

impl Listener for () {}
