//! Studies: grids of descendants, each trained once, and what they come to in tables and plots.
//!
//! A study is a TOML file ([`File`]) that names ancestors, methods, shapes and data sets and says which of them are
//! combined. Every combination with a seed is a [`Cell`]: it is computed once, by what `grow`, `shrink` and `tune`
//! call, and written as one small JSON file ([`CellRecord`]) whose name holds a hash of everything that the result
//! depends on. So a study that was broken off goes on, studies share the cells that they have in common, and processes
//! may share a folder. Tables are made of the cells that are there, also of those that were packed into one file
//! ([`Results`]).

mod calibrating;
mod cell;
mod file;
mod grid;
mod materials;
mod method;
mod results;
mod search;
mod tables;
mod text;
mod workshop;

pub use cell::{Cell, CellRecord, Epoch};
pub use file::{Ancestor, Classifier, Columns, Data, DescendantSize, File, Follows, Grid, Method, Training};
pub use grid::{Study, pack};
pub use materials::CellSamples;
pub use results::Results;
pub use search::{EpsSearch, Trial};
pub use tables::{Row, Statistic, Tables};
pub use text::Text;
pub use workshop::CellRunner;
