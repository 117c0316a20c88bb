//! Whether ONNX Runtime opens a file as anybody would: in a plain session, with every option at its default and the
//! batch as the file has it.
//!
//! Sessions elsewhere fix shapes and choose passes. A pass that meets what it was not written for may crash, and takes
//! its process along: the file is opened by a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ort::session::Session as OrtSession;

use super::library::candidates;
use super::start::Runtime;
use crate::error::{Error, ErrorKind, Result};

/// What came of opening a file in a plain session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plain {
    /// It opened.
    Opened,
    /// Nobody tried, and why.
    NotChecked(String),
}

impl Runtime {
    /// Opens a file in a plain session.
    ///
    /// # Errors
    /// [`ErrorKind::Check`] where the library refuses it. Where the library crashes, this process does.
    pub fn open_plain(&self, file: &Path) -> Result<()> {
        let builder = OrtSession::builder(&self.environment);
        match builder.map_err(|e| e.to_string()).and_then(|mut b| b.commit_from_file(file).map_err(|e| e.to_string())) {
            Ok(_) => Ok(()),
            Err(why) => Err(Error::new(ErrorKind::Check, why.lines().collect::<Vec<_>>().join(" "))),
        }
    }
}

/// Has `offshoot`, the program of this name, open a file in a plain session of ONNX Runtime: of the library at `given`,
/// else of the first that is found.
///
/// # Errors
/// [`ErrorKind::Check`] where the library refuses the file or crashes, and [`ErrorKind::Io`] where the program cannot
/// be started.
pub fn opens_plain(offshoot: &Path, file: &Path, given: Option<&Path>) -> Result<Plain> {
    let Some(library) = given.map(Path::to_path_buf).or_else(|| candidates().into_iter().next()) else {
        return Ok(Plain::NotChecked("ONNX Runtime was not found".into()));
    };
    let run = command(offshoot, file, &library).output().map_err(|e| Error::io(offshoot, e))?;
    let said = said(&run);
    let why = match run.status.code() {
        Some(0) => return Ok(Plain::Opened),
        Some(1) => said,
        Some(_) => return Ok(Plain::NotChecked(said)),
        None => format!("it crashed ({})", run.status),
    };
    Err(Error::new(ErrorKind::Check, format!("a plain session of ONNX Runtime cannot open it: {why}"))
        .hint("nobody else can open it there either: please report the model; float32 (⟦dtype⟧ fp32) may do"))
}

fn command(offshoot: &Path, file: &Path, library: &Path) -> Command {
    let paths: [PathBuf; 2] = [file.to_path_buf(), library.to_path_buf()];
    let mut command = Command::new(offshoot);
    command.arg("doctor").arg("--opens").arg(&paths[0]).arg("--onnxruntime").arg(&paths[1]);
    command.args(["--runtime", "onnxruntime"]).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// The error that a process ended with.
fn said(run: &Output) -> String {
    let text = String::from_utf8_lossy(&run.stderr);
    let error = text.lines().find_map(|line| line.strip_prefix("error: "));
    error.or(text.lines().last()).unwrap_or("it said nothing").trim().to_string()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program in the place of ours.
    fn stand_in(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("offshoot");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_file_that_nobody_can_open_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = Path::new("child.onnx");
        let opens = |script: &str| opens_plain(&stand_in(folder.path(), script), file, Some(Path::new("lib.so")));
        let asked = r#"[ "$*" = "doctor --opens child.onnx --onnxruntime lib.so --runtime onnxruntime" ]"#;
        assert_eq!(opens(asked).unwrap(), Plain::Opened);
        let refused = opens("echo note: that >&2; echo 'error: no kernel' >&2; exit 1").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Check);
        assert!(refused.to_string().ends_with("cannot open it: no kernel"), "{refused}");
        let crashed = opens("kill -SEGV $$").unwrap_err();
        assert!(crashed.kind() == ErrorKind::Check && crashed.to_string().contains("crashed"), "{crashed}");
        // A library that cannot be used says nothing of the file.
        let unusable = opens("echo 'error: too old' >&2; exit 2").unwrap();
        assert_eq!(unusable, Plain::NotChecked("too old".into()));
    }
}
