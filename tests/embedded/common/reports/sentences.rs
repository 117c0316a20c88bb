//! Texts in the place of arrays (scripts/fixtures/vocabularies.py): the tokens are those that transformers makes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayD, Axis, Ix3, Slice};
use ndarray_npy::{NpzReader, NpzWriter};
use offshoot::anatomy::Pooling;
use offshoot::data::{Samples, Texts};
use offshoot::opening::Opening;
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use crate::common::binary::{done, json as json_of, offshoot, refused, text};
use crate::common::root;

const FOLDER: &str = "fixtures/reports/texts";
const MODELS: [&str; 2] = ["bert-ts", "bert-dynamo"];

/// What a run printed, without what differs from one to the next, and without what is said of texts alone.
fn lasting(mut found: Value) -> String {
    if let Some(input) = found["input"].as_object_mut() {
        for side in ["a", "b"] {
            input.get_mut(side).and_then(Value::as_object_mut).map(|side| side.remove("texts"));
        }
        input.remove("texts");
    }
    let fields = found.as_object_mut().unwrap();
    ["seconds", "latency_ms"].iter().for_each(|field| drop(fields.remove(*field)));
    for child in fields.get_mut("descendants").and_then(Value::as_array_mut).into_iter().flatten() {
        ["file", "latency_ms"].iter().for_each(|field| drop(child.as_object_mut().unwrap().remove(*field)));
    }
    serde_json::to_string(&found).unwrap()
}

/// Texts give what the arrays give that transformers makes of them, to the last digit.
pub fn texts_are_the_arrays_of_their_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let child = |name: &str| folder.path().join(format!("{name}.onnx"));
    let [texts, arrays] = ["sentences.txt", "sentences.npz"].map(|name| format!("{FOLDER}/{name}"));
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        let both = |command: &[&str]| {
            let run = |flags: &[&str]| json_of(&[command, flags, &["--runtime", kind, "--json"]].concat());
            let of_texts = run(&["--texts", &texts]);
            assert_eq!(lasting(of_texts.clone()), lasting(run(&["--inputs", &arrays])), "{command:?}");
            of_texts
        };
        let found = both(&["density", &path]);
        let tokens = json!({
            "tokenizer": format!("{FOLDER}/tokenizer.json"),
            "max_length": {"tokens": 12, "from": "sentence_bert_config.json"},
            "cut": 3,
            "empty": 1,
            "padded_to": 12,
            "padding": {"id": 0, "token": "[PAD]", "from": "tokenizer_config.json"},
        });
        let told = &found["input"]["texts"];
        for (field, expected) in tokens.as_object().unwrap() {
            assert_eq!(&told[field], expected, "{model}, {field}: {told}");
        }
        both(&["density", &path, "--limit", "4"]);
        let shrink = |flag: &str, samples: &str, name: &str| {
            let output = child(name);
            let command = ["shrink", &path, flag, samples, "--to", "50%", "--min-ffn", "2", "--multiple-of", "2"];
            let found =
                json_of(&[&command[..], &["--runtime", kind, "--json", "--force", "-o", text(&output)]].concat());
            (lasting(found), fs::read(&output).unwrap())
        };
        assert!(shrink("--texts", &texts, "texts") == shrink("--inputs", &arrays, "arrays"), "{model}");
        // A child is compared by its ancestor's tokenizer, wherever it lies.
        let found = both(&["compare", &path, text(&child("texts")), "--runs", "1"]);
        assert_eq!(found["input"]["b"]["texts"]["tokenizer"], tokens["tokenizer"]);
    }
}

/// Learngenes and children of texts are those of the arrays, byte for byte.
pub fn texts_are_what_children_grow_on(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("made.onnx");
    let flags = [("--texts", "sentences.txt"), ("--inputs", "sentences.npz")];
    for model in MODELS {
        let path = format!("{FOLDER}/{model}.onnx");
        for command in [
            &["condense"][..],
            &["condense", "--fitted"],
            &["grow", "--heads", "2"],
            &["grow", "--heads", "2", "--init", "weight-selection"],
        ] {
            let made = flags.map(|(flag, name)| {
                let samples = format!("{FOLDER}/{name}");
                let all = [&path, flag, &samples, "--runtime", kind, "--json", "--force", "-o", text(&output)];
                let found = json_of(&[command, &all].concat());
                (lasting(found), fs::read(&output).unwrap())
            });
            assert!(made[0] == made[1], "{model}, {command:?}: {}, {}", made[0].0, made[1].0);
        }
    }
}

/// The outputs of a model for the first samples of a file of texts, in one batch.
fn outputs(runtime: &Arc<Runtime>, model: &str, path: PathBuf) -> Vec<ArrayD<f32>> {
    let texts = Texts { path, tokenizer: Some(root().join(FOLDER)), ..Texts::default() };
    let opening = Opening { texts: Some(texts), ..Opening::default() };
    let opened = opening.open(&root().join(FOLDER).join(format!("{model}.onnx")), None).unwrap();
    let arrays = opened.arrays.unwrap();
    let mut session = runtime.load(&arrays.fixed(&opened.model), arrays.len(), [1, 1]).unwrap();
    session.run_on(&arrays.select(&(0..arrays.len()).collect::<Vec<_>>()).views()).unwrap()
}

/// A text says the same alone and among others that are longer; an empty one, too.
pub fn a_text_alone_is_itself_in_a_batch(runtime: &Arc<Runtime>) {
    let folder = tempfile::tempdir().unwrap();
    let file = root().join(FOLDER).join("sentences.txt");
    let lines: Vec<String> = fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    for model in MODELS {
        let together = outputs(runtime, model, file.clone());
        let mut lengths = Vec::new();
        for (row, line) in lines.iter().enumerate() {
            let alone = folder.path().join("alone.txt");
            fs::write(&alone, format!("{line}\n")).unwrap();
            let alone = outputs(runtime, model, alone);
            for (one, many) in alone.iter().zip(&together) {
                let many = many.index_axis(Axis(0), row);
                let one = one.index_axis(Axis(0), 0);
                // Padding has states, too.
                let real = if one.ndim() == 2 { one.len_of(Axis(0)) } else { many.len_of(Axis(0)) };
                let many = many.slice_axis(Axis(0), Slice::from(..real));
                let apart = one.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(one.shape() == many.shape() && apart < 1e-5, "{model}, `{line}`: {apart}");
            }
            lengths.push(alone[0].len_of(Axis(1)));
        }
        // An empty text has its two special tokens, and the longest is cut.
        assert!(lengths.iter().min() == Some(&2) && lengths.iter().max() == Some(&12), "{lengths:?}");
    }
}

/// Tokens of the sentences with their padding in front, which tells the first of all tokens from the first real one.
fn padded_in_front(folder: &Path) -> PathBuf {
    let path = folder.join("front.npz");
    let mut tokens = NpzReader::new(File::open(root().join(FOLDER).join("sentences.npz")).unwrap()).unwrap();
    let mut archive = NpzWriter::new(File::create(&path).unwrap());
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        let array: Array2<i64> = tokens.by_name(name).unwrap();
        archive.add_array(name, &array.slice(ndarray::s![.., ..;-1])).unwrap();
    }
    archive.finish().unwrap();
    path
}

/// States of tokens are pooled in the graph as they are here, by hand, wherever padding is; and a child that is grown
/// with a pooling has it.
pub fn states_are_pooled_over_real_tokens(runtime: &Arc<Runtime>) {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let front = padded_in_front(folder.path());
    let kinds = [("mean", Pooling::Mean), ("class-token", Pooling::ClassToken), ("last", Pooling::Last)];
    for model in MODELS {
        let path = root().join(FOLDER).join(format!("{model}.onnx"));
        let run = |path: &Path, arrays: &Path, pooling: Option<Pooling>| {
            let opening = Opening { arrays: Some(arrays.to_owned()), pooling, ..Opening::default() };
            let opened = opening.open(path, None).unwrap();
            let arrays = opened.arrays.unwrap();
            let inputs = arrays.select(&(0..arrays.len()).collect::<Vec<_>>());
            let mut session = runtime.load(&arrays.fixed(&opened.model), arrays.len(), [1, 1]).unwrap();
            (session.run_on(&inputs.views()).unwrap(), inputs.real.unwrap())
        };
        for arrays in [&root().join(FOLDER).join("sentences.npz"), &front] {
            let (states, real) = run(&path, arrays, None);
            let states = states[0].view().into_dimensionality::<Ix3>().unwrap();
            assert!(real.iter().any(|real| !real) && real.dim() == (states.dim().0, states.dim().1));
            for (name, pooling) in kinds {
                let (found, _) = run(&path, arrays, Some(pooling));
                assert_eq!((found.len(), found[0].shape()), (1, &[states.dim().0, states.dim().2][..]), "{model}");
                for ((row, states), real) in found[0].outer_iter().zip(states.outer_iter()).zip(real.outer_iter()) {
                    let of_real: Vec<_> = states.outer_iter().zip(real).filter(|(_, real)| **real).collect();
                    let counted = match pooling {
                        Pooling::Mean => &of_real[..],
                        Pooling::ClassToken => &of_real[..1],
                        Pooling::Last => &of_real[of_real.len() - 1..],
                    };
                    let sum = counted.iter().fold(Array1::zeros(states.dim().1), |sum, (state, _)| sum + state);
                    let expected = sum / counted.len() as f32;
                    let apart = row.iter().zip(&expected).map(|(a, b): (&f32, &f32)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(apart < 1e-5, "{model}, {name}: {apart}");
                }
                let grow = ["grow", text(&path), "--no-images", "--pooling", name, "--force", "-o", text(&child)];
                done(&[&grow[..], &["--no-verify"]].concat());
                let (grown, _) = run(&child, arrays, None);
                let apart = grown[0].iter().zip(&found[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(grown[0].shape() == found[0].shape() && apart < 1e-5, "{model}, {name}: {apart}");
            }
        }
    }
}

/// Padding on the left is taken where a text says the same with it and alone, and refused where places count from the
/// beginning of a row.
pub fn padding_is_on_the_left_where_that_is_the_same(kind: &str) {
    let texts = format!("{FOLDER}/sentences.txt");
    for (model, taken) in [("modernbert-ts17", true), ("t5-ts17", true), ("bert-ts17", false), ("gpt2-ts17", false)] {
        let path = format!("fixtures/texts/{model}.onnx");
        let density = ["density", &path, "--texts", &texts, "--tokenizer", FOLDER, "--runtime", kind, "--json"];
        let left = [&density[..], &["--padding-side", "left"]].concat();
        if !taken {
            refused(&left, &["a text says something else with padding on that side", "leave --padding-side out"]);
            continue;
        }
        let [left, right] = [json_of(&left), json_of(&density)];
        let sides = [&left, &right].map(|found| found["input"]["texts"]["padded_on"].clone());
        assert_eq!(sides, ["left", "right"].map(|side| json!(side)), "{model}");
        let all = [&left, &right].map(|found| {
            let layers = found["densities"].as_array().unwrap().iter();
            layers.flat_map(|heads| heads.as_array().unwrap()).map(|d| d.as_f64().unwrap()).collect::<Vec<f64>>()
        });
        assert!(all[0].len() == 8 && all[1].len() == 8, "{left}");
        assert!(all[0].iter().zip(&all[1]).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{model}: {all:?}");
    }
}

/// What is said of texts.
pub fn what_is_assumed_of_texts_is_told() {
    let (model, texts) = (format!("{FOLDER}/bert-ts.onnx"), format!("{FOLDER}/sentences.txt"));
    let told = |flags: &[&str]| {
        let output = done(&[&["density", &model, "--texts", &texts, "--runtime", "tract"], flags].concat());
        String::from_utf8(output.stderr).unwrap()
    };
    let found = told(&[]);
    for says in [
        "at most 12 of a text (sentence_bert_config.json): 3 of the texts are cut; 1 have no token but special ones",
        "padded on the right to 12 with `[PAD]`, 0 (tokenizer_config.json)",
        "cuts at 8 and pads to 16, as somebody's last call may have asked for: that counts for nothing",
        "in tokens over 8 texts",
    ] {
        assert!(found.contains(says), "{says}: {found}");
    }
    assert!(told(&["--max-length", "16"]).contains("at most 16 of a text (--max-length): "));
}

/// Errors come before any work, and say what to do.
pub fn wrong_texts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, texts) = (format!("{FOLDER}/bert-ts.onnx"), format!("{FOLDER}/sentences.txt"));
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let copied = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(root().join(&model), &path).unwrap();
        path
    };
    // A model without a tokenizer; one in `onnx/` has it one folder above.
    let [alone, inner] = ["alone/model.onnx", "both/onnx/model.onnx"].map(copied);
    let density = |path: &Path, more: &[&str], says: &[&str]| {
        refused(&[&["density", text(path), "--texts", &texts][..], more].concat(), says);
    };
    density(
        &alone,
        &[],
        &["no tokenizer lies beside the model: there is no `", "alone/tokenizer.json`", "--tokenizer"],
    );
    density(&inner, &[], &["onnx/tokenizer.json` and no `", "both/tokenizer.json`"]);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join(FOLDER).join(file), folder.path().join("both").join(file)).unwrap();
    }
    let run = |path: &Path, more: &[&str]| {
        json_of(&[&["density", text(path), "--texts", &texts, "--json"][..], more].concat())
    };
    assert_eq!(run(&inner, &[])["input"]["texts"]["max_length"]["from"], "tokenizer_config.json");
    // Without any length the table of positions says it.
    write("both/tokenizer_config.json", r#"{"pad_token": "[PAD]", "model_max_length": 1e30}"#);
    assert_eq!(run(&inner, &[])["input"]["texts"]["max_length"], json!({"tokens": 16, "from": "position table"}));
    density(&inner, &["--max-length", "17"], &["--max-length 17 is more than the model takes: 16 (position table)"]);
    density(&inner, &["--max-length", "2"], &["2 tokens leave no place for a text: 2 are special"]);
    write("both/tokenizer_config.json", r#"{"pad_token": "<none>"}"#);
    density(&inner, &[], &["its `pad_token` \"<none>\" is not in the vocabulary"]);
    let large = "fixtures/reports/tokenizers/wordpiece";
    density(
        &alone,
        &["--tokenizer", large],
        &["it has a token 159, and the model embeddings of 40", "--tokenizer FILE"],
    );
    let other = Path::new("fixtures/texts/roberta-ts17.onnx");
    density(
        other,
        &["--tokenizer", FOLDER],
        &["padding is 0 (tokenizer_config.json), and the model's places leave out 1"],
    );
    density(&alone, &["--tokenizer", text(&write("not.json", "{}"))], &["not a readable tokenizer"]);
    density(&alone, &["--tokenizer", "missing.json"], &["there is no tokenizer"]);
    density(Path::new(&model), &["--mean", "0.5"], &["texts are fed to the model as tokens", "drop --mean"]);
    density(Path::new(&model), &["--text-column", "text"], &["lines of text have no columns", "drop --text-column"]);
    let of = |path: &Path, more: &[&str], says: &[&str]| {
        refused(&[&["density", &model, "--texts", text(path)][..], more].concat(), says);
        refused(&[&["compare", &model, &model, "--texts", text(path)][..], more].concat(), says);
        let shrink = ["shrink", &model, "--to", "50%", "-o", "child.onnx", "--texts", text(path)];
        refused(&[&shrink[..], more].concat(), says);
    };
    of(&write("empty.txt", ""), &[], &["there are no texts in it"]);
    let table = write("table.csv", "a,b\nx,y\n");
    of(&table, &[], &["it has no column text or sentence; there are a, b", "--text-column NAME"]);
    of(&table, &["--text-column", "a,c"], &["it has no column `c`"]);
    of(&table, &["--text-column", "a,b,a"], &["a sample is one text, or a pair of them"]);
    refused(&["density", "models/fashion-vit.onnx", "--texts", &texts], &["no input takes tokens", "--inputs"]);
    refused(
        &["density", &model, "--texts", &texts, "--images", "photos"],
        &["no input takes images", "leave --images out"],
    );
    let output = offshoot(&["density", &model, "--images", "photos", "--max-length", "3"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && told.contains("--texts <PATH>"), "{told}");
}
