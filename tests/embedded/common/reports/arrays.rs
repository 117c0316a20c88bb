//! Learngenes and children of models whose inputs are arrays (scripts/fixtures/texts.py).

use std::fs;
use std::sync::Arc;

use ndarray::Array2;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::Arrays;
use offshoot::density::attention_distances;
use offshoot::fitting::similarity::head_distances;
use offshoot::onnx::Model;
use offshoot::opening::Opening;
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use super::texts::{FOLDER, MODELS, agree, archive, arrays, golden, many};
use super::verified::heads_that_add_up;
use crate::common::binary::{args, done, json as json_of, offshoot, refused, text};
use crate::common::root;

/// The mean length of the texts: 48 real tokens of six.
const LENGTH: f64 = 8.0;

/// Groups of heads whose densities lie within eps of each other's, one after the other, as members in order.
fn chained(densities: &Value, eps: f64) -> Vec<Vec<usize>> {
    let mut all: Vec<(f64, usize)> =
        densities.as_array().unwrap().iter().enumerate().map(|(h, d)| (d.as_f64().unwrap(), h)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut groups: Vec<Vec<usize>> = vec![vec![all[0].1]];
    for pair in all.windows(2) {
        match pair[1].0 - pair[0].0 <= eps {
            true => groups.last_mut().unwrap().push(pair[1].1),
            false => groups.push(vec![pair[1].1]),
        }
    }
    groups.iter_mut().for_each(|g| g.sort_unstable());
    groups.sort();
    groups
}

/// The learngene of a text model: densities are PyTorch's, the radius is ten of 224 of the mean length, and its inputs
/// are its ancestor's.
pub fn texts_are_condensed(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let inputs = format!("{FOLDER}/texts.npz");
    let gene = folder.path().join("gene.onnx");
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        let condense = ["condense", &path, "--inputs", &inputs, "--runtime", kind, "--force", "-o", text(&gene)];
        for (more, eps) in [(&[][..], 10.0 / 224.0 * LENGTH), (&["--eps", "0.12"], 0.12)] {
            let found = json_of(&[&condense[..], more, &["--json"]].concat());
            let wanted = golden(FOLDER, &["densities", "content"]);
            agree(&found["densities"], &wanted, 1e-4, model);
            agree(&found["lengths"], &json!([LENGTH, LENGTH]), 1e-9, model);
            agree(&found["eps"], &json!([eps, eps]), 1e-9, model);
            agree(&found["ffn_eps"], &json!([10.0 / 224.0 * LENGTH, 10.0 / 224.0 * LENGTH]), 1e-9, model);
            assert_eq!(found["input"]["tokens"]["mask"], json!("attention_mask"));
            for (clusters, densities) in found["layers"].as_array().unwrap().iter().zip(wanted.as_array().unwrap()) {
                let members = |c: &Value| -> Vec<usize> { serde_json::from_value(c["members"].clone()).unwrap() };
                let mut own: Vec<Vec<usize>> = clusters.as_array().unwrap().iter().map(members).collect();
                own.iter_mut().for_each(|m| m.sort_unstable());
                own.sort();
                assert_eq!(own, chained(densities, eps), "{model}, {eps}: {densities}");
            }
        }
        let told = String::from_utf8(done(&condense).stderr).unwrap();
        for says in ["alike within 0.36 tokens, 10/224 of the mean length of 8.0", "which tokens are special"] {
            assert!(told.contains(says), "{says}: {told}");
        }
        let files = [root().join(&path), gene.clone()].map(|path| Model::open(path).unwrap());
        assert_eq!(files[0].graph().input, files[1].graph().input);
        assert_eq!(files[0].graph().output, files[1].graph().output);
        // A child of the learngene says what one of the ancestor with the same clusters says.
        let [a, b] = ["a.onnx", "b.onnx"].map(|name| folder.path().join(name));
        let grow = ["--heads", "2", "--projection", "matched", "--inputs", &inputs, "--runtime", kind, "--force", "-o"];
        done(&[&["grow", text(&gene)][..], &grow, &[text(&a)]].concat());
        done(&[&["grow", &path][..], &grow, &[text(&b)]].concat());
        let compare =
            ["compare", text(&a), text(&b), "--inputs", &inputs, "--runtime", kind, "--runs", "1", "--tolerance"];
        done(&[&compare[..], &["1e-5"]].concat());
    }
}

/// Distances of heads are NumPy's, from PyTorch's attention maps and states of real tokens, whatever stands where
/// padding is.
pub fn heads_differ_by_real_tokens(runtime: &Arc<Runtime>) {
    let folder = tempfile::tempdir().unwrap();
    let [ids, mask, types, _] = arrays();
    let junk = Array2::from_shape_fn(ids.dim(), |at| if mask[at] == 1 { ids[at] } else { (5 * at.1 + 3) as i64 % 40 });
    let wild = [("input_ids", &junk), ("attention_mask", &mask), ("token_type_ids", &types)];
    let wild = archive(folder.path(), "wild.npz", &wild);
    for model in MODELS {
        for inputs in [root().join(FOLDER).join("texts.npz"), wild.clone()] {
            let opening = Opening { arrays: Some(inputs), ..Opening::default() };
            let opened = opening.open(&root().join(FOLDER).join(format!("{model}.onnx")), None).unwrap();
            let arrays: Arrays = opened.arrays.unwrap();
            let model = arrays.fixed(&opened.model);
            let typing = Typing::new(&model).unwrap();
            let anatomy = Anatomy::new(&typing).unwrap();
            let maps = attention_distances(runtime, &model, &typing, &anatomy, &arrays, |_, _| {}).unwrap();
            let outputs = head_distances(&runtime.single_threaded(), &model, &arrays, |_| {}).unwrap();
            for (name, found) in [("divergences", &maps), ("alignments", &outputs.output)] {
                let rows = |m: &Array2<f64>| json!(m.outer_iter().map(|r| r.to_vec()).collect::<Vec<_>>());
                let found = Value::Array(found.iter().map(rows).collect());
                agree(&found, &golden(FOLDER, &[name]), 1e-4, name);
            }
        }
    }
}

/// Children of text models are fitted and verified on arrays, and one that is wrong is found out.
pub fn children_are_verified_on_arrays(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let inputs = many(folder.path(), "many.npz", 0, 0);
    let child = folder.path().join("child.onnx");
    let outcomes = |checks: &Value| -> Vec<(String, String)> {
        let word = |v: &Value| v.as_str().unwrap().to_owned();
        checks.as_array().unwrap().iter().map(|c| (word(&c["check"]), word(&c["outcome"]))).collect()
    };
    let passed = |names: &[&str]| -> Vec<(String, String)> {
        names.iter().map(|name| (name.to_string(), "passed".to_string())).collect()
    };
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        let grow = ["grow", &path, "--inputs", text(&inputs), "--heads", "2", "--ffn-width", "50%", "--runtime", kind];
        for more in [&["--eps", "0", "--ffn-eps", "0"][..], &["--projection", "matched"]] {
            let command = [&grow[..], more, &["--json", "--force", "-o", text(&child)]].concat();
            let found = json_of(&command);
            let checks = outcomes(&found["verification"]["checks"]);
            let all = ["runs", "batches", "samples", "permuted", "full-size", "removed"];
            assert_eq!(checks, passed(&all), "{model}: {}", found["verification"]);
            assert_eq!(found["input"]["samples"], json!(40), "{model}");
        }
        let files = [root().join(&path), child.clone()].map(|path| Model::open(path).unwrap());
        assert_eq!(files[0].graph().input, files[1].graph().input);
        let compare = ["compare", &path, text(&child), "--inputs", text(&inputs), "--runtime", kind, "--runs", "1"];
        let found = json_of(&[&compare[..], &["--verify", "--json"]].concat());
        let checks = &outcomes(&found["verification"]["checks"])[..4];
        assert_eq!(checks, passed(&["runs", "batches", "samples", "permuted"]), "{model}");
        // Without samples there is nothing that a model of texts could be verified on, and the way out is named.
        let output = offshoot(&["grow", &path, "--no-images", "--heads", "2", "--force", "-o", text(&child)]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.contains("not verified") && told.contains("--inputs"), "{told}");
    }
    let mut wrong = Model::open(root().join(FOLDER).join("bert-ts.onnx")).unwrap();
    heads_that_add_up(&mut wrong);
    wrong.write(&child).unwrap();
    let compare = ["compare", text(&child), text(&child), "--inputs", text(&inputs), "--runtime", kind, "--runs", "1"];
    let output = offshoot(&compare);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("check `permuted`"), "{told}");
    fs::remove_file(&child).unwrap();
    let path = format!("{FOLDER}/bert-ts.onnx");
    refused(
        &["grow", &path, "--heads", "2", "-o", text(&child)],
        &["needs samples", "give --texts PATH or --inputs PATH"],
    );
    let both = ["grow", &path, "--inputs", text(&inputs), "--no-images", "-o", text(&child)];
    assert_eq!(offshoot(&both).status.code(), Some(2));
}

/// A learngene of texts carries what a child needs: it is thinned without samples, to the size that it has with some;
/// what takes samples is left out, or refused by the name of the file.
pub fn learngenes_of_texts_need_no_samples(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [gene, child] = ["gene.onnx", "child.onnx"].map(|name| folder.path().join(name));
    let inputs = format!("{FOLDER}/texts.npz");
    let common = format!("--runtime {kind} --force");
    done(args!("condense {FOLDER}/bert-ts.onnx --inputs {inputs} --fitted {common} -o {}", text(&gene)));
    let size = "--min-ffn 2 --multiple-of 2 --json";
    let shrink = |more: &str| {
        let output = done(args!("shrink {} --to 75% {size} {common} {more} -o {}", text(&gene), text(&child)));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        (found["descendants"][0].clone(), String::from_utf8(output.stderr).unwrap())
    };
    let ((thinned, said), (fitted, _)) = (shrink(""), shrink(&format!("--inputs {inputs}")));
    assert!(said.contains("not timed: there are no samples of its inputs"), "{said}");
    assert_eq!((&thinned["latency_ms"], fitted["latency_ms"]["ancestor"].is_number()), (&Value::Null, true));
    assert!(thinned["parameters"].is_u64() && thinned["parameters"] == fitted["parameters"], "{thinned}, {fitted}");
    let refused_times =
        ["shrink", text(&gene), "--budget", "latency=8ms", "--runtime", kind, "-o", text(&child), "--force"];
    refused(&refused_times, &["gene.onnx`: the input `input_ids` leaves its shape open", "--inputs FILE.npz"]);
}
