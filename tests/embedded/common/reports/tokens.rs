//! Open numbers of tokens: `--tokens` fixes them, `--max-length` cuts texts alone, and hints lead to them.

use std::fs;
use std::sync::Arc;

use ndarray::Array2;
use offshoot::graph::rename;
use offshoot::onnx::proto::ValueInfoProto;
use offshoot::onnx::{DataType, Model, tensor_info};
use offshoot::runtime::Runtime;
use serde_json::json;

use super::texts::{FOLDER, MODELS};
use crate::common::binary::{args, done, json as json_of, offshoot, refused, text};
use crate::common::root;

/// Children that take so many tokens are verified on texts of as many, fitted, folded, and in half precision, and are
/// their ancestors where nothing else was asked for.
pub fn children_take_so_many_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("child.onnx");
    let (child, texts) = (text(&out), format!("{FOLDER}/sentences.txt"));
    for model in MODELS.map(|name| format!("{FOLDER}/{name}.onnx")) {
        let grow = format!("grow {model} --runtime {kind} --json --force -o {child}");
        for (tokens, more) in [(10, "--heads 2"), (10, "--heads 2 --fold --dtype fp16"), (20, "--heads 2")] {
            let plan = json_of(args!("{grow} --texts {texts} --tokens {tokens} {more}"));
            assert_eq!(plan["tokens"], tokens);
            let most = if tokens == 10 { json!("--tokens") } else { json!("sentence_bert_config.json") };
            assert_eq!(plan["input"]["texts"]["max_length"]["from"], most, "{plan}");
            for check in plan["verification"]["checks"].as_array().unwrap() {
                assert!(check["outcome"] == "passed", "{tokens} {more}: {check}");
            }
            let told = plan["warnings"].to_string();
            assert_eq!(told.contains("places for 16 tokens: those of 20 are interpolated"), tokens == 20, "{told}");
            let found = json_of(args!("inspect {child} --json"));
            let fixed = (&found["tokens"][0]["tokens"], &found["tokens"][0]["from"]);
            assert_eq!(fixed, (&json!(tokens), &json!("graph")), "{found}");
            assert_eq!(found["inputs"][0]["shape"], json!([null, tokens]));
        }
        // Arrays are of one length, and say nothing of a child of another.
        let plan = json_of(args!("{grow} --inputs {FOLDER}/sentences.npz --tokens 10 --dtype fp16"));
        let why = "samples have 12 tokens, and the descendant takes 10";
        assert_eq!(plan["verification"]["not_run"], why, "{plan}");
        done(args!("grow {model} --no-images --tokens 10 --fold --force -o {child}"));
        let same = format!("compare {model} {child} --texts {texts} --max-length 10 --runs 1 --runtime {kind}");
        done(args!("{same} --tolerance 1e-5"));
        refused(
            args!("density {child} --texts {texts} --tokenizer {FOLDER} --max-length 11"),
            &["--max-length 11 is more than the model takes: 10"],
        );
        refused(args!("density {child} --inputs {FOLDER}/sentences.npz"), &["`input_ids`", "10"]);
        refused(
            args!("grow {model} --texts {texts} --tokens 10 --max-length 11 --force -o {child}"),
            &["--max-length 11 is more than the model takes: 10 (--tokens)"],
        );
    }
}

/// Every message leads to the flag that helps a model of its kind.
pub fn hints_lead_to_the_number_of_tokens() {
    let model = format!("{FOLDER}/bert-ts.onnx");
    let grow = format!("grow {model} --no-images --dry-run");
    refused(
        args!("{grow} --fold"),
        &["`input_ids` has no fixed size", "hint: give the number of tokens with --tokens"],
    );
    refused(args!("{grow} --image-size 24"), &["takes no images", "the number of its tokens is given with --tokens"]);
    let zero = offshoot(args!("{grow} --tokens 0"));
    let told = String::from_utf8_lossy(&zero.stderr);
    assert!(zero.status.code() == Some(2) && told.contains("a number of tokens is between 1 and 65536"), "{told}");
    let says = ["none of its inputs", "another size of images is given with --image-size"];
    refused(args!("grow models/fashion-vit.onnx --no-images --dry-run --tokens 8"), &says);
}

/// The child of the whole path takes so many tokens, and texts that train and judge it are as long.
pub fn the_whole_path_takes_a_number_of_tokens(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (model, texts) = (format!("{FOLDER}/classifier-ts.onnx"), format!("{FOLDER}/labelled.jsonl"));
    for tokens in [8, 20] {
        let out = folder.path().join(tokens.to_string());
        let run = format!("run {model} --texts {texts} --heads 2 --steps 2 --batch-size 4 --runtime {kind} --json");
        let found = json_of(args!("{run} --tokens {tokens} -o {}", text(&out)));
        assert!(found["models"].as_array().unwrap().iter().all(|m| m["top1"].is_number()), "{found}");
        let tuned = out.join("tuned.onnx");
        let inspected = json_of(args!("inspect {} --json", text(&tuned)));
        assert_eq!(
            (&inspected["tokens"][0]["tokens"], &inspected["tokens"][0]["from"]),
            (&json!(tokens), &json!("graph"))
        );
        let eval = format!("eval {} --texts {texts} --tokenizer {FOLDER} --runtime {kind} --json", text(&tuned));
        let judged = json_of(args!("{eval}"));
        assert_eq!(judged["input"]["arrays"][0]["shape"], json!([tokens]));
    }
    let out = folder.path().join("longer");
    refused(
        args!("run {model} --texts {texts} --tokens 8 --max-length 9 -o {}", text(&out)),
        &["--max-length 9 is more than the model takes: 8 (--tokens)"],
    );
    assert!(fs::read_dir(&out).map_or(true, |mut files| files.next().is_none()), "something was written");
}

/// Where an input says the place of each token the table of places stays whole, and a number that it has no rows for is
/// refused. A second sequence, as a decoder has it, is not given the number of the first.
pub fn places_that_are_given_and_second_sequences_stay(runtime: &Arc<Runtime>) {
    let folder = tempfile::tempdir().unwrap();
    let [given, child, both] = ["given.onnx", "child.onnx", "both.onnx"].map(|name| folder.path().join(name));
    let mut model = Model::open(root().join(FOLDER).join("bert-ts.onnx")).unwrap();
    let graph = model.graph_mut();
    let input = |name: &str, like: &ValueInfoProto| ValueInfoProto { name: Some(name.into()), ..like.clone() };
    let ids = graph.input.iter().find(|v| v.name() == "input_ids").unwrap().clone();
    graph.input.push(input("position_ids", &ids));
    let table = "model.embeddings.position_embeddings.weight";
    let lookup = graph.node.iter_mut().find(|n| n.input.first().is_some_and(|x| x == table)).unwrap();
    lookup.input[1] = "position_ids".into();
    model.write(&given).unwrap();
    let grow = format!("grow {} --no-images --force -o {}", text(&given), text(&child));
    done(args!("{grow} --tokens 6"));
    let small = Model::open(&child).unwrap();
    let rows = |model: &Model| model.graph().initializer.iter().find(|t| t.name() == table).unwrap().dims.clone();
    assert_eq!((rows(&small), rows(&model)), (vec![16, 16], vec![16, 16]));
    // The last places of the table, for a text of six tokens.
    let array = |value: &dyn Fn(usize) -> f32| Array2::from_shape_fn((1, 6), |(_, at)| value(at)).into_dyn();
    let feeds = [
        ("input_ids", array(&|at| at as f32 + 3.0)),
        ("attention_mask", array(&|_| 1.0)),
        ("token_type_ids", array(&|_| 0.0)),
        ("position_ids", array(&|at| at as f32 + 10.0)),
    ];
    let said = |model: &Model| {
        let views: Vec<_> = feeds.iter().map(|(name, a)| (*name, a.view())).collect();
        runtime.load_open(model, 1, [1, 1]).unwrap().run_on(&views).unwrap()
    };
    assert!(crate::common::surgery::error(&said(&small), &said(&model)) < 1e-6);
    refused(
        args!("{grow} --tokens 17"),
        &["`position_ids` says the place of each token, and the model has 16 places, not 17", "at most 16 tokens"],
    );
    // The same encoder again, on tokens of its own.
    let other = |name: &str| format!("decoder_{name}");
    let mut second = model.graph().clone();
    let names = second.node.iter().flat_map(|n| n.output.iter().chain(&n.input)).filter(|name| !name.is_empty());
    let renamed = names.map(|name| (name.clone(), other(name))).collect();
    rename(&mut second, &renamed);
    for info in &mut second.input {
        let axes = offshoot::graph::declared_dims(info).unwrap().len();
        *info = tensor_info(info.name(), DataType::Int64, &vec![None; axes]);
    }
    let graph = model.graph_mut();
    graph.input.extend(second.input);
    graph.output.extend(second.output);
    graph.initializer.extend(second.initializer);
    graph.node.extend(second.node);
    graph.value_info.clear();
    model.write(&both).unwrap();
    let line = format!("grow {} --no-images --tokens 6 --force -o {}", text(&both), text(&child));
    refused(
        args!("{line}"),
        &["`input_ids` and `decoder_input_ids` have a number of tokens each", "leave --tokens out"],
    );
}
