//! Wrong commands as a new user gives them, and what they are told: `wrong.txt`, word for word.
//!
//! `OFFSHOOT_UPDATE=1 cargo test --test embedded wrong` writes the file anew; read what changed.

use std::fmt::Write;

use crate::common::binary::offshoot;
use crate::common::root;

#[test]
fn wrong_commands_say_what_to_do() {
    let path = root().join("tests/embedded/wrong.txt");
    let before = std::fs::read_to_string(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let (mut now, mut count) = (String::new(), 0);
    for line in before.lines().filter_map(|l| l.strip_prefix("$ offshoot")) {
        let arguments: Vec<String> = line.split_whitespace().map(|a| a.replace("OUT", out)).collect();
        let output = offshoot(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).replace(out, "OUT");
        assert!(output.stdout.is_empty(), "{line}");
        writeln!(now, "$ offshoot{line}\n{}\nexit {}\n", said.trim_end(), output.status.code().unwrap()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        count += 1;
    }
    assert!(count >= 20);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    if std::env::var_os("OFFSHOOT_UPDATE").is_some() {
        std::fs::write(&path, now).unwrap();
    } else {
        assert!(before == now, "{now}");
    }
}
