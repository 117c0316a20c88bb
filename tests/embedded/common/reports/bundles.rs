//! Children in folders of their own, with what lies beside their ancestor.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::texts::FOLDER;
use crate::common::binary::{args, done, json as json_of, offshoot, refused, text};
use crate::common::root;

/// A folder as Hugging Face lays it out, with the model in `onnx/`.
struct Ancestor(tempfile::TempDir);

impl Ancestor {
    fn new(model: &str) -> Ancestor {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("hub/onnx")).unwrap();
        fs::create_dir_all(folder.path().join("hub/1_Pooling")).unwrap();
        let ancestor = Ancestor(folder);
        fs::copy(root().join(FOLDER).join(format!("{model}.onnx")), ancestor.model()).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"] {
            fs::copy(root().join(FOLDER).join(name), ancestor.beside(name)).unwrap();
        }
        let config = json!({
            "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 16, "vocab_size": 40,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "of_somebody": {"z": [1, null], "a": "kept"},
        });
        fs::write(ancestor.beside("config.json"), config.to_string()).unwrap();
        let modules = json!([{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "../../x"}]);
        fs::write(ancestor.beside("modules.json"), modules.to_string()).unwrap();
        fs::write(ancestor.beside("1_Pooling/config.json"), r#"{ "word_embedding_dimension": 16 }"#).unwrap();
        ancestor
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path("hub").join(name)
    }

    fn model(&self) -> PathBuf {
        self.path("hub/onnx/model.onnx")
    }
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// The sizes of layers as `inspect` reads them.
fn inspected(model: &Path, key: &str) -> Vec<u64> {
    let layers = json_of(&["inspect", text(model), "--json"])["layers"].clone();
    layers.as_array().unwrap().iter().map(|layer| layer[key].as_u64().unwrap()).collect()
}

/// A child opens where its ancestor did: by its folder alone it says what it says with the ancestor's tokenizer, and
/// its configuration has the sizes that are read off its graph.
pub fn children_have_what_their_ancestor_had(kind: &str) {
    let ancestor = Ancestor::new("classifier-ts");
    let (model, child) = (ancestor.model(), ancestor.path("child"));
    let texts = format!("{FOLDER}/labelled.jsonl");
    let grow =
        format!("grow {} --with-configs --no-images --heads 2 --ffn-width 50% --layers 1 --no-verify", text(&model));
    let grown = json_of(args!("{grow} --json -o {}", text(&child)));
    let file = child.join("model.onnx");
    let found = config(&child);
    for (key, of_layer) in
        [("num_attention_heads", "heads"), ("head_dim", "head_dim"), ("intermediate_size", "ffn_width")]
    {
        assert_eq!(inspected(&file, of_layer), [found[key].as_u64().unwrap()], "{key}");
    }
    let mut expected = config(&ancestor.path("hub"));
    for (key, value) in
        [("num_hidden_layers", 1), ("intermediate_size", 16), ("num_attention_heads", 2), ("head_dim", 4)]
    {
        expected[key] = json!(value);
    }
    let text_of = fs::read_to_string(child.join("config.json")).unwrap();
    assert_eq!(text_of, format!("{expected:#}\n"), "order or another key");
    let report = &grown["configs"];
    let change = |key: &str, from: Value, to: u64| json!({"file": "config.json", "key": key, "from": from, "to": to});
    let changes = json!([
        change("num_hidden_layers", json!(2), 1),
        change("intermediate_size", json!(32), 16),
        change("num_attention_heads", json!(4), 2),
        change("head_dim", Value::Null, 4),
    ]);
    assert_eq!(report["corrected"], changes);
    assert!(report["warnings"].to_string().contains("2 heads of 4 are not the 16 channels"), "{report}");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "sentence_bert_config.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        assert_eq!(fs::read(child.join(name)).unwrap(), fs::read(ancestor.beside(name)).unwrap(), "{name}");
    }
    assert_eq!(report["files"].as_array().unwrap().len(), 6, "{report}");

    let eval = ["eval", text(&file), "--texts", &texts, "--runtime", kind, "--json"];
    let tokenizer = ancestor.beside("tokenizer.json");
    let [alone, named] = [&[][..], &["--tokenizer", text(&tokenizer)]].map(|more| json_of(&[&eval[..], more].concat()));
    assert!(alone["loss"].is_number());
    for field in ["loss", "top1", "classes"] {
        assert_eq!(alone[field], named[field], "{field}");
    }
    assert_eq!(alone["input"]["texts"]["tokenizer"], json!(child.join("tokenizer.json")));
    assert_eq!(alone["input"]["texts"]["max_length"], named["input"]["texts"]["max_length"]);

    // A tokenizer that was named goes with the child.
    fs::remove_file(&tokenizer).unwrap();
    let lists = ancestor.path("list.toml");
    fs::write(&lists, "[[descendant]]\noutput = \"a\"\nheads = [2, 4]\n[[descendant]]\noutput = \"b\"\nheads = 4\n")
        .unwrap();
    let (sentences, all) = (format!("{FOLDER}/sentences.txt"), ancestor.path("all"));
    let told = done(args!(
        "grow {} --with-configs --texts {sentences} --tokenizer {FOLDER} --batch {} --runtime {kind} --no-verify -o {}",
        text(&model),
        text(&lists),
        text(&all)
    ));
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains("warning: config.json: `num_attention_heads` stays 4, since layers differ"), "{told}");
    let [a, b] = ["a", "b"].map(|name| config(&all.join(name)));
    assert_eq!((&a["num_attention_heads"], &a["num_attention_heads_per_layer"]), (&json!(4), &json!([2, 4])));
    assert_eq!(inspected(&all.join("a/model.onnx"), "heads"), [2, 4]);
    assert_eq!(b, config(&ancestor.path("hub")));
    let given = fs::read(root().join(FOLDER).join("tokenizer.json")).unwrap();
    assert_eq!(fs::read(all.join("b/tokenizer.json")).unwrap(), given);
}

/// Each of several sizes has a folder, and numbers that no configuration has room for are told.
pub fn every_size_has_its_folder(kind: &str) {
    let ancestor = Ancestor::new("bert-ts");
    let (model, all) = (ancestor.model(), ancestor.path("all"));
    let sentences = format!("{FOLDER}/sentences.txt");
    let shrunk = json_of(args!(
        "shrink {} --with-configs --texts {sentences} --to 75%,50% --min-ffn 2 --multiple-of 2 --runtime {kind} \
         --no-head-dim --json -o {}",
        text(&model),
        text(&all)
    ));
    for (name, child) in ["model-75", "model-50"].into_iter().zip(shrunk["descendants"].as_array().unwrap()) {
        let folder = all.join(name);
        assert_eq!((&child["file"], &child["configs"]["folder"]), (&json!(folder.join("model.onnx")), &json!(folder)));
        let (found, warnings) = (config(&folder), child["configs"]["warnings"].to_string());
        let dims = inspected(&folder.join("model.onnx"), "head_dim");
        assert!(dims.iter().all(|&dim| dim == 4), "{dims:?}");
        for (key, of_layer) in [("num_attention_heads", "heads"), ("intermediate_size", "ffn_width")] {
            let layers = inspected(&folder.join("model.onnx"), of_layer);
            let list = &found[format!("{key}_per_layer")];
            assert_eq!(list.is_array(), warnings.contains(&format!("`{key}` stays")), "{warnings}");
            match list.is_array() {
                true => assert_eq!(list, &json!(layers), "{name}"),
                false => assert!(layers.iter().all(|&n| json!(n) == found[key]), "{name}: {layers:?}, {found}"),
            }
        }
        let file = folder.join("model.onnx");
        let compare = ["compare", text(&model), text(&file), "--texts", &sentences, "--runtime", kind];
        let tokenizer = ancestor.beside("tokenizer.json");
        let [alone, named] = [&[][..], &["--tokenizer", text(&tokenizer)]]
            .map(|more| json_of(&[&compare[..], &["--runs", "1", "--json", "--no-verify"], more].concat()));
        assert!(alone["correlation"].is_number());
        assert_eq!(alone["correlation"], named["correlation"]);
    }
    let told = shrunk["descendants"].to_string();
    assert!(told.contains("since layers differ"), "the fixture's layers are alike: {told}");
}

/// The lengths of texts are those that the child takes.
pub fn texts_are_as_long_as_the_child_takes_them() {
    let ancestor = Ancestor::new("bert-ts");
    let child = ancestor.path("child");
    let told = json_of(args!(
        "grow {} --no-images --tokens 8 --with-configs --json -o {}",
        text(&ancestor.model()),
        text(&child)
    ));
    let of = |name: &str| -> Value { serde_json::from_slice(&fs::read(child.join(name)).unwrap()).unwrap() };
    assert_eq!(of("config.json")["max_position_embeddings"], 8);
    assert_eq!(of("tokenizer_config.json")["model_max_length"], 8);
    assert_eq!(of("sentence_bert_config.json")["max_seq_length"], 8);
    assert_eq!(told["configs"]["corrected"].as_array().unwrap().len(), 3, "{told}");
    let texts = format!("{FOLDER}/sentences.txt");
    let density = json_of(&["density", text(&child.join("model.onnx")), "--texts", &texts, "--json"]);
    let length = json!({"tokens": 8, "from": "sentence_bert_config.json"});
    assert_eq!(density["input"]["texts"]["max_length"], length);
}

/// Models of pictures have theirs: sizes of images and numbers of classes, too.
pub fn pictures_are_of_the_size_of_the_child() {
    let folder = tempfile::tempdir().unwrap();
    let [ancestor, child] = ["vit", "child"].map(|name| folder.path().join(name));
    fs::create_dir(&ancestor).unwrap();
    let model = ancestor.join("model.onnx");
    fs::copy(root().join("models/fashion-vit.onnx"), &model).unwrap();
    let layers = json_of(&["inspect", text(&model), "--json"])["layers"].clone();
    let of = |key: &str| layers[0][key].clone();
    let vit = json!({
        "model_type": "vit", "image_size": 28, "hidden_size": of("embedding_dim"), "num_attention_heads": of("heads"),
        "intermediate_size": of("ffn_width"), "num_hidden_layers": layers.as_array().unwrap().len(),
    });
    fs::write(ancestor.join("config.json"), vit.to_string()).unwrap();
    let processor = json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28},
        "image_mean": [0.5], "image_std": [0.5]});
    fs::write(ancestor.join("preprocessor_config.json"), processor.to_string()).unwrap();
    let grow = ["grow", text(&model), "--no-images", "--with-configs", "--image-size", "32", "--heads", "50%"];
    done(&[&grow[..], &["--classes", "3", "--no-verify", "-o", text(&child)]].concat());
    let (found, file) = (config(&child), child.join("model.onnx"));
    let count = |list: Vec<u64>| (list.len(), list[0]);
    let (layers, heads) = count(inspected(&file, "heads"));
    let mut expected = vit.clone();
    for (key, value) in [("image_size", 32), ("num_hidden_layers", layers), ("num_attention_heads", heads as usize)] {
        expected[key] = json!(value);
    }
    expected["head_dim"] = json!(inspected(&file, "head_dim")[0]);
    assert_eq!(found, expected);
    assert!(found["num_attention_heads"].as_u64() < vit["num_attention_heads"].as_u64());
    let found = fs::read_to_string(child.join("preprocessor_config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["size"], json!({"height": 32, "width": 32}));
}

/// What is another's is not touched, and what is asked for in vain is said before any work.
pub fn folders_of_others_stay() {
    let ancestor = Ancestor::new("bert-ts");
    let (model, folder) = (ancestor.model(), ancestor.path("child"));
    let grow = |model: &Path, output: &Path, more: &[&str]| -> Vec<String> {
        let command = ["grow", text(model), "--with-configs", "--no-images", "--heads", "2", "--no-verify", "-o"];
        [&command[..], &[text(output)], more].concat().into_iter().map(str::to_owned).collect()
    };
    let refuse = |model: &Path, output: &Path, more: &[&str], says: &[&str]| {
        let command = grow(model, output, more);
        refused(&command.iter().map(String::as_str).collect::<Vec<_>>(), says);
    };
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("tokenizer.json"), "another's").unwrap();
    refuse(&model, &folder, &[], &["tokenizer.json", "the output exists already", "--force"]);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tokenizer.json"]);
    assert_eq!(fs::read_to_string(folder.join("tokenizer.json")).unwrap(), "another's");
    let command = grow(&model, &folder, &["--force"]);
    done(&command.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), fs::read(ancestor.beside("tokenizer.json")).unwrap());
    // The ancestor's own folder, --force or not.
    let before = config(&ancestor.path("hub"));
    refuse(&model, &ancestor.path("hub"), &["--force"], &["the output is the input"]);
    assert_eq!(config(&ancestor.path("hub")), before);
    assert!(!ancestor.beside("model.onnx").exists());
    refuse(&model, &ancestor.path("x.onnx"), &[], &["x.onnx", "a folder for one child", "model.onnx in it"]);
    let [missing, new] = ["missing/child", "new"].map(|name| ancestor.path(name));
    refuse(&model, &missing, &[], &["the output cannot be written"]);
    fs::write(ancestor.beside("config.json"), "[1]").unwrap();
    refuse(&model, &new, &[], &["config.json", "not an object"]);
    fs::write(ancestor.beside("config.json"), "{").unwrap();
    refuse(&model, &new, &[], &["config.json", "not JSON"]);
    let alone = ancestor.path("alone.onnx");
    fs::copy(&model, &alone).unwrap();
    refuse(&alone, &new, &[], &["there is nothing", "leave --with-configs out"]);
    assert!(!new.exists());
    let output = offshoot(&["grow", text(&model), "--no-images", "--with-configs"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A child that pools by itself, beside a list of modules that pool as well, is said to.
pub fn pooling_twice_is_told() {
    let ancestor = Ancestor::new("bert-ts");
    let grow = format!("grow {} --with-configs --no-images --heads 2 --no-verify --json", text(&ancestor.model()));
    let warned = |more: &str, name: &str| {
        let output = done(args!("{grow} {more} -o {}", text(&ancestor.path(name))));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let says = "modules.json: it lists what pools states of tokens, and the child gives `sentence_embedding`";
        let said = String::from_utf8(output.stderr).unwrap().contains(says);
        assert_eq!(found["configs"]["warnings"].to_string().contains(says), said, "{found}");
        said
    };
    assert_eq!([warned("--pooling mean", "pooled"), warned("--of last_hidden_state", "states")], [true, false]);
    fs::remove_file(ancestor.beside("modules.json")).unwrap();
    assert!(!warned("--pooling mean", "alone"));
}
