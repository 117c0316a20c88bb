//! Code that lies about: ONNX Runtime's library is loaded from nowhere but where its owner put it.

use super::*;

#[test]
fn a_library_in_the_working_folder_is_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    for place in ["", ".onnxruntime", "lib", "lib/python3.12/site-packages/onnxruntime/capi"] {
        std::fs::create_dir_all(folder.path().join(place)).unwrap();
        std::fs::write(folder.path().join(place).join(&name), "not what it says").unwrap();
    }
    let doctor = |command: &mut Command| {
        let output = command.args(["doctor", "--json"]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = json["libraries_found"].as_array().unwrap().clone();
        let here = folder.path().canonicalize().unwrap();
        let of_folder = |l: &&serde_json::Value| {
            Path::new(l["path"].as_str().unwrap()).canonicalize().is_ok_and(|p| p.starts_with(&here))
        };
        found.iter().filter(of_folder).count()
    };
    let command = || Command::new(env!("CARGO_BIN_EXE_offshoot"));
    assert_eq!(doctor(&mut command()), 0);
    // Named, it is looked at: the count can be another.
    assert_eq!(doctor(command().env("ORT_DYLIB_PATH", folder.path())), 1);
}
