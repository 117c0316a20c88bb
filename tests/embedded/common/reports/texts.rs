//! Models whose inputs are arrays (scripts/fixtures/texts.py, feeds.py): `--inputs` gives one for each by name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, Array4};
use ndarray_npy::{NpzReader, NpzWriter, write_npy};
use offshoot::onnx::proto::tensor_shape_proto::dimension::Value as Size;
use offshoot::onnx::proto::type_proto;
use offshoot::onnx::{Model, to_f32};
use serde_json::{Value, json};

use crate::common::binary::{done, json as json_of, offshoot, refused, text};
use crate::common::hash::values;
use crate::common::{Fixture, root};

pub(super) const FOLDER: &str = "fixtures/reports/texts";
pub(super) const MODELS: [&str; 2] = ["bert-ts", "bert-dynamo"];
const NAMES: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"];

pub(super) fn golden(folder: &str, keys: &[&str]) -> Value {
    let all: Value = serde_json::from_slice(&fs::read(root().join(folder).join("golden.json")).unwrap()).unwrap();
    keys.iter().fold(all, |found, key| found[key].clone())
}

pub(super) fn agree(found: &Value, expected: &Value, tolerance: f64, what: &str) {
    match (found, expected) {
        (Value::Array(f), Value::Array(e)) => {
            assert_eq!(f.len(), e.len(), "{what}");
            f.iter().zip(e).for_each(|(f, e)| agree(f, e, tolerance, what));
        }
        _ => {
            let (f, e) = (found.as_f64().unwrap(), expected.as_f64().unwrap_or_else(|| panic!("{what}: {expected}")));
            assert!((f - e).abs() < tolerance, "{what}: {f}, not {e}");
        }
    }
}

/// The arrays of the fixture.
pub(super) fn arrays() -> [Array2<i64>; 4] {
    let file = File::open(root().join(FOLDER).join("texts.npz")).unwrap();
    let mut archive = NpzReader::new(file).unwrap();
    NAMES.map(|name| archive.by_name(name).unwrap())
}

/// Some of the arrays in an archive.
pub(super) fn archive(folder: &Path, name: &str, arrays: &[(&str, &Array2<i64>)]) -> PathBuf {
    let path = folder.join(name);
    let mut archive = NpzWriter::new(File::create(&path).unwrap());
    arrays.iter().for_each(|(name, array)| archive.add_array(*name, *array).unwrap());
    archive.finish().unwrap();
    path
}

/// Padding counts nowhere, and neither do special tokens where they are known: densities are those that NumPy computes
/// from PyTorch's attention maps, whatever stands where padding is.
pub fn densities_are_those_of_real_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [ids, mask, types, special] = arrays();
    let junk =
        Array2::from_shape_fn(ids.dim(), |at| if mask[at] == 1 { ids[at] } else { (7 * at.0 + at.1) as i64 % 40 });
    let whole = [("input_ids", &junk), ("attention_mask", &mask), ("token_type_ids", &types)];
    let real = archive(folder.path(), "real.npz", &whole);
    let content = archive(folder.path(), "content.npz", &[&whole[..], &[("special_tokens_mask", &special)]].concat());
    let unmasked = archive(folder.path(), "unmasked.npz", &[("input_ids", &ids), ("token_type_ids", &types)]);
    let fixture = root().join(FOLDER).join("texts.npz");
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        let density = |inputs: &Path, more: &[&str]| {
            let command = ["density", &path, "--inputs", text(inputs), "--runtime", kind, "--json"];
            json_of(&[&command[..], more].concat())
        };
        for (name, inputs) in [("content", &fixture), ("content", &content), ("real", &real)] {
            let found = density(inputs, &[]);
            agree(&found["densities"], &golden(FOLDER, &["densities", name]), 1e-4, &format!("{model}, {name}"));
            let tokens = json!({"mask": "attention_mask", "special_tokens": name == "content", "real": 48, "of": 72});
            assert_eq!((&found["unit"], &found["input"]["tokens"]), (&json!("tokens"), &tokens), "{model}");
        }
        // A mask that nothing else ties to the tokens is theirs all the same.
        let found = density(&fixture, &["--of", "last_hidden_state"]);
        agree(&found["densities"], &golden(FOLDER, &["densities", "content"]), 1e-4, &format!("{model}, states"));
        let found = density(&unmasked, &["--feed", "attention_mask=ones"]);
        agree(&found["densities"], &golden(FOLDER, &["densities", "all"]), 1e-4, &format!("{model}, all"));
        assert_eq!(found["input"]["tokens"]["mask"], Value::Null);
        let found = density(&fixture, &["--limit", "4"]);
        assert_eq!((&found["images"], &found["input"]["tokens"]["real"]), (&json!(4), &json!(33)));
        let told = offshoot(&["density", &path, "--inputs", text(&real), "--runtime", kind]);
        let told = String::from_utf8(told.stderr).unwrap();
        for says in
            ["`attention_mask` says which tokens are real: 48 of 72", "special tokens count", "in tokens over 6"]
        {
            assert!(told.contains(says), "{says}: {told}");
        }
    }
}

/// Two models are compared on real tokens: with two heads of four left a child is as far from its ancestor as PyTorch
/// says.
pub fn models_are_compared_on_real_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let inputs = format!("{FOLDER}/texts.npz");
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        done(&["grow", &path, "--no-images", "--heads", "2", "--no-verify", "--force", "-o", text(&child)]);
        let compare = ["compare", &path, text(&child), "--inputs", &inputs, "--runtime", kind, "--runs", "1"];
        let found = json_of(&[&compare[..], &["--json"]].concat());
        let wanted = golden(FOLDER, &["of_two_heads"]);
        for field in ["max_abs_error", "relative_error", "correlation", "correlations"] {
            agree(&found[field], &wanted[field], 1e-4, &format!("{model}, {field}"));
        }
        assert_eq!((&found["images"], &found["input"]["b"]["samples"]), (&json!(6), &json!(6)));
        // Padding has no part in the agreement of token states alone.
        let found = json_of(&[&compare[..], &["--json", "--of", "last_hidden_state"]].concat());
        agree(&found["correlations"], &wanted["correlations"], 1e-4, &format!("{model}, states"));
        let output = offshoot(&[&compare[..], &["--tolerance", "1e-3"]].concat());
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(1) && told.contains("over 6 samples"), "{told}");
        let output =
            offshoot(&["compare", &path, &path, "--inputs", &inputs, "--tolerance", "1e-6", "--runtime", kind]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// An image is one array among others, as PyTorch has it.
pub fn images_may_be_arrays(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let images = Array4::from_shape_vec((6, 3, 32, 32), values(6 * 3 * 32 * 32, 7)).unwrap();
    let half = Array3::from_shape_fn((6, 32, 32), |(_, _, column)| i64::from(column < 16));
    write_npy(folder.path().join("pixel_values.npy"), &images).unwrap();
    write_npy(folder.path().join("pixel_mask.npy"), &half).unwrap();
    for model in ["masked-ts", "masked-dynamo"] {
        let path = format!("fixtures/reports/feeds/{model}.onnx");
        let density = ["density", &path, "--inputs", text(folder.path()), "--runtime", kind, "--json"];
        let found = json_of(&density);
        agree(&found["densities"], &golden("fixtures/reports/feeds", &["masked", "half", "densities"]), 1e-3, model);
        assert_eq!((&found["unit"], &found["input"]["tokens"]), (&json!("px"), &Value::Null));
    }
}

/// What fits no input is an error that names the array and lists the inputs.
pub fn wrong_arrays_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [ids, mask, types, special] = arrays();
    let (path, listed) = (format!("{FOLDER}/bert-ts.onnx"), "`input_ids` int64 [batch, tokens], `attention_mask`");
    let refuse = |arrays: &[(&str, &Array2<i64>)], says: &[&str]| {
        let inputs = archive(folder.path(), "wrong.npz", arrays);
        refused(&["density", &path, "--inputs", text(&inputs)], says);
        refused(&["compare", &path, &path, "--inputs", text(&inputs)], says);
    };
    let [i, m, t] = [("input_ids", &ids), ("attention_mask", &mask), ("token_type_ids", &types)];
    refuse(&[i, m], &["needs inputs that --inputs has no array for: `token_type_ids`", "--feed token_type_ids=ones"]);
    refuse(&[i, m, t, ("labels", &ids)], &["the model has no input `labels`", listed]);
    let (few, short) = (ids.slice(ndarray::s![..4, ..]).to_owned(), ids.slice(ndarray::s![.., ..9]).to_owned());
    refuse(&[i, m, ("token_type_ids", &few)], &["`token_type_ids` holds 4 samples, and `input_ids` 6", listed]);
    refuse(
        &[i, m, ("token_type_ids", &short)],
        &["axis `tokens` is 9 long in its array `token_type_ids`, and 12", listed],
    );
    refuse(
        &[i, m, t, ("special_tokens_mask", &short)],
        &["`special_tokens_mask` is [6, 9]", "a number for each token"],
    );
    let with = |array: &Array2<i64>, value: i64| {
        let mut array = array.clone();
        array[[4, 2]] = value;
        array
    };
    let row = |array: &str, value: &str| format!("its array `{array}` has {value} in sample 4, and the table `");
    for (value, told) in [(40, "40"), (-1, "-1")] {
        refuse(
            &[("input_ids", &with(&ids, value)), m, t],
            &[&row("input_ids", told), "` 40 rows", "its own tokenizer"],
        );
    }
    refuse(&[i, m, ("token_type_ids", &with(&types, 2))], &[&row("token_type_ids", "2"), "` 2 rows"]);
    let [ids17, mask17, types17] = [&ids, &mask, &types]
        .map(|array| Array2::from_shape_fn((6, 17), |(row, at)| if at < 12 { array[[row, at]] } else { 0 }));
    refuse(
        &[("input_ids", &ids17), ("attention_mask", &mask17), ("token_type_ids", &types17)],
        &["its array `input_ids` has 17 tokens a text, and the model places for 16", "cut the texts"],
    );
    assert_eq!(special.dim(), ids.dim());
    let many = folder.path().join("many");
    fs::create_dir(&many).unwrap();
    for (name, array) in [i, m, t] {
        write_npy(many.join(format!("{name}.npy")), array).unwrap();
    }
    let density = ["density", &path, "--inputs", text(&many)];
    write_npy(many.join("attention_mask.npy"), &mask.mapv(|v| v as f32)).unwrap();
    refused(&density, &["`attention_mask` is of type '<f4', and the input takes int64", "astype(\"int64\")"]);
    write_npy(many.join("attention_mask.npy"), &mask.clone().insert_axis(ndarray::Axis(1))).unwrap();
    refused(
        &density,
        &["`attention_mask` has 3 dimensions, and the input is `attention_mask` int64 [batch, tokens]", listed],
    );
    let fixture = format!("{FOLDER}/texts.npz");
    let density = ["density", &path, "--inputs", &fixture];
    refused(&[&density[..], &["--mean", "0.5"]].concat(), &["arrays are fed to the model as they are", "drop --mean"]);
    refused(
        &[&density[..], &["--feed", "attention_mask=ones"]].concat(),
        &["an array for `attention_mask`, which --feed gives a value", "leave out one"],
    );
    refused(&["density", &path, "--inputs", "Cargo.toml"], &["neither an .npz archive nor a safetensors file"]);
    refused(&["density", &path, "--inputs", "missing.npz"], &["no such file", "an .npz archive"]);
    // Without arrays the way out is named.
    refused(&["shrink", &path, "--to", "50%", "-o", "child.onnx"], &["calibrates the ancestor on samples", "--inputs"]);
    refused(
        &["density", &path, "--images", "fixtures/fashion-png"],
        &["takes no images", "arrays for its inputs (--inputs FILE.npz)"],
    );
    refused(
        &["density", &path, "--inputs", &fixture, "--images", "photos"],
        &["no input takes images", "leave --images out"],
    );
    let output = offshoot(&["density", &path]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && told.contains("--inputs <PATH>"), "{told}");
}

/// Samples of 40 texts, of which `padding` tokens at the end are none: what stands there is drawn with the seed.
pub(super) fn many(folder: &Path, name: &str, padding: usize, seed: usize) -> PathBuf {
    let length = |row: usize| 4 + (5 * row + row / 7) % 9;
    let tokens = 12 + padding;
    let real = |(row, at): (usize, usize)| at < length(row);
    let id = |(row, at): (usize, usize)| 3 + (7 * row * row + 11 * at * (row + 3) + at) % 37;
    let junk = |(row, at): (usize, usize)| (seed * (row + 1) + 13 * at) % 40;
    let ids = Array2::from_shape_fn((40, tokens), |p| if real(p) { id(p) } else { junk(p) } as i64);
    let mask = Array2::from_shape_fn((40, tokens), |p| i64::from(real(p)));
    let types = Array2::from_shape_fn((40, tokens), |p| i64::from(!real(p) && seed % 2 == 1));
    archive(folder, name, &[("input_ids", &ids), ("attention_mask", &mask), ("token_type_ids", &types)])
}

/// What stands where padding is changes no child of any family: neither its weights nor its error.
pub fn padding_changes_no_child(kind: &str, fixtures: &[Fixture]) {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for fixture in fixtures {
        let inputs: Vec<&str> =
            fixture.entry["inputs"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        if !inputs.contains(&"attention_mask") || inputs.iter().any(|name| !NAMES.contains(name)) {
            continue;
        }
        seen += 1;
        let name = fixture.entry["file"].as_str().unwrap();
        let path = format!("fixtures/texts/{name}");
        let [calm, wild] = [("calm", 0), ("wild", 5)].map(|(name, seed)| {
            let whole = many(folder.path(), "whole.npz", 0, seed);
            let mut archive = NpzReader::new(File::open(whole).unwrap()).unwrap();
            let arrays: Vec<(&str, Array2<i64>)> =
                inputs.iter().map(|input| (*input, archive.by_name(input).unwrap())).collect();
            let arrays: Vec<(&str, &Array2<i64>)> = arrays.iter().map(|(name, array)| (*name, array)).collect();
            let arrays = self::archive(folder.path(), &format!("{name}.npz"), &arrays);
            let child = folder.path().join(format!("{name}.onnx"));
            let command = ["shrink", &path, "--inputs", text(&arrays), "--to", "85%", "--no-layers", "--min-ffn", "2"];
            let rest = ["--multiple-of", "2", "--runtime", kind, "--json", "--force", "-o", text(&child)];
            let found = json_of(&[&command[..], &rest].concat());
            (found["descendants"][0]["error"].clone(), Model::open(child).unwrap())
        });
        agree(&wild.0, &calm.0, 1e-5, name);
        for (x, y) in calm.1.graph().initializer.iter().zip(&wild.1.graph().initializer) {
            let (Ok(x), Ok(y)) = (to_f32(x), to_f32(y)) else { continue };
            assert_eq!(x.len(), y.len(), "{name}");
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-3 * (1.0 + x.abs())), "{name}");
        }
    }
    assert!(seen > 6, "{seen}");
}

/// Lets a model take batches of so many samples alone.
pub(super) fn fix_batch(model: &mut Model, samples: i64) {
    for input in &mut model.graph_mut().input {
        if let Some(type_proto::Value::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.shape.as_mut().unwrap().dim[0].value = Some(Size::DimValue(samples));
        }
    }
}

/// A child is fitted on real tokens: what stands where padding is, and how much of it there is, changes nothing but
/// what is rounded; its inputs are those of its ancestor, and fits hold for texts of other lengths. Texts are fitted on
/// as long as they are. Where a model calls the axis of tokens by two names they stay as long as the longest, and that
/// gives the same child.
pub fn children_are_fitted_on_real_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [calm, wild, long] = [("calm", 0, 0), ("wild", 0, 5), ("long", 3, 8)]
        .map(|(name, padding, seed)| many(folder.path(), &format!("{name}.npz"), padding, seed));
    let test = root().join(FOLDER).join("texts.npz");
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        let child = |name: &str| folder.path().join(format!("{name}.onnx"));
        let mut renamed = Model::open(root().join(&path)).unwrap();
        let ids = renamed.graph_mut().input.iter_mut().find(|v| v.name() == "input_ids").unwrap();
        if let Some(type_proto::Value::TensorType(t)) = ids.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.shape.as_mut().unwrap().dim[1].value = Some(Size::DimParam("ids".into()));
        }
        renamed.write(child("renamed")).unwrap();
        // One that takes one sample at a time is fitted to each by itself, not to batches.
        let mut single = Model::open(root().join(&path)).unwrap();
        fix_batch(&mut single, 1);
        single.write(child("single")).unwrap();
        let shrink = |ancestor: &str, inputs: &Path, name: &str| {
            let command =
                ["shrink", ancestor, "--inputs", text(inputs), "--to", "50%", "--min-ffn", "2", "--multiple-of", "2"];
            let output = child(name);
            json_of(&[&command[..], &["--runtime", kind, "--json", "--force", "-o", text(&output)]].concat())
        };
        let apart = |name: &str, other: &str| {
            let (a, b) = (child(name), child(other));
            let compare =
                ["compare", text(&a), text(&b), "--inputs", text(&test), "--runtime", kind, "--runs", "1", "--json"];
            json_of(&compare)
        };
        let found = shrink(&path, &calm, "calm");
        let error = found["descendants"][0]["error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 0.1, "{model}: {error}");
        assert_eq!(found["input"]["tokens"]["mask"], json!("attention_mask"));
        let [other_name, one_at_a_time] = ["renamed", "single"].map(|name| text(&child(name)).to_string());
        for (ancestor, inputs, name) in [
            (&path, &wild, "wild"),
            (&path, &long, "long"),
            (&other_name, &calm, "whole"),
            (&other_name, &long, "most"),
            (&one_at_a_time, &long, "one"),
        ] {
            let other = shrink(ancestor, inputs, name);
            agree(&other["descendants"][0]["error"], &json!(error), 1e-4, &format!("{model}, {name}"));
            let found = apart("calm", name);
            assert!(found["relative_error"].as_f64().unwrap() < 1e-3, "{model}, {name}: {found}");
        }
        // It says what its ancestor says, as far as half of it can, and takes what that takes.
        let files = [root().join(&path), child("calm")].map(|path| Model::open(path).unwrap());
        assert_eq!(files[0].graph().input, files[1].graph().input);
        fs::copy(root().join(&path), child("ancestor")).unwrap();
        let found = apart("ancestor", "calm");
        assert!(found["correlation"].as_f64().unwrap() > 0.9, "{model}: {found}");
    }
}
