//! The same input, flags and seed give the same bytes, whatever the number of threads; training within one number of
//! threads.

use std::path::Path;
use std::process::Command;

use super::binary::text;
use super::root;

const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";

/// Runs `offshoot` with so many threads of the runtime and of its own.
fn run(runtime: &str, threads: usize, arguments: &[&str]) {
    let threads = threads.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_offshoot"))
        .args(arguments)
        .args(["--runtime", runtime, "--threads", &threads])
        .env("RAYON_NUM_THREADS", &threads)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What condense, grow (fitted) and shrink write with 1 and with 3 threads, what tune writes twice with 2, and what
/// grow writes of grouped heads.
pub fn same_bytes(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let ancestor = "models/fashion-vit.onnx";
    let few = ["--images", IMAGES, "--limit", "8"];
    let with = |threads: usize| -> Vec<Vec<u8>> {
        let at = |name: &str| folder.path().join(format!("{name}-{threads}.onnx"));
        let (gene, child, small) = (at("gene"), at("child"), at("small"));
        let go = |arguments: &[&str], out: &Path| {
            run(runtime, threads, &[arguments, &few, &["-o", text(out)]].concat());
            std::fs::read(out).unwrap()
        };
        vec![
            go(&["condense", ancestor], &gene),
            go(&["grow", text(&gene), "--heads", "4", "--layers", "even:4", "--ffn-width", "50%"], &child),
            go(&["shrink", ancestor, "--to", "60%"], &small),
        ]
    };
    let one = with(1);
    for (what, (a, b)) in ["condense", "grow", "shrink"].iter().zip(one.iter().zip(with(3))) {
        assert!(*a == b, "{what} on {runtime} writes other bytes with 3 threads");
    }
    let child = folder.path().join("child-1.onnx");
    let tuned: Vec<Vec<u8>> = ["a.onnx", "b.onnx"]
        .iter()
        .map(|name| {
            let out = folder.path().join(name);
            let arguments = ["tune", text(&child), "--data", IMAGES, "--steps", "8", "--batch-size", "16"];
            run(runtime, 2, &[&arguments[..], &["--mixup", "0.4", "-o", text(&out)]].concat());
            std::fs::read(out).unwrap()
        })
        .collect();
    assert!(tuned[0] == tuned[1], "tune on {runtime} writes other bytes the second time");
    // Its attention counts the heads of queries and those of keys: two attributes, in one order.
    let grouped: Vec<Vec<u8>> = (0..4)
        .map(|i| {
            let out = folder.path().join(format!("grouped-{i}.onnx"));
            let arguments = ["grow", "fixtures/dialects/opset23-grouped.onnx", "--no-images", "--heads", "1"];
            run(runtime, 1, &[&arguments[..], &["-o", text(&out)]].concat());
            std::fs::read(out).unwrap()
        })
        .collect();
    assert!(grouped.windows(2).all(|w| w[0] == w[1]), "grow on {runtime} writes other bytes the second time");
}
