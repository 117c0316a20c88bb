//! Reads every model below a folder and writes it, untouched, below another: `rewrite FROM TO`.
//!
//! `scripts/check/corpus.py` compares the two.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use offshoot::onnx::Model;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [from, to] = &arguments[..] else {
        eprintln!("usage: rewrite FROM TO");
        return ExitCode::from(2);
    };
    let mut refused = 0;
    for entry in walkdir::WalkDir::new(from).sort_by_file_name().into_iter().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "onnx")
            && let Err(why) = rewrite(path, &to.join(path.strip_prefix(from).unwrap_or(path)))
        {
            refused += 1;
            println!("{}: {why}", path.display());
        }
    }
    if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rewrite(from: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Model::open(from)?.write(to)?;
    Ok(())
}
