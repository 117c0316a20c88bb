//! Outputs: nothing else is ever written, and a file is the old one or the new one.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

/// CVE-2025-51480: names in a model lead its writer to other files.
#[test]
fn names_in_a_model_lead_to_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, b"precious").unwrap();
    let mut model = Model::open(ancestor()).unwrap();
    for t in &mut model.graph_mut().initializer {
        // A leftover of external data beside a payload.
        let entry = StringStringEntryProto { key: Some("location".into()), value: Some("../victim".into()) };
        t.external_data = vec![entry];
    }
    model.graph_mut().name = Some("../victim".into());
    model.set_metadata("location", "../victim");
    let path = inner.join("model.onnx");
    model.write(&path).unwrap();
    let out = inner.join("out.onnx");
    let grown = offshoot(&["grow", text(&path), "--no-images", "--heads", "4", "-o", text(&out)]);
    assert!(grown.status.success(), "{}", String::from_utf8_lossy(&grown.stderr));
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 2);
    Model::open(&out).unwrap();
}

#[test]
fn a_link_at_the_output_is_replaced_and_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (victim, link) = (folder.path().join("victim"), folder.path().join("out.onnx"));
    std::fs::write(&victim, b"precious").unwrap();
    symlink(&victim, &link).unwrap();
    let grow = |out: &Path, more: &[&str]| {
        offshoot(&[&["grow", text(&ancestor()), "--no-images", "-o", text(out)], more].concat())
    };
    assert_eq!(grow(&link, &[]).status.code(), Some(2), "an output that exists is refused");
    assert!(grow(&link, &["--force"]).status.success());
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(!std::fs::symlink_metadata(&link).unwrap().is_symlink());
    // A second name of the input is the input.
    let (input, second) = (folder.path().join("input.onnx"), folder.path().join("second.onnx"));
    std::fs::copy(ancestor(), &input).unwrap();
    std::fs::hard_link(&input, &second).unwrap();
    let before = std::fs::read(&input).unwrap();
    let _ = offshoot(&["grow", text(&input), "--no-images", "--heads", "2", "-o", text(&second), "--force"]);
    assert_eq!(std::fs::read(&input).unwrap(), before);
    // Where nobody may write nothing is written.
    for out in ["/proc/out.onnx", "/dev/null", "/dev/full", "/"] {
        let output = grow(Path::new(out), &["--force"]);
        assert_eq!(output.status.code(), Some(2), "{out}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Another file system than that of the input and of temporary files.
#[test]
fn an_output_on_another_file_system() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let out = folder.path().join("out.onnx");
    assert!(offshoot(&["grow", text(&ancestor()), "--no-images", "-o", text(&out)]).status.success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A file of the old or of the new model, whenever the writer is killed, and whoever else writes it.
#[test]
fn killed_writers_and_two_writers_leave_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let start = |heads: &str| {
        let m = ancestor();
        let arguments = ["grow", text(&m), "--no-images", "--heads", heads, "--force", "-o", text(&out)];
        // Without the shell between, so that the signal reaches the writer.
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(arguments).stderr(Stdio::null()).stdout(Stdio::null());
        command
    };
    let whole: Vec<Vec<u8>> = ["2", "4"]
        .iter()
        .map(|heads| {
            assert!(start(heads).status().unwrap().success());
            std::fs::read(&out).unwrap()
        })
        .collect();
    for i in 0..30u64 {
        let mut writer = start(["2", "4"][i as usize % 2]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 * i));
        let _ = writer.kill();
        let _ = writer.wait();
        assert!(whole.contains(&std::fs::read(&out).unwrap()), "killed after {} ms", 5 * i);
    }
    for _ in 0..5 {
        let writers: Vec<_> = ["2", "4", "2", "4"].iter().map(|h| start(h).spawn().unwrap()).collect();
        for mut writer in writers {
            assert!(writer.wait().unwrap().success());
        }
        assert!(whole.contains(&std::fs::read(&out).unwrap()));
    }
}

/// A model that another program writes over, in place, while it is mapped: at equal length and cut short.
#[test]
fn a_model_that_is_written_over_while_it_is_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("model.onnx"), folder.path().join("out.onnx"));
    let whole = std::fs::read(ancestor()).unwrap();
    std::fs::write(&path, &whole).unwrap();
    let model = Model::open(&path).unwrap();
    model.write(&out).unwrap();
    // The clock of some file systems is coarse.
    std::thread::sleep(Duration::from_millis(30));
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&whole).unwrap();
    drop(file);
    std::fs::remove_file(&out).unwrap();
    let error = model.write(&out).unwrap_err();
    assert!(error.to_string().contains("wrote over this file"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a file was left");
    drop(model);

    // Cut short under a command that trains: it reads the weights again when it writes them.
    std::fs::write(&path, &whole).unwrap();
    let images = root().join("fixtures/fashion-images.idx3-ubyte");
    let tune =
        ["tune", text(&path), "--data", text(&images), "--teacher", text(&path), "--batch-size", "8", "--epochs", "1"];
    let tune = [&tune[..], &["--runtime", "tract", "-o", text(&out)]].concat();
    let mut child = bounded(&tune).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let seen: Vec<String> = lines.by_ref().take_while(|l| !l.contains("images to train on")).collect();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let rest: Vec<String> = lines.collect();
    let status = child.wait().unwrap();
    let said = format!("{}\n{}", seen.join("\n"), rest.join("\n"));
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("while it was read"), "{said}");
    assert!(!out.exists());
}

/// SIGTERM ends training after an update, with a checkpoint that the same command goes on from.
#[test]
fn a_run_that_is_asked_to_end_saves_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let (m, images) = (ancestor(), root().join("fixtures/fashion-images.idx3-ubyte"));
    let out = folder.path().join("out.onnx");
    let tune = ["tune", text(&m), "--data", text(&images), "--batch-size", "8", "--epochs", "2", "--runtime", "tract"];
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(tune).args(["-o", text(&out)]).args(more).env("NO_COLOR", "1").current_dir(root());
        command
    };
    let mut child = command(&[]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|l| l.contains("images to train on")));
    let term = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(term.success());
    let said = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stopped after update") && said.contains("--resume"), "{said}");
    assert!(!out.exists() || Model::open(&out).is_ok());
    let resumed = command(&["--resume", "--force"]).output().unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    Model::open(&out).unwrap();
}

/// A metrics file that is moved away while a run writes to it (log rotation) is begun anew, and no line is lost.
#[test]
fn a_metrics_file_that_is_moved_away_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (m, images, log, old) =
        (ancestor(), root().join("fixtures/fashion-images.idx3-ubyte"), at("log.jsonl"), at("log.jsonl.1"));
    let tune = ["tune", text(&m), "--data", text(&images), "--batch-size", "8", "--epochs", "1", "--runtime", "tract"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_offshoot"))
        .args(tune)
        .args(["--metrics", text(&log), "-o", text(&at("out.onnx"))])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    while lines(&log) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was watched");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::rename(&log, &old).unwrap();
    assert!(child.wait().unwrap().success());
    let both = std::fs::read_to_string(&old).unwrap() + &std::fs::read_to_string(&log).unwrap();
    let steps: Vec<u64> = both
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|v| v.get("loss").is_some())
        .map(|v| v["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    assert!(lines(&old) >= 3 && lines(&log) > 3 && steps.len() > 30, "{} and {}", lines(&old), lines(&log));
}
