//! Data sets whose names lead out of their folder.

use super::*;

/// The names of pictures in a Parquet file lead to none outside its folder, by `..` or by a link.
#[cfg(unix)]
#[test]
fn names_in_parquet_files_stay_in_the_folder() {
    let fixtures = root().join("fixtures/reports/parquet");
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("parquet");
    std::fs::create_dir_all(folder.join("red")).unwrap();
    let data = folder.join("names.parquet");
    std::fs::copy(fixtures.join("names.parquet"), &data).unwrap();
    std::fs::copy(fixtures.join("red/10.png"), outer.path().join("secret.png")).unwrap();
    std::fs::copy(fixtures.join("red/20.png"), folder.join("red/20.png")).unwrap();
    std::os::unix::fs::symlink("../../secret.png", folder.join("red/10.png")).unwrap();
    // Of four names one leads through the link, one is missing, and one climbs out of the folder and back into it.
    let (model, data) = (ancestor(), text(&data).to_owned());
    let arguments = ["eval", text(&model), "--data", &data, "--runtime", "tract"];
    let output = offshoot(&[&arguments[..], &["--json"]].concat());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["images"], &found["skipped"]), (&1.into(), &3.into()), "{found}");
    refused(
        &[&arguments[..], &["--strict"]].concat(),
        &["`red/10.png` of a file, a link that leads out of the folder"],
    );
}
