//! Texts with labels (scripts/fixtures/vocabularies.py): `eval`, `tune` and `run` make of them what they make of the
//! arrays of their tokens, which transformers cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use ndarray_npy::{NpzReader, NpzWriter};
use serde_json::{Value, json};

use super::learned::{DESCENT, losses};
use super::texts::{FOLDER, agree};
use crate::common::binary::{PLAIN, args, done, json as json_of, offshoot, refused, text};
use crate::common::root;
use offshoot::anatomy::EMBEDDING;

const NAMES: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// The lines of the fixture.
fn lines() -> Vec<Value> {
    let file = fs::read_to_string(root().join(FOLDER).join("labelled.jsonl")).unwrap();
    file.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The tokens that transformers makes of the same texts, with their classes.
pub(super) fn arrays(folder: &Path) -> PathBuf {
    let path = folder.join("labelled.npz");
    let mut tokens = NpzReader::new(File::open(root().join(FOLDER).join("sentences.npz")).unwrap()).unwrap();
    let mut archive = NpzWriter::new(File::create(&path).unwrap());
    for name in NAMES {
        let array: Array2<i64> = tokens.by_name(name).unwrap();
        archive.add_array(name, &array).unwrap();
    }
    let classes: Array1<i64> = lines().iter().map(|line| line["class"].as_i64().unwrap()).collect();
    archive.add_array("y", &classes).unwrap();
    archive.finish().unwrap();
    path
}

/// Scores, losses and tuned files are those of the arrays, to the last bit, with numbers and with names for classes.
pub fn labelled_texts_are_the_arrays_of_their_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let arrays = arrays(folder.path());
    let texts = format!("{FOLDER}/labelled.jsonl");
    let sources =
        [vec!["--inputs", text(&arrays)], vec!["--texts", &texts, "--label-column", "class"], vec!["--texts", &texts]];
    let path = format!("{FOLDER}/classifier-ts.onnx");
    let [whole, numbered, named] = sources.clone().map(|source| {
        let judged = json_of(&[&["eval", &path, "--runtime", kind, "--json"][..], &source].concat());
        let [tuned, log] = ["tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
        let tune = ["tune", &path, "--runtime", kind, "--steps", "2", "--metrics", text(&log), "--force", "-o"];
        let told = done(&[&tune[..], &[text(&tuned)], &source, &PLAIN, &DESCENT].concat());
        (judged, losses(&log), fs::read(&tuned).unwrap(), String::from_utf8(told.stderr).unwrap())
    });
    assert!(whole.1.as_array().unwrap().len() == 2 && whole.1 == numbered.1 && whole.1 == named.1);
    assert!(whole.2 == numbered.2, "another file");
    for field in ["images", "top1", "loss"] {
        assert!(whole.0[field].is_number() && whole.0[field] == numbered.0[field], "{field}");
        assert_eq!(whole.0[field], named.0[field], "{field}");
    }
    assert_eq!(whole.0["classes"], numbered.0["classes"]);
    let by = |found: &Value| (found["input"]["texts"]["labels"].clone(), found["classes_by"].clone());
    assert_eq!(by(&numbered.0), (json!({"column": "class", "by": "numbers"}), json!("labels")));
    let classes = json!(["other", "place", "thing"]);
    assert_eq!(by(&named.0), (json!({"column": "label", "by": "names", "classes": classes}), json!("order")));
    let says = "labels are the names in the column `label`, in sorted order: 0 `other`, 1 `place`, 2 `thing`";
    assert!(named.3.contains(says) && named.3.contains("padded on the right to 12"), "{}", named.3);
    assert!(numbered.3.contains("labels are the numbers in the column `class`"), "{}", numbered.3);
}

/// Names of labels stand for the classes of the model that bear them, by the configuration beside it.
pub fn names_are_those_of_the_configuration(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| folder.path().join(name);
    for (name, file) in [("classifier-ts.onnx", "model.onnx"), ("tokenizer.json", "tokenizer.json")] {
        fs::copy(root().join(FOLDER).join(name), own(file)).unwrap();
    }
    fs::write(own("config.json"), r#"{"id2label": {"0": "THING", "1": "OTHER", "2": "PLACE"}}"#).unwrap();
    let moved = |line: &Value| json!({"text": line["text"], "label": (line["class"].as_i64().unwrap() + 1) % 3});
    let numbers: Vec<String> = lines().iter().map(|line| moved(line).to_string()).collect();
    fs::write(own("numbers.jsonl"), numbers.join("\n")).unwrap();
    let eval =
        |texts: &str| json_of(&["eval", text(&own("model.onnx")), "--texts", texts, "--runtime", kind, "--json"]);
    let [named, numbered] = [eval(&format!("{FOLDER}/labelled.jsonl")), eval(text(&own("numbers.jsonl")))];
    assert_eq!((&named["classes_by"], &numbered["classes_by"]), (&json!("names"), &json!("labels")));
    for field in ["top1", "loss", "classes"] {
        assert_eq!(named[field], numbered[field], "{field}");
    }
}

/// Tokens are learned from a teacher without labels, beside which the tokenizer may lie alone; texts to validate on are
/// padded as those to learn from are, and padding is no part of the loss.
pub fn texts_learn_without_labels(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [student, tuned, log] = ["student.onnx", "tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    fs::copy(root().join(FOLDER).join("bert-ts.onnx"), &student).unwrap();
    let [texts, arrays] = ["sentences.txt", "sentences.npz"].map(|name| format!("{FOLDER}/{name}"));
    let learn = |source: &[&str]| {
        let command = format!(
            "tune {} --teacher {FOLDER}/teacher-ts.onnx --of last_hidden_state --runtime {kind} --steps 2 --force \
             --json --metrics {} -o {}",
            text(&student),
            text(&log),
            text(&tuned)
        );
        let command: Vec<&str> = command.split_whitespace().collect();
        let found = json_of(&[&command[..], source, &PLAIN[..9], &DESCENT].concat());
        (losses(&log), found)
    };
    let all = ["--val-split", "0"];
    let (expected, _) = learn(&[&["--inputs", &arrays][..], &all].concat());
    let (found, _) = learn(&[&["--texts", &texts][..], &all].concat());
    assert!(expected.as_array().unwrap().len() == 2 && found == expected, "{found}, not {expected}");
    // Short texts alone, and beside long ones.
    let short = folder.path().join("short.txt");
    let few: Vec<String> = lines().iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
    fs::write(&short, format!("{}\n{}\n", few[1], few[7]).repeat(3)).unwrap();
    let length = |found: &Value| found["input"]["texts"]["padded_to"].clone();
    let (alone, report) = learn(&[&["--texts", text(&short)][..], &all].concat());
    assert!(length(&report).as_u64().unwrap() < 12, "{report}");
    let (beside, report) = learn(&["--texts", text(&short), "--val", &texts]);
    assert_eq!((length(&report), &report["images"]["validation"]), (json!(12), &json!(8)));
    // Squares are averaged over padding, too, where they are zero.
    let share = length(&learn(&[&["--texts", text(&short)][..], &all].concat()).1).as_f64().unwrap() / 12.0;
    let first = |losses: &Value| losses[0].as_f64().unwrap();
    agree(&json!(first(&beside)), &json!(first(&alone) * share), 1e-6, "padding");
}

/// Where the first texts alone are used, no others are cut into tokens; labels stand for what they stand for among all.
pub fn the_first_texts_alone_are_cut_into_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [few, tuned, log] = ["few.jsonl", "tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    let texts = format!("{FOLDER}/labelled.jsonl");
    let path = format!("{FOLDER}/classifier-ts.onnx");
    let first: Vec<String> = lines().iter().take(3).map(Value::to_string).collect();
    fs::write(&few, first.join("\n")).unwrap();
    let eval = |more: &str| json_of(args!("eval {path} --tokenizer {FOLDER} --runtime {kind} --json {more}"));
    let alone = eval(&format!("--texts {} --label-column class", text(&few)));
    for column in ["class", "label"] {
        let found = eval(&format!("--texts {texts} --label-column {column} --limit 3"));
        for field in ["images", "loss", "top1"] {
            assert_eq!(found[field], alone[field], "{column}: {field}");
        }
        assert_eq!((&found["input"]["samples"], &found["images"]), (&json!(3), &json!(3)), "{column}");
        assert_eq!(found["input"]["texts"]["padded_to"], alone["input"]["texts"]["padded_to"], "{column}");
    }
    // Of a part that is cut off the first ones are others.
    let found = eval(&format!("--texts {texts} --val-split 0.5 --limit 1"));
    assert_eq!((&found["input"]["samples"], &found["images"]), (&json!(8), &json!(1)));
    let tune = |more: &str| {
        let found = json_of(args!(
            "tune {path} --tokenizer {FOLDER} --no-shuffle --batch-size 3 --steps 2 --lr 1e-3 --runtime {kind} --force \
             --json --metrics {} -o {} {more}",
            text(&log),
            text(&tuned)
        ));
        (losses(&log), found)
    };
    let (expected, _) = tune(&format!("--texts {} --label-column class --val-split 0", text(&few)));
    for more in ["--val-split 0".to_owned(), format!("--val {texts}")] {
        let (found, report) = tune(&format!("--texts {texts} --limit 3 {more}"));
        agree(&found, &expected, 1e-5, &more);
        assert_eq!((&report["input"]["samples"], &report["images"]["training"]), (&json!(3), &json!(3)), "{more}");
    }
    let (_, report) = tune(&format!("--texts {texts} --limit 3 --val-split 0.25"));
    assert_eq!((&report["input"]["samples"], &report["images"]), (&json!(8), &json!({"training": 3, "validation": 2})));
}

/// One command from a folder with a model, its tokenizer and labelled texts to a tuned child with a report.
pub fn labelled_texts_take_the_whole_path(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| folder.path().join(name);
    for (name, file) in [("classifier-ts.onnx", "model.onnx"), ("tokenizer.json", "tokenizer.json")] {
        fs::copy(root().join(FOLDER).join(name), own(file)).unwrap();
    }
    fs::write(own("config.json"), r#"{"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 4}"#)
        .unwrap();
    let (texts, out) = (format!("{FOLDER}/labelled.jsonl"), own("child"));
    let found = json_of(args!(
        "run {} --texts {texts} --heads 2 --steps 3 --batch-size 4 --lr 1e-3 --runtime {kind} --json -o {}",
        text(&own("model.onnx")),
        text(&out)
    ));
    let models = found["models"].as_array().unwrap();
    assert!(models.iter().all(|m| m["top1"].is_number()), "{found}");
    assert!(models[2]["parameters"].as_u64() < models[0]["parameters"].as_u64(), "{found}");
    assert_eq!(found["input"]["texts"]["tokenizer"], json!(own("tokenizer.json")));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("Samples that judge"));
    let tokenizer = own("tokenizer.json");
    let tuned = out.join("tuned.onnx");
    let eval = ["eval", text(&tuned), "--texts", &texts, "--runtime", kind, "--json"];
    let judged = json_of(&eval);
    assert_eq!((&judged["images"], &judged["classes_by"]), (&json!(8), &json!("names")));
    assert_eq!(judged["input"]["texts"]["tokenizer"], json!(out.join("tokenizer.json")));
    let named = json_of(&[&eval[..], &["--tokenizer", text(&tokenizer)]].concat());
    assert_eq!((&judged["loss"], &judged["top1"]), (&named["loss"], &named["top1"]));
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["num_attention_heads"], &config["num_hidden_layers"]), (&json!(2), &json!(2)));
    let classes = json!({"0": "other", "1": "place", "2": "thing"});
    assert_eq!(
        (&config["id2label"], &found["configs"]["files"]),
        (&classes, &json!(["tokenizer.json", "config.json"]))
    );
}

/// A new classifier behind an encoder looks at real tokens alone: a text says the same alone and beside longer ones.
pub fn new_classifiers_look_at_real_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, one] = ["tuned.onnx", "one.jsonl"].map(|name| folder.path().join(name));
    let texts = format!("{FOLDER}/labelled.jsonl");
    for (model, pooling) in
        [("bert-ts", "mean"), ("bert-ts", "class-token"), ("bert-ts", "last"), ("bert-dynamo", "mean")]
    {
        let loss = |texts: &str| {
            let found = json_of(args!(
                "eval {} --texts {texts} --label-column class --tokenizer {FOLDER} --runtime {kind} --json",
                text(&tuned)
            ));
            found["loss"].as_f64().unwrap()
        };
        done(args!(
            "tune {FOLDER}/{model}.onnx --texts {texts} --label-column class --classes 3 --pooling {pooling} \
             --batch-size 4 --steps 1 --lr 0 --val-split 0 --runtime {kind} --force -o {}",
            text(&tuned)
        ));
        let alone: Vec<f64> = (lines().iter())
            .map(|line| {
                fs::write(&one, format!("{line}\n")).unwrap();
                loss(text(&one))
            })
            .collect();
        let together = loss(&texts);
        // What is fitted on the texts that it is judged on knows more than how many there are of a class.
        assert!(together < 1.0, "{model}, {pooling}: {together}");
        let mean = alone.iter().sum::<f64>() / alone.len() as f64;
        agree(&json!(together), &json!(mean), 1e-5, &format!("{model}, {pooling}"));
    }
    let out = folder.path().join("child");
    let found = json_of(args!(
        "run {FOLDER}/bert-ts.onnx --texts {texts} --classes 3 --pooling mean --heads 2 --steps 2 --batch-size 4 \
         --runtime {kind} --json -o {}",
        text(&out)
    ));
    assert!(found["models"][2]["top1"].is_number(), "{found}");
}

/// What is wrong with labels, columns and flags is said before any work.
pub fn wrong_labels_beside_texts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let model = format!("{FOLDER}/classifier-ts.onnx");
    let output = folder.path().join("tuned.onnx");
    let eval = |content: &str, more: &[&str], says: &[&str]| {
        let file = write("texts.csv", content);
        refused(&[&["eval", &model, "--texts", text(&file)][..], more].concat(), says);
        refused(&[&["tune", &model, "-o", text(&output), "--texts", text(&file)][..], more].concat(), says);
    };
    let named = ["--label-column", "kind"];
    eval("text,label\na,0\n", &named, &["it has no column `kind`; there are text, label", "--label-column NAME"]);
    eval("text,label\na,0\nb,1.5\n", &[], &["row 1 has the label `1.5` in its column `label`", "no number of a class"]);
    eval("text,label\na,x\nb,1\n", &[], &["row 1 has the label `1`", "a number, and others are names, such as `x`"]);
    eval("text,label\na,0\nb,\n", &[], &["row 1 has no label in its column `label`"]);
    eval("text,label\na,0\nb,7\n", &[], &["sample 1", "label is 7, and the model tells 3 classes apart"]);
    eval("text,label\na,0\nb,-1\n", &[], &["label is -1, which stands for no class"]);
    eval("text,label\na,x\nb,y\n", &[], &["the data set has 2 classes, and the model tells 3 apart"]);
    let texts = format!("{FOLDER}/labelled.jsonl");
    let lines = format!("{FOLDER}/sentences.txt");
    let says = "has no labels: it has no column label or labels; name it with --label-column";
    refused(&["eval", &model, "--texts", &lines], &[says]);
    refused(&["tune", &model, "-o", text(&output), "--texts", &lines], &["the data have no labels", "--teacher"]);
    refused(&["eval", &model, "--texts", &lines, "--label-column", "x"], &["lines of text have no columns"]);
    refused(&["tune", &model, "-o", text(&output), "--texts", &texts, "--mixup", "0.2"], &["texts are taken as they"]);
    // A teacher that takes what its student has not.
    let teach = format!(
        "tune fixtures/texts/distilbert-ts17.onnx --texts {lines} --tokenizer {FOLDER} --teacher {FOLDER}/bert-ts.onnx \
         -o {}",
        text(&output)
    );
    refused(
        &teach.split_whitespace().collect::<Vec<_>>(),
        &["as a teacher it is given another `token_type_ids` than its student"],
    );
    for flags in [
        &["--texts", &texts, "--inputs", "x.npz"][..],
        &["--texts", &texts, "--data", "photos"],
        &["--texts", &texts, "--image-column", "image"],
        &["--data", "photos", "--max-length", "3"],
        &["--inputs", "x.npz", "--text-column", "text"],
    ] {
        let output = offshoot(&[&["eval", &model][..], flags].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains("cannot be used with"), "{flags:?}: {told}");
    }
    assert!(!output.exists());
}

/// Pairs of texts are embedded one by one, and their cosines follow scores as SciPy says of ONNX Runtime's embeddings.
pub fn pairs_follow_their_scores(kind: &str) {
    let golden = fs::read_to_string(root().join(FOLDER).join("rated.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let pairs = format!("{FOLDER}/rated.csv");
    for model in ["bert-ts", "bert-dynamo"] {
        let path = format!("{FOLDER}/{model}.onnx");
        let eval = ["eval", &path, "--texts", &pairs, "--text-column", "first,second", "--score-column", "score"];
        for (pooling, output) in [("sentence", "sentence"), ("mean", EMBEDDING), ("class-token", EMBEDDING)] {
            let pooled = if pooling == "sentence" { vec![] } else { vec!["--pooling", pooling] };
            let found = json_of(&[&eval[..], &pooled, &["--runtime", kind, "--json"]].concat());
            agree(&found["spearman"], &golden[pooling]["spearman"], 1e-9, &format!("{model}, {pooling}"));
            assert_eq!((&found["embedding"], &found["pairs"]), (&json!(output), &json!(7)), "{model}");
        }
        let few = offshoot(&[&eval[..], &["--runtime", kind, "--at-least", "0.99"]].concat());
        assert_eq!(few.status.code(), Some(1), "{model}");
        assert!(String::from_utf8_lossy(&few.stdout).contains("Spearman of cosine and `score`"), "{model}");
    }
}

/// Scores need pairs, numbers, and one embedding.
pub fn wrong_scores_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, pairs) = (format!("{FOLDER}/bert-ts.onnx"), format!("{FOLDER}/rated.csv"));
    let both = ["--text-column", "first,second"];
    let eval = |texts: &str, more: &[&str], says: &[&str]| {
        refused(&[&["eval", &model, "--texts", texts, "--score-column", "score"][..], more].concat(), says);
    };
    eval(&pairs, &["--text-column", "first"], &["a score is that of two texts", "--text-column A,B"]);
    let write = |content: &str| {
        let path = folder.path().join("pairs.csv");
        fs::write(&path, content).unwrap();
        path
    };
    eval(text(&write("first,second,score\na,b,1\na,b,x\n")), &both, &["row 1 has the score `x`", "is no number"]);
    eval(text(&write("first,second,score\na,b,1\na,b,\n")), &both, &["row 1 has no score in its column `score`"]);
    eval(text(&write("first,second,score\na,b,1\na,c,1\n")), &both, &["all scores in its column `score` are the same"]);
    eval(text(&write("first,second,rating\na,b,1\n")), &both, &["it has no column `score`; there are first, second"]);
    eval(&format!("{FOLDER}/sentences.txt"), &both, &["lines of text have no columns"]);
    eval(
        &pairs,
        &[&both[..], &["--of", "last_hidden_state"]].concat(),
        &["no output is one vector a text", "--pooling"],
    );
    let pictures = ["inspect", "models/fashion-vit.onnx", "--pooling", "mean"];
    refused(&pictures, &["--pooling is for models of texts, and no input takes tokens"]);
    eval(
        &pairs,
        &[&both[..], &["--of", "sentence", "--pooling", "mean"]].concat(),
        &["no output has states of tokens to pool: sentence", "--of NAME"],
    );
}
