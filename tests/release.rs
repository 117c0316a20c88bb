//! Release archive and Python wheel, made by their scripts from the binary of this build, unpacked and run where
//! nothing else is.
//!
//! They need the shared library of ONNX Runtime and, for the wheel, a Python with `venv`: where one is missing the test
//! says that it is left out, and with `OFFSHOOT_REQUIRE_ONNXRUNTIME=1` fails.
#![cfg(unix)]

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Says something that the test harness does not keep to itself, and fails where nothing may be left out.
fn left_out(what: &str) {
    assert!(std::env::var_os("OFFSHOOT_REQUIRE_ONNXRUNTIME").is_none(), "{what}");
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {what}");
}

/// The folder of ONNX Runtime's library and its licences, as `scripts/fetch/onnxruntime.sh` fills it.
fn library() -> Option<PathBuf> {
    let named = std::env::var_os("ORT_DYLIB_PATH").and_then(|p| Some(PathBuf::from(p).parent()?.to_path_buf()));
    let whole = |f: &PathBuf| ["libonnxruntime.so", "LICENSE"].iter().all(|n| f.join(n).exists());
    named.into_iter().chain([root().join(".onnxruntime")]).find(whole)
}

/// What a command prints that succeeds.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A command with nothing in its environment, in this folder.
fn alone(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(folder);
    command
}

/// What `include` in Cargo.toml lets into the crate.
#[test]
fn the_crate_holds_what_it_needs_and_no_more() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--list", "--locked", "--offline", "--allow-dirty"]).current_dir(root());
    let listed = printed(&mut cargo);
    let listed: Vec<&str> = listed.lines().map(str::trim).collect();
    for file in [
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "docs/guide.md",
        "fixtures/fashion-images.idx3-ubyte",
        "fixtures/init/golden.json",
        "models/fashion-vit.onnx",
        "src/main.rs",
    ] {
        assert!(listed.contains(&file), "{file}: {listed:?}");
    }
    // What the source reads at compile time, by its path in the repository.
    for source in listed.iter().filter(|f| f.starts_with("src/")) {
        let text = std::fs::read_to_string(root().join(source)).unwrap();
        for read in text.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let file = read.trim_start_matches("../");
            assert!(listed.iter().any(|l| l.ends_with(file)), "{source} includes {read}");
        }
    }
    let bytes: u64 = listed.iter().filter_map(|f| Some(std::fs::metadata(root().join(f)).ok()?.len())).sum();
    assert!(bytes < 10_000_000, "{bytes} bytes, unpacked");
}

#[test]
fn the_library_without_the_command_line_has_none_of_its_crates() {
    let tree = |features: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]).args(features);
        printed(cargo.current_dir(root()))
    };
    let crates =
        ["anstream", "clap", "clap_builder", "clap_complete", "clap_mangen", "comfy-table", "console", "indicatif"];
    let of = |tree: &str| -> Vec<&str> {
        crates.into_iter().filter(|c| tree.lines().any(|l| l.split(' ').next() == Some(c))).collect()
    };
    assert_eq!(of(&tree(&["--no-default-features", "--features", "tract,text,codecs"])), Vec::<&str>::new());
    assert_eq!(of(&tree(&[])), crates);
}

#[test]
fn a_release_archive_works_where_nothing_else_is() {
    let Some(library) = library() else {
        return left_out("the release archive needs ONNX Runtime: run scripts/fetch/onnxruntime.sh");
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("dist");
    let mut script = Command::new("scripts/release/release.sh");
    script.args(["--binary", env!("CARGO_BIN_EXE_offshoot"), "--onnxruntime"]).arg(&library);
    printed(script.arg("--output").arg(&out).env("CARGO_NET_OFFLINE", "true").current_dir(root()));
    let mut archives = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path());
    let archive = archives.find(|p| p.extension().is_some_and(|e| e == "gz")).unwrap();
    let name = archive.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap();
    assert!(name.starts_with(concat!("offshoot-", env!("CARGO_PKG_VERSION"), "-")), "{name}");
    printed(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()));
    printed(Command::new("sha256sum").arg("-c").arg(format!("{name}.tar.gz.sha256")).current_dir(&out));
    let unpacked = folder.path().join(name);
    for file in [
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "licences/onnxruntime.txt",
        "licences/crates.txt",
        "completions/offshoot.bash",
        "completions/_offshoot",
        "completions/offshoot.fish",
        "man/offshoot.1",
        "docs/guide.md",
    ] {
        assert!(std::fs::metadata(unpacked.join(file)).is_ok_and(|m| m.len() > 500), "{file} is missing");
    }
    let crates = std::fs::read_to_string(unpacked.join("licences/crates.txt")).unwrap();
    assert!(["clap ", "tract-core ", "Permission is hereby granted"].iter().all(|s| crates.contains(s)));

    // No HOME, no PATH, no other folder; and from a folder that holds a file which would not load.
    let empty = folder.path().join("empty");
    std::fs::create_dir_all(empty.join(".onnxruntime")).unwrap();
    std::fs::write(empty.join(".onnxruntime/libonnxruntime.so"), "not a library").unwrap();
    let offshoot = unpacked.join("offshoot");
    let link = folder.path().join("offshoot");
    std::os::unix::fs::symlink(&offshoot, &link).unwrap();
    for program in [&offshoot, &link] {
        let doctor = printed(alone(program, &empty).args(["doctor", "--json"]));
        let doctor: serde_json::Value = serde_json::from_str(&doctor).unwrap();
        assert_eq!(doctor["runtime"], "onnxruntime");
        let of_archive = unpacked.join("libonnxruntime.so").canonicalize().unwrap();
        assert_eq!(Path::new(doctor["library"]["path"].as_str().unwrap()).canonicalize().unwrap(), of_archive);
    }
    let model = unpacked.join("models/fashion-vit.onnx");
    assert!(printed(alone(&offshoot, &empty).arg("inspect").arg(&model)).contains("405002"));
    let images = unpacked.join("fixtures/fashion-images.idx3-ubyte");
    let mut density = alone(&offshoot, &empty);
    density.arg("density").arg(&model).arg("--images").arg(images).args(["--limit", "20", "--runtime", "onnxruntime"]);
    assert_eq!(printed(&mut density).lines().count(), 9);
}

/// A Python that makes environments and has ONNX Runtime: `OFFSHOOT_PYTHON`, or else `python3`.
fn python() -> Option<OsString> {
    let python = std::env::var_os("OFFSHOOT_PYTHON").unwrap_or_else(|| "python3".into());
    let found = Command::new(&python).args(["-c", "import ensurepip, onnxruntime"]).output();
    found.is_ok_and(|o| o.status.success()).then_some(python)
}

#[test]
fn a_wheel_works_in_a_fresh_environment() {
    let Some(python) = python() else {
        return left_out("the wheel needs a Python with venv and onnxruntime, in OFFSHOOT_PYTHON");
    };
    let folder = tempfile::tempdir().unwrap();
    let mut script = Command::new(&python);
    script.arg("scripts/release/build_wheel.py").args(["--binary", env!("CARGO_BIN_EXE_offshoot"), "--output"]);
    script.arg(folder.path()).env("CARGO_NET_OFFLINE", "true").current_dir(root());
    let wheel = printed(&mut script).trim().to_string();
    let venv = folder.path().join("venv");
    printed(Command::new(&python).args(["-m", "venv"]).arg(&venv));
    let mut install = Command::new(venv.join("bin/python"));
    // The version of pip is the environment's own; what it installs comes from the file.
    install.args(["-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", &wheel]);
    printed(&mut install);
    let offshoot = venv.join("bin/offshoot");
    let version = printed(alone(&offshoot, folder.path()).arg("--version"));
    assert_eq!(version.trim(), concat!("offshoot ", env!("CARGO_PKG_VERSION")));
    let doctor = || {
        let said = printed(alone(&offshoot, folder.path()).args(["doctor", "--json"]));
        serde_json::from_str::<serde_json::Value>(&said).unwrap()
    };
    // As `pip install 'offshoot[onnxruntime]'` leaves it, without the download.
    let packages = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let place = |python: &OsString| printed(Command::new(python).args(["-c", packages])).trim().to_string();
    let own = PathBuf::from(place(&venv.join("bin/python").into())).join("onnxruntime");
    assert!(
        doctor()["libraries_found"]
            .as_array()
            .unwrap()
            .iter()
            .all(|l| { !l["path"].as_str().unwrap().starts_with(venv.to_str().unwrap()) })
    );
    std::os::unix::fs::symlink(Path::new(&place(&python)).join("onnxruntime"), &own).unwrap();
    let found = doctor();
    assert_eq!(found["runtime"], "onnxruntime", "{found}");
    assert!(found["library"]["path"].as_str().unwrap().starts_with(own.to_str().unwrap()), "{found}");
    let mut uninstall = Command::new(venv.join("bin/python"));
    printed(uninstall.args(["-m", "pip", "uninstall", "--quiet", "--yes", "offshoot"]));
    assert!(!offshoot.exists());
}
