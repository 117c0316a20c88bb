//! Every command line of the documentation.
//!
//! A fenced block of shell (`sh`) that calls `offshoot` is run, as it stands, by bash: the blocks of a page in their
//! order, in an empty folder that has the repository's `models` and `fixtures`. [`SHORTER`] says how runs are cut down,
//! [`stand_ins`] what stands in for files that a reader brings. A block marked `no_run` needs what is not in the
//! repository, which is checked; its commands must pass the command line's parser, as must the examples of `--help` and
//! the files for clusters. A flag that a text names must exist.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use ndarray::{Array1, Array4};
use offshoot::cli::Cli;
use rayon::prelude::*;

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What is written otherwise where blocks are run: (in the page, in the test).
const SHORTER: [(&str, &str); 5] = [
    ("cargo run --release -- ", "offshoot "),
    ("--epochs 20 ", "--epochs 1 "),
    // 192 views by default.
    ("offshoot shrink ", "offshoot shrink --crops 24 "),
    ("--fitted ", "--fitted --crops 24 "),
    // Ten epochs by default.
    ("--classes 17 -o", "--classes 17 --epochs 1 -o"),
];

/// What the blocks that are only parsed need: fetched or downloaded files, other machines, a script's own environment.
const BEYOND_A_TEST: [&str; 5] = [".cache/", "scripts/", "mpirun", "actions/checkout", "deit-tiny.onnx"];

/// Flags of other programs and of scripts that texts name.
const FOREIGN: [&str; 11] = [
    "--allow-run-as-root",
    "--binary",
    "--bind-to",
    "--fashion-mnist",
    "--features",
    "--map-by",
    "--mca",
    "--no-default-features",
    "--open",
    "--path",
    "--release",
];

/// A fenced block.
struct Block {
    line: usize,
    /// Behind the fence: the language, and `no_run`.
    info: String,
    text: String,
}

/// The pages: every Markdown file that is written by hand.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "models/README.md", "fixtures/README.md"].map(PathBuf::from).to_vec();
    let docs = walkdir::WalkDir::new(root().join("docs")).sort_by_file_name();
    pages.extend(
        docs.into_iter()
            .map(|e| e.unwrap().into_path())
            .filter(|p| p.extension().is_some_and(|e| e == "md") && !p.components().any(|c| c.as_os_str() == "results"))
            .map(|p| p.strip_prefix(root()).unwrap().to_path_buf()),
    );
    assert!(pages.len() >= 12, "{pages:?}");
    pages
}

fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{}: {e}", page.display()))
}

/// The fenced blocks of a page, and the text between them.
fn blocks(page: &Path) -> (Vec<Block>, String) {
    let (mut blocks, mut prose) = (Vec::<Block>::new(), String::new());
    let mut inside = false;
    for (i, line) in read(page).lines().enumerate() {
        match (line.strip_prefix("```"), inside) {
            (Some(info), false) => {
                inside = true;
                blocks.push(Block { line: i + 1, info: info.trim().to_string(), text: String::new() });
            }
            (Some(_), true) => inside = false,
            (None, true) => blocks.last_mut().unwrap().text += &format!("{line}\n"),
            (None, false) => prose += &format!("{line}\n"),
        }
    }
    assert!(!inside, "{}: a block has no end", page.display());
    (blocks, prose)
}

/// The blocks whose commands concern this test: (page, block).
fn of_shell() -> Vec<(PathBuf, Block)> {
    let mut out = Vec::new();
    for page in pages() {
        for block in blocks(&page).0 {
            let language = block.info.split(' ').next().unwrap_or_default();
            let calls = !commands(&block.text).is_empty();
            assert!(
                !calls || ["sh", "yaml"].contains(&language),
                "{}:{}: a block with a command is marked `sh`",
                page.display(),
                block.line
            );
            let no_run = block.info == format!("{language} no_run");
            assert!(
                !calls || no_run || block.info == "sh",
                "{}:{}: `{}` is no known mark",
                page.display(),
                block.line,
                block.info
            );
            if calls {
                out.push((page.clone(), block));
            }
        }
    }
    out
}

/// The words of a shell text, command by command. Operators and new lines end a command; quotes hold words together.
fn words(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let mut commands = vec![Vec::new()];
    let (mut word, mut open, mut quote) = (String::new(), false, None);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.push(c),
            ('\'' | '"', None) => (quote, open) = (Some(c), true),
            ('#', None) if !open => while characters.next_if(|&c| c != '\n').is_some() {},
            (c, None) if c.is_whitespace() || "|&;<>()".contains(c) => {
                if std::mem::take(&mut open) {
                    commands.last_mut().unwrap().push(std::mem::take(&mut word));
                }
                match c {
                    '<' | '>' => commands.last_mut().unwrap().push(c.to_string()),
                    '\n' | '|' | '&' | ';' | '(' | ')' => commands.push(Vec::new()),
                    _ => (),
                }
            }
            (c, None) => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        commands.last_mut().unwrap().push(word);
    }
    commands.retain(|c| !c.is_empty());
    commands
}

/// The calls of `offshoot` in a shell text, whatever starts them.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    for mut words in words(text) {
        // What is redirected is no argument.
        words.truncate(words.iter().position(|w| w == "<" || w == ">").unwrap_or(words.len()));
        words.drain(..words.iter().position(|w| w != "run:" && w != "-").unwrap_or(words.len()));
        if words.is_empty() {
            continue;
        }
        let cargo = words.starts_with(&["cargo".into(), "run".into()]);
        let launched = ["time", "mpirun", "if", "!"].contains(&words[0].as_str());
        let at = match cargo {
            true => words.iter().position(|w| w == "--"),
            false => words.iter().position(|w| w == "offshoot" || w.ends_with("/offshoot") && !w.contains('=')),
        };
        if let Some(at) = at.filter(|&at| cargo || launched || at == 0) {
            let mut call = vec!["offshoot".to_string()];
            // An array of further arguments, which a script may leave empty.
            call.extend(words.drain(at + 1..).filter(|w| !w.starts_with("${")));
            out.push(call);
        }
    }
    out
}

/// Parses calls as the binary does.
fn parse(place: &str, calls: &[Vec<String>]) -> Vec<String> {
    let failed = |call: &Vec<String>| Cli::try_parse_from(call).err().map(|e| format!("{place}: {call:?}: {e}"));
    calls.iter().filter_map(failed).collect()
}

#[test]
fn commands_that_are_not_run_are_parsed() {
    let mut failures = Vec::new();
    let mut count = 0;
    for (page, block) in of_shell().into_iter().filter(|(_, b)| b.info.ends_with("no_run")) {
        let place = format!("{}:{}", page.display(), block.line);
        if !BEYOND_A_TEST.iter().any(|b| block.text.contains(b)) {
            failures.push(format!("{place}: nothing in this block is out of a test's reach: let it run"));
        }
        let calls = commands(&block.text);
        count += calls.len();
        failures.extend(parse(&place, &calls));
    }
    assert!(count >= 20, "{count} commands");
    let cluster: Vec<PathBuf> = fs::read_dir(root().join("docs/cluster")).unwrap().map(|e| e.unwrap().path()).collect();
    let mut calls = 0;
    for path in cluster {
        let found = commands(&fs::read_to_string(&path).unwrap());
        calls += found.len();
        failures.extend(parse(&path.display().to_string(), &found));
    }
    assert_eq!(calls, 2, "docs/cluster has two scripts");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn examples_of_the_help_are_parsed() {
    let mut failures = Vec::new();
    for sub in Cli::command().get_subcommands() {
        let text = sub.get_after_help().unwrap().to_string();
        let calls = commands(&text);
        assert!(!calls.is_empty(), "{} has no example", sub.get_name());
        failures.extend(parse(&format!("{} --help", sub.get_name()), &calls));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn flags_that_texts_name_exist() {
    let long = |c: &clap::Command| c.get_arguments().filter_map(|a| a.get_long()).map(|l| format!("--{l}")).collect();
    let of: HashMap<String, HashSet<String>> =
        Cli::command().get_subcommands().map(|c| (c.get_name().to_string(), long(c))).collect();
    let (mut unknown, mut foreign, mut count) = (Vec::new(), HashSet::new(), 0);
    for page in pages() {
        let (_, prose) = blocks(&page);
        // Every second piece stands between backticks.
        for code in prose.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
            let command = words.iter().find(|w| **w != "offshoot").and_then(|w| of.get(*w));
            for flag in words.into_iter().filter(|w| w.starts_with("--") && w.len() > 2) {
                count += 1;
                let known = match command {
                    Some(flags) => flags.contains(flag),
                    None => of.values().any(|flags| flags.contains(flag)),
                };
                if FOREIGN.contains(&flag) {
                    foreign.insert(flag.to_string());
                } else if !known && !["--help", "--version"].contains(&flag) {
                    unknown.push(format!("{}: {flag} in `{code}`", page.display()));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(count > 100, "{count} flags");
    assert_eq!(foreign.len(), FOREIGN.len(), "of other programs are named only {foreign:?}");
}

/// What readers bring, made of what is in the repository; of the models those that the page does not make.
#[cfg(unix)]
fn stand_ins(folder: &Path, script: &str) {
    use ndarray_npy::NpzWriter;
    use std::os::unix::fs::symlink;

    for name in ["models", "fixtures"] {
        symlink(root().join(name), folder.join(name)).unwrap();
    }
    let brought = |name: &&str| !script.contains(&format!("-o {name}"));
    for name in ["ancestor.onnx", "child.onnx", "model.onnx"].into_iter().filter(brought) {
        symlink(root().join("models/fashion-vit.onnx"), folder.join(name)).unwrap();
    }
    let mut pictures: Vec<PathBuf> =
        fs::read_dir(root().join("fixtures/fashion-png")).unwrap().map(|e| e.unwrap().path()).collect();
    pictures.sort();
    symlink(root().join("fixtures/fashion-png"), folder.join("photographs")).unwrap();
    // Seventeen kinds of flowers, five pictures of each.
    for class in 0..17 {
        let of_class = folder.join(format!("flowers/class-{class:02}"));
        fs::create_dir_all(&of_class).unwrap();
        for i in 0..5 {
            symlink(&pictures[(class * 3 + i) % pictures.len()], of_class.join(format!("{i}.png"))).unwrap();
        }
    }
    let mut prepared = NpzWriter::new(fs::File::create(folder.join("prepared.npz")).unwrap());
    let image = |(n, _, y, x)| ((n * 7 + y * 3 + x) % 11) as f32 / 5.0 - 1.0;
    prepared.add_array("x", &Array4::from_shape_fn((32, 1, 28, 28), image)).unwrap();
    prepared.add_array("y", &Array1::from_shape_fn(32, |n| (n % 10) as i64)).unwrap();
    prepared.finish().unwrap();
}

#[cfg(unix)]
#[test]
fn commands_run() {
    let programs = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_offshoot"), programs.path().join("offshoot")).unwrap();
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let mut runs: Vec<(PathBuf, String)> = Vec::new();
    for (page, block) in of_shell().into_iter().filter(|(_, b)| b.info == "sh") {
        match runs.last_mut().filter(|(p, _)| *p == page) {
            Some((_, script)) => *script += &block.text,
            None => runs.push((page, block.text)),
        }
    }
    let names: Vec<String> = runs.iter().map(|(p, _)| p.display().to_string()).collect();
    for page in ["README.md", "docs/guide.md", "docs/shrink.md", "docs/training.md"] {
        assert!(names.iter().any(|n| n == page), "{page} runs nothing");
    }
    for (long, _) in SHORTER {
        assert!(runs.iter().any(|(_, script)| script.contains(long)), "nothing says `{long}`");
    }
    // To run some pages only: OFFSHOOT_PAGE=guide
    let wanted = std::env::var("OFFSHOOT_PAGE").unwrap_or_default();
    runs.retain(|(page, _)| page.display().to_string().contains(&wanted));
    let failures: Vec<String> = runs.par_iter().filter_map(|(page, script)| run(page, script, &path)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Runs the commands of a page with these programs; says what failed.
#[cfg(unix)]
fn run(page: &Path, script: &str, programs: &str) -> Option<String> {
    let script = SHORTER.iter().fold(script.to_string(), |text, (long, short)| text.replace(long, short));
    let folder = tempfile::tempdir().unwrap();
    stand_ins(folder.path(), &script);
    let mut bash = Command::new("bash");
    bash.args(["-euxo", "pipefail", "-c", &script]).env("PATH", programs).env("NO_COLOR", "1");
    let output = bash.current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    (!output.status.success()).then(|| format!("{}: {}\n{last}", page.display(), output.status))
}
