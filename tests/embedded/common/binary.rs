//! Runs of the binary in the repository's folder.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::root;

/// Flags of a `tune` that sees every image as it is and in order, at one rate, with the plain loss: what PyTorch does
/// in a few lines.
pub const PLAIN: [&str; 11] = [
    "--no-shuffle",
    "--augment",
    "none",
    "--schedule",
    "constant",
    "--warmup",
    "0",
    "--label-smoothing",
    "0",
    "--val-split",
    "0",
];

/// The words of a line, as arguments: `args!("tune {child} --epochs 3")`. What is put in has no spaces.
#[allow(unused_macros)]
macro_rules! args {
    ($($line:tt)*) => {
        &format!($($line)*).split_whitespace().collect::<Vec<_>>()
    };
}
#[allow(unused_imports)]
pub(crate) use args;

/// Runs `offshoot`.
pub fn offshoot(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offshoot"))
        .args(arguments)
        .env("NO_COLOR", "1")
        .current_dir(root())
        .output()
        .unwrap()
}

/// A run that succeeds.
pub fn done(arguments: &[&str]) -> Output {
    let output = offshoot(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The JSON that a run prints.
pub fn json(arguments: &[&str]) -> Value {
    let output = done(arguments);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: stdout is not JSON: {e}"))
}

/// Exit code 2, nothing on stdout, a message that says all of `says`, and a hint.
pub fn refused(arguments: &[&str], says: &[&str]) {
    let output = offshoot(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed data");
    for s in says {
        assert!(stderr.contains(s), "{arguments:?} does not say `{s}`: {stderr}");
    }
    assert!(stderr.contains("hint: "), "{arguments:?} gives no hint: {stderr}");
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
