//! The command line: flags, exit codes, and what goes to stdout (data only) and stderr (everything else).

mod arguments;
mod commands;
mod common;
mod entry;
mod output;
mod signals;

pub use arguments::{Cli, Command};
pub use entry::main;
