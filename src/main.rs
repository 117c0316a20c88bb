//! The `offshoot` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    offshoot::cli::main()
}
