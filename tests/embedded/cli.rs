//! Whole runs of the binary: the path from an ancestor to a child, the JSON that is promised, and what bad input gets.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot::onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_info};
use serde_json::Value;

use crate::common::binary::{args, done, json, offshoot, refused, text};
use crate::common::root;

fn ancestor() -> PathBuf {
    root().join("models/fashion-vit.onnx")
}

fn pictures() -> PathBuf {
    root().join("fixtures/fashion-images.idx3-ubyte")
}

#[test]
fn inspect_keeps_its_contract() {
    let v = json(&["inspect", text(&ancestor()), "--json"]);
    assert_eq!(v["schema"], "offshoot.inspect/2");
    assert_eq!(v["patch_size"], 4);
    assert_eq!(v["grid"], serde_json::json!([7, 7]));
    assert_eq!(v["prefix_tokens"], 1);
    assert_eq!(v["bytes"], fs::metadata(ancestor()).unwrap().len());
    // PyTorch counted these when the model was trained (models/README.md).
    assert_eq!(v["parameters"], 405_002);
    let layers = v["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 8);
    for l in layers {
        assert_eq!((&l["heads"], &l["head_dim"], &l["embedding_dim"]), (&8.into(), &8.into(), &64.into()));
        assert_eq!(
            (&l["ffn_kind"], &l["ffn_activation"], &l["ffn_width"]),
            (&"plain".into(), &"gelu".into(), &256.into())
        );
    }
    assert_eq!(v["other_attentions"], serde_json::json!([]));
    // 8 layers of 4 D^2 + 2 D F a token and 2 N^2 D of attention, the patches and the classifier.
    let (n, d, f) = (50u64, 64u64, 256u64);
    let macs = 8 * (n * (4 * d * d + 2 * d * f) + 2 * n * n * d) + 49 * 16 * d + d * 10;
    assert_eq!(v["macs"], macs);
}

#[test]
fn inspect_says_how_many_tokens_it_assumes_and_why() {
    let of = |file: &str| json(&["inspect", text(&root().join("fixtures/texts").join(file)), "--json"]);
    let inputs = serde_json::json!(["input_ids", "attention_mask"]);
    // Two exporters; a table of places, one that counts from behind the padding, and none.
    for (file, places) in [
        ("gpt2-ts17.onnx", 32.into()),
        ("gpt2-dynamo23.onnx", 32.into()),
        ("roberta-dynamo20.onnx", 32.into()),
        ("t5-ts17.onnx", Value::Null),
        ("modernbert-dynamo20.onnx", Value::Null),
    ] {
        let v = of(file);
        let tokens = serde_json::json!([
            {"tokens": 16, "from": "guess", "axis": "tokens", "inputs": inputs, "position_table": places}
        ]);
        assert_eq!(v["tokens"], tokens, "{file}");
        assert_eq!(v["inputs"][0]["axes"], serde_json::json!(["batch", "tokens"]), "{file}");
        assert_eq!((&v["inputs"][0]["shape"][1], &v["inputs"][0]["type"]), (&Value::Null, &"int64".into()), "{file}");
    }
    assert_eq!(json(&["inspect", text(&ancestor()), "--json"])["tokens"], serde_json::json!([]));
    let shown = done(&["inspect", "fixtures/texts/bert-ts17.onnx"]).stdout;
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("inputs: input_ids int64 [batch,tokens], attention_mask int64 [batch,tokens]"), "{shown}");
    let line = "tokens: 16 (a guess: the file leaves `tokens` open) in input_ids, attention_mask, token_type_ids; the \
                position table has places for 32\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn inspect_lists_weights_and_explains_a_layer() {
    let v = json(&["inspect", text(&ancestor()), "--weights", "--json"]);
    let weights = &v["layers"][3]["weights"];
    for role in ["heads", "output_projection", "ffn"] {
        assert!(!weights[role].as_array().unwrap().is_empty(), "{role}");
    }
    let v = json(&["inspect", text(&ancestor()), "--explain", "2", "--json"]);
    let heads = v["factors"].as_array().unwrap().iter().find(|f| f["factor"] == "heads").unwrap();
    assert_eq!(heads["size"], 8);
    assert!(!heads["shape_operands"].as_array().unwrap().is_empty());
    refused(&["inspect", text(&ancestor()), "--explain", "8"], &["there is no layer 8"]);
}

#[test]
fn the_whole_path_gives_a_smaller_child() {
    let folder = tempfile::tempdir().unwrap();
    let (gene, child) = (folder.path().join("gene.onnx"), folder.path().join("child.onnx"));
    let plot = folder.path().join("density.svg");
    let (model, images) = (ancestor(), pictures());
    let v = json(args!(
        "density {} --images {} --limit 40 --plot {} --runtime tract --json",
        text(&model),
        text(&images),
        text(&plot)
    ));
    assert_eq!(v["densities"].as_array().unwrap().len(), 8);
    assert_eq!(v["densities"][0].as_array().unwrap().len(), 8);
    assert_eq!(fs::read_to_string(&plot).unwrap().matches("<circle").count(), 64);
    let v = json(args!(
        "condense {} --images {} --limit 40 -o {} --runtime tract --json",
        text(&model),
        text(&images),
        text(&gene)
    ));
    assert_eq!(v["schema"], "offshoot.learngene/1");
    let parameters = &v["parameters"];
    assert!(parameters["i_params"].as_u64() <= parameters["whole"].as_u64());
    assert!(parameters["whole"].as_u64() < parameters["ancestor"].as_u64());

    let plan = json(&["grow", text(&gene), "--layers", "even:4", "--heads", "4", "--dry-run", "--json"]);
    assert_eq!(plan["schema"], "offshoot.plan/1");
    assert!(!child.exists());
    done(args!("grow {} --layers even:4 --heads 4 -o {} --verify --runtime tract", text(&gene), text(&child)));
    let (a, b) = (json(&["inspect", text(&model), "--json"]), json(&["inspect", text(&child), "--json"]));
    assert_eq!(b["layers"].as_array().unwrap().len(), 4);
    assert!(b["layers"].as_array().unwrap().iter().all(|l| l["heads"] == 4));
    for key in ["parameters", "macs", "bytes"] {
        assert_eq!(b[key], plan[key], "the plan says the child's own {key}");
        assert!(b[key].as_u64().unwrap() * 2 < a[key].as_u64().unwrap(), "{key}");
    }
    let v = json(args!(
        "compare {} {} --images {} --limit 20 --runtime tract --json",
        text(&model),
        text(&child),
        text(&images)
    ));
    for key in ["max_abs_error", "relative_error", "correlation", "top1_agreement"] {
        assert!(v[key].is_number(), "{key}");
    }
    // How long they take depends on what else the machine does; what they compute is compared above.
    for side in ["a", "b"] {
        assert!(v["latency_ms"][side].as_f64().unwrap() > 0.0, "{v}");
    }
    let strict = offshoot(args!(
        "compare {} {} --images {} --limit 4 --runtime tract --tolerance 1e-4",
        text(&model),
        text(&child),
        text(&images)
    ));
    assert_eq!(strict.status.code(), Some(1));
}

#[test]
fn densities_equal_an_independent_computation() {
    let golden: Value =
        serde_json::from_slice(&fs::read(root().join("fixtures/density/fashion-vit.json")).unwrap()).unwrap();
    let v =
        json(args!("density {} --images {} --limit 100 --runtime tract --json", text(&ancestor()), text(&pictures())));
    for (l, (found, truth)) in
        v["densities"].as_array().unwrap().iter().zip(golden["densities"].as_array().unwrap()).enumerate()
    {
        for (a, b) in found.as_array().unwrap().iter().zip(truth.as_array().unwrap()) {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() < 1e-5 * b, "layer {l}: {a} and {b}");
        }
    }
}

#[test]
fn growing_everything_is_the_identity() {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let (model, images) = (ancestor(), pictures());
    done(args!(
        "grow {} --images {} --limit 8 --eps 0 --ffn-eps 0 -o {} --runtime tract",
        text(&model),
        text(&images),
        text(&child)
    ));
    let same = |child: &Path| {
        done(&[
            "compare",
            text(&model),
            text(child),
            "--images",
            text(&images),
            "--limit",
            "8",
            "--runtime",
            "tract",
            "--tolerance",
            "1e-5",
            "--runs",
            "1",
        ]);
    };
    same(&child);
    // Twice the heads give the same outputs; so does a tied child.
    for extra in [["--width", "0.5"], ["--layers", "8"]] {
        done(&["grow", text(&model), "--no-images", extra[0], extra[1], "-o", text(&child), "--force"]);
        same(&child);
    }
}

#[test]
fn a_new_classifier_has_its_own_size_and_seed() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    for path in [&a, &b] {
        done(&["grow", text(&ancestor()), "--no-images", "--classes", "3", "--seed", "5", "-o", text(path)]);
    }
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "the same seed gives the same bytes");
    let v = json(&["inspect", text(&a), "--json"]);
    assert_eq!(v["outputs"][0]["shape"][1], 3);
    done(&["grow", text(&ancestor()), "--no-images", "--classes", "3", "--seed", "6", "-o", text(&b), "--force"]);
    assert_ne!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
}

#[test]
fn another_image_size_and_folded_constants() {
    let folder = tempfile::tempdir().unwrap();
    let (model, images) = (ancestor(), pictures());
    let child = folder.path().join("child.onnx");
    let size = ["--image-size", "32x36", "--layers", "even:4", "--fold", "--runtime", "tract"];
    let given = ["grow", text(&model), "--no-images", "-o", text(&child), "--json"];
    let plan = json(&[&given[..], &size].concat());
    assert_eq!(plan["image_size"], serde_json::json!([32, 36]));
    let v = json(&["inspect", text(&child), "--json"]);
    assert_eq!((&v["grid"], &v["bytes"]), (&serde_json::json!([8, 9]), &plan["bytes"]));
    let written = Model::open(&child).unwrap();
    let preprocess: Value = serde_json::from_str(written.metadata("offshoot.preprocess").unwrap()).unwrap();
    assert_eq!(preprocess["size"], serde_json::json!([32, 36]));
    assert!(written.graph().node.len() * 2 < Model::open(&model).unwrap().graph().node.len());
    done(&["density", text(&child), "--images", text(&images), "--limit", "4", "--runtime", "tract"]);
    refused(
        &["grow", text(&model), "--no-images", "--image-size", "30", "-o", text(&child), "--force"],
        &["no multiple of the patch of 4"],
    );
    // Without a new size folding leaves the outputs.
    done(&["grow", text(&model), "--no-images", "--fold", "-o", text(&child), "--force", "--runtime", "tract"]);
    let same = ["compare", text(&model), text(&child), "--images", text(&images), "--limit", "4", "--runs", "1"];
    done(&[&same[..], &["--tolerance", "1e-5", "--runtime", "tract"]].concat());
}

#[test]
fn a_list_grows_several_descendants() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.toml");
    fs::write(
        &list,
        "[[descendant]]\noutput = \"small.onnx\"\nlayers = 4\nheads = 2\n\n[[descendant]]\noutput = \"mixed.onnx\"\n\
         layers = \"last:2\"\nheads = [3, 5]\nffn-width = \"50%\"\n",
    )
    .unwrap();
    let family = folder.path().join("family");
    done(&["grow", text(&ancestor()), "--no-images", "--batch", text(&list), "-o", text(&family)]);
    let v = json(&["inspect", text(&family.join("mixed.onnx")), "--json"]);
    let heads: Vec<_> = v["layers"].as_array().unwrap().iter().map(|l| l["heads"].as_u64().unwrap()).collect();
    assert_eq!(heads, [3, 5]);
    assert_eq!(v["layers"][0]["ffn_width"], 128);
    assert!(family.join("small.onnx").exists());
    let file = folder.path().join("small.onnx");
    fs::write(&file, "").unwrap();
    refused(&["grow", text(&ancestor()), "--no-images", "--batch", text(&list), "-o", text(&file)], &["small.onnx"]);
    fs::write(&list, "[[descendant]]\noutput = \"x.onnx\"\nhaeds = 4\n").unwrap();
    refused(&["grow", text(&ancestor()), "--no-images", "--batch", text(&list)], &["haeds", "list.toml"]);
}

#[test]
fn heads_and_layers_that_cannot_be_are_refused() {
    let m = ancestor();
    let m = text(&m);
    let cases: &[(&[&str], &str)] = &[
        (&["--heads", "0"], "0 heads"),
        (&["--heads", "4,4"], "--heads lists 2 layers"),
        (&["--width", "3"], "no whole number of heads"),
        (&["--width", "0"], "no whole number of heads"),
        (&["--layers", "9"], "9 layers were asked for"),
        (&["--layers", "0"], "at least one layer"),
        (&["--layers", "5,1"], "ascending"),
        (&["--eps", "5"], "--eps"),
        (&["--order", "ascending"], "order needs densities"),
        (&["--classes", "0"], "0 classes"),
        (&["--ffn-width", "1"], "at least two"),
    ];
    for (flags, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        let child = folder.path().join("child.onnx");
        let arguments: Vec<&str> =
            ["grow", m, "--no-images", "-o", text(&child)].into_iter().chain(flags.iter().copied()).collect();
        let output = offshoot(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(stderr.contains(says), "{flags:?}: {stderr}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{flags:?} left a file behind");
    }
    refused(&["grow", m, "-o", "/tmp/never.onnx"], &["needs images"]);
    refused(&["grow", m, "--no-images"], &["no output was named"]);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let whole = fs::read(ancestor()).unwrap();
    let cases = [
        (write("text.onnx", b"this is not a model at all, it is a sentence"), "not an ONNX model"),
        (write("empty.onnx", b""), "empty"),
        (write("short.onnx", &whole[..whole.len() / 2]), "truncated"),
        (write("shorter.onnx", &whole[..100]), "not an ONNX model"),
        (folder.path().join("missing.onnx"), "No such file"),
        (folder.path().to_path_buf(), "not a file"),
    ];
    for (path, says) in &cases {
        refused(&["inspect", text(path)], &[says, text(path)]);
        refused(&["grow", text(path), "--no-images", "-o", text(&folder.path().join("out.onnx"))], &[says]);
        assert!(!folder.path().join("out.onnx").exists());
    }
}

/// A model of one operator.
fn one_operator(op: &str, path: &Path) {
    let mut node = offshoot::graph::node(op, &["x", "w"], &["y"], vec![]);
    node.name = Some("the_node".into());
    let graph = GraphProto {
        node: vec![node],
        initializer: vec![tensor_from_f32("w", DataType::Float, &[8, 8], &[0.5; 64])],
        input: vec![tensor_info("x", DataType::Float, &[None, Some(3), Some(8), Some(8)])],
        output: vec![tensor_info("y", DataType::Float, &[None, Some(3), Some(8), Some(8)])],
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    };
    Model::from_proto(proto).write(path).unwrap();
}

#[test]
fn models_that_are_no_transformers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    one_operator("MatMul", &path);
    refused(&["inspect", text(&path)], &["no attention found", text(&path)]);
    one_operator("MatMulInteger", &path);
    refused(&["inspect", text(&path)], &["quantised", "the_node"]);
    one_operator("Frobnicate", &path);
    refused(&["inspect", text(&path)], &["Frobnicate", "no typing rule", "the_node"]);
}

/// What is refused, each in the smallest graph that has it: the graph, and what the message says.
fn unsupported_graphs() -> Vec<(&'static str, GraphProto, &'static [&'static str])> {
    use offshoot::graph::{int_attribute, node};
    use offshoot::onnx::proto::{SparseTensorProto, TensorProto};
    let image = || tensor_info("x", DataType::Float, &[None, Some(3), Some(8), Some(8)]);
    let output = || tensor_info("y", DataType::Float, &[None, Some(3), Some(8), Some(8)]);
    let weight = || tensor_from_f32("w", DataType::Float, &[8, 8], &[0.5; 64]);
    let graph = |nodes: Vec<_>, initializers: Vec<TensorProto>| GraphProto {
        node: nodes,
        initializer: initializers,
        input: vec![image()],
        output: vec![output()],
        ..Default::default()
    };
    let byte = |name: &str| offshoot::onnx::tensor_from_raw(name, DataType::Uint8, &[], vec![3].into());
    let scale = || tensor_from_f32("scale", DataType::Float, &[], &[0.1]);
    let quantised = graph(
        vec![
            node("QuantizeLinear", &["x", "scale", "zero"], &["q"], vec![]),
            node("DequantizeLinear", &["q", "scale", "zero"], &["d"], vec![]),
            node("MatMul", &["d", "w"], &["y"], vec![]),
        ],
        vec![scale(), byte("zero"), weight()],
    );
    let integer = graph(
        vec![
            node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"], vec![]),
            node("MatMulInteger", &["q", "w8", "z"], &["i"], vec![]),
            node("Cast", &["i"], &["y"], vec![int_attribute("to", 1)]),
        ],
        vec![offshoot::onnx::tensor_from_raw("w8", DataType::Uint8, &[8, 8], vec![1; 64].into())],
    );
    let mut four_bits = node("MatMulNBits", &["x", "w4", "scales"], &["y"], vec![]);
    four_bits.domain = Some("com.microsoft".into());
    let four_bits = graph(
        vec![four_bits],
        vec![
            offshoot::onnx::tensor_from_raw("w4", DataType::Uint8, &[8, 1, 4], vec![0; 32].into()),
            tensor_from_f32("scales", DataType::Float, &[8], &[1.0; 8]),
        ],
    );
    let mut blocked = node("ReorderOutput", &["x"], &["y"], vec![int_attribute("channels", 3)]);
    blocked.domain = Some("com.microsoft.nchwc".into());
    let blocked = graph(vec![blocked], vec![]);
    let repeated = graph(
        vec![node("Loop", &["count", "", "x"], &["y"], vec![])],
        vec![offshoot::onnx::tensor_from_i64("count", &[], &[2])],
    );
    let mut sparse = graph(vec![node("MatMul", &["x", "w"], &["y"], vec![])], vec![]);
    sparse.sparse_initializer = vec![SparseTensorProto {
        values: Some(tensor_from_f32("w", DataType::Float, &[1], &[0.5])),
        indices: Some(offshoot::onnx::tensor_from_i64("w_indices", &[1], &[5])),
        dims: vec![8, 8],
    }];
    let no_attention = graph(vec![node("MatMul", &["x", "w"], &["y"], vec![])], vec![weight()]);
    let cache = |name: &str| tensor_info(name, DataType::Float, &[None, Some(2), None, Some(4)]);
    let decoder = GraphProto {
        node: vec![
            node("Gather", &["table", "input_ids"], &["h"], vec![]),
            node("Unsqueeze", &["h", "one"], &["k"], vec![]),
            node("Concat", &["past", "k"], &["present"], vec![int_attribute("axis", 2)]),
        ],
        initializer: vec![
            tensor_from_f32("table", DataType::Float, &[8, 4], &[0.5; 32]),
            offshoot::onnx::tensor_from_i64("one", &[1], &[1]),
        ],
        input: vec![tensor_info("input_ids", DataType::Int64, &[None, None]), cache("past")],
        output: vec![cache("present")],
        ..Default::default()
    };
    vec![
        ("QDQ", quantised, &["quantised", "QuantizeLinear"]),
        ("integer", integer, &["quantised", "DynamicQuantizeLinear"]),
        ("four bits", four_bits, &["quantised", "MatMulNBits"]),
        ("blocked channels", blocked, &["one kind of processor", "ReorderOutput", "extended level"]),
        ("a loop", repeated, &["no attention found", "`ai.onnx.Loop`", "no typing rule"]),
        ("sparse", sparse, &["`w` is sparse"]),
        ("no attention", no_attention, &["no attention found"]),
        ("text decoder", decoder, &["text decoder", "`past`"]),
    ]
}

#[test]
fn what_is_not_supported_is_refused_clearly() {
    use offshoot::error::ErrorKind;
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("model.onnx"), folder.path().join("out.onnx"));
    let images = pictures();
    for (what, graph, says) in unsupported_graphs() {
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![
                OperatorSetIdProto { domain: None, version: Some(17) },
                OperatorSetIdProto { domain: Some("com.microsoft".into()), version: Some(1) },
            ],
            graph: Some(graph),
            ..Default::default()
        };
        Model::from_proto(proto).write(&path).unwrap();
        let mut model = Model::open(&path).unwrap();
        let error = offshoot::graph::prepare(&mut model)
            .and_then(|()| {
                offshoot::axes::Typing::new(&model).and_then(|t| offshoot::anatomy::Anatomy::new(&t).map(|_| ()))
            })
            .unwrap_err();
        let kind = match what {
            "no attention" | "a loop" => ErrorKind::Anatomy,
            _ => ErrorKind::Unsupported,
        };
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.hint_text().is_some(), "{what}: {error}");
        let named: Vec<&str> = says.iter().copied().chain([text(&path)]).collect();
        refused(&["inspect", text(&path)], &named);
        refused(&["density", text(&path), "--images", text(&images), "--runtime", "tract"], &named);
        refused(&["grow", text(&path), "--no-images", "-o", text(&out)], &named);
        assert!(!out.exists(), "{what}");
    }
}

#[test]
fn images_that_cannot_be_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (m, out) = (ancestor(), folder.path().join("gene.onnx"));
    let refuse = |images: &Path, says: &[&str]| {
        refused(&["condense", text(&m), "--images", text(images), "-o", text(&out), "--runtime", "tract"], says);
        assert!(!out.exists());
    };
    refuse(&folder.path().join("nowhere"), &["nowhere"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    refuse(&empty, &["no pictures", "empty"]);
    fs::write(empty.join("broken.png"), b"not a picture").unwrap();
    refuse(&empty, &["broken.png"]);
}

#[test]
fn outputs_are_never_harmed() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::copy(ancestor(), &model).unwrap();
    let before = fs::read(&model).unwrap();
    refused(&["grow", text(&model), "--no-images", "-o", text(&model), "--force"], &["the output is the input"]);
    let other = folder.path().join("other.onnx");
    fs::write(&other, b"precious").unwrap();
    refused(&["grow", text(&model), "--no-images", "-o", text(&other)], &["exists already", "--force"]);
    assert_eq!(fs::read(&other).unwrap(), b"precious");
    refused(
        &["grow", text(&model), "--no-images", "-o", text(&folder.path().join("no/such/folder.onnx"))],
        &["cannot be written"],
    );
    assert_eq!(fs::read(&model).unwrap(), before);
    done(&["grow", text(&model), "--no-images", "-o", text(&other), "--force"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_damaged_learngene_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gene.onnx");
    for (text_of, says) in [
        ("{", "cannot be read"),
        ("{\"schema\": \"offshoot.learngene/99\"}", "another version"),
        ("{\"schema\": \"offshoot.learngene/1\"}", "cannot be read"),
    ] {
        let mut model = Model::open(ancestor()).unwrap();
        model.set_metadata("offshoot.learngene", text_of);
        model.write(&path).unwrap();
        let output = offshoot(&["grow", text(&path), "-o", text(&folder.path().join("child.onnx"))]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_command_line_describes_itself() {
    let v = json(&["doctor", "--runtime", "tract", "--json"]);
    assert_eq!(v["runtime"], "tract");
    assert!(v["execution_providers"].as_array().unwrap().contains(&"CPUExecutionProvider".into()));
    for shell in ["bash", "zsh", "fish"] {
        assert!(String::from_utf8_lossy(&done(&["completions", shell]).stdout).contains("condense"));
    }
    assert!(String::from_utf8_lossy(&done(&["man"]).stdout).contains(".TH offshoot"));
    assert_eq!(offshoot(&["grow", "--heads", "many", "x.onnx"]).status.code(), Some(2));
    assert_eq!(offshoot(&["inspect", text(&ancestor()), "--json", "--threads", "x"]).status.code(), Some(2));
    let missing = offshoot(&["doctor", "--runtime", "onnxruntime", "--onnxruntime", "/nowhere/libonnxruntime.so"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/libonnxruntime.so"));
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    crate::common::determinism::same_bytes("tract");
}

#[test]
fn what_is_said_of_a_teacher_needs_one() {
    let tune = |more: &[&str]| {
        let common = ["tune", "models/fashion-vit.onnx", "--data", "fixtures/fashion-images.idx3-ubyte", "--dry-run"];
        offshoot(&[&common[..], more].concat())
    };
    for (more, missing) in [
        (&["--temperature", "3"][..], "--teacher <MODEL>"),
        (&["--feature-weight", "2", "--teacher", "models/fashion-vit.onnx"], "--feature <NAMES>"),
    ] {
        let output = tune(more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(missing), "{said}");
    }
    assert!(tune(&["--temperature", "3", "--teacher", "models/fashion-vit.onnx"]).status.success());
}
