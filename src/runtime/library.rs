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
        Error::new(ErrorKind::Runtime, "ONNX Runtime's shared library was not found").hint(
            "put it beside the executable, install the Python wheel `onnxruntime`, or name it with ⟦onnxruntime⟧ \
                PATH or ORT_DYLIB_PATH",
        )
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
        folders.extend(around(&executable));
    }
    if let Some(python) = std::env::var_os("VIRTUAL_ENV").or(std::env::var_os("CONDA_PREFIX")) {
        folders.extend(in_python(Path::new(&python)));
    }
    folders.extend(["/usr/local/lib", "/usr/lib", "/usr/lib64"].map(PathBuf::from));
    list.extend(folders.iter().filter_map(|f| in_folder(f)));
    list.retain(|p| p.is_file());
    let mut seen = std::collections::HashSet::new();
    list.retain(|p| seen.insert(p.canonicalize().unwrap_or(p.clone())));
    list
}

/// Folders that belong to an executable: its own (a release archive), those of the Python environment that it was
/// installed into (a wheel), and the `.onnxruntime` of the project that it was built in.
///
/// Neither the working folder nor one that merely lies above is searched: a library that is found is code that runs.
fn around(executable: &Path) -> Vec<PathBuf> {
    let Some(own) = executable.parent() else { return Vec::new() };
    let mut folders = vec![own.to_path_buf()];
    if let Some(prefix) = own.parent() {
        folders.push(prefix.join("lib"));
        folders.extend(in_python(prefix));
    }
    let target = own.ancestors().find(|f| f.file_name().is_some_and(|n| n == "target"));
    folders.extend(target.and_then(Path::parent).map(|project| project.join(".onnxruntime")));
    folders
}

/// Where the wheels `onnxruntime` and `onnxruntime-gpu` put the library in a Python environment.
fn in_python(prefix: &Path) -> Vec<PathBuf> {
    let packages = |lib: &Path| lib.join("site-packages/onnxruntime/capi");
    let mut folders = vec![packages(&prefix.join("Lib"))];
    for entry in std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("python") {
            folders.push(packages(&entry.path()));
        }
    }
    folders.sort();
    folders
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
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(is_versioned))
        .collect();
    versioned.sort();
    versioned.pop()
}

/// `libonnxruntime.so.1.32.0`, or `libonnxruntime.1.32.0.dylib`.
fn is_versioned(name: &str) -> bool {
    match name.strip_prefix("libonnxruntime.") {
        Some(rest) if cfg!(target_os = "macos") => rest.ends_with(".dylib"),
        Some(rest) => rest.starts_with("so."),
        None => false,
    }
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
            .hint("run `scripts/fetch/onnxruntime.sh`, or name the library with ⟦onnxruntime⟧ PATH")
    };
    // SAFETY: loading runs the library's initialisers, which is what the user asks for by naming it or by having it
    // there.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files that have these names.
    fn with_files(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn found(root: &Path, executable: &str) -> Vec<String> {
        let libraries = around(&root.join(executable)).into_iter().filter_map(|f| in_folder(&f));
        libraries.map(|p| p.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_is_found_where_archives_wheels_and_builds_have_it() {
        let capi = "venv/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0";
        let folder = with_files(&[
            "release/libonnxruntime.so",
            capi,
            "project/.onnxruntime/libonnxruntime.so",
            "usr/lib/libonnxruntime.so.1.30.0",
        ]);
        assert_eq!(found(folder.path(), "release/offshoot"), ["release/libonnxruntime.so"]);
        assert_eq!(found(folder.path(), "venv/bin/offshoot"), [capi]);
        let built = ["project/.onnxruntime/libonnxruntime.so"];
        assert_eq!(found(folder.path(), "project/target/release/offshoot"), built);
        assert_eq!(found(folder.path(), "project/target/debug/deps/embedded-1"), built);
        assert_eq!(found(folder.path(), "usr/bin/offshoot"), ["usr/lib/libonnxruntime.so.1.30.0"]);
    }

    #[test]
    fn a_library_that_lies_about_is_not_loaded() {
        let name = file_name();
        let folder = with_files(&[name, &format!(".onnxruntime/{name}"), &format!("a/.onnxruntime/{name}")]);
        assert_eq!(found(folder.path(), "a/bin/offshoot"), [""; 0]);
        assert_eq!(found(folder.path(), "a/b/c/offshoot"), [""; 0]);
    }
}
