//! What ARCHITECTURE.md and CONTRIBUTING.md promise of the source, checked against the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file, and of a function.
const FILE: usize = 800;
const FUNCTION: usize = 80;

/// The most columns of a line, comments included. A raw string may be longer: it cannot be broken.
const COLUMNS: usize = 120;

/// Files that are longer: how long they are at most, and why. An entry that is no longer needed is an error.
const LONG_FILES: &[(&str, usize, &str)] = &[];

/// Functions that are longer, in the same way.
const LONG_FUNCTIONS: &[(&str, &str, usize, &str)] = &[(
    "src/runtime/kernels/product.rs",
    "weight_gradient_lanes",
    100,
    "packs and multiplies with pointers that its loops share",
)];

/// Files of a folder that import from each other in a circle, still. One that is no longer there is an error, too.
const CIRCLES: &[&str] = &[];

/// A file of the source.
struct Source {
    /// Relative to the repository.
    path: String,
    /// The folder of `src`, or the name of a file right in it.
    folder: String,
    lines: Vec<String>,
    /// Where its tests begin.
    tests: usize,
}

impl Source {
    /// The lines that are compiled into the product, with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines[..self.tests].iter().enumerate();
        lines.map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|own| extensions.iter().any(|extension| own == *extension)) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    files(&root().join("src"), &["rs"], &mut found);
    assert!(found.len() > 100, "the source was not found");
    let source = |path: PathBuf| {
        let path = path.strip_prefix(root()).unwrap();
        let folder = path.iter().nth(1).unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let lines: Vec<String> = fs::read_to_string(root().join(path)).unwrap().lines().map(str::to_owned).collect();
        // A whole file of tests, or where they begin; a line that only names such a file is none of them.
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests" || stem == "testing");
        let begins = |pair: &[String]| pair[0] == "#[cfg(test)]" && !pair[1].ends_with(';');
        let tests = if is_test { 0 } else { lines.windows(2).position(begins).unwrap_or(lines.len()) };
        Source { path: path.to_string_lossy().into_owned(), folder, lines, tests }
    };
    found.into_iter().map(source).collect()
}

/// Rows of the tables of ARCHITECTURE.md whose first cell is a name in backticks, below a heading.
fn table(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    section.lines().filter_map(name).collect()
}

/// The words that follow `word` in a line of code.
fn after<'l>(line: &'l str, word: &'l str) -> impl Iterator<Item = String> + 'l {
    line.match_indices(word)
        .map(move |(at, _)| line[at + word.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[test]
fn folders_import_from_those_above_them_in_the_table_of_the_architecture() {
    let order = table("Folders");
    let place: BTreeMap<&str, usize> = order.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let sources = sources();
    let folders: BTreeSet<&str> =
        sources.iter().map(|s| s.folder.as_str()).filter(|f| !["lib", "main"].contains(f)).collect();
    assert_eq!(folders, place.keys().copied().collect(), "the table of folders and src");
    let mut wrong = Vec::new();
    let mut imports = 0;
    for source in sources.iter().filter(|source| place.contains_key(source.folder.as_str())) {
        for (number, line) in source.code() {
            assert!(
                !line.contains("use crate::{"),
                "{}:{number}: one `use` a folder, which this test can read",
                source.path
            );
            for name in after(line, "crate::") {
                // Macros stand at the root of the crate.
                let Some(&at) = place.get(name.as_str()) else { continue };
                imports += 1;
                if at > place[source.folder.as_str()] {
                    wrong.push(format!("{}:{number} imports {name}, which stands below", source.path));
                }
            }
        }
    }
    assert!(imports > 300, "only {imports} imports were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A path of a `use` line, and the name that it has in the file.
struct Import {
    path: Vec<String>,
    name: String,
    /// True where the file passes it on.
    public: bool,
}

/// The `use` lines of a file, each name of a list apart.
fn imports(source: &Source) -> Vec<Import> {
    let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
    let mut found = Vec::new();
    for statement in code.split_inclusive(';').map(|s| s.rsplit_once("\n\n").map_or(s, |(_, last)| last)) {
        for line in statement.match_indices("use ").map(|(at, _)| at) {
            // Those of an inner module are indented.
            let before = statement[..line].rsplit('\n').next().unwrap_or_default();
            if before.is_empty() || before == "pub " || before.starts_with("pub(") && before.ends_with(") ") {
                expand(&[], statement[line + 4..].trim_end_matches(';'), !before.is_empty(), &mut found);
                break;
            }
        }
    }
    found
}

/// Takes `a::{b, c::d as e}` apart.
fn expand(prefix: &[String], tree: &str, public: bool, found: &mut Vec<Import>) {
    let segments = |text: &str| text.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let Some((head, list)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let own: Vec<String> = segments(path);
        let mut path = [prefix, &own].concat();
        path.pop_if(|last| last == "self");
        let name = if alias.is_empty() { path.last().cloned().unwrap_or_default() } else { alias.trim().to_owned() };
        return found.push(Import { path, name, public });
    };
    let head: Vec<String> = segments(head);
    let prefix = [prefix, &head].concat();
    let list = list.trim_end().strip_suffix('}').unwrap_or(list);
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in list.char_indices().chain([(list.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !list[start..at].trim().is_empty() {
                    expand(&prefix, &list[start..at], public, found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The source as modules: the path of each, and what it imports.
struct Modules(BTreeMap<Vec<String>, Vec<Import>>);

impl Modules {
    fn read() -> Modules {
        let module = |path: &str| -> Vec<String> {
            let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
            path.split('/').filter(|name| !["lib", "main"].contains(name)).map(str::to_owned).collect()
        };
        Modules(sources().iter().map(|source| (module(&source.path), imports(source))).collect())
    }

    /// The module that an import of `from` is defined in, through the lists of names that modules pass on.
    fn of(&self, from: &[String], path: &[String]) -> Option<Vec<String>> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.to_vec(), &path[1..]),
            "super" => (from.to_vec(), path),
            _ => (from.to_vec(), path),
        };
        while rest.first().is_some_and(|name| name == "super") {
            at.pop();
            rest = &rest[1..];
        }
        let child = |at: &[String], name: &String| [at, std::slice::from_ref(name)].concat();
        let relative = !["crate", "self", "super"].contains(&path[0].as_str());
        if relative && !self.0.contains_key(&child(&at, &path[0])) {
            return None;
        }
        while let Some(name) = rest.first().filter(|name| self.0.contains_key(&child(&at, name))) {
            at = child(&at, name);
            rest = &rest[1..];
        }
        let passed_on = rest.first().and_then(|name| self.0.get(&at)?.iter().find(|i| i.public && i.name == *name));
        match passed_on {
            Some(import) if (&at, &import.path[..]) != (&from.to_vec(), path) => {
                self.of(&at, &import.path).or(Some(at))
            }
            _ => Some(at),
        }
    }

    /// What each module imports from others of its folder of `src`.
    fn edges(&self) -> BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> {
        let of = |module: &Vec<String>, imports: &Vec<Import>| -> BTreeSet<Vec<String>> {
            let found = imports.iter().filter_map(|import| self.of(module, &import.path));
            found.filter(|to| to != module && to.first() == module.first() && self.0.contains_key(to)).collect()
        };
        self.0.iter().map(|(module, imports)| (module, of(module, imports))).collect()
    }
}

#[test]
fn files_of_a_folder_do_not_import_from_each_other_in_circles() {
    let modules = Modules::read();
    let edges = modules.edges();
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 300, "the imports were not found");
    let reached = |from: &Vec<String>| -> BTreeSet<Vec<String>> {
        let mut reached = BTreeSet::new();
        let mut todo: Vec<&Vec<String>> = vec![from];
        while let Some(module) = todo.pop() {
            todo.extend(edges[module].iter().filter(|to| reached.insert((*to).clone())));
        }
        reached
    };
    let reached: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = edges.keys().map(|m| (*m, reached(m))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, to) in &reached {
        let circle: Vec<String> =
            to.iter().filter(|other| reached[other].contains(*module)).map(|other| other.join("/")).collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    let listed: BTreeSet<Vec<String>> =
        CIRCLES.iter().map(|list| list.split(' ').map(str::to_owned).collect()).collect();
    assert_eq!(circles, listed, "what is found, and what is listed");
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let found: Vec<String> = sources()
        .iter()
        .flat_map(|source| {
            let unwraps = source
                .code()
                .filter(|(_, line)| [".unwrap()", ".expect(", "panic!("].iter().any(|word| line.contains(word)));
            unwraps.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Functions of a file: name, first line and number of lines. rustfmt closes each with a brace of its own indentation.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (number, line) in source.code() {
        let Some(name) = line.trim_start().split("fn ").nth(1).filter(|_| starts_a_function(line)) else { continue };
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let closing = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let rest = &source.lines[number - 1..];
        if let Some(length) =
            rest.iter().position(|line| *line == closing || line.ends_with(';')).filter(|&l| rest[l] == closing)
        {
            found.push((name, number, length + 1));
        } else if let Some(length) = rest.iter().position(|line| *line == closing) {
            found.push((name, number, length + 1));
        }
    }
    found
}

fn starts_a_function(line: &str) -> bool {
    let words = line.trim_start();
    ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "const fn ", "pub const fn ", "unsafe fn ", "pub unsafe fn "]
        .iter()
        .any(|start| words.starts_with(start))
}

#[test]
fn files_and_functions_are_short_or_listed_with_a_reason() {
    let sources = sources();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in &sources {
        let listed = LONG_FILES.iter().find(|entry| entry.0 == source.path);
        let most = listed.map_or(FILE, |entry| entry.1);
        let lines = source.lines.len();
        if lines > most {
            wrong.push(format!("{} has {lines} lines, {most} at most", source.path));
        } else if listed.is_some() && lines <= FILE {
            wrong.push(format!("{} has {lines} lines and needs no entry", source.path));
        }
        for (name, number, lines) in functions(source) {
            seen += 1;
            let listed =
                LONG_FUNCTIONS.iter().find(|entry| entry.0 == source.path && entry.1 == name && lines > FUNCTION);
            let most = listed.map_or(FUNCTION, |entry| entry.2);
            if lines > most {
                wrong.push(format!("{}:{number}: `{name}` has {lines} lines, {most} at most", source.path));
            }
        }
    }
    for (path, name, ..) in LONG_FUNCTIONS {
        let source = sources.iter().find(|source| source.path == *path);
        let long = source.is_some_and(|s| functions(s).iter().any(|(n, _, lines)| n == name && *lines > FUNCTION));
        if !long {
            wrong.push(format!("{path}: `{name}` needs no entry"));
        }
    }
    assert!(seen > 2000, "only {seen} functions were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// From this many on, names of operators that stand together are a list.
const LIST: usize = 5;

/// What is true of some operators is a column of the table, or the next operator is forgotten somewhere.
#[test]
fn lines_are_short() {
    let mut all = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "fuzz"] {
        files(&root().join(folder), &["rs"], &mut all);
    }
    assert!(all.len() > 300, "{} files", all.len());
    let mut long = Vec::new();
    for path in &all {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().enumerate().filter(|(_, l)| l.chars().count() > COLUMNS && !l.contains("r#\""));
        long.extend(lines.map(|(k, _)| format!("{}:{}", path.display(), k + 1)));
    }
    assert!(long.is_empty(), "lines of more than {COLUMNS} columns:\n{}", long.join("\n"));
}

#[test]
fn no_list_of_operator_names_outside_the_operator_table() {
    let table = fs::read_to_string(root().join("src/ops/table.rs")).unwrap();
    let rows = table.lines().filter(|line| ["    op(", "    microsoft("].iter().any(|start| line.starts_with(start)));
    let operators: BTreeSet<&str> = rows.filter_map(|row| row.split('"').nth(1)).collect();
    assert!(operators.len() > 100, "only {} operators were found", operators.len());
    let known = |literal: &str| literal.split_whitespace().filter(|word| operators.contains(word)).count();
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.folder != "ops") {
        let mut together = 0;
        for (number, line) in source.code() {
            for (i, part) in line.split('"').enumerate() {
                if i % 2 == 1 {
                    let before = together;
                    together += known(part);
                    if before < LIST && together >= LIST {
                        found.push(format!("{}:{number}: {}", source.path, line.trim()));
                    }
                } else if !part.chars().all(|c| c.is_whitespace() || c == ',' || c == '|') {
                    together = 0;
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The file that walks graphs.
const WALK: &str = "src/graph/walk.rs";

/// Loops that take from a list of what is open, and yet walk no graph of nodes from value to value.
const FRONTIERS: [(&str, usize, &str); 2] = [
    ("src/graph/order.rs", 1, "sorting counts the inputs that each node waits for"),
    ("src/learngene/clusters.rs", 1, "DBSCAN goes from head to head"),
];

/// Flags of other programs, and of the command that the library starts as a child: file, the flag, whose it is.
const FOREIGN_FLAGS: [(&str, &str, &str); 7] = [
    ("src/data/formats/parquet.rs", "features", "cargo's"),
    ("src/data/formats/parquet.rs", "path", "cargo's"),
    ("src/parallel/alone.rs", "features", "cargo's"),
    ("src/parallel/backend.rs", "mpi", "srun's"),
    ("src/runtime/plain.rs", "opens", "an argument of the child process"),
    ("src/runtime/plain.rs", "onnxruntime", "an argument of the child process"),
    ("src/runtime/plain.rs", "runtime", "an argument of the child process"),
];

/// The command line writes `⟦image-size⟧` as `--image-size`. Others who use the library have no flags.
#[test]
fn no_text_of_the_library_names_a_flag() {
    let mut wrong = Vec::new();
    let mut foreign = BTreeSet::new();
    for source in sources().iter().filter(|source| !["cli", "main"].contains(&source.folder.as_str())) {
        for (k, line) in source.lines.iter().enumerate() {
            // Literals go over several lines, so every line counts that is no comment.
            let is_comment = line.trim_start().starts_with("//");
            for flag in after(line, "--").filter(|flag| !is_comment && flag.starts_with(|c: char| c.is_alphabetic())) {
                match FOREIGN_FLAGS.iter().find(|(path, name, _)| source.path == *path && flag == *name) {
                    Some(entry) => drop(foreign.insert(entry)),
                    None => wrong.push(format!("{}:{}: --{flag}; write ⟦{flag}...⟧", source.path, k + 1)),
                }
            }
        }
    }
    wrong.extend(FOREIGN_FLAGS.iter().filter(|e| !foreign.contains(e)).map(|e| format!("{e:?} needs no entry")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn graphs_are_walked_in_one_file() {
    let takes = [".pop()", ".pop_front()", ".pop_back()", ".pop_first()", ".pop_last()", ".maker("];
    let is_loop = |line: &str| line.contains("while let Some") && takes.iter().any(|take| line.contains(take));
    let mut wrong = Vec::new();
    let mut walks = 0;
    for source in sources() {
        let found: Vec<usize> = source.code().filter(|(_, line)| is_loop(line)).map(|(number, _)| number).collect();
        if source.path == WALK {
            walks = found.len();
            continue;
        }
        let listed = FRONTIERS.iter().find(|entry| entry.0 == source.path).map_or(0, |entry| entry.1);
        if found.len() != listed {
            wrong.push(format!("{}: loops at {found:?}, {listed} listed: {WALK} knows how to walk", source.path));
        }
    }
    assert!(walks > 0, "no walk was found in {WALK}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn metadata_keys_stand_in_one_file_and_the_architecture_lists_them() {
    let mut found = BTreeSet::new();
    let mut elsewhere = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            let literals = line.split('"').skip(1).step_by(2).filter(|l| l.starts_with("offshoot."));
            for literal in literals {
                if source.path != "src/metadata.rs" {
                    elsewhere.push(format!("{}:{number}: {literal:?}", source.path));
                }
                found.insert(literal.to_owned());
            }
        }
    }
    assert!(elsewhere.is_empty(), "{}", elsewhere.join("\n"));
    // Those with a slash are versions of JSON and prefixes of names.
    let keys: BTreeSet<String> = found.into_iter().filter(|literal| !literal.contains('/')).collect();
    assert_eq!(keys, table("Metadata").into_iter().collect());
}

#[test]
fn a_mod_file_is_a_table_of_contents() {
    let mut all = Vec::new();
    files(&root().join("src"), &["rs"], &mut all);
    all.retain(|path| path.ends_with("mod.rs"));
    assert!(all.len() > 15, "{} files", all.len());
    let words = ["fn", "struct", "enum", "trait", "impl", "const", "static", "type"];
    let item = |line: &&str| line.split([' ', '<']).any(|word| words.contains(&word));
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        let found: Vec<&str> = text.lines().filter(|l| !l.starts_with([' ', '/'])).filter(item).collect();
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}

#[test]
fn the_readme_of_the_scripts_lists_every_script_once() {
    let readme = fs::read_to_string(root().join("scripts/README.md")).unwrap();
    let sections = readme.split("\n## ").skip(1).map(|section| section.split_once("/:").unwrap());
    let mut listed: Vec<String> = sections
        .flat_map(|(folder, section)| {
            let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            names.map(|name| format!("{folder}/{name}")).collect::<Vec<_>>()
        })
        .collect();
    listed.sort();
    let mut found = Vec::new();
    for folder in fs::read_dir(root().join("scripts")).unwrap().map(|entry| entry.unwrap().path()) {
        for file in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                found.push(file.strip_prefix(root().join("scripts")).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(listed, found);
}

#[test]
fn every_python_script_names_its_packages() {
    let mut all = Vec::new();
    files(&root().join("scripts"), &["py"], &mut all);
    assert!(all.len() > 40, "{} scripts", all.len());
    all.retain(|path| !fs::read_to_string(path).unwrap().contains("# /// script\n"));
    assert!(all.is_empty(), "{all:?}");
}

/// Lines that two places may not share.
const SHARED: usize = 6;

/// Pairs of files with places that share so many lines or more: how many pairs of places, and why they may.
const TWINS: [(&str, &str, usize, &str); 11] = [
    ("scripts/check/survey_optimisers.py", "scripts/lib/coverage.py", 1, "the ends of two command lines"),
    ("src/axes/factors.rs", "src/axes/factors.rs", 1, "the same from within and from without"),
    ("src/axes/build.rs", "src/axes/sizes.rs", 1, "models of two tests"),
    ("src/cli/commands/condense.rs", "src/cli/commands/grow.rs", 1, "flags with texts of their own"),
    ("src/cli/commands/density.rs", "src/cli/commands/shrink.rs", 1, "flags in the order of the help"),
    ("src/data/dataset.rs", "src/data/source.rs", 1, "one passes on to the other"),
    ("src/graph/half_precision.rs", "src/training/precision.rs", 1, "an attribute, written down"),
    ("src/runtime/kernels/lanes.rs", "src/runtime/kernels/lanes.rs", 1, "a kernel and its gradient, for speed apart"),
    ("src/runtime/kernels/operators.rs", "src/runtime/kernels/operators.rs", 2, "what each operator must declare"),
    ("src/training/rules/contraction.rs", "src/training/rules/contraction.rs", 1, "a convolution and its adjoint"),
    ("tests/embedded/tune.rs", "tests/mpi.rs", 1, "tests that are two programs"),
];

/// The lines of a file that say something, with their numbers: no comments, imports, blanks and lone brackets.
fn telling<'t>(path: &Path, text: &'t str) -> (Vec<usize>, Vec<&'t str>) {
    let rust = path.extension().is_some_and(|extension| extension == "rs");
    let mut inside_use = false;
    let mut told = Vec::new();
    for (i, line) in text.lines().map(str::trim).enumerate() {
        let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
        let import = match rust {
            true => inside_use || begins(&["use ", "pub use ", "pub(crate) use ", "pub(super) use "]),
            false => begins(&["import ", "from "]),
        };
        inside_use = rust && import && !line.ends_with(';');
        let bracket = line.trim_end_matches([',', ';']);
        let lone = bracket.is_empty() || ["[", "]", "(", ")", "{", "}"].contains(&bracket);
        if !import && !lone && !line.starts_with(if rust { "//" } else { "#" }) {
            told.push((i + 1, line));
        }
    }
    told.into_iter().unzip()
}

#[test]
fn what_stands_in_two_places_is_listed_with_a_reason() {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "fuzz", "scripts"] {
        files(&root().join(folder), &["rs", "py", "sh"], &mut paths);
    }
    let texts: Vec<String> = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let told: Vec<_> = paths.iter().zip(&texts).map(|(path, text)| telling(path, text)).collect();
    let mut places: BTreeMap<&[&str], Vec<(usize, usize)>> = BTreeMap::new();
    for (file, (_, lines)) in told.iter().enumerate() {
        for (at, window) in lines.windows(SHARED).enumerate() {
            places.entry(window).or_default().push((file, at));
        }
    }
    let mut shared = BTreeSet::new();
    for alike in places.values() {
        for (i, &a) in alike.iter().enumerate() {
            shared.extend(alike[i + 1..].iter().map(|&b| (a, b)));
        }
    }
    // Of windows that follow each other in both places the first counts.
    let goes_on = |&(a, b): &((usize, usize), (usize, usize))| {
        a.1 > 0 && b.1 > 0 && shared.contains(&((a.0, a.1 - 1), (b.0, b.1 - 1)))
    };
    let name = |file: usize| paths[file].strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let mut found: BTreeMap<(String, String), Vec<[usize; 2]>> = BTreeMap::new();
    for (a, b) in shared.iter().filter(|pair| !goes_on(pair)) {
        let lines = [told[a.0].0[a.1], told[b.0].0[b.1]];
        found.entry((name(a.0), name(b.0))).or_default().push(lines);
    }
    let mut wrong = Vec::new();
    for ((a, b), lines) in &found {
        let listed = TWINS.iter().find(|entry| (entry.0, entry.1) == (a, b)).map_or(0, |entry| entry.2);
        if lines.len() != listed {
            wrong.push(format!("{a} and {b} share {SHARED} lines and more at {lines:?}, {listed} are listed"));
        }
    }
    for (a, b, ..) in TWINS.iter().filter(|entry| !found.contains_key(&(entry.0.into(), entry.1.into()))) {
        wrong.push(format!("{a} and {b} need no entry"));
    }
    assert!(paths.len() > 200, "only {} files were found", paths.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(TWINS.iter().map(|entry| entry.2).sum::<usize>() <= 15, "too much stands in two places");
}
