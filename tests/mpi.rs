//! Several processes under `mpirun`: what they make together is what one makes alone, and none of them fails unheard.
//!
//! These tests want the feature `mpi` and Open MPI's `mpirun` (Debian: openmpi-bin).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use offshoot::onnx::{Model, to_f32};
use offshoot::parallel;
use serde_json::Value;

const ANCESTOR: &str = "models/fashion-vit.onnx";
const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";
const LABELS: &str = "fixtures/fashion-labels.idx1-ubyte";
const PICTURES: &str = "fixtures/fashion-png";
const TEXTS: &str = "fixtures/reports/texts";

/// `mpirun` with some processes, more than there may be cores, of one thread each.
fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root", "-n", &ranks.to_string()]);
    // Containers forbid to read another process's memory.
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none").env("NO_COLOR", "1");
    command
}

/// `offshoot` as one process, or as several.
fn offshoot(ranks: usize) -> Command {
    let binary = env!("CARGO_BIN_EXE_offshoot");
    if ranks > 1 {
        let mut command = mpirun(ranks);
        command.arg(binary);
        return command;
    }
    let mut command = Command::new(binary);
    command.env("NO_COLOR", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(ranks: usize, arguments: &[&str]) -> Output {
    let output = offshoot(ranks).args(arguments).args(["--threads", "1"]).output().unwrap();
    assert!(output.status.success(), "{ranks} x {arguments:?}: {}", text(&output.stderr));
    output
}

fn json(ranks: usize, arguments: &[&str]) -> Value {
    serde_json::from_slice(&done(ranks, arguments).stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    /// A child of two layers and two heads: quick to train.
    fn child(&self) -> String {
        let path = self.path("child.onnx");
        let binary = Command::new(env!("CARGO_BIN_EXE_offshoot"))
            .args(["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--heads", "2", "-o", &path])
            .output()
            .unwrap();
        assert!(binary.status.success(), "{}", text(&binary.stderr));
        path
    }
}

/// The lines of a metrics file.
fn metrics(path: &str) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn weights(path: &str) -> Vec<(String, Vec<f32>)> {
    let model = Model::open(Path::new(path)).unwrap();
    model.graph().initializer.iter().map(|t| (t.name().to_string(), to_f32(t).unwrap_or_default())).collect()
}

fn assert_near(a: &Value, b: &Value, tolerance: f64, what: &str) {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() <= tolerance * x.abs().max(1.0), "{what}: {x} and {y}");
        }
        (Value::Array(x), Value::Array(y)) => {
            assert_eq!(x.len(), y.len(), "{what}");
            x.iter().zip(y).enumerate().for_each(|(i, (x, y))| assert_near(x, y, tolerance, &format!("{what}[{i}]")));
        }
        (Value::Object(x), Value::Object(y)) => {
            assert!(x.keys().eq(y.keys()), "{what}");
            x.iter().for_each(|(k, x)| assert_near(x, &y[k], tolerance, &format!("{what}.{k}")));
        }
        _ => assert_eq!(a, b, "{what}"),
    }
}

/// Updates and validations of two runs, without what depends on the clock.
fn assert_same_run(a: &str, b: &str, what: &str) {
    let of = |path: &str| -> Value {
        let mut lines = metrics(path);
        lines.iter_mut().filter_map(Value::as_object_mut).for_each(|l| drop(l.remove("images_per_second")));
        lines.into()
    };
    assert_near(&of(a), &of(b), 1e-5, what);
}

/// The bias of keys moves all scores of a query alike: its gradient is rounding error, which Adam scales up, so it is
/// left out where weights were `tuned`.
fn assert_same_weights(a: &str, b: &str, tolerance: f32, tuned: bool) {
    for ((name, x), (_, y)) in
        weights(a).iter().zip(&weights(b)).filter(|((n, _), _)| !tuned || !n.ends_with("qkv.bias"))
    {
        assert_eq!(x.len(), y.len(), "{name}");
        for (x, y) in x.iter().zip(y) {
            assert!((x - y).abs() <= tolerance * x.abs().max(1.0), "{name}: {x} and {y}");
        }
    }
}

#[test]
fn several_processes_train_as_one() {
    let folder = Folder::new();
    let child = folder.child();
    let run = |ranks: usize, batch: usize, name: &str, more: &[&str]| -> [String; 2] {
        let (log, output) = (folder.path(&format!("{name}.jsonl")), folder.path(&format!("{name}.onnx")));
        let batch = batch.to_string();
        let common = ["tune", &child, "--data", IMAGES, "-o", &output, "--metrics", &log, "--batch-size", &batch];
        done(ranks, &[&common[..], more].concat());
        [log, output]
    };
    // Everything that is random, and everything that sees the whole batch.
    let all = [
        "--epochs",
        "2",
        "--lr",
        "1e-3",
        "--mixup",
        "0.8",
        "--cutmix",
        "0.5",
        "--label-smoothing",
        "0.1",
        "--clip",
        "1",
        "--ema",
        "0.9",
        "--drop-path",
        "0.2",
        "--augment",
        "standard",
    ];
    let whole = run(1, 36, "whole", &all);
    let validated = metrics(&whole[0]).iter().filter(|l| l.get("val_loss").is_some()).count();
    assert_eq!((metrics(&whole[0]).len() - validated, validated), (14, 3));
    for (ranks, batch) in [(2, 18), (3, 12)] {
        let [log, output] = run(ranks, batch, &format!("by-{ranks}"), &all);
        assert_same_run(&whole[0], &log, &format!("{ranks} processes"));
        assert_same_weights(&whole[1], &output, 1e-4, true);
    }
    // Accumulation, odd batches, and a validation of other data.
    let [whole, _] = run(1, 15, "accumulated", &["--steps", "4", "--accumulate", "2", "--val", IMAGES]);
    let [log, _] = run(3, 5, "accumulated-by-3", &["--steps", "4", "--accumulate", "2", "--val", IMAGES]);
    assert_same_run(&whole, &log, "accumulation");
    let odd = offshoot(2)
        .args(["tune", &child, "--data", IMAGES, "-o", &folder.path("odd.onnx"), "--batch-size", "5", "--mixup", "0.2"])
        .output()
        .unwrap();
    assert_eq!(odd.status.code(), Some(2));
    assert!(text(&odd.stderr).contains("give an even --batch-size"), "{}", text(&odd.stderr));
}

/// Pairs of texts are shared out as pairs, and their correlation is that of all.
#[test]
fn several_processes_learn_scores_as_one() {
    let folder = Folder::new();
    let run = |ranks: usize, batch: usize| {
        let [log, output] = ["jsonl", "onnx"].map(|end| folder.path(&format!("by-{ranks}.{end}")));
        let line = format!(
            "tune {TEXTS}/bert-ts.onnx --texts {TEXTS}/rated.csv --text-column first,second --score-column score \
             --score-range 0,5 --val {TEXTS}/rated.csv --batch-size {batch} --epochs 3 --lr 1e-3 --drop-path 0.2 \
             --metrics {log} -o {output}"
        );
        done(ranks, &line.split_whitespace().collect::<Vec<_>>());
        log
    };
    let whole = run(1, 6);
    assert_eq!(metrics(&whole).iter().filter(|line| line["val_spearman"].is_number()).count(), 4);
    for (ranks, batch) in [(2, 3), (3, 2)] {
        assert_same_run(&whole, &run(ranks, batch), &format!("{ranks} processes"));
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let folder = Folder::new();
    let child = folder.child();
    let arguments = |name: &str, batch: &str, more: &[&str]| -> Vec<String> {
        let (log, output) = (folder.path(&format!("{name}.jsonl")), folder.path(&format!("{name}.onnx")));
        let common = ["tune", &child, "--data", IMAGES, "-o", &output, "--metrics", &log, "--batch-size", batch];
        let plan = ["--schedule", "constant", "--ema", "0.9", "--mixup", "0.2", "--val-split", "0", "--epochs", "2"];
        [&common[..], &plan, more].concat().iter().map(|s| s.to_string()).collect()
    };
    let go = |ranks: usize, name: &str, batch: &str, more: &[&str]| -> String {
        let arguments = arguments(name, batch, more);
        done(ranks, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        folder.path(&format!("{name}.jsonl"))
    };
    let whole = go(1, "whole", "60", &[]);
    // In the middle of the first epoch, and of the second.
    go(2, "parts", "30", &["--steps", "3"]);
    go(3, "parts", "20", &["--steps", "8", "--resume"]);
    let parts = go(1, "parts", "60", &["--resume"]);
    assert_eq!(metrics(&parts).len(), 10);
    assert_same_run(&whole, &parts, "2, 3 and 1 processes");
    assert_same_weights(&folder.path("whole.onnx"), &folder.path("parts.onnx"), 1e-4, true);
    let other = offshoot(2).args(arguments("parts", "20", &["--resume"])).output().unwrap();
    let stderr = text(&other.stderr);
    assert!(!other.status.success() && stderr.contains("--batch-size 30 in each of 2 processes"), "{stderr}");
}

#[test]
fn densities_and_learngenes_are_those_of_one_process() {
    let folder = Folder::new();
    let of = |ranks: usize| {
        let gene = folder.path(&format!("gene-{ranks}.onnx"));
        let densities = json(ranks, &["density", ANCESTOR, "--images", IMAGES, "--limit", "50", "--json"]);
        let similarity = ["--similarity", "density+attention+output"];
        let arguments = ["condense", ANCESTOR, "--images", PICTURES, "-o", &gene, "--json"];
        let condensed = json(ranks, &[&arguments[..], &similarity].concat());
        (densities, condensed)
    };
    let alone = of(1);
    for ranks in [2, 3] {
        let found = of(ranks);
        assert_eq!(found.0["images"], 50);
        assert_near(&alone.0, &found.0, 1e-6, "density");
        assert_near(&alone.1, &found.1, 1e-6, "condense");
        assert_same_weights(&folder.path("gene-1.onnx"), &folder.path(&format!("gene-{ranks}.onnx")), 0.0, false);
    }
}

#[test]
fn images_that_cannot_be_read_are_nobodys_fault() {
    let folder = Folder::new();
    let pictures = PathBuf::from(folder.path("pictures"));
    fs::create_dir(&pictures).unwrap();
    let mut names: Vec<PathBuf> = walk(Path::new(PICTURES)).into_iter().take(4).collect();
    names.sort();
    for (i, name) in names.iter().enumerate() {
        // All that one of two processes has.
        let bytes = if i % 2 == 1 { b"broken".to_vec() } else { fs::read(name).unwrap() };
        fs::write(pictures.join(format!("{i}.png")), bytes).unwrap();
    }
    let arguments = ["density", ANCESTOR, "--images", pictures.to_str().unwrap(), "--json"];
    let alone = json(1, &arguments);
    let output = done(2, &arguments);
    assert!(text(&output.stderr).contains("2 image(s) could not be read"), "{}", text(&output.stderr));
    assert_near(&alone, &serde_json::from_slice(&output.stdout).unwrap(), 1e-6, "density");
}

/// Pictures in a folder and below.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false if path.extension().is_some_and(|e| e == "png") => found.push(path),
            false => {}
        }
    }
    found
}

#[test]
fn a_model_is_shrunk_as_by_one_process() {
    let folder = Folder::new();
    let of = |ranks: usize| {
        let (child, gene) = (folder.path(&format!("child-{ranks}.onnx")), folder.path(&format!("gene-{ranks}.onnx")));
        let arguments =
            ["shrink", ANCESTOR, "--images", PICTURES, "--crops", "24", "--to", "55%", "-o", &child, "--json"];
        let mut found = json(ranks, &[&arguments[..], &["--save-learngene", &gene]].concat());
        let mut descendant = found["descendants"][0].take();
        ["file", "latency_ms"].iter().for_each(|key| drop(descendant.as_object_mut().unwrap().remove(*key)));
        // The file says what it is as text, with an error whose last digits are rounding: the rest is as long to the
        // byte.
        let said = Model::open(Path::new(&child)).unwrap().metadata("offshoot.descendant").unwrap().len() as u64;
        let bytes = descendant.as_object_mut().unwrap().remove("bytes").unwrap().as_u64().unwrap() - said;
        let gene = Model::open(Path::new(&gene)).unwrap();
        let gene: Value = serde_json::from_str(gene.metadata("offshoot.learngene").unwrap()).unwrap();
        (descendant, gene["removals"].clone(), bytes)
    };
    let alone = of(1);
    for ranks in [2, 3] {
        let found = of(ranks);
        assert_eq!(alone.2, found.2, "bytes without the text");
        assert_near(&alone.1, &found.1, 1e-6, "removals");
        assert_near(&alone.0, &found.0, 1e-6, "descendant");
        assert_same_weights(&folder.path("child-1.onnx"), &folder.path(&format!("child-{ranks}.onnx")), 1e-5, false);
    }
}

/// A run that trains for long, whose metrics file shows that it does.
fn long_run(folder: &Folder) -> Child {
    let (child, log, output) = (folder.child(), folder.path("log.jsonl"), folder.path("tuned.onnx"));
    let mut command = mpirun(2);
    command.args(["-x", &format!("OFFSHOOT_TEST={}", folder.path(""))]).arg(env!("CARGO_BIN_EXE_offshoot"));
    let common = ["tune", &child, "--data", IMAGES, "-o", &output, "--metrics", &log, "--threads", "1"];
    let long = ["--epochs", "10000", "--batch-size", "20", "--val-split", "0", "--checkpoint-every", "1"];
    let run = command.args(common).args(long).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while fs::read_to_string(&log).unwrap_or_default().lines().count() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing was trained");
        std::thread::sleep(Duration::from_millis(50));
    }
    run
}

/// The process that is rank 1 of the run in this folder.
fn second_process(folder: &Folder) -> u32 {
    let own = format!("OFFSHOOT_TEST={}", folder.path(""));
    let is_it = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |wanted: &str| environment.split(|b| *b == 0).any(|v| v == wanted.as_bytes());
        has(&own) && has("OMPI_COMM_WORLD_RANK=1")
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    all.into_iter().find(is_it).expect("the second process")
}

#[test]
fn a_process_that_dies_ends_the_run() {
    let folder = Folder::new();
    let run = long_run(&folder);
    let begun = Instant::now();
    assert!(Command::new("kill").args(["-9", &second_process(&folder).to_string()]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert!(!output.status.success() && stderr.contains("rank 1"), "{stderr}");
    // The last checkpoint is whole.
    let (child, tuned, log) = (folder.path("child.onnx"), folder.path("tuned.onnx"), folder.path("log.jsonl"));
    let resume = ["tune", &child, "--data", IMAGES, "-o", &tuned, "--resume", "--metrics", &log, "--val-split", "0"];
    let made = metrics(&log).len();
    let steps = (made + 2).to_string();
    done(1, &[&resume[..], &["--batch-size", "40", "--epochs", "10000", "--steps", &steps]].concat());
    assert_eq!(metrics(&log).len(), made + 2);
}

#[test]
fn a_full_disk_is_an_error_of_all() {
    let folder = Folder::new();
    let child = folder.child();
    // A limit on the size of files stands in for a full disk: the first process cannot write the model.
    let script = r#"[ "$OMPI_COMM_WORLD_RANK" != 0 ] || { trap '' XFSZ; ulimit -f 64; }; exec "$@""#;
    let output = mpirun(2)
        .args(["--mca", "btl", "tcp,self", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_offshoot")])
        .args(["tune", &child, "--data", IMAGES, "-o", &folder.path("tuned.onnx"), "--steps", "2", "--threads", "1"])
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("rank 0 of 2: `") && stderr.contains("has room"), "{stderr}");
}

#[test]
fn other_data_and_other_models_are_told() {
    let folder = Folder::new();
    let child = folder.child();
    // Each process has a folder of its own.
    for rank in 0..3 {
        let own = PathBuf::from(folder.path(&format!("data-{rank}")));
        fs::create_dir(&own).unwrap();
        fs::copy(IMAGES, own.join("images.idx3-ubyte")).unwrap();
        let mut labels = fs::read(LABELS).unwrap();
        labels[100] ^= u8::from(rank == 2);
        fs::write(own.join("labels.idx1-ubyte"), labels).unwrap();
        let mut model = fs::read(&child).unwrap();
        model.extend((rank == 1).then_some([0x3a, 0x00]).into_iter().flatten());
        fs::write(own.join("child.onnx"), model).unwrap();
    }
    let run = |model: &str, data: &str, output: &str| {
        let script = format!(
            r#"cd "{}" && exec "$0" tune {model} --data {data}/images.idx3-ubyte -o {output} --steps 1 --threads 1"#,
            folder.path("")
        );
        let output = mpirun(3).args(["sh", "-c", &script, env!("CARGO_BIN_EXE_offshoot")]).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let own = "data-$OMPI_COMM_WORLD_RANK";
    let stderr = run("child.onnx", own, "a.onnx");
    assert_eq!(stderr.matches("has other samples or labels than rank 0").count(), 3, "{stderr}");
    assert!(stderr.contains("rank 2 ("), "{stderr}");
    let stderr = run(&format!("{own}/child.onnx"), "data-0", "b.onnx");
    assert_eq!(stderr.matches("has another model than rank 0").count(), 3, "{stderr}");
    assert!(stderr.contains("rank 1 ("), "{stderr}");
}

#[test]
fn other_versions_are_told() {
    // A copy of the program in which every mention of its version is that of another.
    let folder = Folder::new();
    let (binary, other) = (env!("CARGO_BIN_EXE_offshoot"), folder.path("offshoot"));
    let (version, instead) =
        (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_VERSION").replace(|c: char| c.is_ascii_digit(), "9"));
    fs::copy(binary, &other).unwrap();
    let mut bytes = fs::read(binary).unwrap();
    let mut at = 0;
    while at + version.len() <= bytes.len() {
        if bytes[at..].starts_with(version.as_bytes()) {
            bytes[at..at + version.len()].copy_from_slice(instead.as_bytes());
        }
        at += 1;
    }
    fs::write(&other, bytes).unwrap();
    let told = Command::new(&other).arg("--version").output().unwrap();
    assert_eq!(text(&told.stdout), format!("offshoot {instead}\n"));

    let work = ["density", ANCESTOR, "--images", IMAGES, "--limit", "2"];
    let output = mpirun(1).arg(binary).args(work).args([":", "-n", "2", &other]).args(work).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let told =
        format!("rank 1 ({instead}) and rank 2 ({instead}) have another version of Offshoot than rank 0 ({version})");
    for rank in 0..3 {
        assert!(stderr.contains(&format!("rank {rank} of 3: {told}")), "{stderr}");
    }
    assert!(stderr.contains("the same version on every machine"), "{stderr}");
}

#[test]
fn commands_that_share_nothing_refuse() {
    let output = offshoot(2).args(["inspect", ANCESTOR]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("leave `mpirun` out"), "{}", text(&output.stderr));
}

/// Not a test of its own: what each process does in [`calls_are_those_of_all`].
#[test]
#[ignore = "run under mpirun"]
fn one_of_three() {
    parallel::start().unwrap();
    let (rank, size) = (parallel::rank(), parallel::size());
    assert_eq!((size, parallel::is_first()), (3, rank == 0));
    // Longer than a bucket.
    let mut values: Vec<f32> = (0..5 << 20).map(|i| (i % 7 + rank) as f32).collect();
    parallel::sum(&mut values);
    assert!(values.iter().enumerate().all(|(i, v)| *v == (3 * (i % 7) + 3) as f32));
    assert_eq!(parallel::total(rank), 3);
    let mut arrays = [("a", vec![rank as f32; 3]), ("b", vec![]), ("c", vec![1.0; 5 << 20]), ("d", vec![2.0])];
    let sizes: Vec<(&str, usize)> = arrays.iter().map(|(n, v)| (*n, v.len())).collect();
    parallel::sum_all(sizes.into_iter(), |name, see| {
        arrays.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, v)| see(v));
        Ok(())
    })
    .unwrap();
    assert_eq!((&arrays[0].1[..], arrays[2].1[5], arrays[3].1[0]), (&[3.0; 3][..], 3.0, 6.0));
    assert_eq!(parallel::broadcast(vec![rank as u8; 4 + rank]), [0; 4]);
    let mut values = [rank as f32];
    parallel::broadcast_values(&mut values);
    assert_eq!(values, [0.0]);
    assert_eq!(parallel::gather(&vec![rank as u8; rank]), [vec![], vec![1], vec![2, 2]]);
    assert_eq!(
        parallel::share_out(5, |own| Ok(own.into_iter().map(|i| 10 * i).collect())).unwrap(),
        [0, 10, 20, 30, 40]
    );
    assert_eq!(parallel::first(|| Ok(rank)).unwrap(), 0);
    let parts: Vec<_> = parallel::all((parallel::part(7, 1), parallel::part(11, 4))).unwrap();
    assert_eq!(parts, [(0..2, 0..4), (2..4, 4..8), (4..7, 8..11)]);
    parallel::agree("another value", "a").unwrap();
    // As `start` checks versions.
    let error = parallel::agree("another version of Offshoot", if rank == 1 { "0.2.0" } else { "0.1.0" }).unwrap_err();
    assert_eq!(error.to_string(), "rank 1 (0.2.0) has another version of Offshoot than rank 0 (0.1.0)");
    parallel::barrier();
    parallel::finish();
}

#[test]
fn calls_are_those_of_all() {
    let own = std::env::current_exe().unwrap();
    let output = mpirun(3).arg(own).args(["--ignored", "--exact", "one_of_three", "--nocapture"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("1 passed").count(), 3);
}
