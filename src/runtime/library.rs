//! Where ONNX Runtime's shared library may lie.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// A shared library of ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Library {
    /// Its path.
    pub path: PathBuf,
    /// Its version, as it says itself.
    pub version: String,
}

/// The interface that ort asks for: ONNX Runtime 1.24 and later have it.
const OLDEST: u32 = 24;

/// The library at `given` (a file, or a folder that holds it), or the first that is found.
///
/// # Errors
/// [`ErrorKind::Runtime`] where there is none, or where it is too old or no ONNX Runtime.
pub fn find(given: Option<&Path>) -> Result<Library> {
    if let Some(given) = given {
        let path =
            if given.is_dir() { in_folder(given).unwrap_or(given.join(file_name())) } else { given.to_path_buf() };
        return open(&path);
    }
    let mut first_error = None;
    for path in candidates() {
        match open(&path) {
            Ok(library) => return Ok(library),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    Err(first_error.unwrap_or_else(|| {
        Error::new(ErrorKind::Runtime, "ONNX Runtime's shared library was not found")
            .hint("run `scripts/fetch_onnxruntime.sh`, or name it with --onnxruntime PATH or ORT_DYLIB_PATH")
    }))
}

/// Existing files that could be the library, in the order in which they are tried.
pub fn candidates() -> Vec<PathBuf> {
    let mut list = Vec::new();
    let mut folders = Vec::new();
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_dir() { folders.push(path) } else { list.push(path) }
    }
    if let Ok(executable) = std::env::current_exe() {
        // Beside the executable, and in the project's own folder above target/.
        for up in executable.ancestors().skip(1).take(5) {
            folders.push(up.to_path_buf());
            folders.push(up.join(".onnxruntime"));
        }
    }
    folders.push(PathBuf::from(".onnxruntime"));
    if let Some(python) = std::env::var_os("VIRTUAL_ENV").or(std::env::var_os("CONDA_PREFIX")) {
        let lib = Path::new(&python).join("lib");
        for entry in std::fs::read_dir(lib).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("python") {
                folders.push(entry.path().join("site-packages/onnxruntime/capi"));
            }
        }
    }
    folders.extend(["/usr/local/lib", "/usr/lib", "/usr/lib64"].map(PathBuf::from));
    list.extend(folders.iter().filter_map(|f| in_folder(f)));
    list.retain(|p| p.is_file());
    let mut seen = std::collections::HashSet::new();
    list.retain(|p| seen.insert(p.canonicalize().unwrap_or(p.clone())));
    list
}

fn file_name() -> &'static str {
    if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else if cfg!(windows) {
        "onnxruntime.dll"
    } else {
        "libonnxruntime.so"
    }
}

fn in_folder(folder: &Path) -> Option<PathBuf> {
    let exact = folder.join(file_name());
    if exact.is_file() {
        return Some(exact);
    }
    let mut versioned: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{}.", file_name()))))
        .collect();
    versioned.sort();
    versioned.pop()
}

#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "C" fn(u32) -> *const std::ffi::c_void,
    get_version: unsafe extern "C" fn() -> *const c_char,
}

/// Loads the library and asks it for its version.
fn open(path: &Path) -> Result<Library> {
    let fail = |what: String| {
        Error::new(ErrorKind::Runtime, what)
            .at(path)
            .hint("run `scripts/fetch_onnxruntime.sh`, or name the library with --onnxruntime PATH")
    };
    // SAFETY: loading runs the library's initialisers, which is what the user asks for by naming it or by having it there.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| fail(format!("cannot be loaded: {e}")))?;
    // SAFETY: the symbol has this type in every version of ONNX Runtime.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0") }
        .map_err(|_| fail("is no ONNX Runtime: it has no `OrtGetApiBase`".into()))?;
    // SAFETY: the function takes nothing and returns a pointer to a static table, whose version is a static C string.
    let version = unsafe {
        match base().as_ref() {
            Some(base) => CStr::from_ptr((base.get_version)()).to_string_lossy().into_owned(),
            None => return Err(fail("gives no API".into())),
        }
    };
    let minor: u32 = version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0);
    if minor < OLDEST {
        return Err(fail(format!("is ONNX Runtime {version}; version 1.{OLDEST} or later is needed")));
    }
    Ok(Library { path: path.to_path_buf(), version })
}
